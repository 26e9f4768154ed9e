//! Telemetry as a process sets it up, against a real OTLP/gRPC receiver. One test in a file of its own: telemetry belongs to the process.

use std::time::{Duration, SystemTime};

use mailbell_runtime::{
    Error,
    metrics::Metrics,
    telemetry::{Telemetry, TelemetryArgs},
    test_util::{OtlpReceiver, ReceivedSpan},
    trace::{self, KeyValue, TraceContext},
};

const LIMIT: Duration = Duration::from_secs(20);

// One thread on purpose: a flush that blocked it would keep the exporter from sending, and so hang.
#[tokio::test]
async fn one_message_makes_one_trace() {
    let receiver = OtlpReceiver::start().unwrap();
    let args = TelemetryArgs {
        otlp_endpoint: Some(receiver.endpoint()),
        ..TelemetryArgs::default()
    };
    let telemetry = Telemetry::init(&args, "watcher").unwrap();
    assert!(matches!(
        Telemetry::init(&args, "watcher"),
        Err(Error::TelemetryTwice)
    ));
    let mut metrics = Metrics::new("watcher");
    telemetry.register_metrics(metrics.registry());

    let at = |ms| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(ms)
    };
    // The watcher: the event's header leaves before the append is over.
    let root = TraceContext::root();
    assert!(root.is_sampled());
    trace::record_span("detect", &root, at(0), at(2), []);
    trace::record_span("fetch", &root, at(2), at(10), [KeyValue::new("bytes", 512)]);
    let append = root.child();
    let header = append.to_string();
    trace::record_span_as("append", &root, &append, at(10), at(12), []);
    // An open span of the process has no part in it.
    let inside = tracing::info_span!(target: "mailbell_test", "some work").entered();
    trace::record_root("message", &root, at(0), at(12), []);
    // The gateway: it knows the header only.
    let parent = TraceContext::parse(&header).unwrap();
    trace::record_span("receive", &parent, at(12), at(13), []);
    // A clock that was set back.
    trace::record_span("write", &parent, at(14), at(13), []);
    drop(inside);
    // Not sampled, not sent.
    let unsampled = TraceContext::root_with(false);
    trace::record_root("message", &unsampled, at(0), at(1), []);

    telemetry.flush(LIMIT).await;
    let trace_id = root.trace_id();
    let all = receiver
        .wait_for(LIMIT, |spans| {
            spans.iter().filter(|s| s.trace_id == trace_id).count() == 6
        })
        .await
        .unwrap();
    assert!(all.iter().all(|span| span.trace_id != unsampled.trace_id()));
    assert!(
        all.iter()
            .any(|span| span.name == "some work" && span.trace_id != trace_id),
        "spans of `tracing` are exported too"
    );

    let spans = receiver.trace(&trace_id);
    let find =
        |name: &str| -> &ReceivedSpan { spans.iter().find(|span| span.name == name).unwrap() };
    assert_eq!(find("message").parent_span_id, "");
    assert_eq!(find("message").span_id, root.span_id());
    for name in ["detect", "fetch", "append"] {
        assert_eq!(find(name).parent_span_id, root.span_id(), "{name}");
    }
    assert_eq!(find("append").span_id, append.span_id());
    for name in ["receive", "write"] {
        assert_eq!(find(name).parent_span_id, append.span_id(), "{name}");
    }
    assert_eq!((find("fetch").start, find("fetch").end), (at(2), at(10)));
    assert_eq!((find("write").start, find("write").end), (at(14), at(14)));
    assert_eq!(
        find("fetch").attributes.get("bytes").map(String::as_str),
        Some("512")
    );
    assert!(spans.iter().all(|span| span.service == "mailbell-watcher"));

    // What has gathered when the process ends is sent.
    let last = TraceContext::root();
    trace::record_root("last", &last, at(0), at(1), []);
    telemetry.shutdown(LIMIT).await;
    receiver
        .wait_for(LIMIT, |spans| {
            spans.iter().any(|span| span.span_id == last.span_id())
        })
        .await
        .unwrap();
    let text = metrics.encode().unwrap();
    let exported = receiver.spans().len();
    assert!(
        text.contains(&format!("mailbell_otlp_spans_exported_total {exported}\n")),
        "{text}"
    );
}
