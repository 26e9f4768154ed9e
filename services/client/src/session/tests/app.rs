//! An app that keeps what it is told, and judges it.

use std::collections::{BTreeMap, HashMap, HashSet};

use mailbell_core::event::message_id;
use mailbell_proto::push::v1::EventKind;

use super::{super::*, model::Entry};

#[derive(Default)]
pub(super) struct App {
    pub(super) view: HashMap<(String, u32), BTreeMap<(u32, u32), String>>,
    told: HashSet<String>,
    /// What it has seen since the state was last stored.
    pub(super) unsaved: HashSet<String>,
    pub(super) may_repeat: HashSet<String>,
    modseqs: HashMap<(String, u32, u32, u32), u64>,
    gone: HashSet<(String, u32, u32, u32)>,
    last_in_log: HashMap<String, (u32, usize)>,
}

impl App {
    /// A fact that was told before may only come again if a crash made the client forget it.
    fn first(&mut self, key: &EventKey) -> bool {
        let id = message_id(key);
        if !self.told.insert(id.clone()) {
            assert!(self.may_repeat.remove(&id), "{id} was told twice");
            self.unsaved.insert(id);
            return false;
        }
        self.unsaved.insert(id);
        true
    }

    fn fact(&mut self, key: &EventKey, log_id: u32, log: &[Entry]) {
        if !self.first(key) {
            return;
        }
        // Of a log that is lost by now nothing can be said.
        let last = self.last_in_log.entry(key.account.clone()).or_default();
        if last.0 != log_id {
            *last = (log_id, 0);
        }
        // The latest place: a fact may be in the log twice, and told by its second entry only.
        if let Some(at) = log.iter().rposition(|entry| entry.key() == key) {
            assert!(at >= last.1, "{} is out of order", message_id(key));
            last.1 = log
                .iter()
                .position(|entry| entry.key() == key)
                .unwrap_or(at);
        }
    }

    pub(super) fn see(&mut self, handed: Handed, log_id: u32, log: &[Entry]) {
        match handed.event {
            AppEvent::Arrived(arrived) => {
                let key = &arrived.key;
                self.fact(key, log_id, log);
                let flags = arrived.message.unwrap().flags.concat();
                self.folder(key)
                    .entry((key.generation, key.uid))
                    .or_insert(flags);
            }
            AppEvent::Changed(changed) => {
                let key = &changed.key;
                let message = (key.account.clone(), key.folder, key.generation, key.uid);
                let highest = self.modseqs.get(&message).copied().unwrap_or_default();
                let again = self.may_repeat.contains(&message_id(key));
                assert!(again || key.modseq > highest, "an older change");
                assert!(
                    again || !self.gone.contains(&message),
                    "a change after the end"
                );
                self.modseqs.insert(message, highest.max(key.modseq));
                self.fact(key, log_id, log);
                if let Some(flags) = self.folder(key).get_mut(&(key.generation, key.uid)) {
                    *flags = changed.flags.concat();
                }
            }
            AppEvent::Gone(gone) => {
                let key = &gone.key;
                let message = (key.account.clone(), key.folder, key.generation, key.uid);
                self.gone.insert(message);
                self.fact(key, log_id, log);
                self.folder(key).remove(&(key.generation, key.uid));
            }
            AppEvent::ReplaceFolder(replace) => self.replace(replace),
            AppEvent::Unlistable(_) => panic!("everything can be listed"),
            _ => {}
        }
    }

    fn folder(&mut self, key: &EventKey) -> &mut BTreeMap<(u32, u32), String> {
        self.view
            .entry((key.account.clone(), key.folder))
            .or_default()
    }

    fn replace(&mut self, replace: crate::event::ReplaceFolder) {
        let place = (replace.account.clone(), replace.folder);
        self.view
            .entry(place.clone())
            .or_default()
            .retain(|(generation, uid), _| {
                *generation == replace.generation && !replace.uids.contains(uid)
            });
        for listed in replace.messages {
            let uid = listed.message.uid;
            assert!(replace.uids.contains(&uid));
            let key = EventKey {
                account: replace.account.clone(),
                folder: replace.folder,
                generation: replace.generation,
                uid,
                kind: EventKind::Arrived.into(),
                modseq: 0,
            };
            let id = message_id(&key);
            let repeat = self.may_repeat.contains(&id);
            assert!(
                repeat || listed.known == self.told.contains(&id),
                "{id} is known: {}",
                listed.known
            );
            if !listed.known {
                self.first(&key);
            }
            let view = self.view.entry(place.clone()).or_default();
            view.insert((replace.generation, uid), listed.message.flags.concat());
        }
    }
}
