//! What has been told: enough to tell a repeat from a first telling, and bounded.

use std::collections::{BTreeMap, HashMap, VecDeque};

use mailbell_core::dedupe::{RecentKeys, key_digest};
use mailbell_proto::push::v1::{EventKey, EventKind};
use serde::{Deserialize, Serialize};

use super::ranges::Ranges;

/// So many contents that have alerted are remembered.
const ALERTED: usize = 2048;
/// Of so many generations of a folder it is remembered which messages were told.
const GENERATIONS: usize = 4;
/// Of so many folders; more are a server's that is out of its mind.
const MOST_FOLDERS: usize = 400_000;
/// Of so many messages the highest modseq is remembered.
const MODSEQS: usize = 8192;

/// UIDs of the last generations of a folder, the latest last.
type Generations = Vec<(u32, Ranges)>;

/// What has been told.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    recent: RecentKeys,
    most: usize,
    modseqs: HashMap<u64, u64>,
    modseq_order: VecDeque<u64>,
    alerted: RecentKeys,
    /// By account and folder: the messages that were told, one by one or in a listing. Apart from `recent`, which a listing
    /// would flush, and which soon forgets how far a quiet folder was told.
    /// Of the last generations, since the log may be behind the mailbox.
    told: BTreeMap<(String, u32), Generations>,
}

/// As it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredFacts {
    recent: Vec<u64>,
    modseqs: Vec<(u64, u64)>,
    alerted: Vec<u64>,
    told: Vec<(String, u32, Generations)>,
}

/// What a folder's listing held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ListedUids {
    pub(crate) account: String,
    pub(crate) folder: u32,
    pub(crate) generation: u32,
    pub(crate) uids: Vec<u32>,
    pub(crate) alerted: Vec<u64>,
}

impl Facts {
    pub(crate) fn restore(most: usize, stored: StoredFacts) -> Self {
        let mut facts = Self {
            recent: RecentKeys::restore(most, stored.recent),
            most,
            modseqs: HashMap::new(),
            modseq_order: VecDeque::new(),
            alerted: RecentKeys::restore(ALERTED, stored.alerted),
            told: stored
                .told
                .into_iter()
                .map(|(account, folder, told)| ((account, folder), told))
                .collect(),
        };
        for (message, modseq) in stored.modseqs {
            facts.raise(message, modseq);
        }
        facts
    }

    pub(crate) fn store(&self) -> StoredFacts {
        StoredFacts {
            recent: self.recent.digests().collect(),
            modseqs: self
                .modseq_order
                .iter()
                .filter_map(|message| Some((*message, *self.modseqs.get(message)?)))
                .collect(),
            alerted: self.alerted.digests().collect(),
            told: self
                .told
                .iter()
                .map(|((account, folder), told)| (account.clone(), *folder, told.clone()))
                .collect(),
        }
    }

    /// How many keys are remembered at most.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Whether a fact was told, or is overtaken by one that was.
    pub(crate) fn knows(&self, key: &EventKey) -> bool {
        if self.recent.contains(key) {
            return true;
        }
        match key.kind() {
            EventKind::Arrived => {
                self.is_gone(key)
                    || self
                        .told
                        .get(&(key.account.clone(), key.folder))
                        .is_some_and(|told| {
                            told.iter().any(|(generation, uids)| {
                                *generation == key.generation && uids.contains(key.uid)
                            })
                        })
            }
            EventKind::Changed => {
                self.is_gone(key)
                    || self
                        .modseqs
                        .get(&message_digest(key))
                        .is_some_and(|highest| key.modseq <= *highest)
            }
            _ => false,
        }
    }

    fn is_gone(&self, key: &EventKey) -> bool {
        self.recent.contains(&EventKey {
            kind: EventKind::Gone.into(),
            modseq: 0,
            ..key.clone()
        })
    }

    /// Takes in what was told.
    pub(crate) fn insert(&mut self, key: &EventKey) {
        self.recent.insert(key);
        match key.kind() {
            EventKind::Arrived => self.tell(&key.account, key.folder, key.generation, &[key.uid]),
            EventKind::Changed => self.raise(message_digest(key), key.modseq),
            _ => {}
        }
    }

    fn raise(&mut self, message: u64, modseq: u64) {
        if let Some(highest) = self.modseqs.get_mut(&message) {
            *highest = (*highest).max(modseq);
            return;
        }
        self.modseqs.insert(message, modseq);
        self.modseq_order.push_back(message);
        if self.modseq_order.len() > MODSEQS
            && let Some(oldest) = self.modseq_order.pop_front()
        {
            self.modseqs.remove(&oldest);
        }
    }

    /// Whether a copy of this content has alerted.
    pub(crate) fn has_alerted(&self, content: u64) -> bool {
        self.alerted.contains_digest(content)
    }

    /// A copy of this content alerts.
    pub(crate) fn insert_alerted(&mut self, content: u64) {
        self.alerted.insert_digest(content);
    }

    /// Takes in a listing.
    pub(crate) fn insert_listed(&mut self, listed: &ListedUids) {
        self.tell(
            &listed.account,
            listed.folder,
            listed.generation,
            &listed.uids,
        );
        for content in &listed.alerted {
            self.insert_alerted(*content);
        }
    }

    fn tell(&mut self, account: &str, folder: u32, generation: u32, uids: &[u32]) {
        let place = (account.to_owned(), folder);
        if self.told.len() >= MOST_FOLDERS && !self.told.contains_key(&place) {
            return;
        }
        let generations = self.told.entry(place).or_default();
        let mut told = match generations.iter().position(|(of, _)| *of == generation) {
            Some(at) => generations.remove(at).1,
            None => Ranges::default(),
        };
        // Within a generation no UID is ever used again: what was told once stays known.
        for uid in uids {
            told.insert(*uid);
        }
        generations.push((generation, told));
        if generations.len() > GENERATIONS {
            generations.remove(0);
        }
    }

    /// The highest UID of a folder that was told, by generation.
    pub(crate) fn highest(&self, account: &str, folder: u32) -> Vec<(u32, u32)> {
        let told = self.told.get(&(account.to_owned(), folder));
        told.into_iter()
            .flatten()
            .filter_map(|(generation, uids)| Some((*generation, uids.highest()?)))
            .collect()
    }

    /// An account is no more.
    pub(crate) fn forget_account(&mut self, account: &str) {
        self.told.retain(|(of, _), _| of != account);
    }
}

fn message_digest(key: &EventKey) -> u64 {
    key_digest(&EventKey {
        modseq: 0,
        ..key.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: EventKind, uid: u32, modseq: u64) -> EventKey {
        EventKey {
            account: "a.1".to_owned(),
            folder: 1,
            generation: 7,
            uid,
            kind: kind.into(),
            modseq,
        }
    }

    fn facts() -> Facts {
        Facts::restore(100, StoredFacts::default())
    }

    #[test]
    fn only_a_higher_modseq_counts_and_gone_is_final() {
        let mut facts = facts();
        facts.insert(&key(EventKind::Changed, 1, 5));
        for (modseq, known) in [(4, true), (5, true), (6, false)] {
            assert_eq!(facts.knows(&key(EventKind::Changed, 1, modseq)), known);
        }
        facts.insert(&key(EventKind::Gone, 1, 0));
        assert!(facts.knows(&key(EventKind::Changed, 1, 6)));
        assert!(facts.knows(&key(EventKind::Arrived, 1, 0)));
        let again = Facts::restore(100, facts.store());
        assert!(again.knows(&key(EventKind::Changed, 1, 5)));
        assert_eq!(again.store(), facts.store());
    }

    #[test]
    fn what_was_listed_is_known_without_flushing_the_recent_keys() {
        let mut facts = facts();
        facts.insert(&key(EventKind::Arrived, 1, 0));
        let listed = ListedUids {
            account: "a.1".to_owned(),
            folder: 1,
            generation: 7,
            uids: (100..5000).collect(),
            alerted: vec![9],
        };
        facts.insert_listed(&listed);
        assert!(facts.knows(&key(EventKind::Arrived, 1, 0)));
        assert!(facts.knows(&key(EventKind::Arrived, 4999, 0)));
        assert!(!facts.knows(&key(EventKind::Arrived, 99, 0)));
        assert!(facts.has_alerted(9));
        let mut part = listed;
        part.uids = vec![99];
        facts.insert_listed(&part);
        assert!(facts.knows(&key(EventKind::Arrived, 99, 0)));
        assert!(facts.knows(&key(EventKind::Arrived, 100, 0)));
        for generation in 8..8 + u32::try_from(GENERATIONS).unwrap() {
            assert!(facts.knows(&key(EventKind::Arrived, 100, 0)));
            part.generation = generation;
            facts.insert_listed(&part);
        }
        assert!(!facts.knows(&key(EventKind::Arrived, 100, 0)));
    }
}
