//! Latency from the mail server's notice to the device's app, beside a bare IDLE client.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mailbell_client::{AppEvent, Client, Events};
use mailbell_proto::{admin::v1::TlsMode, push::v1::Times};
use mailbell_runtime::{
    secretfile,
    tls::{self, Roots},
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use zeroize::Zeroizing;

use super::{
    bare::{BareClient, BareReceipt, Mailbox},
    cpu,
    lmtp::Lmtp,
    stats::{Summary, micros, summarize},
};
use crate::{account::url::MailboxUrl, failure::Failure, terminal::done};

/// What is measured must have come so long after the last delivery.
const LAST: Duration = Duration::from_secs(60);
/// How long the device may take to be live.
const LIVE: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The mailbox: imaps://user@host[:port] or imap+plaintext://user@host[:port]
    #[arg(long, value_name = "URL")]
    imap_url: MailboxUrl,
    /// File with the mailbox's password, mode 0600
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,
    /// File of root certificates (PEM) for an imaps mailbox, in place of the system's
    #[arg(long, value_name = "FILE")]
    imap_ca: Option<PathBuf>,
    /// LMTP server that delivers to the mailbox: host:port
    #[arg(long, value_name = "ADDRESS")]
    lmtp: String,
    /// Recipient at the LMTP server [default: the mailbox's user]
    #[arg(long, value_name = "ADDRESS")]
    recipient: Option<String>,
    /// Where devices connect: http://host:port or https://host:port
    #[arg(long, value_name = "URL")]
    push_url: String,
    /// File with a device token, mode 0600
    #[arg(long, value_name = "FILE")]
    token_file: PathBuf,
    /// File of root certificates (PEM) for an https push URL, beside the system's
    #[arg(long, value_name = "FILE")]
    push_ca: Option<PathBuf>,
    /// The account of the mailbox
    #[arg(long, value_name = "ID")]
    account: String,
    /// How many deliveries to measure
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    messages: u32,
    /// How many deliveries before that, which are not counted
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    warm_up: u32,
    /// Messages of one delivery; more than one measures CPU rather than latency
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    batch: u32,
    /// Milliseconds between two deliveries
    #[arg(long, value_name = "MS", default_value_t = 700, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    interval_ms: u64,
    /// Milliseconds without a delivery at first, in which the CPU that the processes need when idle is measured
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(0..=600_000))]
    idle_ms: u64,
    /// Process whose CPU time per message and memory are told, as name=pid; may be repeated
    #[arg(long = "pid", value_name = "NAME=PID")]
    pids: Vec<NamedPid>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `watcher=4711`
#[derive(Debug, Clone)]
struct NamedPid {
    name: String,
    pid: u32,
}

impl FromStr for NamedPid {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "write it as name=pid";
        let (name, pid) = text.split_once('=').ok_or(form)?;
        Ok(Self {
            name: name.to_owned(),
            pid: pid.parse().map_err(|_| form)?,
        })
    }
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    messages: usize,
    interval_ms: u64,
    batch: u32,
    exists_to_device: Option<Summary>,
    exists_to_detected: Option<Summary>,
    exists_to_fetched: Option<Summary>,
    device_minus_fetched: Option<Summary>,
    detected_to_device: Option<Summary>,
    detected_to_fetched: Option<Summary>,
    fetched_to_appended: Option<Summary>,
    appended_to_received: Option<Summary>,
    received_to_device: Option<Summary>,
    processes: BTreeMap<String, Process>,
}

/// What a process needs.
#[derive(Debug, Serialize)]
struct Process {
    /// CPU time a message, beyond what it needs when idle.
    cpu_us_per_message: u128,
    /// Thousandths of a core when idle; `None` if that was not measured.
    idle_millicores: Option<u128>,
    resident_kib: Option<u64>,
}

/// The CPU times of the processes up to a moment.
#[derive(Debug)]
struct CpuTimes {
    at: Instant,
    used: Vec<Duration>,
}

impl CpuTimes {
    fn now(pids: &[NamedPid]) -> Result<Self, Failure> {
        let used = pids.iter().map(|named| {
            cpu::used(named.pid)
                .ok_or_else(|| Failure::usage(format!("there is no process {}", named.pid)))
        });
        Ok(Self {
            at: Instant::now(),
            used: used.collect::<Result<_, _>>()?,
        })
    }

    /// What each has used since.
    fn until(&self, later: &Self) -> Vec<Duration> {
        let pairs = self.used.iter().zip(&later.used);
        pairs
            .map(|(before, after)| after.saturating_sub(*before))
            .collect()
    }
}

/// The CPU times before the idle time, after it, and at the end of the warm-up.
#[derive(Debug)]
struct Baseline {
    begin: CpuTimes,
    idle: CpuTimes,
    warm: CpuTimes,
}

/// When the device's app had a message.
#[derive(Debug, Clone, Copy)]
struct DeviceReceipt {
    at: Instant,
    wall_us: i64,
    times: Times,
}

/// Runs it.
///
/// # Errors
/// What cannot be reached, or did not arrive.
pub(super) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let mailbox = mailbox(&args)?;
    let bare = BareClient::connect(&mailbox)
        .await
        .map_err(|error| Failure::unavailable(format!("the mailbox: {error}")))?;
    let generation = bare.generation();
    let mut device = device(&args)?;
    live(&mut device).await?;
    let recipient = args.recipient.clone().unwrap_or(mailbox.user.clone());
    let lmtp = Lmtp::connect(&args.lmtp, &recipient)
        .await
        .map_err(|error| Failure::unavailable(format!("LMTP at {}: {error}", args.lmtp)))?;

    let batch = usize::try_from(args.batch).unwrap_or(usize::MAX);
    let count = |deliveries: u32| {
        usize::try_from(deliveries)
            .unwrap_or(0)
            .saturating_mul(batch)
    };
    let (warm_up, measured) = (count(args.warm_up), count(args.messages));
    let all = warm_up.saturating_add(measured);
    let mut plain = Vec::new();
    let mut told = BTreeMap::new();
    // Each in a task of its own, so that none's time is spent waiting for another: and a bare client that is dropped in the middle
    // of its turn is of no more use.
    let (sender, mut receipts) = mpsc::channel(64);
    let watching = tokio::spawn(watch(bare, sender));
    let plan = Plan {
        warm_up: args.warm_up,
        messages: args.messages,
        batch: args.batch,
        interval: Duration::from_millis(args.interval_ms),
        idle: Duration::from_millis(args.idle_ms),
        pids: args.pids.clone(),
    };
    let mut delivering = tokio::spawn(deliver(lmtp, plan));
    let mut baseline = None;
    let mut deadline = None;
    while plain.len() < all || told.len() < all {
        tokio::select! {
            biased;
            // The device first: its receipt is the time at which its app has the event.
            event = device.recv() => note(event, generation, &mut told)?,
            next = receipts.recv() => match next {
                Some(Ok(receipts)) => plain.extend::<Vec<_>>(receipts),
                Some(Err(error)) => return Err(Failure::unavailable(format!("the plain client: {error}"))),
                None => return Err(Failure::internal("the plain client ended")),
            },
            delivered = &mut delivering, if deadline.is_none() => {
                let delivered = delivered.map_err(|error| Failure::internal(error.to_string()))?;
                baseline = Some(delivered?);
                deadline = Some(Instant::now() + LAST);
            }
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                return Err(Failure::new(
                    mailbell_runtime::ExitCode::TempFail,
                    format!(
                        "of {all} messages the plain client saw {} and the device {}",
                        plain.len(),
                        told.len()
                    ),
                ));
            }
        }
    }
    watching.abort();
    let end = CpuTimes::now(&args.pids)?;
    let processes = baseline.map_or_else(BTreeMap::new, |baseline| {
        processes(&args.pids, &baseline, &end, measured)
    });
    plain.drain(..warm_up.min(plain.len()));
    let report = report(&args, &plain, &told, processes);
    done(print(&report, args.json))?;
    Ok(ExitCode::SUCCESS)
}

/// The turns of the bare client, until it fails or nobody listens.
async fn watch(mut bare: BareClient, to: mpsc::Sender<io::Result<Vec<BareReceipt>>>) {
    loop {
        let next = bare.next().await;
        let failed = next.is_err();
        if to.send(next).await.is_err() || failed {
            return;
        }
    }
}

/// What is delivered, and when.
struct Plan {
    warm_up: u32,
    messages: u32,
    batch: u32,
    interval: Duration,
    idle: Duration,
    pids: Vec<NamedPid>,
}

/// Delivers it; answers the CPU times from before what is measured.
async fn deliver(mut lmtp: Lmtp, plan: Plan) -> Result<Baseline, Failure> {
    let begin = CpuTimes::now(&plan.pids)?;
    tokio::time::sleep(plan.idle).await;
    let idle = CpuTimes::now(&plan.pids)?;
    let mut tick = interval(plan.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut warm = None;
    for delivery in 0..plan.warm_up + plan.messages {
        tick.tick().await;
        if delivery == plan.warm_up {
            warm = Some(CpuTimes::now(&plan.pids)?);
        }
        for n in 0..plan.batch {
            lmtp.deliver(&message(delivery, n))
                .await
                .map_err(|error| Failure::unavailable(format!("LMTP: {error}")))?;
        }
    }
    let warm = warm.ok_or_else(|| Failure::internal("nothing was measured"))?;
    Ok(Baseline { begin, idle, warm })
}

fn mailbox(args: &Args) -> Result<Mailbox, Failure> {
    let server = args.imap_url.server();
    let (tls, usual) = match server.tls() {
        TlsMode::Implicit => {
            let roots = args.imap_ca.as_deref().map_or(Roots::System, Roots::File);
            (Some(tls::client_config(roots, &[])?), 993)
        }
        TlsMode::Plaintext => (None, 143),
        TlsMode::Starttls | TlsMode::Unspecified => {
            return Err(Failure::usage(
                "the plain client speaks imaps:// and imap+plaintext:// only",
            ));
        }
    };
    let text = secretfile::read_text(&args.password_file)?;
    let port = u16::try_from(server.port).unwrap_or(0);
    Ok(Mailbox {
        host: server.host,
        port: if port == 0 { usual } else { port },
        tls,
        user: server.user,
        password: Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()),
    })
}

fn device(args: &Args) -> Result<Events, Failure> {
    let token = secretfile::read_text(&args.token_file)?;
    let mut builder = Client::builder(&args.push_url)
        .token(token.trim())
        .accounts([args.account.as_str()])
        .client_name(concat!("mailbell-bench/", env!("CARGO_PKG_VERSION")));
    if let Some(file) = &args.push_ca {
        let pem = std::fs::read(file).map_err(|error| {
            Failure::new(
                mailbell_runtime::ExitCode::NoInput,
                format!("cannot read {}: {error}", file.display()),
            )
        })?;
        builder = builder.tls(pem);
    }
    let client = builder
        .build()
        .map_err(|error| Failure::usage(error.to_string()))?;
    Ok(client.into_stream())
}

async fn live(device: &mut Events) -> Result<(), Failure> {
    let wait = async {
        loop {
            match device.recv().await {
                Some(Ok(AppEvent::Live)) => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(Failure::unavailable(error.to_string())),
                None => return Err(Failure::internal("the device's stream ended")),
            }
        }
    };
    timeout(LIVE, wait)
        .await
        .map_err(|_| Failure::unavailable("the gateway does not answer"))?
}

fn note(
    event: Option<Result<AppEvent, mailbell_client::Error>>,
    generation: u32,
    told: &mut BTreeMap<u32, DeviceReceipt>,
) -> Result<(), Failure> {
    let at = Instant::now();
    let wall_us = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, micros);
    match event {
        Some(Ok(AppEvent::Arrived(arrived))) => {
            if arrived.key.generation == generation && arrived.key.folder == 1 {
                let times = arrived.times;
                told.insert(arrived.key.uid, DeviceReceipt { at, wall_us, times });
            }
            Ok(())
        }
        Some(Ok(AppEvent::Disconnected { reason, .. })) => Err(Failure::unavailable(format!(
            "the device's connection ended in the middle: {reason}"
        ))),
        Some(Ok(AppEvent::ReplaceFolder(_))) => Err(Failure::unavailable(
            "the device was told to list in the middle: too many messages at once",
        )),
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(Failure::unavailable(error.to_string())),
        None => Err(Failure::internal("the device's stream ended")),
    }
}

fn message(delivery: u32, n: u32) -> String {
    format!(
        "From: Bench <bench@example.org>\r\nTo: you@example.org\r\nSubject: measured {delivery}.{n}\r\n\
         Message-ID: <{delivery}.{n}.{}@bench.example.org>\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\
         A short message, as most of them are.\r\n",
        std::process::id()
    )
}

/// What each process needed for the measured messages, and needs without.
fn processes(
    pids: &[NamedPid],
    baseline: &Baseline,
    end: &CpuTimes,
    messages: usize,
) -> BTreeMap<String, Process> {
    let messages = u128::try_from(messages).unwrap_or(1).max(1);
    let idle_time = (baseline.idle.at - baseline.begin.at).as_micros();
    let time = (end.at - baseline.warm.at).as_micros();
    let idle = baseline.begin.until(&baseline.idle);
    let used = baseline.warm.until(end);
    pids.iter()
        .zip(idle.iter().zip(used))
        .map(|(named, (idle, used))| {
            let idle_share = |of: u128| (idle.as_micros() * of).checked_div(idle_time);
            let without = idle_share(time).unwrap_or_default();
            let process = Process {
                cpu_us_per_message: used.as_micros().saturating_sub(without) / messages,
                idle_millicores: idle_share(1000),
                resident_kib: cpu::resident_kib(named.pid),
            };
            (named.name.clone(), process)
        })
        .collect()
}

fn report(
    args: &Args,
    plain: &[BareReceipt],
    told: &BTreeMap<u32, DeviceReceipt>,
    processes: BTreeMap<String, Process>,
) -> Report {
    let both: Vec<(&BareReceipt, &DeviceReceipt)> = plain
        .iter()
        .filter_map(|plain| Some((plain, told.get(&plain.uid)?)))
        .collect();
    let of = |value: fn(&BareReceipt, &DeviceReceipt) -> i64| {
        summarize(
            both.iter()
                .map(|(plain, device)| value(plain, device))
                .collect(),
        )
    };
    Report {
        messages: both.len(),
        interval_ms: args.interval_ms,
        batch: args.batch,
        exists_to_device: of(|plain, device| between(plain.exists, device.at)),
        exists_to_detected: of(|plain, device| {
            between(plain.exists, device.at) - (device.wall_us - device.times.detected_us)
        }),
        exists_to_fetched: of(|plain, _| between(plain.exists, plain.fetched)),
        device_minus_fetched: of(|plain, device| between(plain.fetched, device.at)),
        detected_to_device: of(|_, device| device.wall_us - device.times.detected_us),
        detected_to_fetched: of(|_, d| d.times.fetched_us - d.times.detected_us),
        fetched_to_appended: of(|_, d| d.times.appended_us - d.times.fetched_us),
        appended_to_received: of(|_, d| d.times.received_us - d.times.appended_us),
        received_to_device: of(|_, device| device.wall_us - device.times.received_us),
        processes,
    }
}

/// Microseconds from one to the other; negative if the other was earlier.
fn between(from: Instant, to: Instant) -> i64 {
    match to.checked_duration_since(from) {
        Some(later) => micros(later),
        None => -micros(from.saturating_duration_since(to)),
    }
}

fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let text = serde_json::to_string(report)?;
        return writeln!(out, "{text}");
    }
    writeln!(
        out,
        "{} messages, {} at a time every {} ms; milliseconds",
        report.messages, report.batch, report.interval_ms
    )?;
    writeln!(
        out,
        "{:<24}{:>10}{:>10}{:>10}{:>10}",
        "", "p50", "p90", "p99", "max"
    )?;
    let ms = |us: i64| {
        format!(
            "{}{}.{:03}",
            if us < 0 { "-" } else { "" },
            us.abs() / 1000,
            us.abs() % 1000
        )
    };
    for (name, summary) in [
        ("exists -> device", report.exists_to_device),
        ("  bare client fetched", report.exists_to_fetched),
        ("  device - bare client", report.device_minus_fetched),
        ("exists -> detected", report.exists_to_detected),
        ("detected -> device", report.detected_to_device),
        ("  detected -> fetched", report.detected_to_fetched),
        ("  fetched -> appended", report.fetched_to_appended),
        ("  appended -> received", report.appended_to_received),
        ("  received -> device", report.received_to_device),
    ] {
        if let Some(s) = summary {
            writeln!(
                out,
                "{name:<24}{:>10}{:>10}{:>10}{:>10}",
                ms(s.p50_us),
                ms(s.p90_us),
                ms(s.p99_us),
                ms(s.max_us)
            )?;
        }
    }
    for (name, process) in &report.processes {
        let idle = process.idle_millicores.map_or_else(String::new, |share| {
            format!(
                " beyond {}.{} % of a core when idle",
                share / 10,
                share % 10
            )
        });
        let memory = process
            .resident_kib
            .map_or_else(String::new, |kib| format!(", {} MiB resident", kib / 1024));
        writeln!(
            out,
            "{name}: {} us of CPU a message{idle}{memory}",
            process.cpu_us_per_message
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_have_a_sign() {
        let now = Instant::now();
        let later = now + Duration::from_micros(1500);
        assert_eq!((between(now, later), between(later, now)), (1500, -1500));
    }

    #[test]
    fn a_process_is_named() {
        let named: NamedPid = "watcher=12".parse().unwrap();
        assert_eq!((named.name.as_str(), named.pid), ("watcher", 12));
        assert!("watcher".parse::<NamedPid>().is_err());
        assert!("watcher=x".parse::<NamedPid>().is_err());
    }

    #[test]
    fn cpu_is_told_per_message_beyond_idle() {
        let pids = ["a=1".parse().unwrap(), "b=2".parse().unwrap()];
        let start = Instant::now();
        let times = |second: u64, used: [u64; 2]| CpuTimes {
            at: start + Duration::from_secs(second),
            used: used.map(Duration::from_millis).to_vec(),
        };
        let baseline = Baseline {
            begin: times(0, [0, 0]),
            idle: times(10, [50, 0]),
            warm: times(20, [500, 7]),
        };
        let all = processes(&pids, &baseline, &times(40, [700, 7]), 100);
        let told = |name| {
            let process: &Process = &all[name];
            (process.cpu_us_per_message, process.idle_millicores)
        };
        // 200 ms in 20 s, of which 100 ms would have been used anyway.
        assert_eq!(told("a"), (1000, Some(5)));
        assert_eq!(told("b"), (0, Some(0)));
    }
}
