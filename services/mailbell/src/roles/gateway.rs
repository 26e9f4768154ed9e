//! `mailbell gateway`, and what standalone shares with it.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use mailbell_bus::{Bus, BusError, Role};
use mailbell_gateway::{CHECK, Gateway, Metrics, Options, Parts, source::BusSource};
use mailbell_runtime::{listen, listen::Bound, telemetry::TelemetryArgs, tls::ReloadingCert};

use super::{
    content::ContentArgs,
    nats::NatsArgs,
    process::{Process, ProcessArgs, Work, end_when_outdated},
    tls::TlsArgs,
};
use crate::failure::Failure;

/// A fifth of it is for devices that read slowly.
const WINDOW: Duration = Duration::from_secs(25);

/// The streams of devices.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Serves mailbell.push.v1 (gRPC) to devices. On SIGTERM it sends its devices elsewhere, spread over the drain's time.

Example:
  mailbell gateway --push-listen 0.0.0.0:7443 --tls-cert /tls/tls.crt --tls-key /tls/tls.key \\
    --nats-url tls://nats:4222 --nats-user gateway --nats-password-file /run/secrets/nats")]
pub struct Args {
    /// Where devices connect
    #[arg(
        long,
        env = "MAILBELL_PUSH_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7443"
    )]
    pub push_listen: SocketAddr,

    /// The most devices that it takes; one more is told to try again, and finds another gateway
    #[arg(
        long,
        env = "MAILBELL_MOST_DEVICES",
        value_name = "N",
        default_value_t = 200_000,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub most_devices: u32,

    /// How much of mail.
    #[command(flatten)]
    pub content: ContentArgs,

    /// The certificate.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// How to reach NATS.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Metrics, health and the end.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl From<mailbell_gateway::Error> for Failure {
    fn from(error: mailbell_gateway::Error) -> Self {
        match error {
            mailbell_gateway::Error::Runtime(error) => error.into(),
            mailbell_gateway::Error::Bus(error) => error.into(),
            mailbell_gateway::Error::BusClosed => BusError::Closed.into(),
            error => Self::internal(error.to_string()),
        }
    }
}

/// Runs the role.
///
/// # Errors
/// What it cannot start with, or failed of.
pub async fn run(args: Args, telemetry: &TelemetryArgs) -> Result<ExitCode, Failure> {
    let mut process = Process::begin("gateway", &args.process, telemetry, WINDOW)?;
    let listener = listen::bind(args.push_listen, "--push-listen")?;
    let tls = args.tls.load(
        listener.addr(),
        "--push-listen",
        process.drain(),
        &process.certificates,
    )?;
    let bus_options = args.nats.options(
        Role::Gateway,
        "gateway".to_owned(),
        process.bus_metrics.clone(),
    )?;
    let connect = async { Ok(Bus::connect(bus_options).await?) };
    let Some(bus) = process.unless_stopped(Box::pin(connect)).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut work = Work::new();
    let mut options = options(&bus);
    options.devices = usize::try_from(args.most_devices).unwrap_or(usize::MAX);
    options.most_content = args.content.level();
    // As long as there is time, so that few connect again in any second.
    options.timing.drain_window = process.window();
    start(
        &mut process,
        &mut work,
        options,
        (listener, tls),
        bus.clone(),
    );
    process
        .run(work, |_| {}, async move { bus.close().await })
        .await
}

/// The defaults.
#[must_use]
pub fn options(bus: &Bus) -> Options {
    Options {
        timing: *bus.timing(),
        ..Options::default()
    }
}

/// Starts the gateway as a part of this process. It waits by itself for logs that do not answer.
pub fn start(
    process: &mut Process,
    work: &mut Work,
    options: Options,
    (listener, tls): (Bound, Option<Arc<ReloadingCert>>),
    bus: Bus,
) {
    let health = process.health.clone();
    // Named before the process says for the first time whether it is ready.
    health.set(CHECK, Err("the logs are being joined"));
    let metrics = Metrics::register(process.metrics.registry());
    let incoming = process.incoming.clone();
    let mut drain = process.drain();
    end_when_outdated(work, bus.clone(), process.drain());
    work.spawn(async move {
        let source = tokio::select! {
            // First: whoever drains before it began has nothing to drain.
            biased;
            _ = drain.signaled() => return Ok(()),
            source = BusSource::new(bus) => Arc::new(source?),
        };
        let parts = Parts {
            listener,
            tls,
            source,
            health,
            metrics,
            incoming,
        };
        let (gateway, _handle) = Gateway::new(options, parts)?;
        Ok(gateway.run(drain).await?)
    });
}
