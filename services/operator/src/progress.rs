//! How far the objects of an installation are, and what a person is told of it. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;

/// How far an object is, or a stage, or all of them, from good to bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// As it should be.
    Done,
    /// It does its work, but not with all that it should have: what comes after it need not wait.
    Usable(String),
    /// It does its work and is being changed: what comes after it waits.
    Changing(String),
    /// It does not do its work yet, and will if nothing happens.
    Waiting(String),
    /// It will not be, unless somebody does something.
    Failed(String),
}

impl Progress {
    /// Whether what comes after it can be begun.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Done | Self::Usable(_))
    }

    /// Whether it does its work.
    fn serves(&self) -> bool {
        matches!(self, Self::Done | Self::Usable(_) | Self::Changing(_))
    }

    fn badness(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usable(_) => 1,
            Self::Changing(_) => 2,
            Self::Waiting(_) => 3,
            Self::Failed(_) => 4,
        }
    }

    /// The worse of two, the first one of two that are as bad.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        if other.badness() > self.badness() {
            other
        } else {
            self
        }
    }

    fn sentence(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Usable(text)
            | Self::Changing(text)
            | Self::Waiting(text)
            | Self::Failed(text) => Some(text),
        }
    }
}

/// Of an object as the API server has it. What nothing has to come of is done.
#[must_use]
pub fn of(object: &Value) -> Progress {
    match object.get("kind").and_then(Value::as_str) {
        Some("Deployment") => of_deployment(object),
        Some("StatefulSet") => of_stateful_set(object),
        Some("Job") => of_job(object),
        _ => Progress::Done,
    }
}

fn number(object: &Value, place: &str) -> i64 {
    object
        .pointer(place)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

fn name(object: &Value) -> &str {
    let name = object.pointer("/metadata/name").and_then(Value::as_str);
    name.unwrap_or_default()
}

/// The controller has seen what was asked for.
fn is_seen(object: &Value) -> bool {
    number(object, "/status/observedGeneration") >= number(object, "/metadata/generation")
}

/// A condition of the object, if it has this status.
fn condition<'a>(object: &'a Value, kind: &str, status: &str) -> Option<&'a Value> {
    let all = object.pointer("/status/conditions")?.as_array()?;
    all.iter().find(|it| {
        let has = |field: &str, value: &str| it.get(field).and_then(Value::as_str) == Some(value);
        has("type", kind) && has("status", status)
    })
}

fn ready(object: &Value, ready: i64, wanted: i64) -> String {
    format!("{ready} of {wanted} pods of {} are ready", name(object))
}

fn of_deployment(object: &Value) -> Progress {
    let wanted = number(object, "/spec/replicas");
    let [all, updated, available] = ["replicas", "updatedReplicas", "availableReplicas"]
        .map(|field| number(object, &format!("/status/{field}")));
    let is_rolled_out = is_seen(object) && updated == wanted && all == updated;
    if is_rolled_out && available == wanted {
        return Progress::Done;
    }
    if condition(object, "Progressing", "False").is_some() {
        return Progress::Failed(format!(
            "{} does not get on: look at its pods (kubectl describe pod)",
            name(object)
        ));
    }
    let text = ready(object, available, wanted);
    match (available > 0, is_rolled_out) {
        (true, true) => Progress::Usable(text),
        (true, false) => Progress::Changing(text),
        (false, _) => Progress::Waiting(text),
    }
}

fn of_stateful_set(object: &Value) -> Progress {
    let wanted = number(object, "/spec/replicas");
    let ready_now = number(object, "/status/readyReplicas");
    let revision = |field: &str| object.pointer(&format!("/status/{field}"));
    let is_rolled_out =
        is_seen(object) && revision("currentRevision") == revision("updateRevision");
    if is_rolled_out && ready_now == wanted && number(object, "/status/replicas") == wanted {
        return Progress::Done;
    }
    let text = ready(object, ready_now, wanted);
    // More than half: so many a cluster of NATS needs, and watchers share among themselves what the others leave.
    match (ready_now * 2 > wanted, is_rolled_out) {
        (true, true) => Progress::Usable(text),
        (true, false) => Progress::Changing(text),
        (false, _) => Progress::Waiting(text),
    }
}

fn of_job(object: &Value) -> Progress {
    let name = name(object);
    if condition(object, "Complete", "True").is_some() {
        return Progress::Done;
    }
    if condition(object, "Failed", "True").is_some() {
        return Progress::Failed(format!(
            "the job {name} has failed: kubectl logs job/{name} says why; once it is mended, delete the job, and it is run again"
        ));
    }
    // What runs already goes on beside it.
    Progress::Changing(format!("the job {name} runs"))
}

/// What was found of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Of each stage, in order: its name, and the worst of its objects.
    pub stages: Vec<(&'static str, Progress)>,
    /// Nothing is meant to run.
    pub paused: bool,
}

/// The conditions that say it, each with the time since which it has its status.
#[must_use]
pub fn conditions(
    found: &Found,
    before: &[Condition],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    // The first of those that are as bad: the others may wait for it.
    let stages = found.stages.iter().rev();
    let worst = stages.max_by_key(|(_, progress)| progress.badness());
    let sentence = worst.and_then(|(stage, progress)| {
        let what = progress.sentence()?;
        Some(format!("{}: {what}.", capital(stage)))
    });
    let worst = worst.map_or(&Progress::Done, |(_, progress)| progress);
    let serves = found.stages.iter().all(|(_, progress)| progress.serves()) && !found.paused;
    let text = || sentence.clone().unwrap_or_default();
    let ready = match worst {
        Progress::Done if serves => (true, "Running", "Everything runs.".to_owned()),
        Progress::Changing(_) if serves => (true, "Changing", text()),
        _ if serves => (true, "Impaired", text()),
        Progress::Failed(_) => (false, "Failed", text()),
        Progress::Waiting(_) => (false, "Starting", text()),
        // Whatever is missing is missing on purpose.
        _ => {
            let text = "Paused: nothing is watched, and nobody is served.";
            (false, "Paused", text.to_owned())
        }
    };
    let is_waiting = matches!(worst, Progress::Waiting(_) | Progress::Changing(_));
    let progressing = if is_waiting {
        (true, "Waiting", text())
    } else {
        (false, "Settled", "Nothing is being changed.".to_owned())
    };
    let degraded = match worst {
        Progress::Usable(_) => (true, "Impaired", text()),
        Progress::Failed(_) => (true, "Failed", text()),
        Progress::Done | Progress::Changing(_) | Progress::Waiting(_) => {
            (false, "Whole", "Nothing is missing.".to_owned())
        }
    };
    [
        ("Ready", ready),
        ("Progressing", progressing),
        ("Degraded", degraded),
    ]
    .into_iter()
    .map(|(kind, (status, reason, message))| {
        let status = if status { "True" } else { "False" };
        let same = before
            .iter()
            .find(|it| it.type_ == kind && it.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: generation,
            last_transition_time: same.map_or(Time(now), |same| same.last_transition_time.clone()),
        }
    })
    .collect()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase);
    first.into_iter().flatten().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(seen: i64, all: i64, updated: i64, available: i64) -> Value {
        json!({
            "kind": "Deployment",
            "metadata": { "name": "main-gateway", "generation": 2 },
            "spec": { "replicas": 2 },
            "status": { "observedGeneration": seen, "replicas": all, "updatedReplicas": updated, "availableReplicas": available },
        })
    }

    #[test]
    fn a_deployment_is_waited_for_until_all_its_pods_are_of_the_new_kind() {
        let text = |ready: i64| format!("{ready} of 2 pods of main-gateway are ready");
        assert_eq!(of(&deployment(2, 2, 2, 2)), Progress::Done);
        // What it says is of the generation before.
        assert_eq!(of(&deployment(1, 2, 2, 2)), Progress::Changing(text(2)));
        // One of the old ones is still there.
        assert_eq!(of(&deployment(2, 3, 2, 2)), Progress::Changing(text(2)));
        assert_eq!(of(&deployment(2, 2, 1, 2)), Progress::Changing(text(2)));
        assert_eq!(of(&deployment(2, 2, 2, 1)), Progress::Usable(text(1)));
        assert_eq!(of(&deployment(2, 2, 2, 0)), Progress::Waiting(text(0)));
        let mut stuck = deployment(2, 2, 2, 0);
        stuck["status"]["conditions"] = json!([{ "type": "Progressing", "status": "False" }]);
        assert!(matches!(of(&stuck), Progress::Failed(_)));
        assert!(matches!(
            of(&json!({ "kind": "Deployment" })),
            Progress::Done
        ));
    }

    #[test]
    fn most_servers_are_enough_to_go_on() {
        let set = |ready: i64, update: &str| {
            json!({
                "kind": "StatefulSet",
                "metadata": { "name": "main-nats", "generation": 1 },
                "spec": { "replicas": 3 },
                "status": { "observedGeneration": 1, "replicas": 3, "readyReplicas": ready,
                    "currentRevision": "a", "updateRevision": update },
            })
        };
        let text = |ready: i64| format!("{ready} of 3 pods of main-nats are ready");
        assert_eq!(of(&set(3, "a")), Progress::Done);
        assert_eq!(of(&set(3, "b")), Progress::Changing(text(3)));
        assert_eq!(of(&set(2, "a")), Progress::Usable(text(2)));
        assert_eq!(of(&set(1, "a")), Progress::Waiting(text(1)));
        let new = json!({ "kind": "StatefulSet", "metadata": { "generation": 1 }, "spec": { "replicas": 3 } });
        assert!(matches!(of(&new), Progress::Waiting(_)));
    }

    #[test]
    fn a_job_is_waited_for_until_it_is_complete_or_has_failed() {
        let job = |kind: &str| {
            json!({ "kind": "Job", "metadata": { "name": "main-setup-1" },
                "status": { "conditions": [{ "type": kind, "status": "True" }] } })
        };
        assert_eq!(of(&job("Complete")), Progress::Done);
        assert!(matches!(
            of(&job("SuccessCriteriaMet")),
            Progress::Changing(_)
        ));
        let Progress::Failed(text) = of(&job("Failed")) else {
            panic!("it has failed");
        };
        assert!(text.contains("kubectl logs job/main-setup-1"), "{text}");
        assert_eq!(of(&json!({ "kind": "Service" })), Progress::Done);
    }

    fn say(stages: &[(&'static str, Progress)], paused: bool) -> Vec<String> {
        let found = Found {
            stages: stages.to_vec(),
            paused,
        };
        let all = conditions(&found, &[], Some(3), Timestamp::UNIX_EPOCH);
        assert!(all.iter().all(|it| it.observed_generation == Some(3)));
        all.iter()
            .map(|it| format!("{} {} {}", it.status, it.reason, it.message))
            .collect()
    }

    #[test]
    fn what_is_said_of_an_installation() {
        let nats = |progress| ("the NATS servers", progress);
        let one = || "1 of 3".to_owned();
        let whole = "False Whole Nothing is missing.";
        let settled = "False Settled Nothing is being changed.";
        assert_eq!(
            say(&[nats(Progress::Done)], false),
            ["True Running Everything runs.", settled, whole]
        );
        assert_eq!(
            say(&[nats(Progress::Waiting(one()))], false),
            [
                "False Starting The NATS servers: 1 of 3.",
                "True Waiting The NATS servers: 1 of 3.",
                whole
            ]
        );
        assert_eq!(
            say(&[nats(Progress::Usable(one()))], false),
            [
                "True Impaired The NATS servers: 1 of 3.",
                settled,
                "True Impaired The NATS servers: 1 of 3."
            ]
        );
        // What runs goes on while it is changed.
        assert_eq!(
            say(&[nats(Progress::Changing(one()))], false),
            [
                "True Changing The NATS servers: 1 of 3.",
                "True Waiting The NATS servers: 1 of 3.",
                whole
            ]
        );
        // The worst counts, whatever came before it.
        assert_eq!(
            say(
                &[
                    nats(Progress::Usable(one())),
                    ("the setup", Progress::Failed("no".to_owned()))
                ],
                false
            ),
            [
                "False Failed The setup: no.",
                settled,
                "True Failed The setup: no."
            ]
        );
        assert_eq!(
            say(&[nats(Progress::Done)], true)[0],
            "False Paused Paused: nothing is watched, and nobody is served."
        );
    }

    #[test]
    fn a_time_is_that_of_the_last_change() {
        let found = |progress| Found {
            stages: vec![("x", progress)],
            paused: false,
        };
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let first = conditions(&found(Progress::Waiting("a".to_owned())), &[], None, at(1));
        let same = conditions(
            &found(Progress::Waiting("b".to_owned())),
            &first,
            None,
            at(2),
        );
        assert!(same.iter().all(|it| it.last_transition_time == Time(at(1))));
        let done = conditions(&found(Progress::Done), &same, None, at(3));
        let times: Vec<_> = done
            .iter()
            .map(|it| it.last_transition_time.0.as_second())
            .collect();
        assert_eq!(times, [3, 3, 1]);
    }
}
