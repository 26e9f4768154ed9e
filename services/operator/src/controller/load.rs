//! How much there is to do in each installation: mailboxes and devices, looked at now and then by whoever leads.
//!
//! It decides how many pods there are to be, and stands in the status. What cannot be known now changes nothing.
//!
//! Here is also what was last said of each: what is read of an object may be older than what was written of it.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use kube::{
    ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::{sync::Notify, time::Instant};

use super::{
    Context,
    gateways::{self, Gateways},
};
use crate::{
    api::{Counts, Mailbell, MailbellStatus, Versions},
    desired::{gateway_pods, sizes},
    sizing::{Bounds, Sizer},
};

/// Counts that stand in the status are no older than this; they change all the time, and each change is a write.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Installations that are looked at at once.
const AT_ONCE: usize = 8;

/// The two parts whose numbers of pods change by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sized {
    Watchers,
    Gateways,
}

/// What is known of each installation.
#[derive(Debug, Default)]
pub(super) struct Loads {
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
    seen: Seen,
    /// What stands in the status, and since when.
    told: Option<(Instant, Seen)>,
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
}

impl Loads {
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
        let wanted = of.wanted(now, bounds(mailbell, part), pods);
        if wanted < pods.there {
            of.sizer.stepped(now);
        }
        wanted
    }

    /// What is to stand in the status.
    pub(super) fn tell(&self, mailbell: &Mailbell) -> Seen {
        let mut all = self.all();
        let load = of(&mut all, mailbell);
        load.told = Some((Instant::now(), load.seen.clone()));
        load.seen.clone()
    }

    /// The status that was last written; `None`: none was, by this operator.
    pub(super) fn status(&self, mailbell: &Mailbell) -> Option<MailbellStatus> {
        of(&mut self.all(), mailbell).status.clone()
    }

    /// Notes what was written.
    pub(super) fn is_said(&self, mailbell: &Mailbell, status: MailbellStatus) {
        of(&mut self.all(), mailbell).status = Some(status);
    }

    /// Notes what was seen, and says whether that is news.
    fn note(&self, mailbell: &Mailbell, shards: Option<Shards>, gateways: Option<Gateways>) {
        let now = Instant::now();
        let mut all = self.all();
        let load = of(&mut all, mailbell);
        let mailboxes = shards.as_ref().map(|shards| shards.mailboxes);
        let devices = gateways.as_ref().map(|gateways| gateways.devices);
        load.watchers.sizer.observe(now, mailboxes);
        load.gateways.sizer.observe(now, devices);
        load.seen = Seen::of(shards, gateways);
        let changes = [Sized::Watchers, Sized::Gateways]
            .into_iter()
            .any(|part| load.part(part).changes(now, bounds(mailbell, part)));
        let untold = match &load.told {
            Some((since, told)) => *told != load.seen && now.duration_since(*since) >= TELL_EVERY,
            None => true,
        };
        if changes || untold {
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
        *load = Load {
            uid: mailbell.metadata.uid.clone(),
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
    fn wanted(&self, now: Instant, bounds: Bounds, pods: Pods) -> i32 {
        let held = bounds.hold(pods.there);
        let wanted = self.sizer.wanted(now, pods.there, bounds);
        // The last one has not gone yet.
        if pods.settled {
            wanted
        } else {
            wanted.max(held)
        }
    }

    fn changes(&self, now: Instant, bounds: Bounds) -> bool {
        self.pods
            .is_some_and(|pods| self.wanted(now, bounds, pods) != pods.there)
    }
}

/// What the admin API knows of mailboxes and of watchers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Shards {
    mailboxes: u64,
    watched: u64,
    releases: BTreeSet<String>,
}

impl Seen {
    fn of(shards: Option<Shards>, gateways: Option<Gateways>) -> Self {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let counts = Counts {
            mailboxes: shards.as_ref().map(|shards| number(shards.mailboxes)),
            watched: shards.as_ref().map(|shards| number(shards.watched)),
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
            }),
        }
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
        stream::iter(all)
            .for_each_concurrent(AT_ONCE, |mailbell| async move {
                let (shards, gateways) =
                    tokio::join!(shards(context, &mailbell), gateways(context, &mailbell));
                context.loads.note(&mailbell, shards, gateways);
            })
            .await;
    }
}

async fn shards(context: &Context, mailbell: &Mailbell) -> Option<Shards> {
    let answer = async { context.admins.of(mailbell).await?.shards().await };
    let answer = match answer.await {
        Ok(answer) => answer,
        Err(error) => {
            context.admins.note(mailbell, &error);
            let installation = mailbell.name_any();
            tracing::debug!(installation, %error, "the admin API does not say how many mailboxes there are");
            return None;
        }
    };
    let live = answer.members.iter().filter(|member| member.owned > 0);
    Some(Shards {
        mailboxes: answer.totals.map(|totals| totals.accounts)?,
        watched: live.clone().map(|member| u64::from(member.watching)).sum(),
        releases: live.map(|member| member.release.clone()).collect(),
    })
}

async fn gateways(context: &Context, mailbell: &Mailbell) -> Option<Gateways> {
    let all: Vec<SocketAddr> = match &context.gateways {
        Some(all) => all.clone(),
        None => {
            let (host, port) = gateway_pods(mailbell);
            let found = tokio::net::lookup_host((host, port)).await;
            found.ok()?.collect()
        }
    };
    // A name is known everywhere only after a while: one that is missing would be one without devices.
    let ready = context.loads.ready(mailbell, Sized::Gateways)?;
    if all.len() < ready {
        return None;
    }
    gateways::ask(&all).await
}
