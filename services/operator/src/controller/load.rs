//! How much there is to do in each installation: mailboxes and devices, looked at now and then by whoever leads.
//!
//! It decides how many pods there are to be, and stands in the status. What cannot be known now changes nothing.
//!
//! Here is also what was last said of each: what is read of an object may be older than what was written of it.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Display,
    mem::{Discriminant, discriminant},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::{ObjectRef, Store};
use serde_json::Value;
use tokio::{
    net::lookup_host,
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    Context,
    cluster::Key,
    gateways::{self, Gateways},
};
use crate::{
    api::{Counts, Mailbell, MailbellStatus, Versions},
    desired::{gateway_pods, sizes},
    progress::{Held, Progress, said_of},
    sizing::{Bounds, Sizer},
    watched::{Mailboxes, Watched},
};

/// What is told of them, among the stages of an installation.
pub(super) const MAILBOXES: &str = "the mailboxes";
/// Counts that stand in the status are no older than this; they change all the time, and each change is a write.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How long a part of a look at one may take: one that does not answer holds up no others.
const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// Installations that are looked at at once.
const AT_ONCE: usize = 8;

/// The two parts whose numbers of pods change by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sized {
    Watchers,
    Gateways,
}

/// What is known of each installation.
#[derive(Debug)]
pub(super) struct Loads {
    /// For so long fewer pods must have been enough before one goes.
    window: Duration,
    all: Mutex<HashMap<ObjectRef<Mailbell>, Load>>,
    /// Something is to be done, or told.
    news: Notify,
}

#[derive(Debug, Default)]
struct Load {
    /// Another one may have come under its name.
    uid: Option<String>,
    status: Option<MailbellStatus>,
    watchers: Part,
    gateways: Part,
    watched: Watched,
    /// What was seen to be of it, and of nobody else.
    ours: BTreeSet<Key>,
    held: Held,
    /// `None`: nobody has looked yet.
    seen: Option<Seen>,
    /// What stands in the status, and since when.
    told: Option<(Instant, Option<Seen>)>,
}

#[derive(Debug, Default)]
struct Part {
    sizer: Sizer,
    /// As they were when they were last looked at.
    pods: Option<Pods>,
}

/// The pods of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pods {
    /// How many there are to be.
    pub(super) there: i32,
    /// How many do their work.
    pub(super) ready: i32,
    /// None of them is on its way.
    pub(super) settled: bool,
}

/// What was seen at the last look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seen {
    pub(super) counts: Option<Counts>,
    pub(super) versions: Option<Versions>,
    /// Why mailboxes or devices are not known, and so the numbers of pods stay; for a while already.
    pub(super) blind: Option<String>,
    /// What is wrong with mailboxes that should be watched, for a while already.
    pub(super) unwatched: Option<Progress>,
}

impl Loads {
    pub(super) fn new(window: Duration) -> Self {
        Self {
            window,
            all: Mutex::default(),
            news: Notify::new(),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<ObjectRef<Mailbell>, Load>> {
        // Nothing that holds the lock can leave it half changed.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to do.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// How many pods of a part there are to be, where there are these.
    pub(super) fn wanted(&self, mailbell: &Mailbell, part: Sized, pods: Pods) -> i32 {
        let mut all = self.all();
        let load = of(&mut all, mailbell);
        let of = load.part(part);
        of.pods = Some(pods);
        let now = Instant::now();
        let wanted = of.wanted(now, bounds(mailbell, part), pods, self.window);
        if wanted < pods.there {
            of.sizer.stepped(now);
        }
        wanted
    }

    /// What is to stand in the status. `None`: nobody has looked yet.
    pub(super) fn tell(&self, mailbell: &Mailbell) -> Option<Seen> {
        let mut all = self.all();
        let load = of(&mut all, mailbell);
        load.told = Some((Instant::now(), load.seen.clone()));
        load.seen.clone()
    }

    /// Of one that is paused nobody looks: what was seen before holds no longer.
    pub(super) fn rest(&self, mailbell: &Mailbell) {
        let mut all = self.all();
        let load = of(&mut all, mailbell);
        load.seen = None;
        load.watched = Watched::default();
    }

    /// Why the numbers of pods stay as they are, if they do for a while.
    pub(super) fn blind(&self, mailbell: &Mailbell) -> Option<String> {
        of(&mut self.all(), mailbell).seen.as_ref()?.blind.clone()
    }

    /// What is wrong with mailboxes that should be watched, if something is for a while; until somebody has looked, what stands in the status.
    pub(super) fn unwatched(&self, mailbell: &Mailbell) -> Option<Progress> {
        of(&mut self.all(), mailbell).watched.trouble()
    }

    /// The status that was last written; `None`: none was, by this operator.
    pub(super) fn status(&self, mailbell: &Mailbell) -> Option<MailbellStatus> {
        of(&mut self.all(), mailbell).status.clone()
    }

    /// Notes what was written.
    pub(super) fn is_said(&self, mailbell: &Mailbell, status: MailbellStatus) {
        of(&mut self.all(), mailbell).status = Some(status);
    }

    /// Whether it was seen that this object is of it.
    pub(super) fn is_ours(&self, mailbell: &Mailbell, key: &Key) -> bool {
        of(&mut self.all(), mailbell).ours.contains(key)
    }

    /// Notes that it is.
    pub(super) fn ours(&self, mailbell: &Mailbell, key: Key) {
        of(&mut self.all(), mailbell).ours.insert(key);
    }

    /// Notes that an object waits now for what does not do its work.
    pub(super) fn is_held(&self, mailbell: &Mailbell, object: &Value, now: Timestamp) {
        of(&mut self.all(), mailbell).held.note(object, now);
    }

    /// How far an object is that does not wait for such, and when that is to be looked at again: see [`Held::see`].
    pub(super) fn progress(
        &self,
        mailbell: &Mailbell,
        object: &Value,
        now: Timestamp,
    ) -> (Progress, Option<Timestamp>) {
        of(&mut self.all(), mailbell).held.see(object, now)
    }

    /// Notes what was seen, and says whether that is news.
    fn note(
        &self,
        mailbell: &Mailbell,
        shards: Result<Shards, String>,
        gateways: Result<Gateways, String>,
    ) {
        let now = Instant::now();
        let mut all = self.all();
        let load = of(&mut all, mailbell);
        let mailboxes = shards.as_ref().ok().map(|shards| shards.mailboxes);
        let devices = gateways.as_ref().ok().map(|gateways| gateways.devices);
        load.watched.observe(now, mailboxes);
        let registered = mailboxes.map(|seen| seen.registered);
        load.watchers.sizer.observe(now, registered, self.window);
        load.gateways.sizer.observe(now, devices, self.window);
        let why = [shards.as_ref().err(), gateways.as_ref().err()];
        let why = why.into_iter().flatten().next().cloned();
        let is_long = [&load.watchers, &load.gateways]
            .iter()
            .any(|part| part.sizer.is_blind(now));
        let mut seen = Seen::of(shards.ok(), gateways.ok());
        seen.blind = why.filter(|_| is_long);
        seen.unwatched = load.watched.trouble();
        let before = load.seen.as_ref().map(Seen::troubles).unwrap_or_default();
        let changed = before != seen.troubles();
        load.seen = Some(seen);
        let changes = [Sized::Watchers, Sized::Gateways].into_iter().any(|part| {
            let bounds = bounds(mailbell, part);
            load.part(part).changes(now, bounds, self.window)
        });
        let untold = match &load.told {
            Some((since, told)) => {
                let is_old = told.is_none() || now.duration_since(*since) >= TELL_EVERY;
                *told != load.seen && is_old
            }
            None => true,
        };
        if changes || changed || untold {
            self.news.notify_one();
        }
    }

    /// How many pods of a part do their work, as far as is known.
    fn ready(&self, mailbell: &Mailbell, part: Sized) -> Option<usize> {
        let mut all = self.all();
        let load = all.get_mut(&ObjectRef::from_obj(mailbell))?;
        usize::try_from(load.part(part).pods?.ready).ok()
    }

    fn keep_only(&self, mailbells: &[ObjectRef<Mailbell>]) {
        self.all()
            .retain(|mailbell, _| mailbells.contains(mailbell));
    }
}

fn of<'a>(all: &'a mut HashMap<ObjectRef<Mailbell>, Load>, mailbell: &Mailbell) -> &'a mut Load {
    let load = all.entry(ObjectRef::from_obj(mailbell)).or_default();
    if load.uid != mailbell.metadata.uid {
        let status = mailbell.status.as_ref();
        let said = status.and_then(|status| said_of(MAILBOXES, &status.conditions));
        *load = Load {
            uid: mailbell.metadata.uid.clone(),
            watched: Watched::after(said, Instant::now()),
            ..Load::default()
        };
    }
    load
}

impl Load {
    fn part(&mut self, part: Sized) -> &mut Part {
        match part {
            Sized::Watchers => &mut self.watchers,
            Sized::Gateways => &mut self.gateways,
        }
    }
}

impl Part {
    fn wanted(&self, now: Instant, bounds: Bounds, pods: Pods, window: Duration) -> i32 {
        let held = bounds.hold(pods.there);
        let wanted = self.sizer.wanted(now, pods.there, bounds, window);
        // The last one has not gone yet.
        if pods.settled {
            wanted
        } else {
            wanted.max(held)
        }
    }

    fn changes(&self, now: Instant, bounds: Bounds, window: Duration) -> bool {
        // Not of one that was never there.
        let pods = self.pods.filter(|pods| pods.there > 0);
        pods.is_some_and(|pods| self.wanted(now, bounds, pods, window) != pods.there)
    }
}

/// What the admin API knows of mailboxes and of watchers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Shards {
    mailboxes: Mailboxes,
    releases: BTreeSet<String>,
}

impl Seen {
    fn of(shards: Option<Shards>, gateways: Option<Gateways>) -> Self {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let counts = Counts {
            mailboxes: shards
                .as_ref()
                .map(|shards| number(shards.mailboxes.registered)),
            watched: shards
                .as_ref()
                .map(|shards| number(shards.mailboxes.watched)),
            devices: gateways.as_ref().map(|gateways| number(gateways.devices)),
        };
        let releases: BTreeSet<String> = shards
            .map(|shards| shards.releases)
            .into_iter()
            .chain(gateways.map(|gateways| gateways.releases))
            .flatten()
            .collect();
        let running: Vec<String> = releases.into_iter().collect();
        Self {
            counts: (counts != Counts::default()).then_some(counts),
            versions: (!running.is_empty()).then(|| Versions {
                running: running.join(", "),
                ..Versions::default()
            }),
            ..Self::default()
        }
    }

    /// What is to be told at once: what is wrong, and not how many it concerns.
    fn troubles(&self) -> (bool, Option<(Discriminant<Progress>, bool)>) {
        let unwatched = self.unwatched.as_ref();
        let unwatched = unwatched.map(|it| (discriminant(it), it.serves()));
        (self.blind.is_some(), unwatched)
    }
}

fn bounds(mailbell: &Mailbell, part: Sized) -> Bounds {
    let sizes = sizes(&mailbell.spec);
    match part {
        Sized::Watchers => sizes.watchers,
        Sized::Gateways => sizes.gateways,
    }
}

/// Looks at all installations, again and again, until it is dropped.
pub(super) async fn watch(context: &Context, store: Store<Mailbell>, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let all = store.state();
        let names: Vec<ObjectRef<Mailbell>> =
            all.iter().map(|it| ObjectRef::from_obj(&**it)).collect();
        context.loads.keep_only(&names);
        let store = &store;
        stream::iter(all)
            .for_each_concurrent(AT_ONCE, |mailbell| async move {
                if !runs(store, &mailbell) {
                    return;
                }
                let (shards, gateways) =
                    tokio::join!(shards(context, &mailbell), gateways(context, &mailbell));
                // It may have been paused meanwhile, and another one may have its name.
                if runs(store, &mailbell) {
                    context.loads.note(&mailbell, shards, gateways);
                }
            })
            .await;
    }
}

/// Whether it is there still, and not paused.
fn runs(store: &Store<Mailbell>, mailbell: &Mailbell) -> bool {
    let there = store.get(&ObjectRef::from_obj(mailbell));
    there.is_some_and(|there| there.metadata.uid == mailbell.metadata.uid && !there.spec.paused)
}

async fn shards(context: &Context, mailbell: &Mailbell) -> Result<Shards, String> {
    let asked = async { context.admins.of(mailbell).await?.shards().await };
    let unknown = |why: &dyn Display| format!("how many mailboxes there are is not known: {why}");
    let answer = match timeout(LOOK_LIMIT, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            context.admins.note(mailbell, &error);
            return Err(unknown(&error));
        }
        Err(late) => {
            context.admins.forget(mailbell);
            return Err(unknown(&late));
        }
    };
    let Some(mailboxes) = Mailboxes::of(&answer) else {
        return Err(unknown(&"the answer says nothing of it"));
    };
    let live = answer.members.iter().filter(|member| member.owned > 0);
    Ok(Shards {
        mailboxes,
        releases: live.map(|member| member.release.clone()).collect(),
    })
}

async fn gateways(context: &Context, mailbell: &Mailbell) -> Result<Gateways, String> {
    let unknown = |why: String| format!("how many devices there are is not known: {why}");
    let all: Vec<SocketAddr> = match &context.gateways {
        Some(all) => all.clone(),
        None => {
            let (host, port) = gateway_pods(mailbell);
            let found = timeout(LOOK_LIMIT, lookup_host((host.as_str(), port))).await;
            let none = |why: &dyn Display| unknown(format!("{host} has no address: {why}"));
            let found = found.map_err(|late| none(&late))?;
            found.map_err(|error| none(&error))?.collect()
        }
    };
    // A name is known everywhere only after a while: one that is missing would be one without devices.
    let ready = context.loads.ready(mailbell, Sized::Gateways);
    if ready.is_none_or(|ready| all.len() < ready) {
        return Err(unknown(
            "not all gateways are found by their name".to_owned(),
        ));
    }
    let answer = gateways::ask(&all).await;
    answer.ok_or_else(|| unknown("not all gateways say how many they have".to_owned()))
}

#[cfg(test)]
mod tests;
