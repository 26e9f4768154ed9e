//! Letting claims move on: every checkpoint of a partition covers the log up to its `flushed`, so that whoever takes the
//! partition reads little.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use mailbell_bus::Logs;
use mailbell_core::ids::{Group, LogId, Partition, Position};
use tokio::task::JoinSet;

use crate::registry::Registry;

/// How far each of these partitions is flushed.
#[derive(Debug, Default)]
pub(crate) struct Flushed(pub(crate) Vec<(Partition, LogId, Position)>);

/// Looks how far these partitions are flushed; of those whose log does not answer nothing is known.
pub(crate) async fn flush(
    logs: Logs,
    registry: Arc<Registry>,
    partitions: Vec<Partition>,
) -> Flushed {
    let groups: HashSet<Group> = partitions.iter().copied().map(Partition::group).collect();
    // First where the logs end, then what is not stored yet: an event that lies below an end was in somebody's hands before.
    // All at once: one that does not answer must not make the others wait.
    let mut asked = JoinSet::new();
    for group in groups {
        let logs = logs.clone();
        asked.spawn(async move { (group, logs.ids().check(group).await) });
    }
    let mut tails: HashMap<Group, (LogId, Position)> = HashMap::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((group, Ok((log_id, tail)))) => {
                tails.insert(group, (log_id, tail.last));
            }
            Ok((group, Err(error))) => {
                tracing::debug!(%group, %error, "claims could not move on");
            }
            // Cancelled: the process ends.
            Err(_) => {}
        }
    }
    let mut flushed = Vec::new();
    for partition in partitions {
        if let Some((log_id, tail)) = tails.get(&partition.group()) {
            let bound = registry.bound(partition, *log_id).unwrap_or(*tail);
            flushed.push((partition, *log_id, bound.min(*tail)));
        }
    }
    Flushed(flushed)
}
