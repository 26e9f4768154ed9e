//! Accounts at scale: many are registered in a real nats-server, and one watcher owns a part of them.
//!
//! `cargo bench -p mailbell-watcher --bench accounts -- --accounts 1000000 --partitions 118` (the defaults: shares are not exact, and
//! this is 100,000 accounts or a few more); with `--accounts 1000` it owns a hundred, to compare what idles. `--idle 360` says for how
//! many seconds it is left idle, `--changes 20` how many changes are timed.
//!
//! The accounts are paused: each has its session's task, which is told of changes as any other, but no mail connection. So what is
//! measured is a watcher without its mail connections. The partitions that the watcher is not to have are claimed by another
//! member, which runs in a process of its own, as does what registers and what times reads: the memory is the watcher's alone.
#![expect(clippy::print_stdout, reason = "it prints what it measures")]

mod load;
mod proc;

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mailbell_bus::{Bus, BusOptions, Role, state::Cas};
use mailbell_core::seal::{Binding, KeyRing, PublicKey, seal};
use mailbell_imap::{Settings, TlsSettings};
use mailbell_runtime::{drain::Drain, health::Health, metrics::Metrics as Registry};
use mailbell_test_servers::{Certificate, NatsOptions, NatsServer};
use mailbell_watcher::{Handle, Metrics, Options, Watcher};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::TcpListener,
    process::{Child, Command},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::proc::{Traffic, cpu, resident_kib};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(1800);
/// A session says no more than this to a server that does not answer.
const MOST_SAID: u64 = 64 * 1024;
/// Nothing more was given away for so long: that is all.
const SETTLED: Duration = Duration::from_secs(5);
/// The watcher that is measured, as a member and to NATS.
const WATCHER: &str = "pod-0";

/// What the command line says.
#[derive(Debug)]
struct Args {
    accounts: u64,
    partitions: usize,
    changes: usize,
    idle: Duration,
}

impl Args {
    fn read(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut read = Self {
            accounts: 1_000_000,
            partitions: 118,
            changes: 20,
            idle: Duration::from_secs(360),
        };
        while let Some(name) = args.next() {
            // Cargo's own.
            if name == "--bench" {
                continue;
            }
            let value = args
                .next()
                .with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--accounts" => read.accounts = value.parse()?,
                "--partitions" => read.partitions = value.parse()?,
                "--changes" => read.changes = value.parse()?,
                "--idle" => read.idle = Duration::from_secs(value.parse()?),
                _ => bail!("{name} is unknown"),
            }
        }
        Ok(read)
    }
}

pub(crate) async fn connect(url: &str, role: Role) -> anyhow::Result<Bus> {
    connect_as(role.as_str(), url, role).await
}

async fn connect_as(name: &str, url: &str, role: Role) -> anyhow::Result<Bus> {
    let options = BusOptions {
        name: name.to_owned(),
        ..BusOptions::new(vec![url.to_owned()], "bench".parse()?, role)
    };
    Ok(Bus::connect(options).await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    match args.peek().map(String::as_str) {
        Some("part") => {
            let parts: Vec<String> = args.skip(1).collect();
            let [name, url, numbers @ ..] = parts.as_slice() else {
                bail!("part needs a name, a URL and numbers");
            };
            let numbers: Vec<u64> = numbers
                .iter()
                .map(|number| number.parse())
                .collect::<Result<_, _>>()?;
            load::part(name, url, &numbers).await
        }
        _ => measure(Args::read(args)?).await,
    }
}

/// Runs a part of this program in a process of its own.
fn part(name: &str, url: &str, numbers: &[u64]) -> anyhow::Result<Child> {
    let child = Command::new(std::env::current_exe()?)
        .args(["part", name, url])
        .args(numbers.iter().map(u64::to_string))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

/// Waits for the line that says that it has what it is to hold.
async fn holding(mut child: Child) -> anyhow::Result<Child> {
    let stdout = child.stdout.take().context("no output")?;
    let line = BufReader::new(stdout).lines().next_line().await?;
    println!("{}", line.context("the other member ended")?);
    Ok(child)
}

/// Waits until it has ended, and prints what it said.
async fn until_done(mut child: Child) -> anyhow::Result<()> {
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    while let Some(line) = lines.next_line().await? {
        println!("{line}");
    }
    if !child.wait().await?.success() {
        bail!("a part failed");
    }
    Ok(())
}

async fn measure(args: Args) -> anyhow::Result<()> {
    let nats = NatsServer::start(NatsOptions {
        lazy_sync: true,
        ..NatsOptions::default()
    })
    .await?;
    let url = nats.url();
    let pid = nats.pid().context("no nats-server")?;
    connect(&url, Role::Setup).await?.setup().await?;
    let begun = Instant::now();
    until_done(part("register", &url, &[args.accounts])?).await?;
    println!(
        "{} accounts registered in {:.1?}",
        args.accounts,
        begun.elapsed()
    );
    until_done(part("read", &url, &[])?).await?;

    // Kept: it ends with this value.
    let share = u64::try_from(args.partitions)?.clamp(1, 1023);
    let weight = 100 * (1024 - share) / share;
    let other = holding(part("claim", &url, &[weight, args.accounts])?).await?;
    let admin = connect(&url, Role::Admin).await?;
    let before = resident_kib(std::process::id()).unwrap_or_default();
    let traffic = Traffic::of_all(&nats).await?;
    let begun = Instant::now();
    let watching = Watching::start(&url, "1").await?;
    let handle = &watching.handle;
    let owned = until_owned(handle, args.partitions).await?;
    println!(
        "{owned} accounts of {} partitions taken in {:.1?}, as fast as another member gives them away",
        handle.progress().partitions,
        begun.elapsed()
    );
    Traffic::until_quiet(&nats, LIMIT).await?;
    println!(
        "all have said how they are after {:.1?} and {} messages to NATS",
        begun.elapsed(),
        Traffic::of_all(&nats).await?.received - traffic.received
    );
    watching.loads()?;
    // The other may have given more after a pause.
    let owned = handle.progress().sessions;
    let resident = resident_kib(std::process::id()).unwrap_or_default();
    let grown = resident.saturating_sub(before);
    println!(
        "resident: {before} KiB before, {resident} KiB with {owned} accounts: {:.2} KiB an account, its session without a connection included",
        grown as f64 / owned.max(1) as f64
    );
    idle(&args, &nats, pid).await?;
    changes(&args, &admin, &watching.key, handle).await?;
    watching.running.abort();
    let _ = watching.running.await;
    // By now all is known of the accounts, as of those that another watcher had.
    let again = Watching::start(&url, "2").await?;
    let begun = Instant::now();
    let owned = until_owned(&again.handle, args.partitions).await?;
    println!(
        "{owned} accounts of {} partitions taken anew in {:.1?}",
        again.handle.progress().partitions,
        begun.elapsed()
    );
    again.loads()?;
    drop(other);
    again.running.abort();
    Ok(())
}

/// A watcher at work.
struct Watching {
    running: JoinHandle<Result<(), mailbell_watcher::Error>>,
    handle: Handle,
    registry: Registry,
    /// What passwords are sealed for.
    key: PublicKey,
    _drain: Drain,
}

impl Watching {
    async fn start(url: &str, incarnation: &str) -> anyhow::Result<Self> {
        let mut ring = KeyRing::default();
        let key = ring.add(0, &mut rand::rng()).context("no key")?;
        let authority = Certificate::localhost().authority_pem;
        let mut registry = Registry::new("watcher");
        let (watcher, handle) = Watcher::new(
            Options::new(WATCHER, incarnation),
            connect_as(WATCHER, url, Role::Watcher).await?,
            Settings::new(TlsSettings::only([authority.as_bytes()])?),
            ring,
            Metrics::register(registry.registry()),
            Health::new(),
        )?;
        let (drain, drained) = Drain::new();
        Ok(Self {
            running: tokio::spawn(watcher.run(drained)),
            handle,
            registry,
            key,
            _drain: drain,
        })
    }

    /// Prints how long partitions took from their claim to the begin of their sessions.
    fn loads(&self) -> anyhow::Result<()> {
        let text = self.registry.encode()?;
        let within = text.lines().filter_map(|line| {
            let line = line.strip_prefix("mailbell_watcher_load_seconds_bucket{le=\"")?;
            line.split_once("\"} ")
        });
        let mut before = "0";
        for (seconds, partitions) in within {
            if partitions != before {
                println!(
                    "of the partitions {partitions} were loaded within {seconds} s of their claim"
                );
                before = partitions;
            }
        }
        Ok(())
    }
}

/// Waits until about so many partitions are owned, and no more come; how many accounts they have.
async fn until_owned(handle: &Handle, partitions: usize) -> anyhow::Result<usize> {
    let wait = async {
        let mut look = interval(Duration::from_millis(20));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = ((0, 0), Instant::now());
        loop {
            look.tick().await;
            let progress = handle.progress();
            if (progress.partitions, progress.sessions) != last.0 {
                last = ((progress.partitions, progress.sessions), Instant::now());
            }
            // A share is not exact.
            let enough = progress.partitions * 10 >= partitions * 8;
            if enough && last.1.elapsed() > SETTLED {
                return progress.sessions;
            }
        }
    };
    timeout(LIMIT, wait)
        .await
        .context("not all partitions were taken")
}

/// What goes on of the watcher's, by the server's own count of its connections, and what the server does for all.
async fn idle(args: &Args, nats: &NatsServer, pid: u32) -> anyhow::Result<()> {
    if args.idle.is_zero() {
        return Ok(());
    }
    let own = std::process::id();
    let mut left = args.idle;
    // What was written before may keep the server busy for a while, so each minute is told.
    while !left.is_zero() {
        let part = left.min(Duration::from_secs(60));
        left -= part;
        let look = async || anyhow::Ok((Traffic::of(nats, WATCHER).await?, cpu(pid), cpu(own)));
        let (before, nats_before, own_before) = look().await?;
        sleep(part).await;
        let (after, nats_after, own_after) = look().await?;
        let minutes = part.as_secs_f64() / 60.0;
        let percent = |after: Duration, before: Duration| {
            after.saturating_sub(before).as_secs_f64() / part.as_secs_f64() * 100.0
        };
        println!(
            "idle, a minute: {:.0} messages of the watcher to NATS, {:.0} from it; nats-server {:.2} % of a core, watcher {:.2} %",
            (after.received - before.received) as f64 / minutes,
            (after.sent - before.sent) as f64 / minutes,
            percent(nats_after, nats_before),
            percent(own_after, own_before),
        );
    }
    Ok(())
}

/// Lets accounts go on, one after the other, and times until their session connects.
async fn changes(args: &Args, admin: &Bus, key: &PublicKey, handle: &Handle) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let mut times = Vec::new();
    for account in load::accounts(args.accounts)
        .filter(|account| handle.serves(account.partition()))
        .take(args.changes)
    {
        let mut record = load::record();
        record.port = port.into();
        record.paused = false;
        record.credential_version = 1;
        let binding = Binding::of(&account, &record);
        let sealed = seal(key, &binding, b"secret", &mut rand::rng())?;
        admin.credentials().put(&account, &sealed).await?;
        let accounts = admin.accounts();
        let found = accounts.get(&account).await?.context("no such account")?;
        let begun = Instant::now();
        let Cas::Stored(revision) = accounts.update(&account, &record, found.revision).await?
        else {
            bail!("a conflict");
        };
        let (connection, _) = timeout(LIMIT, listener.accept()).await??;
        times.push(begun.elapsed());
        record.paused = true;
        accounts.update(&account, &record, revision).await?;
        // The session ends it, after its ClientHello. If we did, this host would have failed for many accounts, and the next ones
        // would wait for a probe of it.
        let mut said = Vec::new();
        let _ = timeout(LIMIT, connection.take(MOST_SAID).read_to_end(&mut said)).await?;
    }
    times.sort_unstable();
    if let (Some(median), Some(most)) = (times.get(times.len() / 2), times.last()) {
        println!(
            "a change reached its session, which connected, after {median:.1?} (p50), {most:.1?} (max of {})",
            times.len()
        );
    }
    Ok(())
}
