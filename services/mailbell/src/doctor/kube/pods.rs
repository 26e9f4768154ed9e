//! What is wrong with a pod, in words.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt as _;

use crate::doctor::Verdict;

/// Who was started so often has a trouble that comes back.
const MANY_RESTARTS: i32 = 5;

/// What was found of one, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) verdict: Verdict,
    pub(super) said: String,
    pub(super) advice: String,
}

/// `None`: it is as it should be, has done its work, or is being started.
pub(super) fn trouble(pod: &Pod) -> Option<Trouble> {
    let name = pod.name_any();
    let kubectl = format!(
        "kubectl --namespace {}",
        pod.namespace().unwrap_or_default()
    );
    let status = pod.status.as_ref()?;
    // A job's: its other attempts say how that went.
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
    containers.find_map(|container| of_container(&name, &kubectl, container, &fail))
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
        (_, 65) => "what is stored is of a newer release, or damaged (exit code 65)".to_owned(),
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

    fn of(status: Value) -> Option<Trouble> {
        let pod = json!({ "metadata": { "name": "main-watcher-0" }, "status": status });
        trouble(&serde_json::from_value(pod).unwrap())
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
        assert!(often.said.contains("newer release"), "{often:?}");
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
