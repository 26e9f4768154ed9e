//! Reading a log to know where things stand.
//!
//! A read is answered by whichever replica is near, which may lag behind the leader and doesn't say so. Who reads to know where
//! things stand (fold-in at a take-over, the tail after an unknown append, the end of a replay) asks the leader for its last
//! sequence first, and goes on until what answered is known to reach it.

use crate::{ids::Position, plant};

/// What to do after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Everything up to the target was read.
    Done,
    /// Read on from after this position.
    More(Position),
    /// The replica that answered may lag: the leader itself must say what comes after this position.
    AskLeader(Position),
}

/// A read that must reach a position which the leader named.
#[derive(Debug, Clone, Copy)]
pub struct ReadUpTo {
    at: Position,
    target: Position,
}

impl ReadUpTo {
    /// A read of what comes after `after`, up to and with `target`, the leader's last sequence.
    #[must_use]
    pub fn new(after: Position, target: Position) -> Self {
        Self { at: after, target }
    }

    /// Where to begin.
    #[must_use]
    pub fn first(&self) -> Next {
        if self.at >= self.target {
            Next::Done
        } else {
            Next::More(self.at)
        }
    }

    /// The position up to which all is read.
    #[must_use]
    pub fn at(&self) -> Position {
        self.at
    }

    /// A batch was read: `last` is its last sequence (`None`: it was empty), `more` whether what answered has more behind it,
    /// `replica_last` the last sequence that it knew of, if it said so.
    pub fn on_batch(
        &mut self,
        last: Option<Position>,
        more: bool,
        replica_last: Option<Position>,
    ) -> Next {
        if let Some(last) = last {
            self.at = self.at.max(last);
        }
        if self.at >= self.target {
            Next::Done
        } else if more && last.is_some() {
            Next::More(self.at)
        } else if plant::is(plant::Bug::TrustLaggingFollower)
            || replica_last.is_some_and(|known| known >= self.target)
        {
            self.at = self.target;
            Next::Done
        } else {
            Next::AskLeader(self.at)
        }
    }

    /// The leader's answer to [`Next::AskLeader`]: the next matching sequence, or that there is none.
    pub fn on_leader(&mut self, next: Option<Position>) -> Next {
        match next {
            Some(next) => {
                self.at = self.at.max(next);
                if self.at >= self.target {
                    Next::Done
                } else {
                    Next::More(self.at)
                }
            }
            None => {
                self.at = self.target;
                Next::Done
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lagging_replica_is_not_believed() {
        let mut read = ReadUpTo::new(5, 20);
        assert_eq!(read.first(), Next::More(5));
        assert_eq!(read.on_batch(Some(9), true, None), Next::More(9));
        assert_eq!(
            read.on_batch(Some(12), false, Some(15)),
            Next::AskLeader(12)
        );
        assert_eq!(read.on_leader(Some(17)), Next::More(17));
        assert_eq!(read.on_batch(None, false, None), Next::AskLeader(17));
        assert_eq!(read.on_leader(None), Next::Done);
        assert_eq!(read.at(), 20);
    }

    #[test]
    fn a_replica_that_reaches_the_target_is_enough() {
        let mut read = ReadUpTo::new(0, 20);
        assert_eq!(read.on_batch(Some(3), false, Some(20)), Next::Done);
        assert_eq!(ReadUpTo::new(20, 20).first(), Next::Done);
        assert_eq!(ReadUpTo::new(0, 0).first(), Next::Done);
    }
}
