//! A client without a connection, and what a server may say to it.

use mailbell_proto::push::v1::{
    self as push, AccountState, Cursor, Event, EventKind, Hello, Message, Resync, event::Body,
    resync::Scope,
};

use super::super::*;
use crate::event::ReplaceFolder;

pub(super) const ACCOUNT: &str = "a.1";
/// A minute after the epoch, when every test begins.
pub(super) const START: i64 = 60_000;

pub(super) struct Client {
    pub(super) session: ClientSession,
    pub(super) now: Now,
}

pub(super) fn key(uid: u32, kind: EventKind, modseq: u64) -> EventKey {
    EventKey {
        account: ACCOUNT.to_owned(),
        folder: 1,
        generation: 7,
        uid,
        kind: kind.into(),
        modseq,
    }
}

pub(super) fn message(uid: u32, date_ms: i64) -> Message {
    Message {
        uid,
        message_id: format!("{uid}@example.org"),
        internal_date_ms: date_ms,
        ..Message::default()
    }
}

pub(super) fn arrived(uid: u32, alert: bool) -> Frame {
    arrived_in(1, message(uid, 0), alert)
}

pub(super) fn arrived_in(folder: u32, message: Message, alert: bool) -> Frame {
    Frame::Event(Event {
        key: Some(EventKey {
            folder,
            ..key(message.uid, EventKind::Arrived, 0)
        }),
        alert,
        body: Some(Body::Arrived(push::Arrived {
            message: Some(message),
        })),
        ..Event::default()
    })
}

pub(super) fn resync(scope: Scope) -> Frame {
    Frame::Resync(Resync {
        scope: Some(scope),
        ..Resync::default()
    })
}

pub(super) fn of_account(folder: u32) -> Scope {
    Scope {
        account: ACCOUNT.to_owned(),
        folder,
        ..Scope::default()
    }
}

pub(super) fn cursor(token: &str) -> Frame {
    Frame::Cursor(Cursor {
        token: token.to_owned().into(),
        log_silent_since_ms: 0,
    })
}

pub(super) fn listing(messages: Vec<Message>) -> Listing {
    Listing {
        generation: 7,
        folder_name: String::new(),
        exists: u32::try_from(messages.len()).unwrap(),
        messages,
        folders: Vec::new(),
        more: false,
    }
}

impl Client {
    pub(super) fn new() -> Self {
        Self::from(None, SessionOptions::default())
    }

    pub(super) fn from(state: Option<StoredState>, options: SessionOptions) -> Self {
        Self {
            session: ClientSession::new(options, state, 1),
            now: Now {
                elapsed: Duration::ZERO,
                wall_ms: START,
            },
        }
    }

    /// Connected, live, and with a cursor.
    pub(super) fn live() -> Self {
        let mut client = Self::new();
        client.greet();
        client.frame(Frame::Live(push::Live {}));
        client.frame(cursor("zero"));
        client.take_all();
        client
    }

    pub(super) fn greet(&mut self) -> Vec<AppEvent> {
        self.frame(Frame::Hello(Hello {
            digest: Bytes::from_static(b"digest"),
            accounts: vec![AccountState {
                account: ACCOUNT.to_owned(),
                ..AccountState::default()
            }],
            ..Hello::default()
        }))
    }

    pub(super) fn out(&mut self, frame: Frame) -> Vec<Output> {
        let frame = ServerFrame { frame: Some(frame) };
        self.session.on_frame(frame, self.now)
    }

    pub(super) fn frame(&mut self, frame: Frame) -> Vec<AppEvent> {
        events(self.out(frame))
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now.elapsed += Duration::from_secs(seconds);
        self.now.wall_ms += i64::try_from(seconds).unwrap() * 1000;
    }

    pub(super) fn take_all(&mut self) {
        self.session.on_taken(u64::MAX);
    }

    /// The next listing, as folder and span.
    pub(super) fn listing(&mut self) -> Option<(u64, u32, Span)> {
        let request = self.session.start_listing(self.now)?;
        Some((request.ticket, request.folder, request.span))
    }

    pub(super) fn answer(
        &mut self,
        ticket: u64,
        answer: Result<Listing, ListFailure>,
    ) -> Vec<AppEvent> {
        events(self.session.on_listed(ticket, answer, self.now))
    }

    pub(super) fn replaced(&mut self, ticket: u64, messages: Vec<Message>) -> ReplaceFolder {
        match self.answer(ticket, Ok(listing(messages))).pop() {
            Some(AppEvent::ReplaceFolder(replace)) => replace,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn stored(&mut self) -> StoredState {
        self.session.not_stored();
        self.session.storable().unwrap()
    }
}

pub(super) fn events(out: Vec<Output>) -> Vec<AppEvent> {
    out.into_iter()
        .filter_map(|output| match output {
            Output::Hand(handed) => Some(handed.event),
            _ => None,
        })
        .collect()
}

pub(super) fn alerts(replace: &ReplaceFolder) -> Vec<u32> {
    replace.alert_for().map(|message| message.uid).collect()
}
