//! How far the log of a group had come before this process took anything of it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mailbell_bus::{BusError, state::LoadedCheckpoint};
use mailbell_core::ids::Group;
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::Instant,
};

use crate::ledger::BusLedger;

/// Groups that are looked at at once; each holds a batch of checkpoints in memory.
const GROUPS_AT_ONCE: usize = 2;

/// Looks at all checkpoints of a group before anything of it is taken, and anew before something is taken from the dead. Whatever
/// partition one is of, it proves that the log had come as far as it says, and is newer than what is written of that lazily: a log that
/// is shorter now was cut, and must not grow over the positions that devices hold. Whoever gives a partition away says how far the log
/// had come by then.
#[derive(Debug)]
pub(crate) struct Proofs {
    fresh: Duration,
    turns: Semaphore,
    /// When each group was looked at.
    groups: HashMap<Group, Mutex<Option<Instant>>>,
}

impl Proofs {
    /// What was seen counts for so long, also where it is looked at anew.
    pub(crate) fn new(fresh: Duration) -> Self {
        let groups = Group::all().map(|group| (group, Mutex::new(None)));
        Self {
            fresh,
            turns: Semaphore::new(GROUPS_AT_ONCE),
            groups: groups.collect(),
        }
    }

    /// Looks at a group, unless that was done, or, to look `anew`, was done a short while ago; who asks meanwhile waits for it.
    ///
    /// # Errors
    /// Why NATS did not answer: to be tried again.
    pub(crate) async fn see(
        &self,
        ledger: &BusLedger,
        group: Group,
        anew: bool,
    ) -> Result<(), BusError> {
        let Some(seen) = self.groups.get(&group) else {
            return Ok(());
        };
        let mut seen = seen.lock().await;
        if seen.is_some_and(|at| !anew || at.elapsed() < self.fresh) {
            return Ok(());
        }
        let checkpoints = ledger.bus.checkpoints();
        // Nobody's turn is spent on a bucket that does not answer.
        checkpoints.probe(group).await?;
        let _turn = self.turns.acquire().await;
        let begun = Instant::now();
        let ids = ledger.logs.ids();
        let note = |(_, found): LoadedCheckpoint| {
            if let Ok(found) = found {
                let checkpoint = found.value;
                ids.note_seen(group, checkpoint.log_id, checkpoint.position);
            }
        };
        checkpoints.scan_group(group, note).await?;
        *seen = Some(begun);
        Ok(())
    }

    /// Looks at all groups anew and in advance, so that nobody has to wait for it who takes partitions over. What does not answer is left
    /// to those.
    pub(crate) async fn see_all(self: Arc<Self>, ledger: BusLedger) {
        let mut looks = JoinSet::new();
        for group in Group::all() {
            let (proofs, ledger) = (Arc::clone(&self), ledger.clone());
            looks.spawn(async move {
                if let Err(error) = proofs.see(&ledger, group, true).await {
                    tracing::debug!(%group, %error, "checkpoints could not be looked at in advance");
                }
            });
        }
        while looks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests;
