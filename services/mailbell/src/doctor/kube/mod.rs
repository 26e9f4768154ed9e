//! An installation on Kubernetes, from outside: with the rights of whoever asks, of whom some may not see everything.

mod access;
mod accounts;
mod certificate;
mod claims;
mod definitions;
mod installation;
mod nats;
mod operator;
mod pods;
mod providers;
mod rights;
mod secrets;
mod services;
mod warnings;
mod workloads;

use std::{collections::BTreeSet, time::Duration};

use kube::{
    Api, Client, Config, ResourceExt as _,
    api::ListParams,
    core::{DeserializeGuard, error_boundary::InvalidObject},
};
use mailbell_operator::api::Mailbell;
use tokio::time::timeout;

use super::{Report, Verdict};
use access::{Seen, seen};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// So many names of a kind are told.
const NAMED: usize = 5;
/// So many objects of a kind are looked at.
const MOST: u32 = 500;
/// What is told of a sentence.
const MAX_SENTENCE: usize = 300;

/// The installations of this namespace, or of the one that kubectl is in.
pub(super) async fn examine(report: &mut Report, namespace: Option<&str>) {
    let Some((client, namespace)) = connect(report, namespace).await else {
        return;
    };
    let looked = look(report, &client, &namespace);
    if timeout(LIMIT, looked).await.is_err() {
        report.fail(
            "cluster",
            "the API server took too long to answer all questions",
            "look again; if it stays so, the API server is overloaded or far away",
        );
    }
}

async fn connect(report: &mut Report, namespace: Option<&str>) -> Option<(Client, String)> {
    let advice = "see whether `kubectl get mailbells` works; KUBECONFIG and the current context say which cluster is meant";
    let mut config = match Config::infer().await {
        Ok(config) => config,
        Err(error) => {
            report.fail("cluster", format!("no way to a cluster: {error}"), advice);
            return None;
        }
    };
    let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
    config.connect_timeout = Some(ANSWER);
    config.read_timeout = Some(ANSWER);
    let client = match Client::try_from(config) {
        Ok(client) => client,
        Err(error) => {
            report.fail("cluster", format!("no way to a cluster: {error}"), advice);
            return None;
        }
    };
    // Answered to everybody who is somebody.
    match timeout(ANSWER, client.apiserver_version()).await {
        Ok(Ok(version)) => report.ok(
            "cluster",
            format!("Kubernetes {}, namespace {namespace}", version.git_version),
        ),
        Ok(Err(error)) => {
            let said = format!(
                "no good answer from the API server: {}",
                access::said(&error)
            );
            report.fail("cluster", said, advice);
            return None;
        }
        Err(_elapsed) => {
            report.fail("cluster", "the API server does not answer", advice);
            return None;
        }
    }
    Some((client, namespace))
}

async fn look(report: &mut Report, client: &Client, namespace: &str) {
    if !definitions::examine(report, client).await {
        return;
    }
    let api: Api<DeserializeGuard<Mailbell>> = Api::namespaced(client.clone(), namespace);
    let found = seen(api.list(&ListParams::default().limit(MOST)).await);
    let mut installed = Vec::new();
    if matches!(&found, Seen::There(found) if found.items.is_empty()) {
        installed = elsewhere(client).await;
        none(report, namespace, &installed);
    }
    let operators = operator::examine(report, client, namespace, &installed).await;
    match found {
        Seen::There(found) => {
            let names: Vec<String> = found.items.iter().map(|it| it.name_any()).collect();
            let told = Unread {
                namespace,
                release: operators.iter().find_map(operator::other_release),
            };
            let (mut read, mut unread) = (Vec::new(), Vec::new());
            for DeserializeGuard(object) in found.items {
                match object {
                    Ok(mailbell) => read.push(mailbell),
                    Err(bad) => unread.push(bad),
                }
            }
            let looks = nats::look(client, namespace, &read).await;
            for (mailbell, looks) in read.iter().zip(&looks) {
                installation::examine(report, client, namespace, mailbell, looks).await;
            }
            for bad in &unread {
                installation::unreadable(report, client, &told, bad).await;
            }
            let more = found.metadata.continue_.unwrap_or_default();
            let passwords = accounts::examine(report, client, &told, &names, more.is_empty()).await;
            let needs = rights::Needs {
                namespace,
                mailbells: &names,
                passwords: passwords.as_ref(),
            };
            providers::examine(report, client, &told).await;
            rights::examine(report, client, &operators, &needs).await;
        }
        Seen::Missing => report.fail(
            "installation",
            "the cluster does not know the kind Mailbell",
            definitions::INSTALL,
        ),
        Seen::Denied(why) => report.fail(
            "installation",
            format!("you may not see which there are: {why}"),
            "ask for the right to get and list mailbells",
        ),
        Seen::Failed(why) => report.fail("installation", why, "look again"),
    }
}

/// Of objects that cannot be read: what is said of them.
struct Unread<'a> {
    namespace: &'a str,
    /// That of an operator and that of this command, if they are not the same: that operator may read them.
    release: Option<String>,
}

impl Unread<'_> {
    /// Its name, why, and what to do.
    fn told(&self, bad: &InvalidObject, kind: &str) -> (String, String, String) {
        let name = bad.metadata.name.clone().unwrap_or_default();
        let said = format!("it cannot be read: {}", clip(&bad.error));
        let advice = match &self.release {
            Some(release) => {
                format!(
                    "it may be good: the operator is {release}. Look with the command of its release"
                )
            }
            None => format!(
                "the operator leaves it alone: what there is of it stays, and what is changed of it has no effect. Change what it says there, kubectl --namespace {} edit {kind} {name} (--subresource=status, if it is in its status); or take the release that has written it, of operator and command",
                self.namespace
            ),
        };
        (name, said, advice)
    }

    /// Where none of them can be.
    fn worst(&self) -> Verdict {
        match &self.release {
            Some(_) => Verdict::Warn,
            None => Verdict::Fail,
        }
    }
}

fn clip(text: &str) -> String {
    text.chars().take(MAX_SENTENCE).collect()
}

/// A few are named, and the others counted.
fn some(names: &[String]) -> String {
    let named: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// The namespaces that have installations, as far as they can be seen.
async fn elsewhere(client: &Client) -> Vec<String> {
    let anywhere: Api<Mailbell> = Api::all(client.clone());
    let params = ListParams::default().limit(MOST);
    match seen(anywhere.list_metadata(&params).await) {
        Seen::There(found) => {
            let all = found.items.iter().filter_map(|it| it.namespace());
            all.collect::<BTreeSet<_>>().into_iter().collect()
        }
        Seen::Missing | Seen::Denied(_) | Seen::Failed(_) => Vec::new(),
    }
}

/// Most often somebody has forgotten which namespace it is.
fn none(report: &mut Report, namespace: &str, installed: &[String]) {
    let said = format!("there is none in the namespace {namespace}");
    let apply = "apply a Mailbell object (`kubectl explain mailbell.spec`)";
    match installed.first() {
        None => report.warn(
            "installation",
            said,
            format!("{apply}, or name its namespace with --namespace"),
        ),
        Some(first) => report.warn(
            "installation",
            format!("{said}; there are some in {}", some(installed)),
            format!("look there: --namespace {first}; or {apply}"),
        ),
    }
}
