//! The NATS servers that the operator runs, as they say themselves: by the API server, which asks a pod for whoever may `get` its
//! subresource `proxy`. Where that does not go, what their kubelets say of them has to do.

mod judge;

use std::time::Duration;

use futures_util::{
    AsyncReadExt as _, StreamExt as _,
    future::{join, join_all},
    stream,
};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Client, Resource as _, ResourceExt as _, core::Request};
use mailbell_operator::{api::Mailbell, desired::MONITOR_PORT};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep, timeout_at};

use self::judge::{judge, told, wrongs};
use super::access::{Seen, seen};
use crate::doctor::Report;

/// Of the page of a server, which has some 600 bytes for each of 67 streams.
const MOST_BYTES: u64 = 4 << 20;
/// A network may swallow the question.
const LIMIT: Duration = Duration::from_secs(5);
/// And all of them: what else there is has to be looked at too.
const LIMIT_OF_ALL: Duration = Duration::from_secs(20);
/// The servers of so many installations are asked at a time.
const AT_ONCE: usize = 16;
/// A copy may be a message behind for a moment, and a stream choose its leader: where something is wrong they are asked again.
const AGAIN: Duration = Duration::from_secs(2);

/// `pods`: those of the installation, if they can be seen. `good`: until when the certificate is good that they are to show, in
/// seconds since 1970, if nothing is wrong with it.
pub(super) fn examine(
    report: &mut Report,
    namespace: &str,
    mailbell: &Mailbell,
    pods: Option<&[Pod]>,
    good: Option<i64>,
    looks: &[Answers],
) {
    let finding = format!("NATS {}", mailbell.name_any());
    let servers = servers(mailbell);
    if servers.is_empty() {
        return report.skipped(
            &finding,
            format!(
                "its servers are yours: from where they are reached `mailbell doctor --installation {} --nats-url URL --nats-user USER --nats-password-file FILE --nats-ca FILE` looks at them",
                mailbell.name_any()
            ),
        );
    }
    if let Some(pods) = pods {
        readiness(report, &finding, &servers, pods);
    }
    // Of whom nothing is heard is told below.
    let heard = looks.last().filter(|last| told(last).next().is_some());
    if let (Some(good), Some(last)) = (good, heard) {
        certificates(report, &finding, namespace, mailbell, last, good);
    }
    let by_hand = match pods {
        None => servers.first().map(String::as_str),
        Some(pods) => running(&servers, pods),
    };
    judge(report, &finding, namespace, looks, by_hand);
}

/// Whether all show the one that is in their Secret, which is good.
fn certificates(
    report: &mut Report,
    finding: &str,
    namespace: &str,
    mailbell: &Mailbell,
    look: &Answers,
    good: i64,
) {
    let (mut others, mut unseen) = (Vec::new(), Vec::new());
    let mut all_expired = true;
    for (server, answer) in look {
        let until = match answer {
            Seen::There(told) => told.shown.tls_cert_not_after,
            _ => None,
        };
        all_expired &= until.is_some_and(|until| until <= Timestamp::now());
        match until {
            Some(until) if until.as_second() == good => {}
            Some(_) => others.push(server.as_str()),
            None => unseen.push(server.as_str()),
        }
    }
    let name = mailbell.name_any();
    if !others.is_empty() && all_expired {
        // None of them lets in who could tell it, and one that starts by itself meets none of the others.
        report.fail(
            finding,
            "all show a certificate that has expired, so nobody reaches them who connects anew; the one in the Secret is good",
            format!(
                "start them together, since the admin API cannot tell them any more: kubectl --namespace {namespace} delete pod --selector app.kubernetes.io/instance={name},app.kubernetes.io/component=nats"
            ),
        );
    } else if !others.is_empty() {
        let said = format!(
            "show another certificate than the one that is in the Secret now: {}",
            others.join(", ")
        );
        let told = if mailbell.spec.paused {
            "resume the installation before the one before ends, since its admin API tells them to read it, and look again five minutes later"
        } else {
            "look again in five minutes: the admin API tells them to read it"
        };
        let advice = format!(
            "{told}; if it stays so, what kubectl --namespace {namespace} logs deployment/{name}-admin tells of it says why. Start them anew before the one before ends: kubectl --namespace {namespace} rollout restart statefulset/{name}-nats; where the authority has changed too, first see docs/operating.md, The certificate of the NATS servers"
        );
        report.warn(finding, said, advice);
    } else if unseen.is_empty() {
        report.ok(
            finding,
            "all show the certificate that is in the Secret, by its end",
        );
    } else {
        let unseen = unseen.join(", ");
        report.skipped(
            finding,
            format!(
                "whether these show the certificate that is in the Secret cannot be seen: {unseen}"
            ),
        );
    }
}

/// The first that runs.
fn running<'a>(servers: &'a [String], pods: &[Pod]) -> Option<&'a str> {
    let runs = |server: &&String| {
        let mut pods = pods.iter().filter(|pod| pod.name_any() == **server);
        pods.any(|pod| pod.status.as_ref().and_then(|it| it.phase.as_deref()) == Some("Running"))
    };
    servers.iter().find(runs).map(String::as_str)
}

/// Those that the operator runs, by the names of their pods.
fn servers(mailbell: &Mailbell) -> Vec<String> {
    let nodes = mailbell.spec.nats.managed.iter().flat_map(|it| 0..it.nodes);
    let name = mailbell.name_any();
    nodes.map(|node| format!("{name}-nats-{node}")).collect()
}

/// By their own health, for which their kubelets ask them.
fn readiness(report: &mut Report, finding: &str, servers: &[String], pods: &[Pod]) {
    let is_ready = |server: &&String| {
        let pod = pods.iter().find(|pod| pod.name_any() == **server);
        let status = pod.and_then(|pod| pod.status.as_ref());
        let mut conditions = status.iter().flat_map(|it| it.conditions.iter().flatten());
        conditions.any(|it| it.type_ == "Ready" && it.status == "True")
    };
    let (ready, away): (Vec<&String>, Vec<&String>) = servers.iter().partition(is_ready);
    let (all, least) = (servers.len(), servers.len() / 2 + 1);
    let said = format!("{} of {all} servers are ready", ready.len());
    let named: Vec<&str> = away.iter().map(|it| it.as_str()).collect();
    let named = named.join(", ");
    if away.is_empty() {
        report.ok(finding, said);
    } else if ready.len() < least {
        report.fail(
            finding,
            format!("{said}, and nothing is stored or told below {least}; not ready: {named}"),
            "see what is told of their pods and disks, and their logs; all goes on when enough are there",
        );
    } else {
        report.warn(
            finding,
            format!("{said}: one more may not be lost; not ready: {named}"),
            "see what is told of its pod and disk, and its log, before a node is drained",
        );
    }
}

/// What a server tells of itself on the page `/jsz`, as far as it is needed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    /// From another page.
    #[serde(skip)]
    shown: Shown,
    disabled: bool,
    /// Bytes.
    storage: u64,
    config: Config,
    meta_cluster: Meta,
    account_details: Vec<Account>,
}

/// What it shows, on the page `/varz`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Shown {
    /// Until when its certificate is good. Older servers do not tell.
    tls_cert_not_after: Option<Timestamp>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Config {
    /// Bytes.
    max_storage: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Meta {
    leader: String,
    cluster_size: usize,
    replicas: Vec<Replica>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Account {
    stream_detail: Vec<Stream>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Stream {
    name: String,
    cluster: Group,
}

/// Who has a stream. The leader alone knows how far the others are.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Group {
    leader: String,
    replicas: Vec<Replica>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Replica {
    name: String,
    current: bool,
    offline: bool,
}

/// A server's name, and what it says.
pub(super) type Answers = Vec<(String, Seen<Told>)>;

/// What the servers of each installation say, and once more where something is wrong with that. All at once: a silent network takes its time.
pub(super) async fn look(
    client: &Client,
    namespace: &str,
    mailbells: &[Mailbell],
) -> Vec<Vec<Answers>> {
    let end = Instant::now() + LIMIT_OF_ALL;
    let looks = stream::iter(mailbells).map(async |mailbell| {
        let servers = servers(mailbell);
        let mut looks = vec![ask_all(client, namespace, &servers, end).await];
        if looks
            .iter()
            .any(|first| told(first).next().is_some() && !wrongs(first).is_empty())
        {
            sleep(AGAIN).await;
            looks.push(ask_all(client, namespace, &servers, end).await);
        }
        looks
    });
    looks.buffered(AT_ONCE).collect().await
}

async fn ask_all(client: &Client, namespace: &str, servers: &[String], end: Instant) -> Answers {
    let end = end.min(Instant::now() + LIMIT);
    let asked = servers.iter().map(async |server| {
        let told = timeout_at(end, ask(client, namespace, server)).await;
        let none = |_elapsed| Seen::Failed("no answer in time".to_owned());
        (server.clone(), told.unwrap_or_else(none))
    });
    join_all(asked).await
}

async fn ask(client: &Client, namespace: &str, server: &str) -> Seen<Told> {
    let (told, shown) = join(
        page::<Told>(client, namespace, server, "jsz?accounts=true&streams=true"),
        page::<Shown>(client, namespace, server, "varz"),
    )
    .await;
    match (told, shown) {
        (Seen::There(told), Seen::There(shown)) => Seen::There(Told { shown, ..told }),
        (told, _) => told,
    }
}

async fn page<T: DeserializeOwned>(
    client: &Client,
    namespace: &str,
    server: &str,
    page: &str,
) -> Seen<T> {
    let pods = Request::new(Pod::url_path(&(), Some(namespace)));
    let page = format!("proxy/{page}");
    let request = match pods.get_subresource(&page, &format!("{server}:{MONITOR_PORT}")) {
        Ok(request) => request,
        Err(error) => return Seen::Failed(error.to_string()),
    };
    let answer = match seen(client.request_stream(request).await) {
        Seen::There(answer) => answer,
        Seen::Missing => return Seen::Missing,
        Seen::Denied(why) => return Seen::Denied(why),
        Seen::Failed(why) => return Seen::Failed(why),
    };
    let mut page = Vec::new();
    if let Err(error) = answer.take(MOST_BYTES).read_to_end(&mut page).await {
        return Seen::Failed(error.to_string());
    }
    match serde_json::from_slice(&page) {
        Ok(said) => Seen::There(said),
        Err(error) => Seen::Failed(format!("what it says cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests;
