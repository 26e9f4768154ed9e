//! The service as a whole.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mailbell_bus::{Bus, patiently};
use mailbell_proto::admin::v1::{
    accounts_server::AccountsServer, shards_server::ShardsServer, tokens_server::TokensServer,
};
use mailbell_runtime::{
    drain::DrainHandle,
    health::Health,
    incoming::{Bounds, IncomingMetrics, incoming},
    listen::Bound,
    metrics::Registry,
};
use rustls::ServerConfig;
use tokio::time::MissedTickBehavior;
use tonic::transport::Server;

use crate::{
    Callers, Error, Policy, SigningKey, TokenHash,
    accounts::Accounts,
    auth::Authenticator,
    metrics::Metrics,
    mirror::Mirror,
    owner::Owners,
    shards::{Lookout, Shards},
    sweep,
    tokens::Tokens,
};

/// The name of the listener in metrics.
const LISTENER: &str = "admin";
/// The name of the readiness check of the connection to NATS.
const NATS_CHECK: &str = "admin-nats";
/// The beat by which a stuck service is noticed.
const BEAT: &str = "admin";
const BEAT_LIMIT: Duration = Duration::from_secs(30);
/// The largest request: 256 accounts of a token at 100 bytes, or a password of 4 KB with 16 folders of 255.
const MAX_REQUEST: usize = 64 * 1024;
/// Calls of one connection at the same time.
const CALLS_PER_CONNECTION: usize = 64;
/// How long a connection may be silent before it is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What it needs to know.
#[derive(Debug)]
pub struct Options {
    /// Where it listens.
    pub listener: Bound,
    /// TLS of the listener; `None` is plain, for loopback and for networks that encrypt by themselves.
    pub tls: Option<Arc<ServerConfig>>,
    /// Who may call.
    pub callers: Callers,
    /// What device tokens are signed with.
    pub signing: SigningKey,
    /// Which mail servers accounts may name.
    pub policy: Policy,
    /// How long a watcher may take to try a login. Default 150 s: connect 20, TLS 20, login 60, and folders.
    pub check_timeout: Duration,
    /// How long a watcher is waited for that owns the account. Default 20 s: longer than a take-over mostly takes, and while no watcher
    /// runs nobody should wait for the sentence that says so.
    pub owner_timeout: Duration,
}

impl Options {
    /// The defaults: no TLS, mail servers with TLS only, on any address; these admin tokens, and no operator.
    #[must_use]
    pub fn new(listener: Bound, admins: Vec<TokenHash>, signing: SigningKey) -> Self {
        let callers = Callers::default();
        callers.set_admins(admins);
        Self {
            listener,
            tls: None,
            callers,
            signing,
            policy: Policy {
                plaintext: false,
                private_hosts: true,
            },
            check_timeout: Duration::from_secs(150),
            owner_timeout: Duration::from_secs(20),
        }
    }
}

/// The admin API of one process.
pub struct Service {
    options: Options,
    bus: Bus,
    metrics: Metrics,
    incoming: IncomingMetrics,
    health: Health,
    mirror: Mirror,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    /// Ready to run; `bus` must be connected as [`mailbell_bus::Role::Admin`]. `incoming` are the listeners' metrics of the
    /// process, `registry` where this crate's own go.
    #[must_use]
    pub fn new(
        options: Options,
        bus: Bus,
        registry: &mut Registry,
        incoming: IncomingMetrics,
        health: Health,
    ) -> Self {
        let metrics = Metrics::register(registry);
        health.set(NATS_CHECK, Err("starting"));
        let mirror = Mirror::new(metrics.accounts.clone(), health.clone());
        Self {
            options,
            bus,
            metrics,
            incoming,
            health,
            mirror,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.options.listener.addr()
    }

    /// Waits for the store, then serves until the drain begins; calls that run then get what is left of its window.
    ///
    /// # Errors
    /// [`Error::Setup`] when it cannot listen, [`Error::Bus`] when waiting does not help the store to take the signing key.
    pub async fn run(self, drain: DrainHandle) -> Result<(), Error> {
        let Self {
            options,
            bus,
            metrics,
            incoming: incoming_metrics,
            health,
            mirror,
        } = self;
        let begin = async {
            patiently(|| bus.check_meta()).await?;
            // Before the first token is signed with it.
            let (issuers, issuer) = (bus.issuers(), options.signing.issuer());
            patiently(|| issuers.put(&issuer)).await
        };
        let mut stop = drain.clone();
        tokio::select! {
            biased;
            // First: nothing is open yet that would have to be drained.
            _ = stop.signaled() => return Ok(()),
            begun = begin => begun?,
        };
        let auth = Authenticator::new(options.callers, metrics.refused.clone());
        let owners = Arc::new(Owners::new(
            bus.clone(),
            options.check_timeout,
            options.owner_timeout,
            metrics.clone(),
        ));
        let lookout = Lookout::new(bus.clone(), mirror.clone(), metrics.shards.clone());
        let accounts = Accounts::new(
            bus.clone(),
            mirror.clone(),
            owners,
            lookout.clone(),
            options.policy,
            metrics.clone(),
        );
        let shards = Shards::new(lookout.clone(), metrics.clone());
        let tokens = Tokens::new(bus.clone(), mirror.clone(), options.signing, metrics);
        let accounts = AccountsServer::new(accounts).max_decoding_message_size(MAX_REQUEST);
        let tokens = TokensServer::new(tokens).max_decoding_message_size(MAX_REQUEST);
        let shards = ShardsServer::new(shards).max_decoding_message_size(MAX_REQUEST);
        let (reporter, health_service) = tonic_health::server::health_reporter();
        reporter.set_serving::<AccountsServer<Accounts>>().await;
        reporter.set_serving::<TokensServer<Tokens>>().await;
        reporter.set_serving::<ShardsServer<Shards>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(mailbell_proto::DESCRIPTORS)
            .build_v1()
            .map_err(Error::internal)?;
        let connections = incoming(
            options.listener,
            LISTENER,
            options.tls,
            Bounds::default(),
            &incoming_metrics,
            drain.clone(),
        )
        .map_err(|error| Error::Setup(error.to_string()))?;
        let mut stop = drain.clone();
        let serve = Server::builder()
            .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(tonic::service::interceptor::InterceptedService::new(
                accounts,
                auth.clone(),
            ))
            .add_service(tonic::service::interceptor::InterceptedService::new(
                tokens,
                auth.clone(),
            ))
            .add_service(tonic::service::interceptor::InterceptedService::new(
                shards, auth,
            ))
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(connections, async move {
                stop.signaled().await;
                reporter.set_not_serving::<AccountsServer<Accounts>>().await;
                reporter.set_not_serving::<TokensServer<Tokens>>().await;
                reporter.set_not_serving::<ShardsServer<Shards>>().await;
            });
        let mut end = drain.clone();
        let bounded = async {
            let mut deadline = std::pin::pin!(async {
                let draining = end.signaled().await;
                tokio::time::sleep_until(draining.deadline).await;
            });
            tokio::select! {
                // Either is right: a server that has ended has nothing left to bound.
                result = serve => result.map_err(|error| Error::Setup(format!("the admin listener failed: {error}"))),
                () = &mut deadline => Ok(()),
            }
        };
        let (result, (), (), (), (), ()) = tokio::join!(
            bounded,
            beat(&health, drain.clone()),
            mirror.run(&bus, drain.clone()),
            sweep::run(bus.clone(), mirror.clone(), drain.clone()),
            lookout.run(drain.clone()),
            bus.tell_health(&health, NATS_CHECK, drain),
        );
        result
    }
}

/// Says that the task runs that accepts connections and follows the store.
async fn beat(health: &Health, mut drain: DrainHandle) {
    let alive = health.heartbeat(BEAT, BEAT_LIMIT);
    let mut tick = tokio::time::interval(BEAT_LIMIT / 6);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            // First: somebody waits for this handle.
            _ = drain.signaled() => return,
            _ = tick.tick() => alive.beat(),
        }
    }
}
