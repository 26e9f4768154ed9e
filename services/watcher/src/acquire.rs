//! Taking partitions: the claim, then what is stored, then what the log has beyond it. Group by group, so that one whose streams
//! do not answer keeps none of the others waiting; and account by account, so that a checkpoint that cannot be read, or an event
//! that cannot be folded in, holds back nobody but its own account.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use mailbell_bus::{
    Before, BusError, Filter, caught, patience,
    state::{AccountReader, LoadedCheckpoint, PartitionRecords},
};
use mailbell_core::{
    event::Event,
    ids::{AccountId, Group, LogId, OwnerEpoch, Partition, Position},
    ownership::{Flush, fold, fold_after},
    session::Known,
};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{ledger::BusLedger, proofs::Proofs};

/// Groups that are loaded at once; each holds its checkpoints and one batch of its log in memory.
const GROUPS_AT_ONCE: usize = 4;
/// Up to so many partitions of a group's log are read one by one.
const SINGLY: usize = 4;

/// An ownership that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) epoch: OwnerEpoch,
    /// What the owner before left. `None`: nothing is known, so the checkpoints' own positions count.
    pub(crate) before: Option<Before>,
}

/// What is known of the accounts of partitions of one group.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) partitions: Vec<(Partition, OwnerEpoch)>,
    /// Everything that is stored, or in the log, of their accounts.
    pub(crate) found: Found,
}

/// See [`Loaded`].
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The account records of each partition.
    pub(crate) records: Vec<PartitionRecords>,
    /// Accounts of which all is known. Whoever is not here loads what there is of it by itself.
    pub(crate) known: HashMap<AccountId, Known>,
    /// Accounts whose checkpoint cannot be read, or whose log cannot be folded in, with what bounds the claim for as long as it is
    /// so: what the log has of them is not stored anywhere else.
    pub(crate) unreadable: HashMap<AccountId, Flush>,
}

/// Loads that are under way. Each goes on until it is done: nobody else would.
#[derive(Debug)]
pub(crate) struct Loads {
    reader: AccountReader,
    proofs: Arc<Proofs>,
    tasks: JoinSet<Loaded>,
    /// Groups that are being loaded, with what is to be loaded of them next: one read for as many partitions as there are.
    groups: HashMap<Group, Vec<(Partition, Taken)>>,
    attempts: Arc<Semaphore>,
}

impl Loads {
    /// With what reads account records, beside their changes.
    pub(crate) fn new(reader: AccountReader, proofs: Arc<Proofs>) -> Self {
        Self {
            reader,
            proofs,
            tasks: JoinSet::new(),
            groups: HashMap::new(),
            attempts: Arc::new(Semaphore::new(GROUPS_AT_ONCE)),
        }
    }

    /// Begins to load what was taken.
    pub(crate) fn begin(&mut self, ledger: &BusLedger, taken: Vec<(Partition, Taken)>) {
        let mut groups: HashMap<Group, Vec<(Partition, Taken)>> = HashMap::new();
        for (partition, taken) in taken {
            let group = groups.entry(partition.group()).or_default();
            group.push((partition, taken));
        }
        for (group, taken) in groups {
            if let Some(next) = self.groups.get_mut(&group) {
                next.extend(taken);
            } else {
                self.spawn(ledger, group, taken);
            }
        }
    }

    fn spawn(&mut self, ledger: &BusLedger, group: Group, taken: Vec<(Partition, Taken)>) {
        self.groups.insert(group, Vec::new());
        let load = Load {
            ledger: ledger.clone(),
            reader: self.reader.clone(),
            group,
            taken,
            proofs: Arc::clone(&self.proofs),
        };
        let attempts = Arc::clone(&self.attempts);
        self.tasks.spawn(load_until_done(load, attempts));
    }

    /// What was taken of a group while another part of it was loaded.
    pub(crate) fn go_on(&mut self, ledger: &BusLedger, loaded: &Loaded) {
        let first = loaded.partitions.first();
        let Some(group) = first.map(|(partition, _)| partition.group()) else {
            return;
        };
        if let Some(next) = self.groups.remove(&group)
            && !next.is_empty()
        {
            self.spawn(ledger, group, next);
        }
    }

    /// Whether nothing is being loaded.
    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The next load that is done; never, if there is none. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Loaded {
        match self.tasks.join_next().await {
            Some(Ok(loaded)) => loaded,
            // A panic ends the watcher: nothing is known of these accounts.
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => pending().await,
            },
            None => pending().await,
        }
    }
}

/// What one task loads.
struct Load {
    ledger: BusLedger,
    reader: AccountReader,
    group: Group,
    taken: Vec<(Partition, Taken)>,
    proofs: Arc<Proofs>,
}

async fn load_until_done(load_of: Load, attempts: Arc<Semaphore>) -> Loaded {
    let mut backoff = patience();
    let mut said = Instant::now();
    let group = load_of.group;
    let given = |taken: &Taken| taken.before.is_some_and(|before| before.released);
    let anew = !load_of.taken.iter().all(|(_, taken)| given(taken));
    loop {
        // Held for an attempt only: a group that does not answer leaves the others their turn.
        let attempt = async {
            // Nobody's turn is spent on a bucket that is not there, or while its group is looked at.
            load_of.reader.until_followed(group).await?;
            load_of.proofs.see(&load_of.ledger, group, anew).await?;
            let _turn = attempts.acquire().await;
            load(&load_of).await
        };
        match attempt.await {
            Ok(found) => {
                let partitions = load_of
                    .taken
                    .iter()
                    .map(|(partition, taken)| (*partition, taken.epoch))
                    .collect();
                return Loaded { partitions, found };
            }
            Err(error) => {
                if backoff.attempts() == 0 || said.elapsed() >= Duration::from_secs(10) {
                    said = Instant::now();
                    tracing::warn!(%group, %error, "what is known of accounts could not be loaded; it is tried again");
                }
            }
        }
        let wait = backoff.next(&mut rand::rng());
        sleep(wait).await;
    }
}

/// Loads records and checkpoints of partitions of one group and folds in its log: one read for all partitions.
async fn load(load: &Load) -> Result<Found, BusError> {
    let Load {
        ledger,
        reader,
        group,
        taken,
        proofs: _,
    } = load;
    let group = *group;
    let ours: HashMap<Partition, Taken> = taken.iter().copied().collect();
    let partitions: Vec<Partition> = ours.keys().copied().collect();
    let mut known: HashMap<AccountId, Known> = HashMap::new();
    let mut unreadable: HashMap<AccountId, Flush> = HashMap::new();
    let (logs, checkpoints) = (&ledger.logs, ledger.bus.checkpoints());
    let on_checkpoint = |(account, found): LoadedCheckpoint| {
        // These prove how far the log had come, too, and may be newer than what was looked at before.
        if let Ok(found) = &found {
            let checkpoint = &found.value;
            logs.ids()
                .note_seen(group, checkpoint.log_id, checkpoint.position);
        }
        if !ours.contains_key(&account.partition()) {
            return;
        }
        match found {
            Ok(found) => {
                let found = Known {
                    checkpoint: found.value,
                    revision: Some(found.revision),
                    unstored_from: None,
                };
                unreadable.remove(&account);
                known.insert(account, found);
            }
            Err(_) => {
                known.remove(&account);
                unreadable.insert(account, Flush::default());
            }
        }
    };
    // Before the checkpoints: one that the admin API made is there before its account's record, so an account that is found without
    // one has none.
    let records = reader.partitions(group, &partitions).await?;
    let loaded = checkpoints.load_partitions(group, &partitions).await?;
    loaded.into_iter().for_each(on_checkpoint);
    // So does what a claim calls flushed.
    for before in ours.values().filter_map(|taken| taken.before) {
        logs.ids().note_seen(group, before.log_id, before.flushed);
    }
    let (log_id, tail) = logs.ids().check(group).await?;
    let mut begins: HashMap<Partition, Position> = HashMap::new();
    for (partition, taken) in &ours {
        let before = taken.before.map(|before| (before.log_id, before.flushed));
        let after = fold_after(before, log_id, tail.first);
        begins.extend(after.map(|after| (*partition, after)));
    }
    let bound = |begin: Option<&Position>| Flush {
        log_id,
        bound: Some(begin.copied().unwrap_or_default()),
    };
    for (account, flush) in &mut unreadable {
        *flush = bound(begins.get(&account.partition()));
    }
    // Where nothing is known of the claim, the checkpoints' own positions count; who has none needs all.
    let Some(after) = begins.values().min().copied() else {
        return Ok(Found {
            records,
            known,
            unreadable,
        });
    };
    // A few are read one by one: the log of a group holds those of 64.
    let reads: Vec<(Filter, Position)> = if begins.len() <= SINGLY {
        let single =
            |(partition, begin): (&Partition, &Position)| (Filter::Partition(*partition), *begin);
        begins.iter().map(single).collect()
    } else {
        vec![(Filter::All, after)]
    };
    for (filter, after) in reads {
        let mut reader = logs.read(group, filter, after, tail.last);
        while let Some(entries) = reader.next_batch().await? {
            for entry in entries {
                let Some(begin) = begins.get(&entry.account.partition()) else {
                    continue;
                };
                if let Some(event) = entry.event
                    && entry.position > *begin
                    && !unreadable.contains_key(&entry.account)
                {
                    let of = known.entry(entry.account.clone()).or_default();
                    if !folds(of, log_id, entry.position, &event) {
                        let (account, position) = (entry.account, entry.position);
                        tracing::error!(%account, position, "an event of an account cannot be folded in");
                        known.remove(&account);
                        unreadable.insert(account, bound(Some(begin)));
                    }
                }
            }
        }
    }
    // Who has no checkpoint, and nothing in what was read, begins with nothing: there is nothing more to ask about it. Not so one
    // that was removed: if its checkpoint was lost, only all of its log says whether devices are to be told.
    let folded = |read: &&PartitionRecords| begins.contains_key(&read.partition);
    for (account, record) in records.iter().filter(folded).flat_map(|read| &read.records) {
        if record.removed_at_ms == 0 && !unreadable.contains_key(account) {
            known.entry(account.clone()).or_default();
        }
    }
    Ok(Found {
        records,
        known,
        unreadable,
    })
}

/// Folds in one event of an account; `false`: that panicked, and what is known of it is worth nothing. It must not end the watcher,
/// and then each that takes the partition after it: the account's session, which tries it again by itself, is quarantined.
fn folds(known: &mut Known, log_id: LogId, position: Position, event: &Event) -> bool {
    let work = || {
        #[cfg(test)]
        assert_ne!(event.detected_us, tests::POISON, "a planted panic");
        fold(known, log_id, position, event);
    };
    caught(work).is_some()
}

#[cfg(test)]
mod tests;
