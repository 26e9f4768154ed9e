//! Which accounts and folders there are, as far as a client has heard. No call names them all, so a resync of everything is a
//! resync of what is known, and of whatever is heard of for the first time after it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// INBOX is always there, and always has this number.
pub(crate) const INBOX: u32 = 1;
/// Bounds what a server can make a client remember.
const MOST_ACCOUNTS: usize = 100_000;
const MOST_FOLDERS: usize = 1000;
const MOST_IN_ALL: usize = 200_000;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Directory {
    accounts: BTreeMap<String, Account>,
    /// There was a resync of everything: who is new to us may have a hole.
    list_new: bool,
    /// Folders of all accounts.
    #[serde(default)]
    folders: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    /// By number; whether one of its messages ever alerted.
    folders: BTreeMap<u32, bool>,
    /// There was a resync of the whole account: a folder that is new to us may have a hole.
    list_new: bool,
}

impl Directory {
    /// Takes note of a folder. Gives the folders that must be listed, since a resync before could not name them.
    pub(crate) fn note(&mut self, account: &str, folder: u32) -> Vec<u32> {
        let mut list = Vec::new();
        if !self.accounts.contains_key(account) {
            if self.accounts.len() >= MOST_ACCOUNTS {
                return list;
            }
            let new = Account {
                folders: BTreeMap::from([(INBOX, true)]),
                list_new: self.list_new,
            };
            self.accounts.insert(account.to_owned(), new);
            self.folders += 1;
            if self.list_new {
                list.push(INBOX);
            }
        }
        if folder != 0
            && let Some(known) = self.accounts.get_mut(account)
            && !known.folders.contains_key(&folder)
            && known.folders.len() < MOST_FOLDERS
            && self.folders < MOST_IN_ALL
        {
            known.folders.insert(folder, false);
            self.folders += 1;
            if known.list_new {
                list.push(folder);
            }
        }
        list
    }

    /// A message of this folder alerted, so the folder is one that people read.
    pub(crate) fn note_alert(&mut self, account: &str, folder: u32) {
        if let Some(alerts) = self
            .accounts
            .get_mut(account)
            .and_then(|account| account.folders.get_mut(&folder))
        {
            *alerts = true;
        }
    }

    /// Whether a listed message of this folder may alert: it is INBOX, or one of its messages did before.
    pub(crate) fn alerts(&self, account: &str, folder: u32) -> bool {
        self.accounts
            .get(account)
            .and_then(|account| account.folders.get(&folder))
            .copied()
            .unwrap_or(folder == INBOX)
    }

    /// Everything is to be listed: these are all folders that are known, and new ones will follow when they are heard of.
    pub(crate) fn all(&mut self) -> Vec<(String, u32)> {
        self.list_new = true;
        let mut all = Vec::new();
        for (account, known) in &mut self.accounts {
            known.list_new = true;
            all.extend(
                known
                    .folders
                    .keys()
                    .map(|folder| (account.clone(), *folder)),
            );
        }
        all
    }

    /// The same for one account.
    pub(crate) fn all_of(&mut self, account: &str) -> Vec<u32> {
        let Some(known) = self.accounts.get_mut(account) else {
            return Vec::new();
        };
        known.list_new = true;
        known.folders.keys().copied().collect()
    }

    pub(crate) fn forget_account(&mut self, account: &str) {
        if let Some(known) = self.accounts.remove(account) {
            self.folders = self.folders.saturating_sub(known.folders.len());
        }
    }

    pub(crate) fn forget_folder(&mut self, account: &str, folder: u32) {
        if folder != INBOX
            && let Some(known) = self.accounts.get_mut(account)
            && known.folders.remove(&folder).is_some()
        {
            self.folders = self.folders.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_heard_of_after_a_resync_is_listed() {
        let mut directory = Directory::default();
        assert!(directory.note("a", 3).is_empty());
        assert_eq!(
            directory.all(),
            [("a".to_owned(), INBOX), ("a".to_owned(), 3)]
        );
        assert_eq!(directory.note("a", 4), [4]);
        assert!(directory.note("a", 4).is_empty());
        assert_eq!(directory.note("b", 2), [INBOX, 2]);
        assert_eq!(directory.note("c", 0), [INBOX]);
        assert_eq!(directory.all_of("a"), [INBOX, 3, 4]);
        directory.forget_folder("a", 4);
        assert_eq!(directory.note("a", 4), [4]);
    }

    #[test]
    fn only_folders_that_people_read_alert() {
        let mut directory = Directory::default();
        directory.note("a", 3);
        assert!(directory.alerts("a", INBOX) && !directory.alerts("a", 3));
        directory.note_alert("a", 3);
        assert!(directory.alerts("a", 3));
    }

    #[test]
    fn it_is_bounded() {
        let mut directory = Directory::default();
        for folder in 0..5000 {
            directory.note("a", folder);
        }
        assert_eq!(directory.all_of("a").len(), MOST_FOLDERS);
    }
}
