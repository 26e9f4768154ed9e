//! One rule a test: what is handed, alerted, remembered and stored.

use mailbell_proto::push::v1::{
    self as push, AccountState, Event, EventKind, Health, Hello, Message, event::Body,
    resync::Scope,
};

use super::{super::*, support::*};

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
