//! Following a log.

use futures_util::{StreamExt as _, stream};
use mailbell_bus::{Followed, Role, StorageLimits};
use mailbell_test_servers::proxy::Mode;
use serde_json::json;

use crate::world::{World, account, api, append, append_all, event, followed, next_uid};

#[tokio::test]
async fn from_a_position_on() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let gateway = world.logs(Role::Gateway).await;
    let account = account(5, 0);
    append_all(&logs, &account, 1..=3).await;
    let mut follower = gateway.follow(account.group(), 2);
    match followed(&mut follower).await {
        Followed::Made { tail, log_id, next } => {
            assert_eq!((tail.first, tail.last, next), (1, 3, 2));
            assert_eq!(log_id, logs.ids().get(account.group()));
        }
        other => panic!("{other:?}"),
    }
    for expected in 2..=3 {
        match followed(&mut follower).await {
            Followed::Entry(entry) => {
                assert_eq!((entry.position, &entry.account), (expected, &account));
                assert!(entry.stored_us > 1_600_000_000_000_000);
                assert_eq!(
                    entry.event,
                    Some(event(&account, u32::try_from(expected).unwrap()))
                );
                assert_eq!(
                    entry.bytes,
                    event(&account, u32::try_from(expected).unwrap())
                        .encode()
                        .unwrap()
                );
            }
            other => panic!("{other:?}"),
        }
    }
    append(&logs, &event(&account, 4)).await;
    assert_eq!(next_uid(&mut follower).await, 4);
}

#[tokio::test]
async fn a_purged_account_is_a_jump() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let (a, b) = (account(5, 0), account(5, 1));
    append_all(&logs, &a, 1..=1).await;
    append_all(&logs, &b, 1..=3).await;
    append_all(&logs, &a, 2..=2).await;
    logs.purge_account(&b).await.unwrap();
    let mut follower = logs.follow(a.group(), 1);
    assert_eq!(next_uid(&mut follower).await, 1);
    match followed(&mut follower).await {
        Followed::Jump { from, to, tail } => {
            assert_eq!((from, to), (2, 4));
            assert!(tail.first <= from, "nothing has aged out");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(next_uid(&mut follower).await, 2);
}

#[tokio::test]
async fn what_has_aged_out_is_a_jump_too() {
    let world = World::start_with(|options| {
        options.storage = StorageLimits {
            log_bytes: 32 * 1024,
            ..StorageLimits::fitting(1 << 30)
        };
    })
    .await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    for uid in 1..=20 {
        let mut event = event(&account, uid);
        event.content = vec![b'x'; 4000].into();
        append(&logs, &event).await;
    }
    let mut follower = logs.follow(account.group(), 1);
    let Followed::Made { tail, next, .. } = followed(&mut follower).await else {
        panic!("made first")
    };
    assert!(tail.first > next, "it shows at once");
    match followed(&mut follower).await {
        Followed::Jump { from, to, tail } => {
            assert!(from == 1 && tail.first == to + 1, "{from} {to} {tail:?}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        next_uid(&mut follower).await,
        u32::try_from(tail.first).unwrap()
    );
}

#[tokio::test]
async fn a_restarted_server_loses_and_repeats_nothing() {
    let mut world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    append_all(&logs, &account, 1..=5).await;
    let mut follower = logs.follow(account.group(), 1);
    for uid in 1..=5 {
        assert_eq!(next_uid(&mut follower).await, uid);
    }
    world.server.kill();
    world.server.restart().await.unwrap();
    let again = world.logs(Role::Watcher).await;
    append_all(&again, &account, 6..=7).await;
    match followed(&mut follower).await {
        Followed::Made { next, log_id, .. } => {
            assert_eq!((next, log_id), (6, again.ids().get(account.group())));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(next_uid(&mut follower).await, 6);
    assert_eq!(next_uid(&mut follower).await, 7);
}

#[tokio::test]
async fn deliveries_that_are_lost_are_delivered_again() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    let (proxy, url) = world.proxy().await;
    let mut options = world.options(Role::Gateway);
    options.urls = vec![url];
    // Heartbeats, and what is missed, in a fraction of the time.
    options.timing.ack_timeout = std::time::Duration::from_millis(1500);
    let far = mailbell_bus::Bus::connect(options).await.unwrap();
    let far_logs = far.logs().await.unwrap();
    append_all(&logs, &account, 1..=2).await;
    let mut follower = far_logs.follow(account.group(), 1);
    assert_eq!(next_uid(&mut follower).await, 1);
    assert_eq!(next_uid(&mut follower).await, 2);
    proxy.set(Mode::DEAF);
    append_all(&logs, &account, 3..=4).await;
    proxy.swallowed().await;
    proxy.set(Mode::PASS);
    append_all(&logs, &account, 5..=6).await;
    for uid in 3..=6 {
        assert_eq!(next_uid(&mut follower).await, uid);
    }
}

#[tokio::test]
async fn a_log_that_is_shorter_is_told() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    append_all(&logs, &account, 1..=5).await;
    let old = logs.ids().get(account.group());
    let mut follower = logs.follow(account.group(), 1);
    for uid in 1..=5 {
        assert_eq!(next_uid(&mut follower).await, uid);
    }
    let stream = format!("STREAM.DELETE.MB_main_LOG_{}", account.group());
    api(&world.operator().await, &stream, json!({})).await;
    world.bus(Role::Setup).await.setup().await.unwrap();
    match followed(&mut follower).await {
        Followed::Cut { tail, log_id, next } => {
            assert_eq!((tail.last, next), (0, 1));
            assert_ne!(log_id, old);
        }
        other => panic!("{other:?}"),
    }
    // It is not mute until the log has grown to where it was.
    append_all(&logs, &account, 11..=12).await;
    assert_eq!(next_uid(&mut follower).await, 11);
    assert_eq!(next_uid(&mut follower).await, 12);
    // From beyond the tail from the beginning.
    let mut beyond = logs.follow(account.group(), 100);
    assert!(matches!(
        followed(&mut beyond).await,
        Followed::Cut { next: 3, .. }
    ));
}

#[tokio::test]
async fn a_slow_reader_makes_the_server_wait() {
    const EVENTS: u32 = 2000;
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    let mut follower = logs.follow(account.group(), 1);
    assert!(matches!(
        followed(&mut follower).await,
        Followed::Made { .. }
    ));
    // More than the server sends ahead of its reader, and fewer than the subscription holds: nothing else keeps it back.
    let appends = (1..=EVENTS).map(|uid| {
        let (logs, mut event) = (logs.clone(), event(&account, uid));
        event.content = vec![b'x'; 7000].into();
        async move { append(&logs, &event).await }
    });
    let appends = stream::iter(appends).buffer_unordered(32);
    assert_eq!(appends.count().await, 2000);
    let operator = world.operator().await;
    let log = format!("MB_main_LOG_{}", account.group());
    let consumers = api(&operator, &format!("CONSUMER.LIST.{log}"), json!({})).await;
    let waiting = consumers["consumers"][0]["num_pending"].as_u64().unwrap();
    assert!(waiting > u64::from(EVENTS) / 4, "{waiting} wait");
    let mut seen = Vec::new();
    let mut last = 0;
    for _ in 0..EVENTS {
        let Followed::Entry(entry) = followed(&mut follower).await else {
            panic!("nothing was missed")
        };
        assert!(entry.position > last);
        last = entry.position;
        seen.push(crate::world::uid(&entry.event.unwrap()));
    }
    seen.sort_unstable();
    assert_eq!(seen, (1..=EVENTS).collect::<Vec<_>>());
}
