//! What one member knows of the claim to one partition, and what of it is on its way.

use std::time::Duration;

use mailbell_proto::bus::v1::Claim;

use super::Before;
use crate::ids::{LogId, OwnerEpoch, Position};

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) revision: u64,
    /// When it was seen first.
    pub(super) since: Duration,
    /// When it was seen last.
    pub(super) at: Duration,
    pub(super) claim: Option<Claim>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mine {
    pub(super) epoch: OwnerEpoch,
    pub(super) log_id: LogId,
    pub(super) flushed: Position,
    pub(super) accounts: u32,
    /// 0: not known, since the bucket is told anew, or nothing stands there.
    pub(super) revision: u64,
    /// When the last write of it was acknowledged.
    pub(super) written: Duration,
    /// When it is to be written again.
    pub(super) due: Duration,
    /// It aged out, and nobody has it as far as is known.
    pub(super) expired: bool,
    /// To be released, to this member if to any.
    pub(super) release: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Writing {
    Take {
        epoch: OwnerEpoch,
        before: Option<Before>,
    },
    Renew,
    Release,
    /// Of a stray one.
    Clear,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Slot {
    pub(super) seen: Option<Seen>,
    pub(super) mine: Option<Mine>,
    /// What is to stand there by a write that has not ended, or whose end is in doubt.
    pub(super) writing: Option<Writing>,
    /// The write has not ended.
    pub(super) sent: bool,
    pub(super) reading: bool,
    /// What is on its way was asked of a bucket that may have been another: its answer says nothing.
    pub(super) void: bool,
    /// When a read that failed is tried again.
    pub(super) again_at: Option<Duration>,
    /// The highest that was seen.
    pub(super) epoch: OwnerEpoch,
}

impl Slot {
    /// Whether something is on its way, or is to be found out first.
    pub(super) fn is_busy(&self) -> bool {
        self.writing.is_some() || self.reading || self.again_at.is_some()
    }

    pub(super) fn write(&mut self, what: Writing) {
        (self.writing, self.sent) = (Some(what), true);
    }
}
