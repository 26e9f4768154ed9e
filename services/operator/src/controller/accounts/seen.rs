//! What admin APIs said of accounts when they were last asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mailbell_proto::admin::v1::Account;
use tokio::time::Instant;

use crate::controller::cluster::differ_in_numbers_only;

/// Namespace and name of an installation.
pub(super) type Place = (String, String);

/// Accounts of MailAccounts by their external ids, for each installation.
#[derive(Default)]
pub(super) struct Seen(Mutex<HashMap<Place, Installation>>);

#[derive(Default)]
struct Installation {
    changed: Option<Instant>,
    /// All of them were read once: what is not here is not there.
    is_read: bool,
    accounts: HashMap<String, Arc<Account>>,
    /// Those that were changed, and when, since the last reading of all began.
    changes: HashMap<String, (Instant, Arc<Account>)>,
    silent: Option<Silence>,
}

/// An admin API that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Silence {
    pub(super) since: Instant,
    pub(super) why: String,
}

/// What is known of one account.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Known {
    /// Its installation was not asked yet.
    Nothing,
    /// It does not answer now.
    Silent(Silence),
    /// As it was, or that it was not there.
    Account(Option<Arc<Account>>),
}

impl Seen {
    pub(super) fn of(&self, place: &Place, external_id: &str) -> Known {
        let all = self.all();
        match all.get(place) {
            None => Known::Nothing,
            Some(installation) => match &installation.silent {
                Some(silence) => Known::Silent(silence.clone()),
                None if !installation.is_read => Known::Nothing,
                None => Known::Account(installation.accounts.get(external_id).cloned()),
            },
        }
    }

    /// All that there are. What was changed since the reading of it began stays as the change said; what was changed before is as it is
    /// read, also where a revision is lower: NATS may have been restored from an older copy.
    pub(super) fn are(
        &self,
        place: &Place,
        mut accounts: HashMap<String, Arc<Account>>,
        begun: Instant,
    ) {
        let mut all = self.all();
        let installation = all.entry(place.clone()).or_default();
        installation.changes.retain(|_, (at, _)| *at >= begun);
        for (external_id, (_, newer)) in &installation.changes {
            if let Some(account) = accounts.get_mut(external_id)
                && newer.id == account.id
                && newer.revision > account.revision
            {
                *account = Arc::clone(newer);
            }
        }
        installation.accounts = accounts;
        installation.is_read = true;
        installation.silent = None;
    }

    /// This is how one is, by the answer to a change.
    pub(super) fn is(&self, place: &Place, account: Arc<Account>) {
        let mut all = self.all();
        let installation = all.entry(place.clone()).or_default();
        let (now, external_id) = (Instant::now(), account.external_id.clone());
        installation.changed = Some(now);
        let change = (now, Arc::clone(&account));
        installation.changes.insert(external_id.clone(), change);
        installation.accounts.insert(external_id, account);
    }

    /// Whether one of them was changed so lately.
    pub(super) fn changed_within(&self, time: Duration) -> bool {
        let all = self.all();
        let mut changes = all.values().filter_map(|it| it.changed);
        changes.any(|change| change.elapsed() < time)
    }

    /// One that is not as it was thought to be, or was deleted.
    pub(super) fn is_not(&self, place: &Place, external_id: &str) {
        if let Some(installation) = self.all().get_mut(place) {
            installation.accounts.remove(external_id);
            installation.changes.remove(external_id);
        }
    }

    pub(super) fn is_silent(&self, place: &Place, why: String) {
        let mut all = self.all();
        let installation = all.entry(place.clone()).or_default();
        installation.silent = Some(match installation.silent.take() {
            Some(before) if differ_in_numbers_only(&before.why, &why) => before,
            before => Silence {
                since: before.map_or_else(Instant::now, |before| before.since),
                why,
            },
        });
    }

    /// Nothing is known of an installation that is not there, or not meant to answer.
    pub(super) fn forget(&self, place: &Place) {
        self.all().remove(place);
    }

    pub(super) fn retain(&self, is_used: impl Fn(&Place) -> bool) {
        self.all().retain(|place, _| is_used(place));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Place, Installation>> {
        // Nothing that holds the lock can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str, revision: u64) -> Arc<Account> {
        Arc::new(Account {
            id: id.to_owned(),
            external_id: "ext".to_owned(),
            revision,
            ..Account::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_not_undone_by_a_list_that_is_older() {
        let (seen, place) = (Seen::default(), ("mail".to_owned(), "main".to_owned()));
        assert_eq!(seen.of(&place, "ext"), Known::Nothing);
        let read = |account: Arc<Account>, begun: Instant| {
            let all = HashMap::from([("ext".to_owned(), account)]);
            seen.are(&place, all, begun);
            seen.of(&place, "ext")
        };
        let is = |account| Known::Account(Some(account));
        let begun = Instant::now();
        assert_eq!(read(account("a", 1), begun), is(account("a", 1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        seen.is(&place, account("a", 3));
        assert_eq!(read(account("a", 2), begun), is(account("a", 3)));
        assert_eq!(read(account("a", 4), begun), is(account("a", 4)));
        // Another one altogether: each bucket counts for itself.
        assert_eq!(read(account("b", 1), begun), is(account("b", 1)));
        // What was restored from an older copy is so however it was changed before.
        seen.is(&place, account("b", 9));
        tokio::time::advance(Duration::from_secs(1)).await;
        let begun = Instant::now();
        assert_eq!(read(account("b", 2), begun), is(account("b", 2)));
        seen.is(&place, account("b", 3));
        seen.is_not(&place, "ext");
        assert_eq!(read(account("b", 2), begun), is(account("b", 2)));
        seen.are(&place, HashMap::new(), begun);
        assert_eq!(seen.of(&place, "ext"), Known::Account(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silence_counts_from_its_first_moment() {
        let (seen, place) = (Seen::default(), ("mail".to_owned(), "main".to_owned()));
        seen.is_silent(&place, "one".to_owned());
        let begin = Instant::now();
        tokio::time::advance(Duration::from_secs(5)).await;
        seen.is_silent(&place, "two".to_owned());
        let Known::Silent(silence) = seen.of(&place, "ext") else {
            panic!("it is silent");
        };
        assert_eq!((silence.since, silence.why.as_str()), (begin, "two"));
        // Else each of thousands would have another status with every round.
        let expired = |now: u64| format!("it has expired: it is {now}, {} s ago", now - 999);
        for now in [1000, 1009, 1010] {
            seen.is_silent(&place, expired(now));
        }
        let (since, why) = (begin, expired(1000));
        let said = Known::Silent(Silence { since, why });
        assert_eq!(seen.of(&place, "ext"), said);
        seen.are(&place, HashMap::new(), Instant::now());
        assert_eq!(seen.of(&place, "ext"), Known::Account(None));
    }
}
