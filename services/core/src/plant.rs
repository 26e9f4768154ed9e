//! Bugs that the simulation plants to prove that it would find them. Without the feature `plant` none can be switched on.

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A checkpoint knows of an event before the log acknowledged it.
    CheckpointBeforeAck,
    /// A read is believed to be whole although the replica that answered may lag.
    TrustLaggingFollower,
    /// `Bulk` is appended after the newest messages of a flood.
    BulkAfterNewest,
    /// A Cursor frame is queued before the events that it covers.
    CursorOvertakesEvent,
    /// A cursor of another log's history is believed.
    ResumeIgnoresLogId,
    /// A claim that is older than what was seen already is believed.
    StaleClaimAccepted,
    /// A partition is let go before its sessions have stored what they know.
    ReleaseBeforeFlush,
    /// An observer judges others while its own renewals fail.
    JudgesWhileRenewalsFail,
    /// A take-over loads the checkpoints and ignores the log after them.
    TakeOverWithoutFold,
    /// The number of an ownership is not above the one before.
    EpochReused,
    /// A checkpoint is written over whatever is there.
    CheckpointOverwrites,
}

/// The expected revision by which [`Bug::CheckpointOverwrites`] says that it expects none.
pub const ANY_REVISION: u64 = u64::MAX;

#[cfg(feature = "plant")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug in this thread, or none.
    pub fn set(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "plant")]
pub(crate) use switch::is;
#[cfg(feature = "plant")]
pub use switch::set;

#[cfg(not(feature = "plant"))]
#[inline]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
