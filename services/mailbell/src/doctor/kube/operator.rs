//! Whether an operator is there, and works.

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
};
use crate::doctor::Report;

const NAME: &str = "operator";
/// It is renewed every three seconds, and another takes it after fifteen. The rest is for clocks that differ.
const STALE_S: i64 = 60;

/// In this namespace, or, where none is here, in any.
pub(super) async fn examine(report: &mut Report, client: &Client, namespace: &str) {
    let params = ListParams::default()
        .labels(&format!("app.kubernetes.io/name={MANAGER}"))
        .limit(MOST);
    let here: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let mut found = seen(here.list(&params).await);
    if matches!(&found, Seen::There(all) if all.items.is_empty()) {
        let anywhere: Api<Deployment> = Api::all(client.clone());
        found = match seen(anywhere.list(&params).await) {
            Seen::Denied(why) => {
                let said = format!(
                    "there is none in this namespace, and you may not look into others: {why}"
                );
                report.skipped(NAME, said);
                return;
            }
            found => found,
        };
    }
    let all = match found {
        Seen::There(ObjectList { items, .. }) => items,
        Seen::Missing => Vec::new(),
        Seen::Denied(why) => {
            report.skipped(NAME, format!("you may not see whether there is one: {why}"));
            return;
        }
        Seen::Failed(why) => {
            report.fail(NAME, why, "look again");
            return;
        }
    };
    if all.is_empty() {
        report.fail(
            NAME,
            "there is none: what runs goes on, and nothing is made, repaired or upgraded",
            "install the chart mailbell",
        );
    }
    for operator in all {
        one(report, client, &operator).await;
    }
}

async fn one(report: &mut Report, client: &Client, operator: &Deployment) {
    let namespace = operator.namespace().unwrap_or_default();
    let name = operator.name_any();
    let status = operator.status.as_ref();
    let available = status.and_then(|status| status.available_replicas);
    if available.unwrap_or_default() < 1 {
        report.fail(
            NAME,
            format!("no pod of the Deployment {name} in {namespace} is available"),
            format!("kubectl --namespace {namespace} describe pods --selector app.kubernetes.io/name={MANAGER}"),
        );
        return;
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    // The lease has the name of the operator, by which it makes objects too.
    match seen(leases.get(MANAGER).await) {
        Seen::There(lease) => match leads(&lease, Timestamp::now()) {
            Ok(holder) => report.ok(NAME, format!("{holder} in {namespace} works")),
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
    use serde_json::json;

    use super::*;

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
