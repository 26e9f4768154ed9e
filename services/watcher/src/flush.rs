//! Letting claims move on: every checkpoint of a partition covers the log up to its `flushed`, so that whoever takes the
//! partition reads little.

use std::collections::HashMap;

use mailbell_bus::{BusError, Claims, Logs};
use mailbell_core::ids::{Group, LogId, Position};

use crate::registry::Registry;

/// Notes for each partition that is served how far it is flushed. The claims are written with their next renewal.
pub(crate) async fn flush(
    logs: &Logs,
    claims: &Claims,
    registry: &Registry,
) -> Result<(), BusError> {
    let partitions = registry.partitions();
    // First where the logs end, then what is not stored yet: an event that lies below an end was in somebody's hands before.
    let mut tails: HashMap<Group, (LogId, Position)> = HashMap::new();
    for group in Group::all() {
        if partitions
            .iter()
            .any(|partition| partition.group() == group)
        {
            let (log_id, tail) = logs.ids().check(group).await?;
            tails.insert(group, (log_id, tail.last));
        }
    }
    let log_id = |group| tails.get(&group).map(|(id, _)| *id).unwrap_or_default();
    let bounds = registry.bounds(log_id);
    for partition in partitions {
        if let Some((log_id, tail)) = tails.get(&partition.group()) {
            let bound = bounds.get(&partition).copied().unwrap_or(*tail);
            claims.flushed(partition, *log_id, bound.min(*tail));
        }
    }
    Ok(())
}
