//! A twin of the bus in memory: logs that can be cut, replaced and expired at will, answers that can be held back.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mailbell_bus::{AskError, BusError, Entry, Filter, Followed, Link, LogTail, state::Change};
use mailbell_core::{
    delivery::LogState,
    event::Event,
    ids::{AccountId, Group, LogId, PerGroup, Position, Tenant},
};
use mailbell_proto::bus::v1::{AccountRecord, Issuer, OwnerRequest, OwnerResponse, StatusRecord};
use tokio::{sync::watch, time::Instant};

use super::{Batch, Changes, Follow, Source};
use crate::clock::now_us;

/// How long a leader takes for an answer.
const ANSWER: Duration = Duration::from_millis(5);
/// Entries in one batch of a read.
const BATCH: usize = 64;

type Owner = dyn Fn(&AccountId, OwnerRequest) -> Result<OwnerResponse, AskError> + Send + Sync;

/// See the module. Clones share the world.
#[derive(Clone)]
pub struct MemorySource {
    world: Arc<Mutex<World>>,
    /// Grows with every change of the world.
    version: Arc<watch::Sender<u64>>,
    link: Arc<watch::Sender<Link>>,
    log_ids: Arc<watch::Sender<PerGroup<LogId>>>,
    /// Reads wait while it is true.
    hold_reads: Arc<watch::Sender<bool>>,
}

struct World {
    logs: PerGroup<Log>,
    accounts: HashMap<AccountId, AccountRecord>,
    /// Nobody answers for these.
    held: HashSet<AccountId>,
    statuses: HashMap<AccountId, StatusRecord>,
    issuers: Vec<Change<String, Issuer>>,
    revocations: Vec<Change<(Tenant, String), i64>>,
    owner: Arc<Owner>,
    histories: u8,
    reads: usize,
    questions: usize,
}

#[derive(Debug, Default, Clone)]
struct Log {
    id: LogId,
    first: Position,
    last: Position,
    entries: BTreeMap<Position, Entry>,
    /// Grows when consumers are made anew.
    consumers: u64,
    /// It has no leader since then.
    away: Option<Instant>,
    /// Whoever follows it is told that the bus is closed.
    closed: bool,
}

impl Log {
    fn tail(&self) -> LogTail {
        LogTail {
            first: self.first,
            last: self.last,
            created_us: 0,
        }
    }

    fn answers(&self) -> Result<(), BusError> {
        match self.away {
            Some(_) => Err(BusError::Timeout(ANSWER)),
            None => Ok(()),
        }
    }

    fn forget_below(&mut self, first: Position) {
        self.first = self.first.max(first);
        let kept = self.entries.split_off(&self.first);
        self.entries = kept;
    }
}

impl fmt::Debug for MemorySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySource").finish_non_exhaustive()
    }
}

impl Default for MemorySource {
    fn default() -> Self {
        Self::new()
    }
}

impl MemorySource {
    /// Empty logs, nobody known, everything loaded.
    #[must_use]
    pub fn new() -> Self {
        let loaded = Group::all().next();
        let id = LogId([1; 16]);
        let world = World {
            logs: PerGroup::from_fn(|_| Log {
                id,
                first: 1,
                ..Log::default()
            }),
            accounts: HashMap::new(),
            held: HashSet::new(),
            statuses: HashMap::new(),
            issuers: loaded
                .map(|group| Change::Loaded { group })
                .into_iter()
                .collect(),
            revocations: loaded
                .map(|group| Change::Loaded { group })
                .into_iter()
                .collect(),
            owner: Arc::new(|_, _| Err(AskError::NoOwner)),
            histories: 1,
            reads: 0,
            questions: 0,
        };
        let since = Instant::now();
        let up = Link::Up {
            since,
            lame_duck: false,
        };
        Self {
            world: Arc::new(Mutex::new(world)),
            version: Arc::new(watch::Sender::new(0)),
            link: Arc::new(watch::Sender::new(up)),
            log_ids: Arc::new(watch::Sender::new(PerGroup::from_fn(|_| id))),
            hold_reads: Arc::new(watch::Sender::new(false)),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let value = change(&mut self.world());
        self.version.send_modify(|version| *version += 1);
        value
    }

    /// Appends an event; returns its position.
    pub fn append(&self, event: &Event) -> Position {
        self.change(|world| {
            let log = &mut world.logs[event.account.group()];
            log.last += 1;
            let entry = Entry {
                position: log.last,
                stored_us: now_us(),
                account: event.account.clone(),
                event: Some(event.clone()),
                bytes: event.content.clone(),
            };
            log.entries.insert(log.last, entry);
            log.last
        })
    }

    /// Removes the events of an account: a hole that is none.
    pub fn purge(&self, account: &AccountId) {
        self.change(|world| {
            let log = &mut world.logs[account.group()];
            log.entries.retain(|_, entry| entry.account != *account);
        });
    }

    /// Everything before this position ages out.
    pub fn expire(&self, group: Group, first: Position) {
        self.change(|world| world.logs[group].forget_below(first));
    }

    /// The log loses its end; somebody finds that out and gives it a new id.
    pub fn cut(&self, group: Group, last: Position) {
        self.new_history(group, |log| {
            log.entries.split_off(&(last + 1));
            log.last = last;
        });
    }

    /// The log is made anew, empty.
    pub fn replace(&self, group: Group) {
        self.new_history(group, |log| {
            log.entries.clear();
            (log.first, log.last) = (1, 0);
        });
    }

    fn new_history(&self, group: Group, change: impl FnOnce(&mut Log)) {
        let id = self.change(|world| {
            world.histories += 1;
            let id = LogId([world.histories; 16]);
            let log = &mut world.logs[group];
            change(log);
            log.id = id;
            log.consumers += 1;
            id
        });
        self.log_ids.send_modify(|ids| ids[group] = id);
    }

    /// The log loses its leader, or has one again: without, it does not answer and delivers nothing.
    pub fn set_away(&self, group: Group, away: bool) {
        self.change(|world| {
            let log = &mut world.logs[group];
            log.away = away.then(Instant::now);
            log.consumers += 1;
        });
    }

    /// Whoever follows this log is told that the bus is closed.
    pub fn close_log(&self, group: Group) {
        self.change(|world| world.logs[group].closed = true);
    }

    /// Consumers are made anew, as after a broken connection.
    pub fn remake_consumers(&self) {
        self.change(|world| {
            for (_, log) in world.logs.iter_mut() {
                log.consumers += 1;
            }
        });
    }

    /// The connection breaks: nothing is delivered or answered.
    pub fn disconnect(&self) {
        self.link.send_replace(Link::Down {
            since: Instant::now(),
            refused: false,
        });
    }

    /// The connection is there again, with new consumers.
    pub fn reconnect(&self) {
        let since = Instant::now();
        let lame_duck = false;
        self.link.send_replace(Link::Up { since, lame_duck });
        self.remake_consumers();
    }

    /// Holds reads back, or lets them go.
    pub fn hold_reads(&self, hold: bool) {
        self.hold_reads.send_replace(hold);
    }

    /// How many reads have begun.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.world().reads
    }

    /// How often a leader was asked where its log stands.
    #[must_use]
    pub fn questions(&self) -> usize {
        self.world().questions
    }

    /// Where a log ends.
    #[must_use]
    pub fn last(&self, group: Group) -> Position {
        self.world().logs[group].last
    }

    /// Adds an account.
    pub fn put_account(&self, account: &AccountId, record: AccountRecord) {
        self.change(|world| world.accounts.insert(account.clone(), record));
    }

    /// Holds back the record of an account for good.
    pub fn hold_account(&self, account: &AccountId) {
        self.change(|world| world.held.insert(account.clone()));
    }

    /// What an account's owner says of it.
    pub fn put_status(&self, account: &AccountId, record: StatusRecord) {
        self.change(|world| world.statuses.insert(account.clone(), record));
    }

    /// Adds a key that signs tokens.
    pub fn put_issuer(&self, issuer: Issuer) {
        let change = Change::Put {
            key: issuer.kid.clone(),
            value: issuer,
            revision: 1,
        };
        self.change(|world| world.issuers.push(change));
    }

    /// Withdraws a key that signs tokens.
    pub fn remove_issuer(&self, kid: &str) {
        let key = kid.to_owned();
        self.change(|world| world.issuers.push(Change::Removed { key }));
    }

    /// Revokes a token.
    pub fn revoke(&self, tenant: &Tenant, id: &str, expires_at_ms: i64) {
        let change = Change::Put {
            key: (tenant.clone(), id.to_owned()),
            value: expires_at_ms,
            revision: 1,
        };
        self.change(|world| world.revocations.push(change));
    }

    /// Who answers requests to owners.
    pub fn answer<F>(&self, owner: F)
    where
        F: Fn(&AccountId, OwnerRequest) -> Result<OwnerResponse, AskError> + Send + Sync + 'static,
    {
        self.change(|world| world.owner = Arc::new(owner));
    }

    fn connected(&self) -> Result<(), BusError> {
        match self.link.borrow().is_up() {
            true => Ok(()),
            false => Err(BusError::Disconnected),
        }
    }
}

#[tonic::async_trait]
impl Source for MemorySource {
    fn installation(&self) -> String {
        "main".to_owned()
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    fn log_ids(&self) -> watch::Receiver<PerGroup<LogId>> {
        self.log_ids.subscribe()
    }

    async fn log_state(&self, group: Group) -> Result<LogState, BusError> {
        // An answer takes its time: others may ask meanwhile.
        tokio::time::sleep(ANSWER).await;
        self.connected()?;
        let mut world = self.world();
        world.questions += 1;
        let log = &world.logs[group];
        log.answers()?;
        Ok(LogState {
            log_id: log.id,
            first: log.first,
            tail: log.last,
        })
    }

    fn follow(&self, group: Group, from: Position) -> Box<dyn Follow> {
        Box::new(MemoryFollower {
            source: self.clone(),
            group,
            next: from,
            made: None,
            lost: false,
        })
    }

    async fn read(
        &self,
        group: Group,
        filter: Filter,
        after: Position,
        up_to: Position,
    ) -> Result<Batch, BusError> {
        self.world().reads += 1;
        let mut hold = self.hold_reads.subscribe();
        // It never ends: the sender lives in `self`.
        let _ = hold.wait_for(|hold| !*hold).await;
        self.connected()?;
        let wanted = |entry: &&Entry| match &filter {
            Filter::All => true,
            Filter::Partition(partition) => entry.account.partition() == *partition,
            Filter::Tenant(tenant) => entry.account.tenant() == tenant,
            Filter::Account(account) => entry.account == *account,
            Filter::Accounts(accounts) => accounts.contains(&entry.account),
        };
        let world = self.world();
        world.logs[group].answers()?;
        let range = world.logs[group].entries.range(after + 1..=up_to);
        let entries: Vec<_> = range
            .map(|(_, entry)| entry)
            .filter(wanted)
            .take(BATCH)
            .cloned()
            .collect();
        let read_to = match entries.last() {
            Some(last) if entries.len() == BATCH => last.position,
            _ => up_to,
        };
        Ok(Batch { entries, read_to })
    }

    fn issuers(&self) -> Box<dyn Changes<String, Issuer>> {
        Box::new(MemoryChanges::new(self, |world| &world.issuers))
    }

    fn revocations(&self) -> Box<dyn Changes<(Tenant, String), i64>> {
        Box::new(MemoryChanges::new(self, |world| &world.revocations))
    }

    async fn status(&self, account: &AccountId) -> Result<Option<StatusRecord>, BusError> {
        self.connected()?;
        Ok(self.world().statuses.get(account).cloned())
    }

    async fn account(&self, account: &AccountId) -> Result<Option<AccountRecord>, BusError> {
        self.connected()?;
        let held = self.world().held.contains(account);
        if held {
            std::future::pending::<()>().await;
        }
        Ok(self.world().accounts.get(account).cloned())
    }

    async fn ask(
        &self,
        account: &AccountId,
        request: OwnerRequest,
        _timeout: Duration,
    ) -> Result<OwnerResponse, AskError> {
        self.connected().map_err(|_| AskError::Disconnected)?;
        let owner = Arc::clone(&self.world().owner);
        owner(account, request)
    }
}

struct MemoryFollower {
    source: MemorySource,
    group: Group,
    next: Position,
    /// The consumer that was told of.
    made: Option<u64>,
    /// It was told that this consumer is lost.
    lost: bool,
}

impl MemoryFollower {
    fn now(&mut self) -> Option<Followed> {
        self.source.connected().ok()?;
        let world = self.source.world();
        let log = &world.logs[self.group];
        let tail = log.tail();
        if let Some(since) = log.away {
            let told = std::mem::replace(&mut self.lost, true);
            return (self.made.is_some() && !told).then_some(Followed::Lost { since });
        }
        self.lost = false;
        if self.made != Some(log.consumers) {
            self.made = Some(log.consumers);
            let (log_id, end) = (log.id, log.last + 1);
            if self.next > end {
                self.next = end;
                return Some(Followed::Cut {
                    tail,
                    log_id,
                    next: end,
                });
            }
            return Some(Followed::Made {
                tail,
                log_id,
                next: self.next,
            });
        }
        let (position, entry) = log.entries.range(self.next..).next()?;
        if *position > self.next {
            let from = std::mem::replace(&mut self.next, *position);
            let to = *position - 1;
            return Some(Followed::Jump { from, to, tail });
        }
        self.next = position + 1;
        Some(Followed::Entry(entry.clone()))
    }
}

#[tonic::async_trait]
impl Follow for MemoryFollower {
    async fn next(&mut self) -> Option<Followed> {
        let mut version = self.source.version.subscribe();
        let mut link = self.source.link.subscribe();
        loop {
            if self.source.world().logs[self.group].closed {
                return None;
            }
            if let Some(followed) = self.now() {
                return Some(followed);
            }
            tokio::select! {
                // Both only say that it is worth another look.
                changed = version.changed() => changed.ok()?,
                changed = link.changed() => changed.ok()?,
            }
        }
    }
}

type History<K, V> = fn(&World) -> &Vec<Change<K, V>>;

struct MemoryChanges<K, V> {
    source: MemorySource,
    history: History<K, V>,
    told: usize,
}

impl<K, V> MemoryChanges<K, V> {
    fn new(source: &MemorySource, history: History<K, V>) -> Self {
        Self {
            source: source.clone(),
            history,
            told: 0,
        }
    }
}

#[tonic::async_trait]
impl<K, V> Changes<K, V> for MemoryChanges<K, V>
where
    K: Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    async fn next(&mut self) -> Option<Change<K, V>> {
        let mut version = self.source.version.subscribe();
        loop {
            let change = (self.history)(&self.source.world()).get(self.told).cloned();
            if change.is_some() {
                self.told += 1;
                return change;
            }
            version.changed().await.ok()?;
        }
    }
}
