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

/// Namespace and name of an installation.
type Place = (String, String);

/// Those of each installation.
#[derive(Debug, Default)]
pub(super) struct Left {
    all: Mutex<HashMap<Place, Found>>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Found {
    /// Of which MailAccounts were there when it was last looked, or of which some are left: where those have to be looked for.
    tenants: BTreeSet<String>,
    left: Option<LeftAccounts>,
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
            // As whoever led before has seen it.
            None => {
                let status = mailbell.status.as_ref();
                let left = status.and_then(|status| status.left_accounts.as_ref());
                left.map(tenants_of).unwrap_or_default()
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
        let mut all = self.all();
        let found = all.entry(place(mailbell)).or_default();
        found.tenants = tenants;
        if found.left.as_ref() != Some(&left) {
            found.left = Some(left);
            self.news.notify_one();
        }
    }

    /// What is to stand in the status; `None`: nobody has looked yet.
    pub(super) fn of(&self, mailbell: &Mailbell) -> Option<LeftAccounts> {
        self.all().get(&place(mailbell))?.left.clone()
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

fn tenants_of(left: &LeftAccounts) -> BTreeSet<String> {
    left.ids.iter().filter_map(|id| tenant_of(id)).collect()
}

/// An account is `<tenant>.<ulid>`.
fn tenant_of(id: &str) -> Option<String> {
    id.split_once('.').map(|(tenant, _)| tenant.to_owned())
}
