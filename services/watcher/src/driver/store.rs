//! Storing a checkpoint by compare-and-set, where an answer may get lost.

use std::sync::Arc;

use mailbell_bus::{BusError, state::Cas};
use mailbell_core::{checkpoint::Checkpoint, ids::AccountId, session::Op};

use super::Context;

/// What became of a checkpoint.
pub(super) enum Stored {
    Done {
        op: Op,
        revision: u64,
    },
    /// Not stored, or stored without an answer.
    Unsure {
        op: Op,
        checkpoint: Box<Checkpoint>,
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

/// `unsure`: an earlier one of ours that may have been stored. A conflict with one's own write is none.
pub(super) async fn store(
    context: Arc<Context>,
    account: AccountId,
    op: Op,
    checkpoint: Box<Checkpoint>,
    revision: Option<u64>,
    unsure: Option<Box<Checkpoint>>,
) -> Stored {
    let attempt = attempt(&context, &account, &checkpoint, revision, unsure.as_deref()).await;
    match attempt {
        Ok(Cas::Stored(revision)) => Stored::Done { op, revision },
        Ok(Cas::Conflict) => Stored::Conflict { op },
        Err(error) => {
            tracing::debug!(%account, %error, "a checkpoint could not be stored");
            Stored::Unsure { op, checkpoint }
        }
    }
}

async fn attempt(
    context: &Context,
    account: &AccountId,
    checkpoint: &Checkpoint,
    revision: Option<u64>,
    unsure: Option<&Checkpoint>,
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
    if found.value == *checkpoint {
        Ok(Cas::Stored(found.revision))
    } else if unsure == Some(&found.value) {
        put(found.revision).await
    } else {
        Ok(Cas::Conflict)
    }
}
