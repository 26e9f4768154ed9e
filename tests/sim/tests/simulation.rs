//! Thousands of histories, none of which may break a rule.
#![expect(
    clippy::print_stdout,
    reason = "what was covered is for people to read"
)]

use std::{
    num::NonZero,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use mailbell_sim::{Breach, Coverage, Failure, run};

const TRACE_LINES: usize = 400;
/// How many histories are played if nobody says otherwise.
const SEEDS: u64 = 5000;
/// What must happen in them: a fault that never comes proves nothing.
const EXPECTED: &[&str] = &[
    "LIVE lost",
    "LIVE refuses",
    "account purged",
    "account removed",
    "ack late",
    "ack lost",
    "ack of another history",
    "aged claim taken by another",
    "answer of LIVE lost",
    "answer to an old op",
    "append refused",
    "append retried",
    "arrivals",
    "arrivals told",
    "attach",
    "away beyond the window",
    "bulks",
    "checkpoint conflict",
    "checkpoint lost",
    "checkpoint stored",
    "claim aged out",
    "claim conflict",
    "claim flushed",
    "claim lost",
    "closed by the hub",
    "consumer fell behind the log",
    "crash in a listing",
    "device crash",
    "double session",
    "doubled answer",
    "doubt that nobody settles",
    "drain",
    "duplicate by id",
    "event folded in",
    "events expired",
    "exists before fetchable",
    "expired and kept",
    "expired and loaded anew",
    "facts taken by apps",
    "flood",
    "flushed beyond the log",
    "folder replaced",
    "folders changed",
    "gateway killed",
    "generation change",
    "hand-over",
    "hand-over cut short",
    "hangs",
    "history found changed",
    "lagging read",
    "late claim",
    "late lower uid",
    "late publish",
    "leader asked",
    "leave",
    "left in a hurry",
    "left with nothing",
    "limit changed",
    "link broken",
    "listing",
    "listing refused",
    "log away",
    "log cut",
    "log cut above what is written",
    "log folded as a whole",
    "log lost",
    "login changed",
    "long backlog",
    "mail connection broken",
    "mail connection cut",
    "mail server down",
    "member replaced",
    "message told unread",
    "no room for all",
    "offered",
    "old owner's checkpoint",
    "one-way cut: answers",
    "one-way cut: writes",
    "paused or resumed",
    "purged entries skipped",
    "queue full",
    "released to nobody",
    "renewal conflict",
    "replay",
    "resync: log changed",
    "resync: subscription",
    "resync: too old",
    "resyncs by the log",
    "said to be stalled",
    "scaled up",
    "session loaded again",
    "slow device",
    "state not stored",
    "stopped and continued",
    "store unsure",
    "stray cleared",
    "stream cut",
    "subscription change",
    "tail read",
    "take back later",
    "take-over",
    "take-over from the dead",
    "taken again",
    "told again",
    "unowned for want of room",
    "unreadable message",
    "watch lags",
    "watcher killed",
    "write unknown",
    "wrong password",
    "zombie",
    "zombie append",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays many seeds on all cores; the failure of the lowest seed, if any fails.
fn play(first: u64, many: u64) -> Result<Coverage, Failure> {
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let all = Mutex::new((Coverage::default(), None::<Failure>));
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                let mut failed = None;
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + many {
                        break;
                    }
                    match run(seed, 0) {
                        Ok(covered) => mine.merge(&covered),
                        Err(failure) => {
                            stop.store(true, Ordering::Relaxed);
                            failed = Some(failure);
                        }
                    }
                }
                if let Ok(mut all) = all.lock() {
                    all.0.merge(&mine);
                    let both = [all.1.take(), failed].into_iter().flatten();
                    all.1 = both.min_by_key(|failure| failure.seed);
                }
            });
        }
    });
    let (coverage, failed) = all
        .into_inner()
        .unwrap_or_else(|poison| poison.into_inner());
    match failed {
        Some(failure) => Err(traced(failure)),
        None => Ok(coverage),
    }
}

/// Plays a seed that failed once more, with a trace.
fn traced(first: Failure) -> Failure {
    let (second, trace) = match run(first.seed, TRACE_LINES) {
        Ok(_) => ("nothing".to_owned(), Vec::new()),
        Err(again) if again.what == first.what => return again,
        Err(again) => (again.what, again.trace),
    };
    Failure {
        breach: Breach::NotRepeated,
        what: format!(
            "a seed is not one history: first {}, then {second}",
            first.what
        ),
        trace,
        ..first
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..20 {
        let first = run(seed, 0).map_err(|failure| failure.what);
        // Watching changes nothing.
        let second = run(seed, TRACE_LINES).map_err(|failure| failure.what);
        assert_eq!(first, second, "seed {seed}");
    }
}

#[test]
fn no_history_breaks_a_rule() -> Result<(), String> {
    if let Some(seed) = number("MAILBELL_SIM_SEED") {
        let lines = number("MAILBELL_SIM_TRACE").and_then(|lines| usize::try_from(lines).ok());
        return match run(seed, lines.unwrap_or(TRACE_LINES)) {
            Ok(coverage) => {
                println!("{coverage}");
                Ok(())
            }
            Err(failure) => Err(said(&failure)),
        };
    }
    let many = number("MAILBELL_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("MAILBELL_SIM_FIRST").unwrap_or(0);
    let coverage = play(first, many).map_err(|failure| said(&failure))?;
    println!("{many} histories:\n{coverage}");
    // Fewer need not show what is rare.
    if first > 0 || many < SEEDS {
        return Ok(());
    }
    let missing: Vec<_> = EXPECTED
        .iter()
        .filter(|what| coverage.0.get(*what).is_none_or(|many| *many == 0))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!("never happened: {missing:?}"))
    }
}

fn said(failure: &Failure) -> String {
    println!("{failure}");
    failure.what.clone()
}
