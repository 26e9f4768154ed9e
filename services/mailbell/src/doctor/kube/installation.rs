//! One installation: what its operator says of it, and what its pods need.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ConfigMap, Pod, Secret},
    jiff::{SignedDuration, Timestamp},
};
use kube::{Api, Client, ResourceExt as _, api::ListParams, core::error_boundary::InvalidObject};
use mailbell_operator::{api::Mailbell, desired::nats_certificate};

use super::{
    MOST, Unread,
    access::{Seen, listed, seen},
    certificate::{self, Use, judge},
    claims, nats,
    pods::{trouble, unstarted, waits},
    secrets, services, warnings, workloads,
};
use crate::doctor::Report;

/// An operator looks every five minutes, and writes so where that is five minutes ago: ten at most. The rest is for clocks that differ, and
/// for looks that an API server that was away has cut short.
const OLD_S: i64 = 900;
/// A node that cannot mount something tries again every two minutes, and warns again if that fails.
const TRIED_AGAIN: SignedDuration = SignedDuration::from_mins(3);

/// `looks`: what its NATS servers say.
pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    looks: &[nats::Answers],
) {
    status(report, namespace, mailbell);
    left_accounts(report, mailbell);
    let name = mailbell.name_any();
    let params = objects_of(&name);
    let refill = secrets::refill(client, namespace, mailbell, &params).await;
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    secrets::examine(report, &api, namespace, mailbell, &refill).await;
    let roots = admin_roots(report, client, namespace, mailbell).await;
    let shown = shown(mailbell, namespace, roots);
    // Of the NATS servers alone it is told whether it is filled.
    let refill =
        refill + &secrets::started_anew(namespace, mailbell, &[nats_certificate(mailbell)]);
    let good = certificates(report, &api, mailbell, shown, &refill).await;
    services::examine(report, client, namespace, mailbell).await;
    claims::examine(report, client, namespace, mailbell, &params).await;
    let pods = pods(report, client, namespace, &name, &params).await;
    let pods = pods.as_deref();
    nats::examine(report, namespace, mailbell, pods, good, looks);
}

/// One that cannot be read: its pods run all the same, and what else it should have is not known.
pub(super) async fn unreadable(
    report: &mut Report,
    client: &Client,
    unread: &Unread<'_>,
    bad: &InvalidObject,
) {
    let (name, said, advice) = unread.told(bad, "mailbell");
    let finding = format!("installation {name}");
    report.add(&finding, unread.worst(), said, advice);
    report.skipped(&finding, "of what it has only its pods were looked at");
    let params = objects_of(&name);
    pods(report, client, unread.namespace, &name, &params).await;
}

fn objects_of(name: &str) -> ListParams {
    let labels = format!("app.kubernetes.io/name=mailbell,app.kubernetes.io/instance={name}");
    ListParams::default().labels(&labels).limit(MOST)
}

/// What `kubectl get mailbells` shows, and what to do about it.
fn status(report: &mut Report, namespace: &str, mailbell: &Mailbell) {
    let name = mailbell.name_any();
    let finding = format!("installation {name}");
    let status = mailbell.status.as_ref();
    let mut conditions = status.iter().flat_map(|status| &status.conditions);
    let Some(ready) = conditions.find(|it| it.type_ == "Ready") else {
        let said = "no operator has looked at it";
        let advice = "see whether an operator looks after this namespace: the chart's watchAllNamespaces, or one of its own";
        return report.fail(&finding, said, advice);
    };
    let seen = status.and_then(|status| status.observed_generation);
    if seen < mailbell.metadata.generation {
        report.warn(
            &finding,
            "the operator has not looked at the last change of it yet",
            "wait a little; if it stays so, see the operator's log",
        );
    }
    let said = &ready.message;
    // Of an operator of a release before it is not known.
    let looked_at = status.and_then(|status| status.looked_at.as_ref());
    let age_s = looked_at.map(|it| {
        Timestamp::now()
            .as_second()
            .saturating_sub(it.0.as_second())
    });
    if let Some(age_s) = age_s.filter(|age_s| *age_s > OLD_S) {
        let minutes = age_s / 60;
        return report.fail(
            &finding,
            format!("no operator has got through a look at it for {minutes} minutes; what was said then may hold no longer: {said}"),
            "what runs goes on; see what is said of the operator, and its log",
        );
    }
    match (ready.status.as_str(), ready.reason.as_str()) {
        ("True", "Impaired") => report.warn(
            &finding,
            said,
            format!("it serves; {}", where_to_look(said, namespace, &name)),
        ),
        ("True", _) => report.ok(&finding, said),
        (_, "Paused") => report.warn(&finding, said, "set spec.paused to false to go on"),
        (_, "Starting") => report.fail(
            &finding,
            said,
            "wait a little; if it stays so, what is told of its pods and disks says why",
        ),
        _ => report.fail(
            &finding,
            said,
            format!(
                "see to what is named, the operator tries again by itself; {}",
                where_to_look(said, namespace, &name)
            ),
        ),
    }
}

/// By what its sentence is about, which it begins with.
fn where_to_look(said: &str, namespace: &str, name: &str) -> String {
    let about = said.split_once(": ").map_or(said, |(about, _)| about);
    match about {
        "The mailboxes" => format!(
            "kubectl --namespace {namespace} port-forward service/{name}-admin 7444, then `mailbell shards` with MAILBELL_ADMIN_URL, MAILBELL_ADMIN_TOKEN_FILE and MAILBELL_ADMIN_CA (docs/operating.md, Install) says what waits, and why"
        ),
        "The numbers of pods stay" => {
            "until that is mended more mailboxes and devices get no more pods".to_owned()
        }
        "The policy" => {
            format!("kubectl --namespace {namespace} get mailproviders says of each how it stands")
        }
        "The end of the upgrade" => "see to what is missing before more goes".to_owned(),
        _ => "what is told of its pods, disks, Secrets and services says why".to_owned(),
    }
}

/// Accounts that no MailAccount declares any more.
fn left_accounts(report: &mut Report, mailbell: &Mailbell) {
    let status = mailbell.status.as_ref();
    let Some(left) = status.and_then(|status| status.left_accounts.as_ref()) else {
        return;
    };
    report.warn(
        &format!("left in {}", mailbell.name_any()),
        format!(
            "{} accounts are watched whose MailAccounts are gone: {}",
            left.count,
            left.ids.join(", ")
        ),
        "declare them again; or remove them with the operator's token: docs/operating.md, What to do when",
    );
}

/// Whose certificates are shown to whom.
fn shown(
    mailbell: &Mailbell,
    namespace: &str,
    roots: Option<String>,
) -> BTreeMap<String, Vec<Use>> {
    let (name, spec) = (mailbell.name_any(), &mailbell.spec);
    let mut all = BTreeMap::<String, Vec<Use>>::new();
    let mut add = |secret: String, it| all.entry(secret).or_default().push(it);
    if let Some(secret) = &spec.gateways.tls.secret_name {
        add(secret.clone(), Use::Outside);
    }
    if let Some(secret) = &spec.admin.tls.secret_name {
        add(secret.clone(), Use::Outside);
        add(
            secret.clone(),
            Use::Operator {
                host: format!("{name}-admin.{namespace}.svc"),
                roots,
            },
        );
    }
    if let (Some(managed), Some(secret)) = (&spec.nats.managed, nats_certificate(mailbell)) {
        let servers = 0..managed.nodes;
        let hosts = servers.map(|node| format!("{name}-nats-{node}.{name}-nats.{namespace}.svc"));
        add(secret, Use::Nats(hosts.collect()));
    }
    all
}

/// Whom the operator trusts when it calls the admin API. `None`: the usual ones, or that cannot be known, which was reported.
async fn admin_roots(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
) -> Option<String> {
    let admin = &mailbell.spec.admin;
    let finding = certificate::finding(admin.tls.secret_name.as_ref()?);
    let name = admin.ca_config_map.as_ref()?;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let create =
        format!("kubectl --namespace {namespace} create configmap {name} --from-file=ca.crt=FILE");
    let uncalled = "which admin.caConfigMap names: the operator does not call the admin API";
    match seen(api.get(name).await) {
        Seen::There(found) => {
            let roots = found.data.unwrap_or_default().remove("ca.crt");
            if roots.is_none() {
                report.warn(
                    &finding,
                    format!("there is no ca.crt in the ConfigMap {name}, {uncalled}"),
                    format!("{create} --dry-run=client -o yaml | kubectl apply -f -"),
                );
            }
            return roots;
        }
        Seen::Missing => report.warn(
            &finding,
            format!("there is no ConfigMap {name}, {uncalled}"),
            create,
        ),
        Seen::Denied(why) => report.skipped(
            &finding,
            format!("whether the operator trusts it you may not see: {why}"),
        ),
        Seen::Failed(why) => report.fail(&finding, why, "look again"),
    }
    None
}

/// Of their keys only is looked whether they are those of the certificates. Until when that of the NATS
/// servers is good, in seconds since 1970, where nothing is wrong with it.
async fn certificates(
    report: &mut Report,
    api: &Api<Secret>,
    mailbell: &Mailbell,
    shown: BTreeMap<String, Vec<Use>>,
    refill: &str,
) -> Option<i64> {
    let of_nats = nats_certificate(mailbell);
    let mut good_of_nats = None;
    for (name, uses) in shown {
        let finding = certificate::finding(&name);
        match seen(api.get(&name).await) {
            Seen::There(secret) => {
                let now_s = Timestamp::now().as_second();
                let good = judge(report, &secret, &uses, refill, now_s);
                good_of_nats = good_of_nats.or(good.filter(|_| of_nats.as_ref() == Some(&name)));
            }
            // Said above.
            Seen::Missing => {}
            Seen::Denied(_) => report.skipped(&finding, "you may not read it"),
            Seen::Failed(why) => report.fail(&finding, why, "look again"),
        }
    }
    good_of_nats
}

/// Those that there are, if they can be seen.
async fn pods(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    name: &str,
    params: &ListParams,
) -> Option<Vec<Pod>> {
    let finding = format!("pods {name}");
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let all = listed(report, &finding, &api, params).await?;
    let refused = workloads::troubles(report, &finding, client, namespace, params).await;
    let now = Timestamp::now();
    let mut found = Vec::new();
    for pod in &all {
        if let Some(trouble) = trouble(pod, now) {
            found.push(trouble);
        } else if let Some(since) = waits(pod, now) {
            // What kept it from getting a node has been overcome, and so has what its node no longer warns of.
            let placed = since.checked_add(SignedDuration::from_secs(1)).ok();
            let since = placed.max(now.checked_sub(TRIED_AGAIN).ok());
            let why = warnings::about(client, namespace, &pod.metadata, since).await;
            found.extend(unstarted(pod, why));
        }
    }
    let seen_all = refused.is_some();
    found.extend(refused.into_iter().flatten());
    if found.is_empty() && seen_all {
        report.ok(
            &finding,
            format!("nothing is wrong with the {} that there are", all.len()),
        );
    }
    for it in found {
        report.add(&finding, it.verdict, it.said, it.advice);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_installation_lacks_is_looked_for_where_it_is() {
        let told = |said| where_to_look(said, "mail", "main");
        for (said, words) in [
            (
                "The mailboxes: nobody watches 3 of 7.",
                "port-forward service/main-admin 7444, then `mailbell shards`",
            ),
            ("The policy: no.", "get mailproviders"),
            ("The watchers: 1 of 2.", "what is told of its pods"),
            ("The numbers of pods stay: no.", "get no more pods"),
            ("Something else.", "what is told of its pods"),
        ] {
            let advice = told(said);
            assert!(advice.contains(words), "{advice}");
        }
    }
}
