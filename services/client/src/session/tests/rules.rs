//! One rule a test.

use mailbell_proto::push::v1::{
    self as push, AccountState, Bulk, Cursor, Event, EventKind, Health, Hello, Message, Resync,
    event::Body, resync::Scope,
};

use super::super::*;
use crate::event::{ReplaceFolder, UnlistableReason};

const ACCOUNT: &str = "a.1";
/// A minute after the epoch, when every test begins.
const START: i64 = 60_000;

struct Client {
    session: ClientSession,
    now: Now,
}

fn key(uid: u32, kind: EventKind, modseq: u64) -> EventKey {
    EventKey {
        account: ACCOUNT.to_owned(),
        folder: 1,
        generation: 7,
        uid,
        kind: kind.into(),
        modseq,
    }
}

fn message(uid: u32, date_ms: i64) -> Message {
    Message {
        uid,
        message_id: format!("{uid}@example.org"),
        internal_date_ms: date_ms,
        ..Message::default()
    }
}

fn arrived(uid: u32, alert: bool) -> Frame {
    arrived_in(1, message(uid, 0), alert)
}

fn arrived_in(folder: u32, message: Message, alert: bool) -> Frame {
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

fn resync(scope: Scope) -> Frame {
    Frame::Resync(Resync {
        scope: Some(scope),
        ..Resync::default()
    })
}

fn of_account(folder: u32) -> Scope {
    Scope {
        account: ACCOUNT.to_owned(),
        folder,
        ..Scope::default()
    }
}

fn cursor(token: &str) -> Frame {
    Frame::Cursor(Cursor {
        token: token.to_owned().into(),
        log_silent_since_ms: 0,
    })
}

fn listing(messages: Vec<Message>) -> Listing {
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
    fn new() -> Self {
        Self::from(None, SessionOptions::default())
    }

    fn from(state: Option<StoredState>, options: SessionOptions) -> Self {
        Self {
            session: ClientSession::new(options, state, 1),
            now: Now {
                elapsed: Duration::ZERO,
                wall_ms: START,
            },
        }
    }

    /// Connected, live, and with a cursor.
    fn live() -> Self {
        let mut client = Self::new();
        client.greet();
        client.frame(Frame::Live(push::Live {}));
        client.frame(cursor("zero"));
        client.take_all();
        client
    }

    fn greet(&mut self) -> Vec<AppEvent> {
        self.frame(Frame::Hello(Hello {
            digest: Bytes::from_static(b"digest"),
            accounts: vec![AccountState {
                account: ACCOUNT.to_owned(),
                ..AccountState::default()
            }],
            ..Hello::default()
        }))
    }

    fn out(&mut self, frame: Frame) -> Vec<Output> {
        let frame = ServerFrame { frame: Some(frame) };
        self.session.on_frame(frame, self.now)
    }

    fn frame(&mut self, frame: Frame) -> Vec<AppEvent> {
        events(self.out(frame))
    }

    fn pass(&mut self, seconds: u64) {
        self.now.elapsed += Duration::from_secs(seconds);
        self.now.wall_ms += i64::try_from(seconds).unwrap() * 1000;
    }

    fn take_all(&mut self) {
        self.session.on_taken(u64::MAX);
    }

    /// The next listing, as folder and span.
    fn listing(&mut self) -> Option<(u64, u32, Span)> {
        let request = self.session.start_listing(self.now)?;
        Some((request.ticket, request.folder, request.span))
    }

    fn answer(&mut self, ticket: u64, answer: Result<Listing, ListFailure>) -> Vec<AppEvent> {
        events(self.session.on_listed(ticket, answer, self.now))
    }

    fn replaced(&mut self, ticket: u64, messages: Vec<Message>) -> ReplaceFolder {
        match self.answer(ticket, Ok(listing(messages))).pop() {
            Some(AppEvent::ReplaceFolder(replace)) => replace,
            other => panic!("{other:?}"),
        }
    }

    fn stored(&mut self) -> StoredState {
        self.session.not_stored();
        self.session.storable().unwrap()
    }
}

fn events(out: Vec<Output>) -> Vec<AppEvent> {
    out.into_iter()
        .filter_map(|output| match output {
            Output::Hand(handed) => Some(handed.event),
            _ => None,
        })
        .collect()
}

fn alerts(replace: &ReplaceFolder) -> Vec<u32> {
    replace.alert_for().map(|message| message.uid).collect()
}

#[test]
fn the_first_frame_is_hello_and_only_the_first() {
    let mut client = Client::new();
    assert_eq!(client.out(cursor("c")), [Output::Violation]);
    let mut client = Client::live();
    let again = client.out(Frame::Hello(Hello::default()));
    assert_eq!(again, [Output::Violation]);
}

#[test]
fn a_first_state_is_stored_before_anything_is_handed() {
    let mut client = Client::new();
    assert_eq!(client.session.storable(), None);
    let hello = client.out(Frame::Hello(Hello::default()));
    assert_eq!(hello.first(), Some(&Output::Persist));
    let state = client.session.storable().unwrap();
    assert!(state.cursor().is_empty());
    assert_eq!(client.session.storable(), None);
    // The next process knows by it that it may have missed something.
    let mut next = Client::from(Some(state), SessionOptions::default());
    assert!(!next.greet().is_empty());
    assert_eq!(next.listing().map(|(_, folder, _)| folder), Some(1));
}

#[test]
fn a_cursor_is_stored_when_what_came_before_it_is_taken() {
    let mut client = Client::live();
    client.frame(arrived(1, true));
    client.frame(cursor("one"));
    client.frame(arrived(2, true));
    client.frame(cursor("two"));
    assert_eq!(client.session.resume_point().0, "two");
    assert_eq!(client.stored().cursor(), "zero");
    // Connected, AccountState, Live, and then the first arrival.
    client.session.on_taken(3);
    assert_eq!(client.stored().cursor(), "zero");
    client.session.on_taken(4);
    assert_eq!(client.stored().cursor(), "one");
    client.take_all();
    assert_eq!(client.stored().cursor(), "two");
}

#[test]
fn a_cursor_waits_for_a_listing_to_be_taken_and_not_for_ever() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    client.frame(cursor("later"));
    assert_eq!(client.stored().cursor(), "zero");
    let (ticket, ..) = client.listing().unwrap();
    client.replaced(ticket, Vec::new());
    assert_eq!(client.stored().cursor(), "zero");
    client.take_all();
    let state = client.stored();
    assert_eq!(
        (state.cursor().as_ref(), state.pending()),
        (&b"later"[..], 0)
    );

    // A mailbox that cannot be opened for days.
    client.frame(resync(of_account(1)));
    client.frame(cursor("latest"));
    for _ in 0..3 {
        assert_eq!(client.stored().cursor(), "later");
        client.pass(1000);
        let (ticket, ..) = client.listing().unwrap();
        client.answer(ticket, Err(ListFailure::Retry));
    }
    let state = client.stored();
    assert_eq!(
        (state.cursor().as_ref(), state.pending()),
        (&b"latest"[..], 1)
    );
    let mut next = Client::from(Some(state), SessionOptions::default());
    next.greet();
    assert!(next.listing().is_some(), "it is listed after a restart");
}

#[test]
fn a_listing_that_outlasts_the_recent_keys_does_not_hold_the_cursor() {
    let options = SessionOptions {
        recent_keys: 20,
        ..SessionOptions::default()
    };
    let mut client = Client::from(None, options);
    client.greet();
    client.frame(cursor("zero"));
    client.take_all();
    client.frame(resync(of_account(1)));
    for uid in 1..=9 {
        client.frame(arrived(uid, false));
    }
    client.frame(cursor("nine"));
    client.take_all();
    assert_eq!(client.stored().cursor(), "zero");
    client.frame(arrived(10, false));
    client.take_all();
    assert_eq!(client.stored().cursor(), "nine");
}

#[test]
fn only_what_is_new_unread_and_unknown_alerts() {
    let mut client = Client::live();
    client.pass(3600);
    client.frame(cursor("an hour later"));
    let now = client.now.wall_ms;
    client.frame(arrived_in(1, message(1, now), true));
    // A copy of what has alerted does not, whatever the server says.
    let copy = Message {
        uid: 2,
        ..message(1, now)
    };
    assert!(matches!(
        client.frame(arrived_in(1, copy.clone(), true)).as_slice(),
        [AppEvent::Arrived(arrived)] if !arrived.alert
    ));
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    let read = Message {
        flags: vec!["\\seen".to_owned()],
        ..message(5, now)
    };
    let copy = Message { uid: 6, ..copy };
    let old = message(7, now - 3_000_000);
    let late = message(8, now - 60_000);
    let messages = vec![message(1, now), message(4, now), read, copy, old, late];
    let replace = client.replaced(ticket, messages.clone());
    assert_eq!(alerts(&replace), [4, 8]);
    // Never again, also not after a restart.
    client.take_all();
    let mut next = Client::from(Some(client.stored()), SessionOptions::default());
    next.now = client.now;
    next.greet();
    next.frame(resync(of_account(1)));
    let (ticket, ..) = next.listing().unwrap();
    let mut again = listing(messages);
    again.generation = 8;
    let Some(AppEvent::ReplaceFolder(replace)) = next.answer(ticket, Ok(again)).pop() else {
        panic!("no listing");
    };
    assert!(alerts(&replace).is_empty());
}

#[test]
fn a_folder_alerts_if_it_did_before() {
    let mut client = Client::live();
    for (folder, alert) in [(2, false), (3, true)] {
        client.frame(arrived_in(folder, message(1, START), alert));
        client.frame(resync(of_account(folder)));
        let (ticket, ..) = client.listing().unwrap();
        let replace = client.replaced(ticket, vec![message(10 + folder, START)]);
        assert_eq!(alerts(&replace).len(), usize::from(alert));
        client.take_all();
    }
}

#[test]
fn without_content_keys_alone_tell_messages_apart() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    let bare = |uid| Message {
        uid,
        internal_date_ms: START,
        ..Message::default()
    };
    let replace = client.replaced(ticket, vec![bare(1), bare(2)]);
    assert_eq!(alerts(&replace), [1, 2]);
}

#[test]
fn everything_is_what_is_known_and_what_is_named_by_a_listing() {
    let options = SessionOptions {
        accounts: vec!["a.2".to_owned()],
        listings: 100,
        ..SessionOptions::default()
    };
    let mut client = Client::from(None, options);
    client.greet();
    client.frame(arrived_in(4, message(1, 0), false));
    client.take_all();
    client.frame(resync(Scope {
        everything: true,
        ..Scope::default()
    }));
    let mut listings = Vec::new();
    while let Some(request) = client.session.start_listing(client.now) {
        listings.push((request.account, request.folder, request.ticket));
    }
    let places: Vec<_> = listings
        .iter()
        .map(|(account, folder, _)| (account.as_str(), *folder))
        .collect();
    assert_eq!(places, [(ACCOUNT, 1), (ACCOUNT, 4), ("a.2", 1)]);
    let mut answer = listing(Vec::new());
    answer.folders = vec![1, 4, 6];
    client.answer(listings[0].2, Ok(answer));
    assert_eq!(client.listing().map(|(_, folder, _)| folder), Some(6));
}

#[test]
fn listings_are_bounded_and_wait_for_the_app() {
    let mut client = Client::live();
    for folder in 1..=5 {
        client.frame(resync(of_account(folder)));
    }
    let (first, ..) = client.listing().unwrap();
    let (second, ..) = client.listing().unwrap();
    assert!(client.listing().is_none());
    client.replaced(first, Vec::new());
    client.replaced(second, Vec::new());
    // Handed listings count until they are taken: they are what takes memory.
    assert!(client.listing().is_none());
    assert_eq!(client.session.next_listing_at(), None);
    client.take_all();
    assert!(client.listing().is_some());
}

#[test]
fn a_resync_during_a_listing_is_answered_by_another_one() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    client.frame(resync(of_account(1)));
    client.replaced(ticket, Vec::new());
    client.take_all();
    let (ticket, ..) = client.listing().unwrap();
    client.replaced(ticket, Vec::new());
    client.take_all();
    assert!(client.listing().is_none() && !client.session.is_resyncing());
}

/// Two that overlap could be answered in another order than they were read in: the older would undo the newer.
#[test]
fn a_folder_is_listed_once_at_a_time() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (whole, ..) = client.listing().unwrap();
    client.frame(Frame::Event(Event {
        key: Some(key(0, EventKind::Bulk, 5)),
        body: Some(Body::Bulk(Bulk {
            first_uid: 6,
            last_uid: 9,
            count: 4,
        })),
        ..Event::default()
    }));
    assert_eq!(client.listing(), None);
    client.replaced(whole, vec![message(1, 0)]);
    let (_, _, span) = client.listing().unwrap();
    assert_eq!(span, Span::Uids { first: 6, last: 9 });
}

#[test]
fn the_server_says_when_to_list() {
    let mut client = Client::live();
    client.frame(Frame::Resync(Resync {
        scope: Some(of_account(1)),
        retry_after_ms: 10_000,
        ..Resync::default()
    }));
    let at = client.session.next_listing_at().unwrap();
    assert!((10..=15).contains(&at.as_secs()), "{at:?}");
    assert!(client.listing().is_none());
    client.pass(15);
    assert!(client.listing().is_some());
}

#[test]
fn a_range_of_a_folder_that_was_made_anew_is_a_listing_of_the_folder() {
    let mut client = Client::live();
    client.frame(Frame::Event(Event {
        key: Some(key(0, EventKind::Bulk, 3)),
        body: Some(Body::Bulk(Bulk {
            first_uid: 10,
            last_uid: 99,
            count: 0,
        })),
        ..Event::default()
    }));
    let (ticket, _, span) = client.listing().unwrap();
    assert_eq!(
        span,
        Span::Uids {
            first: 10,
            last: 99
        }
    );
    let mut anew = listing(Vec::new());
    anew.generation = 8;
    assert!(client.answer(ticket, Ok(anew)).is_empty());
    let (_, _, span) = client.listing().unwrap();
    assert_eq!(span, Span::Newest);
}

#[test]
fn a_range_comes_to_an_end_whatever_the_server_answers() {
    let mut client = Client::live();
    client.frame(resync(Scope {
        first_uid: 10,
        last_uid: 99,
        ..of_account(1)
    }));
    let mut said = listing(vec![message(3, 0)]);
    said.more = true;
    let (ticket, ..) = client.listing().unwrap();
    assert!(client.answer(ticket, Ok(said)).is_empty());
    assert!(client.listing().is_none(), "not at once again");
    client.pass(1000);
    let (ticket, ..) = client.listing().unwrap();
    let mut said = listing(vec![message(10, 0)]);
    said.more = true;
    client.answer(ticket, Ok(said));
    client.take_all();
    let (_, _, span) = client.listing().unwrap();
    assert_eq!(
        span,
        Span::Uids {
            first: 11,
            last: 99
        }
    );
}

#[test]
fn an_answer_to_a_stream_that_has_ended_is_not_heard() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    client
        .session
        .on_disconnected(DisconnectReason::Unreachable, Duration::ZERO);
    assert!(client.answer(ticket, Ok(listing(Vec::new()))).is_empty());
    assert!(client.listing().is_none(), "nobody to ask");
    client.greet();
    client.pass(2);
    assert!(client.listing().is_some());
}

#[test]
fn what_a_broken_stream_interrupts_is_not_listed_by_all_clients_at_once() {
    let mut waits = Vec::new();
    for seed in 0..50 {
        let mut client = Client::live();
        client.session.rng = SmallRng::seed_from_u64(seed);
        for folder in 1..=3 {
            client.frame(Frame::Resync(Resync {
                scope: Some(of_account(folder)),
                retry_after_ms: 20_000,
                ..Resync::default()
            }));
        }
        client.pass(30);
        assert!(client.listing().is_some() && client.listing().is_some());
        client
            .session
            .on_disconnected(DisconnectReason::GoAway, Duration::ZERO);
        client.pass(60);
        client.greet();
        // Neither the two that were under way nor the one that waited for them.
        assert!(client.listing().is_none(), "at the first moment");
        let at = client.session.next_listing_at().unwrap();
        waits.push(at - client.now.elapsed);
        client.pass(20);
        assert!(client.listing().is_some() && client.listing().is_some());
    }
    waits.sort();
    assert!(waits[0] >= Duration::from_secs(1), "{waits:?}");
    // Spread as the server wished, and not only by a second.
    assert!(waits[25] > Duration::from_secs(5), "{waits:?}");
}

#[test]
fn a_listing_that_is_interrupted_again_and_again_waits_longer() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        client.listing().unwrap();
        client
            .session
            .on_disconnected(DisconnectReason::Unreachable, Duration::ZERO);
        client.greet();
        let at = client.session.next_listing_at().unwrap();
        longest = longest.max(at - client.now.elapsed);
        client.pass(300);
    }
    assert!(longest > Duration::from_secs(10), "{longest:?}");
    let (ticket, ..) = client.listing().unwrap();
    client.replaced(ticket, Vec::new());
    client.take_all();
    client.frame(resync(of_account(1)));
    client.listing().unwrap();
    client
        .session
        .on_disconnected(DisconnectReason::Unreachable, Duration::ZERO);
    client.greet();
    client.pass(2);
    assert!(client.listing().is_some(), "an answer ends the back-off");
}

#[test]
fn what_cannot_be_listed_is_told_and_no_longer_pending() {
    let mut client = Client::live();
    client.frame(resync(of_account(3)));
    let (ticket, ..) = client.listing().unwrap();
    let reason = UnlistableReason::NotFound;
    let told = client.answer(ticket, Err(ListFailure::Never(reason)));
    assert!(matches!(told.as_slice(), [AppEvent::Unlistable(of)] if of.folder == 3));
    assert!(client.session.is_resyncing());
    client.take_all();
    assert!(!client.session.is_resyncing());
}

#[test]
fn a_removed_account_is_forgotten() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    let removed = Frame::AccountState(AccountState {
        account: ACCOUNT.to_owned(),
        health: Health::Removed.into(),
        key: Some(EventKey {
            folder: 0,
            ..key(0, EventKind::AccountState, 8)
        }),
        ..AccountState::default()
    });
    assert_eq!(client.frame(removed.clone()).len(), 1);
    assert!(client.frame(removed).is_empty(), "a repeat");
    assert!(!client.session.is_resyncing());
    assert!(client.answer(ticket, Ok(listing(Vec::new()))).is_empty());
}

#[test]
fn an_account_that_hello_calls_removed_is_not_listed() {
    let mut client = Client::live();
    client
        .session
        .on_disconnected(DisconnectReason::Ended, Duration::ZERO);
    let hello = Hello {
        accounts: vec![AccountState {
            account: ACCOUNT.to_owned(),
            health: Health::Removed.into(),
            ..AccountState::default()
        }],
        ..Hello::default()
    };
    assert_eq!(client.frame(Frame::Hello(hello)).len(), 2);
    client.frame(resync(Scope {
        everything: true,
        ..Scope::default()
    }));
    assert!(client.listing().is_none());
}

#[test]
fn a_listing_waits_as_long_as_the_server_says() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    let wait = Duration::from_secs(60);
    client.answer(ticket, Err(ListFailure::RetryAfter(wait)));
    assert_eq!(client.session.next_listing_at(), Some(wait));
}

#[test]
fn hello_tells_a_state_only_if_it_is_news() {
    let mut client = Client::live();
    let reconnect = |client: &mut Client| {
        client
            .session
            .on_disconnected(DisconnectReason::Ended, Duration::ZERO);
        client.greet().len()
    };
    assert_eq!(reconnect(&mut client), 1);
    client.frame(Frame::AccountState(AccountState {
        account: ACCOUNT.to_owned(),
        health: Health::Retrying.into(),
        ..AccountState::default()
    }));
    assert_eq!(reconnect(&mut client), 2);
}

#[test]
fn what_makes_no_sense_is_counted_and_left_out() {
    let mut client = Client::live();
    let wrong = [
        Frame::Event(Event::default()),
        arrived(0, true),
        Frame::Event(Event {
            key: Some(key(1, EventKind::Gone, 0)),
            body: Some(Body::Changed(push::Changed::default())),
            ..Event::default()
        }),
        cursor(""),
        cursor(&"x".repeat(5000)),
        Frame::AccountState(AccountState::default()),
    ];
    let many = u64::try_from(wrong.len()).unwrap();
    for frame in wrong {
        assert!(client.out(frame).is_empty());
    }
    assert_eq!(client.session.counters().malformed, many);
    // A kind of a newer release is no mistake.
    client.frame(Frame::Event(Event {
        key: Some(key(1, EventKind::Unspecified, 0)),
        ..Event::default()
    }));
    assert_eq!(client.session.counters().malformed, many);
}

#[test]
fn acknowledged_is_what_was_taken_at_most_512_at_a_time() {
    let mut client = Client::live();
    for uid in 1..=600 {
        client.frame(arrived(uid, false));
    }
    assert!(!client.session.has_acks());
    client.take_all();
    assert_eq!(client.session.take_acks().len(), 512);
    assert_eq!(client.session.take_acks().len(), 88);
    assert!(!client.session.has_acks());
}
