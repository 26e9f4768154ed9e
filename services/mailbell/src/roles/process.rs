//! What every role's process does in the same way: telemetry, metrics, health, signals, drain.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use mailbell_bus::Bus;
use mailbell_runtime::{
    drain::{Drain, DrainHandle},
    health::Health,
    http::HttpServer,
    incoming::IncomingMetrics,
    limits, listen,
    metrics::Metrics,
    signals::{Outcome, Signals, Stop, drain_unless},
    telemetry::{Telemetry, TelemetryArgs},
};
use tokio::task::JoinSet;

use crate::{certificate::Certificates, duration, failure::Failure};

/// How long the last spans may take to be sent.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// The name of the readiness check of the start.
const START_CHECK: &str = "start";

/// Metrics, health, and the end.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Where /metrics, /healthz and /readyz are served
    #[arg(
        long,
        env = "MAILBELL_HTTP_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7445"
    )]
    pub http_listen: SocketAddr,

    /// How long a shutdown may take: sessions end, checkpoints are written, devices are sent elsewhere [default: 25s; standalone 5s]
    #[arg(long, env = "MAILBELL_DRAIN", value_name = "DURATION", value_parser = duration::parse)]
    pub drain: Option<Duration>,
}

/// A process that has begun: its listeners are bound, its logs go where they should.
pub struct Process {
    telemetry: Telemetry,
    signals: Signals,
    http: HttpServer,
    /// Where crates register theirs.
    pub metrics: Metrics,
    /// What `/readyz` says.
    pub health: Health,
    /// The listeners' metrics.
    pub incoming: IncomingMetrics,
    /// The certificates that listeners show.
    pub certificates: Certificates,
    /// The NATS connections' metrics.
    pub bus_metrics: mailbell_bus::Metrics,
    drain: Drain,
    window: Duration,
}

/// How the roles of a process ended.
pub type Work = JoinSet<Result<(), Failure>>;

/// Ends the process once the installation is written in a schema that this release does not know: it would store less than it
/// read.
pub fn end_when_outdated(work: &mut Work, bus: Bus, mut drain: DrainHandle) {
    work.spawn(async move {
        tokio::select! {
            biased;
            // First: whoever drains ends anyway.
            _ = drain.signaled() => Ok(()),
            error = bus.outdated() => Err(error.into()),
        }
    });
}

impl Process {
    /// Begins: what can be refused at once is refused here.
    ///
    /// # Errors
    /// A wrong filter, an address that is taken.
    pub fn begin(
        role: &'static str,
        args: &ProcessArgs,
        telemetry: &TelemetryArgs,
        window: Duration,
    ) -> Result<Self, Failure> {
        let signals = Signals::install()?;
        let telemetry = Telemetry::init(telemetry, role)?;
        let http = listen::bind(args.http_listen, "--http-listen")?;
        // From now on, so that a probe is answered: until NATS and the key ring answer, it lives and is not ready.
        let health = Health::new();
        health.set(
            START_CHECK,
            Err("it is starting: NATS, then what is stored there"),
        );
        let http = HttpServer::start(http, health.clone())?;
        limits::raise_open_files()?;
        let mut metrics = Metrics::new(role);
        telemetry.register_metrics(metrics.registry());
        let incoming = IncomingMetrics::register(metrics.registry());
        let certificates = Certificates::register(metrics.registry());
        let bus_metrics = mailbell_bus::Metrics::register(metrics.registry());
        let (drain, _) = Drain::new();
        Ok(Self {
            telemetry,
            signals,
            http,
            metrics,
            health,
            incoming,
            certificates,
            bus_metrics,
            drain,
            window: args.drain.unwrap_or(window),
        })
    }

    /// How long a drain may take.
    #[must_use]
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// For a task that takes part in the drain.
    #[must_use]
    pub fn drain(&self) -> DrainHandle {
        self.drain.handle()
    }

    /// Where metrics and health are served.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http.addr()
    }

    /// A signal that comes while the process is still setting itself up ends it: nothing is open yet that would have to be drained.
    ///
    /// # Errors
    /// What `work` failed of; `None` on a signal.
    pub async fn unless_stopped<T>(
        &mut self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Option<T>, Failure> {
        tokio::select! {
            // Either is right when both happen at once.
            result = work => result.map(Some),
            stop = self.signals.next() => {
                tracing::info!(?stop, "stopped before the start was complete");
                Ok(None)
            }
        }
    }

    /// Serves metrics and health, waits for the first signal or for a role that ends by itself, and drains.
    ///
    /// # Errors
    /// What a role failed of.
    pub async fn run(
        self,
        mut work: Work,
        started: impl FnOnce(&Health) + Send,
        last: impl Future<Output = ()>,
    ) -> Result<ExitCode, Failure> {
        let Self {
            telemetry,
            mut signals,
            http,
            metrics,
            health,
            drain,
            window,
            ..
        } = self;
        http.serve_metrics(metrics);
        // The roles have named their own checks by now.
        health.remove(START_CHECK);
        started(&health);
        let ended = tokio::select! {
            biased;
            // First: a role that has failed says why, and a signal at the same moment would hide it.
            Some(ended) = work.join_next() => Some(ended),
            stop = signals.next() => {
                tracing::info!(?stop, window = ?window, "draining; another signal ends at once");
                None
            }
        };
        health.set_draining();
        let outcome = drain_unless(&drain, window, signals.next()).await;
        match outcome {
            Outcome::Drained => {}
            Outcome::TimedOut(undrained) => tracing::warn!(%undrained, "the drain was cut short"),
            Outcome::Forced(stop) => std::process::exit(stop.exit_code().into()),
        }
        let mut failure = ended.and_then(failed);
        // Each has ended, or its time was over.
        while let Some(ended) = work.try_join_next() {
            failure = failure.or_else(|| failed_in_drain(ended));
        }
        work.abort_all();
        let tail = async {
            last.await;
            http.stop().await;
            tracing::info!("stopped");
            telemetry.shutdown(FLUSH_LIMIT).await;
        };
        if let Some(stop) = finish(tail, signals.next()).await {
            std::process::exit(stop.exit_code().into());
        }
        failure.map_or(Ok(ExitCode::SUCCESS), Err)
    }
}

/// What comes after the drain, unless a signal comes first.
async fn finish(
    tail: impl Future<Output = ()>,
    second: impl Future<Output = Stop>,
) -> Option<Stop> {
    tokio::select! {
        // Either is right when both happen at once.
        () = tail => None,
        stop = second => Some(stop),
    }
}

type Ended = Result<Result<(), Failure>, tokio::task::JoinError>;

/// A role that ends before anybody asked it to has failed, whatever it says.
fn failed(ended: Ended) -> Option<Failure> {
    failed_in_drain(ended).or_else(|| Some(Failure::internal("a role ended by itself")))
}

fn failed_in_drain(ended: Ended) -> Option<Failure> {
    match ended {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure),
        Err(error) if error.is_cancelled() => None,
        Err(error) => Some(Failure::internal(format!("a role panicked: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn another_signal_ends_also_what_comes_after_the_drain() {
        assert_eq!(finish(ready(()), pending()).await, None);
        let stopped = finish(pending(), ready(Stop::Interrupt)).await;
        assert_eq!(stopped, Some(Stop::Interrupt));
    }
}
