//! The accounts of this watcher and their sessions: who runs, who begins, who is over and why. What account records say is in
//! `records.rs`.

mod records;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use mailbell_core::{
    backoff::Backoff,
    ids::{AccountId, OwnerEpoch, Partition, Tenant},
    ownership::Flush,
    records::Merge,
    session::{Known, Stop},
};
use mailbell_proto::{
    bus::v1::{AccountRecord, MemberLoad},
    push::v1::Health,
};
use tokio::{
    task::{Id, JoinError, JoinSet},
    time::Instant,
};

pub(crate) use self::records::Reread;
use self::records::shared;
use crate::{
    acquire::Found,
    driver::{Context, Driver, End},
    quarantine::Quarantine,
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
    /// Crashed; to begin again later.
    Quarantined(Quarantine),
    /// A tombstone whose account is purged.
    Purged,
}

#[derive(Debug)]
struct Entry {
    record: Arc<AccountRecord>,
    state: State,
    crashes: Option<Box<Backoff>>,
}

impl Entry {
    const fn new(record: Arc<AccountRecord>) -> Self {
        Self {
            record,
            state: State::Resting,
            crashes: None,
        }
    }
}

/// A partition that is ours: it is being loaded, or its sessions run.
#[derive(Debug)]
struct Owned {
    /// Tells this ownership from one before or after it, also over a renewed claim.
    tenure: u64,
    /// When its claim was seen to be ours.
    since: Instant,
    /// That of the claim, as it was taken, and as it was renewed last.
    loaded: OwnerEpoch,
    epoch: OwnerEpoch,
    merge: Merge<AccountId, Arc<AccountRecord>>,
    entries: HashMap<AccountId, Entry>,
    /// Its sessions are to end in order, and none begins any more.
    handing_over: bool,
}

impl Owned {
    /// Whether this number was given to it, now or before a claim that had gone was taken again.
    fn is_of(&self, epoch: OwnerEpoch) -> bool {
        (self.loaded..=self.epoch).contains(&epoch)
    }
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
    /// Those that are ours or being loaded; of no other is anything kept.
    partitions: HashMap<Partition, Owned>,
    tenures: u64,
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
            partitions: HashMap::new(),
            tenures: 0,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            quarantined: BTreeSet::new(),
            purges: JoinSet::new(),
        }
    }

    /// These partitions were claimed and are being loaded: changes of their accounts are kept for [`Accounts::begin`].
    pub(crate) fn expect(&mut self, partitions: impl IntoIterator<Item = (Partition, OwnerEpoch)>) {
        for (partition, epoch) in partitions {
            let owned = self.owned(epoch);
            self.partitions.insert(partition, owned);
        }
    }

    fn owned(&mut self, epoch: OwnerEpoch) -> Owned {
        self.tenures += 1;
        Owned {
            tenure: self.tenures,
            since: Instant::now(),
            loaded: epoch,
            epoch,
            merge: Merge::reading(),
            entries: HashMap::new(),
            handing_over: false,
        }
    }

    /// By which claim a partition is ours now that was loaded by this one. `None`: it was lost meanwhile.
    pub(crate) fn still_ours(
        &self,
        partition: Partition,
        loaded: OwnerEpoch,
    ) -> Option<OwnerEpoch> {
        let owned = self.partitions.get(&partition)?;
        (owned.loaded == loaded).then_some(owned.epoch)
    }

    /// The sessions of these partitions begin, with what is known of them. Then their claims may move.
    pub(crate) fn begin(&mut self, partitions: &[(Partition, OwnerEpoch)], found: Found) {
        let Found {
            records,
            mut known,
            mut unreadable,
        } = found;
        let ours: HashMap<_, _> = partitions.iter().copied().collect();
        for read in records {
            let partition = read.partition;
            let Some(&epoch) = ours.get(&partition) else {
                continue;
            };
            // Whoever did not expect it has missed changes of it.
            let mut owned = self
                .partitions
                .remove(&partition)
                .unwrap_or_else(|| self.owned(epoch));
            let load = &self.context.metrics.load;
            load.observe(owned.since.elapsed().as_secs_f64());
            let all = owned.merge.on_read(read.version, shared(read.records));
            owned.epoch = epoch;
            owned.entries = all
                .into_iter()
                .map(|(account, record)| (account, Entry::new(record)))
                .collect();
            let accounts: Vec<AccountId> = owned.entries.keys().cloned().collect();
            self.partitions.insert(partition, owned);
            for account in accounts {
                let begin = match known.remove(&account) {
                    Some(known) => Begin::Known(known),
                    None => Begin::Alone(unreadable.remove(&account)),
                };
                self.start(&account, epoch, begin);
            }
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
        if let Some(owned) = self.partitions.get_mut(&partition) {
            owned.epoch = epoch;
        }
        self.registry.renew(partition, epoch);
    }

    /// A partition is somebody else's: its sessions end at once and write nothing. `false`: it was taken again since that
    /// ownership.
    pub(crate) fn lose(&mut self, partition: Partition, epoch: OwnerEpoch) -> bool {
        let Some(left) = self.registry.lose(partition, epoch) else {
            return false;
        };
        self.count(left);
        // It may be being loaded, by a newer claim.
        if self
            .partitions
            .get(&partition)
            .is_none_or(|owned| owned.epoch > epoch)
        {
            return true;
        }
        let lost = self.partitions.remove(&partition);
        for (account, entry) in lost.into_iter().flat_map(|owned| owned.entries) {
            // The task ends by itself; nobody waits for it any more.
            self.end(account, &entry);
        }
        true
    }

    /// Ends what there is of a session whose entry is gone.
    fn end(&mut self, account: AccountId, entry: &Entry) {
        if let Some(slot) = self.registry.session(&account) {
            slot.stop(Stop::Lost);
            self.registry.remove(&account);
        }
        if let State::Quarantined(quarantine) = &entry.state {
            self.quarantined.remove(&(quarantine.until(), account));
        }
    }

    fn entry(&mut self, account: &AccountId) -> Option<&mut Entry> {
        let owned = self.partitions.get_mut(&account.partition())?;
        owned.entries.get_mut(account)
    }

    fn start(&mut self, account: &AccountId, epoch: OwnerEpoch, begin: Begin) {
        let Some(entry) = self.entry(account) else {
            return;
        };
        if matches!(entry.state, State::Purged) {
            return;
        }
        let record = Arc::clone(&entry.record);
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
        if record.removed_at_ms > 0 {
            slot.stop(Stop::Removed);
        }
        self.registry.insert(Arc::clone(&slot));
        let run = run(Arc::clone(&self.context), slot, record, epoch, known);
        let task = self.tasks.spawn(run).id();
        self.running.insert(task, account.clone());
        if let Some(entry) = self.entry(account) {
            entry.state = State::Running {
                task,
                since: Instant::now(),
            };
        }
    }

    /// The next task that ended; never, if none runs. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        match self.tasks.join_next_with_id().await {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Notes how a session ended, and what follows. The partition, if it is being handed over.
    pub(crate) fn on_ended(&mut self, ended: Ended) -> Option<Partition> {
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
        let account = self.running.remove(&id)?;
        let partition = account.partition();
        let owned = self.partitions.get_mut(&partition)?;
        let handing_over = owned.handing_over.then_some(partition);
        let entry = owned.entries.get_mut(&account)?;
        let State::Running { task, since } = entry.state else {
            return handing_over;
        };
        if task != id {
            // Of an earlier ownership; another runs.
            return None;
        }
        entry.state = State::Resting;
        match end {
            Some(End::HandedOver) => {}
            // The next owner reads what there is.
            Some(End::Lost | End::Conflict) | None if handing_over.is_some() => {}
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
                entry.state = State::Quarantined(Quarantine::new(&self.context, &account, until));
                self.quarantined.insert((until, account));
            }
        }
        handing_over
    }

    /// Lets an account log in now if its login failed, or its session crashed, and it waits. One that watches, or is about to
    /// log in for the first time, is left alone.
    pub(crate) fn hurry(&mut self, account: &AccountId) {
        match self.entry(account).map(|entry| &entry.state) {
            Some(State::Running { .. }) => {
                let slot = self.registry.session(account);
                let waits = |slot: &Arc<Slot>| {
                    matches!(slot.health(), Health::Retrying | Health::ActionNeeded)
                };
                if let Some(slot) = slot.filter(waits) {
                    slot.hurry();
                }
            }
            Some(State::Quarantined(_)) => self.end_quarantine(account),
            Some(State::Resting | State::Purged) | None => {}
        }
    }

    /// Begins the session of an account that waits in quarantine, with the newest record.
    fn end_quarantine(&mut self, account: &AccountId) {
        let Some(State::Quarantined(quarantine)) = self.entry(account).map(|entry| &entry.state)
        else {
            return;
        };
        let waiting = (quarantine.until(), account.clone());
        // Not there: its partition is being handed over.
        if self.quarantined.remove(&waiting)
            && let Some(epoch) = self.registry.epoch(account.partition())
        {
            self.start(account, epoch, Begin::Alone(None));
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

    /// Tells the sessions of a partition to finish; none begins any more. `false`: that ownership is over.
    pub(crate) fn hand_over(&mut self, partition: Partition, epoch: OwnerEpoch) -> bool {
        let Some(owned) = self.partitions.get_mut(&partition) else {
            return false;
        };
        if owned.epoch != epoch {
            return false;
        }
        owned.handing_over = true;
        if let Some(left) = self.registry.lose(partition, epoch) {
            self.count(left);
        }
        let mut waiting = Vec::new();
        for (account, entry) in self
            .partitions
            .get(&partition)
            .into_iter()
            .flat_map(|owned| &owned.entries)
        {
            match &entry.state {
                State::Running { .. } => {
                    if let Some(slot) = self.registry.session(account) {
                        slot.stop(Stop::HandOver);
                    }
                }
                State::Quarantined(quarantine) => {
                    waiting.push((quarantine.until(), account.clone()));
                }
                State::Resting | State::Purged => {}
            }
        }
        for quarantined in waiting {
            self.quarantined.remove(&quarantined);
        }
        true
    }

    /// How many sessions of a partition run.
    pub(crate) fn running_in(&self, partition: Partition) -> usize {
        let entries = self.partitions.get(&partition).into_iter();
        entries
            .flat_map(|owned| owned.entries.values())
            .filter(|entry| matches!(entry.state, State::Running { .. }))
            .count()
    }

    /// Ends what is left of a partition that was handed over too slowly. What it did not store is in the log.
    pub(crate) fn cut_short(&mut self, partition: Partition) {
        let entries = self.partitions.get(&partition).into_iter();
        for account in entries.flat_map(|owned| owned.entries.keys()) {
            if let Some(slot) = self.registry.session(account) {
                slot.stop(Stop::Lost);
            }
        }
    }

    /// Forgets a partition that was let go.
    pub(crate) fn let_go(&mut self, partition: Partition, epoch: OwnerEpoch) {
        if self
            .partitions
            .get(&partition)
            .is_some_and(|owned| owned.is_of(epoch))
            && let Some(owned) = self.partitions.remove(&partition)
        {
            for (account, entry) in owned.entries {
                self.end(account, &entry);
            }
        }
    }

    /// How many accounts a partition has.
    pub(crate) fn accounts_in(&self, partition: Partition) -> u32 {
        let owned = self.partitions.get(&partition);
        owned.map_or(0, |owned| {
            u32::try_from(owned.entries.len()).unwrap_or(u32::MAX)
        })
    }

    /// The partitions whose load began within this time.
    pub(crate) fn loading(&self, within: Duration) -> impl Iterator<Item = Partition> {
        let loading = self.partitions.iter().filter(move |(partition, owned)| {
            owned.since.elapsed() < within && self.registry.epoch(**partition).is_none()
        });
        loading
            .filter(|(_, owned)| !owned.handing_over)
            .map(|(partition, _)| *partition)
    }

    /// How many accounts there are here, and how many seconds it takes until those of the mail host that takes longest have logged in, if
    /// so many do in a second; of some hosts none do, and of these tenants' accounts none.
    pub(crate) fn busiest_host(
        &self,
        paused: &HashSet<Tenant>,
        logins: impl Fn(&str) -> Option<u32>,
    ) -> (usize, f64) {
        let mut hosts: HashMap<&str, usize> = HashMap::new();
        let partitions = self.partitions.values();
        let mut all = 0;
        for (account, entry) in partitions.flat_map(|owned| &owned.entries) {
            all += 1;
            if !paused.contains(account.tenant()) {
                *hosts.entry(&entry.record.host).or_default() += 1;
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
        let times = hosts.iter().filter_map(|(host, accounts)| {
            logins(host).map(|logins| *accounts as f64 / f64::from(logins.max(1)))
        });
        (all, times.fold(0.0, f64::max))
    }

    /// What there is to do, as far as accounts go.
    pub(crate) fn load(&self) -> MemberLoad {
        let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
        let (sessions, watching, starting) = self.registry.count();
        MemberLoad {
            accounts: count(sessions),
            watching: count(watching),
            starting: count(starting),
            quarantined: count(self.quarantined.len()),
            ..MemberLoad::default()
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
    // In a box: a future that is given a value has room for it twice.
    let driver = Box::new(Driver::new(context, slot, record, epoch, known));
    driver.run().await
}

#[cfg(test)]
mod tests;
