//! Taking partitions: the claim, then what is stored, then what the log has beyond it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use mailbell_bus::{Before, BusError, Claims, Filter, Take, Taken};
use mailbell_core::{
    backoff::Backoff,
    ids::{AccountId, Group, LogId, OwnerEpoch, Partition, Position},
    session::{Known, Stop},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    driver::{Context, End},
    ledger::BusLedger,
    slot::Slot,
};

/// Groups that are loaded at once; each holds its checkpoints and one batch of its log in memory.
const GROUPS_AT_ONCE: usize = 4;

/// What became of an attempt to take partitions.
#[derive(Debug, Default)]
pub(crate) struct Acquired {
    /// Ours now, and loaded.
    pub(crate) partitions: Vec<(Partition, OwnerEpoch)>,
    /// Everything that is stored, or in the log, of their accounts.
    pub(crate) known: HashMap<AccountId, Known>,
    /// Claims of ours that had aged out and that nobody took meanwhile: what runs goes on.
    pub(crate) kept: Vec<(Partition, OwnerEpoch)>,
    /// Held by other members.
    pub(crate) foreign: Vec<Partition>,
    /// Not answered; to be tried again.
    pub(crate) failed: usize,
}

/// Takes what can be taken of these partitions, and loads it. Goes on until everything that was taken is loaded: nobody else
/// would. The sessions of `expired` ones run: they need no load if nobody had the partition since.
pub(crate) async fn acquire(
    ledger: BusLedger,
    claims: Claims,
    partitions: Vec<Partition>,
    expired: HashSet<Partition>,
) -> Acquired {
    let mut acquired = Acquired::default();
    let mut groups: HashMap<Group, Vec<(Partition, Taken)>> = HashMap::new();
    for (partition, outcome) in claims.take(&partitions).await {
        match outcome {
            // Whoever had it would have left a claim. (One that aged out as well left checkpoints, which end our sessions.)
            Ok(Take::Taken(taken)) if expired.contains(&partition) && taken.before.is_none() => {
                acquired.kept.push((partition, taken.epoch));
            }
            Ok(Take::Taken(taken)) => {
                acquired.partitions.push((partition, taken.epoch));
                let group = groups.entry(partition.group()).or_default();
                group.push((partition, taken));
            }
            Ok(Take::Foreign { .. }) => acquired.foreign.push(partition),
            Err(error) => {
                tracing::debug!(%partition, %error, "a claim could not be taken");
                acquired.failed += 1;
            }
        }
    }
    let mut loads = JoinSet::new();
    let mut waiting = groups.into_iter();
    loop {
        while loads.len() < GROUPS_AT_ONCE
            && let Some((group, taken)) = waiting.next()
        {
            loads.spawn(load_until_done(ledger.clone(), group, taken));
        }
        match loads.join_next().await {
            Some(Ok(known)) => acquired.known.extend(known),
            // Cancelled with us, or a panic, which ends the watcher: nothing is known of these accounts.
            Some(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return Acquired::default(),
            },
            None => return acquired,
        }
    }
}

fn patience() -> Backoff {
    Backoff::new(
        Duration::from_millis(50),
        Duration::from_millis(200),
        Duration::from_secs(10),
    )
}

async fn load_until_done(
    ledger: BusLedger,
    group: Group,
    taken: Vec<(Partition, Taken)>,
) -> HashMap<AccountId, Known> {
    let mut backoff = patience();
    let mut said = Instant::now();
    loop {
        match load(&ledger, group, &taken).await {
            Ok(known) => return known,
            Err(error) => {
                if backoff.attempts() == 0 || said.elapsed() >= Duration::from_secs(10) {
                    said = Instant::now();
                    tracing::warn!(%group, %error, "what is known of accounts could not be loaded; it is tried again");
                }
            }
        }
        let wait = backoff.next(&mut rand::rng());
        sleep(wait).await;
    }
}

/// Loads the checkpoints of one group and folds in its log: one read for all partitions.
async fn load(
    ledger: &BusLedger,
    group: Group,
    taken: &[(Partition, Taken)],
) -> Result<HashMap<AccountId, Known>, BusError> {
    let ours: HashMap<Partition, Taken> = taken.iter().copied().collect();
    let mut known: HashMap<AccountId, Known> = ledger
        .bus
        .checkpoints()
        .load_group(group)
        .await?
        .into_iter()
        .filter(|(account, _)| ours.contains_key(&account.partition()))
        .map(|(account, found)| {
            let known = Known {
                checkpoint: found.value,
                revision: Some(found.revision),
                unstored_from: None,
            };
            (account, known)
        })
        .collect();
    let logs = &ledger.logs;
    // What was stored proves that the log had come so far, newer than what is written of it lazily: a log that is shorter now was
    // cut, and must not grow over the positions that devices hold.
    for before in ours.values().filter_map(|taken| taken.before) {
        logs.ids().note_seen(group, before.log_id, before.flushed);
    }
    for Known { checkpoint, .. } in known.values() {
        logs.ids()
            .note_seen(group, checkpoint.log_id, checkpoint.position);
    }
    let (log_id, tail) = logs.ids().check(group).await?;
    let mut begins: HashMap<Partition, Position> = HashMap::new();
    for (partition, taken) in &ours {
        begins
            .extend(fold_after(taken.before, log_id, tail.first).map(|after| (*partition, after)));
    }
    // Where nothing is known of the claim, the checkpoints' own positions count; who has none needs all.
    let Some(after) = begins.values().min().copied() else {
        return Ok(known);
    };
    let mut reader = logs.read(group, Filter::All, after, tail.last);
    while let Some(entries) = reader.next_batch().await? {
        for entry in entries {
            let Some(begin) = begins.get(&entry.account.partition()) else {
                continue;
            };
            if let Some(event) = entry.event
                && entry.position > *begin
            {
                let known = known.entry(entry.account).or_default();
                fold(known, log_id, entry.position, &event);
            }
        }
    }
    Ok(known)
}

/// After which position the log of a partition must be folded in; `None`: not at all.
fn fold_after(before: Option<Before>, log_id: LogId, first: Position) -> Option<Position> {
    match before {
        // Of what aged out the mailbox itself tells: catching up begins at the checkpoint as it is.
        Some(before) if before.log_id == log_id && before.flushed + 1 < first => None,
        Some(before) if before.log_id == log_id => Some(before.flushed),
        // Another history, or nothing is known: all that there is. What a checkpoint has in it is not folded again.
        Some(_) | None => Some(first.saturating_sub(1)),
    }
}

fn fold(known: &mut Known, log_id: LogId, position: Position, event: &mailbell_core::event::Event) {
    let checkpoint = &mut known.checkpoint;
    if checkpoint.log_id == log_id && position <= checkpoint.position {
        return;
    }
    checkpoint.fold(log_id, position, event);
    known.unstored_from.get_or_insert(position);
}

/// Loads what is known of one account whose session begins alone: it is new, or it crashed. Gives up only when the session is
/// told to stop.
pub(crate) async fn reload(context: &Arc<Context>, slot: &Slot) -> Result<Known, End> {
    let account = &slot.account;
    let mut backoff = patience();
    loop {
        let attempt = async {
            let found = context.ledger.load(account.clone()).await.ok()?;
            let mut known = found.map_or_else(Known::default, |found| Known {
                checkpoint: found.value,
                revision: Some(found.revision),
                unstored_from: None,
            });
            let (log_id, after) = (known.checkpoint.log_id, known.checkpoint.position);
            let tail = context.ledger.tail(account.clone(), log_id, after).await?;
            for (position, event) in &tail.events {
                fold(&mut known, tail.log_id, *position, event);
            }
            Some(known)
        };
        if let Some(known) = attempt.await {
            return Ok(known);
        }
        let wait = backoff.next(&mut rand::rng());
        let again = Instant::now() + wait;
        loop {
            match slot.stopping() {
                Some(Stop::Lost) => return Err(End::Lost),
                Some(Stop::HandOver) => return Err(End::HandedOver),
                // It is told once what is known is loaded.
                Some(Stop::Removed) | None => {}
            }
            tokio::select! {
                // A stop goes first; what else is told stays in the slot until the session looks, which it does at its start.
                biased;
                () = slot.notified() => {}
                () = tokio::time::sleep_until(again) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_claim_says_where_folding_begins() {
        let (one, two) = (LogId([1; 16]), LogId([2; 16]));
        let before = |log_id, flushed| {
            Some(Before {
                log_id,
                flushed,
                released: true,
            })
        };
        assert_eq!(fold_after(before(one, 40), one, 10), Some(40));
        assert_eq!(fold_after(before(one, 9), one, 10), Some(9));
        // The log no longer reaches back.
        assert_eq!(fold_after(before(one, 8), one, 10), None);
        assert_eq!(fold_after(before(two, 40), one, 1), Some(0));
        assert_eq!(fold_after(None, one, 11), Some(10));
    }
}
