//! The judge: everything that lies in the mailbox, against what one device's app was told.
//!
//! The ground truth is the mailbox itself, read by [`crate::mailbox`]. The other side is what came out *behind* the client
//! crate, so that a repeat on the wire is no fault and a repeat to the app is one. A `Resync` counts for nothing by itself:
//! it is the folder's list that follows it which has to be complete. Of what a list is about, no order is promised: a flood is
//! told as a range to be listed and its newest messages one by one, and the last of the range may be told once more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
};

/// A folder of an account, as its device names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// `<tenant>.<ulid>`
    pub account: String,
    /// Mailbell's number of the folder; INBOX is 1.
    pub folder: u32,
}

impl Place {
    /// The INBOX of an account.
    #[must_use]
    pub fn inbox(account: &str) -> Self {
        Self {
            account: account.to_owned(),
            folder: 1,
        }
    }
}

/// One message: where the mail server put it, and the number that the load generator gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mail {
    /// Its UID.
    pub uid: u32,
    /// The number in its subject.
    pub number: u64,
}

/// What a folder holds, by the mail server's own word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Truth {
    /// UIDVALIDITY.
    pub generation: u32,
    /// In ascending order of UID.
    pub mail: Vec<Mail>,
}

/// What an app was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A message arrived.
    Arrived {
        /// Where.
        place: Place,
        /// UIDVALIDITY.
        generation: u32,
        /// Which.
        mail: Mail,
        /// Whether a person was alerted.
        alert: bool,
    },
    /// A message is gone.
    Gone {
        /// Where.
        place: Place,
        /// UIDVALIDITY.
        generation: u32,
        /// Which.
        uid: u32,
    },
    /// This is all that the folder holds of these UIDs now; whatever was known of them or of another generation is void.
    Replaced {
        /// Where.
        place: Place,
        /// UIDVALIDITY.
        generation: u32,
        /// Which UIDs were looked at.
        uids: RangeInclusive<u32>,
        /// The whole list.
        mail: Vec<Mail>,
        /// The numbers of those of which a person was alerted.
        alerts: Vec<u64>,
    },
}

/// What is wrong with what a device was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It lies in the mailbox and the device was never told.
    Lost(Place, Mail),
    /// The device was told of it twice.
    Double(Place, Mail),
    /// It was told after one with a higher UID.
    Swapped {
        /// Where.
        place: Place,
        /// UIDVALIDITY.
        generation: u32,
        /// What came late.
        mail: Mail,
        /// The highest UID before it.
        after: u32,
    },
    /// The device was told of a message that is not there, or of one with another's content.
    Wrong(Place, Mail),
    /// A person was alerted of it twice.
    AlertedTwice(u64),
    /// What the device has is of another generation than the mailbox.
    Stale {
        /// Where.
        place: Place,
        /// The device's.
        device: u32,
        /// The mailbox's.
        mailbox: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(place, mail) => write!(f, "lost {mail} in {place}"),
            Self::Double(place, mail) => write!(f, "told twice: {mail} in {place}"),
            Self::Swapped {
                place, mail, after, ..
            } => write!(f, "out of order: {mail} after UID {after} in {place}"),
            Self::Wrong(place, mail) => write!(f, "not in the mailbox: {mail} in {place}"),
            Self::AlertedTwice(number) => write!(f, "alerted twice: message {number}"),
            Self::Stale {
                place,
                device,
                mailbox,
            } => write!(
                f,
                "{place} is of generation {mailbox}, the device has {device}"
            ),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "folder {} of {}", self.folder, self.account)
    }
}

impl fmt::Display for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} (UID {})", self.number, self.uid)
    }
}

/// What a device has of one folder, by what it was told.
#[derive(Debug, Default)]
pub struct Held {
    /// UIDVALIDITY of what was told last.
    pub generation: u32,
    /// Number by UID.
    pub mail: BTreeMap<u32, u64>,
    highest: u32,
}

/// What a device has of each folder.
#[must_use]
pub fn held(seen: &[Seen]) -> BTreeMap<Place, Held> {
    fold(seen, &mut Vec::new())
}

fn fold(seen: &[Seen], faults: &mut Vec<Fault>) -> BTreeMap<Place, Held> {
    let mut held = BTreeMap::new();
    for fact in seen {
        hear(&mut held, fact, faults);
    }
    held
}

/// Every fault in what one device was told; empty means complete, once and in order.
///
/// `truth` has the folders that the device is subscribed to; of each, it must have been told of everything, from the first
/// message on. Messages that were there before the device came are to be left out of `truth`, by [`Truth::after`].
#[must_use]
pub fn audit(truth: &BTreeMap<Place, Truth>, seen: &[Seen]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let held = fold(seen, &mut faults);
    faults.retain(|fault| match fault {
        Fault::Swapped {
            place,
            generation,
            mail,
            ..
        } => !listed(seen, place, *generation, mail.uid),
        _ => true,
    });
    alerts(seen, &mut faults);
    compare(truth, &held, &mut faults);
    faults
}

/// Whether a list was about this UID. Of what lies above all that it held, it says only that nothing was there then: what
/// arrived later must come in order.
fn listed(seen: &[Seen], of: &Place, generation: u32, uid: u32) -> bool {
    seen.iter().any(|fact| match fact {
        Seen::Replaced {
            place,
            generation: listed,
            uids,
            mail,
            ..
        } => {
            (place, *listed) == (of, generation)
                && uids.contains(&uid)
                && mail.iter().any(|mail| uid <= mail.uid)
        }
        Seen::Arrived { .. } | Seen::Gone { .. } => false,
    })
}

/// Works one fact into what the device holds.
fn hear(held: &mut BTreeMap<Place, Held>, fact: &Seen, faults: &mut Vec<Fault>) {
    match fact {
        Seen::Arrived {
            place,
            generation,
            mail,
            ..
        } => {
            let folder = Held::of(held, place, *generation);
            if folder.mail.insert(mail.uid, mail.number).is_some() {
                faults.push(Fault::Double(place.clone(), *mail));
            } else if mail.uid < folder.highest {
                faults.push(Fault::Swapped {
                    place: place.clone(),
                    generation: *generation,
                    mail: *mail,
                    after: folder.highest,
                });
            }
            folder.highest = folder.highest.max(mail.uid);
        }
        Seen::Gone {
            place,
            generation,
            uid,
        } => {
            Held::of(held, place, *generation).mail.remove(uid);
        }
        Seen::Replaced {
            place,
            generation,
            uids,
            mail,
            ..
        } => {
            let folder = Held::of(held, place, *generation);
            folder.mail.retain(|uid, _| !uids.contains(uid));
            for mail in mail {
                if folder.mail.insert(mail.uid, mail.number).is_some() {
                    faults.push(Fault::Double(place.clone(), *mail));
                }
                folder.highest = folder.highest.max(mail.uid);
            }
        }
    }
}

impl Held {
    /// The folder in this generation; what was held of another is void.
    fn of<'a>(held: &'a mut BTreeMap<Place, Self>, place: &Place, generation: u32) -> &'a mut Self {
        let folder = held.entry(place.clone()).or_default();
        if folder.generation != generation {
            *folder = Self {
                generation,
                ..Self::default()
            };
        }
        folder
    }
}

/// One message alerts once, however often and in whatever form it is told.
fn alerts(seen: &[Seen], faults: &mut Vec<Fault>) {
    let mut before = BTreeSet::new();
    for number in alerted(seen) {
        if !before.insert(number) {
            faults.push(Fault::AlertedTwice(number));
        }
    }
}

/// The numbers of which a person was alerted, in the order of the alerts.
#[must_use]
pub fn alerted(seen: &[Seen]) -> Vec<u64> {
    let mut numbers = Vec::new();
    for fact in seen {
        match fact {
            Seen::Arrived {
                mail, alert: true, ..
            } => numbers.push(mail.number),
            Seen::Replaced { alerts, .. } => numbers.extend(alerts),
            Seen::Arrived { .. } | Seen::Gone { .. } => {}
        }
    }
    numbers
}

fn compare(truth: &BTreeMap<Place, Truth>, held: &BTreeMap<Place, Held>, faults: &mut Vec<Fault>) {
    let nothing = Held::default();
    for (place, truth) in truth {
        let device = held.get(place).unwrap_or(&nothing);
        if device.generation != truth.generation && !device.mail.is_empty() {
            faults.push(Fault::Stale {
                place: place.clone(),
                device: device.generation,
                mailbox: truth.generation,
            });
        }
        for mail in &truth.mail {
            match device.mail.get(&mail.uid) {
                Some(number) if *number == mail.number => {}
                Some(number) => faults.push(Fault::Wrong(
                    place.clone(),
                    Mail {
                        uid: mail.uid,
                        number: *number,
                    },
                )),
                None => faults.push(Fault::Lost(place.clone(), *mail)),
            }
        }
    }
    for (place, device) in held {
        let there: BTreeSet<u32> = truth
            .get(place)
            .map(|truth| truth.mail.iter().map(|mail| mail.uid).collect())
            .unwrap_or_default();
        for (uid, number) in &device.mail {
            // What lay there before the device came is no fault when a listing shows it.
            let before = truth.get(place).is_some_and(|truth| *uid <= truth.known());
            if !there.contains(uid) && !before {
                faults.push(Fault::Wrong(
                    place.clone(),
                    Mail {
                        uid: *uid,
                        number: *number,
                    },
                ));
            }
        }
    }
}

impl Truth {
    /// Without what has a UID up to `uid`: for a device that came when that was already there.
    #[must_use]
    pub fn after(mut self, uid: u32) -> Self {
        self.mail.retain(|mail| mail.uid > uid);
        self
    }

    /// The UID up to which the device need not know anything.
    fn known(&self) -> u32 {
        self.mail
            .first()
            .map_or(0, |first| first.uid.saturating_sub(1))
    }
}

/// All faults as text, the first 20 of them; for an assertion's message.
#[must_use]
pub fn describe(faults: &[Fault]) -> String {
    let mut text = format!("{} faults:", faults.len());
    for fault in faults.iter().take(20) {
        text.push_str("\n  ");
        text.push_str(&fault.to_string());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place::inbox("default.01ARZ3NDEKTSV4RRFFQ69G5FAV")
    }

    fn mail(uid: u32) -> Mail {
        Mail {
            uid,
            number: u64::from(uid) + 1000,
        }
    }

    fn truth(uids: &[u32]) -> BTreeMap<Place, Truth> {
        let mail = uids.iter().copied().map(mail).collect();
        BTreeMap::from([(
            place(),
            Truth {
                generation: 7,
                mail,
            },
        )])
    }

    fn arrived(uid: u32) -> Seen {
        Seen::Arrived {
            place: place(),
            generation: 7,
            mail: mail(uid),
            alert: true,
        }
    }

    fn replaced(generation: u32, uids: &[u32]) -> Seen {
        replaced_range(generation, 1..=u32::MAX, uids)
    }

    fn replaced_range(generation: u32, range: RangeInclusive<u32>, uids: &[u32]) -> Seen {
        Seen::Replaced {
            place: place(),
            generation,
            uids: range,
            mail: uids.iter().copied().map(mail).collect(),
            alerts: Vec::new(),
        }
    }

    #[test]
    fn all_once_and_in_order_is_right() {
        let seen = [arrived(1), arrived(2), arrived(4)];
        assert_eq!(audit(&truth(&[1, 2, 4]), &seen), []);
        assert_eq!(audit(&truth(&[]), &[]), []);
    }

    #[test]
    fn a_planted_loss_is_found() {
        let seen = [arrived(1), arrived(3)];
        let lost = Fault::Lost(place(), mail(2));
        let faults = audit(&truth(&[1, 2, 3]), &seen);
        assert_eq!(faults, [lost]);
        assert!(describe(&faults).contains("lost message 1002 (UID 2)"));
        // A device that heard of nothing at all.
        assert_eq!(audit(&truth(&[1, 2, 3]), &[]).len(), 3);
    }

    #[test]
    fn a_planted_double_is_found() {
        let seen = [arrived(1), arrived(2), arrived(1)];
        assert_eq!(
            audit(&truth(&[1, 2]), &seen),
            [
                Fault::Double(place(), mail(1)),
                Fault::AlertedTwice(mail(1).number)
            ]
        );
        // Also when the first telling was a listing, and when a listing has it twice.
        let seen = [replaced(7, &[1, 2]), arrived(2)];
        assert_eq!(
            audit(&truth(&[1, 2]), &seen),
            [Fault::Double(place(), mail(2))]
        );
        assert_eq!(
            audit(&truth(&[1, 2]), &[replaced(7, &[1, 2, 1])]),
            [Fault::Double(place(), mail(1))]
        );
    }

    #[test]
    fn a_planted_swap_is_found() {
        let seen = [arrived(1), arrived(3), arrived(2)];
        assert_eq!(
            audit(&truth(&[1, 2, 3]), &seen),
            [Fault::Swapped {
                place: place(),
                generation: 7,
                mail: mail(2),
                after: 3
            }]
        );
    }

    #[test]
    fn order_is_promised_outside_of_what_is_listed() {
        // A flood: the newest are told one by one, the rest as a range.
        let flood = [arrived(1), arrived(4), arrived(3), arrived(5)];
        let with_list = |range: RangeInclusive<u32>, uids: &[u32]| {
            let mut seen = flood.to_vec();
            seen.push(replaced_range(7, range, uids));
            seen
        };
        let truth = truth(&[1, 2, 3, 4, 5]);
        assert_eq!(audit(&truth, &with_list(2..=3, &[2, 3])), []);
        let swapped = |uid, after| Fault::Swapped {
            place: place(),
            generation: 7,
            mail: mail(uid),
            after,
        };
        assert_eq!(audit(&truth, &with_list(2..=2, &[2])), [swapped(3, 4)]);
        // A list of everything says nothing of what arrives after it, nor one of another generation.
        let later = [replaced(7, &[1, 2, 3]), arrived(5), arrived(4)];
        assert_eq!(audit(&truth, &later), [swapped(4, 5)]);
        let other = [replaced(6, &[1, 2, 3, 4, 5])];
        let seen = [&other[..], &flood, &[arrived(2)]].concat();
        assert_eq!(audit(&truth, &seen), [swapped(3, 4), swapped(2, 5)]);
    }

    #[test]
    fn a_resync_counts_only_with_the_full_set() {
        // What was lost before is made good by the list, and what was told before may be in it again.
        let seen = [arrived(1), replaced(7, &[1, 2, 3]), arrived(4)];
        assert_eq!(audit(&truth(&[1, 2, 3, 4]), &seen), []);
        let seen = [arrived(1), replaced(7, &[1, 3]), arrived(4)];
        assert_eq!(
            audit(&truth(&[1, 2, 3, 4]), &seen),
            [Fault::Lost(place(), mail(2))]
        );
    }

    #[test]
    fn a_list_that_forgets_what_was_told_is_a_loss() {
        let seen = [arrived(1), arrived(2), replaced(7, &[2])];
        assert_eq!(
            audit(&truth(&[1, 2]), &seen),
            [Fault::Lost(place(), mail(1))]
        );
    }

    #[test]
    fn a_list_of_a_range_leaves_the_rest_alone() {
        let seen = [
            arrived(1),
            arrived(2),
            replaced_range(7, 2..=3, &[3]),
            arrived(4),
        ];
        assert_eq!(audit(&truth(&[1, 3, 4]), &seen), []);
        let seen = [arrived(1), replaced_range(7, 2..=3, &[3, 4])];
        assert_eq!(audit(&truth(&[1, 3, 4]), &seen), []);
    }

    #[test]
    fn what_is_gone_is_not_expected() {
        let gone = Seen::Gone {
            place: place(),
            generation: 7,
            uid: 1,
        };
        let seen = [arrived(1), arrived(2), gone];
        assert_eq!(audit(&truth(&[2]), &seen), []);
        assert_eq!(audit(&truth(&[1, 2]), &seen).len(), 1);
    }

    #[test]
    fn a_message_alerts_once_also_in_a_list() {
        let list = Seen::Replaced {
            place: place(),
            generation: 7,
            uids: 1..=9,
            mail: vec![mail(1), mail(2)],
            alerts: vec![mail(1).number, mail(2).number],
        };
        let seen = [arrived(1), list];
        assert_eq!(
            audit(&truth(&[1, 2]), &seen),
            [Fault::AlertedTwice(mail(1).number)]
        );
        assert_eq!(alerted(&seen), [1001, 1001, 1002]);
    }

    #[test]
    fn a_new_generation_must_be_learned() {
        let seen = [arrived(1), arrived(2)];
        let mut new = truth(&[1, 2]);
        new.get_mut(&place()).unwrap().generation = 8;
        assert_eq!(
            audit(&new, &seen),
            [Fault::Stale {
                place: place(),
                device: 7,
                mailbox: 8
            }]
        );
        assert_eq!(audit(&new, &[arrived(9), replaced(8, &[1, 2])]), []);
    }

    #[test]
    fn what_is_not_there_or_has_another_content_is_wrong() {
        assert_eq!(
            audit(&truth(&[1]), &[arrived(1), arrived(2)]),
            [Fault::Wrong(place(), mail(2))]
        );
        let other = Mail { uid: 1, number: 5 };
        let seen = [Seen::Arrived {
            place: place(),
            generation: 7,
            mail: other,
            alert: false,
        }];
        assert_eq!(audit(&truth(&[1]), &seen), [Fault::Wrong(place(), other)]);
        // An account that the device is not subscribed to.
        assert_eq!(
            audit(&BTreeMap::new(), &[arrived(1)]),
            [Fault::Wrong(place(), mail(1))]
        );
    }

    #[test]
    fn what_was_there_before_the_device_may_be_missing_or_listed() {
        let later: BTreeMap<_, _> = truth(&[1, 2, 3, 4])
            .into_iter()
            .map(|(place, truth)| (place, truth.after(2)))
            .collect();
        assert_eq!(audit(&later, &[arrived(3), arrived(4)]), []);
        assert_eq!(audit(&later, &[replaced(7, &[1, 2, 3]), arrived(4)]), []);
        assert_eq!(audit(&later, &[arrived(3)]).len(), 1);
    }
}
