//! Pods that are wanted, and that the API server takes from nobody.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    batch::v1::Job,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use super::{access::listed, pods::Trouble, warnings::Warnings};
use crate::doctor::{Report, Verdict};

/// Who makes pods, and how many there are.
#[derive(Debug, PartialEq, Eq)]
struct Maker {
    kind: &'static str,
    name: String,
    wanted: i32,
    made: i32,
    /// What it says itself.
    says: Option<String>,
}

/// Of an installation. `None`: they cannot be seen, which was reported.
pub(super) async fn troubles(
    report: &mut Report,
    finding: &str,
    client: &Client,
    namespace: &str,
    params: &ListParams,
) -> Option<Vec<Trouble>> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    let jobs: Api<Job> = Api::namespaced(client.clone(), namespace);
    let deployments = listed(report, finding, &deployments, params).await?;
    let sets = listed(report, finding, &sets, params).await?;
    let jobs = listed(report, finding, &jobs, params).await?;
    let mut makers: Vec<Maker> = deployments.iter().map(of_deployment).collect();
    makers.extend(sets.iter().map(of_set));
    makers.extend(jobs.iter().map(of_job));
    makers.retain(|it| it.made < it.wanted);
    if makers.is_empty() {
        return Some(Vec::new());
    }
    let warnings = Warnings::read(client, namespace).await;
    let troubles = makers.iter();
    let troubles = troubles.filter_map(|it| trouble(it, &warnings, namespace));
    Some(troubles.collect())
}

fn of_deployment(it: &Deployment) -> Maker {
    let status = it.status.as_ref();
    let conditions = status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut failures = conditions.filter(|it| it.type_ == "ReplicaFailure" && it.status == "True");
    Maker {
        kind: "Deployment",
        name: it.name_any(),
        wanted: it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        made: status
            .and_then(|status| status.replicas)
            .unwrap_or_default(),
        says: failures.next().and_then(|it| it.message.clone()),
    }
}

fn of_set(it: &StatefulSet) -> Maker {
    Maker {
        kind: "StatefulSet",
        name: it.name_any(),
        wanted: it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        made: it.status.as_ref().map_or(0, |status| status.replicas),
        says: None,
    }
}

fn of_job(it: &Job) -> Maker {
    let status = it.status.clone().unwrap_or_default();
    let begun = [status.active, status.succeeded, status.failed];
    Maker {
        kind: "Job",
        name: it.name_any(),
        wanted: 1,
        made: begun.into_iter().flatten().sum(),
        says: None,
    }
}

/// Nothing if nobody says why: they are being made.
fn trouble(maker: &Maker, warnings: &Warnings, namespace: &str) -> Option<Trouble> {
    let Maker {
        kind,
        name,
        wanted,
        made,
        says,
    } = maker;
    let why = says
        .clone()
        .or_else(|| warnings.about(|of, it| of == *kind && it == name))?;
    let advice = if why.contains("exceeded quota") || why.contains("failed quota") {
        format!(
            "raise the quota, or ask for less (resources of the Mailbell object): kubectl --namespace {namespace} describe resourcequota"
        )
    } else if why.contains("PodSecurity") || why.contains("admission webhook") {
        "a rule of the cluster refuses these pods: see with whoever runs it".to_owned()
    } else {
        format!(
            "see to what is named; it is tried again by itself: kubectl --namespace {namespace} describe {} {name}",
            kind.to_lowercase()
        )
    };
    Some(Trouble {
        verdict: Verdict::Fail,
        said: format!("{name} has {made} of {wanted} pods: {why}"),
        advice,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn warned(kind: &str, name: &str, message: &str) -> Warnings {
        let event = json!({ "metadata": {}, "involvedObject": { "kind": kind, "name": name }, "message": message });
        Warnings(Ok(vec![serde_json::from_value(event).unwrap()]))
    }

    fn set(made: i32) -> Maker {
        let template = json!({ "metadata": {} });
        let set = json!({ "metadata": { "name": "main-nats" },
            "spec": { "replicas": 3, "serviceName": "x", "selector": {}, "template": template }, "status": { "replicas": made } });
        of_set(&serde_json::from_value(set).unwrap())
    }

    #[test]
    fn who_makes_no_pods_says_why_or_the_cluster_does() {
        let none = Warnings(Ok(Vec::new()));
        assert_eq!(trouble(&set(1), &none, "mail"), None);
        let quota = "pods \"main-nats-1\" is forbidden: exceeded quota: small";
        for (message, todo) in [
            (quota, "describe resourcequota"),
            (
                "violates PodSecurity \"restricted:latest\"",
                "a rule of the cluster",
            ),
            (
                "serviceaccount \"main-nats\" not found",
                "describe statefulset main-nats",
            ),
        ] {
            let found = trouble(
                &set(1),
                &warned("StatefulSet", "main-nats", message),
                "mail",
            )
            .unwrap();
            assert_eq!(found.said, format!("main-nats has 1 of 3 pods: {message}"));
            assert_eq!(found.verdict, Verdict::Fail);
            assert!(found.advice.contains(todo), "{}", found.advice);
        }
        let another = warned("StatefulSet", "main-b-nats", quota);
        assert_eq!(trouble(&set(1), &another, "mail"), None);
        let refused = json!([{ "type": "ReplicaFailure", "status": "True", "message": quota }]);
        let deployment = json!({ "metadata": { "name": "main-admin" },
            "spec": { "replicas": 2, "selector": {}, "template": { "metadata": {} } }, "status": { "conditions": refused } });
        let it = of_deployment(&serde_json::from_value(deployment).unwrap());
        assert_eq!((it.made, it.wanted), (0, 2));
        let found = trouble(&it, &none, "mail").unwrap();
        assert!(found.said.contains("exceeded quota"), "{}", found.said);
    }

    #[test]
    fn a_job_that_has_begun_needs_no_pod_more() {
        let job = |status: Value| {
            let template = json!({ "metadata": {} });
            let job = json!({ "metadata": { "name": "x" }, "spec": { "template": template }, "status": status });
            let it = of_job(&serde_json::from_value(job).unwrap());
            it.made < it.wanted
        };
        assert!(job(json!({})));
        assert!(
            !job(json!({ "active": 1 }))
                && !job(json!({ "succeeded": 1 }))
                && !job(json!({ "failed": 2 }))
        );
    }
}
