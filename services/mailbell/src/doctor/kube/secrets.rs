//! The Secrets that the pods of an installation need.

use std::collections::BTreeSet;

use k8s_openapi::api::{batch::v1::Job, core::v1::Secret};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use mailbell_operator::{
    api::Mailbell,
    desired::{API_SERVER_PORTS, Wanted, desired},
};
use serde_json::Value;

use super::access::{Seen, seen};
use crate::{doctor::Report, secrets::What};

/// It is said once, where the ring is lost, and not for ever.
const REPLACE_KEY_RING: &str = "MAILBELL_REPLACE_KEY_RING";

/// By name only: what is in them is nobody's business here.
pub(super) async fn examine(
    report: &mut Report,
    api: &Api<Secret>,
    namespace: &str,
    mailbell: &Mailbell,
    refill: &str,
) {
    let finding = format!("secrets {}", mailbell.name_any());
    let mut told = mailbell.spec.watchers.pods.env.iter();
    let is_said = |value: Option<&str>| value != Some("false");
    if told.any(|it| it.name == REPLACE_KEY_RING && is_said(it.value.as_deref())) {
        report.warn(
            &finding,
            format!("watchers.pods.env has {REPLACE_KEY_RING}: the next key ring that opens none of the stored passwords is not refused"),
            "take it out once watchers run with the ring that is to be, and put its backup away",
        );
    }
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
    let said = format!("pods need what is not there: {}", missing.join(", "));
    report.fail(
        &finding,
        said,
        advice(mailbell, namespace, &missing, refill),
    );
}

/// What to do about Secrets that are not there.
fn advice(mailbell: &Mailbell, namespace: &str, missing: &[&str], refill: &str) -> String {
    let name = mailbell.name_any();
    let made = |what: What| format!("{name}-{}", what.as_str());
    let mut advice = "make them".to_owned();
    let by_job = [
        What::NatsUsers,
        What::NatsTls,
        What::AdminToken,
        What::OperatorToken,
        What::SigningKey,
    ]
    .map(made);
    let is_filled = |it: &&str| by_job.iter().any(|name| name == it);
    if mailbell.spec.generate_secrets && missing.iter().any(is_filled) {
        advice += &format!(
            "; those called {name}-… come from the chart mailbell (its `installations`): helm upgrade makes them empty. Fill them from a backup; or {refill}"
        );
        let filled: Vec<_> = missing.iter().map(|it| Some((*it).to_owned())).collect();
        advice += &started_anew(namespace, mailbell, &filled);
    }
    let ring = mailbell.spec.watchers.key_ring_secret.clone();
    let ring = ring.unwrap_or_else(|| made(What::KeyRing));
    if missing.contains(&ring.as_str()) {
        let ring = format!(
            "{ring} has the keys of all passwords: put it back from its backup, and only without one have another made, by the chart mailbell or as you made it (docs/operating.md, What to do when)"
        );
        advice = match missing.len() {
            1 => ring,
            _ => format!("{ring}. The others: {advice}"),
        };
    }
    advice
}

/// How the job is run anew that fills Secrets: once it is done it sees none that is made again. Not that of the key ring, which would make
/// another one.
pub(super) async fn refill(
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    params: &ListParams,
) -> String {
    let begin = format!("{}-secrets-", mailbell.name_any());
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let jobs = jobs.list_metadata(params).await;
    let jobs = jobs.map_or_else(|_| Vec::new(), |found| found.items);
    let jobs = jobs.iter().filter(|job| job.name_any().starts_with(&begin));
    // One before it may be there still.
    let job = jobs.max_by_key(|job| job.metadata.creation_timestamp.clone());
    let job = job.map_or_else(|| format!("{begin}…"), |job| job.name_any());
    format!(
        "kubectl --namespace {namespace} delete job {job}, which the operator makes again, and which fills what is empty"
    )
}

/// What has to be started anew once these are filled with something else than before.
pub(super) fn started_anew(
    namespace: &str,
    mailbell: &Mailbell,
    filled: &[Option<String>],
) -> String {
    let name = mailbell.name_any();
    let has = |what: What| filled.contains(&Some(format!("{name}-{}", what.as_str())));
    let end = |parts: &str| {
        format!(
            "kubectl --namespace {namespace} delete pods --selector 'app.kubernetes.io/instance={name},app.kubernetes.io/component{parts}'"
        )
    };
    let servers = end("=nats");
    if has(What::NatsUsers) {
        let others = end(" in (watcher,gateway,admin)");
        format!(
            ". NATS servers, and whoever speaks to them, read passwords when they start: once these are filled anew start all of them anew at once: {servers}, and then {others}"
        )
    } else if has(What::NatsTls) {
        format!(
            ". The certificate of the NATS servers is one of another authority then, by which those that run cannot be reached: once it is filled anew start all of them anew at once: {servers}"
        )
    } else {
        String::new()
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mailbell(generates: bool) -> Mailbell {
        let managed = json!({ "image": "nats:2.12", "storage": { "size": "20Gi" } });
        let plain = json!({ "tls": { "insecurePlaintext": true } });
        let spec = json!({ "gateways": plain, "admin": plain, "nats": { "managed": managed }, "generateSecrets": generates });
        let mailbell = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell", "metadata": { "name": "main" }, "spec": spec });
        serde_json::from_value(mailbell).unwrap()
    }

    #[test]
    fn what_is_made_again_is_filled_again_and_no_key_ring_in_the_place_of_another() {
        let refill = "kubectl --namespace mail delete job main-secrets-1";
        let told =
            |generates, missing: &[&str]| advice(&mailbell(generates), "mail", missing, refill);
        let said = told(true, &["main-admin-token"]);
        assert!(
            said.contains(refill) && !said.contains("delete pods"),
            "{said}"
        );
        // They have what was there before; of passwords the others too.
        for (of_nats, also_others) in [("main-nats-users", true), ("main-nats-tls", false)] {
            let said = told(true, &["main-admin-token", of_nats]);
            assert!(said.contains("component=nats"), "{said}");
            let others = "component in (watcher,gateway,admin)";
            assert_eq!(said.contains(others), also_others, "{said}");
        }
        let said = told(true, &["push-tls"]);
        assert_eq!(said, "make them");
        let said = told(true, &["main-key-ring"]);
        assert!(said.contains("from its backup"), "{said}");
        for said in [said, told(false, &["main-admin-token"])] {
            assert!(!said.contains("delete"), "{said}");
        }
    }
}
