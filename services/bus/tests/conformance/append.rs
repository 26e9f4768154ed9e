//! Every outcome of an append.

use std::time::{Duration, Instant};

use mailbell_bus::{AppendOutcome, Bus, BusOptions, Link, Refusal, Role, StorageLimits};
use mailbell_core::timing::Timing;
use mailbell_test_servers::proxy::{Mode, Proxy};
use serde_json::json;

use crate::world::{World, account, api, append, append_all, event, insist, soon};

fn impatient(options: &mut BusOptions) {
    options.timing = Timing {
        ack_timeout: Duration::from_secs(3),
        ..Timing::default()
    };
}

async fn proxied(world: &World) -> (Proxy, Bus) {
    let (proxy, url) = world.proxy().await;
    let options = BusOptions {
        urls: vec![url],
        ..world.options(Role::Watcher)
    };
    let bus = Bus::connect(options).await.unwrap();
    (proxy, bus)
}

#[tokio::test]
async fn stored_and_repeated() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    let id = logs.ids().get(account.group());
    let stored = |position, duplicate| AppendOutcome::Stored {
        position,
        log_id: Some(id),
        duplicate,
    };
    assert_eq!(logs.append(&event(&account, 1)).await, stored(1, false));
    assert_eq!(logs.append(&event(&account, 2)).await, stored(2, false));
    assert_eq!(logs.append(&event(&account, 1)).await, stored(1, true));
    let tail = logs.tail(account.group()).await.unwrap();
    assert_eq!((tail.first, tail.last), (1, 2));
}

#[tokio::test]
async fn an_acknowledgement_that_is_lost() {
    let world = World::start_with(impatient).await;
    let (proxy, bus) = proxied(&world).await;
    let logs = bus.logs().await.unwrap();
    let account = account(5, 0);
    proxy.set(Mode::DEAF);
    assert_eq!(
        logs.append(&event(&account, 1)).await,
        AppendOutcome::NoAnswer
    );
    proxy.set(Mode::PASS);
    let again = logs.append(&event(&account, 1)).await;
    assert!(
        matches!(
            again,
            AppendOutcome::Stored {
                position: 1,
                duplicate: true,
                ..
            }
        ),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_connection_that_breaks_in_between() {
    let world = World::start().await;
    let (proxy, bus) = proxied(&world).await;
    let logs = bus.logs().await.unwrap();
    let account = account(5, 0);
    let before = *bus.link().borrow();
    proxy.set(Mode::DEAF);
    let first = event(&account, 1);
    let (outcome, ()) = tokio::join!(logs.append(&first), async {
        proxy.swallowed().await;
        proxy.set(Mode::Cut);
    });
    assert_eq!(outcome, AppendOutcome::Disconnected);
    // While it is down nothing is queued: it says so at once.
    soon(bus.link().wait_for(|link| !link.is_up()))
        .await
        .unwrap();
    assert!(!bus.ready());
    let start = Instant::now();
    assert_eq!(
        logs.append(&event(&account, 2)).await,
        AppendOutcome::Disconnected
    );
    assert!(start.elapsed() < Duration::from_secs(1));
    proxy.set(Mode::PASS);
    let after = *soon(bus.link().wait_for(Link::is_up)).await.unwrap();
    assert_ne!(
        before, after,
        "it can be seen that it was another connection"
    );
    let again = logs.append(&event(&account, 1)).await;
    assert!(
        matches!(
            again,
            AppendOutcome::Stored {
                position: 1,
                duplicate: true,
                ..
            }
        ),
        "{again:?}"
    );
    let next = logs.append(&event(&account, 2)).await;
    assert!(
        matches!(
            next,
            AppendOutcome::Stored {
                position: 2,
                duplicate: false,
                ..
            }
        ),
        "{next:?}"
    );
}

#[tokio::test]
async fn storage_full() {
    let mut world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    append(&logs, &event(&account, 1)).await;
    drop(logs);
    // The disk became smaller under it.
    world.server.stop().await;
    let path = world.server.directory().join("nats.conf");
    let config = std::fs::read_to_string(&path).unwrap();
    let config = config.replace(
        "sync_interval: always",
        "sync_interval: always\n  max_file_store: 64",
    );
    std::fs::write(&path, config).unwrap();
    world.server.restart().await.unwrap();
    let logs = world.logs(Role::Watcher).await;
    let outcome = logs.append(&event(&account, 2)).await;
    assert!(
        matches!(
            outcome,
            AppendOutcome::Refused {
                class: Refusal::StorageFull,
                ..
            }
        ),
        "{outcome:?}"
    );
    assert_eq!(logs.tail(account.group()).await.unwrap().last, 1);
}

#[tokio::test]
async fn a_full_log_drops_its_oldest() {
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
    let tail = logs.tail(account.group()).await.unwrap();
    assert_eq!(tail.last, 20);
    assert!(tail.first > 10, "{tail:?}");
}

#[tokio::test]
async fn no_stream() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    let stream = format!("STREAM.DELETE.MB_main_LOG_{}", account.group());
    assert_eq!(
        api(&world.operator().await, &stream, json!({})).await["success"],
        json!(true)
    );
    let outcome = logs.append(&event(&account, 1)).await;
    assert!(
        matches!(
            outcome,
            AppendOutcome::Refused {
                class: Refusal::NoStream,
                ..
            }
        ),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn denied_is_told_apart_and_at_once() {
    let world = World::start().await;
    let logs = world.logs(Role::Gateway).await;
    let start = Instant::now();
    let outcome = logs.append(&event(&account(5, 0), 1)).await;
    assert!(
        matches!(
            outcome,
            AppendOutcome::Refused {
                class: Refusal::Denied,
                ..
            }
        ),
        "{outcome:?}"
    );
    assert!(
        start.elapsed() < Timing::default().ack_timeout,
        "not by a time-out"
    );
}

#[tokio::test]
async fn too_large() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let mut large = event(&account(5, 0), 1);
    large.content = vec![b'x'; 9000].into();
    let outcome = logs.append(&large).await;
    assert!(
        matches!(
            outcome,
            AppendOutcome::Refused {
                class: Refusal::TooLarge,
                ..
            }
        ),
        "{outcome:?}"
    );
    // The largest that an event can be fits.
    large.content = vec![b'x'; 8000].into();
    append(&logs, &large).await;
}

#[tokio::test]
async fn a_frozen_server_blocks_nobody_for_long() {
    let mut world = World::start_with(impatient).await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    let process = world.server.pid().unwrap().to_string();
    let signal = |name: &'static str| {
        let process = process.clone();
        async move {
            tokio::process::Command::new("kill")
                .args([name, &process])
                .status()
                .await
                .unwrap()
        }
    };
    signal("-STOP").await;
    // Far more than the client's queue holds.
    let many = (1..=5000).map(|uid| {
        let (logs, event) = (logs.clone(), event(&account, uid));
        async move { logs.append(&event).await }
    });
    let outcomes = soon(futures_util::future::join_all(many)).await;
    assert!(outcomes.iter().all(|outcome| matches!(
        outcome,
        AppendOutcome::NoAnswer | AppendOutcome::Disconnected
    )));
    signal("-CONT").await;
    world.server.restart().await.unwrap();
    insist(&logs, &event(&account, 9000)).await;
}

#[tokio::test]
async fn appends_of_many_accounts_at_once() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let accounts: Vec<_> = (0..16).map(|n| account(n, 0)).collect();
    futures_util::future::join_all(
        accounts
            .iter()
            .map(|account| append_all(&logs, account, 1..=20)),
    )
    .await;
    for account in accounts {
        assert_eq!(logs.tail(account.group()).await.unwrap().last, 20);
    }
}

#[tokio::test]
async fn what_happened_is_counted() {
    let mut registry = prometheus_client::registry::Registry::default();
    let world = World::start().await;
    let metrics = mailbell_bus::Metrics::register(&mut registry);
    let bus = |role| {
        Bus::connect(BusOptions {
            metrics: metrics.clone(),
            ..world.options(role)
        })
    };
    let logs = bus(Role::Watcher).await.unwrap().logs().await.unwrap();
    let gateway = bus(Role::Gateway).await.unwrap().logs().await.unwrap();
    append_all(&logs, &account(5, 0), 1..=3).await;
    append(&logs, &event(&account(5, 0), 3)).await;
    gateway.append(&event(&account(5, 0), 4)).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "bus_appends_total{outcome=\"stored\"} 3",
        "bus_appends_total{outcome=\"duplicate\"} 1",
        "bus_appends_total{outcome=\"refused-denied\"} 1",
        "bus_append_seconds_count 4",
        "bus_connects_total 2",
        "bus_pending 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}
