//! Following a log with one ordered consumer.

use mailbell_core::ids::{LogId, Position};

use crate::{Entry, LogTail};

/// What a follower sees, in order.
#[derive(Debug)]
pub enum Followed {
    /// The consumer was made, or made anew after a broken connection, a restarted server or a missed message. What comes next is
    /// at `next` or above. Whoever keeps a position compares the log id with the one it knew, and `tail` with its position:
    /// `tail.first <= next` and `next <= tail.last + 1`, or something is missing.
    Made {
        /// The leader's answer, asked after the consumer was made.
        tail: LogTail,
        /// The history's id, checked against `tail`.
        log_id: LogId,
        /// The next position that is delivered, if it is still there.
        next: Position,
    },
    /// The log ends below where the consumer was to begin: it was cut or made anew, and the consumer would be mute until it
    /// had grown there. The log id has changed. The follower goes on at `next`, which is `tail.last + 1`.
    Cut {
        /// As it is now.
        tail: LogTail,
        /// The new history's id.
        log_id: LogId,
        /// Where it goes on.
        next: Position,
    },
    /// The positions from `from` to `to` are not in the log. If `tail.first <= from` they are those of purged accounts; else they
    /// have aged out before they were read.
    Jump {
        /// The first one that is missing.
        from: Position,
        /// The last one that is missing.
        to: Position,
        /// The leader's answer.
        tail: LogTail,
    },
    /// An entry.
    Entry(Entry),
}

/// One ordered consumer of a log. Reads only as fast as [`Follower::next`] is called: the server waits.
#[derive(Debug)]
pub struct Follower {}

impl Follower {
    /// What comes next; `None` once the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Followed> {
        todo!()
    }
}
