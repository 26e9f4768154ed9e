//! How far the objects of an installation are, and what a person is told of it. Pure.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use serde_json::Value;

use crate::desired::MANAGER;

/// What is being changed, and has got no further for so long, does not get on. Of a Deployment Kubernetes says so, after this time
/// (`progressDeadlineSeconds`); of a StatefulSet and a job nobody does.
const DEADLINE: Duration = Duration::from_secs(600);
/// A job that has failed so often is told of: what it needs may be away for a moment.
const TRIED: i64 = 3;

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
    /// It will not be as it should, unless somebody does something.
    Failed {
        /// What, and for whom.
        text: String,
        /// It does its work all the same, as it was before.
        serves: bool,
    },
}

impl Progress {
    /// Whether what comes after it can be begun.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Done | Self::Usable(_))
    }

    /// Whether it does its work.
    #[must_use]
    pub fn serves(&self) -> bool {
        match self {
            Self::Done | Self::Usable(_) | Self::Changing(_) => true,
            Self::Waiting(_) => false,
            Self::Failed { serves, .. } => *serves,
        }
    }

    /// Something that is not there yet waits for it.
    pub fn is_waited_for(&mut self) {
        if let Self::Changing(text) = self {
            *self = Self::Waiting(std::mem::take(text));
        }
    }

    fn badness(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Usable(_) => 1,
            Self::Changing(_) => 2,
            Self::Waiting(_) => 3,
            Self::Failed { .. } => 4,
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
            | Self::Failed { text, .. } => Some(text),
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

/// When objects of an installation last waited for others that did not do their work, by their names: what they lacked until then may have
/// been those.
#[derive(Debug, Default)]
pub struct Held(HashMap<String, Timestamp>);

impl Held {
    /// Notes that an object waits now.
    pub fn note(&mut self, object: &Value, now: Timestamp) {
        // A job of another image has another name.
        self.0.retain(|_, held| now < after(*held));
        self.0.insert(name(object).to_owned(), now);
    }

    /// How far an object is that does not wait. Also when that is to be looked at again though nothing is heard of it.
    #[must_use]
    pub fn see(&self, object: &Value, now: Timestamp) -> (Progress, Option<Timestamp>) {
        let progress = of(object);
        let serves = match &progress {
            Progress::Changing(_) => true,
            Progress::Waiting(_) => false,
            Progress::Done | Progress::Usable(_) | Progress::Failed { .. } => {
                return (progress, None);
            }
        };
        let kind = object.get("kind").and_then(Value::as_str);
        if !matches!(kind, Some("StatefulSet" | "Job")) {
            return (progress, None);
        }
        let held = self.0.get(name(object)).copied();
        match changed_at(object).max(held).map(after) {
            Some(due) if due <= now => {
                let text = does_not_get_on(object);
                (Progress::Failed { text, serves }, None)
            }
            due => (progress, due),
        }
    }
}

fn after(time: Timestamp) -> Timestamp {
    time.saturating_add(DEADLINE).unwrap_or(Timestamp::MAX)
}

/// When its status last changed, or what is wanted of it: by the API server, which keeps a time for each that writes an object, and leaves it
/// where nothing changes (`metadata.managedFields`). So whoever begins to lead knows it too. What others note on it is no progress. Where
/// somebody has taken the times away it is since the object was made.
fn changed_at(object: &Value) -> Option<Timestamp> {
    let writers = object.pointer("/metadata/managedFields");
    let writers = writers.and_then(Value::as_array).into_iter().flatten();
    let is_ours = |writer: &&Value| {
        let text = |field: &str| writer.get(field).and_then(Value::as_str);
        text("subresource") == Some("status") || text("manager") == Some(MANAGER)
    };
    let time = |value: &Value| value.as_str()?.parse().ok();
    let times = writers.filter(is_ours);
    let last = times.filter_map(|writer| time(writer.get("time")?)).max();
    last.or_else(|| time(object.pointer("/metadata/creationTimestamp")?))
}

/// The image that all pods of a Deployment or a StatefulSet have, but for those that end. `None`: not all have the same, or too few work.
#[must_use]
pub fn image(object: &Value) -> Option<&str> {
    if !of(object).is_usable() {
        return None;
    }
    let image = object.pointer("/spec/template/spec/containers/0/image")?;
    image.as_str()
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

/// The part of an installation that it is of.
#[must_use]
pub fn component(object: &Value) -> Option<&str> {
    let label = object.pointer("/metadata/labels/app.kubernetes.io~1component")?;
    label.as_str()
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

/// How many pods there are, and how many it takes.
struct Pods {
    wanted: i64,
    /// Those that end included.
    all: i64,
    ready: i64,
    /// So many do the work, if not as well as all.
    enough: i64,
    is_rolled_out: bool,
}

impl Pods {
    fn progress(&self, object: &Value) -> Progress {
        // Of one that is given more pods none changes, and there may be no room for them for a long time.
        let is_settled = is_seen(object) && self.is_rolled_out && self.all <= self.wanted;
        if is_settled && self.ready == self.wanted {
            return Progress::Done;
        }
        let (ready, wanted) = (self.ready.min(self.wanted), self.wanted);
        let text = format!("{ready} of {wanted} pods of {} are ready", name(object));
        match (self.ready >= self.enough.min(wanted), is_settled) {
            (true, true) => Progress::Usable(text),
            (true, false) => Progress::Changing(text),
            (false, _) => Progress::Waiting(text),
        }
    }
}

fn of_deployment(object: &Value) -> Progress {
    let [all, updated, available] = ["replicas", "updatedReplicas", "availableReplicas"]
        .map(|field| number(object, &format!("/status/{field}")));
    let pods = Pods {
        wanted: number(object, "/spec/replicas"),
        all,
        ready: available,
        enough: 1,
        is_rolled_out: updated == all,
    };
    let progress = pods.progress(object);
    // Not of one that has settled, and has lost pods since.
    let is_stuck = condition(object, "Progressing", "False").is_some();
    if is_stuck && matches!(progress, Progress::Changing(_) | Progress::Waiting(_)) {
        let text = does_not_get_on(object);
        let serves = matches!(progress, Progress::Changing(_));
        return Progress::Failed { text, serves };
    }
    progress
}

fn does_not_get_on(object: &Value) -> String {
    let name = name(object);
    format!("{name} does not get on: look at its pods (kubectl describe pod)")
}

fn of_stateful_set(object: &Value) -> Progress {
    let wanted = number(object, "/spec/replicas");
    let revision = |field: &str| object.pointer(&format!("/status/{field}"));
    let pods = Pods {
        wanted,
        all: number(object, "/status/replicas"),
        ready: number(object, "/status/readyReplicas"),
        // Servers agree by majority; of watchers one takes what the others leave.
        enough: if component(object) == Some("nats") {
            wanted / 2 + 1
        } else {
            1
        },
        is_rolled_out: revision("currentRevision") == revision("updateRevision"),
    };
    pods.progress(object)
}

fn of_job(object: &Value) -> Progress {
    let name = name(object);
    if condition(object, "Complete", "True").is_some() {
        return Progress::Done;
    }
    // What runs already goes on beside it, also if it fails.
    if condition(object, "Failed", "True").is_some() {
        let text = format!(
            "the job {name} has failed: kubectl logs job/{name} says why; once it is mended, delete the job, and it is run again"
        );
        return Progress::Failed { text, serves: true };
    }
    let failed = number(object, "/status/failed");
    if failed == 0 {
        return Progress::Changing(format!("the job {name} runs"));
    }
    let text = format!(
        "the job {name} has failed {failed} times and is tried again: kubectl logs job/{name} says why"
    );
    match failed < TRIED {
        true => Progress::Changing(text),
        false => Progress::Failed { text, serves: true },
    }
}

/// What was found of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Of each stage, in order: its name, and the worst of its objects.
    pub stages: Vec<(&'static str, Progress)>,
    /// Nothing is meant to run.
    pub paused: bool,
}

impl Found {
    /// Whether it does its work.
    #[must_use]
    pub fn serves(&self) -> bool {
        let mut stages = self.stages.iter();
        stages.all(|(_, progress)| progress.serves()) && !self.paused
    }
}

/// What conditions say of a stage: the other way round than [`conditions`]. `None`: nothing is wrong with it, or something else is worse.
#[must_use]
pub fn said_of(stage: &str, conditions: &[Condition]) -> Option<Progress> {
    let (reason, _, text) = degraded(conditions).filter(|(_, of, _)| *of == capital(stage))?;
    let text = text.strip_suffix('.')?.to_owned();
    match reason {
        "Impaired" => Some(Progress::Usable(text)),
        "Failed" => {
            let mut conditions = conditions.iter();
            let serves = conditions.any(|it| it.type_ == "Ready" && it.status == "True");
            Some(Progress::Failed { text, serves })
        }
        _ => None,
    }
}

/// Which trouble conditions tell of: of what kind it is, and of which stage. Not how much of it there is, which changes all the time.
/// `None`: nothing is wrong, or what is missing comes by itself.
#[must_use]
pub fn trouble(conditions: &[Condition]) -> Option<(&str, &str)> {
    let (reason, stage, _) = degraded(conditions)?;
    ["Impaired", "Failed"]
        .contains(&reason)
        .then_some((reason, stage))
}

/// Reason, stage and sentence of one that is degraded.
fn degraded(conditions: &[Condition]) -> Option<(&str, &str, &str)> {
    let mut conditions = conditions.iter();
    let degraded = conditions.find(|it| it.type_ == "Degraded" && it.status == "True")?;
    let (stage, text) = degraded.message.split_once(": ")?;
    Some((&degraded.reason, stage, text))
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
    let serves = found.serves();
    let text = || sentence.clone().unwrap_or_default();
    let was = |kind: &str| {
        let mut before = before.iter();
        before.any(|it| it.type_ == kind && it.status == "True")
    };
    let ready = match worst {
        Progress::Done if serves => (true, "Running", "Everything runs.".to_owned()),
        Progress::Changing(_) if serves => (true, "Changing", text()),
        _ if serves => (true, "Impaired", text()),
        Progress::Failed { .. } => (false, "Failed", text()),
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
        Progress::Failed { .. } => (true, "Failed", text()),
        // It did its work before, and has not come back since.
        Progress::Waiting(_) if was("Ready") || was("Degraded") => (true, "Down", text()),
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
mod tests;
