//! The reads that devices behind need: so many at a time, each of one bounded batch.
//!
//! What was read and does not fit into the device's queue is kept for its next room, for as many devices as may read at the
//! same time; the leftover of any other is read again. So the memory of replays is bounded whatever the devices do.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use mailbell_bus::Filter;
use mailbell_core::{
    backoff::Backoff,
    cursor::Subject,
    delivery::{DeviceId, Replay},
    event::Fact,
    ids::{AccountId, Position},
};
use mailbell_proto::push::v1::Health;
use mailbell_runtime::failpoint;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    clock::now_us,
    entry::SharedEntry,
    metrics::{Metrics, Outcome},
    source::Source,
    tails::Tails,
    tombstones::Tombstones,
};

/// How long one read may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What a read brought.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) replay: Replay,
    pub(crate) entries: Vec<(Position, SharedEntry)>,
    pub(crate) read_to: Position,
    /// The first sequence that the log held after the read.
    pub(crate) first: Position,
}

/// A read is over.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) id: DeviceId,
    /// `None`: it failed.
    pub(crate) read: Option<Read>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Replays {
    source: Arc<dyn Source>,
    tails: Arc<Tails>,
    tombstones: Arc<Tombstones>,
    metrics: Metrics,
    most: usize,
    running: JoinSet<Done>,
    waiting: VecDeque<DeviceId>,
    staged: BTreeMap<DeviceId, Read>,
    backoff: Backoff,
    /// A read failed: none is begun before.
    paused_until: Option<Instant>,
}

impl Replays {
    pub(crate) fn new(
        source: Arc<dyn Source>,
        tails: Arc<Tails>,
        metrics: Metrics,
        most: usize,
    ) -> Self {
        Self {
            tombstones: Arc::new(Tombstones::new(Arc::clone(&source))),
            source,
            tails,
            metrics,
            most: most.max(1),
            running: JoinSet::new(),
            waiting: VecDeque::new(),
            staged: BTreeMap::new(),
            backoff: Backoff::new(
                Duration::from_millis(50),
                Duration::from_millis(200),
                Duration::from_secs(5),
            ),
            paused_until: None,
        }
    }

    /// A device needs a read. It must not wait already.
    pub(crate) fn ask(&mut self, id: DeviceId) {
        self.waiting.push_back(id);
    }

    /// The device whose read may begin now.
    pub(crate) fn next(&mut self, now: Instant) -> Option<DeviceId> {
        if self.running.len() >= self.most || self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Begins a read.
    pub(crate) fn begin(&mut self, id: DeviceId, replay: Replay, subject: &Subject) {
        let (source, tails) = (Arc::clone(&self.source), Arc::clone(&self.tails));
        let tombstones = Arc::clone(&self.tombstones);
        let filter = filter(subject, &replay);
        self.running.spawn(async move {
            let read = read(source, tails, tombstones, replay, filter).await;
            Done { id, read }
        });
    }

    /// Waits for the end of a read; for ever if none runs. Cancel-safe. `None`: a read ended without saying whose it was.
    pub(crate) async fn done(&mut self) -> Option<Done> {
        match self.running.join_next().await {
            Some(Ok(done)) => Some(done),
            Some(Err(error)) => {
                tracing::error!(%error, "a read for a replay ended by itself");
                None
            }
            None => std::future::pending().await,
        }
    }

    /// Takes note of how it went: after a failure the next one waits a while.
    pub(crate) fn note(&mut self, ok: bool, now: Instant) {
        let outcome = if ok { "ok" } else { "failed" };
        self.metrics.reads.get_or_create(&Outcome { outcome }).inc();
        if ok {
            self.backoff.reset();
            self.paused_until = None;
        } else {
            self.paused_until = Some(now + self.backoff.next(&mut rand::rng()));
        }
    }

    /// Keeps what did not fit.
    pub(crate) fn stage(&mut self, id: DeviceId, read: Read) {
        self.staged.insert(id, read);
        if self.staged.len() > self.most {
            // The oldest stream's: any is as good, it is read again.
            self.staged.pop_first();
        }
    }

    /// What did not fit before.
    pub(crate) fn unstage(&mut self, id: DeviceId) -> Option<Read> {
        self.staged.remove(&id)
    }

    /// The device is gone. If it waits, it is passed over when its turn comes.
    pub(crate) fn forget(&mut self, id: DeviceId) {
        self.staged.remove(&id);
    }
}

fn filter(subject: &Subject, replay: &Replay) -> Filter {
    let accounts = match subject {
        Subject::Tenant(tenant) => return Filter::Tenant(tenant.clone()),
        Subject::Accounts(accounts) => accounts,
    };
    let mut here: Vec<_> = accounts
        .iter()
        .filter(|account| account.group() == replay.group)
        .cloned()
        .collect();
    match here.pop() {
        Some(only) if here.is_empty() => Filter::Account(only),
        Some(last) => {
            here.push(last);
            Filter::Accounts(here)
        }
        None => Filter::All,
    }
}

async fn read(
    source: Arc<dyn Source>,
    tails: Arc<Tails>,
    tombstones: Arc<Tombstones>,
    replay: Replay,
    filter: Filter,
) -> Option<Read> {
    let reading = source.read(replay.group, filter, replay.after, replay.up_to);
    let batch = match timeout(LIMIT, reading).await {
        Ok(Ok(batch)) => batch,
        Ok(Err(error)) => {
            tracing::debug!(group = %replay.group, %error, "a read for a replay failed");
            return None;
        }
        Err(_elapsed) => return None,
    };
    failpoint!("during-replay");
    // After the read: what had aged out before it came by would be missing in the middle.
    let log = tails.now(replay.group).await.ok()?;
    if log.log_id != replay.log_id {
        // The hub is about to hear of it too.
        return None;
    }
    let accounts: HashSet<AccountId> = batch
        .entries
        .iter()
        .map(|entry| entry.account.clone())
        .collect();
    let removed = tombstones.among(accounts).await;
    let received_us = now_us();
    let entries = batch.entries.into_iter().filter_map(|entry| {
        let event = entry.event?;
        if removed.contains(&entry.account) && !tells_of_removal(&event.fact) {
            return None;
        }
        let shared = SharedEntry::new(event, entry.stored_us, received_us);
        Some((entry.position, shared))
    });
    Some(Read {
        replay,
        entries: entries.collect(),
        read_to: batch.read_to,
        first: log.first,
    })
}

/// The one thing that a device still hears of an account that was removed.
fn tells_of_removal(fact: &Fact) -> bool {
    matches!(
        fact,
        Fact::AccountState {
            health: Health::Removed,
            ..
        }
    )
}
