//! One entry of a log as this gateway holds it: read once, encoded once per content level, shared by all devices.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use mailbell_core::{
    content::strip,
    delivery::Entry,
    event::{Event, Fact},
    ids::AccountId,
};
use mailbell_proto::push::v1::{
    self as push, AccountState, Arrived, Bulk, Changed, ContentLevel, EventKind, Gone, Resync,
    ResyncReason, Times, event::Body, resync::Scope, server_frame::Frame,
};
use mailbell_runtime::trace::{self, KeyValue, TraceContext};
use prometheus_client::metrics::counter::Counter;

use crate::{clock::at_us, frame};

/// A fact that goes to very many devices is traced to the first of them only.
const MOST_TRACED: u32 = 32;

/// See the module.
#[derive(Debug)]
pub(crate) struct LogEntry {
    event: Event,
    stored_us: i64,
    received_us: i64,
    trace: Option<TraceContext>,
    traced: AtomicU32,
    /// By level: KEY, HEADERS, PREVIEW.
    frames: [OnceLock<Bytes>; 3],
}

/// A shared [`LogEntry`].
#[derive(Debug, Clone)]
pub(crate) struct SharedEntry(Arc<LogEntry>);

impl Entry for SharedEntry {
    fn account(&self) -> &AccountId {
        &self.0.event.account
    }

    fn kind(&self) -> EventKind {
        self.0.event.fact.kind()
    }

    /// What is stored, and one encoded frame: devices mostly ask for the same level.
    fn bytes(&self) -> usize {
        let event = &self.0.event;
        size_of::<LogEntry>()
            + event.traceparent.len()
            + 2 * (event.content.len() + event.folder_name.len())
    }
}

impl SharedEntry {
    pub(crate) fn new(event: Event, stored_us: i64, received_us: i64) -> Self {
        // Nothing is parsed when nothing is recorded.
        let trace = trace::is_enabled()
            .then(|| TraceContext::parse(&event.traceparent))
            .flatten()
            .filter(TraceContext::is_sampled);
        Self(Arc::new(LogEntry {
            event,
            stored_us,
            received_us,
            trace,
            traced: AtomicU32::new(0),
            frames: Default::default(),
        }))
    }

    pub(crate) fn event(&self) -> &Event {
        &self.0.event
    }

    /// Why the device must list, if this says so.
    pub(crate) fn resync(&self) -> Option<ResyncReason> {
        match &self.0.event.fact {
            Fact::Resync { reason, .. } => Some(*reason),
            Fact::Bulk { .. } => Some(ResyncReason::Bulk),
            _ => None,
        }
    }

    pub(crate) fn received_us(&self) -> i64 {
        self.0.received_us
    }

    /// Records that this gateway has it.
    pub(crate) fn trace_received(&self) {
        if let Some(parent) = &self.0.trace {
            let (from, to) = (at_us(self.0.stored_us), at_us(self.0.received_us));
            trace::record_span("receive", parent, from, to, []);
        }
    }

    /// Records its way through one device's queue.
    pub(crate) fn trace_written(&self, queued_us: i64, taken_us: i64, written_us: i64) {
        let Some(parent) = &self.0.trace else { return };
        if self.0.traced.fetch_add(1, Ordering::Relaxed) >= MOST_TRACED {
            return;
        }
        let kind = || KeyValue::new("kind", self.kind().as_str_name());
        let (queued, taken, written) = (at_us(queued_us), at_us(taken_us), at_us(written_us));
        trace::record_span("queue", parent, queued, taken, [kind()]);
        trace::record_span("write", parent, taken, written, [kind()]);
    }

    /// The frame for devices of this content level; the same bytes for all of them.
    pub(crate) fn frame(&self, level: ContentLevel, damaged: &Counter) -> Bytes {
        let [key, headers, preview] = &self.0.frames;
        let cell = match level {
            ContentLevel::Key => key,
            ContentLevel::Headers => headers,
            ContentLevel::Preview | ContentLevel::Unspecified => preview,
        };
        cell.get_or_init(|| frame::encode(self.0.frame(level, damaged)))
            .clone()
    }
}

impl LogEntry {
    fn frame(&self, level: ContentLevel, damaged: &Counter) -> Frame {
        let event = &self.event;
        let level = match event.fact {
            // It was stored without: there was a policy.
            Fact::Arrived { .. } if event.content.is_empty() => ContentLevel::Key,
            _ => level,
        };
        let body = match &event.fact {
            Fact::Arrived { .. } => {
                // A fact whose content makes no sense is a fact all the same: told without it.
                let message = match level {
                    ContentLevel::Key => None,
                    level => self.content(damaged).map(|message| strip(message, level)),
                };
                Body::Arrived(Arrived { message })
            }
            Fact::Changed { .. } => {
                let changed = self.content::<Changed>(damaged);
                let changed = changed.filter(|_| level != ContentLevel::Key);
                Body::Changed(changed.unwrap_or_default())
            }
            Fact::Gone { .. } => Body::Gone(Gone {}),
            Fact::Bulk { first, last, .. } => Body::Bulk(Bulk {
                first_uid: *first,
                last_uid: *last,
                count: self.content::<Bulk>(damaged).map_or(0, |bulk| bulk.count),
            }),
            Fact::Resync {
                uid_next, reason, ..
            } => {
                let told = self.content::<Resync>(damaged).unwrap_or_default();
                return Frame::Resync(Resync {
                    scope: Some(Scope {
                        account: event.account.to_string(),
                        folder: event.folder,
                        ..Scope::default()
                    }),
                    reason: (*reason).into(),
                    retry_after_ms: told.retry_after_ms,
                    generation: event.generation,
                    uid_next: *uid_next,
                    key: Some(event.key()),
                });
            }
            Fact::AccountState { health, .. } => {
                let told = self.content::<AccountState>(damaged).unwrap_or_default();
                return Frame::AccountState(AccountState {
                    account: event.account.to_string(),
                    health: (*health).into(),
                    key: Some(event.key()),
                    ..told
                });
            }
        };
        let folder_name = match level {
            ContentLevel::Key => String::new(),
            _ => event.folder_name.clone(),
        };
        Frame::Event(push::Event {
            key: Some(event.key()),
            folder_name,
            alert: event.alert,
            priority: event.priority().into(),
            traceparent: event.traceparent.clone(),
            times: Some(Times {
                detected_us: event.detected_us,
                fetched_us: event.fetched_us,
                appended_us: self.stored_us,
                received_us: self.received_us,
            }),
            body: Some(body),
        })
    }

    fn content<M: prost::Message + Default>(&self, damaged: &Counter) -> Option<M> {
        let read = M::decode(self.event.content.clone()).ok();
        if read.is_none() {
            damaged.inc();
        }
        read
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use mailbell_proto::push::v1::{Health, Message, ResyncReason};
    use prost::Message as _;

    use super::*;

    pub(crate) fn event(fact: Fact, content: Vec<u8>) -> Event {
        Event {
            account: "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            folder: 1,
            generation: 7,
            fact,
            alert: true,
            owner_epoch: 3,
            traceparent: String::new(),
            detected_us: 1,
            fetched_us: 2,
            folder_name: "INBOX".to_owned(),
            content: content.into(),
        }
    }

    fn arrived() -> SharedEntry {
        let message = Message {
            uid: 9,
            subject: "hello".to_owned(),
            preview: "dear".to_owned(),
            ..Message::default()
        };
        let fact = Fact::Arrived { uid: 9, digest: 0 };
        SharedEntry::new(event(fact, message.encode_to_vec()), 3, 4)
    }

    fn told(entry: &SharedEntry, level: ContentLevel) -> push::Event {
        match frame::decode(&entry.frame(level, &Counter::default())) {
            Frame::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }

    fn message(event: &push::Event) -> Option<Message> {
        match event.body.clone() {
            Some(Body::Arrived(arrived)) => arrived.message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_level_shows_what_it_says_and_is_encoded_once() {
        let entry = arrived();
        let whole = told(&entry, ContentLevel::Preview);
        assert_eq!(message(&whole).unwrap().preview, "dear");
        let times = whole.times.unwrap();
        assert_eq!((times.appended_us, times.received_us), (3, 4));
        assert!(whole.alert && whole.folder_name == "INBOX");
        let headers = message(&told(&entry, ContentLevel::Headers)).unwrap();
        assert_eq!(
            (headers.subject.as_str(), headers.preview.as_str()),
            ("hello", "")
        );
        let key = told(&entry, ContentLevel::Key);
        assert!(message(&key).is_none() && key.folder_name.is_empty());
        assert_eq!(key.key, whole.key);
        let counter = Counter::default();
        let (one, two) = (
            entry.frame(ContentLevel::Key, &counter),
            entry.clone().frame(ContentLevel::Key, &counter),
        );
        assert_eq!(one.as_ptr(), two.as_ptr());
    }

    #[test]
    fn what_was_stored_without_content_is_told_as_a_key() {
        let fact = Fact::Arrived { uid: 9, digest: 4 };
        let entry = SharedEntry::new(event(fact, Vec::new()), 3, 4);
        let whole = told(&entry, ContentLevel::Preview);
        assert_eq!(whole, told(&entry, ContentLevel::Key));
        assert!(message(&whole).is_none() && whole.folder_name.is_empty() && whole.alert);
    }

    #[test]
    fn a_fact_with_damaged_content_is_told_without_it() {
        let fact = Fact::Arrived { uid: 9, digest: 0 };
        let entry = SharedEntry::new(event(fact, vec![0xff; 9]), 3, 4);
        let damaged = Counter::default();
        let frame = frame::decode(&entry.frame(ContentLevel::Preview, &damaged));
        assert!(matches!(frame, Frame::Event(_)));
        assert_eq!(damaged.get(), 1);
    }

    #[test]
    fn resync_and_account_state_are_frames_of_that_name() {
        let resync = Fact::Resync {
            counter: 4,
            uid_next: 12,
            present: 0,
            reason: ResyncReason::Generation,
        };
        let entry = SharedEntry::new(event(resync, Vec::new()), 3, 4);
        let frame = frame::decode(&entry.frame(ContentLevel::Key, &Counter::default()));
        let Frame::Resync(resync) = frame else {
            panic!("{frame:?}");
        };
        let scope = resync.scope.clone().unwrap();
        assert_eq!((scope.folder, scope.everything), (1, false));
        assert_eq!((resync.generation, resync.uid_next), (7, 12));
        assert_eq!(resync.reason(), ResyncReason::Generation);
        assert_eq!(resync.key.unwrap().modseq, 4);
        let state = AccountState {
            sentence: "Wrong password.".to_owned(),
            ..AccountState::default()
        };
        let fact = Fact::AccountState {
            counter: 5,
            health: Health::ActionNeeded,
        };
        let entry = SharedEntry::new(event(fact, state.encode_to_vec()), 3, 4);
        let frame = frame::decode(&entry.frame(ContentLevel::Key, &Counter::default()));
        let Frame::AccountState(state) = frame else {
            panic!("{frame:?}");
        };
        assert_eq!(state.health(), Health::ActionNeeded);
        assert_eq!(state.sentence, "Wrong password.");
        assert!(state.account.starts_with("default.") && state.key.is_some());
    }
}
