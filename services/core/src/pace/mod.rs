//! When a connection to a mail server may be begun, and by whom first.
//!
//! A [`Pacer`] keeps a queue for each host. Who is first in it may go when all of these say so:
//!
//! * the host's two token buckets, for connects and for logins: what this watcher's share of the installation leaves it of the
//!   operator's limits, for every host or for this one in particular, less while the server says "too many connections" (`throttle.rs`) or comes back from a failure;
//! * the host's circuit (`circuit.rs`): while it fails for many accounts, one probe goes at a time;
//! * the host's part of the handshakes, so that a slow one does not hold them all;
//! * the bucket and the number of handshakes of the whole process.
//!
//! Both tokens of a host are taken at once, since a connection and its login are one piece of work; the login's is given back
//! when the connection did not get that far.
//!
//! No clock and no await: the time is since some start, and whoever drives it calls [`Pacer::poll`] when [`Pacer::next_at`] says.

mod bucket;
mod circuit;
mod host;
mod pacer;
mod throttle;

use std::cmp::Reverse;

pub use pacer::{Counts, News, Pacer};

use crate::session::Known;

/// Who waits: answered by [`Pacer::enter`].
pub type Ticket = u64;

/// What the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Connections that this process begins a second.
    pub connects: u32,
    /// Connections that all watchers behind one address begin a second to one host.
    pub host_connects: u32,
    /// Logins that all watchers behind one address try a second at one host.
    pub host_logins: u32,
    /// Connections of this process that are between TCP and the end of the login at once; a quarter of them with one host.
    pub handshakes: usize,
}

/// Why somebody waits, which says who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A person waits for the answer: a check, a new password, a resumed account.
    Asked,
    /// A running session lost its connection. Before cold starts: it was watched a moment ago, and the thousands that a dead
    /// neighbour leaves behind must not darken the accounts that were never its.
    Reconnect,
    /// A session begins, or its last attempt failed.
    Start,
}

/// Who goes first. Among equals, who came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Urgency {
    cause: Cause,
    active_us: Reverse<i64>,
}

impl Urgency {
    /// `active_us`: when something last happened in the mailbox, in microseconds since the epoch.
    #[must_use]
    pub fn new(cause: Cause, active_us: i64) -> Self {
        Self {
            cause,
            active_us: Reverse(active_us),
        }
    }
}

/// When something last happened in the mailbox, as far as is known when its session begins, in microseconds since the epoch.
///
/// The last arrival, if one is known. Else: a checkpoint is stored after something was told, so its last look is about then.
/// What was folded in beyond a checkpoint happened since.
#[must_use]
pub fn last_active_us(known: &Known) -> i64 {
    if known.unstored_from.is_some() {
        return i64::MAX;
    }
    if known.checkpoint.last_arrival_us > 0 {
        return known.checkpoint.last_arrival_us;
    }
    let folders = &known.checkpoint.folders;
    let looks = folders.iter().map(|folder| folder.last_look_us);
    looks.max().unwrap_or_default()
}

/// What a connection says about its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Logged in, or refused for a reason of this account alone: the host works.
    Answered,
    /// The host asks to come back later.
    Throttled,
    /// No connection: refused, no route, no name, no TLS. The login was not tried.
    Unreachable,
    /// The connection stood, and then the host failed: silence, a broken connection, nonsense.
    Failing,
    /// Nothing: given up in the middle, or a failure of this machine.
    Unknown,
    /// It was not even begun.
    Unused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn an_arrival_says_more_than_a_look() {
        let looked = Checkpoint::first([("INBOX".to_owned(), 1, 10)], 90);
        let active = |checkpoint: Checkpoint, unstored_from| {
            last_active_us(&Known {
                checkpoint,
                revision: None,
                unstored_from,
            })
        };
        // One that the release before has stored.
        assert_eq!(active(looked.clone(), None), 90);
        let arrived = Checkpoint {
            last_arrival_us: 70,
            ..looked
        };
        assert_eq!(active(arrived.clone(), None), 70);
        assert_eq!(active(arrived, Some(5)), i64::MAX);
    }
}
