use std::time::Duration;

use mailbell_client::{
    AppEvent, ReplaceFolder, UnlistableReason,
    proto::{
        Bulk, Event, EventKey, EventKind, ListMessagesResponse, event::Body,
        list_messages_request::Range, server_frame::Frame,
    },
};
use tokio::time::Instant;
use tonic::Status;

use crate::gateway::{
    ACCOUNT, Gateway, Open, arrived, cursor, fact, key, live, nothing, page, resync_inbox, uids,
};

async fn opened(gateway: &mut Gateway) -> Open {
    let open = gateway.visitor().await.greet().await;
    open.send(live()).await;
    open
}

async fn replaced(events: &mut mailbell_client::Events) -> ReplaceFolder {
    match fact(events).await {
        AppEvent::ReplaceFolder(replace) => replace,
        other => panic!("{other:?}"),
    }
}

fn listed(replace: &ReplaceFolder) -> Vec<(u32, bool)> {
    let messages = replace.messages.iter();
    messages
        .map(|listed| (listed.message.uid, listed.known))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn all_pages_are_listed_while_the_stream_goes_on() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = opened(&mut gateway).await;
    open.send(arrived(2)).await;
    open.send(resync_inbox()).await;
    let asked = gateway.asked().await;
    assert_eq!(asked.request.account, ACCOUNT);
    assert_eq!(asked.request.range, Some(Range::Newest(200)));
    assert_eq!(asked.authorization, "Bearer secret");
    // The newer half first.
    asked.answer(Ok(page([3, 4], "next")));
    let asked = gateway.asked().await;
    assert_eq!(asked.request.page_token, "next");
    open.send(arrived(5)).await;
    assert_eq!(uids(&mut events, 2).await, [2, 5]);
    asked.answer(Ok(page([1, 2], "")));
    let replace = replaced(&mut events).await;
    assert_eq!(
        listed(&replace),
        [(1, false), (2, true), (3, false), (4, false), (5, true)]
    );
    assert!(replace.complete && replace.uids == (1..=u32::MAX));
    // What was listed is no news when its event comes.
    open.send(arrived(4)).await;
    open.send(arrived(6)).await;
    assert_eq!(uids(&mut events, 1).await, [6]);
}

#[tokio::test(start_paused = true)]
async fn what_came_below_the_newest_is_listed_down_to_what_was_told() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = opened(&mut gateway).await;
    open.send(arrived(100)).await;
    open.send(resync_inbox()).await;
    assert_eq!(uids(&mut events, 1).await, [100]);
    let newest = |uids| ListMessagesResponse {
        exists: 401,
        ..page(uids, "next")
    };
    for uids in [302..402, 202..302] {
        let asked = gateway.asked().await;
        assert_eq!(asked.request.range, Some(Range::Newest(200)));
        asked.answer(Ok(newest(uids)));
    }
    let replace = replaced(&mut events).await;
    assert_eq!(
        (replace.uids.clone(), replace.complete),
        (202..=u32::MAX, false)
    );
    for uids in [36..136, 136..236] {
        let asked = gateway.asked().await;
        assert_eq!(asked.request.range, Some(Range::AfterUid(35)));
        asked.answer(Ok(newest(uids)));
    }
    let replace = replaced(&mut events).await;
    assert_eq!((replace.uids.clone(), replace.complete), (36..=201, true));
    let known = listed(&replace).into_iter().filter(|(_, known)| *known);
    assert!(known.eq([(100, true)]));
    assert_eq!(replace.messages.len(), 166);
    nothing(async { gateway.asked().await.request }, 15).await;
}

#[tokio::test(start_paused = true)]
async fn aborted_begins_with_the_first_page() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = opened(&mut gateway).await;
    open.send(resync_inbox()).await;
    gateway.asked().await.answer(Ok(page([3, 4], "next")));
    gateway.asked().await.answer(Err(Status::aborted("")));
    // A gateway that does not notice is noticed.
    let asked = gateway.asked().await;
    assert!(asked.request.page_token.is_empty());
    asked.answer(Ok(page([3, 4], "next")));
    let other = ListMessagesResponse {
        generation: 8,
        ..page([1, 2], "")
    };
    gateway.asked().await.answer(Ok(other));
    let asked = gateway.asked().await;
    assert!(asked.request.page_token.is_empty());
    asked.answer(Ok(page([1], "")));
    assert_eq!(listed(&replaced(&mut events).await), [(1, false)]);
}

#[tokio::test(start_paused = true)]
async fn unavailable_is_tried_again_later() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = opened(&mut gateway).await;
    open.send(resync_inbox()).await;
    let start = Instant::now();
    gateway.asked().await.answer(Err(Status::unavailable("")));
    let asked = gateway.asked().await;
    let waited = start.elapsed();
    assert!(
        waited >= Duration::from_secs(1) && waited <= Duration::from_secs(3),
        "{waited:?}"
    );
    asked.answer(Ok(page([1], "")));
    assert_eq!(listed(&replaced(&mut events).await), [(1, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_is_not_there_is_told_once() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = opened(&mut gateway).await;
    open.send(resync_inbox()).await;
    gateway.asked().await.answer(Err(Status::not_found("")));
    let AppEvent::Unlistable(unlistable) = fact(&mut events).await else {
        panic!("not told");
    };
    assert_eq!(unlistable.reason, UnlistableReason::NotFound);
    nothing(async { gateway.asked().await.request }, 15).await;
}

#[tokio::test(start_paused = true)]
async fn a_bulk_is_listed_from_its_first_message_to_its_last() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = opened(&mut gateway).await;
    let bulk = Event {
        key: Some(EventKey {
            kind: EventKind::Bulk.into(),
            modseq: 9,
            ..key(0)
        }),
        body: Some(Body::Bulk(Bulk {
            first_uid: 11,
            last_uid: 2500,
            count: 2490,
        })),
        ..Event::default()
    };
    open.send(Frame::Event(bulk.clone())).await;
    // Told twice, listed once.
    open.send(Frame::Event(bulk)).await;
    let answering = tokio::spawn(async move {
        let mut calls = 0;
        let mut next = 11;
        while next <= 2500 {
            let asked = gateway.asked().await;
            if asked.request.page_token.is_empty() {
                // The first page of a further part begins where the part before was cut.
                let Some(Range::AfterUid(after)) = asked.request.range else {
                    panic!("not a range");
                };
                assert!(after < next && after + 100 >= next);
                next = after + 1;
            }
            assert_eq!(asked.request.page_size, 100);
            // One UID in ten is no more.
            let uids = (next..next + 100).filter(|uid| uid % 10 != 0);
            next += 100;
            asked.answer(Ok(page(uids, "more")));
            calls += 1;
        }
        (gateway, calls)
    });
    let mut got = Vec::new();
    let mut parts = 0;
    loop {
        let replace = replaced(&mut events).await;
        assert!(replace.messages.len() <= 1000);
        assert_eq!(
            *replace.uids.start(),
            got.last().map_or(11, |last| last + 1)
        );
        got.extend(listed(&replace).into_iter().map(|(uid, _)| uid));
        parts += 1;
        if replace.complete {
            assert_eq!(*replace.uids.end(), 2500);
            break;
        }
    }
    assert!(got.into_iter().eq((11..2500).filter(|uid| uid % 10 != 0)));
    assert_eq!(parts, 3);
    let (mut gateway, calls) = answering.await.unwrap();
    assert!(calls <= 28, "{calls}");
    nothing(async { gateway.asked().await.request }, 15).await;
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_a_broken_stream_interrupts_is_made_again() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = opened(&mut gateway).await;
    open.send(cursor("before")).await;
    open.send(resync_inbox()).await;
    let hanging = gateway.asked().await;
    open.send(cursor("after")).await;
    open.send(arrived(3)).await;
    assert_eq!(uids(&mut events, 1).await, [3]);
    open.end(Status::unavailable("")).await;
    let visitor = gateway.visitor().await;
    // Within one run nothing is lost by going on from here.
    assert_eq!(visitor.request.cursor, "after");
    drop(hanging);
    let _open = visitor.greet().await;
    gateway.asked().await.answer(Ok(page([1, 3], "")));
    assert_eq!(
        listed(&replaced(&mut events).await),
        [(1, false), (3, true)]
    );
}
