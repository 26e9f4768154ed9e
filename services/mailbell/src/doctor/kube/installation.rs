//! One installation: what its operator says of it, and what its pods need.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, Secret},
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use mailbell_operator::{
    api::Mailbell,
    desired::{API_SERVER_PORTS, Wanted, desired, nats_certificate},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    MOST,
    access::{Seen, seen},
    certificate::{Good, good},
    pods::trouble,
};
use crate::doctor::Report;

pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
) {
    status(report, mailbell);
    left_accounts(report, mailbell);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    needed_secrets(report, &secrets, mailbell).await;
    certificates(report, &secrets, mailbell).await;
    let labels = format!(
        "app.kubernetes.io/name=mailbell,app.kubernetes.io/instance={}",
        mailbell.name_any()
    );
    let params = ListParams::default().labels(&labels).limit(MOST);
    disks(report, client, namespace, mailbell, &params).await;
    pods(report, client, namespace, mailbell, &params).await;
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
    report.fail(
        &finding,
        format!("pods need what is not there: {}", missing.join(", ")),
        "make them; those that are generated come from the chart mailbell (its `installations`)",
    );
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

/// Those that devices, callers of the admin API and clients of NATS are shown. The key comes along with the certificate, and is not looked at.
async fn certificates(report: &mut Report, api: &Api<Secret>, mailbell: &Mailbell) {
    let spec = &mailbell.spec;
    let mut all = BTreeMap::new();
    let lost = "has expired: once it starts again nobody reaches NATS";
    let renew =
        "make another one, and start the servers anew: docs/operating.md, Secrets of your own";
    all.extend(nats_certificate(mailbell).map(|name| (name, (lost, renew))));
    let both = [&spec.gateways.tls.secret_name, &spec.admin.tls.secret_name];
    let lost = "has expired: no device connects";
    let renew = "renew it; cert-manager does so by itself: kubectl describe certificate says why it has not";
    let both = both.into_iter().flatten();
    all.extend(both.map(|name| (name.clone(), (lost, renew))));
    for (name, (lost, renew)) in &all {
        let finding = format!("certificate {name}");
        let secret = match seen(api.get(name).await) {
            Seen::There(secret) => secret,
            // Said above.
            Seen::Missing => continue,
            Seen::Denied(_) => {
                report.skipped(&finding, "you may not read it");
                continue;
            }
            Seen::Failed(why) => {
                report.fail(&finding, why, "look again");
                continue;
            }
        };
        let data = secret.data.unwrap_or_default();
        let pem = data.get("tls.crt").map(|it| it.0.as_slice());
        match good(pem.unwrap_or_default(), Timestamp::now().as_second()) {
            Some(Good::Days(days)) => report.ok(&finding, format!("good for {days} days")),
            Some(Good::Soon(days)) => {
                report.warn(&finding, format!("good for {days} days"), *renew)
            }
            Some(Good::Expired) => report.fail(&finding, *lost, *renew),
            Some(Good::NotYet) => report.fail(
                &finding,
                "is not good yet",
                "see whether the clocks of this machine and of who made it are right",
            ),
            None => report.fail(
                &finding,
                "its tls.crt has no certificate that can be read",
                "put the certificate in PEM there, the server's own first",
            ),
        }
    }
}

async fn disks(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    params: &ListParams,
) {
    let Some(managed) = &mailbell.spec.nats.managed else {
        return;
    };
    let finding = format!("disks {}", mailbell.name_any());
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let Some(all) = listed(report, &finding, &api, params).await else {
        return;
    };
    let unbound = all.iter().find(|claim| {
        let status = claim.status.as_ref();
        status.and_then(|status| status.phase.as_deref()) != Some("Bound")
    });
    let wanted = usize::try_from(managed.nodes).unwrap_or_default();
    if let Some(claim) = unbound {
        let class = claim.spec.as_ref();
        let class = class.and_then(|spec| spec.storage_class_name.as_deref());
        let class = class.map_or("the default storage class".to_owned(), |class| {
            format!("the storage class {class}")
        });
        report.fail(
            &finding,
            format!("{} has no volume yet", claim.name_any()),
            format!(
                "see whether {class} makes volumes: kubectl --namespace {namespace} describe pvc {}",
                claim.name_any()
            ),
        );
    } else if all.len() < wanted {
        report.fail(
            &finding,
            format!("{} of {wanted} are there", all.len()),
            "they come with the pods of the NATS servers: see what is told of those",
        );
    } else {
        report.ok(&finding, format!("all {} have their volume", all.len()));
    }
}

/// All of a kind; `None`: they cannot be seen, which was reported.
async fn listed<K>(
    report: &mut Report,
    finding: &str,
    api: &Api<K>,
    params: &ListParams,
) -> Option<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    match seen(api.list(params).await) {
        Seen::There(all) => return Some(all.items),
        Seen::Missing => return Some(Vec::new()),
        Seen::Denied(why) => report.skipped(finding, format!("you may not see them: {why}")),
        Seen::Failed(why) => report.fail(finding, why, "look again"),
    }
    None
}

async fn pods(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    params: &ListParams,
) {
    let finding = format!("pods {}", mailbell.name_any());
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let Some(all) = listed(report, &finding, &api, params).await else {
        return;
    };
    let mut well = true;
    for found in all.iter().filter_map(trouble) {
        well = false;
        report.add(&finding, found.verdict, found.said, found.advice);
    }
    if well {
        report.ok(
            &finding,
            format!("nothing is wrong with the {} that there are", all.len()),
        );
    }
}
