//! Accounts whose MailAccounts are gone: given up after a while, or set free by hand. They are watched on, and nobody declares them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kube::ResourceExt as _;
use tokio::sync::Notify;

use crate::api::{LeftAccounts, Mailbell};

/// So many are named; of the others is said how many they are.
const NAMED: usize = 10;
/// So many tenants stand in the status, which is an object of a bounded size.
const MOST_TENANTS: usize = 1_000;

/// Namespace and name of an installation.
type Place = (String, String);

/// Those of each installation.
#[derive(Debug, Default)]
pub(super) struct Left {
    all: Mutex<HashMap<Place, Found>>,
    news: Notify,
}

/// What was found when it was last looked.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) left: LeftAccounts,
    /// Of which MailAccounts were there, or of which some are left: where those have to be looked for.
    tenants: BTreeSet<String>,
}

impl Found {
    /// For whoever leads next.
    pub(super) fn tenants(self) -> Vec<String> {
        self.tenants.into_iter().take(MOST_TENANTS).collect()
    }
}

impl Left {
    /// Waits until there are others than before.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Where to look beside the tenants of MailAccounts that are there.
    pub(super) fn tenants(&self, mailbell: &Mailbell) -> BTreeSet<String> {
        match self.all().get(&place(mailbell)) {
            Some(found) => found.tenants.clone(),
            // As whoever led before has seen it; the release before this one knew of the accounts only.
            None => {
                let status = mailbell.status.iter();
                let left = status.clone().flat_map(|status| &status.left_accounts);
                let left = left.flat_map(|left| &left.ids);
                let left = left.filter_map(|id| tenant_of(id));
                let known = status.flat_map(|status| &status.tenants);
                left.chain(known.cloned()).collect()
            }
        }
    }

    /// These were found, where MailAccounts of these tenants were there.
    pub(super) fn are(
        &self,
        mailbell: &Mailbell,
        mut tenants: BTreeSet<String>,
        ids: &BTreeSet<String>,
    ) {
        let left = LeftAccounts {
            count: i64::try_from(ids.len()).unwrap_or(i64::MAX),
            ids: ids.iter().take(NAMED).cloned().collect(),
        };
        tenants.extend(ids.iter().filter_map(|id| tenant_of(id)));
        let found = Found { left, tenants };
        let before = self.all().insert(place(mailbell), found.clone());
        if before != Some(found) {
            self.news.notify_one();
        }
    }

    /// What is to stand in the status; `None`: nobody has looked yet.
    pub(super) fn of(&self, mailbell: &Mailbell) -> Option<Found> {
        self.all().get(&place(mailbell)).cloned()
    }

    /// Forgets installations that are gone.
    pub(super) fn retain(&self, is_there: impl Fn(&Place) -> bool) {
        self.all().retain(|place, _| is_there(place));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Place, Found>> {
        // Nothing that holds the lock can leave it half changed.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn place(mailbell: &Mailbell) -> Place {
    (
        mailbell.namespace().unwrap_or_default(),
        mailbell.name_any(),
    )
}

/// An account is `<tenant>.<ulid>`.
fn tenant_of(id: &str) -> Option<String> {
    id.split_once('.').map(|(tenant, _)| tenant.to_owned())
}
