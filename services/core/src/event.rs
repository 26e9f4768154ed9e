//! A fact about a mailbox, as it lies in a log.

use bytes::Bytes;
use mailbell_proto::{
    bus::v1::{Header, LogEvent},
    push::v1::{self as push, EventKey, EventKind, Health, Priority, ResyncReason},
};
use prost::Message as _;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::ids::{AccountId, FolderId, Generation, OwnerEpoch, Uid};

/// The schema of [`LogEvent`] that this release writes.
pub const SCHEMA: u32 = 1;
/// An event is at most this long, so that memory per event is bounded everywhere.
pub const MAX_EVENT: usize = 8 * 1024;
/// What the header, the key and the folder's name may take of it.
const MAX_HEADER: usize = 1024;
/// A folder's name in an event is cut to this many bytes.
const MAX_FOLDER_NAME: usize = 512;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A message is in the folder.
    Arrived {
        /// Its UID.
        uid: Uid,
        /// The digest of what the message is, in whatever folder.
        digest: u64,
    },
    /// Its flags changed.
    Changed {
        /// Its UID.
        uid: Uid,
        /// RFC 7162; only the highest counts.
        modseq: u64,
    },
    /// It is no longer there.
    Gone {
        /// Its UID.
        uid: Uid,
    },
    /// `first..=last` arrived and are not told one by one.
    Bulk {
        /// Of the account; see [`crate::checkpoint::Checkpoint::next_counter`].
        counter: u64,
        /// The lowest UID.
        first: Uid,
        /// The highest UID.
        last: Uid,
        /// Which of the newest are there; see [`crate::checkpoint::present`].
        present: u64,
    },
    /// What is known of the folder no longer holds; it is known anew from `uid_next` on.
    Resync {
        /// Of the account.
        counter: u64,
        /// UIDNEXT when it was looked at.
        uid_next: Uid,
        /// Which of the newest below it are there; see [`crate::checkpoint::present`].
        present: u64,
        /// Why.
        reason: ResyncReason,
    },
    /// The account is watched, or is not.
    AccountState {
        /// Of the account.
        counter: u64,
        /// How it is.
        health: Health,
    },
}

impl Fact {
    /// The kind's name on the wire.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Arrived { .. } => EventKind::Arrived,
            Self::Changed { .. } => EventKind::Changed,
            Self::Gone { .. } => EventKind::Gone,
            Self::Bulk { .. } => EventKind::Bulk,
            Self::Resync { .. } => EventKind::Resync,
            Self::AccountState { .. } => EventKind::AccountState,
        }
    }
}

/// One entry of a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    /// Whose.
    pub account: AccountId,
    /// Where; 0 for [`Fact::AccountState`].
    pub folder: FolderId,
    /// The folder's UIDVALIDITY; 0 for [`Fact::AccountState`].
    pub generation: Generation,
    /// What.
    pub fact: Fact,
    /// Whether a person should be alerted.
    pub alert: bool,
    /// The owner that appended it.
    pub owner_epoch: OwnerEpoch,
    /// W3C trace context, or empty.
    pub traceparent: String,
    /// When the watcher noticed, in microseconds since the epoch.
    pub detected_us: i64,
    /// When the watcher had the content, in microseconds since the epoch.
    pub fetched_us: i64,
    /// As a person knows it.
    pub folder_name: String,
    /// Opaque here: what the device gets, encoded.
    pub content: Bytes,
}

impl std::fmt::Debug for Event {
    // Neither the content nor the folder's name: they are a person's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event")
            .field("account", &self.account)
            .field("folder", &self.folder)
            .field("generation", &self.generation)
            .field("fact", &self.fact)
            .field("alert", &self.alert)
            .field("content_bytes", &self.content.len())
            .finish_non_exhaustive()
    }
}

/// Why bytes are no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Not the encoding of a [`LogEvent`].
    #[error("not a log event")]
    Encoding,
    /// A part that must be there is not.
    #[error("a log event without {0}")]
    Missing(&'static str),
    /// Longer than [`MAX_EVENT`].
    #[error("an event of {0} bytes is longer than {MAX_EVENT}")]
    TooLong(usize),
}

impl Event {
    /// The key that makes it one fact.
    #[must_use]
    pub fn key(&self) -> EventKey {
        let (uid, modseq) = match self.fact {
            Fact::Arrived { uid, .. } | Fact::Gone { uid } => (uid, 0),
            Fact::Changed { uid, modseq } => (uid, modseq),
            Fact::Bulk { counter, .. }
            | Fact::Resync { counter, .. }
            | Fact::AccountState { counter, .. } => (0, counter),
        };
        EventKey {
            account: self.account.to_string(),
            folder: self.folder,
            generation: self.generation,
            uid,
            kind: self.fact.kind().into(),
            modseq,
        }
    }

    /// How urgent it is.
    #[must_use]
    pub fn priority(&self) -> Priority {
        match self.fact {
            _ if self.alert => Priority::High,
            Fact::Changed { .. } | Fact::Gone { .. } | Fact::Bulk { .. } => Priority::Low,
            _ => Priority::Normal,
        }
    }

    /// The `Nats-Msg-Id`: the key as text, so that a retry is known to be one.
    #[must_use]
    pub fn message_id(&self) -> String {
        message_id(&self.key())
    }

    /// The bytes that go into the log. The same for every call.
    ///
    /// # Errors
    /// [`EventError::TooLong`]: the content must be cut first, see [`fit_message`].
    pub fn encode(&self) -> Result<Bytes, EventError> {
        let mut header = Header {
            key: Some(self.key()),
            priority: self.priority().into(),
            alert: self.alert,
            owner_epoch: self.owner_epoch,
            traceparent: self.traceparent.clone(),
            detected_us: self.detected_us,
            fetched_us: self.fetched_us,
            folder_name: cut(&self.folder_name, MAX_FOLDER_NAME).to_owned(),
            schema: SCHEMA,
            ..Header::default()
        };
        match self.fact {
            Fact::Arrived { digest, .. } => header.content_digest = digest,
            Fact::Changed { .. } | Fact::Gone { .. } => {}
            Fact::Bulk {
                first,
                last,
                present,
                ..
            } => {
                header.first_uid = first;
                header.last_uid = last;
                header.present = present;
            }
            Fact::Resync {
                uid_next,
                present,
                reason,
                ..
            } => {
                header.last_uid = uid_next.saturating_sub(1);
                header.present = present;
                header.reason = reason.into();
            }
            Fact::AccountState { health, .. } => header.health = health.into(),
        }
        let bytes = LogEvent {
            header: Some(header),
            content: self.content.clone(),
        }
        .encode_to_vec();
        if bytes.len() > MAX_EVENT {
            return Err(EventError::TooLong(bytes.len()));
        }
        Ok(bytes.into())
    }

    /// Reads an entry of a log. `None`: a kind of a newer release, to be skipped.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode(bytes: Bytes) -> Result<Option<Self>, EventError> {
        if bytes.len() > MAX_EVENT {
            return Err(EventError::TooLong(bytes.len()));
        }
        let LogEvent { header, content } =
            LogEvent::decode(bytes).map_err(|_| EventError::Encoding)?;
        let header = header.ok_or(EventError::Missing("header"))?;
        let key = header.key.as_ref().ok_or(EventError::Missing("key"))?;
        let account = key
            .account
            .parse()
            .map_err(|_| EventError::Missing("account"))?;
        let (uid, counter) = (key.uid, key.modseq);
        let fact = match EventKind::try_from(key.kind) {
            Ok(EventKind::Arrived) => Fact::Arrived {
                uid,
                digest: header.content_digest,
            },
            Ok(EventKind::Changed) => Fact::Changed {
                uid,
                modseq: key.modseq,
            },
            Ok(EventKind::Gone) => Fact::Gone { uid },
            Ok(EventKind::Bulk) => Fact::Bulk {
                counter,
                first: header.first_uid,
                last: header.last_uid,
                present: header.present,
            },
            Ok(EventKind::Resync) => Fact::Resync {
                counter,
                uid_next: header.last_uid.saturating_add(1),
                present: header.present,
                reason: header.reason(),
            },
            Ok(EventKind::AccountState) => Fact::AccountState {
                counter,
                health: header.health(),
            },
            Ok(EventKind::Unspecified) => return Err(EventError::Missing("kind")),
            Err(_) => return Ok(None),
        };
        let needs_uid = matches!(
            fact,
            Fact::Arrived { .. } | Fact::Changed { .. } | Fact::Gone { .. }
        );
        if needs_uid && uid == 0 {
            return Err(EventError::Missing("uid"));
        }
        Ok(Some(Self {
            account,
            folder: key.folder,
            generation: key.generation,
            fact,
            alert: header.alert,
            owner_epoch: header.owner_epoch,
            traceparent: header.traceparent,
            detected_us: header.detected_us,
            fetched_us: header.fetched_us,
            folder_name: header.folder_name,
            content,
        }))
    }
}

/// A key as text: `<account>/<folder>/<generation>/<kind>/<uid>/<modseq>`.
#[must_use]
pub fn message_id(key: &EventKey) -> String {
    format!(
        "{}/{}/{}/{}/{}/{}",
        key.account, key.folder, key.generation, key.kind, key.uid, key.modseq
    )
}

/// The digest by which copies of one message are known: of the server's own content id where it has one, else of what a copy
/// keeps. Never of mutable things (flags, UID, folder). `None` if nothing of that is known: then nobody can say what is a copy.
#[must_use]
pub fn content_digest(message: &push::Message) -> Option<u64> {
    if !message.content_id.is_empty() {
        return Some(xxh3_64(message.content_id.as_bytes()));
    }
    let named = !message.message_id.is_empty() || !message.subject.is_empty();
    if !named && message.date_ms == 0 && message.size == 0 {
        return None;
    }
    let mut hash = Xxh3::new();
    let size = message.size.to_le_bytes();
    let date = message.date_ms.to_le_bytes();
    for part in [
        message.message_id.as_bytes(),
        message.subject.as_bytes(),
        &date,
        &size,
    ] {
        hash.update(&part.len().to_le_bytes());
        hash.update(part);
    }
    Some(hash.digest())
}

/// Stands in for the digest of a message of which nothing is known: it has no copies.
#[must_use]
pub fn place_digest(folder: FolderId, generation: Generation, uid: Uid) -> u64 {
    let mut hash = Xxh3::new();
    for part in [folder, generation, uid] {
        hash.update(&part.to_le_bytes());
    }
    hash.digest()
}

/// Cuts a message until its event fits into [`MAX_EVENT`]: first the preview, then recipients, then the rest. What is cut is
/// only what a device shows before opening the message.
#[must_use]
pub fn fit_message(mut message: push::Message) -> push::Message {
    const MOST: usize = MAX_EVENT - MAX_HEADER;
    for text in [
        &mut message.subject,
        &mut message.message_id,
        &mut message.thread,
    ] {
        shorten(text, 512);
    }
    shorten(&mut message.preview, 1024);
    shorten(&mut message.content_id, 64);
    message.from.truncate(8);
    message.to.truncate(32);
    message.flags.truncate(64);
    for address in message.from.iter_mut().chain(&mut message.to) {
        shorten(&mut address.name, 128);
        shorten(&mut address.address, 320);
    }
    for flag in &mut message.flags {
        shorten(flag, 64);
    }
    while message.encoded_len() > MOST {
        if message.to.len() > 1 {
            message.to.truncate(message.to.len() / 2);
        } else if message.flags.len() > 8 {
            message.flags.truncate(8);
        } else if message.from.len() > 1 {
            message.from.truncate(1);
        } else {
            message.preview.clear();
            shorten(&mut message.subject, 256);
            break;
        }
    }
    message
}

/// The beginning of `text`, at most `most` bytes, cut between characters.
#[must_use]
pub fn cut(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

fn shorten(text: &mut String, most: usize) {
    let end = cut(text, most).len();
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(fact: Fact) -> Event {
        Event {
            account: "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            folder: 1,
            generation: 7,
            fact,
            alert: true,
            owner_epoch: 3,
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            detected_us: 1,
            fetched_us: 2,
            folder_name: "INBOX".to_owned(),
            content: Bytes::from_static(b"opaque"),
        }
    }

    fn facts() -> impl Strategy<Value = Fact> {
        prop_oneof![
            (1u32.., any::<u64>()).prop_map(|(uid, digest)| Fact::Arrived { uid, digest }),
            (1u32.., any::<u64>()).prop_map(|(uid, modseq)| Fact::Changed { uid, modseq }),
            (1u32..).prop_map(|uid| Fact::Gone { uid }),
            (any::<u64>(), 1u32.., 1u32.., any::<u64>()).prop_map(
                |(counter, first, last, present)| Fact::Bulk {
                    counter,
                    first,
                    last,
                    present
                }
            ),
            (any::<u64>(), 1u32.., any::<u64>()).prop_map(|(counter, uid_next, present)| {
                Fact::Resync {
                    counter,
                    uid_next,
                    present,
                    reason: ResyncReason::Generation,
                }
            }),
            any::<u64>().prop_map(|counter| Fact::AccountState {
                counter,
                health: Health::Retrying
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(fact in facts()) {
            let event = event(fact);
            let read = Event::decode(event.encode().unwrap()).unwrap().unwrap();
            prop_assert_eq!(read.message_id(), event.message_id());
            prop_assert_eq!(read, event);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Event::decode(bytes.into());
        }

        #[test]
        fn every_message_fits(subject in ".{0,4000}", preview in ".{0,9000}", people in 0usize..300, name in ".{0,500}") {
            let address = push::Address { name, address: "a@example.org".repeat(40) };
            let message = fit_message(push::Message {
                subject, preview, to: vec![address.clone(); people], from: vec![address; people],
                flags: vec!["x".repeat(900); people], ..push::Message::default()
            });
            let mut event = event(Fact::Arrived { uid: 1, digest: 0 });
            event.folder_name = "F".repeat(5000);
            event.content = message.encode_to_vec().into();
            prop_assert!(event.encode().is_ok());
        }
    }

    #[test]
    fn a_kind_of_a_newer_release_is_skipped() {
        let mut newer = LogEvent::decode(event(Fact::Gone { uid: 1 }).encode().unwrap()).unwrap();
        newer.header.as_mut().unwrap().key.as_mut().unwrap().kind = 99;
        assert_eq!(Event::decode(newer.encode_to_vec().into()), Ok(None));
    }

    #[test]
    fn too_long_is_refused() {
        let mut long = event(Fact::Gone { uid: 1 });
        long.content = vec![0; MAX_EVENT].into();
        assert!(matches!(long.encode(), Err(EventError::TooLong(_))));
        assert!(matches!(
            Event::decode(vec![0; MAX_EVENT + 1].into()),
            Err(EventError::TooLong(_))
        ));
    }

    #[test]
    fn copies_have_one_digest() {
        let message = push::Message {
            message_id: "a@b".to_owned(),
            size: 10,
            uid: 1,
            ..push::Message::default()
        };
        let copy = push::Message {
            uid: 9,
            flags: vec!["\\Seen".to_owned()],
            internal_date_ms: 77,
            ..message.clone()
        };
        assert_eq!(content_digest(&message), content_digest(&copy));
        let other = push::Message {
            size: 11,
            ..message.clone()
        };
        assert_ne!(content_digest(&message), content_digest(&other));
        let unread = push::Message {
            uid: 1,
            flags: message.flags,
            internal_date_ms: 77,
            ..push::Message::default()
        };
        assert_eq!(content_digest(&unread), None);
    }
}
