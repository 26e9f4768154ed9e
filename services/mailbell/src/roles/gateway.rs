//! `mailbell gateway`, and what standalone shares with it.

use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use mailbell_bus::{Bus, BusError, Role};
use mailbell_gateway::{Gateway, Metrics, Options, Parts, source::BusSource};
use mailbell_runtime::{listen, listen::Bound, telemetry::TelemetryArgs, tls::ReloadingCert};

use super::{
    nats::NatsArgs,
    process::{Process, ProcessArgs, Work},
    tls::TlsArgs,
};
use crate::failure::Failure;

/// Above the time over which reconnects are spread (20 s).
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
    let tls = args
        .tls
        .load(listener.addr(), "--push-listen", process.drain())?;
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
    start(&mut process, &mut work, listener, tls, bus.clone()).await?;
    process
        .run(work, |_| {}, async move { bus.close().await })
        .await
}

/// Starts the gateway as a part of this process.
///
/// # Errors
/// When the installation is not as it must be.
pub async fn start(
    process: &mut Process,
    work: &mut Work,
    listener: Bound,
    tls: Option<Arc<ReloadingCert>>,
    bus: Bus,
) -> Result<(), Failure> {
    let options = Options {
        timing: *bus.timing(),
        ..Options::default()
    };
    let parts = Parts {
        listener,
        tls,
        source: Arc::new(BusSource::new(bus).await?),
        health: process.health.clone(),
        metrics: Metrics::register(process.metrics.registry()),
        incoming: process.incoming.clone(),
    };
    let (gateway, _handle) = Gateway::new(options, parts)?;
    let drain = process.drain();
    work.spawn(async move { Ok(gateway.run(drain).await?) });
    Ok(())
}
