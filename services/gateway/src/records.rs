//! What accounts' records say to those who read the past.
//!
//! What a log still holds of accounts that were removed is told to nobody. Their owner purges the log soon after the removal; until then,
//! and where no watcher lives to do it, readers skip such events. And what was stored before an account had its content policy is told
//! by that.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use mailbell_core::{content::policy, ids::AccountId};
use mailbell_proto::push::v1::ContentLevel;
use tokio::time::{Instant, timeout};

use crate::source::Source;

/// An account that was there is looked at again after this time.
const FRESH: Duration = Duration::from_secs(30);
/// What is remembered, some 100 bytes each.
const MOST: usize = 16 * 1024;
/// Records that are asked for at once.
const AT_ONCE: usize = 8;
/// How long it may take to look at a batch's accounts. By then what was last seen of an account counts; of one that was never seen nobody
/// knows what may be shown, and the batch has to wait.
const LIMIT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
enum Seen {
    /// For good: an id is never used again.
    Removed,
    There(Instant, ContentLevel),
}

/// What is known of some accounts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) removed: HashSet<AccountId>,
    /// The policies of those that have one.
    pub(crate) most: HashMap<AccountId, ContentLevel>,
}

impl Known {
    fn note(&mut self, account: AccountId, most: ContentLevel) {
        if most < ContentLevel::Preview {
            self.most.insert(account, most);
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Records {
    source: Arc<dyn Source>,
    seen: Mutex<HashMap<AccountId, Seen>>,
}

impl Records {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<AccountId, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the records of these accounts say. `None`: of one that was never seen nobody can say it now. It is asked for again then; what
    /// was heard of others is remembered.
    pub(crate) async fn of(&self, accounts: HashSet<AccountId>) -> Option<Known> {
        let mut known = Known::default();
        let mut asked = Vec::new();
        let mut unseen = HashSet::new();
        {
            let (seen, now) = (self.seen(), Instant::now());
            for account in accounts {
                match seen.get(&account) {
                    Some(Seen::Removed) => {
                        known.removed.insert(account);
                    }
                    Some(Seen::There(at, most)) => {
                        // If nobody answers, what it was counts.
                        known.note(account.clone(), *most);
                        if now >= *at + FRESH {
                            asked.push(account);
                        }
                    }
                    None => {
                        unseen.insert(account.clone());
                        asked.push(account);
                    }
                }
            }
        }
        let look = async |account: AccountId| {
            let record = self.source.account(&account).await.ok()?;
            // One that is not there at all says nothing: the record may be lost.
            let seen = match record {
                Some(record) if record.removed_at_ms != 0 => Seen::Removed,
                Some(record) => Seen::There(Instant::now(), policy(record.content)),
                None => Seen::There(Instant::now(), ContentLevel::Preview),
            };
            Some((account, seen))
        };
        let looks = stream::iter(asked)
            .map(look)
            .buffer_unordered(AT_ONCE)
            .for_each(|found| {
                if let Some((account, seen)) = found {
                    unseen.remove(&account);
                    known.most.remove(&account);
                    match seen {
                        Seen::Removed => {
                            known.removed.insert(account.clone());
                        }
                        Seen::There(_, most) => known.note(account.clone(), most),
                    }
                    self.note(account, seen);
                }
                std::future::ready(())
            });
        // What was found until then counts.
        let _ = timeout(LIMIT, looks).await;
        unseen.is_empty().then_some(known)
    }

    fn note(&self, account: AccountId, what: Seen) {
        let mut seen = self.seen();
        let now = Instant::now();
        if seen.len() >= MOST {
            seen.retain(|_, seen| matches!(seen, Seen::There(at, _) if now < *at + FRESH));
            if seen.len() >= MOST {
                seen.clear();
            }
        }
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
        let records = Records::new(Arc::new(source.clone()));
        let all = || HashSet::from([account(1), account(2), account(3)]);
        source.put_account(&account(1), record(5));
        source.put_account(&account(2), record(0));
        // The third has no record at all.
        let removed = async || records.of(all()).await.unwrap().removed;
        assert_eq!(removed().await, [account(1)].into());
        source.put_account(&account(1), record(0));
        source.put_account(&account(2), record(6));
        assert_eq!(removed().await, [account(1)].into());
        advance(FRESH).await;
        let both = HashSet::from([account(1), account(2)]);
        assert_eq!(removed().await, both);
        // Who cannot be asked is not known to be removed.
        source.disconnect();
        advance(FRESH).await;
        assert_eq!(removed().await, both);
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_is_seen_soon_and_counts_while_nobody_answers() {
        let source = MemorySource::new();
        let records = Records::new(Arc::new(source.clone()));
        let put = |content: ContentLevel| {
            let record = AccountRecord {
                content: content.into(),
                ..record(0)
            };
            source.put_account(&account(1), record);
        };
        let most = async || {
            let known = records.of(HashSet::from([account(1)])).await.unwrap();
            known.most.get(&account(1)).copied()
        };
        put(ContentLevel::Unspecified);
        assert_eq!(most().await, None);
        put(ContentLevel::Headers);
        advance(FRESH).await;
        assert_eq!(most().await, Some(ContentLevel::Headers));
        source.disconnect();
        advance(FRESH).await;
        assert_eq!(most().await, Some(ContentLevel::Headers));
        source.reconnect();
        put(ContentLevel::Preview);
        assert_eq!(most().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_holds_nothing_up_for_long() {
        let source = MemorySource::new();
        let records = Records::new(Arc::new(source.clone()));
        for n in 0..40 {
            source.put_account(&account(n), record(5));
            if n > 0 {
                source.hold_account(&account(n));
            }
        }
        let before = Instant::now();
        let found = records.of(HashSet::from([account(0)])).await.unwrap();
        assert_eq!(found.removed, [account(0)].into());
        assert_eq!(records.of((0..40).map(account).collect()).await, None);
        assert_eq!(before.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_told_of_what_was_never_seen_before_somebody_has_answered() {
        let source = MemorySource::new();
        let records = Records::new(Arc::new(source.clone()));
        source.put_account(&account(1), record(0));
        source.put_account(&account(2), record(0));
        let of = async |numbers: &[usize]| {
            let all = numbers.iter().map(|number| account(*number));
            records.of(all.collect()).await
        };
        source.disconnect();
        assert_eq!(of(&[1]).await, None);
        source.reconnect();
        source.hold_account(&account(2));
        assert_eq!(of(&[1, 2]).await, None);
        // What was heard meanwhile need not be asked for again.
        source.disconnect();
        assert_eq!(of(&[1]).await, Some(Known::default()));
        assert_eq!(of(&[1, 2]).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let source = MemorySource::new();
        let records = Records::new(Arc::new(source.clone()));
        for n in 0..MOST + 10 {
            let there = Seen::There(Instant::now(), ContentLevel::Preview);
            let seen = if n % 2 == 0 { Seen::Removed } else { there };
            records.note(account(n), seen);
        }
        assert!(records.seen().len() <= MOST);
    }
}
