//! How far the log of a group had come before this process began.

use std::{collections::HashMap, sync::Arc};

use mailbell_bus::BusError;
use mailbell_core::ids::Group;
use tokio::{sync::OnceCell, task::JoinSet};

use crate::ledger::BusLedger;

/// Groups that are looked at in advance at once; each holds a batch of checkpoints in memory.
const GROUPS_AT_ONCE: usize = 2;

/// Looks at all checkpoints of a group, once a process, before anything of it is taken. Whatever partition one is of, it proves that
/// the log had come as far as it says, and is newer than what is written of that lazily: a log that is shorter now was cut, and must
/// not grow over the positions that devices hold.
#[derive(Debug)]
pub(crate) struct Proofs {
    groups: HashMap<Group, OnceCell<()>>,
}

impl Proofs {
    pub(crate) fn new() -> Self {
        let groups = Group::all().map(|group| (group, OnceCell::new()));
        Self {
            groups: groups.collect(),
        }
    }

    /// Looks at a group, unless that was done; who asks meanwhile waits for it.
    ///
    /// # Errors
    /// Why NATS did not answer: to be tried again.
    pub(crate) async fn see(&self, ledger: &BusLedger, group: Group) -> Result<(), BusError> {
        let Some(seen) = self.groups.get(&group) else {
            return Ok(());
        };
        let look = || async {
            let ids = ledger.logs.ids();
            let checkpoints = ledger.bus.checkpoints();
            checkpoints
                .scan_group(group, |(_, found)| {
                    if let Ok(found) = found {
                        let checkpoint = found.value;
                        ids.note_seen(group, checkpoint.log_id, checkpoint.position);
                    }
                })
                .await
        };
        seen.get_or_try_init(look).await.copied()
    }

    /// Looks at all groups in advance, so that nobody has to wait for it who takes partitions over. What does not answer is left to
    /// those.
    pub(crate) async fn see_all(self: Arc<Self>, ledger: BusLedger) {
        let mut looks = JoinSet::new();
        for group in Group::all() {
            if looks.len() >= GROUPS_AT_ONCE {
                looks.join_next().await;
            }
            let (proofs, ledger) = (Arc::clone(&self), ledger.clone());
            looks.spawn(async move {
                if let Err(error) = proofs.see(&ledger, group).await {
                    tracing::debug!(%group, %error, "checkpoints could not be looked at in advance");
                }
            });
        }
        while looks.join_next().await.is_some() {}
    }
}
