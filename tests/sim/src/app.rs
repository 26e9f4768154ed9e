//! What an app behind the client sees, and what it must never see.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use mailbell_client::event::ReplaceFolder;
use mailbell_core::{event::message_id, ids::Position};
use mailbell_proto::push::v1::{EventKey, EventKind};

/// Where in a log the frame lay that an app heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) log: usize,
    pub(crate) history: u64,
    pub(crate) position: Position,
}

/// One thing that the app was told.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Fact {
        key: EventKey,
        folder: String,
        source: Option<Source>,
    },
    Replaced(Box<ReplaceFolder>),
    /// Nothing that an app keeps.
    Nothing,
    /// The stream said that there may be a hole: order begins anew.
    Break,
}

type Place = (String, String);

/// The app. What it holds is stored together with the client's state, so that a crash takes both back to one moment.
#[derive(Default)]
pub(crate) struct App {
    journal: Vec<Told>,
    stored: usize,
    /// When it first heard of the stream; what arrived before was not for it.
    pub(crate) since: Option<Duration>,
    stored_since: Option<Duration>,
    facts: HashSet<String>,
    lists: BTreeMap<Place, (u32, BTreeSet<u32>)>,
    last: BTreeMap<String, Source>,
    heard: BTreeSet<String>,
}

impl App {
    /// The app takes something. What is wrong with it, if anything is.
    pub(crate) fn take(&mut self, told: Told) -> Option<String> {
        let wrong = self.note(&told);
        self.journal.push(told);
        wrong
    }

    fn note(&mut self, told: &Told) -> Option<String> {
        match told {
            Told::Nothing => None,
            Told::Break => {
                self.last.clear();
                None
            }
            Told::Replaced(replaced) => {
                self.heard.insert(replaced.account.clone());
                let place = (replaced.account.clone(), replaced.folder_name.clone());
                let (generation, uids) = self.lists.entry(place).or_default();
                if *generation != replaced.generation {
                    *generation = replaced.generation;
                    uids.clear();
                }
                uids.retain(|uid| !replaced.uids.contains(uid));
                uids.extend(replaced.messages.iter().map(|listed| listed.message.uid));
                None
            }
            Told::Fact {
                key,
                folder,
                source,
            } => {
                self.heard.insert(key.account.clone());
                let id = message_id(key);
                if !self.facts.insert(id.clone()) {
                    return Some(format!("an app was told {id} twice"));
                }
                if let Some(source) = source {
                    let last = self.last.insert(key.account.clone(), *source);
                    if let Some(last) = last
                        && last.history == source.history
                        && last.position >= source.position
                    {
                        return Some(format!(
                            "an app was told {id} at {} after {}",
                            source.position, last.position
                        ));
                    }
                }
                if key.kind() != EventKind::Arrived {
                    return None;
                }
                let place = (key.account.clone(), folder.clone());
                let (generation, uids) = self.lists.entry(place).or_default();
                if key.generation < *generation {
                    // Late news of a folder that is no more.
                    return None;
                }
                if *generation != key.generation {
                    *generation = key.generation;
                    uids.clear();
                }
                (!uids.insert(key.uid)).then(|| format!("an app was told {id} after it was listed"))
            }
        }
    }

    /// The client's state was stored, and the app's with it.
    pub(crate) fn store(&mut self) {
        self.stored = self.journal.len();
        self.stored_since = self.since;
    }

    /// Everything since then is gone.
    pub(crate) fn crash(&mut self) {
        let mut journal = std::mem::take(&mut self.journal);
        journal.truncate(self.stored);
        *self = Self {
            stored: self.stored,
            since: self.stored_since,
            stored_since: self.stored_since,
            ..Self::default()
        };
        for told in journal {
            let _ = self.take(told);
        }
    }

    /// It subscribes to something else: what is new to it is listed as a whole, and what matters is what comes from now on.
    pub(crate) fn begin_anew(&mut self) {
        self.since = None;
        self.stored_since = None;
    }

    /// Whether it ever heard of an account.
    pub(crate) fn heard_of(&self, account: &str) -> bool {
        self.heard.contains(account)
    }

    /// Whether it holds a message.
    pub(crate) fn holds(&self, account: &str, folder: &str, generation: u32, uid: u32) -> bool {
        self.lists
            .get(&(account.to_owned(), folder.to_owned()))
            .is_some_and(|(of, uids)| *of == generation && uids.contains(&uid))
    }
}
