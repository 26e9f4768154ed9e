//! Which accounts were removed, for those who read the past: what a log still holds of them is told to nobody.
//!
//! Their owner purges the log soon after the removal; until then, and where no watcher lives to do it, readers skip such events.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use mailbell_core::ids::AccountId;
use tokio::time::{Instant, timeout};

use crate::source::Source;

/// An account that was there is looked at again after this time.
const FRESH: Duration = Duration::from_secs(30);
/// What is remembered, some 100 bytes each.
const MOST: usize = 16 * 1024;
/// Records that are asked for at once.
const AT_ONCE: usize = 8;
/// How long it may take to look at a batch's accounts. What is not known by then is told: facts may be told, and must not be
/// held back.
const LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
enum Seen {
    /// For good: an id is never used again.
    Removed,
    There(Instant),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tombstones {
    source: Arc<dyn Source>,
    seen: Mutex<HashMap<AccountId, Seen>>,
}

impl Tombstones {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<AccountId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of these accounts that have a tombstone.
    pub(crate) async fn among(&self, accounts: HashSet<AccountId>) -> HashSet<AccountId> {
        let mut removed = HashSet::new();
        let mut asked = Vec::new();
        {
            let (seen, now) = (self.seen(), Instant::now());
            for account in accounts {
                match seen.get(&account) {
                    Some(Seen::Removed) => {
                        removed.insert(account);
                    }
                    Some(Seen::There(at)) if now < *at + FRESH => {}
                    _ => asked.push(account),
                }
            }
        }
        let look = async |account: AccountId| {
            let record = self.source.account(&account).await.ok()?;
            // One that is not there at all says nothing: the record may be lost.
            let tombstone = record.is_some_and(|record| record.removed_at_ms != 0);
            Some((account, tombstone))
        };
        let looks = stream::iter(asked)
            .map(look)
            .buffer_unordered(AT_ONCE)
            .for_each(|found| {
                if let Some((account, tombstone)) = found {
                    if tombstone {
                        removed.insert(account.clone());
                    }
                    self.note(account, tombstone);
                }
                std::future::ready(())
            });
        // What was found until then counts.
        let _ = timeout(LIMIT, looks).await;
        removed
    }

    fn note(&self, account: AccountId, removed: bool) {
        let mut seen = self.seen();
        let now = Instant::now();
        if seen.len() >= MOST {
            seen.retain(|_, seen| matches!(seen, Seen::There(at) if now < *at + FRESH));
            if seen.len() >= MOST {
                seen.clear();
            }
        }
        let what = match removed {
            true => Seen::Removed,
            false => Seen::There(now),
        };
        seen.insert(account, what);
    }
}

#[cfg(test)]
mod tests {
    use mailbell_proto::bus::v1::AccountRecord;
    use tokio::time::advance;

    use super::*;
    use crate::source::memory::MemorySource;

    fn account(n: usize) -> AccountId {
        format!("t.01ARZ3NDEKTSV4RRFFQ6{n:06}").parse().unwrap()
    }

    fn record(removed_at_ms: i64) -> AccountRecord {
        AccountRecord {
            removed_at_ms,
            ..AccountRecord::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_is_seen_soon_and_for_good() {
        let source = MemorySource::new();
        let tombstones = Tombstones::new(Arc::new(source.clone()));
        let all = || HashSet::from([account(1), account(2), account(3)]);
        source.put_account(&account(1), record(5));
        source.put_account(&account(2), record(0));
        // The third has no record at all.
        assert_eq!(tombstones.among(all()).await, [account(1)].into());
        source.put_account(&account(1), record(0));
        source.put_account(&account(2), record(6));
        assert_eq!(tombstones.among(all()).await, [account(1)].into());
        advance(FRESH).await;
        let both = HashSet::from([account(1), account(2)]);
        assert_eq!(tombstones.among(all()).await, both);
        // Who cannot be asked is not known to be removed.
        source.disconnect();
        advance(FRESH).await;
        assert_eq!(tombstones.among(all()).await, both);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_holds_nothing_up_for_long() {
        let source = MemorySource::new();
        let tombstones = Tombstones::new(Arc::new(source.clone()));
        for n in 0..40 {
            source.put_account(&account(n), record(5));
            if n > 0 {
                source.hold_account(&account(n));
            }
        }
        let before = Instant::now();
        let found = tombstones.among(HashSet::from([account(0)])).await;
        assert_eq!(found, [account(0)].into());
        let found = tombstones.among((0..40).map(account).collect()).await;
        assert_eq!(found, [account(0)].into());
        assert_eq!(before.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let source = MemorySource::new();
        let tombstones = Tombstones::new(Arc::new(source.clone()));
        for n in 0..MOST + 10 {
            tombstones.note(account(n), n % 2 == 0);
        }
        assert!(tombstones.seen().len() <= MOST);
    }
}
