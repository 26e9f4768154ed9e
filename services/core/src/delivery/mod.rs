//! Who gets what: the rules of the fan-out, without queues, sockets or reads.
//!
//! A [`Hub`] holds where this gateway stands in every log, a recent window of each, and for every attached device what it is
//! subscribed to and how far it was served. Whoever drives it (the gateway, the simulation) gives it the entries of the logs in
//! order, carries out the reads that devices behind need, and offers a [`Sink`] that queues frames.
//!
//! The rules that make a cursor true:
//!
//! * A group's position moves only after the entry was offered to every live device.
//! * A device whose queue is full is *behind* from the entry before: nothing of that group reaches it until everything
//!   between was read and queued, in order.
//! * A cursor says, for each group, what was queued to *this* device before it. Only devices that are live in all their groups
//!   share one.

mod hub;
mod resume;
#[cfg(test)]
mod tests;
mod window;

use std::fmt;

use bytes::Bytes;
use mailbell_proto::push::v1::{EventKind, ResyncReason};

pub use hub::{From, Hub, Replay, WindowLimits};
pub use resume::{LogState, Resume, resume};
pub use window::Window;

use crate::{
    cursor::Subject,
    ids::{AccountId, Group},
};

/// One entry of a log, as the hub needs to see it. Cheap to clone: it is shared by all devices.
pub trait Entry: Clone {
    /// Whose.
    fn account(&self) -> &AccountId;
    /// Which kind of fact.
    fn kind(&self) -> EventKind;
    /// What it takes in memory.
    fn bytes(&self) -> usize;
}

/// Names an attached device within one hub; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u64);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What may have a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    /// Everything that the device is subscribed to.
    Everything,
    /// One account.
    Account(AccountId),
}

/// What is queued for a device.
#[derive(Debug, Clone)]
pub enum Frame<E> {
    /// A fact.
    Entry(E),
    /// The resume point, encoded; within one round of offers the same buffer for all live devices.
    Cursor(Bytes),
    /// The resume point of this device alone, which is behind.
    OwnCursor(Bytes),
    /// The replay is over.
    Live,
    /// List what is concerned.
    Resync(Concerned, ResyncReason),
}

/// The queue of this device cannot take the frame now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Where frames go.
pub trait Sink<E> {
    /// Queues a frame.
    ///
    /// # Errors
    /// [`Full`]: the queue has reached its bound in frames or bytes; nothing was queued.
    fn push(&mut self, device: DeviceId, frame: Frame<E>) -> Result<(), Full>;
    /// Ends a device's stream with a status that makes it reconnect: it could not be told of a resync.
    fn close(&mut self, device: DeviceId);
}

/// A device's subscription.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Which accounts.
    pub subject: Subject,
    /// Which kinds: a bit set by number of the kind. Resync is always told.
    pub kinds: u32,
}

/// Every kind.
pub const ALL_KINDS: u32 = u32::MAX;

impl Subscription {
    fn wants(&self, kind: EventKind) -> bool {
        matches!(kind, EventKind::Resync | EventKind::Bulk) || self.kinds & (1 << kind as u32) != 0
    }

    /// Whether events of one of its accounts are stored there.
    #[must_use]
    pub fn concerns(&self, group: Group) -> bool {
        match &self.subject {
            Subject::Accounts(accounts) => accounts.iter().any(|account| account.group() == group),
            Subject::Tenant(_) => true,
        }
    }
}
