//! Whether an operator is there, and works.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{apps::v1::Deployment, coordination::v1::Lease},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, ObjectList},
};
use mailbell_operator::desired::MANAGER;

use super::{
    MOST,
    access::{Seen, seen},
    workloads::refused,
};
use crate::doctor::Report;

const NAME: &str = "operator";
const OWN_RELEASE: &str = env!("CARGO_PKG_VERSION");
/// It is renewed every three seconds, and another takes it after fifteen. The rest is for clocks that differ.
const STALE_S: i64 = 60;

/// Those that look after this namespace, wherever they are, as far as that can be seen. `installed`: namespaces that have installations,
/// where this one has none.
pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    installed: &[String],
) -> Vec<Deployment> {
    let params = ListParams::default()
        .labels(&format!("app.kubernetes.io/name={MANAGER}"))
        .limit(MOST);
    let anywhere: Api<Deployment> = Api::all(client.clone());
    let mut found = seen(anywhere.list(&params).await);
    let elsewhere = match &found {
        Seen::Denied(why) => Some(why.clone()),
        _ => None,
    };
    if elsewhere.is_some() {
        let here: Api<Deployment> = Api::namespaced(client.clone(), namespace);
        found = seen(here.list(&params).await);
    }
    let all = match found {
        Seen::There(ObjectList { items, .. }) => items,
        Seen::Missing => Vec::new(),
        Seen::Denied(why) => {
            report.skipped(NAME, format!("you may not see whether there is one: {why}"));
            return Vec::new();
        }
        Seen::Failed(why) => {
            report.fail(NAME, why, "look again");
            return Vec::new();
        }
    };
    let (ours, others): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|operator| looks_after(operator, namespace));
    if ours.is_empty() {
        match &elsewhere {
            Some(why) => report.skipped(
                NAME,
                format!("there is none in this namespace, and you may not look into others: {why}"),
            ),
            None => none(report, namespace, &others, installed),
        }
    }
    if let (Some(why), false) = (elsewhere, ours.is_empty()) {
        report.skipped(
            NAME,
            format!("whether another one elsewhere looks after this namespace too, you may not see: {why}"),
        );
    }
    if let Some(said) = rivals(&ours) {
        report.fail(
            NAME,
            said,
            "keep one: uninstall the chart of the other, or let it look after its own namespace alone (watchAllNamespaces: false)",
        );
    }
    for operator in &ours {
        one(report, client, operator).await;
    }
    ours
}

fn none(report: &mut Report, namespace: &str, others: &[Deployment], installed: &[String]) {
    let without = "what runs goes on, and nothing is made, repaired or upgraded";
    match others.first() {
        _ if !installed.is_empty() => report.fail(
            NAME,
            format!("none looks after {namespace}"),
            "look where the installations are, with --namespace; one is of use here once there is a Mailbell",
        ),
        None => report.fail(
            NAME,
            format!("there is none: {without}"),
            "install the chart mailbell; where helm list --all-namespaces has it, helm upgrade makes again what somebody has deleted",
        ),
        Some(other) => report.fail(
            NAME,
            format!(
                "none looks after {namespace}: {without}; {} in {} looks after another namespace only",
                other.name_any(),
                other.namespace().unwrap_or_default()
            ),
            "install the chart mailbell in this namespace, or give the other one watchAllNamespaces: true",
        ),
    }
}

/// By what its pods are told; one that is told of no namespace looks after all.
fn looks_after(operator: &Deployment, namespace: &str) -> bool {
    setting(operator, "MAILBELL_NAMESPACE").is_none_or(|only| only == namespace)
}

fn setting<'a>(operator: &'a Deployment, name: &str) -> Option<&'a str> {
    let pod = operator.spec.as_ref()?.template.spec.as_ref()?;
    let mut settings = pod.containers.iter().flat_map(|it| it.env.iter().flatten());
    settings.find(|it| it.name == name)?.value.as_deref()
}

/// Two that do not share a lease work at the same time.
fn rivals(operators: &[Deployment]) -> Option<String> {
    let lease = |operator: &Deployment| {
        let named = setting(operator, "MAILBELL_LEASE_NAMESPACE").map(str::to_owned);
        named.or_else(|| operator.namespace()).unwrap_or_default()
    };
    let leases: BTreeSet<String> = operators.iter().map(lease).collect();
    if leases.len() < 2 {
        return None;
    }
    let named = operators.iter().map(|operator| {
        let namespace = operator.namespace().unwrap_or_default();
        format!("{} in {namespace}", operator.name_any())
    });
    let named: Vec<String> = named.collect();
    Some(format!(
        "{} look after this namespace at the same time: each undoes what the other does",
        named.join(" and ")
    ))
}

async fn one(report: &mut Report, client: &Client, operator: &Deployment) {
    let namespace = operator.namespace().unwrap_or_default();
    let name = operator.name_any();
    let status = operator.status.as_ref();
    let available = status.and_then(|status| status.available_replicas);
    if available.unwrap_or_default() < 1 {
        let (said, advice) = down(operator);
        return report.fail(NAME, said, advice);
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    // The lease has the name of the operator, by which it makes objects too.
    match seen(leases.get(MANAGER).await) {
        Seen::There(lease) => match leads(&lease, Timestamp::now()) {
            Ok(holder) => report.ok(
                NAME,
                format!("{holder} in {namespace} works{}", release(operator)),
            ),
            Err(why) => report.fail(
                NAME,
                why,
                format!("kubectl --namespace {namespace} logs deployment/{name}"),
            ),
        },
        Seen::Missing => report.fail(
            NAME,
            format!("no replica of {name} in {namespace} has ever worked: there is no lease"),
            format!("kubectl --namespace {namespace} logs deployment/{name}"),
        ),
        Seen::Denied(why) => report.skipped(
            NAME,
            format!(
                "{name} in {namespace} runs; you may not see whether a replica of it works: {why}"
            ),
        ),
        Seen::Failed(why) => report.fail(NAME, why, "look again"),
    }
}

/// Of one that has no pod that works.
fn down(operator: &Deployment) -> (String, String) {
    let name = operator.name_any();
    let namespace = operator.namespace().unwrap_or_default();
    let kubectl = format!("kubectl --namespace {namespace}");
    let spec = operator.spec.as_ref();
    let status = operator.status.as_ref();
    if spec.and_then(|spec| spec.replicas) == Some(0) {
        return (
            format!("somebody has scaled the Deployment {name} in {namespace} to 0"),
            format!(
                "{kubectl} scale deployment {name} --replicas=N, as the chart's `replicas` says (2 where your values say nothing)"
            ),
        );
    }
    if status
        .and_then(|status| status.replicas)
        .unwrap_or_default()
        < 1
    {
        let why = refused(operator).map(|why| format!(": {why}"));
        return (
            format!(
                "the Deployment {name} in {namespace} has no pod{}",
                why.unwrap_or_default()
            ),
            format!("{kubectl} describe deployment {name}"),
        );
    }
    let labels = spec.and_then(|spec| spec.selector.match_labels.as_ref());
    let labels = labels.into_iter().flatten();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    (
        format!("no pod of the Deployment {name} in {namespace} is available"),
        format!(
            "{kubectl} logs deployment/{name}; where there is none, {kubectl} describe pods --selector {}",
            labels.join(",")
        ),
    )
}

fn release(operator: &Deployment) -> String {
    other_release(operator)
        .map(|other| format!(", {other}"))
        .unwrap_or_default()
}

/// If it is another than that of this command, whose words may not fit then: both.
pub(super) fn other_release(operator: &Deployment) -> Option<String> {
    let release = operator.labels().get("app.kubernetes.io/version")?;
    (release != OWN_RELEASE)
        .then(|| format!("of release {release}; this command is of {OWN_RELEASE}"))
}

/// Who has the lease, or why nobody has.
fn leads(lease: &Lease, now: Timestamp) -> Result<String, String> {
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.clone());
    let holder = holder.filter(|holder| !holder.is_empty());
    let Some(holder) = holder else {
        return Err("no replica of it works: nobody has the lease".to_owned());
    };
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    let age = renewed.map_or(i64::MAX, |renewed| {
        now.as_second().saturating_sub(renewed.0.as_second())
    });
    if age > STALE_S {
        return Err(format!(
            "no replica of it works: {holder} has not renewed the lease for {age} seconds, and nobody has taken it"
        ));
    }
    Ok(holder)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn operator(namespace: &str, settings: Value) -> Deployment {
        let pod = json!({ "containers": [{ "name": "operator", "env": settings }] });
        serde_json::from_value(json!({
            "metadata": { "name": "mailbell-operator", "namespace": namespace, "labels": { "app.kubernetes.io/version": "9.9.9" } },
            "spec": { "selector": {}, "template": { "spec": pod } },
        }))
        .unwrap()
    }

    #[test]
    fn who_looks_after_a_namespace_is_told_from_who_does_not() {
        let only = |of: &str| json!([{ "name": "MAILBELL_NAMESPACE", "value": of }]);
        let here = operator("mail", only("mail"));
        let every = operator("operators", json!([]));
        let other = operator("other", only("other"));
        assert!(looks_after(&here, "mail") && looks_after(&every, "mail"));
        assert!(!looks_after(&other, "mail"));
        let said = rivals(&[here.clone(), every.clone()]).unwrap();
        assert!(
            said.contains("mailbell-operator in mail and mailbell-operator in operators"),
            "{said}"
        );
        assert_eq!(rivals(&[here.clone(), here.clone()]), None);
        let shares = operator(
            "operators",
            json!([{ "name": "MAILBELL_LEASE_NAMESPACE", "value": "mail" }]),
        );
        assert_eq!(rivals(&[here, shares]), None);
        let told = |others: &[Deployment]| {
            let mut report = Report::default();
            none(&mut report, "mail", others, &[]);
            report.findings.remove(0).said
        };
        assert!(told(&[]).starts_with("there is none: what runs goes on"));
        let said = told(&[other]);
        assert!(
            said.contains("mailbell-operator in other looks after another"),
            "{said}"
        );
        // Whoever has named the wrong namespace needs none.
        let mut report = Report::default();
        none(&mut report, "default", &[], &["mail".to_owned()]);
        let advice = report.findings.remove(0).advice;
        assert!(advice.contains("--namespace"), "{advice}");
        assert!(release(&every).contains("of release 9.9.9"));
    }

    #[test]
    fn an_operator_without_a_pod_that_works_says_what_keeps_it_from_that() {
        let of = |replicas: i32, status: Value| {
            let selector = json!({ "matchLabels": { "a": "b", "c": "d" } });
            let operator = json!({ "metadata": { "name": "x", "namespace": "mail" }, "status": status,
                "spec": { "replicas": replicas, "selector": selector, "template": {} } });
            down(&serde_json::from_value(operator).unwrap())
        };
        let refused =
            json!([{ "type": "ReplicaFailure", "status": "True", "message": "exceeded quota" }]);
        for (found, words, next) in [
            (
                of(0, json!({})),
                "scaled the Deployment x in mail to 0",
                "--replicas=N",
            ),
            (
                of(1, json!({ "conditions": refused })),
                "has no pod: exceeded quota",
                "describe deployment x",
            ),
            (
                of(1, json!({ "replicas": 1 })),
                "no pod of the Deployment x in mail is available",
                "logs deployment/x; where there is none, kubectl --namespace mail describe pods --selector a=b,c=d",
            ),
        ] {
            let (said, advice) = found;
            assert!(said.contains(words), "{said}");
            assert!(advice.contains(next), "{advice}");
        }
    }

    #[test]
    fn a_lease_that_nobody_holds_or_renews_is_found() {
        let lease = |holder: &str, renewed: &str| {
            let spec = json!({ "holderIdentity": holder, "renewTime": renewed });
            let lease = json!({ "metadata": {}, "spec": spec });
            serde_json::from_value::<Lease>(lease).unwrap()
        };
        let now: Timestamp = "2026-01-01T00:02:00Z".parse().unwrap();
        let fresh = "2026-01-01T00:01:00.000000Z";
        assert_eq!(leads(&lease("one", fresh), now).unwrap(), "one");
        let given_away = leads(&lease("", fresh), now).unwrap_err();
        assert!(given_away.contains("nobody has the lease"), "{given_away}");
        let stale = leads(&lease("one", "2026-01-01T00:00:59.000000Z"), now).unwrap_err();
        assert!(stale.contains("for 61 seconds"), "{stale}");
    }
}
