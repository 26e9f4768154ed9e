//! The gateway as a component.

use std::{net::SocketAddr, sync::Arc};

use mailbell_core::ids::Group;
use mailbell_runtime::{
    drain::DrainHandle,
    health::Health,
    incoming::{IncomingMetrics, incoming},
    listen::Bound,
    tls::{ALPN_H2, ReloadingCert, server_config},
};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    Error, Metrics, Options,
    authority::Authority,
    bell::Bell,
    dispatcher::{CHECK, Dispatcher, Parts as DispatcherParts},
    follower::FollowerTask,
    others::{Others, tell_health},
    replays::Replays,
    server,
    shared::Shared,
    source::Source,
    tails::Tails,
};

/// Entries between the followers and the dispatcher; behind it the consumers wait, and behind them the server.
const HEARD: usize = 1024;
/// Attaches that wait for the dispatcher; behind it the calls wait.
const COMMANDS: usize = 256;

/// What a gateway is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where devices connect, bound before.
    pub listener: Bound,
    /// The certificate; `None`: no TLS, for a network that encrypts by itself. Its reload is watched by the caller.
    pub tls: Option<Arc<ReloadingCert>>,
    /// The bus.
    pub source: Arc<dyn Source>,
    /// Where readiness and beats are told.
    pub health: Health,
    /// Where this gateway counts.
    pub metrics: Metrics,
    /// Where its listener counts.
    pub incoming: IncomingMetrics,
}

/// A gateway that does not run yet.
#[derive(Debug)]
pub struct Gateway {
    options: Arc<Options>,
    parts: Parts,
    handle: Handle,
}

/// A running gateway, seen from outside. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    addr: SocketAddr,
    metrics: Metrics,
}

impl Handle {
    /// Where devices connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many devices were attached when it last looked.
    #[must_use]
    pub fn devices(&self) -> u64 {
        u64::try_from(self.metrics.devices.get()).unwrap_or_default()
    }
}

impl Gateway {
    /// Checks the options. Names its health check, so that the process is not ready before it is.
    ///
    /// # Errors
    /// [`Error::Timing`], [`Error::Zero`].
    pub fn new(options: Options, parts: Parts) -> Result<(Self, Handle), Error> {
        options.check()?;
        parts.health.set(CHECK, Err("the logs are being joined"));
        let handle = Handle {
            addr: parts.listener.addr(),
            metrics: parts.metrics.clone(),
        };
        let this = Self {
            options: Arc::new(options),
            parts,
            handle: handle.clone(),
        };
        Ok((this, handle))
    }

    /// Runs until the drain is over. Calls are answered from the beginning, with UNAVAILABLE until the
    /// logs that they concern are joined.
    ///
    /// # Errors
    /// [`Error::Runtime`] for the listener or TLS, [`Error::BusClosed`].
    pub async fn run(self, drain: DrainHandle) -> Result<(), Error> {
        let Self {
            options,
            parts,
            handle,
        } = self;
        let Parts {
            listener,
            tls,
            source,
            health,
            metrics,
            incoming: incoming_metrics,
        } = parts;
        let tls = tls
            .map(|cert| server_config(cert, &[ALPN_H2]))
            .transpose()?;
        let (reporter, others) = Others::new()?;
        let connections = incoming(
            listener,
            "device",
            tls,
            options.bounds,
            &incoming_metrics,
            drain.clone(),
        )?;
        let authority = Arc::new(Authority::new(source.installation(), source.link()));
        let tails = Arc::new(Tails::new(Arc::clone(&source)));
        let (heard_tx, heard) = mpsc::channel(HEARD);
        let (commands_tx, commands) = mpsc::channel(COMMANDS);
        let shared = Arc::new(Shared::new(
            Arc::clone(&options),
            metrics.clone(),
            Arc::clone(&source),
            Arc::clone(&tails),
            Arc::clone(&authority),
            commands_tx,
        ));

        // Everything that is spawned here ends with this value, when `run` returns or is dropped.
        let mut helpers = JoinSet::new();
        for group in Group::all() {
            let follower = FollowerTask {
                group,
                source: Arc::clone(&source),
                log_ids: source.log_ids(),
                heard: heard_tx.clone(),
                metrics: metrics.clone(),
            };
            helpers.spawn(follower.run());
        }
        drop(heard_tx);
        let (issuers, revocations) = (source.issuers(), source.revocations());
        let keeper = Arc::clone(&authority);
        helpers.spawn(async move { keeper.keep_issuers(issuers).await });
        let keeper = Arc::clone(&authority);
        helpers.spawn(async move { keeper.keep_revocations(revocations).await });
        helpers.spawn(tell_health(reporter, health.clone()));

        let mut server = JoinSet::new();
        server.spawn(server::run(
            connections,
            Arc::clone(&shared),
            others,
            drain.clone(),
        ));
        tracing::info!(addr = %handle.addr(), "devices may connect");

        let replays = Replays::new(Arc::clone(&source), tails, metrics.clone(), options.replays);
        let parts = DispatcherParts {
            link: source.link(),
            options,
            metrics,
            health,
            heard,
            commands,
            bell: Arc::new(Bell::default()),
            authority,
            replays,
        };
        let served = tokio::select! {
            // First: the end of a drain or of the bus, behind which the helpers end too.
            biased;
            served = Dispatcher::new(parts).run(drain) => served,
            // Without it, a log or the revoked tokens would stand still unnoticed.
            ended = helpers.join_next() => Err(match ended {
                Some(Err(error)) => Error::Helper(error),
                _ => Error::BusClosed,
            }),
            // In a drain it ends before the dispatcher.
            Some(Err(error)) = server.join_next() => Err(Error::Helper(error)),
        };
        shared.set_draining();
        drop(shared);
        if served.is_ok() {
            // Each connection ends by itself, the last ones at the drain's deadline.
            while server.join_next().await.is_some() {}
        }
        served
    }
}
