//! One append in flight, until the log is known to hold it.
//!
//! Not acknowledged: the same event and id again, with less content if the policy got stricter. After a disconnect, or when the first try is
//! so old that the server may have forgotten its id, the account's tail is read from the leader first.

use std::{collections::VecDeque, time::Duration};

use mailbell_proto::push::v1::ContentLevel;

use super::types::{Now, Op};
use crate::{content::limit, event::Event, ids::Position};

/// Where the append in flight stands.
#[derive(Debug)]
pub(super) enum Flight {
    /// Nothing is in flight.
    None,
    /// Awaiting the log's answer.
    Sent {
        op: Op,
        event: Box<Event>,
        first: Duration,
    },
    /// To be tried again at `at`.
    Waiting {
        event: Box<Event>,
        first: Duration,
        at: Duration,
        /// Read the tail first.
        uncertain: bool,
    },
    /// Awaiting the tail.
    Reading { op: Op, event: Box<Event> },
}

/// What is to be appended, in order.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) flight: Flight,
    /// At most a page of messages and a few facts beside them.
    pub(super) queue: VecDeque<Event>,
    /// Where this session knew the log to be when the flight began: no claim may call more than that flushed meanwhile.
    pub(super) floor: Option<Position>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self {
            flight: Flight::None,
            queue: VecDeque::new(),
            floor: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty() && matches!(self.flight, Flight::None)
    }

    /// Whether the log is slow to answer or refuses: the mail connection should not wait for it.
    pub(super) fn stalled(&self) -> bool {
        matches!(self.flight, Flight::Waiting { .. } | Flight::Reading { .. })
    }

    /// Everything that waits or is in flight.
    pub(super) fn events(&self) -> impl Iterator<Item = &Event> {
        let flying = match &self.flight {
            Flight::None => None,
            Flight::Sent { event, .. }
            | Flight::Waiting { event, .. }
            | Flight::Reading { event, .. } => Some(&**event),
        };
        flying.into_iter().chain(&self.queue)
    }

    /// What is in flight says no more than this from its next try on. Neither its key nor its id depends on that.
    pub(super) fn limit(&mut self, most: ContentLevel) {
        match &mut self.flight {
            Flight::None => {}
            Flight::Sent { event, .. }
            | Flight::Waiting { event, .. }
            | Flight::Reading { event, .. } => limit(event, most),
        }
    }

    /// The answer to `op` was not an acknowledgement: try again after `delay`.
    pub(super) fn retry(&mut self, now: Now, delay: Duration, blind_retry: Duration, broken: bool) {
        self.flight = match std::mem::replace(&mut self.flight, Flight::None) {
            Flight::Sent { event, first, .. } => Flight::Waiting {
                event,
                first,
                at: now.mono + delay,
                uncertain: broken || (now.mono + delay).saturating_sub(first) >= blind_retry,
            },
            Flight::Reading { event, .. } => Flight::Waiting {
                event,
                first: now.mono,
                at: now.mono + delay,
                uncertain: true,
            },
            other => other,
        };
    }

    /// When the next retry is due.
    pub(super) fn due(&self) -> Option<Duration> {
        match self.flight {
            Flight::Waiting { at, .. } => Some(at),
            _ => None,
        }
    }
}
