//! One message's trace goes on through the gateway. A file of its own: telemetry belongs to the process.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "gateway/support/mod.rs"]
#[expect(dead_code, reason = "this test needs only a part of it")]
mod support;

use mailbell_core::event::Event;
use mailbell_runtime::{
    telemetry::{Telemetry, TelemetryArgs},
    test_util::OtlpReceiver,
    trace::TraceContext,
};
use support::{LIMIT, World, account, arrival};

#[tokio::test]
async fn receive_queue_and_write_join_the_trace_of_the_event() {
    let receiver = OtlpReceiver::start().unwrap();
    let args = TelemetryArgs {
        otlp_endpoint: Some(receiver.endpoint()),
        ..TelemetryArgs::default()
    };
    let telemetry = Telemetry::init(&args, "gateway").unwrap();
    let world = World::start().await;
    let mut one = world.device(&[account(0)]).await;
    let mut two = world.device(&[account(0)]).await;
    one.live().await;
    two.live().await;
    let append = TraceContext::root_with(true);
    let traced = |uid, context: TraceContext| Event {
        traceparent: context.to_string(),
        ..arrival(&account(0), uid)
    };
    world.source.append(&traced(1, append));
    let unsampled = TraceContext::root_with(false);
    world.source.append(&traced(2, unsampled));
    for device in [&mut one, &mut two] {
        let event = device.event().await;
        assert_eq!(event.traceparent, append.to_string());
        device.uids(1).await;
    }
    world
        .until("written", || world.value("written_total") == 4.0)
        .await;
    telemetry.flush(LIMIT).await;
    let trace_id = append.trace_id();
    let of_trace = |spans: &[mailbell_runtime::test_util::ReceivedSpan]| {
        spans.iter().filter(|s| s.trace_id == trace_id).count()
    };
    receiver
        .wait_for(LIMIT, |spans| of_trace(spans) == 5)
        .await
        .unwrap();
    let spans = receiver.trace(&trace_id);
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["queue", "queue", "receive", "write", "write"]);
    assert!(spans.iter().all(|s| s.parent_span_id == append.span_id()));
    let unsampled = unsampled.trace_id();
    assert!(receiver.trace(&unsampled).is_empty());
    telemetry.shutdown(LIMIT).await;
}
