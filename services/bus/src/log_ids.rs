//! The identity of each log's history.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use mailbell_core::{
    history::{Acknowledged, History, Seen, Verdict},
    ids::{GROUPS, Group, LogId, PerGroup, Position},
    schema::may_rewrite,
};
use mailbell_proto::bus::v1::LogIdentity;
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Bus, BusError, LogTail, Metrics,
    api::StreamMessage,
    consumer::{Delivery, Ordered, Start},
    kv,
    names::{Bucket, Names},
    state::Cas,
    wire::Wire,
};

/// The schema of [`LogIdentity`] that this release writes.
const SCHEMA: u32 = 1;
/// How often others may change a record between our reading and writing it before we give up.
const TRIES: u32 = 8;
/// A tail below what was seen is asked for this often before it is believed: a leader that was just deposed may answer once.
const CONFIRMATIONS: u32 = 2;

/// The log ids of all groups, as every process sees them. Whoever finds that a history is not the one that was known (another
/// creation time, a tail or an acknowledgement below what was seen) gives it a new id by compare-and-set.
#[derive(Debug, Clone)]
pub struct LogIds {
    shared: Arc<Shared>,
    /// Ends the tasks that keep up with the last handle.
    _alive: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    wire: Arc<Wire>,
    names: Names,
    metrics: Metrics,
    /// Cancelled with the bus, or when nobody asks any more.
    end: CancellationToken,
    known: Mutex<PerGroup<Known>>,
    ids: watch::Sender<PerGroup<LogId>>,
}

/// What is known of one log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Known {
    history: History,
    /// The highest position that was seen, as the record says.
    recorded: Position,
    /// The record's.
    revision: u64,
    /// The record's.
    schema: u32,
}

/// What a log means that does not answer at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// That there is no start.
    Refused,
    /// Nothing, as long as another one answers.
    Tolerated,
}

impl LogIds {
    /// Loads the ids, gives one to a log that has none, and keeps up with what other processes find.
    pub(crate) async fn start(bus: &Bus, absent: Absent) -> Result<Self, BusError> {
        let this = Self::load_and_check(bus, absent).await?;
        let period = bus.timing().checkpoint_delay.saturating_mul(10);
        tokio::spawn(keep_up(Arc::clone(&this.shared)));
        tokio::spawn(write_lazily(Arc::clone(&this.shared), period));
        Ok(this)
    }

    /// Loads the ids and gives one to a log that has none.
    pub(crate) async fn load_and_check(bus: &Bus, absent: Absent) -> Result<Self, BusError> {
        let (ids, _) = watch::channel(PerGroup::default());
        let shared = Arc::new(Shared {
            wire: Arc::clone(&bus.inner.wire),
            names: bus.names().clone(),
            metrics: bus.wire().metrics().clone(),
            end: bus.wire().closed().child_token(),
            known: Mutex::default(),
            ids,
        });
        let this = Self {
            _alive: Arc::new(shared.end.clone().drop_guard()),
            shared,
        };
        try_join_all(Group::all().map(|group| this.shared.load(group))).await?;
        let ids = &this;
        let checks = Group::all().map(|group| async move { (group, ids.check(group).await) });
        let mut failed = Vec::new();
        for (group, checked) in join_all(checks).await {
            match checked {
                Ok(_) => {}
                Err(error) if absent == Absent::Tolerated && error.is_retryable() => {
                    tracing::warn!(%group, %error, "a log does not answer; the others go on");
                    failed.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        if failed.len() == usize::from(GROUPS)
            && let Some(error) = failed.pop()
        {
            return Err(error);
        }
        Ok(this)
    }

    /// The id of a group's log.
    #[must_use]
    pub fn get(&self, group: Group) -> LogId {
        self.shared.known()[group].history.log_id
    }

    /// All ids, now and later.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<PerGroup<LogId>> {
        self.shared.ids.subscribe()
    }

    /// A position of this history that is known to exist. Cheap; written lazily, so that a cut is seen after a restart too.
    /// Appends and followers note theirs by themselves.
    pub fn note_seen(&self, group: Group, log_id: LogId, position: Position) {
        let known = &mut self.shared.known()[group];
        known.history.note_seen(log_id, position);
    }

    /// Asks the leader where the log stands and whether it is still the same history; gives it a new id if not.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn check(&self, group: Group) -> Result<(LogId, LogTail), BusError> {
        self.shared.check(group).await
    }

    pub(crate) fn seen(&self, group: Group) -> Seen {
        self.shared.known()[group].history.seen()
    }

    /// What an acknowledgement says of the history: the id under which the position counts, if that can be told.
    pub(crate) async fn on_ack(
        &self,
        group: Group,
        before: Seen,
        position: Position,
        duplicate: bool,
    ) -> Option<LogId> {
        let said = self.shared.known()[group]
            .history
            .on_ack(before, position, duplicate);
        match said {
            Acknowledged::In(log_id) => Some(log_id),
            Acknowledged::Elsewhere { of_the_next } => {
                let seen = before.position();
                tracing::warn!(%group, position, seen, "an acknowledgement of another history");
                // If nobody answers, the next check finds out.
                let (log_id, _tail) = self.check(group).await.ok()?;
                of_the_next.then_some(log_id)
            }
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, PerGroup<Known>> {
        // Nothing that holds the lock can leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(group: Group) -> String {
        format!("log.{group}")
    }

    /// Takes over a record, unless a newer one is known.
    fn apply(&self, group: Group, record: &LogIdentity, revision: u64) {
        let Some(log_id) = LogId::from_slice(&record.log_id) else {
            tracing::warn!(%group, "the record of a log's identity cannot be read");
            return;
        };
        let mut all = self.known();
        let known = &mut all[group];
        if revision <= known.revision {
            return;
        }
        let changed = known.history.log_id != log_id;
        known
            .history
            .apply(log_id, record.stream_created_us, record.highest_seen);
        known.recorded = record.highest_seen;
        known.revision = revision;
        known.schema = record.schema;
        drop(all);
        if changed {
            self.ids.send_modify(|ids| ids[group] = log_id);
        }
    }

    fn apply_message(&self, group: Group, message: &StreamMessage) {
        if message.removes {
            return;
        }
        match LogIdentity::decode(message.payload.clone()) {
            Ok(record) => self.apply(group, &record, message.sequence),
            Err(_) => tracing::warn!(%group, "the record of a log's identity cannot be read"),
        }
    }

    /// Reads the record. Any replica may answer: what is written on its ground is compared by revision.
    async fn load(&self, group: Group) -> Result<(), BusError> {
        let stream = self.names.bucket_stream(Bucket::Control);
        let subject = self.names.key_subject(Bucket::Control, &Self::key(group));
        if let Some(message) = self.wire.direct_last(&stream, &subject).await? {
            self.apply_message(group, &message);
        }
        Ok(())
    }

    async fn write(
        &self,
        group: Group,
        record: &LogIdentity,
        revision: u64,
    ) -> Result<Cas, BusError> {
        let key = Self::key(group);
        if !may_rewrite(self.known()[group].schema) {
            return Err(BusError::NewerRecord(key));
        }
        let bytes: Bytes = record.encode_to_vec().into();
        let subject = self.names.key_subject(Bucket::Control, &key);
        let cas = kv::put_expecting(&self.wire, &subject, bytes, revision).await?;
        if let Cas::Stored(revision) = cas {
            self.apply(group, record, revision);
        }
        Ok(cas)
    }

    async fn check(&self, group: Group) -> Result<(LogId, LogTail), BusError> {
        let stream = self.names.log_stream(group);
        let mut doubts = 0;
        for _ in 0..TRIES {
            // Before the question: what is seen while it is on its way is no proof.
            let known = self.known()[group];
            let tail = self.wire.log_tail(&stream).await?;
            let verdict = if known.revision > 0 {
                known.history.verdict(tail.created_us, tail.last)
            } else {
                Verdict::Another
            };
            if verdict == Verdict::Same {
                return Ok((known.history.log_id, tail));
            }
            // Somebody else may have found out before us.
            self.load(group).await?;
            let now = self.known()[group];
            if now.revision != known.revision {
                continue;
            }
            if verdict == Verdict::Short && doubts < CONFIRMATIONS {
                doubts += 1;
                tokio::time::sleep(self.wire.patience() / 20).await;
                continue;
            }
            if let Some(log_id) = self.give_new_id(group, known, tail).await? {
                return Ok((log_id, tail));
            }
        }
        Err(BusError::Garbled(
            "a log's identity that others keep changing",
        ))
    }

    /// `None`: somebody else changed the record meanwhile.
    async fn give_new_id(
        &self,
        group: Group,
        known: Known,
        tail: LogTail,
    ) -> Result<Option<LogId>, BusError> {
        let log_id = LogId(rand::random());
        let record = LogIdentity {
            schema: SCHEMA,
            log_id: Bytes::copy_from_slice(&log_id.0),
            stream_created_us: tail.created_us,
            highest_seen: tail.last,
        };
        match self.write(group, &record, known.revision).await? {
            Cas::Stored(_) => {
                if known.revision > 0 {
                    self.metrics.log_ids_changed.inc();
                    tracing::warn!(%group, seen = known.history.seen, last = tail.last, "the log is not the one it was");
                }
                Ok(Some(log_id))
            }
            Cas::Conflict => {
                // A replica may still show the old record: give it a moment.
                tokio::time::sleep(self.wire.patience() / 20).await;
                Ok(None)
            }
        }
    }
}

/// Follows the records.
async fn keep_up(shared: Arc<Shared>) {
    let stream = shared.names.bucket_stream(Bucket::Control);
    let filter = shared.names.key_subject(Bucket::Control, "log.*");
    let mut consumer = Ordered::new(
        Arc::clone(&shared.wire),
        stream,
        Some(filter),
        Start::LastPerSubject,
    );
    // What a delivery that is cut off would have said, nobody asks for.
    while let Some(Some(delivery)) = shared.end.run_until_cancelled(consumer.next()).await {
        match delivery {
            Delivery::Made {
                start: Start::From(next),
                info,
                ..
            } if info.state.last_seq + 1 < next => {
                // The bucket was made anew: its revisions begin again.
                shared
                    .known()
                    .iter_mut()
                    .for_each(|(_, known)| known.revision = 0);
                consumer.restart(Start::LastPerSubject);
            }
            Delivery::Made { .. } | Delivery::Lost { .. } => {}
            Delivery::Message { message, .. } => {
                let group = shared
                    .names
                    .key_of(Bucket::Control, &message.subject)
                    .and_then(|key| {
                        let number = key.strip_prefix("log.")?.parse().ok()?;
                        Group::new(number)
                    });
                if let Some(group) = group {
                    shared.apply_message(group, &message);
                }
            }
        }
    }
}

/// Writes the highest positions that were seen.
async fn write_lazily(shared: Arc<Shared>, period: Duration) {
    // Processes that start together would write together.
    let mut ticks = interval(period.mul_f64(1.0 + rand::random::<f64>() / 2.0));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.end.cancelled() => return,
            _ = ticks.tick() => {}
        }
        for group in Group::all() {
            let known = shared.known()[group];
            let history = known.history;
            if history.seen <= known.recorded || known.revision == 0 {
                continue;
            }
            let record = LogIdentity {
                schema: SCHEMA,
                log_id: Bytes::copy_from_slice(&history.log_id.0),
                stream_created_us: history.created_us,
                highest_seen: history.seen,
            };
            // A conflict: another process wrote it, and the watch brings that. An error: the next tick tries again.
            if let Err(error) = shared.write(group, &record, known.revision).await {
                tracing::debug!(%group, %error, "the highest position is not written");
            }
        }
    }
}
