//! Live streams: who gets what, at which level, and what else a stream carries.

use mailbell_core::event::{Event, Fact};
use mailbell_gateway::{Options, QueueLimits};
use mailbell_proto::{
    bus::v1::{AccountRecord, StatusRecord},
    push::v1::{
        AccountState, ContentLevel, EventKind, Health, ResyncReason, SubscribeRequest, event::Body,
        server_frame::Frame,
    },
};
use tonic::Code;

use crate::support::{World, account, arrival, claims, options};

#[tokio::test]
async fn an_event_reaches_every_device_of_its_account() {
    let world = World::start().await;
    let mut one = world.device(&[account(0), account(1)]).await;
    let mut two = world.device(&[account(1)]).await;
    let mut tenant = world.device(&[]).await;
    for device in [&mut one, &mut two, &mut tenant] {
        device.live().await;
    }
    world.source.append(&arrival(&account(0), 7));
    world.source.append(&arrival(&account(1), 8));
    world.source.append(&arrival(&account(2), 9));
    let mut all = one.uids(2).await;
    all.sort_unstable();
    assert_eq!(all, [7, 8]);
    let event = two.event().await;
    assert_eq!(event.key.as_ref().unwrap().account, account(1).to_string());
    let Some(Body::Arrived(arrived)) = &event.body else {
        panic!("{event:?}");
    };
    assert_eq!(arrived.message.as_ref().unwrap().preview, "dear reader");
    let times = event.times.unwrap();
    assert!(times.detected_us > 0 && times.appended_us > times.detected_us);
    assert!(times.received_us >= times.appended_us);
    let mut all = tenant.uids(3).await;
    all.sort_unstable();
    assert_eq!(all, [7, 8, 9]);
    world
        .until("written", || world.value("written_total") >= 6.0)
        .await;
    assert_eq!(world.value("received_total"), 3.0);
    assert_eq!(world.value("queued_total"), 6.0);
}

#[tokio::test]
async fn the_order_of_the_log_is_the_order_of_the_stream() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    for uid in 1..=500 {
        world.source.append(&arrival(&account(0), uid));
    }
    let expected: Vec<u32> = (1..=500).collect();
    assert_eq!(device.uids(500).await, expected);
    device.cursor_at(&account(0), 500).await;
}

#[tokio::test]
async fn a_level_shows_no_more_than_token_and_request_allow() {
    let world = World::start().await;
    let accounts = [account(0)];
    let headers = world.minter.sign(&mailbell_core::token::Claims {
        content: "headers".to_owned(),
        ..claims(&accounts)
    });
    let asking = |content: ContentLevel| SubscribeRequest {
        content: content.into(),
        ..SubscribeRequest::default()
    };
    let mut less = world
        .subscribe(asking(ContentLevel::Preview), &headers)
        .await
        .unwrap();
    let full = world.minter.token(&accounts);
    let mut key = world
        .subscribe(asking(ContentLevel::Key), &full)
        .await
        .unwrap();
    assert_eq!(less.hello.content(), ContentLevel::Headers);
    assert_eq!(key.hello.content(), ContentLevel::Key);
    less.live().await;
    key.live().await;
    world.source.append(&arrival(&account(0), 7));
    let message = |body: Option<Body>| match body {
        Some(Body::Arrived(arrived)) => arrived.message,
        other => panic!("{other:?}"),
    };
    let shown = message(less.event().await.body).unwrap();
    assert_eq!(
        (shown.subject.as_str(), shown.preview.as_str()),
        ("message 7", "")
    );
    let event = key.event().await;
    assert!(event.folder_name.is_empty());
    assert!(message(event.body).is_none());
}

#[tokio::test]
async fn only_the_kinds_that_were_asked_for_and_always_resync() {
    let world = World::start().await;
    let request = SubscribeRequest {
        kinds: vec![EventKind::Gone.into()],
        ..SubscribeRequest::default()
    };
    let token = world.minter.token(&[account(0)]);
    let mut device = world.subscribe(request, &token).await.unwrap();
    device.live().await;
    let fact = |fact| Event {
        fact,
        content: bytes::Bytes::new(),
        ..arrival(&account(0), 1)
    };
    world.source.append(&arrival(&account(0), 1));
    world.source.append(&fact(Fact::Gone { uid: 1 }));
    world.source.append(&fact(Fact::AccountState {
        counter: 1,
        health: Health::Retrying,
    }));
    world.source.append(&fact(Fact::Resync {
        counter: 2,
        uid_next: 9,
        present: 0,
        reason: ResyncReason::Generation,
    }));
    let gone = device.event().await;
    assert!(matches!(gone.body, Some(Body::Gone(_))));
    let resync = device.resync().await;
    assert_eq!(resync.reason(), ResyncReason::Generation);
    assert_eq!((resync.uid_next, resync.generation), (9, 7));
    let counted = "resynced_total{reason=\"generation\"}";
    assert_eq!(world.value(counted), 1.0);
    device.cursor_at(&account(0), 4).await;
}

#[tokio::test]
async fn hello_says_how_the_accounts_are() {
    let world = World::start().await;
    let state = AccountState {
        health: Health::ActionNeeded.into(),
        code: "bad-credentials".to_owned(),
        ..AccountState::default()
    };
    let status = StatusRecord {
        state: Some(state),
        ..StatusRecord::default()
    };
    world.source.put_status(&account(0), status);
    let device = world.device(&[account(0), account(1)]).await;
    let hello = &device.hello;
    let states: Vec<_> = hello
        .accounts
        .iter()
        .map(|state| (state.account.clone(), state.health()))
        .collect();
    assert_eq!(
        states,
        [
            (account(0).to_string(), Health::ActionNeeded),
            (account(1).to_string(), Health::Starting)
        ]
    );
    assert_eq!((hello.heartbeat_ms, hello.queue_events), (600, 16));
    assert!(hello.session.starts_with("s-") && !hello.digest.is_empty());
    // Of a whole tenant nobody is named.
    assert!(world.device(&[]).await.hello.accounts.is_empty());
}

#[tokio::test]
async fn a_hello_that_is_larger_than_the_queue_leaves_room_for_a_resync() {
    let queue = QueueLimits {
        frames: 4,
        bytes: 1024,
    };
    let world = World::with(Options { queue, ..options() }).await;
    for n in 0..10 {
        let state = AccountState {
            sentence: "x".repeat(200),
            ..AccountState::default()
        };
        let status = StatusRecord {
            state: Some(state),
            ..StatusRecord::default()
        };
        world.source.put_status(&account(n), status);
    }
    let accounts: Vec<_> = (0..10).map(account).collect();
    let request = SubscribeRequest {
        cursor: b"of another subscription".as_slice().into(),
        ..SubscribeRequest::default()
    };
    let token = world.minter.token(&accounts);
    let mut device = world.subscribe(request, &token).await.unwrap();
    assert_eq!(device.hello.accounts.len(), 10);
    let resync = device.resync().await;
    assert_eq!(resync.reason(), ResyncReason::SubscriptionChanged);
    device.live().await;
}

#[tokio::test]
async fn an_account_that_does_not_exist_is_not_found_if_it_is_named() {
    let world = World::start().await;
    let (gone, missing) = (account(0), account(999));
    let record = AccountRecord {
        removed_at_ms: 1,
        ..AccountRecord::default()
    };
    world.source.put_account(&gone, record);
    let token = world
        .minter
        .token(&[gone.clone(), missing.clone(), account(1)]);
    for account in [&gone, &missing] {
        let request = SubscribeRequest {
            accounts: vec![account.to_string()],
            ..SubscribeRequest::default()
        };
        assert_eq!(world.refused(request, &token).await, Code::NotFound);
    }
    // A token outlives an account; its other accounts are served.
    let device = world
        .subscribe(SubscribeRequest::default(), &token)
        .await
        .unwrap();
    let removed = |state: &&AccountState| state.health() == Health::Removed;
    assert_eq!(device.hello.accounts.iter().filter(removed).count(), 2);
}

#[tokio::test]
async fn a_quiet_stream_has_a_heartbeat_that_is_its_cursor() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    world.source.append(&arrival(&account(50), 1));
    // Nothing for this device, yet its cursor moves on with the log.
    device.cursor_at(&account(50), 1).await;
    for _ in 0..3 {
        assert!(matches!(device.try_next().await, Ok(Frame::Cursor(_))));
    }
    assert_eq!(device.silent_since_ms, 0);
}

#[tokio::test]
async fn without_the_bus_streams_stay_and_say_so() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    world.source.append(&arrival(&account(0), 1));
    assert_eq!(device.uids(1).await, [1]);
    device.cursor_at(&account(0), 1).await;
    world.source.disconnect();
    world.source.append(&arrival(&account(0), 2));
    while device.silent_since_ms == 0 {
        assert!(matches!(device.try_next().await, Ok(Frame::Cursor(_))));
    }
    // In the window: no read is needed. Beyond what this gateway has: only the leader could tell.
    let mut again = world.again(&device, &[account(0)]).await;
    again.live().await;
    let mut ahead = mailbell_core::cursor::Cursor::decode(&device.cursor).unwrap();
    ahead.0[account(0).group()].position += 1;
    let request = SubscribeRequest {
        cursor: ahead.encode(),
        ..device.resume()
    };
    let token = world.minter.token(&[account(0)]);
    let status = world.subscribe(request, &token).await.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_some());
    world.source.reconnect();
    assert_eq!(device.uids(1).await, [2]);
    assert_eq!(again.uids(1).await, [2]);
    while device.silent_since_ms != 0 {
        assert!(matches!(device.try_next().await, Ok(Frame::Cursor(_))));
    }
}

#[tokio::test]
async fn not_ready_when_the_bus_is_away_for_long() {
    let options = Options {
        link_grace: std::time::Duration::ZERO,
        ..options()
    };
    let world = World::with(options).await;
    world.source.disconnect();
    world
        .until("not ready", || !world.health.readiness().ok)
        .await;
    assert!(world.health.liveness().ok, "a restart would not help");
    world.source.reconnect();
    world.ready().await;
}

#[tokio::test]
async fn a_log_that_repeats_itself_is_counted_and_told() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    for _ in 0..2 {
        world.source.append(&arrival(&account(0), 1));
    }
    assert_eq!(device.uids(2).await, [1, 1]);
    assert_eq!(world.value("repeated_total"), 1.0);
}

#[tokio::test]
async fn a_device_that_goes_leaves_nothing() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    world
        .until("attached", || world.value("gateway_devices") == 1.0)
        .await;
    drop(device);
    world
        .until("gone", || world.value("gateway_devices") == 0.0)
        .await;
    world.source.append(&arrival(&account(0), 1));
    world
        .until("received", || world.value("received_total") == 1.0)
        .await;
    assert_eq!(world.value("queued_total"), 0.0);
    assert_eq!(world.value("gateway_queued_frames"), 0.0);
    let why = "gateway_streams_ended_total{why=\"client\"}";
    assert_eq!(world.value(why), 1.0);
}
