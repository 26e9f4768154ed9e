//! `mailbell watcher`, and what standalone shares with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use mailbell_bus::{Bus, Role};
use mailbell_core::{ids::MemberId, seal::KeyRing};
use mailbell_imap::{Settings, TlsSettings};
use mailbell_runtime::{ExitCode as Code, telemetry::TelemetryArgs};
use mailbell_watcher::{Metrics, Options, PolicyFile, Watcher};

use super::{
    content::ContentArgs,
    key_ring::{RingArgs, RingFile},
    nats::NatsArgs,
    process::{Process, ProcessArgs, Work, end_when_outdated},
    tls::RELOAD_EVERY,
};
use crate::{failure::Failure, shards::drain};

/// The name of the readiness check of the connection to NATS.
const NATS_CHECK: &str = "watcher-nats";
/// Sessions end, checkpoints are written, claims are released.
const WINDOW: Duration = Duration::from_secs(25);

/// `--help` of the policy file.
const POLICY_HELP: &str = "\
File that says whose accounts rest, and what single mail providers take (JSON)

Of a provider only name and hosts have to be there:

{\"pausedTenants\": [\"acme\"],
 \"providers\": [{\"name\": \"example\", \"hosts\": [\"imap.example.org\", \"*.example.net\"],
  \"limits\": {\"connectsPerSecond\": 5, \"loginsPerSecond\": 2, \"connections\": 10},
  \"quirks\": {\"idleMinutes\": 9, \"noIdle\": false, \"pollSeconds\": 60},
  \"caFile\": \"roots.pem\", \"paused\": false}]}

Limits are of each host, in place of --connects-per-host, --logins-per-host and a quarter of the handshakes of a watcher. Root \
certificates, in a file beside this one or in place as \"ca\", count beside the usual ones. Nobody connects to the hosts of a provider \
that is paused, nor for the accounts of a tenant that is. The longest name that stands for a host counts.

The file is looked at every minute and on SIGHUP. Limits and pauses then count at once, the rest from the next connection on. What makes \
no sense changes nothing, and is told in the log.";

/// Mail servers.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Mail servers")]
pub struct MailArgs {
    /// File of root certificates (PEM) of mail servers, beside the system's
    #[arg(long, env = "MAILBELL_IMAP_CA", value_name = "FILE")]
    pub imap_ca: Option<PathBuf>,

    /// Allow mail servers without TLS (imap+plaintext://)
    #[arg(long, env = "MAILBELL_ALLOW_PLAINTEXT_IMAP")]
    pub allow_plaintext_imap: bool,

    /// File that says whose accounts rest, and what single mail providers take (JSON)
    #[arg(long, env = "MAILBELL_POLICY_FILE", value_name = "FILE", long_help = POLICY_HELP)]
    pub policy_file: Option<PathBuf>,

    /// How fast.
    #[command(flatten)]
    pub pace: PaceArgs,
}

/// Mail servers, as they were asked for.
pub struct MailServers {
    /// What all connections to them have in common.
    pub settings: Settings,
    /// What is said of tenants and mail providers.
    pub policy: Option<Arc<PolicyFile>>,
}

/// What one mail host may be asked from one address. A watcher uses of both what its share of the partitions of those behind it is.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Mail servers")]
pub struct PaceArgs {
    /// How many connections all watchers behind one address together begin a second to one host
    ///
    /// A server of one's own takes 100, and no big provider minds them. Set it alike for all watchers behind one address, which is
    /// named by --egress of `mailbell watcher`: each uses its share.
    #[arg(
        long,
        env = "MAILBELL_CONNECTS_PER_HOST",
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub connects_per_host: u32,

    /// How many logins all watchers behind one address together try a second at one host
    ///
    /// A login costs the mail server a password hash, 20 to 100 ms of a core: 50 is what four to eight cores do beside other
    /// work. More lets a large server of one's own come back sooner after a restart.
    #[arg(
        long,
        env = "MAILBELL_LOGINS_PER_HOST",
        value_name = "N",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=100_000)
    )]
    pub logins_per_host: u32,
}

impl MailArgs {
    /// Reads what is asked for.
    ///
    /// # Errors
    /// When a file cannot be used, or nobody is trusted at all.
    pub fn load(&self) -> Result<MailServers, Failure> {
        let extra = match &self.imap_ca {
            None => None,
            Some(file) => Some(fs::read(file).map_err(|error| {
                Failure::new(
                    Code::NoInput,
                    format!("cannot read {}: {error}", file.display()),
                )
            })?),
        };
        let tls = TlsSettings::system(extra.as_deref())
            .map_err(|error| Failure::new(Code::Data, error.to_string()))?;
        let mut settings = Settings::new(tls);
        settings.allow_plaintext = self.allow_plaintext_imap;
        let policy = match &self.policy_file {
            Some(file) => Some(PolicyFile::load(file, settings.tls.clone())?),
            None => None,
        };
        Ok(MailServers { settings, policy })
    }
}

/// Its share of the accounts.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Its share of the accounts")]
pub struct ShareArgs {
    /// How large its share is beside those of the other watchers
    ///
    /// A watcher with twice the weight owns twice as many accounts: for machines of different size.
    #[arg(
        long,
        env = "MAILBELL_WEIGHT",
        value_name = "N",
        default_value_t = mailbell_core::sharding::WEIGHT,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    pub weight: u32,

    /// The most accounts that it takes; what all watchers together have no room for is shown by `mailbell shards`
    ///
    /// Accounts move by the thousandth part of all of them, and not for less than a tenth of the limit: it may be exceeded by so much.
    /// One that starts takes few at first, until it knows how many accounts that are. What it watches already when accounts are added,
    /// it goes on watching until another watcher has room.
    #[arg(
        long,
        env = "MAILBELL_MOST_ACCOUNTS",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub most_accounts: Option<u32>,

    /// A name for the address under which mail servers see it; watchers with the same name, or none, share one budget at each host
    #[arg(long, env = "MAILBELL_EGRESS", value_name = "NAME", default_value = "")]
    pub egress: String,
}

impl Default for ShareArgs {
    fn default() -> Self {
        Self {
            weight: mailbell_core::sharding::WEIGHT,
            most_accounts: None,
            egress: String::new(),
        }
    }
}

/// What is asked of a watcher that runs.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Ask a running watcher to give its mailboxes to the others
    Drain(Box<drain::Args>),
}

/// The connections to mail servers.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_long_help = "\
Owns a share of the accounts, and holds one connection to the mail server of each. On SIGTERM it ends its sessions, writes what it
knows, and lets others take over. `mailbell shards` shows how all watchers share the accounts, and `mailbell watcher drain` asks a
running one to give its share away.

Example:
  mailbell watcher --key-ring-file /run/secrets/key.ring --nats-url tls://nats:4222 \\
    --nats-user watcher --nats-password-file /run/secrets/nats")]
pub struct Args {
    /// In place of running one.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// File with the keys that open stored passwords, mode 0600; made if it does not exist. Every watcher has the same
    #[arg(
        long,
        env = "MAILBELL_KEY_RING_FILE",
        value_name = "FILE",
        required = true
    )]
    pub key_ring_file: Option<PathBuf>,

    /// What to do about a ring that opens nothing.
    #[command(flatten)]
    pub ring: RingArgs,

    /// The name by which it owns accounts: the same after a restart, and no other watcher's [default: the host's name]
    #[arg(long, env = "MAILBELL_MEMBER", value_name = "NAME")]
    pub member: Option<MemberId>,

    /// Its share.
    #[command(flatten)]
    pub share: ShareArgs,

    /// How much of mail.
    #[command(flatten)]
    pub content: ContentArgs,

    /// Mail servers.
    #[command(flatten)]
    pub mail: MailArgs,

    /// How to reach NATS.
    #[command(flatten)]
    pub nats: NatsArgs,

    /// Metrics, health and the end.
    #[command(flatten)]
    pub process: ProcessArgs,
}

impl From<mailbell_watcher::Error> for Failure {
    fn from(error: mailbell_watcher::Error) -> Self {
        match error {
            mailbell_watcher::Error::Bus(error) => error.into(),
            mailbell_watcher::Error::File(error) => error.into(),
            error => Self::new(Code::Data, error.to_string()),
        }
    }
}

/// Runs the role.
///
/// # Errors
/// What it cannot start with, or failed of.
pub async fn run(args: Args, telemetry: &TelemetryArgs) -> Result<ExitCode, Failure> {
    if let Some(Command::Drain(args)) = args.command {
        return drain::run(*args).await;
    }
    let Some(key_ring_file) = args.key_ring_file else {
        return Err(Failure::usage("name the key ring with --key-ring-file"));
    };
    let mut process = Process::begin("watcher", &args.process, telemetry, WINDOW)?;
    let ring = RingFile::read(&key_ring_file)?;
    let servers = args.mail.load()?;
    let pace = args.mail.pace;
    let member = match args.member {
        Some(member) => member.to_string(),
        None => host_name()?,
    };
    let bus_options = args.nats.options(
        Role::Watcher,
        format!("watcher {member}"),
        process.bus_metrics.clone(),
    )?;
    let connect = async {
        let bus = Bus::connect(bus_options).await?;
        let ring = ring.settle(&bus, args.ring).await?;
        Ok((bus, ring))
    };
    let Some((bus, ring)) = process.unless_stopped(Box::pin(connect)).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut work = Work::new();
    let mut options = options(&member, pace, args.share);
    options.most_content = args.content.level();
    start(&mut process, &mut work, options, servers, ring, bus.clone())?;
    process
        .run(work, |_| {}, async move { bus.close().await })
        .await
}

/// How the watcher of this member works, in an incarnation of its own.
#[must_use]
pub fn options(member: &str, pace: PaceArgs, share: ShareArgs) -> Options {
    let incarnation = format!("{:016x}", rand::random::<u64>());
    let mut options = Options::new(member, incarnation);
    options.connects_per_host = pace.connects_per_host;
    options.logins_per_host = pace.logins_per_host;
    options.weight = share.weight;
    options.most_accounts = share.most_accounts;
    options.egress = share.egress;
    options
}

/// Starts the watcher as a part of this process.
///
/// # Errors
/// When it has no key.
pub fn start(
    process: &mut Process,
    work: &mut Work,
    options: Options,
    servers: MailServers,
    ring: KeyRing,
    bus: Bus,
) -> Result<(), Failure> {
    let metrics = Metrics::register(process.metrics.registry());
    let told = bus.tell_health(&process.health, NATS_CHECK, process.drain());
    end_when_outdated(work, bus.clone(), process.drain());
    let (mut watcher, _handle) = Watcher::new(
        options,
        bus,
        servers.settings,
        ring,
        metrics.clone(),
        process.health.clone(),
    )?;
    if let Some(file) = servers.policy {
        watcher = watcher.with_policy(&file);
        tokio::spawn(file.watch(RELOAD_EVERY, metrics, process.drain()));
    }
    process.health.set(NATS_CHECK, Err("starting"));
    tokio::spawn(told);
    let drain = process.drain();
    work.spawn(async move { Ok(watcher.run(drain).await?) });
    Ok(())
}

/// In a pod, the pod's name.
pub(super) fn host_name() -> Result<String, Failure> {
    let text = fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
    let name: String = text
        .trim()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    if name.is_empty() {
        return Err(Failure::usage(
            "this host has no name: name the watcher with --member",
        ));
    }
    Ok(name)
}
