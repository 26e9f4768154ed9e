//! Which partitions this process owns.

use mailbell_core::ids::{LogId, OwnerEpoch, Partition, Position};

use crate::{Bus, BusError};

/// What became of taking a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// It is ours.
    Taken(Taken),
    /// Another member holds it. A holder that is gone stops renewing, and its claim ages out of the bucket.
    Foreign {
        /// Who.
        member: String,
    },
}

/// A partition that is ours now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The number of this ownership; higher than any before, also if the bucket was lost.
    pub epoch: OwnerEpoch,
    /// What the owner before us left. `None`: nothing is known, so the checkpoints' own positions count.
    pub before: Option<Before>,
}

/// What an owner left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// The history in which `flushed` is a position.
    pub log_id: LogId,
    /// Every checkpoint of the partition covers the log up to there.
    pub flushed: Position,
    /// Whether it let go in order; else it was a crash of ours.
    pub released: bool,
}

/// A partition that is ours no longer: its sessions must stop at once, and nothing may be appended for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub partition: Partition,
    /// Of which ownership.
    pub epoch: OwnerEpoch,
    /// Why.
    pub reason: LostReason,
}

/// Why a partition was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostReason {
    /// Another claim stands there.
    Taken {
        /// Whose.
        member: String,
    },
    /// Our claim aged out, since we could not renew it in time: anybody may have had it meanwhile. It may be taken again.
    Expired,
}

/// The claims of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Claims {}

/// Where losses are told.
#[derive(Debug)]
pub struct LostClaims {}

impl LostClaims {
    /// The next loss; `None` once the bus is closed. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Lost> {
        todo!()
    }
}

impl Bus {
    /// The claims of this process as `member` (a pod, or a locked state directory) in this `incarnation` (random a start).
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn claims(
        &self,
        member: &str,
        incarnation: &str,
    ) -> Result<(Claims, LostClaims), BusError> {
        let _ = (member, incarnation);
        todo!()
    }
}

impl Claims {
    /// Takes partitions that nobody holds, that were released, or that an earlier incarnation of this member held. All at once:
    /// 1024 of them are well under a second.
    pub async fn take(&self, partitions: &[Partition]) -> Vec<(Partition, Result<Take, BusError>)> {
        let _ = partitions;
        todo!()
    }

    /// Notes that every checkpoint of the partition covers the log up to `position`; call it after their acknowledgements.
    /// Written with the next renewal or [`Claims::write`].
    pub fn flushed(&self, partition: Partition, log_id: LogId, position: Position) {
        let _ = (partition, log_id, position);
        todo!()
    }

    /// Writes the claims that changed since they were last written.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn write(&self) -> Result<(), BusError> {
        todo!()
    }

    /// Lets go of partitions, with what was last noted by [`Claims::flushed`].
    ///
    /// # Errors
    /// The first failure; the others are tried all the same. What could not be written ages out.
    pub async fn release(&self, partitions: &[Partition]) -> Result<(), BusError> {
        let _ = partitions;
        todo!()
    }

    /// What is ours.
    #[must_use]
    pub fn held(&self) -> Vec<(Partition, OwnerEpoch)> {
        todo!()
    }

    /// The number of our ownership of this partition, if it is ours.
    #[must_use]
    pub fn epoch(&self, partition: Partition) -> Option<OwnerEpoch> {
        let _ = partition;
        todo!()
    }
}
