//! The reads that devices behind need: so many at a time, each of one bounded batch.
//!
//! What was read and does not fit into the device's queue is kept for its next room, for as many devices as may read at the
//! same time; the leftover of any other is read again. So the memory of replays is bounded whatever the devices do.
//!
//! A log that cannot be read is tried by one read at a time, with growing pauses. It holds back nobody who needs another log, but
//! for the one device whose turn it is to try: that one waits for the end of its try.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use mailbell_bus::Filter;
use mailbell_core::{
    backoff::Backoff,
    content::limit,
    cursor::Subject,
    delivery::{DeviceId, Replay},
    event::Fact,
    ids::{AccountId, Group, PerGroup, Position},
};
use mailbell_proto::push::v1::Health;
use mailbell_runtime::failpoint;
use tokio::{
    task::{Id, JoinSet},
    time::{Instant, timeout},
};

use crate::{
    clock::now_us,
    entry::SharedEntry,
    metrics::{Metrics, Outcome},
    records::Records,
    source::Source,
    tails::Tails,
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
    pub(crate) group: Group,
    /// `None`: it failed.
    pub(crate) read: Option<Read>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Replays {
    source: Arc<dyn Source>,
    tails: Arc<Tails>,
    records: Arc<Records>,
    metrics: Metrics,
    most: usize,
    running: JoinSet<Option<Read>>,
    /// Whose reads those are, and of which log.
    whose: HashMap<Id, (DeviceId, Group)>,
    waiting: VecDeque<DeviceId>,
    /// Devices that need nothing but what cannot be read now.
    parked: Vec<DeviceId>,
    staged: BTreeMap<DeviceId, Read>,
    logs: PerGroup<Log>,
}

/// What reads of one log have shown.
#[derive(Debug)]
struct Log {
    running: usize,
    /// Counts the failures since a read was good.
    backoff: Backoff,
    /// The last read failed: none is begun before.
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
            records: Arc::new(Records::new(Arc::clone(&source))),
            source,
            tails,
            metrics,
            most: most.max(1),
            running: JoinSet::new(),
            whose: HashMap::new(),
            waiting: VecDeque::new(),
            parked: Vec::new(),
            staged: BTreeMap::new(),
            logs: PerGroup::from_fn(|_| Log {
                running: 0,
                backoff: Backoff::new(
                    Duration::from_millis(50),
                    Duration::from_millis(200),
                    Duration::from_secs(5),
                ),
                paused_until: None,
            }),
        }
    }

    /// A device needs a read. It must not wait already.
    pub(crate) fn ask(&mut self, id: DeviceId) {
        self.waiting.push_back(id);
    }

    /// Puts a device aside whose turn it was, but which needs nothing that can be read now.
    pub(crate) fn park(&mut self, id: DeviceId) {
        self.parked.push(id);
    }

    /// Lets those put aside wait again once a pause is over.
    pub(crate) fn unpark(&mut self, now: Instant) {
        for (_, log) in self.logs.iter_mut() {
            if log.paused_until.is_some_and(|until| until <= now) {
                log.paused_until = None;
                self.waiting.extend(self.parked.drain(..));
            }
        }
    }

    /// Whether a read of this log may begin now.
    pub(crate) fn is_readable(&self, group: Group) -> bool {
        let log = &self.logs[group];
        log.paused_until.is_none() && (log.backoff.attempts() == 0 || log.running == 0)
    }

    /// The device whose read may begin now.
    pub(crate) fn next(&mut self) -> Option<DeviceId> {
        if self.running.len() >= self.most {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Begins a read.
    pub(crate) fn begin(&mut self, id: DeviceId, replay: Replay, subject: &Subject) {
        let (source, tails) = (Arc::clone(&self.source), Arc::clone(&self.tails));
        let records = Arc::clone(&self.records);
        let filter = filter(subject, &replay);
        let group = replay.group;
        let reading = read(source, tails, records, replay, filter);
        let task = self.running.spawn(reading);
        self.whose.insert(task.id(), (id, group));
        self.logs[group].running += 1;
    }

    /// Waits for the end of a read; for ever if none runs. Cancel-safe.
    pub(crate) async fn done(&mut self) -> Done {
        loop {
            let (task, read) = match self.running.join_next_with_id().await {
                Some(Ok(ended)) => ended,
                Some(Err(error)) => {
                    tracing::error!(%error, "a read for a replay ended by itself");
                    (error.id(), None)
                }
                None => std::future::pending().await,
            };
            // Each that runs is there.
            if let Some((id, group)) = self.whose.remove(&task) {
                return Done { id, group, read };
            }
        }
    }

    /// Takes note of how a read of this log went: after a failure the next one waits a while.
    pub(crate) fn note(&mut self, group: Group, ok: bool, now: Instant) {
        let log = &mut self.logs[group];
        log.running = log.running.saturating_sub(1);
        let outcome = if ok { "ok" } else { "failed" };
        self.metrics.reads.get_or_create(&Outcome { outcome }).inc();
        if !ok {
            log.paused_until = Some(now + log.backoff.next(&mut rand::rng()));
        } else if log.backoff.attempts() > 0 {
            log.backoff.reset();
            log.paused_until = None;
            self.waiting.extend(self.parked.drain(..));
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
    records: Arc<Records>,
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
    let Some(known) = records.of(accounts).await else {
        tracing::debug!(group = %replay.group, "records of accounts could not be read for a replay");
        return None;
    };
    let received_us = now_us();
    let entries = batch.entries.into_iter().filter_map(|entry| {
        let mut event = entry.event?;
        if let Some(most) = known.most.get(&entry.account) {
            limit(&mut event, *most);
        }
        if known.removed.contains(&entry.account) && !tells_of_removal(&event.fact) {
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
