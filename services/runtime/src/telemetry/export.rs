//! The exporter, counted: a collector that is away must be seen, and only once in a while.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{SpanData, SpanExporter},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};

/// `mailbell_otlp_spans_exported_total`: spans that the collector took.
const EXPORTED: &str = "otlp_spans_exported";
/// `mailbell_otlp_spans_failed_total`: spans that it did not take.
const FAILED: &str = "otlp_spans_failed";

/// At most one warning in this time.
const WARN_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Default)]
pub(super) struct ExportMetrics {
    exported: Counter,
    failed: Counter,
}

impl ExportMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            EXPORTED,
            "Spans taken by the OTLP collector",
            self.exported.clone(),
        );
        registry.register(
            FAILED,
            "Spans not taken by the OTLP collector",
            self.failed.clone(),
        );
    }
}

#[derive(Debug)]
pub(super) struct CountedExporter<E> {
    inner: E,
    metrics: ExportMetrics,
    warned: Mutex<Option<Instant>>,
}

impl<E> CountedExporter<E> {
    pub(super) fn new(inner: E, metrics: ExportMetrics) -> Self {
        Self {
            inner,
            metrics,
            warned: Mutex::new(None),
        }
    }

    fn may_warn(&self, now: Instant) -> bool {
        let Ok(mut warned) = self.warned.lock() else {
            return false;
        };
        let due = warned.is_none_or(|last| now.saturating_duration_since(last) >= WARN_EVERY);
        if due {
            *warned = Some(now);
        }
        due
    }
}

impl<E: SpanExporter> SpanExporter for CountedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let result = self.inner.export(batch).await;
        match &result {
            Ok(()) => {
                self.metrics.exported.inc_by(spans);
            }
            Err(error) => {
                self.metrics.failed.inc_by(spans);
                if self.may_warn(Instant::now()) {
                    tracing::warn!(%error, spans, "traces cannot be sent to the OTLP collector");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;

    #[derive(Debug)]
    struct Scripted(Mutex<Vec<OTelSdkResult>>);

    impl SpanExporter for Scripted {
        async fn export(&self, _batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().pop().unwrap()
        }
    }

    #[tokio::test]
    async fn outcomes_are_counted_and_handed_on() {
        let metrics = ExportMetrics::default();
        let script = vec![
            Err(OTelSdkError::InternalFailure("away".to_owned())),
            Ok(()),
        ];
        let exporter = CountedExporter::new(Scripted(Mutex::new(script)), metrics.clone());
        assert!(exporter.export(vec![span(), span()]).await.is_ok());
        assert!(exporter.export(vec![span()]).await.is_err());
        assert_eq!((metrics.exported.get(), metrics.failed.get()), (2, 1));
    }

    #[test]
    fn one_warning_a_minute() {
        let exporter = CountedExporter::new((), ExportMetrics::default());
        let now = Instant::now();
        assert!(exporter.may_warn(now));
        assert!(!exporter.may_warn(now + WARN_EVERY / 2));
        assert!(exporter.may_warn(now + WARN_EVERY));
    }

    fn span() -> SpanData {
        use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status};
        let now = std::time::SystemTime::UNIX_EPOCH;
        SpanData {
            span_context: SpanContext::empty_context(),
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "test".into(),
            start_time: now,
            end_time: now,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: opentelemetry_sdk::trace::SpanEvents::default(),
            links: opentelemetry_sdk::trace::SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: opentelemetry::InstrumentationScope::default(),
        }
    }
}
