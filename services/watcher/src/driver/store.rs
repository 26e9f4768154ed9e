//! Storing a checkpoint by compare-and-set, where an answer may get lost.

use std::sync::Arc;

use mailbell_bus::{BusError, state::Cas};
use mailbell_core::{checkpoint::Checkpoint, ids::AccountId, session::Op};

use super::Context;

/// Of the checkpoints that may have been stored, so many are remembered. With more than that the oldest may be taken for
/// somebody else's, which costs no more than a new beginning.
const MOST_UNSURE: usize = 4;

/// Checkpoints of ours that may have been stored, each instead of the one before: nobody answered.
#[derive(Debug, Default)]
pub(super) struct Unsure(Vec<Checkpoint>);

impl Unsure {
    fn add(&mut self, checkpoint: Checkpoint) {
        if self.has(&checkpoint) {
            return;
        }
        if self.0.len() >= MOST_UNSURE {
            self.0.remove(0);
        }
        self.0.push(checkpoint);
    }

    fn has(&self, stored: &Checkpoint) -> bool {
        self.0.iter().any(|ours| ours.may_be_stored_as(stored))
    }
}

/// What became of a checkpoint.
pub(super) enum Stored {
    Done {
        op: Op,
        revision: u64,
    },
    /// Not stored, or stored without an answer.
    Unsure {
        op: Op,
        unsure: Unsure,
        error: BusError,
    },
    /// Somebody else wrote it.
    Conflict {
        op: Op,
    },
}

impl Stored {
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Done { .. } => "stored",
            Self::Unsure { .. } => "failed",
            Self::Conflict { .. } => "conflict",
        }
    }
}

/// `unsure`: earlier ones since the last that was stored for sure. A conflict with one's own write is none.
pub(super) async fn store(
    context: Arc<Context>,
    account: AccountId,
    op: Op,
    checkpoint: Box<Checkpoint>,
    revision: Option<u64>,
    mut unsure: Unsure,
) -> Stored {
    let attempt = attempt(&context, &account, &checkpoint, revision, &unsure).await;
    match attempt {
        Ok(Cas::Stored(revision)) => Stored::Done { op, revision },
        Ok(Cas::Conflict) => Stored::Conflict { op },
        Err(error) => {
            tracing::debug!(%account, %error, "a checkpoint could not be stored");
            unsure.add(*checkpoint);
            Stored::Unsure { op, unsure, error }
        }
    }
}

async fn attempt(
    context: &Context,
    account: &AccountId,
    checkpoint: &Checkpoint,
    revision: Option<u64>,
    unsure: &Unsure,
) -> Result<Cas, BusError> {
    let ledger = &context.ledger;
    let put = |revision| ledger.store(account.clone(), checkpoint.clone(), revision);
    let outcome = put(revision.unwrap_or_default()).await?;
    if outcome != Cas::Conflict {
        return Ok(outcome);
    }
    let Some(found) = ledger.load(account.clone()).await? else {
        // It was deleted under us: nobody but whoever removes the account does that.
        return Ok(Cas::Conflict);
    };
    // While the release before may still come back, not all of it is stored.
    if checkpoint.may_be_stored_as(&found.value) {
        Ok(Cas::Stored(found.revision))
    } else if unsure.has(&found.value) {
        put(found.revision).await
    } else {
        Ok(Cas::Conflict)
    }
}
