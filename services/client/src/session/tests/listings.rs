//! One rule a test: what is listed, when, and how often.

use mailbell_proto::push::v1::{Bulk, Event, EventKind, Resync, event::Body, resync::Scope};

use super::{super::*, support::*};
use crate::event::UnlistableReason;

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
fn resyncs_that_overlap_do_not_hold_the_cursor_for_ever() {
    let options = SessionOptions {
        recent_keys: 20,
        ..SessionOptions::default()
    };
    let mut client = Client::from(None, options);
    client.greet();
    client.frame(cursor("zero"));
    client.frame(resync(of_account(1)));
    let (mut ticket, ..) = client.listing().unwrap();
    let mut uid = 0;
    for folder in (1..=2).cycle().skip(1).take(8) {
        // Before one is answered, there is another one; none of them is old.
        for _ in 0..3 {
            uid += 1;
            client.frame(arrived(uid, false));
        }
        client.frame(cursor(&uid.to_string()));
        client.frame(resync(of_account(folder)));
        let (next, ..) = client.listing().unwrap();
        client.replaced(ticket, Vec::new());
        client.take_all();
        ticket = next;
        let stored = client.stored();
        assert_eq!(stored.pending(), 1);
        let stored = String::from_utf8(stored.cursor().to_vec()).unwrap();
        let told_since = uid - stored.parse::<u32>().unwrap_or(0);
        assert!(told_since < 10, "{told_since} facts since {stored}");
    }
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

#[test]
fn a_range_that_grows_while_it_is_listed_is_answered_for_what_was_asked() {
    let mut client = Client::live();
    let range = |first_uid, last_uid| {
        resync(Scope {
            first_uid,
            last_uid,
            ..of_account(1)
        })
    };
    client.frame(range(10, 19));
    let (ticket, ..) = client.listing().unwrap();
    client.frame(range(15, 30));
    let replace = client.replaced(ticket, vec![message(12, 0)]);
    assert_eq!((replace.uids, replace.complete), (10..=19, false));
    client.take_all();
    let (ticket, _, span) = client.listing().unwrap();
    let whole = Span::Uids {
        first: 10,
        last: 30,
    };
    assert_eq!(span, whole);
    let replace = client.replaced(ticket, vec![message(12, 0), message(25, 0)]);
    assert_eq!((replace.uids, replace.complete), (10..=30, true));
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

/// The newest 200 of a folder, of which each was received at this time.
fn newest(uids: std::ops::RangeInclusive<u32>, date_ms: i64) -> Listing {
    Listing {
        exists: *uids.end(),
        more: true,
        ..listing(uids.map(|uid| message(uid, date_ms)).collect())
    }
}

#[test]
fn a_resync_reaches_down_to_what_was_told() {
    let mut client = Client::live();
    client.frame(arrived(100, false));
    client.take_all();
    client.frame(resync(of_account(1)));
    // What comes before the listing doesn't make it forget what is missing.
    client.frame(arrived(401, false));
    client.frame(resync(of_account(1)));
    client.take_all();
    let mut next = Client::from(Some(client.stored()), SessionOptions::default());
    next.greet();
    for client in [&mut client, &mut next] {
        let (ticket, _, span) = client.listing().unwrap();
        assert_eq!(span, Span::Newest);
        client.answer(ticket, Ok(newest(202..=401, 0)));
        client.take_all();
        let mut next = Client::from(Some(client.stored()), SessionOptions::default());
        next.greet();
        let hole = Span::Uids {
            first: 36,
            last: 201,
        };
        for client in [client, &mut next] {
            let (ticket, _, span) = client.listing().unwrap();
            assert_eq!(span, hole);
            client.replaced(ticket, (36..=201).map(|uid| message(uid, 0)).collect());
            client.take_all();
            assert!(client.listing().is_none() && !client.session.is_resyncing());
        }
    }
    // All of it was told: nothing is missing below.
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    client.answer(ticket, Ok(newest(202..=401, 0)));
    client.take_all();
    assert!(client.listing().is_none());
}

#[test]
fn what_was_handed_and_not_taken_before_a_restart_is_missing_too() {
    let mut client = Client::live();
    client.frame(arrived(400, false));
    client.frame(resync(of_account(1)));
    let mut next = Client::from(Some(client.stored()), SessionOptions::default());
    next.greet();
    next.frame(resync(of_account(1)));
    let (ticket, ..) = next.listing().unwrap();
    next.answer(ticket, Ok(newest(202..=401, 0)));
    next.take_all();
    let hole = Span::Uids {
        first: 1,
        last: 201,
    };
    assert_eq!(next.listing().map(|(_, _, span)| span), Some(hole));
}

#[test]
fn where_nothing_was_told_the_date_says_how_far_a_resync_reaches() {
    for (date_ms, hole) in [(START - 3_600_000, None), (START, Some((1, 100)))] {
        let mut client = Client::live();
        client.frame(resync(of_account(1)));
        let (ticket, ..) = client.listing().unwrap();
        client.answer(ticket, Ok(newest(101..=300, date_ms)));
        client.take_all();
        let span = client.listing().map(|(_, _, span)| span);
        assert_eq!(span, hole.map(|(first, last)| Span::Uids { first, last }));
    }
}

#[test]
fn an_answer_to_a_stream_that_has_ended_is_not_heard() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    client
        .session
        .on_disconnected(DisconnectReason::Ended, Duration::ZERO);
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
            .on_disconnected(DisconnectReason::Ended, Duration::ZERO);
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
        .on_disconnected(DisconnectReason::Ended, Duration::ZERO);
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
fn a_listing_waits_as_long_as_the_server_says() {
    let mut client = Client::live();
    client.frame(resync(of_account(1)));
    let (ticket, ..) = client.listing().unwrap();
    let wait = Duration::from_secs(60);
    client.answer(ticket, Err(ListFailure::RetryAfter(wait)));
    assert_eq!(client.session.next_listing_at(), Some(wait));
}
