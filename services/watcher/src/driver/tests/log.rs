//! NATS in memory: a log, a checkpoint, a status, with the failures that a test wants.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use mailbell_bus::{
    BusError, Link,
    state::{Cas, Versioned},
};
use mailbell_core::{
    checkpoint::Checkpoint,
    event::{Event, Fact},
    ids::{AccountId, LogId, Position},
    schema::WriteVersion,
    session::{Outcome, Tail},
};
use mailbell_proto::{
    bus::v1::{AccountRecord, SealedCredential, StatusRecord},
    push::v1::Health,
};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

use crate::ledger::{Boxed, Ledger};

/// What becomes of the next append, or of the next store of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is stored and nobody says so.
    StoredUnanswered,
    /// It is not stored, and the connection broke.
    Broken,
    /// It is not stored, and that nobody answers is known after [`PATIENCE`].
    NoAnswer,
    /// It is not stored: there is no room.
    Refused,
    /// It is not stored: somebody else wrote the checkpoint.
    Conflict,
}

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
pub(crate) const LOG: LogId = LogId([7; 16]);

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) events: Vec<Event>,
    /// What reached the log, with the doubles that one with a duplicate window would not hold.
    pub(crate) appends: usize,
    pub(crate) append_fates: VecDeque<Fate>,
    pub(crate) store_fates: VecDeque<Fate>,
    pub(crate) checkpoint: Option<(Checkpoint, u64)>,
    pub(crate) statuses: Vec<(Instant, StatusRecord)>,
    pub(crate) credential: Option<SealedCredential>,
}

/// Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct MemoryLog {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) link: Arc<watch::Sender<Link>>,
    /// How many changes there were.
    changes: Arc<watch::Sender<u64>>,
}

impl MemoryLog {
    pub(crate) fn new() -> Self {
        let up = Link::Up {
            since: Instant::now(),
            lame_duck: false,
        };
        Self {
            state: Arc::default(),
            link: Arc::new(watch::channel(up).0),
            changes: Arc::new(watch::channel(0).0),
        }
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    pub(crate) fn set_up(&self, up: bool) {
        let since = Instant::now();
        self.link.send_replace(if up {
            Link::Up {
                since,
                lame_duck: false,
            }
        } else {
            Link::Down {
                since,
                refused: false,
            }
        });
    }

    /// The UIDs that arrived, in the order of the log.
    pub(crate) fn arrived(&self) -> Vec<u32> {
        let uid = |event: &Event| match event.fact {
            Fact::Arrived { uid, .. } => Some(uid),
            _ => None,
        };
        let state = self.state.lock().unwrap();
        state.events.iter().filter_map(uid).collect()
    }

    pub(crate) async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        let wait = changes.wait_for(|_| wanted(&self.state.lock().unwrap()));
        tokio::time::timeout(Duration::from_secs(7200), wait)
            .await
            .unwrap()
            .unwrap();
    }

    /// Waits until the newest status says this.
    pub(crate) async fn until_shown(&self, health: Health, code: &str) {
        self.until(|state| {
            let newest = state.statuses.last();
            newest
                .and_then(|(_, status)| status.state.as_ref())
                .is_some_and(|shown| shown.health() == health && shown.code == code)
        })
        .await;
    }

    pub(crate) async fn until_arrived(&self, uids: &[u32]) {
        let all = |state: &State| {
            let told = |uid: &u32| {
                state.events.iter().any(
                    |event| matches!(event.fact, Fact::Arrived { uid: found, .. } if found == *uid),
                )
            };
            uids.iter().all(told)
        };
        self.until(all).await;
        assert_eq!(self.arrived(), uids);
    }
}

fn position(index: usize) -> Position {
    u64::try_from(index).unwrap() + 1
}

impl Ledger for MemoryLog {
    fn append(&self, event: Box<Event>) -> Boxed<(Box<Event>, Outcome)> {
        let mut wait = None;
        let outcome = self.with(|state| {
            let fate = state.append_fates.pop_front();
            if fate == Some(Fate::Broken) {
                return Outcome::Disconnected;
            }
            state.appends += 1;
            match fate {
                Some(Fate::NoAnswer) => {
                    wait = Some(PATIENCE);
                    return Outcome::NoAnswer;
                }
                Some(Fate::Refused) => {
                    return Outcome::Refused {
                        code: "storage-full",
                        sentence: "There is no room.".to_owned(),
                    };
                }
                _ => {}
            }
            let known = state
                .events
                .iter()
                .position(|found| found.key() == event.key());
            let index = known.unwrap_or_else(|| {
                state.events.push((*event).clone());
                state.events.len() - 1
            });
            match fate {
                Some(_) => Outcome::NoAnswer,
                None => Outcome::Stored {
                    log_id: LOG,
                    position: position(index),
                },
            }
        });
        Box::pin(async move {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            (event, outcome)
        })
    }

    fn tail(&self, _: AccountId, _: LogId, after: Position) -> Boxed<Option<Tail>> {
        let tail = self.with(|state| Tail {
            log_id: LOG,
            events: state
                .events
                .iter()
                .enumerate()
                .map(|(index, event)| (position(index), event.clone()))
                .filter(|(position, _)| *position > after)
                .collect(),
            read_to: position(state.events.len()) - 1,
        });
        Box::pin(async move { Some(tail) })
    }

    fn load(&self, _: AccountId) -> Boxed<Result<Option<Versioned<Checkpoint>>, BusError>> {
        let found = self.with(|state| {
            state
                .checkpoint
                .clone()
                .map(|(value, revision)| Versioned { value, revision })
        });
        Box::pin(async move { Ok(found) })
    }

    fn store(
        &self,
        _: AccountId,
        checkpoint: Checkpoint,
        revision: u64,
    ) -> Boxed<Result<Cas, BusError>> {
        let outcome = self.with(|state| {
            let fate = state.store_fates.pop_front();
            if fate == Some(Fate::Broken) {
                return Err(BusError::Disconnected);
            }
            let stored = state.checkpoint.as_ref().map_or(0, |(_, found)| *found);
            if fate == Some(Fate::Conflict) || stored != revision {
                return Ok(Cas::Conflict);
            }
            // As it is while the release before may come back: not all that is known is stored.
            let stored = Checkpoint::from_record(&checkpoint.to_record(WriteVersion::FIRST));
            state.checkpoint = Some((stored, revision + 1));
            match fate {
                Some(_) => Err(BusError::Timeout(Duration::from_secs(5))),
                None => Ok(Cas::Stored(revision + 1)),
            }
        });
        Box::pin(async move { outcome })
    }

    fn credential(&self, _: AccountId) -> Boxed<Result<Option<SealedCredential>, BusError>> {
        let credential = self.with(|state| state.credential.clone());
        Box::pin(async move { Ok(credential) })
    }

    fn record(&self, _: AccountId) -> Boxed<Result<Option<AccountRecord>, BusError>> {
        Box::pin(async { Ok(None) })
    }

    fn status(&self, _: AccountId, record: StatusRecord) -> Boxed<bool> {
        self.with(|state| state.statuses.push((Instant::now(), record)));
        Box::pin(async { true })
    }

    fn purge(&self, _: AccountId, _: bool) -> Boxed<()> {
        self.with(|state| *state = State::default());
        Box::pin(async {})
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }
}

/// A log for each account.
#[derive(Debug, Clone)]
pub(crate) struct Logs(pub(crate) HashMap<AccountId, MemoryLog>);

impl Logs {
    fn of(&self, account: &AccountId) -> &MemoryLog {
        self.0.get(account).unwrap()
    }
}

impl Ledger for Logs {
    fn append(&self, event: Box<Event>) -> Boxed<(Box<Event>, Outcome)> {
        self.of(&event.account).append(event)
    }

    fn tail(&self, account: AccountId, log_id: LogId, after: Position) -> Boxed<Option<Tail>> {
        self.of(&account).tail(account, log_id, after)
    }

    fn load(&self, account: AccountId) -> Boxed<Result<Option<Versioned<Checkpoint>>, BusError>> {
        self.of(&account).load(account)
    }

    fn store(
        &self,
        account: AccountId,
        checkpoint: Checkpoint,
        revision: u64,
    ) -> Boxed<Result<Cas, BusError>> {
        self.of(&account).store(account, checkpoint, revision)
    }

    fn credential(&self, account: AccountId) -> Boxed<Result<Option<SealedCredential>, BusError>> {
        self.of(&account).credential(account)
    }

    fn record(&self, account: AccountId) -> Boxed<Result<Option<AccountRecord>, BusError>> {
        self.of(&account).record(account)
    }

    fn status(&self, account: AccountId, record: StatusRecord) -> Boxed<bool> {
        self.of(&account).status(account, record)
    }

    fn purge(&self, account: AccountId, told: bool) -> Boxed<()> {
        self.of(&account).purge(account, told)
    }

    fn link(&self) -> watch::Receiver<Link> {
        self.0.values().next().unwrap().link()
    }
}
