use std::time::Duration;

use mailbell_client::{
    AppEvent, Error, FileState, MemoryState, StateError, StateStore, StoredState,
};

use crate::gateway::{Gateway, arrived, cursor, fact, live, nothing, page, resync_inbox, uids};

/// What was taken is stored a moment later.
async fn stored(memory: &MemoryState, cursor: &str) {
    let found = async {
        while memory
            .load()
            .unwrap()
            .is_none_or(|state| state.cursor() != cursor)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(100), found)
        .await
        .unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_dies_hears_again_of_what_it_had_not_taken_and_of_nothing_else() {
    let memory = MemoryState::default();
    let mut gateway = Gateway::start();
    let mut events = gateway
        .client()
        .state(memory.clone())
        .build()
        .unwrap()
        .into_stream();
    let open = gateway.visitor().await.greet().await;
    for frame in [
        live(),
        arrived(1),
        cursor("one"),
        arrived(2),
        arrived(3),
        cursor("three"),
    ] {
        open.send(frame).await;
    }
    assert_eq!(uids(&mut events, 2).await, [1, 2]);
    // 1 is taken, 2 is read and not taken, 3 is in the queue: `three` may not be stored.
    stored(&memory, "one").await;
    drop(events);
    open.closed().await;

    let mut events = gateway
        .client()
        .state(memory.clone())
        .build()
        .unwrap()
        .into_stream();
    let visitor = gateway.visitor().await;
    assert_eq!(visitor.request.cursor, "one");
    let open = visitor.greet().await;
    for frame in [arrived(1), arrived(2), arrived(3), live(), cursor("three")] {
        open.send(frame).await;
    }
    assert_eq!(uids(&mut events, 2).await, [2, 3]);
    nothing(fact(&mut events), 5).await;
    events.close().await;
    assert_eq!(memory.load().unwrap().unwrap().cursor(), "three");
}

#[tokio::test(start_paused = true)]
async fn closing_takes_what_was_read_last() {
    let memory = MemoryState::default();
    let mut gateway = Gateway::start();
    let mut events = gateway
        .client()
        .state(memory.clone())
        .build()
        .unwrap()
        .into_stream();
    let open = gateway.visitor().await.greet().await;
    open.send(live()).await;
    open.send(cursor("zero")).await;
    open.send(arrived(1)).await;
    assert_eq!(uids(&mut events, 1).await, [1]);
    events.close().await;
    open.closed().await;

    let mut events = gateway
        .client()
        .state(memory)
        .build()
        .unwrap()
        .into_stream();
    let open = gateway.visitor().await.greet().await;
    open.send(arrived(1)).await;
    open.send(arrived(2)).await;
    assert_eq!(uids(&mut events, 1).await, [2]);
}

#[tokio::test(start_paused = true)]
async fn explicit_acks_take_what_they_say() {
    let memory = MemoryState::default();
    let mut gateway = Gateway::start();
    let builder = gateway.client().state(memory.clone()).explicit_acks();
    let mut events = builder.build().unwrap().into_stream();
    let open = gateway.visitor().await.greet().await;
    open.send(cursor("zero")).await;
    for uid in 1..=3 {
        open.send(arrived(uid)).await;
    }
    assert_eq!(uids(&mut events, 1).await, [1]);
    let first = events.position();
    assert_eq!(uids(&mut events, 2).await, [2, 3]);
    events.acker().taken(first);
    events.close().await;

    let mut events = gateway
        .client()
        .state(memory)
        .build()
        .unwrap()
        .into_stream();
    let open = gateway.visitor().await.greet().await;
    for uid in 1..=3 {
        open.send(arrived(uid)).await;
    }
    assert_eq!(uids(&mut events, 2).await, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn who_dies_before_the_first_cursor_lists_everything() {
    let memory = MemoryState::default();
    let mut gateway = Gateway::start();
    let mut events = gateway
        .client()
        .state(memory.clone())
        .build()
        .unwrap()
        .into_stream();
    let open = gateway.visitor().await.greet().await;
    open.send(arrived(1)).await;
    assert_eq!(uids(&mut events, 1).await, [1]);
    drop(events);
    open.closed().await;
    // Something arrives that no stream tells.
    let mut events = gateway
        .client()
        .state(memory)
        .build()
        .unwrap()
        .into_stream();
    let visitor = gateway.visitor().await;
    assert!(visitor.request.cursor.is_empty());
    let _open = visitor.greet().await;
    gateway.asked().await.answer(Ok(page([1, 2], "")));
    let AppEvent::ReplaceFolder(replace) = fact(&mut events).await else {
        panic!("no listing");
    };
    assert_eq!(replace.messages.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_dies_while_listing_resumes_from_before_and_lists_again() {
    let memory = MemoryState::default();
    let mut gateway = Gateway::start();
    let mut events = gateway
        .client()
        .state(memory.clone())
        .build()
        .unwrap()
        .into_stream();
    let open = gateway.visitor().await.greet().await;
    open.send(live()).await;
    open.send(cursor("before")).await;
    nothing(fact(&mut events), 5).await;
    stored(&memory, "before").await;
    open.send(resync_inbox()).await;
    let hanging = gateway.asked().await;
    open.send(arrived(5)).await;
    open.send(cursor("after")).await;
    assert_eq!(uids(&mut events, 1).await, [5]);
    nothing(fact(&mut events), 15).await;
    open.send(cursor("later")).await;
    events.close().await;
    drop(hanging);
    let state = memory.load().unwrap().unwrap();
    assert_eq!(
        (state.cursor().as_ref(), state.pending()),
        (&b"before"[..], 1)
    );

    let mut events = gateway
        .client()
        .state(memory.clone())
        .build()
        .unwrap()
        .into_stream();
    let visitor = gateway.visitor().await;
    assert_eq!(visitor.request.cursor, "before");
    let open = visitor.greet().await;
    open.send(arrived(5)).await;
    open.send(cursor("later")).await;
    gateway.asked().await.answer(Ok(page([4, 5], "")));
    let AppEvent::ReplaceFolder(replace) = fact(&mut events).await else {
        panic!("no listing");
    };
    let known: Vec<_> = replace.messages.iter().map(|listed| listed.known).collect();
    assert_eq!(known, [false, true]);
    // Handed, and not taken: still pending.
    nothing(async { stored(&memory, "later").await }, 50).await;
    nothing(fact(&mut events), 5).await;
    stored(&memory, "later").await;
    assert_eq!(memory.load().unwrap().unwrap().pending(), 0);
}

struct Broken;

impl StateStore for Broken {
    fn load(&self) -> Result<Option<StoredState>, StateError> {
        Ok(None)
    }

    fn store(&self, _: &StoredState) -> Result<(), StateError> {
        Err(StateError::Other("no room".to_owned()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_that_cannot_be_kept_is_an_error_from_the_start() {
    let mut gateway = Gateway::start();
    let mut events = gateway
        .client()
        .state(Broken)
        .build()
        .unwrap()
        .into_stream();
    let _open = gateway.visitor().await.greet().await;
    let error = events.recv().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::State(StateError::Other(why)) if why == "no room"));
}

#[tokio::test(start_paused = true)]
async fn a_file_carries_the_state_to_the_next_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut gateway = Gateway::start();
    let file = FileState::open(&path).unwrap();
    let mut events = gateway.client().state(file).build().unwrap().into_stream();
    let open = gateway.visitor().await.greet().await;
    open.send(arrived(1)).await;
    open.send(cursor("one")).await;
    assert_eq!(uids(&mut events, 1).await, [1]);
    nothing(fact(&mut events), 5).await;
    events.close().await;
    let file = FileState::open(&path).unwrap();
    let _events = gateway.client().state(file).build().unwrap().into_stream();
    assert_eq!(gateway.visitor().await.request.cursor, "one");
}
