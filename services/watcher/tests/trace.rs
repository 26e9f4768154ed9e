//! A message's trace begins with its detection. A file of its own: telemetry belongs to the process.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "watcher/world.rs"]
#[expect(dead_code, reason = "this test needs only a part of it")]
mod world;

use mailbell_core::event::Fact;
use mailbell_runtime::{
    telemetry::{Telemetry, TelemetryArgs},
    test_util::{OtlpReceiver, ReceivedSpan},
    trace::TraceContext,
};
use world::{LIMIT, World, mail};

#[tokio::test]
async fn each_message_is_one_trace_from_detection_to_the_log() {
    let receiver = OtlpReceiver::start().unwrap();
    let args = TelemetryArgs {
        otlp_endpoint: Some(receiver.endpoint()),
        ..TelemetryArgs::default()
    };
    let telemetry = Telemetry::init(&args, "watcher").unwrap();
    let world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    for number in 0..3 {
        let message = mail(&format!("n{number}"));
        world.dovecot.deliver_lmtp("alice", &message).await.unwrap();
    }
    world.until_arrived(&account, 3).await;
    world
        .until_metric(
            "mailbell_watcher_milestones_total{milestone=\"appended\"}",
            3.0,
        )
        .await;
    telemetry.flush(LIMIT).await;
    let roots = |spans: &[ReceivedSpan]| {
        let root = |span: &&ReceivedSpan| span.name == "message";
        spans.iter().filter(root).count()
    };
    receiver
        .wait_for(LIMIT, |spans| roots(spans) == 3)
        .await
        .unwrap();
    let events = world.events(&account).await;
    let arrived = events
        .iter()
        .filter(|(_, event)| matches!(event.fact, Fact::Arrived { .. }));
    for (_, event) in arrived {
        let append = TraceContext::parse(&event.traceparent).unwrap();
        let spans = receiver.trace(&append.trace_id());
        let span = |name: &str| {
            let mut named = spans.iter().filter(|span| span.name == name);
            let found = named.next().unwrap_or_else(|| panic!("{name}: {spans:?}"));
            assert!(named.next().is_none(), "{name} twice");
            found
        };
        assert_eq!(spans.len(), 4);
        let root = span("message");
        assert!(root.parent_span_id.is_empty());
        for hop in ["detect", "fetch", "append"] {
            let hop = span(hop);
            assert_eq!(hop.parent_span_id, root.span_id);
            assert!(root.start <= hop.start && hop.end <= root.end, "{spans:?}");
        }
        // What a gateway does with the event goes on from here.
        assert_eq!(span("append").span_id, append.span_id());
        assert!(span("detect").end <= span("fetch").start);
    }
    telemetry.shutdown(LIMIT).await;
}
