//! One installation: what its operator says of it, and what its pods need.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        batch::v1::Job,
        core::v1::{ConfigMap, Pod, Secret},
    },
    jiff::{SignedDuration, Timestamp},
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
    certificate::{self, Use, judge},
    claims, nats,
    pods::{trouble, unstarted, waits},
    services, warnings, workloads,
};
use crate::{doctor::Report, secrets::What};

/// An operator writes every five minutes that it looks. The rest is for clocks that differ, and for an API server that was away.
const OLD_S: i64 = 600;

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
    let labels = format!(
        "app.kubernetes.io/name=mailbell,app.kubernetes.io/instance={}",
        mailbell.name_any()
    );
    let params = ListParams::default().labels(&labels).limit(MOST);
    let refill = refill(client, namespace, mailbell, &params).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    needed_secrets(report, &secrets, namespace, mailbell, &refill).await;
    let roots = admin_roots(report, client, namespace, mailbell).await;
    let shown = shown(mailbell, namespace, roots);
    let renewed_s = certificates(report, &secrets, mailbell, shown, &refill).await;
    services::examine(report, client, namespace, mailbell).await;
    claims::examine(report, client, namespace, mailbell, &params).await;
    let pods = pods(report, client, namespace, mailbell, &params).await;
    let pods = pods.as_deref();
    nats::examine(report, namespace, mailbell, pods, renewed_s, looks);
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
            format!("no operator has looked at it for {minutes} minutes; what was said then may hold no longer: {said}"),
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
            "kubectl --namespace {namespace} port-forward service/{name}-admin 7444, then `mailbell shards` with MAILBELL_ADMIN_URL, MAILBELL_ADMIN_TOKEN_FILE and MAILBELL_ADMIN_CA (docs/operating.md, What to do when) says what waits, and why"
        ),
        "The numbers of pods stay" => {
            "until that is mended more mailboxes and devices get no more pods".to_owned()
        }
        "The policy" => {
            format!("kubectl --namespace {namespace} get mailproviders says of each how it stands")
        }
        "The network" | "The end of the upgrade" => {
            "see to what is missing before more goes".to_owned()
        }
        _ => "what is told of its pods, disks, Secrets and services says why".to_owned(),
    }
}

/// How the job is run anew that fills Secrets: once it is done it sees none that is made again. Not that of the key ring, which would make
/// another one.
async fn refill(
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
async fn needed_secrets(
    report: &mut Report,
    api: &Api<Secret>,
    namespace: &str,
    mailbell: &Mailbell,
    refill: &str,
) {
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
    if mailbell.spec.generate_secrets {
        advice += &format!(
            "; those called {name}-… come from the chart mailbell (its `installations`): helm upgrade makes them empty. Fill them from a backup; or {refill}"
        );
        let of_nats = [made(What::NatsUsers), made(What::NatsTls)];
        if of_nats.iter().any(|it| missing.contains(&it.as_str())) {
            advice += &format!(
                ". NATS servers read theirs when they start: if these are filled anew start all of them anew at once: kubectl --namespace {namespace} delete pods --selector app.kubernetes.io/instance={name},app.kubernetes.io/component=nats"
            );
        }
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

/// Of their keys only is looked whether they are those of the certificates. From when on that of the NATS servers is good, in seconds since
/// 1970, where nothing is wrong with it.
async fn certificates(
    report: &mut Report,
    api: &Api<Secret>,
    mailbell: &Mailbell,
    shown: BTreeMap<String, Vec<Use>>,
    refill: &str,
) -> Option<i64> {
    let of_nats = nats_certificate(mailbell);
    let mut renewed_s = None;
    for (name, uses) in shown {
        let finding = certificate::finding(&name);
        match seen(api.get(&name).await) {
            Seen::There(secret) => {
                let now_s = Timestamp::now().as_second();
                let from_s = judge(report, &secret, &uses, refill, now_s);
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
    let now = Timestamp::now();
    let mut found = Vec::new();
    for pod in &all {
        if let Some(trouble) = trouble(pod, now) {
            found.push(trouble);
        } else if let Some(since) = waits(pod, now) {
            // What kept it from getting a node has been overcome.
            let placed = since.checked_add(SignedDuration::from_secs(1)).ok();
            let why = warnings::about(client, namespace, &pod.metadata, placed).await;
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
        // They have what was there before.
        for of_nats in ["main-nats-users", "main-nats-tls"] {
            let said = told(true, &["main-admin-token", of_nats]);
            assert!(said.contains("component=nats"), "{said}");
        }
        let said = told(true, &["main-key-ring"]);
        assert!(said.contains("from its backup"), "{said}");
        for said in [said, told(false, &["main-admin-token"])] {
            assert!(!said.contains("delete"), "{said}");
        }
    }

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
