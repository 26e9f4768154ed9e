//! One message, one trace; counters at each milestone; readiness that means something.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use mailbell_runtime::test_util::{OtlpReceiver, ReceivedSpan};
use mailbell_test_servers::{NatsOptions, NatsServer};
use mailbell_tests::{
    installation::{Layout, Options, Part},
    process::until,
    world::{SETTLE_LIMIT, World, WorldOptions},
};

async fn roles_on(nats: &NatsServer, options: Options) -> World {
    World::start(WorldOptions {
        installation: Options {
            layout: Layout::Roles,
            nats_url: Some(nats.url()),
            ..options
        },
        ..WorldOptions::default()
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn one_message_makes_one_trace_through_both_roles() {
    let receiver = OtlpReceiver::start().unwrap();
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let options = Options::default().env("MAILBELL_OTLP_ENDPOINT", &receiver.endpoint());
    let mut world = roles_on(&nats, options).await;
    let device = world.device(&[0]).await.unwrap();
    let number = world.deliver(0, 1).await.unwrap().start;
    device
        .wait(SETTLE_LIMIT, "the message", |journal| {
            journal.traces.contains_key(&number)
        })
        .await
        .unwrap();
    // What the device was told names the trace.
    let traceparent = device.journal().traces.get(&number).unwrap().clone();
    let trace_id = traceparent.split('-').nth(1).unwrap().to_owned();
    let names = ["detect", "fetch", "append", "receive", "queue", "write"];
    receiver
        .wait_for(SETTLE_LIMIT, |spans| {
            names.iter().all(|name| {
                spans
                    .iter()
                    .any(|span| span.trace_id == trace_id && span.name == *name)
            })
        })
        .await
        .unwrap();

    let spans = receiver.trace(&trace_id);
    let one = |name: &str| -> &ReceivedSpan {
        let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name}: {spans:#?}");
        found[0]
    };
    for (name, service) in [
        ("detect", "mailbell-watcher"),
        ("fetch", "mailbell-watcher"),
        ("append", "mailbell-watcher"),
        ("receive", "mailbell-gateway"),
        ("queue", "mailbell-gateway"),
        ("write", "mailbell-gateway"),
    ] {
        assert_eq!(one(name).service, service, "{name}");
    }
    // The watcher's steps hang on one root; the gateway's on what the event carried: the append.
    let root = &one("detect").parent_span_id;
    for name in ["fetch", "append"] {
        assert_eq!(&one(name).parent_span_id, root, "{name}");
    }
    for name in ["receive", "queue", "write"] {
        assert_eq!(one(name).parent_span_id, one("append").span_id, "{name}");
    }
    // In the order in which they happened. Both processes have one clock here.
    for (earlier, later) in names.iter().zip(names.iter().skip(1)) {
        assert!(one(earlier).start <= one(later).start, "{earlier} {later}");
    }
    for span in &spans {
        let text = format!("{span:?}");
        let found = mailbell_tests::leaks::find(&text, &[]);
        assert!(found.is_empty(), "{found:#?}");
    }
    world.search_leaks().await.unwrap();
}

#[tokio::test]
async fn each_milestone_is_counted() {
    let options = WorldOptions {
        users: 2,
        ..WorldOptions::default()
    };
    let mut world = World::start(options).await.unwrap();
    let first = world.device(&[0]).await.unwrap();
    let mut second = world.device(&[0]).await.unwrap();
    let installation = &world.installation;
    world.deliver(0, 20).await.unwrap();
    world.judge(&[&first, &second]).await.unwrap();
    let counted = |name: &'static str, label: &'static str| async move {
        installation
            .metric(name, &[label][..usize::from(!label.is_empty())])
            .await
            .unwrap()
    };
    let milestones = "mailbell_watcher_milestones_total";
    for label in ["detected", "fetched", "appended"] {
        until(SETTLE_LIMIT, label, || async {
            counted(milestones, label).await >= 20.0
        })
        .await
        .unwrap();
    }
    for (name, count) in [
        ("mailbell_received_total", 20.0),
        ("mailbell_queued_total", 40.0),
        ("mailbell_written_total", 40.0),
        // Devices acknowledge a while later.
        ("mailbell_acked_total", 40.0),
    ] {
        until(SETTLE_LIMIT, name, || async {
            counted(name, "").await >= count
        })
        .await
        .unwrap();
    }
    // Each hop is timed, once for a message or once for each device.
    let (watcher, gateway) = (
        "mailbell_watcher_hop_seconds_count",
        "mailbell_gateway_hop_seconds_count",
    );
    for (name, hop, count) in [
        (watcher, "detected-fetched", 20.0),
        (watcher, "fetched-appended", 20.0),
        (gateway, "detected-received", 20.0),
        (gateway, "appended-received", 20.0),
        (gateway, "received-queued", 40.0),
        (gateway, "queued-written", 40.0),
        (gateway, "detected-written", 40.0),
    ] {
        let timed = counted(name, hop).await;
        assert!(timed >= count, "{hop}: {timed}");
    }
    assert_eq!(counted("mailbell_gateway_devices", "").await, 2.0);
    for reason in ["subscription-changed", "log-changed", "cursor-too-old"] {
        assert_eq!(counted("mailbell_resynced_total", reason).await, 0.0);
    }
    // One device must list, since it subscribes to more than before.
    second.stop().await.unwrap();
    let token = world.token(&[0, 1]).await.unwrap();
    let places = vec![world.account(0).inbox(), world.account(1).inbox()];
    second.subscribe(token, places);
    second.start().unwrap();
    until(SETTLE_LIMIT, "resynced", || async {
        let installation = &world.installation;
        let resynced = installation.metric("mailbell_resynced_total", &["subscription-changed"]);
        resynced.await.unwrap() == 1.0
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn without_nats_nobody_is_ready_and_everybody_alive() {
    let mut nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let mut world = roles_on(&nats, Options::default()).await;
    let device = world.device(&[0]).await.unwrap();
    world.deliver(0, 3).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    nats.kill();
    let installation = &world.installation;
    let parts = [Part::Watcher(0), Part::Gateway, Part::Admin];
    let status = |part, path: &'static str| async move {
        let page = installation.page_of(part, path).await.unwrap();
        (page.status, page.body)
    };
    for part in parts {
        until(SETTLE_LIMIT, "not ready", || async {
            status(part, "/readyz").await.0 == 503
        })
        .await
        .unwrap_or_else(|error| panic!("{part:?}: {error}"));
        let (_, body) = status(part, "/readyz").await;
        assert!(body.contains("NATS"), "{part:?}: {body}");
        assert_eq!(status(part, "/healthz").await.0, 200, "{part:?}");
    }
    // The device's stream stays, and what arrives meanwhile comes when NATS is back.
    world.deliver(0, 3).await.unwrap();
    nats.restart().await.unwrap();
    for part in parts {
        until(SETTLE_LIMIT, "ready again", || async {
            status(part, "/readyz").await.0 == 200
        })
        .await
        .unwrap_or_else(|error| panic!("{part:?}: {error}"));
    }
    world.settle(&[&device]).await.unwrap();
    assert_eq!(device.journal().connections, 1);
}
