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
}

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
