//! `make bench-sharing`: what it costs, and how long it takes, that several watchers share the accounts.
//!
//! It starts a private `nats-server`, the synthetic mail server and real watchers, and lets them come, go and be killed; then it leaves
//! others idle, with few accounts and with many. Run it from a release build, on a machine that does nothing else. The mail host has
//! no limit of its own and the watchers are told of none, so what is measured is Mailbell's part.
//!
//! `--accounts 3000` how many accounts change hands (0: none do), `--kills 10` how many watchers are killed, `--rate 50` how many
//! messages a second arrive during the rolling restart, `--idle 100,10000` how many accounts are left idle (0: none are),
//! `--idle-seconds 60` for how long.
#![expect(clippy::print_stdout, reason = "it prints what it measures")]
#![expect(
    clippy::print_stderr,
    reason = "it says on standard error how far it is"
)]

mod idle;
mod moves;
mod report;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use mailbell_tests::{crowd::CrowdOptions, installation::Options};
use rustix::process::{Resource, getrlimit};

/// How long anything may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(600);
/// More than any of them comes to.
const NO_LIMIT: &str = "100000";
/// Of this process, for each account whose watcher has a way of its own: the server's end and both of the proxy's, and room for a
/// second session during a hand-over.
const DESCRIPTORS: u64 = 5;

/// What the command line says.
#[derive(Debug, Clone)]
struct Args {
    accounts: usize,
    kills: usize,
    rate: u32,
    idle: Vec<usize>,
    idle_time: Duration,
}

impl Args {
    fn read(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut read = Self {
            accounts: 3000,
            kills: 10,
            rate: 50,
            idle: vec![100, 10_000],
            idle_time: Duration::from_secs(60),
        };
        while let Some(name) = args.next() {
            let value = args
                .next()
                .with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--accounts" => read.accounts = value.parse()?,
                "--kills" => read.kills = value.parse()?,
                "--rate" => read.rate = value.parse()?,
                "--idle" => {
                    let counts = value.split(',').map(str::parse);
                    read.idle = counts.collect::<Result<_, _>>()?;
                    read.idle.retain(|count| *count > 0);
                }
                "--idle-seconds" => read.idle_time = Duration::from_secs(value.parse()?),
                _ => bail!("{name} is unknown"),
            }
        }
        ensure!(read.rate > 0, "--rate is at least 1");
        ensure!(!read.idle_time.is_zero(), "--idle-seconds is at least 1");
        Ok(read)
    }

    /// Says at once what would fail after minutes.
    fn check_descriptors(&self) -> anyhow::Result<()> {
        let idle = self.idle.iter().copied().max().unwrap_or_default();
        let needed = (u64::try_from(self.accounts)? * DESCRIPTORS).max(u64::try_from(idle)?) + 500;
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        ensure!(
            needed <= most,
            "this takes {needed} open files, and the hard limit (ulimit -Hn) is {most}"
        );
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let command = format!("make bench-sharing BENCH='{}'", args.join(" "));
    let args = Args::read(args.into_iter())?;
    args.check_descriptors()?;
    tokio::select! {
        // The person first. What is dropped then takes its processes with it.
        biased;
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            eprintln!("interrupted");
            Ok(ExitCode::from(130))
        }
        measured = Box::pin(measure(args)) => {
            measured?;
            println!("\n{command}");
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn measure(args: Args) -> anyhow::Result<()> {
    if args.accounts > 0 {
        moves::measure(args.accounts, args.kills, args.rate).await?;
    }
    let mut idle = Vec::new();
    for accounts in args.idle {
        idle.extend(idle::measure(accounts, args.idle_time).await?);
    }
    idle::print(&idle);
    Ok(())
}

/// A crowd whose watchers no mail host holds back. There is one at first, which makes the key ring of all.
pub(crate) fn crowd(users: usize, own_ways: bool, nats_url: &str) -> CrowdOptions {
    let installation = Options {
        nats_url: Some(nats_url.to_owned()),
        ..Options::default()
    };
    CrowdOptions {
        users,
        watchers: 1,
        own_ways,
        installation: installation
            .env("MAILBELL_CONNECTS_PER_HOST", NO_LIMIT)
            .env("MAILBELL_LOGINS_PER_HOST", NO_LIMIT),
    }
}

/// Says on standard error how far it is.
pub(crate) fn progress(begun: Instant, what: &str) {
    eprintln!("{:>6.1} s  {what}", begun.elapsed().as_secs_f64());
}
