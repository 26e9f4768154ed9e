use std::time::Duration;

use mailbell_client::{
    AppEvent, DisconnectReason, Error,
    proto::{GoAway, client_frame, server_frame::Frame},
};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::gateway::{ACCOUNT, Gateway, arrived, cursor, fact, live, nothing, uids};

async fn disconnected(events: &mut mailbell_client::Events) -> (DisconnectReason, Duration) {
    loop {
        if let AppEvent::Disconnected { reason, retry_in } = events.recv().await.unwrap().unwrap() {
            return (reason, retry_in);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_resumes_where_it_was_and_tells_nothing_twice() {
    let mut gateway = Gateway::start();
    let mut events = gateway
        .client()
        .accounts([ACCOUNT])
        .build()
        .unwrap()
        .into_stream();
    let visitor = gateway.visitor().await;
    assert_eq!(visitor.request.accounts, [ACCOUNT]);
    assert!(visitor.request.cursor.is_empty());
    assert_eq!(visitor.authorization, "Bearer secret");
    let open = visitor.greet().await;
    for frame in [live(), arrived(1), cursor("one"), arrived(2)] {
        open.send(frame).await;
    }
    assert_eq!(uids(&mut events, 2).await, [1, 2]);
    open.end(Status::unavailable("")).await;

    let visitor = gateway.visitor().await;
    assert_eq!(visitor.request.cursor, "one");
    assert_eq!(visitor.request.digest, "digest");
    let open = visitor.greet().await;
    for frame in [arrived(2), arrived(3), arrived(1), live(), arrived(4)] {
        open.send(frame).await;
    }
    assert_eq!(uids(&mut events, 2).await, [3, 4]);
    let counters = events.counters();
    assert_eq!((counters.facts, counters.repeats), (4, 2));
}

#[tokio::test(start_paused = true)]
async fn goaway_says_when_to_come_back() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = gateway.visitor().await.greet().await;
    let start = Instant::now();
    open.send(Frame::GoAway(GoAway {
        reconnect_after_ms: 7000,
        reason: "drain".to_owned(),
    }))
    .await;
    // What comes until the end is still told.
    open.send(arrived(1)).await;
    assert_eq!(uids(&mut events, 1).await, [1]);
    open.end(Status::unavailable("draining")).await;
    let (reason, retry_in) = disconnected(&mut events).await;
    assert_eq!(reason, DisconnectReason::GoAway);
    assert_eq!(retry_in.as_secs(), 7 - start.elapsed().as_secs());
    gateway.visitor().await;
    assert_eq!(start.elapsed().as_secs(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_stays_after_goaway_is_left() {
    let mut gateway = Gateway::start();
    let _events = gateway.client().build().unwrap().into_stream();
    let open = gateway.visitor().await.greet().await;
    let start = Instant::now();
    open.send(Frame::GoAway(GoAway {
        reconnect_after_ms: 3000,
        reason: String::new(),
    }))
    .await;
    open.closed().await;
    gateway.visitor().await;
    // It was no good stream: the first back-off, at most a second, comes on top.
    assert!((3..=4).contains(&start.elapsed().as_secs()));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_greets_and_sends_away_is_not_hammered() {
    let away = || {
        Frame::GoAway(GoAway {
            reconnect_after_ms: 0,
            reason: String::new(),
        })
    };
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let mut longest = Duration::ZERO;
    for _ in 0..12 {
        let open = gateway.visitor().await.greet().await;
        open.send(away()).await;
        open.closed().await;
        let (reason, retry_in) = disconnected(&mut events).await;
        assert_eq!(reason, DisconnectReason::GoAway);
        assert!(retry_in >= Duration::from_millis(100), "{retry_in:?}");
        longest = longest.max(retry_in);
    }
    assert!(longest > Duration::from_secs(5), "{longest:?}");
    // After a good stream the server's word is enough.
    let open = gateway.visitor().await.greet().await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        open.send(cursor("c")).await;
    }
    open.send(away()).await;
    let (reason, retry_in) = disconnected(&mut events).await;
    assert_eq!(
        (reason, retry_in),
        (DisconnectReason::GoAway, Duration::ZERO)
    );
}

#[tokio::test(start_paused = true)]
async fn silence_for_two_heartbeats_means_dead() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let open = gateway.visitor().await.greet().await;
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(19)).await;
    open.send(cursor("a heartbeat")).await;
    open.closed().await;
    assert_eq!(start.elapsed().as_secs(), 19 + 20);
    let (reason, _) = disconnected(&mut events).await;
    assert_eq!(reason, DisconnectReason::Silent);
    assert_eq!(gateway.visitor().await.request.cursor, "a heartbeat");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_never_answers_is_left() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let silent = gateway.visitor().await;
    let (reason, _) = disconnected(&mut events).await;
    assert_eq!(reason, DisconnectReason::Silent);
    drop(silent);
    // One that answers and says no Hello is left as well.
    let mute = gateway.visitor().await.accept();
    mute.closed().await;
    // And one that begins with something else.
    let wrong = gateway.visitor().await.accept();
    wrong.send(arrived(1)).await;
    wrong.closed().await;
    loop {
        let (reason, _) = disconnected(&mut events).await;
        if reason == DisconnectReason::Protocol {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_back_off_grows_has_a_floor_and_ends_after_a_good_stream() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let mut longest = Duration::ZERO;
    for attempt in 0..14 {
        let status = match attempt % 2 {
            0 => Status::unavailable(""),
            _ => Status::resource_exhausted(""),
        };
        gateway.visitor().await.refuse(status);
        let (_, retry_in) = disconnected(&mut events).await;
        let floor = Duration::from_millis(if attempt % 2 == 0 { 100 } else { 1000 });
        assert!(
            retry_in >= floor && retry_in <= Duration::from_secs(60),
            "{retry_in:?}"
        );
        longest = longest.max(retry_in);
    }
    assert!(longest > Duration::from_secs(5), "{longest:?}");
    // A stream that ends at once changes nothing; a good one does.
    let open = gateway.visitor().await.greet().await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        open.send(cursor("c")).await;
    }
    open.end(Status::unavailable("")).await;
    let (_, retry_in) = disconnected(&mut events).await;
    assert!(retry_in <= Duration::from_secs(1), "{retry_in:?}");
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_person_ends_the_stream() {
    for code in [
        Code::PermissionDenied,
        Code::NotFound,
        Code::InvalidArgument,
        Code::Unimplemented,
    ] {
        let mut gateway = Gateway::start();
        let mut events = gateway.client().build().unwrap().into_stream();
        gateway.visitor().await.refuse(Status::new(code, "because"));
        let error = events.recv().await.unwrap().unwrap_err();
        let right = match error {
            Error::PermissionDenied(why) => code == Code::PermissionDenied && why == "because",
            Error::NotFound(_) => code == Code::NotFound,
            Error::InvalidArgument(_) => code == Code::InvalidArgument,
            Error::Unimplemented(_) => code == Code::Unimplemented,
            _ => false,
        };
        assert!(right, "{code:?}");
        assert!(events.recv().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_that_does_not_read_stops_the_gateway_and_loses_nothing() {
    const MANY: u32 = 5000;
    let mut gateway = Gateway::start();
    let mut events = gateway.client().queue(4).build().unwrap().into_stream();
    let open = gateway.visitor().await.greet().await;
    let (sent, mut progress) = tokio::sync::watch::channel(0);
    let sending = tokio::spawn(async move {
        for uid in 1..=MANY {
            open.send(arrived(uid)).await;
            sent.send_replace(uid);
        }
        open
    });
    // Long after two heartbeats: the client holds only what its queue and the windows of the connection hold.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let held = *progress.borrow_and_update();
    assert!(held < MANY / 2, "{held} events were read ahead");
    nothing(progress.changed(), 300).await;
    // And it does not take the gateway for dead: the stream is still the same.
    let got = uids(&mut events, MANY as usize).await;
    assert!(got.into_iter().eq(1..=MANY));
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_app_that_reads_and_never_acknowledges_stops_the_gateway_and_loses_nothing() {
    const MANY: u32 = 12_000;
    const UNACKNOWLEDGED: u32 = 4096;
    let mut gateway = Gateway::start();
    let builder = gateway.client().explicit_acks();
    let mut events = builder.build().unwrap().into_stream();
    let acker = events.acker();
    let open = gateway.visitor().await.greet().await;
    let sending = tokio::spawn(async move {
        for uid in 1..=MANY {
            open.send(arrived(uid)).await;
        }
        open
    });
    let mut got = 0;
    let mut position = 0;
    while let Ok(event) = tokio::time::timeout(Duration::from_secs(300), events.recv()).await {
        match event.unwrap().unwrap() {
            AppEvent::Arrived(arrived) => {
                got += 1;
                assert_eq!(arrived.key.uid, got);
            }
            // The stream was not taken for dead.
            AppEvent::Disconnected { reason, .. } => panic!("{reason}"),
            _ => {}
        }
        position = events.position();
        if got == MANY {
            break;
        }
    }
    // A few positions went to what is no arrival.
    assert!(
        (UNACKNOWLEDGED - 8..=UNACKNOWLEDGED).contains(&got),
        "{got} events are neither acknowledged nor forgotten"
    );
    acker.taken(position);
    while got < MANY {
        let [uid] = uids(&mut events, 1).await[..] else {
            panic!("no arrival");
        };
        got += 1;
        assert_eq!(uid, got);
        acker.taken(events.position());
    }
    sending.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_app_that_does_not_read_is_not_told_of_each_failed_attempt() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().queue(1).build().unwrap().into_stream();
    let (refused, count) = tokio::sync::watch::channel(0);
    let refusing = tokio::spawn(async move {
        loop {
            gateway.visitor().await.refuse(Status::unavailable(""));
            refused.send_modify(|many| *many += 1);
        }
    });
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    // One that fills the queue, and one that waits for room.
    assert_eq!(*count.borrow(), 2);
    // Who reads again is connected again.
    for _ in 0..5 {
        disconnected(&mut events).await;
    }
    refusing.abort();
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_is_acknowledged_in_one_go() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    let mut open = gateway.visitor().await.greet().await;
    for uid in 1..=3 {
        open.send(arrived(uid)).await;
    }
    assert_eq!(uids(&mut events, 3).await, [1, 2, 3]);
    // The third is not taken: the app has not asked for more.
    let client_frame::Frame::Ack(ack) = open.heard().await else {
        panic!("not an acknowledgement");
    };
    let acked: Vec<_> = ack.keys.iter().map(|key| key.uid).collect();
    assert_eq!(acked, [1, 2]);
    nothing(fact(&mut events), 5).await;
    let client_frame::Frame::Ack(ack) = open.heard().await else {
        panic!("not an acknowledgement");
    };
    assert_eq!(ack.keys.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn it_subscribes_if_asked_to() {
    let mut gateway = Gateway::start();
    let mut events = gateway
        .client()
        .without_acks()
        .build()
        .unwrap()
        .into_stream();
    let visitor = gateway.visitor().await;
    assert!(visitor.from_client.is_none());
    let open = visitor.greet().await;
    open.send(arrived(1)).await;
    assert_eq!(uids(&mut events, 1).await, [1]);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_stream_ends_the_client() {
    let mut gateway = Gateway::start();
    let events = gateway.client().build().unwrap().into_stream();
    let open = gateway.visitor().await.greet().await;
    drop(events);
    open.closed().await;
}
