//! One look at one installation: what is wanted is applied, what is not is removed, and how it stands is said.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    Context, Error, LOOK_AGAIN,
    cluster::{Cluster, Key, now, publish},
    load::{Loads, MAILBOXES, Pods, Sized},
    providers,
};
use crate::{
    api::{Mailbell, MailbellStatus, Versions},
    desired::{MANAGER, POLICY, REPLICAS, Stage, Wanted, desired},
    policy::Made,
    progress::{self, Found, Progress, conditions, trouble},
};

/// Kinds of which there may be objects that are wanted no longer.
const KINDS: [(&str, &str); 9] = [
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("gateway.networking.k8s.io/v1", "GRPCRoute"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
];

/// Without these nobody is served. What else is not there yet changes nothing for what runs.
const RUNS: [&str; 2] = ["Deployment", "StatefulSet"];
/// The only kind that a cluster may lack.
const ROUTE: &str = "GRPCRoute";

/// Looks after it once, and answers how long it need not be looked at again if nothing is heard of it.
pub(super) async fn installation(
    mailbell: &Mailbell,
    context: &Context,
) -> Result<Duration, Error> {
    // One that is being removed takes all its objects with it.
    if mailbell.metadata.deletion_timestamp.is_some() {
        return Ok(LOOK_AGAIN);
    }
    if mailbell.spec.paused {
        context.loads.rest(mailbell);
    }
    let namespace = mailbell.namespace().unwrap_or_default();
    let cluster = Cluster {
        client: &context.client,
        namespace: &namespace,
    };
    // Where it cannot be made nothing else waits for it.
    let (policy, unmade) = match providers::made(mailbell, context).await {
        Ok(made) => (Some(made), None),
        Err(error) => (None, Some(error)),
    };
    let text = match &policy {
        Some(made) => Some(made.text.clone()),
        None => providers::first(mailbell, &cluster).await?,
    };
    let wanted = Wanted {
        mailbell,
        image: &context.image,
        watchers: size(&cluster, mailbell, context, Sized::Watchers).await?,
        gateways: size(&cluster, mailbell, context, Sized::Gateways).await?,
        policy: text.as_deref(),
        api_server_ports: &context.api_server_ports,
    };
    let stages = desired(&wanted);
    let mut notes = Notes::default();
    let (mut found, mut refused) =
        apply(&cluster, mailbell, &context.loads, &stages, &mut notes).await?;
    let of_policy = match &unmade {
        Some(error) => Some(Progress::Failed {
            text: error.to_string(),
            serves: true,
        }),
        None => policy.as_ref().and_then(Made::unread).map(Progress::Usable),
    };
    if let Some(worse) = of_policy {
        let is_policy = |(stage, _): &&mut (&'static str, Progress)| *stage == POLICY;
        if let Some((_, progress)) = found.iter_mut().find(is_policy) {
            *progress = progress.clone().worse(worse);
        }
    }
    refused = refused.or(unmade);
    let mut found = Found {
        stages: found,
        paused: mailbell.spec.paused,
    };
    let blind = context.loads.blind(mailbell).filter(|_| !found.paused);
    found
        .stages
        .extend(blind.map(|why| ("the numbers of pods stay", Progress::Usable(why))));
    // Until all is applied, what is wanted no longer may be needed: an old setup goes once the new one is done.
    let mut stood = found.stages.iter();
    if stood.all(|(_, progress)| progress.is_usable()) {
        refused = remove_orphans(&cluster, mailbell, &stages).await.err();
    }
    // Where a part does not do its work, that is why.
    let unwatched = context.loads.unwatched(mailbell);
    let unwatched = unwatched.filter(|_| found.serves());
    found
        .stages
        .extend(unwatched.map(|trouble| (MAILBOXES, trouble)));
    let untold = match policy {
        Some(policy) => providers::tell(policy, &found, context).await,
        None => Ok(()),
    };
    let wait = wait(notes.due, now());
    tell(mailbell, context, &found, notes).await?;
    untold?;
    // It is tried again soon, and then less often.
    refused.map_or(Ok(wait), Err)
}

/// Until what gets no further is to be told of: nothing is heard of it then.
fn wait(due: Option<Timestamp>, now: Timestamp) -> Duration {
    let left = due.map(|due| due.as_second().saturating_sub(now.as_second()));
    let left = left.map(|left| u64::try_from(left).unwrap_or_default().max(1));
    left.map_or(LOOK_AGAIN, |left| Duration::from_secs(left).min(LOOK_AGAIN))
}

/// What is noted of objects on the way.
#[derive(Default)]
struct Notes {
    /// What those run that nobody asks; `None`: not known now, or there are none.
    admin_image: Option<String>,
    nats_image: Option<String>,
    /// When the first of those that are being changed does not get on, if nothing happens until then.
    due: Option<Timestamp>,
}

impl Notes {
    fn image(&mut self, object: &Value) {
        let of = match progress::component(object) {
            Some("admin") => &mut self.admin_image,
            Some("nats") => &mut self.nats_image,
            _ => return,
        };
        // A part has objects without an image too.
        if let Some(image) = progress::image(object) {
            *of = Some(image.to_owned());
        }
    }

    fn due(&mut self, (progress, due): (Progress, Option<Timestamp>)) -> Progress {
        self.due = [self.due, due].into_iter().flatten().min();
        progress
    }
}

/// How many pods of a part there are to be.
async fn size(
    cluster: &Cluster<'_>,
    mailbell: &Mailbell,
    context: &Context,
    part: Sized,
) -> Result<i32, Error> {
    let (kind, part_name) = match part {
        Sized::Watchers => ("StatefulSet", "watcher"),
        Sized::Gateways => ("Deployment", "gateway"),
    };
    let key = Key {
        api: "apps/v1".to_owned(),
        kind: kind.to_owned(),
        name: format!("{}-{part_name}", mailbell.name_any()),
    };
    let object = cluster.get(&key).await?.unwrap_or_default();
    let number = |place: &str| {
        let number = object.pointer(place).and_then(Value::as_i64);
        number.and_then(|count| i32::try_from(count).ok())
    };
    // Of one that is paused, or was until now, as many as before.
    let note = object.pointer("/metadata/annotations");
    let note = note.and_then(|all| all.get(REPLICAS)?.as_str()?.parse().ok());
    let there = number("/spec/replicas").filter(|there| *there > 0);
    let pods = Pods {
        there: there.or(note).unwrap_or_default(),
        ready: number("/status/readyReplicas").unwrap_or_default(),
        settled: progress::of(&object) == Progress::Done,
    };
    let wanted = context.loads.wanted(mailbell, part, pods);
    if wanted != pods.there && pods.there > 0 {
        tracing::info!(
            name = key.name,
            from = pods.there,
            to = wanted,
            "the number of pods changes"
        );
    }
    Ok(wanted)
}

/// Applies stage after stage, up to one that is not usable yet; of those after it, looks how they stand. Answers also the first object
/// that was refused: it holds what comes after it, and is no reason not to say how all the others stand.
async fn apply(
    cluster: &Cluster<'_>,
    mailbell: &Mailbell,
    loads: &Loads,
    stages: &[Stage],
    notes: &mut Notes,
) -> Result<(Vec<(&'static str, Progress)>, Option<Error>), Error> {
    let mut all: Vec<(_, Progress)> = Vec::new();
    let mut held_by = None;
    let mut first_refused = None;
    for stage in stages {
        let mut progress = Progress::Done;
        for object in &stage.objects {
            let key = Key::of(object);
            let next = match held_by {
                None => match make(cluster, mailbell, loads, object).await {
                    Ok(object) => {
                        notes.image(&object);
                        notes.due(loads.progress(mailbell, &object, now()))
                    }
                    Err(error) if error.is_missing_kind() && key.kind == ROUTE => {
                        let text = "there is no Gateway API on this cluster, and gateways.gatewayApi asks for it";
                        Progress::Usable(text.to_owned())
                    }
                    // Nothing can be said either.
                    Err(error) if !error.is_answer() => return Err(error),
                    Err(error) => {
                        let is_there = cluster.get(&key).await.is_ok_and(|there| there.is_some());
                        let serves = is_there && !matches!(error, Error::Foreign { .. });
                        let text = error.to_string();
                        first_refused.get_or_insert(error);
                        Progress::Failed { text, serves }
                    }
                },
                Some(before) => match cluster.get(&key).await {
                    Ok(Some(object)) => {
                        notes.image(&object);
                        if all.iter().any(|(_, before)| !before.serves()) {
                            // What it lacks may be that.
                            loads.is_held(mailbell, &object, now());
                            progress::of(&object)
                        } else {
                            notes.due(loads.progress(mailbell, &object, now()))
                        }
                    }
                    Ok(None) if RUNS.contains(&key.kind.as_str()) => {
                        // That one is what has to be told.
                        if let Some((_, holder)) = all.iter_mut().find(|(name, _)| *name == before)
                        {
                            holder.is_waited_for();
                        }
                        Progress::Waiting(format!("waiting for {before}"))
                    }
                    Ok(None) => Progress::Changing(format!("waiting for {before}")),
                    Err(error) => return Err(error),
                },
            };
            progress = progress.worse(next);
        }
        // Nothing has to be waited for where nothing is to run.
        if held_by.is_none() && !progress.is_usable() && !mailbell.spec.paused {
            held_by = Some(stage.name);
        }
        all.push((stage.name, progress));
    }
    Ok((all, first_refused))
}

/// Applies an object, if its name is not somebody else's: that is looked at once by each who leads.
async fn make(
    cluster: &Cluster<'_>,
    mailbell: &Mailbell,
    loads: &Loads,
    object: &Value,
) -> Result<Value, Error> {
    let key = Key::of(object);
    if !loads.is_ours(mailbell, &key) {
        let owner = mailbell.uid().unwrap_or_default();
        cluster.check_is_ours(object, &owner).await?;
    }
    let made = cluster.apply(object).await?;
    loads.ours(mailbell, key);
    Ok(made)
}

/// Removes what was made for this installation and is wanted no longer.
async fn remove_orphans(
    cluster: &Cluster<'_>,
    mailbell: &Mailbell,
    stages: &[Stage],
) -> Result<(), Error> {
    let wanted = stages.iter().flat_map(|stage| &stage.objects);
    let wanted: BTreeSet<Key> = wanted.map(Key::of).collect();
    let labels = format!(
        "app.kubernetes.io/managed-by={MANAGER},app.kubernetes.io/instance={}",
        mailbell.name_any()
    );
    let owner = mailbell.uid().unwrap_or_default();
    for (api, kind) in KINDS {
        for key in cluster.owned(api, kind, &labels, &owner).await? {
            if !wanted.contains(&key) {
                tracing::info!(
                    kind,
                    name = key.name,
                    "an object that is wanted no longer is removed"
                );
                cluster.delete(&key).await?;
            }
        }
    }
    Ok(())
}

/// Whether it is time to write that somebody looks, though there is nothing else to write. Clocks of leaders may differ.
fn is_old(looked_at: Option<&Time>, now: Timestamp) -> bool {
    let age = looked_at.map(|it| now.as_second().saturating_sub(it.0.as_second()));
    let age = age.and_then(|seconds| u64::try_from(seconds).ok());
    age.is_none_or(|seconds| seconds >= LOOK_AGAIN.as_secs())
}

/// Writes the status, last, and only if it says something else than before or is old; an event tells of a change of what a person cares about.
async fn tell(
    mailbell: &Mailbell,
    context: &Context,
    found: &Found,
    notes: Notes,
) -> Result<(), Error> {
    let read = mailbell.status.clone().unwrap_or_default();
    // What was read may be older than what was last written, and each change is told once.
    let said = context.loads.status(mailbell);
    let before = said.unwrap_or_else(|| read.clone());
    let generation = mailbell.metadata.generation;
    let now = now();
    let (counts, versions) = match context.loads.tell(mailbell) {
        Some(seen) => (seen.counts, seen.versions),
        // As whoever led before has seen it.
        None => (before.counts, before.versions.clone()),
    };
    // What is registered stays, and of the rest nothing is there.
    let counts = counts.map(|counts| match found.paused {
        true => counts.paused(),
        false => counts,
    });
    let versions = versions.filter(|_| !found.paused).map(|seen| {
        // While they change, what all had last.
        let told = before.versions.clone().unwrap_or_default();
        Versions {
            running: seen.running,
            admin_image: notes.admin_image.or(told.admin_image),
            nats_image: notes.nats_image.or(told.nats_image),
        }
    });
    let (left_accounts, tenants) = match context.left.of(mailbell) {
        Some(found) => {
            let left = Some(found.left.clone()).filter(|left| left.count > 0);
            (left, found.tenants())
        }
        None => (before.left_accounts.clone(), before.tenants.clone()),
    };
    let status = MailbellStatus {
        observed_generation: generation,
        conditions: conditions(found, &before.conditions, generation, now),
        counts,
        versions,
        left_accounts,
        tenants,
        looked_at: Some(Time(now)),
    };
    let is_same = |other: &MailbellStatus| {
        let looked_at = other.looked_at.clone();
        MailbellStatus {
            looked_at,
            ..status.clone()
        } == *other
    };
    if is_same(&before) && is_same(&read) && !is_old(read.looked_at.as_ref(), now) {
        return Ok(());
    }
    let name = mailbell.name_any();
    let key = Key {
        api: "mailbell.dev/v1alpha1".to_owned(),
        kind: "Mailbell".to_owned(),
        name: name.clone(),
    };
    let namespace = mailbell.namespace().unwrap_or_default();
    let api: Api<Mailbell> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({ "apiVersion": key.api, "kind": key.kind, "status": status });
    let params = PatchParams::apply(MANAGER).force();
    let patched = api
        .patch_status(&name, &params, &Patch::Apply(&patch))
        .await;
    patched.map_err(|source| Error::of(&key, source))?;
    context.loads.is_said(mailbell, status.clone());
    let ready = |all: &[Condition]| all.iter().find(|it| it.type_ == "Ready").cloned();
    let (old, new) = (ready(&before.conditions), ready(&status.conditions));
    let is_bad = |reason: &str| ["Failed", "Impaired"].contains(&reason);
    let said = |condition: &Option<Condition>| {
        let condition = condition.as_ref()?;
        Some((condition.status.clone(), condition.reason.clone()))
    };
    let is_other = || trouble(&before.conditions) != trouble(&status.conditions);
    if let Some(condition) = &new
        // One that is impaired for good has other troubles too: that of the first place is told.
        && (said(&old) != said(&new) || (is_bad(&condition.reason) && is_other()))
    {
        let was_ready = old.as_ref().is_some_and(|old| old.status == "True");
        let is_lost = was_ready && condition.status == "False" && condition.reason != "Paused";
        let is_good = !is_lost && !is_bad(&condition.reason);
        let place = mailbell.object_ref(&());
        let (reason, note) = (&condition.reason, &condition.message);
        publish(&context.events, &place, is_good, reason, note).await;
    }
    Ok(())
}
