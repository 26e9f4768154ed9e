//! The certificate that a NATS server shows, and how it comes to show another one.
//!
//! A server reads its files when it starts, and when it is told to. Whoever may stop it can tell it by a signal; over the network only
//! [`SYSTEM_USER`] can. Connections that there are stay.

use std::{path::Path, sync::Arc, time::Duration};

use async_nats::{RequestErrorKind, ServerAddr};
use bytes::{Bytes, BytesMut};
use mailbell_runtime::tls;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, de::IgnoredAny};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use crate::{
    Auth, BusError, BusOptions,
    bus::{CONNECT_LIMIT, connect_error, connect_options},
    permissions::{SYSTEM_USER, system_inbox_prefix},
};

/// A server greets with less.
const MOST_GREETING: usize = 64 * 1024;
/// A server reads a few files, and lets clients go that are no longer allowed.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

/// What a server shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// By which name NATS knows the server, until it is started anew.
    pub server_id: String,
    /// Its own certificate.
    pub certificate: CertificateDer<'static>,
}

/// How a server greets.
#[derive(Debug, Deserialize)]
struct Greeting {
    server_id: String,
}

/// What it says after it was told to read its files.
#[derive(Debug, Deserialize)]
struct Answer {
    /// Which server it was.
    #[serde(rename = "server")]
    _server: IgnoredAny,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    description: String,
}

/// Looks at what the server at `tls://host:port` shows, trusted or not. It gets no login.
///
/// # Errors
/// [`BusError::Options`], [`BusError::Connect`], [`BusError::Tls`], [`BusError::Garbled`], [`BusError::Timeout`].
pub async fn shown(url: &str) -> Result<Shown, BusError> {
    let look = async {
        let server: ServerAddr = url
            .parse()
            .map_err(|_| BusError::Options(format!("{url:?} is no URL like tls://host:4222")))?;
        let unreachable = |error: std::io::Error| BusError::Connect {
            urls: url.to_owned(),
            reason: error.to_string(),
        };
        let connected = TcpStream::connect((server.host(), server.port())).await;
        let mut stream = connected.map_err(unreachable)?;
        let mut greeting = BytesMut::new();
        while !greeting.ends_with(b"\n") {
            let read = stream.read_buf(&mut greeting).await.map_err(unreachable)?;
            if read == 0 || greeting.len() > MOST_GREETING {
                return Err(BusError::Garbled("a NATS server's greeting"));
            }
        }
        let greeting = greeting
            .strip_prefix(b"INFO ")
            .and_then(|info| serde_json::from_slice::<Greeting>(info).ok())
            .filter(|greeting| is_server_id(&greeting.server_id))
            .ok_or(BusError::Garbled("a NATS server's greeting"))?;
        let certificate = tls::shown(stream, server.host()).await;
        Ok(Shown {
            server_id: greeting.server_id,
            certificate: certificate.map_err(|error| BusError::Tls(error.to_string()))?,
        })
    };
    timeout(CONNECT_LIMIT, look)
        .await
        .unwrap_or(Err(BusError::Timeout(CONNECT_LIMIT)))
}

/// By which name clients know the server at this URL. `None`: it is no URL of a server.
#[must_use]
pub fn host(url: &str) -> Option<String> {
    let server: ServerAddr = url.parse().ok()?;
    Some(server.host().to_owned())
}

/// Whether it is one token of a subject: by it the server is told, and nobody knows yet who it is that greets.
fn is_server_id(id: &str) -> bool {
    !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Has the server at `url`, of this [`Shown::server_id`], read its files again. `options` are those of an admin API; where that server lets
/// nobody in whom it should, for instance since its certificate has expired, another of theirs passes it on. `before`: whom these options
/// trusted before, and servers still may be of that have not read their files yet.
///
/// # Errors
/// [`BusError::Options`] without a password, [`BusError::Reload`] with the words of a server that cannot use them, and stays as it was; or why
/// none was told.
pub async fn read_again(
    options: &BusOptions,
    url: &str,
    server_id: &str,
    before: &[CertificateDer<'static>],
) -> Result<(), BusError> {
    let Auth::UserPassword { password, .. } = &options.auth else {
        return Err(BusError::Options(
            "NATS servers are told to read their files by a user with a password".to_owned(),
        ));
    };
    let system = BusOptions {
        auth: Auth::UserPassword {
            user: SYSTEM_USER.to_owned(),
            password: password.clone(),
        },
        ..options.clone()
    };
    let others = options.urls.iter().filter(|other| *other != url);
    let urls: Vec<String> = others.cloned().collect();
    let urls = [vec![url.to_owned()], urls].concat();
    let tell = async {
        let mut connect = connect_options(&system, true).await?;
        // The client reads the roots of the system all the same, and wants all of them to be good.
        if let Some(ca) = trusts_alone(&system).filter(|_| !before.is_empty()) {
            let (ca, before) = (ca.to_owned(), before.to_vec());
            let trusted = move || tls::client_config(tls::Roots::FileAnd(&ca, &before), &[]);
            let trusted = tokio::task::spawn_blocking(trusted).await;
            let trusted = trusted
                .map_err(|_| BusError::Closed)?
                .map_err(|error| BusError::Tls(error.to_string()))?;
            connect = connect.tls_client_config(Arc::unwrap_or_clone(trusted));
        }
        let client = connect
            .custom_inbox_prefix(system_inbox_prefix(&options.installation))
            .retain_servers_order()
            .connect(urls)
            .await
            .map_err(|error| connect_error(&error, &system))?;
        let subject = format!("$SYS.REQ.SERVER.{server_id}.RELOAD");
        let answer = client.request(subject, Bytes::new()).await;
        let answer = answer.map_err(|error| match error.kind() {
            RequestErrorKind::TimedOut => BusError::Timeout(RELOAD_LIMIT),
            RequestErrorKind::NoResponders => {
                BusError::Reload("the server that was reached has no way to it".to_owned())
            }
            _ => BusError::Disconnected,
        })?;
        let answer = serde_json::from_slice::<Answer>(&answer.payload)
            .map_err(|_| BusError::Garbled("a NATS server's answer"))?;
        match answer.error {
            None => Ok(()),
            Some(refusal) => Err(BusError::Reload(refusal.description)),
        }
    };
    timeout(RELOAD_LIMIT, tell)
        .await
        .unwrap_or(Err(BusError::Timeout(RELOAD_LIMIT)))
}

/// The file of all whom it trusts, where that is all there is to its TLS.
fn trusts_alone(options: &BusOptions) -> Option<&Path> {
    let tls = options.tls.as_ref().filter(|tls| tls.cert.is_none())?;
    tls.ca.as_deref()
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    /// Of a server that greets so, and then says nothing more until it is left.
    async fn look(greeting: Vec<u8>) -> BusError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("tls://{}", listener.local_addr().unwrap());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(&greeting).await;
            stream
        };
        let (seen, _) = tokio::join!(shown(&url), serve);
        seen.unwrap_err()
    }

    #[tokio::test]
    async fn whoever_does_not_greet_as_a_server_is_left_at_once() {
        for greeting in [
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            b"INFO hello\r\n",
            b"INFO {}\r\n",
            b"INFO {\"server_id\":\"\"}\r\n",
            b"INFO {\"server_id\":\"N.SHUTDOWN\"}\r\n",
            b"INFO {\"server_id\":\"*\"}\r\n",
            &[b'x'; MOST_GREETING + 1],
        ] {
            let error = look(greeting.to_vec()).await;
            assert!(matches!(error, BusError::Garbled(_)), "{error}");
        }
        let error = shown("tls://a b:1").await.unwrap_err();
        assert!(matches!(error, BusError::Options(_)), "{error}");
        let error = shown("tls://127.0.0.1:1").await.unwrap_err();
        assert!(matches!(error, BusError::Connect { .. }), "{error}");
    }

    #[tokio::test]
    async fn whoever_falls_silent_is_waited_for_so_long_and_no_longer() {
        for greeting in [&b"INF"[..], b"INFO {\"server_id\":\"N\"}\r\n"] {
            let error = look(greeting.to_vec()).await;
            assert_eq!(error, BusError::Timeout(CONNECT_LIMIT));
        }
    }
}
