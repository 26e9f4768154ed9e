//! Traces to a collector with TLS and roots of its own. In a file of its own: telemetry belongs to the process.

use std::time::{Duration, SystemTime};

use mailbell_runtime::{
    secretfile,
    telemetry::{Telemetry, TelemetryArgs},
    test_util::OtlpReceiver,
    tls::{self, ALPN_H2, ReloadingCert},
    trace::{self, TraceContext},
};

const LIMIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn traces_go_to_a_collector_with_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    secretfile::write(&key, made.signing_key.serialize_pem().as_bytes()).unwrap();
    let server = tls::server_config(ReloadingCert::load(&cert, key).unwrap(), &[ALPN_H2]).unwrap();
    let receiver = OtlpReceiver::start_with(Some(server)).unwrap();

    let args = TelemetryArgs {
        otlp_endpoint: Some(receiver.endpoint()),
        otlp_ca: Some(cert),
        ..TelemetryArgs::default()
    };
    let telemetry = Telemetry::init(&args, "gateway").unwrap();
    let root = TraceContext::root();
    let now = SystemTime::now();
    trace::record_root("message", &root, now, now, []);
    telemetry.shutdown(LIMIT).await;
    let sent = |spans: &[mailbell_runtime::test_util::ReceivedSpan]| {
        spans.iter().any(|span| span.span_id == root.span_id())
    };
    receiver.wait_for(LIMIT, sent).await.unwrap();
}
