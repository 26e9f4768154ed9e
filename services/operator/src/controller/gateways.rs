//! What gateways say of themselves in their metrics.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// How long a gateway is waited for.
const ANSWER: Duration = Duration::from_secs(5);
/// The most that one says; a gateway's are some 30 KB.
const MOST: usize = 1 << 20;
/// So many are asked at once.
const AT_ONCE: usize = 16;
/// Devices that are attached.
const DEVICES: &str = "mailbell_gateway_devices ";
/// Of which release it is.
const BUILD: &str = "mailbell_build_info{";

/// What all gateways say together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Gateways {
    /// Devices that are attached to them.
    pub(super) devices: u64,
    /// Their releases.
    pub(super) releases: BTreeSet<String>,
    /// How many there are.
    pub(super) pods: usize,
}

/// Asks every gateway. `None`: not all of them have answered, so nothing is known.
pub(super) async fn ask(all: &[SocketAddr]) -> Option<Gateways> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let asked = stream::iter(all.to_vec()).map(|gateway| one(client.clone(), gateway));
    let mut answers = asked.buffer_unordered(AT_ONCE);
    let mut sum = Gateways {
        pods: all.len(),
        ..Gateways::default()
    };
    while let Some(answer) = answers.next().await {
        let (devices, release) = answer?;
        sum.devices = sum.devices.saturating_add(devices);
        sum.releases.insert(release);
    }
    Some(sum)
}

async fn one(
    client: Client<HttpConnector, Empty<Bytes>>,
    gateway: SocketAddr,
) -> Option<(u64, String)> {
    let asked = async {
        let request = Request::get(format!("http://{gateway}/metrics")).body(Empty::new());
        let answer = client.request(request.ok()?).await.ok()?;
        let body = Limited::new(answer.into_body(), MOST)
            .collect()
            .await
            .ok()?;
        String::from_utf8(body.to_bytes().into()).ok()
    };
    let text = tokio::time::timeout(ANSWER, asked).await.ok()??;
    read(&text)
}

/// Devices and release. `None`: it is no gateway of ours.
fn read(text: &str) -> Option<(u64, String)> {
    let devices = text.lines().find_map(|line| line.strip_prefix(DEVICES))?;
    let labels = text.lines().find_map(|line| line.strip_prefix(BUILD))?;
    let (_, release) = labels.split_once("version=\"")?;
    let (release, _) = release.split_once('"')?;
    Some((devices.trim().parse().ok()?, release.to_owned()))
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::net::TcpListener;

    use super::*;

    async fn gateway(text: impl Into<String>) -> SocketAddr {
        let text = text.into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = get(|| async move { text.clone() });
        let router = Router::new().route("/metrics", answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    fn text(devices: &str, release: &str) -> String {
        format!(
            "# HELP mailbell_gateway_devices Attached devices.\n# TYPE mailbell_gateway_devices gauge\n\
             mailbell_gateway_devices_behind 7\nmailbell_gateway_devices {devices}\n\
             mailbell_build_info{{version=\"{release}\",role=\"gateway\"}} 1\n# EOF\n"
        )
    }

    #[tokio::test]
    async fn all_gateways_are_added_up() {
        let all = [
            gateway(text("3", "0.1.0")).await,
            gateway(text("4", "0.2.0")).await,
        ];
        let sum = ask(&all).await.unwrap();
        assert_eq!((sum.devices, sum.pods), (7, 2));
        assert_eq!(Vec::from_iter(sum.releases), ["0.1.0", "0.2.0"]);
        assert_eq!(ask(&[]).await, Some(Gateways::default()));
    }

    /// One that is not counted would be one whose devices are not there.
    #[tokio::test]
    async fn nothing_is_known_unless_all_have_answered() {
        let good = gateway(text("3", "0.1.0")).await;
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = gone.local_addr().unwrap();
        drop(gone);
        let large = gateway(text("3", "0.1.0") + &" ".repeat(MOST)).await;
        let other = gateway("<html>").await;
        let odd = gateway(text("-3", "0.1.0")).await;
        for bad in [closed, large, other, odd] {
            assert_eq!(ask(&[good, bad]).await, None);
        }
    }

    #[tokio::test]
    async fn one_that_says_nothing_is_not_waited_for() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        tokio::time::pause();
        let asked = tokio::spawn(async move { ask(&[address]).await });
        let (_held, _) = silent.accept().await.unwrap();
        tokio::time::advance(ANSWER).await;
        assert_eq!(asked.await.unwrap(), None);
    }
}
