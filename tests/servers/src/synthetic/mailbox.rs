//! An INBOX: mail comes and stays.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::watch;

use super::lock;

/// UIDVALIDITY of every INBOX.
pub(super) const GENERATION: u32 = 1_700_000_000;
/// UID of the message with the sequence number 1 is one more. Not 0, so that who takes one for the other is found out.
const UIDS_BELOW: u32 = 100;

/// A message as it lies in the mailbox.
#[derive(Clone)]
pub struct Stored {
    /// Its UID.
    pub uid: u32,
    /// INTERNALDATE.
    pub received: SystemTime,
    /// All of it.
    pub bytes: Arc<[u8]>,
}

/// Says nothing of the mail.
impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored")
            .field("uid", &self.uid)
            .finish_non_exhaustive()
    }
}

impl Stored {
    /// Its sequence number: no message is ever removed.
    pub(super) fn sequence(&self) -> u32 {
        self.uid - UIDS_BELOW
    }
}

pub(super) struct Mailbox {
    messages: Mutex<Vec<Stored>>,
    /// How many there are; sessions wait for it to grow.
    exists: watch::Sender<u32>,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self {
            messages: Mutex::new(Vec::new()),
            exists: watch::Sender::new(0),
        }
    }
}

impl Mailbox {
    pub(super) fn deliver(&self, bytes: Arc<[u8]>) -> u32 {
        let mut messages = lock(&self.messages);
        let exists = count(&messages) + 1;
        let uid = UIDS_BELOW + exists;
        messages.push(Stored {
            uid,
            received: SystemTime::now(),
            bytes,
        });
        // Before the lock goes, so that the number never falls.
        self.exists.send_replace(exists);
        uid
    }

    pub(super) fn exists(&self) -> watch::Receiver<u32> {
        self.exists.subscribe()
    }

    /// The messages from this sequence number on.
    pub(super) fn from(&self, sequence: u32) -> Vec<Stored> {
        let messages = lock(&self.messages);
        let start = usize::try_from(sequence.max(1) - 1).unwrap_or(usize::MAX);
        messages.get(start..).unwrap_or_default().to_vec()
    }

    /// The messages of these ranges, by UID or by sequence number, each once and in ascending order.
    pub(super) fn select(&self, ranges: &[(u32, u32)], by_uid: bool) -> Vec<Stored> {
        let messages = lock(&self.messages);
        let base = if by_uid { UIDS_BELOW } else { 0 };
        let most = count(&messages);
        let mut chosen: Vec<u32> = ranges
            .iter()
            .flat_map(|(first, last)| {
                // `*` is the last one, also where it stands alone in an empty range (RFC 3501, 6.4.8).
                let bound = |number: &u32| match *number {
                    u32::MAX => most,
                    number => number.saturating_sub(base),
                };
                let (first, last) = (bound(first), bound(last));
                first.min(last).max(1)..=first.max(last).min(most)
            })
            .collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
            .into_iter()
            .filter_map(|sequence| messages.get(usize::try_from(sequence).ok()? - 1).cloned())
            .collect()
    }
}

/// UIDNEXT of a mailbox with so many messages.
pub(super) fn uid_next(exists: u32) -> u32 {
    UIDS_BELOW + exists + 1
}

fn count(messages: &[Stored]) -> u32 {
    u32::try_from(messages.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_chosen_by_uid_or_by_number() {
        let mailbox = Mailbox::default();
        for n in 0..5_u8 {
            assert_eq!(mailbox.deliver([n].into()), 101 + u32::from(n));
        }
        let uids = |ranges: &[(u32, u32)], by_uid| -> Vec<u32> {
            let chosen = mailbox.select(ranges, by_uid);
            chosen.iter().map(|message| message.uid).collect()
        };
        assert_eq!(uids(&[(102, 103), (103, 103)], true), [102, 103]);
        assert_eq!(uids(&[(2, 3), (1, 1)], false), [101, 102, 103]);
        assert_eq!(uids(&[(104, u32::MAX)], true), [104, 105]);
        assert_eq!(uids(&[(900, u32::MAX)], true), [105]);
        assert_eq!(uids(&[(1, 100), (106, 200)], true), [0_u32; 0]);
        assert_eq!(uids(&[(u32::MAX, u32::MAX)], false), [105]);
        assert_eq!(mailbox.from(5).first().map(Stored::sequence), Some(5));
        assert_eq!((*mailbox.exists().borrow(), uid_next(5)), (5, 106));
    }
}
