//! Logs to standard error, traces to an OpenTelemetry collector if one is named.

mod export;

use std::{
    io::IsTerminal as _,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{
    WithExportConfig as _, WithTonicConfig as _, tonic_types::transport::ClientTlsConfig,
};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider},
};
use prometheus_client::registry::Registry;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer, Registry as Subscriber,
    filter::{FilterExt as _, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use self::export::{CountedExporter, ExportMetrics};
use crate::{
    Error,
    tls::{self, Roots},
    trace,
};

/// How long one export may take. A collector that does not answer costs spans, never a message.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Spans that wait for export: 100 messages a second with 6 spans each fill it in 13 s of a silent collector, with some 500 bytes each in 4 MB.
const EXPORT_QUEUE: usize = 8192;

/// How often what has gathered is sent. Short, as a person who looks for one message's trace waits for it.
const EXPORT_EVERY: Duration = Duration::from_secs(1);

/// The NATS client tells each connect, disconnect and lame duck, and the bus tells what of that matters.
const DEFAULT_LOG: &str = "info,async_nats=warn";

static SET_UP: AtomicBool = AtomicBool::new(false);

/// Where logs and traces go.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Telemetry")]
pub struct TelemetryArgs {
    /// What is logged: a level (error, warn, info, debug, trace), or directives such as `info,mailbell_imap=debug`.
    /// Libraries never say more than info: what they would print can be mail
    #[arg(
        long = "log",
        env = "MAILBELL_LOG",
        value_name = "FILTER",
        default_value = DEFAULT_LOG,
        global = true
    )]
    pub log: String,

    /// Form of the log lines on standard error
    #[arg(
        long = "log-format",
        env = "MAILBELL_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        global = true
    )]
    pub log_format: LogFormat,

    /// Send traces to this OTLP/gRPC collector, for example `http://127.0.0.1:4317`; unset sends none.
    /// Headers are taken from OTEL_EXPORTER_OTLP_HEADERS, further attributes from OTEL_RESOURCE_ATTRIBUTES
    #[arg(
        long = "otlp-endpoint",
        env = "MAILBELL_OTLP_ENDPOINT",
        value_name = "URL",
        global = true
    )]
    pub otlp_endpoint: Option<String>,

    /// Share of messages that are traced, 0 to 1, decided where a message is detected
    #[arg(long = "otlp-sample", env = "MAILBELL_OTLP_SAMPLE", value_name = "RATIO", default_value_t = 1.0, value_parser = ratio, global = true)]
    pub otlp_sample: f64,

    /// File of root certificates (PEM) for an https collector, in place of the system's
    #[arg(
        long = "otlp-ca",
        env = "MAILBELL_OTLP_CA",
        value_name = "FILE",
        global = true
    )]
    pub otlp_ca: Option<PathBuf>,
}

impl Default for TelemetryArgs {
    fn default() -> Self {
        Self {
            log: DEFAULT_LOG.to_owned(),
            log_format: LogFormat::Text,
            otlp_endpoint: None,
            otlp_sample: 1.0,
            otlp_ca: None,
        }
    }
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// What was set up, for the length of the process. Dropped without [`Telemetry::shutdown`], the last second's spans are lost.
#[derive(Debug)]
#[must_use = "shut it down at the end, or the last spans are lost"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    exported: ExportMetrics,
}

impl Telemetry {
    /// Sets up logs, and traces if an endpoint is named, for the whole process. `role` becomes the service's name, `mailbell-<role>`.
    /// With an endpoint it must be called on a tokio runtime, on which the exporter's connection lives.
    ///
    /// # Errors
    /// [`Error::LogFilter`], [`Error::Otlp`], or [`Error::TelemetryTwice`] on a second call. A refused filter or endpoint leaves
    /// nothing behind: it may be tried again.
    pub fn init(args: &TelemetryArgs, role: &str) -> Result<Self, Error> {
        let filter = EnvFilter::try_new(&args.log).map_err(|error| Error::LogFilter {
            filter: args.log.clone(),
            reason: error.to_string(),
        })?;
        let exported = ExportMetrics::default();
        let provider = match &args.otlp_endpoint {
            Some(endpoint) => Some(provider(endpoint, args, role, exported.clone())?),
            None => None,
        };
        if SET_UP.swap(true, Ordering::AcqRel) {
            return Err(Error::TelemetryTwice);
        }
        let tracer = provider
            .as_ref()
            .map(|provider| provider.tracer("mailbell"));
        tracing_subscriber::registry()
            .with(log_layer(args.log_format).with_filter(filter.and(discreet())))
            .with(tracer.clone().map(span_layer))
            .try_init()
            .map_err(|_set_by_someone_else| Error::TelemetryTwice)?;
        if let (Some(provider), Some(tracer)) = (&provider, tracer) {
            // For a library that speaks OpenTelemetry by itself; ours goes by the tracer that is installed below.
            opentelemetry::global::set_tracer_provider(provider.clone());
            trace::install(tracer, args.otlp_sample);
        }
        Ok(Self { provider, exported })
    }

    /// Registers the counters of exported and lost spans.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.exported.register(registry);
    }

    /// Sends what has gathered, for at most `limit`. Whether all of it was taken is in the counters.
    pub async fn flush(&self, limit: Duration) {
        let Some(provider) = self.provider.clone() else {
            return;
        };
        bounded(limit, move || drop(provider.force_flush())).await;
    }

    /// Sends what has gathered and ends the export, for at most `limit`: a collector that hangs must not hold up the end of the process.
    pub async fn shutdown(self, limit: Duration) {
        let Some(provider) = self.provider else {
            return;
        };
        bounded(limit, move || drop(provider.shutdown_with_timeout(limit))).await;
    }
}

/// The SDK's calls block their thread, and on a runtime of one thread the exporter needs that thread to send.
async fn bounded(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let work = tokio::task::spawn_blocking(work);
    // Both failures (too slow, panicked) mean lost spans and nothing else.
    let _ = tokio::time::timeout(limit, work).await;
}

fn log_layer(format: LogFormat) -> Box<dyn Layer<Subscriber> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    }
}

/// Whatever the user asks for, the libraries below us say nothing finer than INFO: at TRACE the NATS client prints whole messages,
/// mail and addresses included, and HTTP/2 prints headers.
fn discreet() -> Targets {
    Targets::new()
        .with_target("mailbell", LevelFilter::TRACE)
        .with_default(LevelFilter::INFO)
}

fn span_layer<S>(tracer: SdkTracer) -> impl Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a> + Send + Sync,
{
    // Only what is ours: spans of h2 and tonic would be made by the export itself, and so never end.
    tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_filter(Targets::new().with_target("mailbell", LevelFilter::INFO))
}

fn provider(
    endpoint: &str,
    args: &TelemetryArgs,
    role: &str,
    exported: ExportMetrics,
) -> Result<SdkTracerProvider, Error> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(Error::Otlp(
            "telemetry must be set up on the runtime".to_owned(),
        ));
    }
    let mut exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_TIMEOUT);
    if endpoint.starts_with("https:") {
        tls::install_crypto_provider();
        let roots = tls::roots(args.otlp_ca.as_deref().map_or(Roots::System, Roots::File))?;
        exporter = exporter.with_tls_config(ClientTlsConfig::new().trust_anchors(roots.roots));
    } else if !endpoint.starts_with("http:") {
        return Err(Error::Otlp(
            "expected a URL that begins with http:// or https://".to_owned(),
        ));
    }
    let exporter = exporter
        .build()
        .map_err(|error| Error::Otlp(error.to_string()))?;
    let batch = BatchConfigBuilder::default()
        .with_max_queue_size(EXPORT_QUEUE)
        .with_scheduled_delay(EXPORT_EVERY)
        .build();
    let processor = BatchSpanProcessor::builder(CountedExporter::new(exporter, exported))
        .with_batch_config(batch)
        .build();
    let resource = Resource::builder()
        .with_service_name(format!("mailbell-{role}"))
        .with_attribute(KeyValue::new("service.namespace", "mailbell"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_id_generator(trace::Ids::default())
        .with_sampler(trace::Sampling::new(args.otlp_sample))
        .with_resource(resource)
        .build())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::ExitCode;

    #[test]
    fn libraries_are_kept_from_printing_what_they_carry() {
        use tracing::Level;
        let filter = discreet();
        assert!(filter.would_enable("mailbell_watcher::driver", &Level::TRACE));
        assert!(filter.would_enable("async_nats", &Level::INFO));
        for library in ["async_nats::connection", "h2::codec", "hyper", "rustls"] {
            assert!(!filter.would_enable(library, &Level::DEBUG), "{library}");
        }
    }

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        telemetry: TelemetryArgs,
    }

    #[test]
    fn flags_have_defaults_and_bounds() {
        let cli = Cli::try_parse_from(["x"]).unwrap().telemetry;
        let default = TelemetryArgs::default();
        assert_eq!(
            (cli.log, cli.log_format, cli.otlp_endpoint),
            (default.log, default.log_format, default.otlp_endpoint)
        );
        let cli = Cli::try_parse_from(["x", "--log-format", "json", "--otlp-sample", "0.25"])
            .unwrap()
            .telemetry;
        assert_eq!((cli.log_format, cli.otlp_sample), (LogFormat::Json, 0.25));
        for bad in ["-0.1", "1.5", "NaN", "all"] {
            assert!(
                Cli::try_parse_from(["x", &format!("--otlp-sample={bad}")]).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn what_is_logged_by_default() {
        let filter: Targets = DEFAULT_LOG.parse().unwrap();
        for (target, level, logged) in [
            ("mailbell_watcher", tracing::Level::INFO, true),
            ("mailbell_watcher", tracing::Level::DEBUG, false),
            ("async_nats::connector", tracing::Level::WARN, true),
            ("async_nats::connector", tracing::Level::INFO, false),
        ] {
            assert_eq!(filter.would_enable(target, &level), logged, "{target}");
        }
        assert!(EnvFilter::try_new(DEFAULT_LOG).is_ok());
    }

    #[test]
    fn a_wrong_filter_is_a_usage_error() {
        let args = TelemetryArgs {
            log: "mailbell=loud".to_owned(),
            ..TelemetryArgs::default()
        };
        let error = Telemetry::init(&args, "test").unwrap_err();
        assert!(matches!(error, Error::LogFilter { .. }), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Usage);
    }

    #[tokio::test]
    async fn a_wrong_endpoint_is_a_usage_error() {
        for endpoint in ["127.0.0.1:4317", "http://", "http://bad host"] {
            let args = TelemetryArgs {
                otlp_endpoint: Some(endpoint.to_owned()),
                ..TelemetryArgs::default()
            };
            let error = Telemetry::init(&args, "test").unwrap_err();
            assert!(matches!(error, Error::Otlp(_)), "{endpoint}: {error}");
            assert_eq!(error.exit_code(), ExitCode::Usage);
        }
    }
}
