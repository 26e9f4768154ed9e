//! Logs: append, where they stand, and what lies in them.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use mailbell_core::{
    event::Event,
    ids::{AccountId, Group, LogId, Position},
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    Bus, BusError, Filter, Follower, LogIds, LogReader, Metrics,
    api::{StreamInfo, StreamMessage, micros},
    log_ids::Absent,
    names::Names,
    wire::Wire,
};

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// It lies in the log, durably.
    Stored {
        /// Where.
        position: Position,
        /// Of which history. `None`: the history has just been found to be another and its id is not known yet.
        log_id: Option<LogId>,
        /// It was there before, from an earlier try; `position` is the first one's.
        duplicate: bool,
    },
    /// No acknowledgement within [`mailbell_core::timing::Timing::ack_timeout`]: it may be stored or not, or be stored later.
    NoAnswer,
    /// The connection broke, or was down: it may be stored or not, or be stored later.
    Disconnected,
    /// It is not stored.
    Refused {
        /// Why.
        class: Refusal,
        /// For a person.
        sentence: String,
    },
}

impl AppendOutcome {
    fn label(&self) -> &'static str {
        match self {
            Self::Stored {
                duplicate: false, ..
            } => "stored",
            Self::Stored {
                duplicate: true, ..
            } => "duplicate",
            Self::NoAnswer => "no-answer",
            Self::Disconnected => "disconnected",
            Self::Refused { class, .. } => match class {
                Refusal::StorageFull => "refused-full",
                Refusal::NoStream => "refused-no-stream",
                Refusal::Denied => "refused-denied",
                Refusal::TooLarge => "refused-too-large",
                Refusal::Other => "refused-other",
            },
        }
    }
}

/// Why an append was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No room on the server. (A log at its own limit drops its oldest events instead.)
    StorageFull,
    /// The log is not there, or has no leader at the moment.
    NoStream,
    /// This user may not.
    Denied,
    /// The event is too large; trying again is of no use.
    TooLarge,
    /// Another reason.
    Other,
}

/// Where a log stands, as its leader says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogTail {
    /// The lowest position that may still lie in it; `last + 1` if it is empty. What is below has aged out.
    pub first: Position,
    /// The highest position that was given away.
    pub last: Position,
    /// When its stream was created, in microseconds since the epoch: another one is another history.
    pub created_us: i64,
}

/// One entry of a log.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where.
    pub position: Position,
    /// When the server stored it, in microseconds since the epoch.
    pub stored_us: i64,
    /// Whose, by its subject.
    pub account: AccountId,
    /// What. `None`: a kind of a newer release, or bytes that no release has written; skip it.
    pub event: Option<Event>,
    /// The bytes as they lie in the log.
    pub bytes: Bytes,
}

impl LogTail {
    pub(crate) fn of(info: &StreamInfo) -> Result<Self, BusError> {
        let state = &info.state;
        // A log that was never written to says 0 and 0.
        let first = if state.messages == 0 {
            state.last_seq + 1
        } else {
            state.first_seq
        };
        Ok(Self {
            first,
            last: state.last_seq,
            created_us: micros(&info.created)?,
        })
    }
}

/// Turns messages of logs into entries.
#[derive(Debug, Clone)]
pub(crate) struct Opener {
    names: Names,
    metrics: Metrics,
}

impl Opener {
    pub(crate) fn new(bus: &Bus) -> Self {
        Self {
            names: bus.names().clone(),
            metrics: bus.wire().metrics().clone(),
        }
    }

    /// `None`: its subject is no account's, so nobody may see it.
    pub(crate) fn open(&self, message: StreamMessage) -> Option<Entry> {
        let damaged = |what: &str| {
            self.metrics.damaged.inc();
            tracing::warn!(
                position = message.sequence,
                what,
                "a log entry cannot be read"
            );
        };
        let Some(account) = self.names.account_of(&message.subject) else {
            damaged("subject");
            return None;
        };
        let event = match Event::decode(message.payload.clone()) {
            // Its subject decides who sees it.
            Ok(Some(event)) if event.account != account => {
                damaged("account");
                None
            }
            Ok(Some(event)) => Some(event),
            // Its position counts all the same, for whoever reads.
            Ok(None) => {
                self.metrics.unknown.inc();
                None
            }
            Err(_) => {
                damaged("event");
                None
            }
        };
        let (position, stored_us) = (message.sequence, message.time_us);
        Some(Entry {
            position,
            stored_us,
            account,
            event,
            bytes: message.payload,
        })
    }
}

/// The 16 logs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logs {
    bus: Bus,
    ids: LogIds,
}

impl Bus {
    /// The logs of the installation. Checks its `meta` record and loads the identities of the logs first.
    ///
    /// # Errors
    /// [`BusError::NotSetUp`], [`BusError::Layout`], or why NATS did not answer.
    pub async fn logs(&self) -> Result<Logs, BusError> {
        self.check_meta().await?;
        Ok(Logs {
            bus: self.clone(),
            ids: LogIds::start(self, Absent::Refused).await?,
        })
    }

    /// As [`Bus::logs`], but a log that does not answer now does not keep the others from being used. Whoever uses a log asks
    /// [`LogIds::check`] for it first, and again until it answers: before that its identity may not be known.
    ///
    /// # Errors
    /// As [`Bus::logs`]; also if not one log answers.
    pub async fn logs_that_answer(&self) -> Result<Logs, BusError> {
        self.check_meta().await?;
        Ok(Logs {
            bus: self.clone(),
            ids: LogIds::start(self, Absent::Tolerated).await?,
        })
    }
}

/// What a purge did.
#[derive(Deserialize)]
struct Purged {
    #[serde(default)]
    purged: u64,
}

impl Wire {
    pub(crate) async fn log_tail(&self, stream: &str) -> Result<LogTail, BusError> {
        let info = self
            .stream_info(stream)
            .await?
            .ok_or_else(|| BusError::NoStream(stream.to_owned()))?;
        LogTail::of(&info)
    }
}

impl Logs {
    /// The identities of the logs' histories.
    #[must_use]
    pub fn ids(&self) -> &LogIds {
        &self.ids
    }

    /// Appends an event to its account's log and waits for the acknowledgement, at most
    /// [`mailbell_core::timing::Timing::ack_timeout`]. Not retried here: the caller knows what a retry needs.
    pub async fn append(&self, event: &Event) -> AppendOutcome {
        let start = Instant::now();
        let outcome = self.try_append(event).await;
        let stored = matches!(outcome, AppendOutcome::Stored { .. });
        self.bus
            .wire()
            .metrics()
            .append(outcome.label(), stored.then(|| start.elapsed()));
        outcome
    }

    async fn try_append(&self, event: &Event) -> AppendOutcome {
        let payload = match event.encode() {
            Ok(payload) => payload,
            Err(error) => {
                return AppendOutcome::Refused {
                    class: Refusal::TooLarge,
                    sentence: error.to_string(),
                };
            }
        };
        let names = self.bus.names();
        let group = event.account.group();
        let stream = names.log_stream(group);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", event.message_id());
        // Another stream that took our subjects over would otherwise acknowledge.
        headers.insert("Nats-Expected-Stream", stream.as_str());
        let before = self.ids.seen(group);
        let published = self
            .bus
            .wire()
            .store(&names.log_subject(&event.account), Some(headers), payload)
            .await;
        let error = match published {
            Ok(Ok(ack)) => {
                let log_id = self.ids.on_ack(group, before, ack.seq, ack.duplicate).await;
                return AppendOutcome::Stored {
                    position: ack.seq,
                    log_id,
                    duplicate: ack.duplicate,
                };
            }
            Ok(Err(error)) => self.bus.wire().failed(error.into_bus(&stream)),
            Err(error) => error,
        };
        outcome_of(error)
    }

    /// Where the log of a group stands, from its leader.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn tail(&self, group: Group) -> Result<LogTail, BusError> {
        self.bus
            .wire()
            .log_tail(&self.bus.names().log_stream(group))
            .await
    }

    /// Reads what lies after `after`, up to and with `up_to`, which must come from [`Logs::tail`]: complete, whatever replica
    /// answers.
    #[must_use]
    pub fn read(
        &self,
        group: Group,
        filter: Filter,
        after: Position,
        up_to: Position,
    ) -> LogReader {
        LogReader::new(&self.bus, group, filter, after, up_to)
    }

    /// Follows a log from `from` on (that position included), without end and without loss.
    #[must_use]
    pub fn follow(&self, group: Group, from: Position) -> Follower {
        Follower::start(&self.bus, &self.ids, group, from)
    }

    /// Removes all events of an account. The positions stay unused: readers see a gap. Returns how many there were.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn purge_account(&self, account: &AccountId) -> Result<u64, BusError> {
        let names = self.bus.names();
        let stream = names.log_stream(account.group());
        let question = json!({ "filter": names.log_subject(account) });
        let wire = self.bus.wire();
        let subject = format!("$JS.API.STREAM.PURGE.{stream}");
        match wire
            .ask_api::<Purged>(&subject, &question, wire.patience().max(PURGE_PATIENCE))
            .await?
        {
            Ok(done) => Ok(done.purged),
            Err(error) => Err(wire.failed(error.into_bus(&stream))),
        }
    }
}

/// The server walks the log for it.
const PURGE_PATIENCE: Duration = Duration::from_secs(30);

fn outcome_of(error: BusError) -> AppendOutcome {
    let class = match error {
        BusError::Timeout(_) | BusError::Busy => return AppendOutcome::NoAnswer,
        BusError::Disconnected | BusError::Closed => return AppendOutcome::Disconnected,
        BusError::StorageFull(_) => Refusal::StorageFull,
        BusError::NoStream(_) => Refusal::NoStream,
        BusError::Denied(_) => Refusal::Denied,
        BusError::TooLarge(_) => Refusal::TooLarge,
        _ => Refusal::Other,
    };
    AppendOutcome::Refused {
        class,
        sentence: error.to_string(),
    }
}
