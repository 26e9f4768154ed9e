//! What the app of one device was told, in order.

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

use mailbell_client::event::{AppEvent, Connected};
use mailbell_proto::push::v1::{AccountState, EventKey, Health, Message};

use crate::{
    auditor::{self, Held, Mail, Place, Seen, Truth},
    load::number_in,
};

/// Everything that came out behind the client crate.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// Facts, as the auditor wants them.
    pub seen: Vec<Seen>,
    /// How many messages these are about, repeats included.
    pub messages: usize,
    /// How often a stream was opened.
    pub connections: usize,
    /// Of these, how often with a cursor.
    pub resumed: usize,
    /// How often a stream ended or could not be opened.
    pub disconnections: usize,
    /// Why the last one did.
    pub last_disconnect: Option<String>,
    /// Whether what was missed has been told on the stream that is open.
    pub live: bool,
    /// How often a folder's list was replaced.
    pub replaced: usize,
    /// Of these, how often all of it, and not only the range of a flood.
    pub relisted: usize,
    /// Folders that could not be listed.
    pub unlistable: usize,
    /// The last state of each account.
    pub states: BTreeMap<String, AccountState>,
    /// The trace context of each message, by number.
    pub traces: BTreeMap<u64, String>,
    /// What ended the client for good, if something did.
    pub ended: Option<String>,
    /// All of it in short, for the text of a failure.
    pub trail: Vec<Step>,
}

/// Something that a device was told, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Arrivals of consecutive UIDs in one folder.
    Arrived(Place, RangeInclusive<u32>),
    /// Anything else.
    Other(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrived(place, uids) => {
                let account = place.account.get(place.account.len().saturating_sub(4)..);
                write!(f, "{}: {uids:?}", account.unwrap_or_default())
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl Journal {
    /// Notes one event.
    pub fn note(&mut self, event: &AppEvent) {
        let before = self.seen.len();
        self.take(event);
        for fact in self.seen.get(before..).unwrap_or_default() {
            self.messages += match fact {
                Seen::Arrived { .. } => 1,
                Seen::Replaced { mail, .. } => mail.len(),
                Seen::Gone { .. } => 0,
            };
        }
    }

    fn take(&mut self, event: &AppEvent) {
        self.follow(event);
        match event {
            AppEvent::Arrived(arrived) => {
                let mail = mail(arrived.key.uid, arrived.message.as_ref());
                self.traces.insert(mail.number, arrived.traceparent.clone());
                self.seen.push(Seen::Arrived {
                    place: place(&arrived.key),
                    generation: arrived.key.generation,
                    mail,
                    alert: arrived.alert,
                });
            }
            AppEvent::Gone(gone) => self.seen.push(Seen::Gone {
                place: place(&gone.key),
                generation: gone.key.generation,
                uid: gone.key.uid,
            }),
            AppEvent::ReplaceFolder(replace) => {
                self.replaced += 1;
                self.relisted += usize::from(*replace.uids.end() == u32::MAX);
                let listed = |listed: &mailbell_client::event::Listed| {
                    mail(listed.message.uid, Some(&listed.message))
                };
                self.seen.push(Seen::Replaced {
                    place: Place {
                        account: replace.account.clone(),
                        folder: replace.folder,
                    },
                    generation: replace.generation,
                    uids: replace.uids.clone(),
                    mail: replace.messages.iter().map(listed).collect(),
                    alerts: replace
                        .alert_for()
                        .map(|message| mail(message.uid, Some(message)).number)
                        .collect(),
                });
            }
            AppEvent::AccountState(state) => {
                self.states.insert(state.account.clone(), state.clone());
            }
            AppEvent::Unlistable(_) => self.unlistable += 1,
            AppEvent::Connected(Connected { resumed, .. }) => {
                self.connections += 1;
                self.resumed += usize::from(*resumed);
                self.live = false;
            }
            AppEvent::Live => self.live = true,
            AppEvent::Disconnected { reason, .. } => {
                self.live = false;
                self.disconnections += 1;
                self.last_disconnect = Some(reason.to_string());
            }
            _ => {}
        }
    }

    fn follow(&mut self, event: &AppEvent) {
        let step = match event {
            AppEvent::Arrived(arrived) => {
                let (place, uid) = (place(&arrived.key), arrived.key.uid);
                if let Some(Step::Arrived(before, uids)) = self.trail.last_mut()
                    && *before == place
                    && uids.end() + 1 == uid
                {
                    *uids = *uids.start()..=uid;
                    return;
                }
                Step::Arrived(place, uid..=uid)
            }
            AppEvent::ReplaceFolder(replace) => Step::Other(format!(
                "list of {:?}: {} messages",
                replace.uids,
                replace.messages.len()
            )),
            AppEvent::Connected(connected) if connected.resumed => Step::Other("resumed".into()),
            AppEvent::AccountState(_) => return,
            other => Step::Other(format!("{other:?}")),
        };
        self.trail.push(step);
    }

    /// The trail as text.
    #[must_use]
    pub fn told(&self) -> String {
        let steps: Vec<String> = self.trail.iter().map(Step::to_string).collect();
        steps.join("\n  ")
    }

    /// Whether the device has all of these folders, in whatever order it was told.
    #[must_use]
    pub fn has_all(&self, truth: &BTreeMap<Place, Truth>) -> bool {
        // Asked at each message that comes, so the long way is gone only when it may lead to a yes.
        if self.messages < truth.values().map(|truth| truth.mail.len()).sum() {
            return false;
        }
        let held = auditor::held(&self.seen);
        truth.iter().all(|(place, truth)| {
            let of_mailbox = |held: &&Held| held.generation == truth.generation;
            let held = held.get(place).filter(of_mailbox);
            let has = |uid| held.is_some_and(|held| held.mail.contains_key(uid));
            truth.mail.iter().all(|mail| has(&mail.uid))
        })
    }

    /// The numbers that came as arrivals, in order, without those of listings.
    #[must_use]
    pub fn arrivals(&self) -> Vec<u64> {
        self.seen
            .iter()
            .filter_map(|fact| match fact {
                Seen::Arrived { mail, .. } => Some(mail.number),
                Seen::Gone { .. } | Seen::Replaced { .. } => None,
            })
            .collect()
    }

    /// How an account is doing: `watching`, `retrying`, `action-needed` and so on; empty if nothing was told.
    #[must_use]
    pub fn state_health(&self, account: &str) -> String {
        let health = self
            .states
            .get(account)
            .and_then(|state| Health::try_from(state.health).ok());
        health.map_or_else(String::new, |health| {
            health
                .as_str_name()
                .trim_start_matches("HEALTH_")
                .to_lowercase()
                .replace('_', "-")
        })
    }

    /// The state of an account, in a stable word.
    #[must_use]
    pub fn state_code(&self, account: &str) -> Option<&str> {
        self.states.get(account).map(|state| state.code.as_str())
    }
}

fn place(key: &EventKey) -> Place {
    Place {
        account: key.account.clone(),
        folder: key.folder,
    }
}

fn mail(uid: u32, message: Option<&Message>) -> Mail {
    let number = message
        .and_then(|message| number_in(&message.subject))
        .unwrap_or(0);
    Mail { uid, number }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_replaces_what_is_held() {
        let place = Place::inbox("a.b");
        let arrived = |uid| Seen::Arrived {
            place: place.clone(),
            generation: 7,
            mail: Mail { uid, number: 1 },
            alert: true,
        };
        let journal = Journal {
            seen: vec![
                arrived(1),
                arrived(2),
                Seen::Replaced {
                    place: place.clone(),
                    generation: 7,
                    uids: 2..=5,
                    mail: vec![Mail { uid: 3, number: 1 }],
                    alerts: Vec::new(),
                },
            ],
            messages: 3,
            ..Journal::default()
        };
        let truth = |generation, uids: &[u32]| {
            let mail = uids.iter().map(|uid| Mail {
                uid: *uid,
                number: 1,
            });
            let truth = Truth {
                generation,
                mail: mail.collect(),
            };
            BTreeMap::from([(place.clone(), truth)])
        };
        assert!(journal.has_all(&truth(7, &[1, 3])));
        assert!(!journal.has_all(&truth(7, &[1, 2])));
        assert!(!journal.has_all(&truth(8, &[1, 3])));
        assert_eq!(journal.arrivals(), [1, 1]);
    }
}
