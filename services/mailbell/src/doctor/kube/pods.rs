//! What is wrong with a pod, in words.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod, PodCondition},
    jiff::{SignedDuration, Timestamp},
};
use kube::ResourceExt as _;

use crate::doctor::Verdict;

/// Who was started so often has a trouble that comes back.
const MANY_RESTARTS: i32 = 5;
/// A node that has taken a pod starts it in so long, or warns of what keeps it from that.
const TO_START: SignedDuration = SignedDuration::from_mins(1);
/// A pod that has started is ready in so long: it has found NATS, and has taken its share.
const TO_BE_READY: SignedDuration = SignedDuration::from_mins(5);

/// What was found of one, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) verdict: Verdict,
    pub(super) said: String,
    pub(super) advice: String,
}

/// `None`: it is as it should be, has done its work, or is being started.
pub(super) fn trouble(pod: &Pod, now: Timestamp) -> Option<Trouble> {
    let name = pod.name_any();
    let kubectl = kubectl(pod);
    let status = pod.status.as_ref()?;
    // A job's: what is said of that counts them.
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let fail = |said: String, advice: String| Trouble {
        verdict: Verdict::Fail,
        said: format!("{name} {said}"),
        advice,
    };
    let conditions = status.conditions.iter().flatten();
    let unplaced = conditions
        .filter(|it| it.type_ == "PodScheduled" && it.status == "False")
        .find_map(|it| it.message.clone());
    if let Some(why) = unplaced {
        return Some(fail(
            format!("has no node: {why}"),
            "add nodes, or ask for less: resources, affinity and disks of the Mailbell object"
                .to_owned(),
        ));
    }
    let containers = status.container_statuses.iter().flatten();
    let mut containers = containers.chain(status.init_container_statuses.iter().flatten());
    containers
        .find_map(|container| of_container(&name, &kubectl, container, &fail))
        .or_else(|| unready(pod, now))
}

fn kubectl(pod: &Pod) -> String {
    let namespace = pod.namespace().unwrap_or_default();
    format!("kubectl --namespace {namespace}")
}

/// Since when a condition has this status; `None`: it has another one, or its pod is going.
fn since(pod: &Pod, kind: &str, status: &str) -> Option<Timestamp> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let is = |it: &&PodCondition| it.type_ == kind && it.status == status;
    Some(conditions.iter().find(is)?.last_transition_time.as_ref()?.0)
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

/// Runs, and does not do its work. NATS servers are looked at together.
fn unready(pod: &Pod, now: Timestamp) -> Option<Trouble> {
    let is_nats = pod.labels().get("app.kubernetes.io/component");
    if phase(pod) != Some("Running") || is_nats.is_some_and(|part| part == "nats") {
        return None;
    }
    let for_so_long = now.duration_since(since(pod, "Ready", "False")?);
    (for_so_long > TO_BE_READY).then(|| Trouble {
        verdict: Verdict::Warn,
        said: format!(
            "{} runs, and has not been ready for {} minutes",
            pod.name_any(),
            for_so_long.as_mins()
        ),
        advice: format!("{} logs {} says why", kubectl(pod), pod.name_any()),
    })
}

/// Since when it has a node that has not started it, where that is long ago.
pub(super) fn waits(pod: &Pod, now: Timestamp) -> Option<Timestamp> {
    let since = since(pod, "PodScheduled", "True").filter(|_| phase(pod) == Some("Pending"))?;
    (now.duration_since(since) > TO_START).then_some(since)
}

/// What its node warns of, if it does: most often a Secret, a ConfigMap or a disk that it cannot mount.
pub(super) fn unstarted(pod: &Pod, why: Result<Option<String>, String>) -> Option<Trouble> {
    let name = pod.name_any();
    match why {
        Ok(why) => Some(Trouble {
            verdict: Verdict::Fail,
            said: format!("{name} cannot be started: {}", why?),
            advice: format!(
                "see to what is named; its node tries again by itself: {} describe pod {name}",
                kubectl(pod)
            ),
        }),
        Err(unseen) => Some(Trouble {
            verdict: Verdict::Skipped,
            said: format!("{name} has a node that has not started it yet; {unseen}"),
            advice: String::new(),
        }),
    }
}

fn of_container(
    name: &str,
    kubectl: &str,
    container: &ContainerStatus,
    fail: &impl Fn(String, String) -> Trouble,
) -> Option<Trouble> {
    let waiting = container.state.as_ref().and_then(|it| it.waiting.as_ref());
    let reason = waiting.and_then(|it| it.reason.as_deref());
    let message = || {
        let said = waiting.and_then(|it| it.message.as_deref());
        said.unwrap_or("the node does not say why").to_owned()
    };
    let restarts = container.restart_count;
    match reason {
        Some("CrashLoopBackOff") => {
            let advice = format!("{kubectl} logs {name} --previous says why");
            let said = format!(
                "ends again and again ({restarts} times so far): {}",
                last_end(container)
            );
            return Some(fail(said, advice));
        }
        Some("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull") => {
            return Some(fail(
                format!("cannot have its image {}: {}", container.image, message()),
                "name an image that nodes can pull (spec.image), and the Secrets by which they may (spec.imagePullSecrets)".to_owned(),
            ));
        }
        Some("CreateContainerConfigError" | "CreateContainerError" | "RunContainerError") => {
            return Some(fail(
                format!("cannot be started: {}", message()),
                format!(
                    "{kubectl} describe pod {name}; most often a Secret or a ConfigMap is missing"
                ),
            ));
        }
        _ => {}
    }
    (restarts >= MANY_RESTARTS).then(|| Trouble {
        verdict: Verdict::Warn,
        said: format!(
            "{name} was started {restarts} times again: {}",
            last_end(container)
        ),
        advice: format!("{kubectl} logs {name} --previous says why"),
    })
}

/// Why it ended, by what the node knows. Codes are those of `docs/reference.md`.
fn last_end(container: &ContainerStatus) -> String {
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state.as_ref().and_then(|it| it.terminated.clone())
    };
    let Some(last) = ended(&container.last_state).or_else(|| ended(&container.state)) else {
        return "it is not known why".to_owned();
    };
    match (last.reason.as_deref(), last.exit_code) {
        (Some("OOMKilled"), _) => "it needed more memory than its limit".to_owned(),
        (_, 64) => "its settings are wrong (exit code 64)".to_owned(),
        (_, 65) => "what is stored is of a newer release, or damaged, or the key ring is not the one that was used (exit code 65)".to_owned(),
        (_, 66) => "a file that it needs is not there, or cannot be read (exit code 66)".to_owned(),
        (_, 69) => "something that it needs does not answer (exit code 69)".to_owned(),
        (_, 75) => "something has to happen first (exit code 75)".to_owned(),
        (_, 77) => "it lacks a right, or its password is wrong (exit code 77)".to_owned(),
        (_, code) => format!("exit code {code}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn pod(metadata: Value, status: Value) -> Pod {
        let mut pod = json!({ "metadata": metadata, "status": status });
        pod["metadata"]["name"] = "main-watcher-0".into();
        serde_json::from_value(pod).unwrap()
    }

    fn of(status: Value) -> Option<Trouble> {
        trouble(&pod(json!({}), status), NOW.parse().unwrap())
    }

    fn since(phase: &str, kind: &str, status: &str, time: &str) -> Value {
        let condition = json!({ "type": kind, "status": status, "lastTransitionTime": time });
        json!({ "phase": phase, "conditions": [condition] })
    }

    #[test]
    fn a_pod_that_runs_is_ready_within_minutes() {
        let late = since("Running", "Ready", "False", "2026-01-01T00:54:59Z");
        let found = of(late.clone()).unwrap();
        assert_eq!(found.verdict, Verdict::Warn);
        let words = "main-watcher-0 runs, and has not been ready for 5 minutes";
        assert_eq!(found.said, words);
        assert!(found.advice.contains("logs main-watcher-0"), "{found:?}");
        let going = json!({ "deletionTimestamp": NOW });
        let nats = json!({ "labels": { "app.kubernetes.io/component": "nats" } });
        for (metadata, status) in [
            (going, late.clone()),
            (nats, late),
            (
                json!({}),
                since("Running", "Ready", "False", "2026-01-01T00:55:00Z"),
            ),
            (
                json!({}),
                since("Running", "Ready", "True", "2026-01-01T00:00:00Z"),
            ),
            (
                json!({}),
                since("Pending", "Ready", "False", "2026-01-01T00:00:00Z"),
            ),
        ] {
            let pod = pod(metadata, status);
            assert_eq!(trouble(&pod, NOW.parse().unwrap()), None, "{pod:?}");
        }
    }

    #[test]
    fn a_node_that_does_not_start_a_pod_says_why() {
        let late = "2026-01-01T00:58:59Z";
        let waits = |metadata, status| waits(&pod(metadata, status), NOW.parse().unwrap());
        let placed = |phase, time| since(phase, "PodScheduled", "True", time);
        assert_eq!(
            waits(json!({}), placed("Pending", late)),
            Some(late.parse().unwrap())
        );
        for (metadata, status) in [
            (json!({}), placed("Pending", "2026-01-01T00:59:00Z")),
            (json!({}), placed("Running", late)),
            (json!({}), since("Pending", "PodScheduled", "False", late)),
            (json!({ "deletionTimestamp": NOW }), placed("Pending", late)),
        ] {
            assert_eq!(waits(metadata, status.clone()), None, "{status}");
        }
        let pod = pod(json!({}), json!({}));
        let warned = "MountVolume.SetUp failed: configmap \"roots\" not found";
        let found = unstarted(&pod, Ok(Some(warned.to_owned()))).unwrap();
        assert_eq!(found.verdict, Verdict::Fail);
        let words = format!("main-watcher-0 cannot be started: {warned}");
        assert_eq!(found.said, words);
        // Its image may be large.
        assert_eq!(unstarted(&pod, Ok(None)), None);
        let unseen = unstarted(&pod, Err("you may not see".to_owned())).unwrap();
        assert_eq!(unseen.verdict, Verdict::Skipped);
    }

    fn container(restarts: i32, state: Value, last: Value) -> Value {
        json!({ "containerStatuses": [{ "name": "one", "image": "mailbell:1", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last }] })
    }

    #[test]
    fn each_trouble_is_told_in_words_with_what_to_do() {
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "secret \"x\" not found" } });
        let ended = |code: i32, reason: &str| json!({ "terminated": { "exitCode": code, "reason": reason } });
        let looping = waiting("CrashLoopBackOff");
        for (status, words) in [
            (
                json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False",
                    "message": "0/3 nodes are available" }] }),
                "main-watcher-0 has no node: 0/3 nodes are available",
            ),
            (
                container(7, looping.clone(), ended(69, "Error")),
                "ends again and again (7 times so far): something that it needs does not answer",
            ),
            (
                container(1, looping.clone(), ended(137, "OOMKilled")),
                "more memory than its limit",
            ),
            (container(1, looping, json!({})), "it is not known why"),
            (
                container(0, waiting("ImagePullBackOff"), json!({})),
                "cannot have its image mailbell:1",
            ),
            (
                container(0, waiting("CreateContainerConfigError"), json!({})),
                "cannot be started: secret \"x\" not found",
            ),
        ] {
            let trouble = of(status.clone()).unwrap();
            assert!(trouble.said.contains(words), "{status}: {trouble:?}");
            assert_eq!(trouble.verdict, Verdict::Fail, "{status}");
            assert!(!trouble.advice.is_empty(), "{status}");
        }
        let running = json!({ "running": {} });
        let often = of(container(5, running.clone(), ended(65, "Error"))).unwrap();
        assert_eq!(often.verdict, Verdict::Warn);
        for words in ["newer release", "key ring is not the one"] {
            assert!(often.said.contains(words), "{often:?}");
        }
        for fine in [
            container(4, running, ended(65, "Error")),
            container(0, waiting("ContainerCreating"), json!({})),
            json!({ "phase": "Failed", "conditions": [{ "type": "PodScheduled", "status": "False", "message": "x" }] }),
            json!({ "phase": "Pending" }),
        ] {
            assert_eq!(of(fine.clone()), None, "{fine}");
        }
    }
}
