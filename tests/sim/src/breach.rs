//! Which rule a history broke: so that a planted bug counts as found only where it shows as it should.

/// A kind of failure. What exactly happened is said by [`Failure`](crate::Failure) in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breach {
    /// What a session knows is not the fold of its log.
    NotTheFold,
    /// A checkpoint knows of a message that no log ever told.
    NeverTold,
    /// A checkpoint is stored over one that knew more of the log.
    GoesBack,
    /// A take-over forgot what was acknowledged to the owner before.
    Forgotten,
    /// A read that counts as whole lacks an entry of the log.
    NotWhole,
    /// A readable message is told unread.
    ToldUnread,
    /// A cursor claims an entry that was not queued before it.
    CursorOvertakes,
    /// An app is told something twice, in the wrong order, or of another's account.
    WronglyTold,
    /// A device never gets a message.
    MessageLacks,
    /// The number of an ownership is not above the one before.
    EpochNotAbove,
    /// A partition is taken from a member that lives and is acknowledged.
    TakenFromTheLiving,
    /// A partition is let go before its sessions have ended.
    ReleasedInUse,
    /// A member stops what is its own.
    StopsItsOwn,
    /// Two serve one partition for too long.
    ServedTwice,
    /// Nobody serves a partition for too long.
    ServedByNobody,
    /// Something never comes to rest, or goes round in circles.
    Restless,
    /// A machine asks for what its contract forbids, such as two writes of one record at once.
    Contract,
    /// The code, or the simulation, panicked.
    Panic,
    /// A seed that is played again becomes another history.
    NotRepeated,
}
