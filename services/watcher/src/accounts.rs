//! The accounts of this watcher and their sessions: who runs, who begins, who is over and why.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use mailbell_core::{
    backoff::Backoff,
    ids::{AccountId, Group, OwnerEpoch, Partition},
    ownership::Flush,
    session::{Known, Stop},
};
use mailbell_proto::bus::v1::AccountRecord;
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};

use crate::{
    acquire::Found,
    driver::{Context, Driver, End},
    registry::Registry,
    reload::reload,
    slot::Slot,
};

/// A session that crashed begins again after a delay between these.
const QUARANTINE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// A session that ran for so long has recovered.
const RECOVERED: Duration = Duration::from_secs(900);

#[derive(Debug)]
enum State {
    /// Not ours, or nothing of it runs.
    Resting,
    Running {
        task: Id,
        since: Instant,
    },
    /// Crashed; to begin again then.
    Quarantined {
        until: Instant,
    },
    /// A tombstone whose account is purged.
    Purged,
}

#[derive(Debug)]
struct Entry {
    record: Arc<AccountRecord>,
    state: State,
    crashes: Option<Box<Backoff>>,
    /// Not told anew since its bucket was lost.
    unconfirmed: bool,
}

/// How a session begins.
enum Begin {
    /// With this.
    Known(Known),
    /// With what it loads by itself. Until then this bounds its partition's claim, or what bounded it before.
    Alone(Option<Flush>),
}

/// A task that ended.
pub(crate) type Ended = Result<(Id, End), JoinError>;

/// Owns the sessions.
pub(crate) struct Accounts {
    context: Arc<Context>,
    registry: Arc<Registry>,
    entries: HashMap<AccountId, Entry>,
    tasks: JoinSet<End>,
    running: HashMap<Id, AccountId>,
    quarantined: BTreeSet<(Instant, AccountId)>,
    /// Removals that are being carried out. Those that are cut short are taken up at the next start.
    purges: JoinSet<()>,
}

impl Accounts {
    pub(crate) fn new(context: Arc<Context>, registry: Arc<Registry>) -> Self {
        Self {
            context,
            registry,
            entries: HashMap::new(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            quarantined: BTreeSet::new(),
            purges: JoinSet::new(),
        }
    }

    /// The sessions of these partitions begin, with what is known of them. Then their claims may move.
    pub(crate) fn begin(&mut self, partitions: &[(Partition, OwnerEpoch)], found: Found) {
        let Found {
            mut known,
            mut unreadable,
        } = found;
        let ours: HashMap<_, _> = partitions.iter().copied().collect();
        let accounts: Vec<(AccountId, OwnerEpoch)> = self
            .entries
            .keys()
            .filter_map(|account| {
                let epoch = ours.get(&account.partition())?;
                Some((account.clone(), *epoch))
            })
            .collect();
        for (account, epoch) in accounts {
            let begin = match known.remove(&account) {
                Some(known) => Begin::Known(known),
                None => Begin::Alone(unreadable.remove(&account)),
            };
            self.start(&account, epoch, begin);
        }
        let served = self.registry.serve(ours);
        self.count(served);
    }

    fn count(&self, partitions: usize) {
        let count = i64::try_from(partitions).unwrap_or(i64::MAX);
        self.context.metrics.partitions.set(count);
    }

    /// A partition is ours by another claim, and nobody had it in between: what runs goes on.
    pub(crate) fn renew(&mut self, partition: Partition, epoch: OwnerEpoch) {
        self.context.metrics.claims_kept.inc();
        self.registry.renew(partition, epoch);
    }

    /// A partition is somebody else's: its sessions end at once and write nothing.
    pub(crate) fn lose(&mut self, partition: Partition, epoch: OwnerEpoch) -> bool {
        let Some(left) = self.registry.lose(partition, epoch) else {
            return false;
        };
        self.count(left);
        for (account, entry) in &mut self.entries {
            if account.partition() != partition {
                continue;
            }
            if let State::Quarantined { until } = entry.state {
                self.quarantined.remove(&(until, account.clone()));
            }
            if let Some(slot) = self.registry.session(account) {
                slot.stop(Stop::Lost);
                self.registry.remove(account);
            }
            // The task ends by itself; nobody waits for it any more.
            entry.state = State::Resting;
        }
        true
    }

    /// An account was added or changed.
    pub(crate) fn put(&mut self, account: AccountId, record: AccountRecord) {
        let record = Arc::new(record);
        let removed = record.removed_at_ms > 0;
        let entry = self
            .entries
            .entry(account.clone())
            .or_insert_with(|| Entry {
                record: Arc::clone(&record),
                state: State::Resting,
                crashes: None,
                unconfirmed: false,
            });
        entry.record = Arc::clone(&record);
        entry.unconfirmed = false;
        match entry.state {
            State::Running { .. } => {
                if let Some(slot) = self.registry.session(&account) {
                    if removed {
                        slot.stop(Stop::Removed);
                    } else {
                        slot.change(record);
                    }
                }
            }
            State::Resting => {
                if let Some(epoch) = self.registry.epoch(account.partition()) {
                    self.start(&account, epoch, Begin::Alone(None));
                }
            }
            // It begins with the newest record.
            State::Quarantined { .. } | State::Purged => {}
        }
    }

    /// The record is gone: its tombstone has aged out, or somebody deleted it.
    pub(crate) fn delete(&mut self, account: &AccountId) {
        let Some(entry) = self.entries.remove(account) else {
            return;
        };
        if let State::Quarantined { until } = entry.state {
            self.quarantined.remove(&(until, account.clone()));
        }
        if let Some(slot) = self.registry.session(account) {
            slot.stop(Stop::Lost);
            self.registry.remove(account);
        }
    }

    /// The bucket of this group is told anew.
    pub(crate) fn restarted(&mut self, group: Group) {
        for (account, entry) in &mut self.entries {
            if account.group() == group {
                entry.unconfirmed = true;
            }
        }
    }

    /// All of this group was told: what was not told is not there any more.
    pub(crate) fn loaded(&mut self, group: Group) {
        let gone: Vec<AccountId> = self
            .entries
            .iter()
            .filter(|(account, entry)| entry.unconfirmed && account.group() == group)
            .map(|(account, _)| account.clone())
            .collect();
        if !gone.is_empty() {
            tracing::error!(%group, accounts = gone.len(), "account records were lost: restore them from a backup");
        }
        for account in gone {
            self.delete(&account);
        }
    }

    fn start(&mut self, account: &AccountId, epoch: OwnerEpoch, begin: Begin) {
        let Some(entry) = self.entries.get_mut(account) else {
            return;
        };
        if matches!(entry.state, State::Purged) {
            return;
        }
        // What bounded the claim until now goes on to, until the session knows better.
        let (known, flush) = match begin {
            Begin::Known(known) => {
                let flush = Flush {
                    log_id: known.checkpoint.log_id,
                    bound: known.unstored_from.map(|from| from.saturating_sub(1)),
                };
                (Some(known), flush)
            }
            Begin::Alone(Some(flush)) => (None, flush),
            Begin::Alone(None) => {
                let before = self.registry.session(account);
                (None, before.map(|slot| slot.flush()).unwrap_or_default())
            }
        };
        let slot = Arc::new(Slot::new(account.clone(), flush));
        if entry.record.removed_at_ms > 0 {
            slot.stop(Stop::Removed);
        }
        self.registry.insert(Arc::clone(&slot));
        let run = run(
            Arc::clone(&self.context),
            slot,
            Arc::clone(&entry.record),
            epoch,
            known,
        );
        let task = self.tasks.spawn(run).id();
        self.running.insert(task, account.clone());
        entry.state = State::Running {
            task,
            since: Instant::now(),
        };
    }

    /// The next task that ended; never, if none runs. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        match self.tasks.join_next_with_id().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Notes how a session ended, and what follows.
    pub(crate) fn on_ended(&mut self, ended: Ended) {
        let (id, end) = match ended {
            Ok((id, end)) => (id, Some(end)),
            Err(error) => (error.id(), None),
        };
        let reason = match end {
            Some(End::HandedOver) => "handed-over",
            Some(End::Lost) => "lost",
            Some(End::Removed | End::Unknown) => "removed",
            Some(End::Conflict) => "conflict",
            None => "panicked",
        };
        self.context.metrics.ended(reason);
        let Some(account) = self.running.remove(&id) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&account) else {
            return;
        };
        let State::Running { task, since } = entry.state else {
            return;
        };
        if task != id {
            // Of an earlier ownership; another runs.
            return;
        }
        entry.state = State::Resting;
        match end {
            Some(End::HandedOver) => {}
            Some(end @ (End::Removed | End::Unknown)) => {
                entry.state = State::Purged;
                self.registry.remove(&account);
                let purge = self.context.ledger.purge(account, end == End::Removed);
                self.purges.spawn(purge);
                while self.purges.try_join_next().is_some() {}
            }
            // Lost although nobody told us: the claim is ours, so what is stored is read anew.
            Some(End::Lost | End::Conflict) | None => {
                tracing::error!(%account, reason, "a session ended by itself; it begins anew after a delay");
                if since.elapsed() >= RECOVERED {
                    entry.crashes = None;
                }
                let (first, most) = QUARANTINE;
                let crashes = entry
                    .crashes
                    .get_or_insert_with(|| Box::new(Backoff::new(first, first, most)));
                let until = Instant::now() + crashes.next(&mut rand::rng());
                entry.state = State::Quarantined { until };
                self.quarantined.insert((until, account));
            }
        }
    }

    /// When the next quarantine is over.
    pub(crate) fn quarantine_ends(&self) -> Option<Instant> {
        self.quarantined.first().map(|(until, _)| *until)
    }

    /// Begins the sessions whose quarantine is over.
    pub(crate) fn end_quarantines(&mut self) {
        let now = Instant::now();
        while let Some((until, _)) = self.quarantined.first()
            && *until <= now
            && let Some((_, account)) = self.quarantined.pop_first()
        {
            if let Some(epoch) = self.registry.epoch(account.partition()) {
                self.start(&account, epoch, Begin::Alone(None));
            }
        }
    }

    /// Tells every session to finish.
    pub(crate) fn hand_over(&mut self) {
        self.quarantined.clear();
        for account in self.running.values() {
            if let Some(slot) = self.registry.session(account) {
                slot.stop(Stop::HandOver);
            }
        }
    }

    /// How many sessions run.
    pub(crate) fn running(&self) -> usize {
        self.tasks.len()
    }

    /// Ends what is left, without any politeness.
    pub(crate) async fn abort(&mut self) {
        self.purges.shutdown().await;
        self.tasks.shutdown().await;
    }
}

/// One session from its load to its end.
async fn run(
    context: Arc<Context>,
    slot: Arc<Slot>,
    record: Arc<AccountRecord>,
    epoch: OwnerEpoch,
    known: Option<Known>,
) -> End {
    let known = match known {
        Some(known) => known,
        None => match Box::pin(reload(&context, &slot)).await {
            Ok(known) => known,
            Err(stop) => {
                slot.close();
                return stop;
            }
        },
    };
    let removed = record.removed_at_ms > 0;
    if removed && known.revision.is_none() && known.checkpoint.folders.is_empty() {
        // Nobody was told anything that would have to end.
        slot.close();
        return End::Unknown;
    }
    Driver::new(context, slot, record, epoch, known).run().await
}

#[cfg(test)]
mod tests;
