//! Pods that are wanted, and that the API server takes from nobody.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::Job,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use super::{access::listed, pods::Trouble, warnings};
use crate::doctor::{Report, Verdict};

/// Who makes pods, and how many there are.
#[derive(Debug)]
struct Maker {
    kind: &'static str,
    metadata: ObjectMeta,
    wanted: i32,
    made: i32,
    /// What it says itself.
    says: Option<String>,
}

impl Maker {
    /// Or is about to lack: whose old pods are all there may be refused the new ones.
    fn lacks(&self) -> bool {
        self.made < self.wanted || self.says.is_some()
    }
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
    makers.retain(Maker::lacks);
    let mut troubles: Vec<Trouble> = last_of_each(&jobs)
        .into_iter()
        .filter_map(failing)
        .collect();
    for maker in makers {
        let why = match &maker.says {
            Some(said) => Ok(Some(said.clone())),
            None => warnings::about(client, namespace, &maker.metadata, None).await,
        };
        troubles.extend(trouble(&maker, why, namespace));
    }
    Some(troubles)
}

fn of_deployment(it: &Deployment) -> Maker {
    let status = it.status.as_ref();
    Maker {
        kind: "Deployment",
        metadata: it.metadata.clone(),
        wanted: it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        made: status
            .and_then(|status| status.replicas)
            .unwrap_or_default(),
        says: refused(it),
    }
}

/// Why it gets no pods, in its own words.
pub(super) fn refused(it: &Deployment) -> Option<String> {
    let conditions = it.status.as_ref()?.conditions.as_ref()?;
    let is = |kind: &str, status: &str| kind == "ReplicaFailure" && status == "True";
    let failure = conditions.iter().find(|it| is(&it.type_, &it.status))?;
    failure.message.clone()
}

fn of_set(it: &StatefulSet) -> Maker {
    Maker {
        kind: "StatefulSet",
        metadata: it.metadata.clone(),
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
        metadata: it.metadata.clone(),
        wanted: 1,
        made: begun.into_iter().flatten().sum(),
        says: None,
    }
}

/// One that has given way to another one stays until that has done its work, and says nothing any more.
fn last_of_each(jobs: &[Job]) -> Vec<&Job> {
    let mut last = BTreeMap::<String, &Job>::new();
    for job in jobs {
        let name = job.name_any();
        // What they run is told from what they ran by the end of their names.
        let what = name
            .rsplit_once('-')
            .map_or(name.as_str(), |(what, _)| what);
        let before = last.entry(what.to_owned()).or_insert(job);
        if job.metadata.creation_timestamp > before.metadata.creation_timestamp {
            *before = job;
        }
    }
    last.into_values().collect()
}

/// A job whose attempts fail. What needs it waits meanwhile.
fn failing(job: &Job) -> Option<Trouble> {
    let status = job.status.as_ref()?;
    let failed = status.failed.filter(|failed| *failed > 0)?;
    let conditions = status.conditions.iter().flatten();
    let has = |kind: &str| {
        let mut conditions = conditions.clone();
        conditions.find(|it| it.type_ == kind && it.status == "True")
    };
    if has("Complete").is_some() || has("SuccessCriteriaMet").is_some() {
        return None;
    }
    let name = job.name_any();
    let namespace = job.namespace().unwrap_or_default();
    let log = format!("kubectl --namespace {namespace} logs job/{name} says why");
    Some(match has("Failed") {
        None => Trouble {
            verdict: Verdict::Warn,
            said: format!("{name} has failed {failed} times, and is tried again"),
            advice: log,
        },
        Some(end) => Trouble {
            verdict: Verdict::Fail,
            said: format!(
                "{name} has failed {failed} times, and is tried no more: {}",
                end.message.as_deref().unwrap_or("nobody says why")
            ),
            advice: format!(
                "{log}; once that is mended kubectl --namespace {namespace} delete job {name} has the operator run it anew"
            ),
        },
    })
}

/// Nothing if nobody says why: they are being made.
fn trouble(maker: &Maker, why: Result<Option<String>, String>, namespace: &str) -> Option<Trouble> {
    let name = maker.metadata.name.as_deref().unwrap_or_default();
    let has = match (maker.made, maker.wanted) {
        (made, wanted) if made < wanted => format!("{name} has {made} of {wanted} pods"),
        (made, _) => format!("{name} has {made} pods, and cannot make a new one"),
    };
    let why = match why {
        Ok(why) => why?,
        Err(unseen) => {
            return Some(Trouble {
                verdict: Verdict::Skipped,
                said: format!("{has}; {unseen}"),
                advice: String::new(),
            });
        }
    };
    let advice = if why.contains("exceeded quota") || why.contains("failed quota") {
        format!(
            "raise the quota, or ask for less (resources of the Mailbell object): kubectl --namespace {namespace} describe resourcequota"
        )
    } else if why.contains("PodSecurity") || why.contains("admission webhook") {
        "a rule of the cluster refuses these pods: see with whoever runs it".to_owned()
    } else {
        format!(
            "see to what is named; it is tried again by itself: kubectl --namespace {namespace} describe {} {name}",
            maker.kind.to_lowercase()
        )
    };
    Some(Trouble {
        verdict: Verdict::Fail,
        said: format!("{has}: {why}"),
        advice,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(made: i32) -> Maker {
        let template = json!({ "metadata": {} });
        let set = json!({ "metadata": { "name": "main-nats" },
            "spec": { "replicas": 3, "serviceName": "x", "selector": {}, "template": template }, "status": { "replicas": made } });
        of_set(&serde_json::from_value(set).unwrap())
    }

    #[test]
    fn who_makes_no_pods_says_why_or_the_cluster_does() {
        assert_eq!(trouble(&set(1), Ok(None), "mail"), None);
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
            let found = trouble(&set(1), Ok(Some(message.to_owned())), "mail").unwrap();
            assert_eq!(found.said, format!("main-nats has 1 of 3 pods: {message}"));
            assert_eq!(found.verdict, Verdict::Fail);
            assert!(found.advice.contains(todo), "{}", found.advice);
        }
        let unseen = trouble(&set(1), Err("you may not see".to_owned()), "mail").unwrap();
        assert_eq!(unseen.verdict, Verdict::Skipped);
        assert_eq!(unseen.said, "main-nats has 1 of 3 pods; you may not see");
    }

    #[test]
    fn a_deployment_says_itself_that_a_pod_is_refused() {
        let refused = json!([{ "type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small" }]);
        let told = |made: i32| {
            let deployment = json!({ "metadata": { "name": "main-admin" },
                "spec": { "replicas": 2, "selector": {}, "template": { "metadata": {} } },
                "status": { "replicas": made, "conditions": refused } });
            let it = of_deployment(&serde_json::from_value(deployment).unwrap());
            assert!(it.lacks(), "{it:?}");
            trouble(&it, Ok(it.says.clone()), "mail").unwrap().said
        };
        assert_eq!(told(0), "main-admin has 0 of 2 pods: exceeded quota: small");
        // In an upgrade the old pods stay until the new ones are there.
        let said = told(2);
        let words = "main-admin has 2 pods, and cannot make a new one: exceeded quota: small";
        assert_eq!(said, words);
    }

    #[test]
    fn a_job_that_has_begun_needs_no_pod_more() {
        let job = |status: Value| {
            let template = json!({ "metadata": {} });
            let job = json!({ "metadata": { "name": "x" }, "spec": { "template": template }, "status": status });
            of_job(&serde_json::from_value(job).unwrap()).lacks()
        };
        assert!(job(json!({})));
        assert!(
            !job(json!({ "active": 1 }))
                && !job(json!({ "succeeded": 1 }))
                && !job(json!({ "failed": 2 }))
        );
    }

    #[test]
    fn a_job_that_has_given_way_to_another_says_nothing_any_more() {
        let job = |name: &str, minute: u32| {
            let made = format!("2026-01-01T00:{minute:02}:00Z");
            let metadata = json!({ "name": name, "creationTimestamp": made });
            let template = json!({ "metadata": {} });
            let job = json!({ "metadata": metadata, "spec": { "template": template } });
            serde_json::from_value::<Job>(job).unwrap()
        };
        let jobs = [
            job("main-setup-new", 2),
            job("main-setup-old", 1),
            job("main-secrets-one", 0),
        ];
        let last = last_of_each(&jobs).into_iter().map(|job| job.name_any());
        let names: Vec<String> = last.collect();
        assert_eq!(names, ["main-secrets-one", "main-setup-new"]);
    }

    #[test]
    fn a_job_that_fails_is_told_until_it_has_done_its_work() {
        let told = |status: Value| {
            let template = json!({ "metadata": {} });
            let job = json!({ "metadata": { "name": "main-setup-1", "namespace": "mail" },
                "spec": { "template": template }, "status": status });
            failing(&serde_json::from_value(job).unwrap())
        };
        let ended = |kind: &str| {
            let end =
                json!([{ "type": kind, "status": "True", "message": "it has reached its limit" }]);
            json!({ "failed": 2, "conditions": end })
        };
        let again = told(json!({ "failed": 2, "active": 1 })).unwrap();
        assert_eq!(again.verdict, Verdict::Warn);
        let words = "main-setup-1 has failed 2 times, and is tried again";
        assert_eq!(again.said, words);
        let log = "kubectl --namespace mail logs job/main-setup-1 says why";
        assert_eq!(again.advice, log);
        let over = told(ended("Failed")).unwrap();
        assert_eq!(over.verdict, Verdict::Fail);
        assert!(
            over.said.ends_with("no more: it has reached its limit"),
            "{over:?}"
        );
        assert!(over.advice.starts_with(log) && over.advice.contains("delete job main-setup-1"));
        for fine in [
            ended("Complete"),
            json!({ "active": 1 }),
            json!({ "failed": 0 }),
        ] {
            assert_eq!(told(fine.clone()), None, "{fine}");
        }
    }
}
