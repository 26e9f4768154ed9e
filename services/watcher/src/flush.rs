//! Letting claims move on: every checkpoint of a partition covers the log up to its `flushed`, so that whoever takes the
//! partition reads little.

use std::collections::{HashMap, HashSet};

use mailbell_bus::{BusError, Claims, Logs};
use mailbell_core::ids::{Group, LogId, Partition, Position};
use tokio::task::JoinSet;

use crate::registry::Registry;

/// Notes for each partition that is served how far it is flushed. The claims are written with their next renewal.
///
/// # Errors
/// Of the last group that did not answer; the claims of the others have moved.
pub(crate) async fn flush(
    logs: &Logs,
    claims: &Claims,
    registry: &Registry,
) -> Result<(), BusError> {
    let partitions = registry.partitions();
    let groups: HashSet<Group> = partitions.iter().copied().map(Partition::group).collect();
    // First where the logs end, then what is not stored yet: an event that lies below an end was in somebody's hands before.
    // All at once: one that does not answer must not make the others wait.
    let mut asked = JoinSet::new();
    for group in groups {
        let logs = logs.clone();
        asked.spawn(async move { (group, logs.ids().check(group).await) });
    }
    let mut tails: HashMap<Group, (LogId, Position)> = HashMap::new();
    let mut failed = None;
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((group, Ok((log_id, tail)))) => {
                tails.insert(group, (log_id, tail.last));
            }
            Ok((_, Err(error))) => failed = Some(error),
            // Cancelled: the process ends.
            Err(_) => failed = Some(BusError::Closed),
        }
    }
    for partition in partitions {
        if let Some((log_id, tail)) = tails.get(&partition.group()) {
            let bound = registry.bound(partition, *log_id).unwrap_or(*tail);
            claims.flushed(partition, *log_id, bound.min(*tail));
        }
    }
    failed.map_or(Ok(()), Err)
}
