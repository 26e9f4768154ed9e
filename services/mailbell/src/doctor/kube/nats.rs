//! The NATS servers that the operator runs, as they say themselves: by the API server, which asks a pod for whoever may `get` its
//! subresource `proxy`. Where that does not go, what their kubelets say of them has to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{AsyncReadExt as _, future::join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Resource as _, ResourceExt as _, core::Request};
use mailbell_operator::{api::Mailbell, desired::MONITOR_PORT};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::{
    access::{Seen, seen},
    pods::Trouble,
};
use crate::doctor::{Report, Verdict};

/// Of the page of a server, which has some 600 bytes for each of 67 streams.
const MOST_BYTES: u64 = 4 << 20;
/// A network may swallow the question, and other installations have to be looked at too.
const LIMIT: Duration = Duration::from_secs(5);
/// A copy may be a message behind for a moment: who is behind is asked again.
const AGAIN: Duration = Duration::from_secs(2);
/// So much of the disk that is set aside, in percent, leaves time to do something.
const FILLING: u64 = 80;
/// So much does not.
const FULL: u64 = 95;
/// What is told of a sentence.
const MAX_SENTENCE: usize = 300;

/// `pods`: those of the installation, if they can be seen. `renewed_s`: from when on their certificate is good, in seconds since 1970, if
/// nothing is wrong with it.
pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    pods: Option<&[Pod]>,
    renewed_s: Option<i64>,
) {
    let finding = format!("NATS {}", mailbell.name_any());
    let Some(managed) = &mailbell.spec.nats.managed else {
        return report.skipped(
            &finding,
            "its servers are yours: `mailbell doctor --nats-url` looks at them, from where they are reached",
        );
    };
    let nodes = usize::try_from(managed.nodes).unwrap_or_default();
    let set = format!("{}-nats", mailbell.name_any());
    let servers: Vec<String> = (0..nodes).map(|node| format!("{set}-{node}")).collect();
    if let Some(pods) = pods {
        readiness(report, &finding, &servers, pods);
    }
    let older = pods
        .zip(renewed_s)
        .map(|(pods, at)| older(&servers, pods, at));
    if let Some(older) = older.filter(|older| !older.is_empty()) {
        let said = format!(
            "started before the certificate that is in the Secret now was made, and show the one before: {}",
            older.join(", ")
        );
        let advice = format!(
            "start them anew before that one ends: kubectl --namespace {namespace} rollout restart statefulset/{set}; where the authority has changed too, first see docs/operating.md, The certificate of the NATS servers"
        );
        report.warn(&finding, said, advice);
    }
    let mut answers = ask_all(client, namespace, &servers).await;
    if !behind(&answers).is_empty() {
        sleep(AGAIN).await;
        answers = ask_all(client, namespace, &servers).await;
    }
    judge(report, &finding, namespace, &answers);
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

/// Those that started before the certificate was made that is in their Secret now: they read it when they start.
fn older<'a>(servers: &[String], pods: &'a [Pod], renewed_s: i64) -> Vec<&'a str> {
    let older = pods.iter().filter_map(|pod| {
        let name = pod.metadata.name.as_deref()?;
        let is_server = servers.iter().any(|server| server == name);
        (is_server && started_s(pod)? < renewed_s).then_some(name)
    });
    older.collect()
}

/// When the server in this pod did, in seconds since 1970.
fn started_s(pod: &Pod) -> Option<i64> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let server = containers.iter().find(|it| it.name == "nats")?;
    let running = server.state.as_ref()?.running.as_ref()?;
    Some(running.started_at.as_ref()?.0.as_second())
}

/// What a server tells of itself on the page `/jsz`, as far as it is needed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Told {
    disabled: bool,
    /// Bytes.
    storage: u64,
    config: Config,
    meta_cluster: Meta,
    account_details: Vec<Account>,
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
type Answers = Vec<(String, Seen<Told>)>;

async fn ask_all(client: &Client, namespace: &str, servers: &[String]) -> Answers {
    let asked = servers.iter().map(async |server| {
        let told = timeout(LIMIT, ask(client, namespace, server)).await;
        let none = |_elapsed| Seen::Failed("no answer within five seconds".to_owned());
        (server.clone(), told.unwrap_or_else(none))
    });
    join_all(asked).await
}

async fn ask(client: &Client, namespace: &str, server: &str) -> Seen<Told> {
    let pods = Request::new(Pod::url_path(&(), Some(namespace)));
    let page = "proxy/jsz?accounts=true&streams=true";
    let request = match pods.get_subresource(page, &format!("{server}:{MONITOR_PORT}")) {
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
        Ok(told) => Seen::There(told),
        Err(error) => Seen::Failed(format!("what it says cannot be read: {error}")),
    }
}

fn told(answers: &Answers) -> impl Iterator<Item = (&str, &Told)> {
    answers.iter().filter_map(|(server, answer)| match answer {
        Seen::There(told) => Some((server.as_str(), told)),
        _ => None,
    })
}

fn streams(told: &Told) -> impl Iterator<Item = &Stream> {
    told.account_details.iter().flat_map(|it| &it.stream_detail)
}

/// Of each server, how many streams it has no current copy of, as their leaders say.
fn behind(answers: &Answers) -> BTreeMap<&str, usize> {
    let mut found = BTreeMap::new();
    for (server, told) in told(answers) {
        let led = streams(told).filter(|stream| stream.cluster.leader == server);
        for replica in led.flat_map(|stream| &stream.cluster.replicas) {
            if replica.offline || !replica.current {
                *found.entry(replica.name.as_str()).or_default() += 1;
            }
        }
    }
    found
}

fn judge(report: &mut Report, finding: &str, namespace: &str, answers: &Answers) {
    if told(answers).next().is_none() {
        return not_asked(report, finding, namespace, answers);
    }
    let mut troubles = silent(answers);
    troubles.extend(leader(answers));
    troubles.extend(copies(answers));
    troubles.extend(disks(answers));
    if troubles.is_empty() {
        let names: BTreeSet<&str> = told(answers)
            .flat_map(|(_, told)| streams(told).map(|stream| stream.name.as_str()))
            .collect();
        let fullest = told(answers).filter_map(|(_, told)| used(told)).max();
        report.ok(
            finding,
            format!(
                "its servers agree, all copies of {} streams are current, and {}% of what is set aside on disk is used at most",
                names.len(),
                fullest.unwrap_or_default()
            ),
        );
    }
    for it in troubles {
        report.add(finding, it.verdict, it.said, it.advice);
    }
}

fn why(answer: &Seen<Told>) -> Option<String> {
    let why = match answer {
        Seen::There(_) => return None,
        Seen::Missing => "there is no such pod",
        Seen::Denied(why) | Seen::Failed(why) => why,
    };
    Some(why.chars().take(MAX_SENTENCE).collect())
}

/// None of them. That is no fault of theirs: most networks that enforce policies let only kubelets ask.
fn not_asked(report: &mut Report, finding: &str, namespace: &str, answers: &Answers) {
    let Some((server, answer)) = answers.first() else {
        return;
    };
    let said = match answer {
        Seen::Denied(_) => "you may not ask the servers by the API server (get pods/proxy)",
        _ => "no server was reached by the API server",
    };
    report.skipped(
        finding,
        format!(
            "copies and disks were not looked at, {said}: {}. By hand: kubectl --namespace {namespace} port-forward {server} {MONITOR_PORT}, then http://localhost:{MONITOR_PORT}/healthz and /jsz",
            why(answer).unwrap_or_default()
        ),
    );
}

/// Those that do not answer where others do.
fn silent(answers: &Answers) -> Vec<Trouble> {
    let silent = answers.iter().filter_map(|(server, answer)| {
        Some(Trouble {
            verdict: Verdict::Warn,
            said: format!("{server} does not answer: {}", why(answer)?),
            advice: "see what is told of its pod; what the others say of it follows".to_owned(),
        })
    });
    silent.collect()
}

/// Whether they are one cluster.
fn leader(answers: &Answers) -> Vec<Trouble> {
    let fail = |said: String, advice: &str| Trouble {
        verdict: Verdict::Fail,
        said,
        advice: advice.to_owned(),
    };
    let mut found = Vec::new();
    for (server, _) in told(answers).filter(|(_, told)| told.disabled) {
        found.push(fail(
            format!("{server} has JetStream off: it stores nothing"),
            "its log says why; most often its disk is missing or full",
        ));
    }
    if answers.len() < 2 {
        return found;
    }
    let on = || told(answers).filter(|(_, told)| !told.disabled);
    let alone: Vec<&str> = on()
        .filter(|(_, told)| told.meta_cluster.leader.is_empty())
        .map(|(server, _)| server)
        .collect();
    if !alone.is_empty() {
        found.push(fail(
            format!("no leader is known to {}: nothing is stored there", alone.join(", ")),
            "a majority of the servers has to meet: see their pods, and the network between their nodes",
        ));
    }
    let leaders: BTreeSet<&str> = on()
        .map(|(_, told)| told.meta_cluster.leader.as_str())
        .filter(|leader| !leader.is_empty())
        .collect();
    if leaders.len() > 1 {
        let leaders: Vec<&str> = leaders.iter().copied().collect();
        found.push(fail(
            format!("they do not agree who leads: {}", leaders.join(", ")),
            "look again; if it stays so, see to the network between their nodes",
        ));
    }
    let others = on().filter(|(server, told)| told.meta_cluster.leader == *server);
    for (server, told) in others {
        let meta = &told.meta_cluster;
        if meta.cluster_size > answers.len() {
            found.push(Trouble {
                verdict: Verdict::Warn,
                said: format!(
                    "{} servers are counted where {} are wanted: a majority is more than it need be",
                    meta.cluster_size,
                    answers.len()
                ),
                advice: "remove the one that is gone for good: nats server cluster peer-remove".to_owned(),
            });
        }
        let lost = meta
            .replicas
            .iter()
            .filter(|replica| replica.offline && on().any(|(answers, _)| answers == replica.name));
        for replica in lost {
            found.push(fail(
                format!("{} runs, and {server}, which leads, does not hear it", replica.name),
                "see to the network between their nodes, and whether their certificate is good for both",
            ));
        }
    }
    found
}

/// Whether each stream is kept as often as it should be.
fn copies(answers: &Answers) -> Vec<Trouble> {
    let mut found: Vec<Trouble> = behind(answers)
        .into_iter()
        .map(|(server, count)| Trouble {
            verdict: Verdict::Warn,
            said: format!("{server} has no current copy of {count} streams"),
            advice: "it catches up by itself while it runs: stop no other server, and drain no other node, before"
                .to_owned(),
        })
        .collect();
    let mut led = BTreeMap::new();
    for (server, told) in told(answers) {
        for stream in streams(told) {
            let it: &mut Option<usize> = led.entry(stream.name.as_str()).or_default();
            if stream.cluster.leader == server {
                *it = Some(stream.cluster.replicas.len() + 1);
            } else if !stream.cluster.leader.is_empty() {
                // By one that does not answer, or has just got it.
                it.get_or_insert(usize::MAX);
            }
        }
    }
    let mut add = |verdict, streams: Vec<&str>, said: &str, advice: &str| {
        if let Some(first) = streams.first() {
            found.push(Trouble {
                verdict,
                said: format!("{} streams, {first} among them, {said}", streams.len()),
                advice: advice.to_owned(),
            });
        }
    };
    let of = |is: &dyn Fn(&Option<usize>) -> bool| -> Vec<&str> {
        let those = led.iter().filter(|(_, copies)| is(copies));
        those.map(|(name, _)| *name).collect()
    };
    add(
        Verdict::Fail,
        of(&|copies| copies.is_none()),
        "have no leader: they take and tell nothing",
        "a majority of the servers that have it has to run: see to those that do not",
    );
    let wanted = answers.len();
    add(
        Verdict::Warn,
        of(&|copies| copies.is_some_and(|copies| copies < wanted)),
        &format!("have fewer copies than {wanted}"),
        "the setup job puts that right with each release: see what is told of it, or run `mailbell setup` with --replicas",
    );
    found
}

/// In percent of what is set aside; `None`: that is not bounded.
fn used(told: &Told) -> Option<u64> {
    told.storage
        .saturating_mul(100)
        .checked_div(told.config.max_storage)
}

fn disks(answers: &Answers) -> Vec<Trouble> {
    let found = told(answers).filter_map(|(server, told)| {
        let used = used(told).filter(|used| *used >= FILLING)?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        Some(Trouble {
            verdict: if used < FULL { Verdict::Warn } else { Verdict::Fail },
            said: format!(
                "{server} has used {used}% of what is set aside on its disk, {:.1} of {:.1} GiB; at all of it new mail is not told",
                gib(told.storage),
                gib(told.config.max_storage)
            ),
            advice: "see which streams are large (/jsz?streams=true); the size is set once: a larger disk is another installation"
                .to_owned(),
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests;
