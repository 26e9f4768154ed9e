//! For tests: an OTLP/gRPC receiver that keeps the spans it gets.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::Span,
};
use rustls::ServerConfig;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tonic::{Request, Response, Status, transport::Server};

use crate::{
    Error,
    drain::Drain,
    incoming::{Bounds, IncomingMetrics, incoming},
    listen,
};

/// Beyond this the receiver refuses: a test that makes more has gone astray.
const MAX_SPANS: usize = 100_000;

/// A span as it came over the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedSpan {
    /// The resource's `service.name`.
    pub service: String,
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits; empty for a root.
    pub parent_span_id: String,
    /// Its name.
    pub name: String,
    /// When it began.
    pub start: SystemTime,
    /// When it ended.
    pub end: SystemTime,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
}

/// A receiver on a free port of loopback; its drop ends it.
#[derive(Debug)]
pub struct OtlpReceiver {
    endpoint: String,
    spans: watch::Receiver<Arc<Vec<ReceivedSpan>>>,
    task: JoinHandle<()>,
    /// Its drop closes the listener.
    _drain: Drain,
}

impl OtlpReceiver {
    /// Starts it on the current runtime, without TLS.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(None)
    }

    /// Starts it on the current runtime, with TLS if a configuration for `localhost` is given.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start_with(tls: Option<Arc<ServerConfig>>) -> Result<Self, Error> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let bound = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0)), "the OTLP receiver")?;
        let endpoint = format!("{scheme}://localhost:{}", bound.addr().port());
        let (drain, handle) = Drain::new();
        let metrics = IncomingMetrics::default();
        let incoming = incoming(bound, "otlp", tls, Bounds::default(), &metrics, handle)?;
        let (tx, spans) = watch::channel(Arc::default());
        let serve = Server::builder()
            .add_service(TraceServiceServer::new(Receiver { spans: tx }))
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move {
            // A failure shows as spans that never come.
            let _ = serve.await;
        });
        Ok(Self {
            endpoint,
            spans,
            task,
            _drain: drain,
        })
    }

    /// What to give as `--otlp-endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// All spans so far.
    #[must_use]
    pub fn spans(&self) -> Arc<Vec<ReceivedSpan>> {
        Arc::clone(&self.spans.borrow())
    }

    /// The spans of one trace, by start.
    #[must_use]
    pub fn trace(&self, trace_id: &str) -> Vec<ReceivedSpan> {
        let mut spans: Vec<_> = self
            .spans()
            .iter()
            .filter(|span| span.trace_id == trace_id)
            .cloned()
            .collect();
        spans.sort_by_key(|span| span.start);
        spans
    }

    /// Waits until the spans satisfy `enough`; `Err` with what there is when `limit` is over first.
    ///
    /// # Errors
    /// The spans that did come.
    pub async fn wait_for(
        &self,
        limit: Duration,
        enough: impl Fn(&[ReceivedSpan]) -> bool,
    ) -> Result<Arc<Vec<ReceivedSpan>>, Arc<Vec<ReceivedSpan>>> {
        let mut spans = self.spans.clone();
        match timeout(limit, spans.wait_for(|spans| enough(spans))).await {
            Ok(Ok(spans)) => Ok(Arc::clone(&spans)),
            Ok(Err(_)) | Err(_) => Err(self.spans()),
        }
    }
}

impl Drop for OtlpReceiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Receiver {
    spans: watch::Sender<Arc<Vec<ReceivedSpan>>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut received = Vec::new();
        for resource_spans in request.into_inner().resource_spans {
            let attributes = resource_spans
                .resource
                .map(|resource| texts(resource.attributes))
                .unwrap_or_default();
            let service = attributes.get("service.name").cloned().unwrap_or_default();
            for span in resource_spans
                .scope_spans
                .into_iter()
                .flat_map(|scope| scope.spans)
            {
                received.push(convert(&service, span));
            }
        }
        if self.spans.borrow().len() + received.len() > MAX_SPANS {
            return Err(Status::resource_exhausted(
                "more spans than a test should make",
            ));
        }
        self.spans
            .send_modify(|spans| Arc::make_mut(spans).extend(received));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn convert(service: &str, span: Span) -> ReceivedSpan {
    let at = |nanos| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
    ReceivedSpan {
        service: service.to_owned(),
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent_span_id: hex(&span.parent_span_id),
        name: span.name,
        start: at(span.start_time_unix_nano),
        end: at(span.end_time_unix_nano),
        attributes: texts(span.attributes),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes
        .into_iter()
        .map(|attribute| (attribute.key, text(attribute.value)))
        .collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}
