//! One installation: what its operator says of it, and what its pods need.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use mailbell_operator::{
    api::Mailbell,
    desired::{API_SERVER_PORTS, Wanted, desired, nats_certificate},
};
use serde_json::Value;

use super::{
    MOST,
    access::{Seen, listed, seen},
    certificate::{Use, judge},
    claims, nats,
    pods::trouble,
    workloads,
};
use crate::{doctor::Report, secrets::What};

/// `looks`: what its NATS servers say.
pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    looks: &[nats::Answers],
) {
    status(report, mailbell);
    left_accounts(report, mailbell);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    needed_secrets(report, &secrets, mailbell).await;
    let renewed_s = certificates(report, &secrets, mailbell, namespace).await;
    let labels = format!(
        "app.kubernetes.io/name=mailbell,app.kubernetes.io/instance={}",
        mailbell.name_any()
    );
    let params = ListParams::default().labels(&labels).limit(MOST);
    claims::examine(report, client, namespace, mailbell, &params).await;
    let pods = pods(report, client, namespace, mailbell, &params).await;
    let pods = pods.as_deref();
    nats::examine(report, namespace, mailbell, pods, renewed_s, looks);
}

/// What `kubectl get mailbells` shows, and what to do about it.
fn status(report: &mut Report, mailbell: &Mailbell) {
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
    match (ready.status.as_str(), ready.reason.as_str()) {
        ("True", "Impaired") => report.warn(
            &finding,
            said,
            "it serves; see to what is missing before more goes",
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
            "see to what is named; the operator tries again by itself",
        ),
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

/// By name only: what is in them is nobody's business here.
async fn needed_secrets(report: &mut Report, api: &Api<Secret>, mailbell: &Mailbell) {
    let finding = format!("secrets {}", mailbell.name_any());
    let needed = secrets_of(mailbell);
    let mut missing = Vec::new();
    for name in &needed {
        match seen(api.get_metadata(name).await) {
            Seen::There(_) => {}
            Seen::Missing => missing.push(name.as_str()),
            Seen::Denied(_) => {
                let all: Vec<&str> = needed.iter().map(String::as_str).collect();
                let said = format!(
                    "you may not read them; these have to be there: {}",
                    all.join(", ")
                );
                return report.skipped(&finding, said);
            }
            Seen::Failed(why) => return report.fail(&finding, why, "look again"),
        }
    }
    if missing.is_empty() {
        return report.ok(&finding, format!("all {} are there", needed.len()));
    }
    let name = mailbell.name_any();
    let mut advice = format!(
        "make them; those called {name}-… come from the chart mailbell (its `installations`), by helm upgrade"
    );
    let made = || format!("{name}-{}", What::KeyRing.as_str());
    let ring = mailbell.spec.watchers.key_ring_secret.clone();
    let ring = ring.unwrap_or_else(made);
    if missing.contains(&ring.as_str()) {
        let ring = format!(
            "{ring} has the keys of all passwords: put it back from its backup, and only without one have another made, by the chart mailbell or as you made it (docs/operating.md, What to do when)"
        );
        advice = match missing.len() {
            1 => ring,
            _ => format!("{ring}. The others: {advice}"),
        };
    }
    let said = format!("pods need what is not there: {}", missing.join(", "));
    report.fail(&finding, said, advice);
}

/// Whatever a pod mounts, has in its environment, or has its image pulled by.
fn secrets_of(mailbell: &Mailbell) -> BTreeSet<String> {
    let wanted = Wanted {
        mailbell,
        // Neither how many there are, nor of which image, nor what they are told changes what they need.
        image: "",
        watchers: mailbell.spec.watchers.scale.min,
        gateways: mailbell.spec.gateways.scale.min,
        policy: None,
        api_server_ports: &API_SERVER_PORTS,
    };
    let mut found = BTreeSet::new();
    for object in desired(&wanted).iter().flat_map(|stage| &stage.objects) {
        if let Some(pod) = object.pointer("/spec/template/spec") {
            names(pod, &mut found);
        }
    }
    found.extend(mailbell.spec.image_pull_secrets.iter().cloned());
    found
}

fn names(value: &Value, found: &mut BTreeSet<String>) {
    // As a volume, as a part of one, and as a variable.
    for (reference, name) in [
        ("/secret", "secretName"),
        ("/secret", "name"),
        ("/secretKeyRef", "name"),
    ] {
        let Some(reference) = value.pointer(reference) else {
            continue;
        };
        let is_needed = reference.get("optional") != Some(&Value::Bool(true));
        let name = reference.get(name).and_then(Value::as_str);
        found.extend(name.filter(|_| is_needed).map(str::to_owned));
    }
    match value {
        Value::Object(parts) => parts.values().for_each(|part| names(part, found)),
        Value::Array(parts) => parts.iter().for_each(|part| names(part, found)),
        _ => {}
    }
}

/// Whose certificates are shown to whom.
fn shown(mailbell: &Mailbell, namespace: &str) -> BTreeMap<String, Vec<Use>> {
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
            Use::Operator(format!("{name}-admin.{namespace}.svc")),
        );
    }
    if let (Some(managed), Some(secret)) = (&spec.nats.managed, nats_certificate(mailbell)) {
        let servers = 0..managed.nodes;
        let hosts = servers.map(|node| format!("{name}-nats-{node}.{name}-nats.{namespace}.svc"));
        add(secret, Use::Nats(hosts.collect()));
    }
    all
}

/// Of their keys only is looked whether they are those of the certificates. From when on that of the NATS servers is good, in seconds since
/// 1970, where nothing is wrong with it.
async fn certificates(
    report: &mut Report,
    api: &Api<Secret>,
    mailbell: &Mailbell,
    namespace: &str,
) -> Option<i64> {
    let of_nats = nats_certificate(mailbell);
    let mut renewed_s = None;
    for (name, uses) in shown(mailbell, namespace) {
        let finding = format!("certificate {name}");
        match seen(api.get(&name).await) {
            Seen::There(secret) => {
                let data = secret.data.unwrap_or_default();
                let from_s = judge(report, &finding, &data, &uses, Timestamp::now().as_second());
                renewed_s = renewed_s.or(from_s.filter(|_| of_nats.as_ref() == Some(&name)));
            }
            // Said above.
            Seen::Missing => {}
            Seen::Denied(_) => report.skipped(&finding, "you may not read it"),
            Seen::Failed(why) => report.fail(&finding, why, "look again"),
        }
    }
    renewed_s
}

/// Those that there are, if they can be seen.
async fn pods(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    params: &ListParams,
) -> Option<Vec<Pod>> {
    let finding = format!("pods {}", mailbell.name_any());
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let all = listed(report, &finding, &api, params).await?;
    let refused = workloads::troubles(report, &finding, client, namespace, params).await;
    let mut found: Vec<_> = all.iter().filter_map(trouble).collect();
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
