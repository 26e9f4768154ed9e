//! NATS: reachable, new enough, set up as it should be, its clock, the logs, the sealing keys.

use std::{collections::BTreeSet, path::Path, time::Duration};

use mailbell_bus::{Auth, Bus, BusError, Drift, Metrics, Role, Secret};
use mailbell_core::{ids::Group, seal::KeyRing};
use mailbell_runtime::{ExitCode, secretfile};
use tokio::time::timeout;

use super::{Args, Report, Where};
use crate::{
    failure::Failure,
    roles::{key_ring, nats::NatsArgs},
    standalone::{
        identity::{KEY_RING, STORAGE, seed_file},
        nats_child,
    },
};

/// A clock that is off by less does no harm.
const CLOCK_WARN_US: i64 = 2_000_000;
/// Tokens are refused, and alerts are judged wrongly.
const CLOCK_FAIL_US: i64 = 60_000_000;
/// How long reading the keys may take.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn examine(
    report: &mut Report,
    args: &Args,
    directory: &Path,
    addresses: Where<'_>,
) {
    let bus = match connect(args, directory, addresses).await {
        Ok(bus) => bus,
        Err(failure) => {
            let own_nats = addresses.map(|addresses| addresses.own_nats);
            not_connected(report, failure, own_nats, args.nats.has_user());
            return;
        }
    };
    let own = addresses.is_some_and(|addresses| addresses.own_nats);
    server(report, &bus, own).await;
    streams(report, &bus).await;
    logs(report, &bus).await;
    keys(report, &bus, addresses.map(|_| directory)).await;
    bus.close().await;
}

async fn connect(args: &Args, directory: &Path, addresses: Where<'_>) -> Result<Bus, Failure> {
    let name = "doctor".to_owned();
    let options = match addresses {
        Some(addresses) => {
            let nats = NatsArgs {
                nats_url: addresses.nats.clone(),
                installation: addresses.installation.clone(),
                // User, CA and certificate of the flags and variables are for another server than the process' own.
                ..if addresses.own_nats {
                    NatsArgs::default()
                } else {
                    args.nats.clone()
                }
            };
            let mut options = nats.options(Role::Setup, name, Metrics::default())?;
            if addresses.own_nats {
                let seed = secretfile::read_text(&directory.join(seed_file(Role::Setup)))?;
                options.auth = Auth::NKey(Secret::new(seed.trim()));
                options.storage = STORAGE;
            }
            options
        }
        None => args.nats.options(Role::Setup, name, Metrics::default())?,
    };
    Ok(Bus::connect(options).await?)
}

/// `own_nats`: whether the process that runs has a NATS server of its own, if there is a process.
fn not_connected(report: &mut Report, failure: Failure, own_nats: Option<bool>, has_user: bool) {
    let refused = matches!(failure.code, ExitCode::Permission | ExitCode::Usage);
    match own_nats {
        // The process has a user there, and may have a CA; this command was given no user: that says nothing of the process.
        Some(false) if refused && !has_user => report.warn(
            "NATS",
            failure.message,
            "name a NATS user with the same --nats flags as the installation's: without one NATS is not looked at",
        ),
        Some(true) => report.fail(
            "NATS",
            failure.message,
            "its log is nats.log in the state directory; the process starts it again by itself",
        ),
        _ => report.fail(
            "NATS",
            failure.message,
            "see whether the servers run, and whether --nats-url and the user are right",
        ),
    }
}

async fn server(report: &mut Report, bus: &Bus, own: bool) {
    let status = match bus.server_status().await {
        Ok(status) => status,
        Err(error) => {
            report.fail("NATS", error.to_string(), advice(&error));
            return;
        }
    };
    version(report, &status.version, status.round_trip_us);
    if own {
        report.skipped(
            "clock",
            "NATS is on this machine and has the same, however wrong; tokens and times of messages need one that NTP keeps right",
        );
    } else {
        clock(report, status.clock_ahead_us);
    }
}

fn version(report: &mut Report, version: &str, round_trip_us: i64) {
    if nats_child::is_new_enough(version) {
        let millis = round_trip_us as f64 / 1000.0;
        report.ok("NATS", format!("version {version}, {millis:.1} ms away"));
    } else {
        report.fail(
            "NATS",
            format!("version {version} is too old"),
            "upgrade nats-server to 2.11 or newer",
        );
    }
}

/// `ahead` is how far the clock of NATS is before this machine's, in microseconds.
fn clock(report: &mut Report, ahead: i64) {
    let said = format!(
        "NATS and this machine differ by {:.3} s",
        ahead as f64 / 1e6
    );
    let advice = "set the clocks by NTP: times of messages and the expiry of tokens depend on them";
    match ahead.saturating_abs() {
        ..CLOCK_WARN_US => report.ok("clock", said),
        CLOCK_WARN_US..CLOCK_FAIL_US => report.warn("clock", said, advice),
        _ => report.fail("clock", said, advice),
    }
}

fn advice(error: &BusError) -> &'static str {
    match error {
        BusError::NotSetUp(_) => "run `mailbell setup`, or start the standalone installation",
        BusError::Denied(_) | BusError::Authentication => "give the NATS user of `mailbell setup`",
        _ => "see whether JetStream is enabled and has a leader; then look again",
    }
}

async fn streams(report: &mut Report, bus: &Bus) {
    match bus.verify().await {
        Ok(found) => drifted(report, found.drift),
        Err(error) => report.fail("streams", error.to_string(), advice(&error)),
    }
}

fn drifted(report: &mut Report, drifts: Vec<Drift>) {
    if drifts.is_empty() {
        report.ok("streams", "every stream and bucket is as it should be");
    }
    for drift in drifts {
        let said = if drift.field.is_empty() {
            format!("{} is missing", drift.stream)
        } else {
            format!(
                "{} has {} {}, not {}",
                drift.stream, drift.field, drift.found, drift.wanted
            )
        };
        if drift.loses_data {
            report.fail(
                "streams",
                said,
                "putting it right would lose data: decide by hand, with the `nats` tool",
            );
        } else {
            report.warn(
                "streams",
                said,
                "run `mailbell setup`; standalone does it at its start",
            );
        }
    }
}

async fn logs(report: &mut Report, bus: &Bus) {
    let logs = match bus.logs().await {
        Ok(logs) => logs,
        Err(error) => {
            report.fail("logs", error.to_string(), advice(&error));
            return;
        }
    };
    let mut kept = 0;
    for group in Group::all() {
        match logs.tail(group).await {
            Ok(tail) => kept += (tail.last + 1).saturating_sub(tail.first),
            Err(error) => {
                report.fail("logs", format!("log {group}: {error}"), advice(&error));
                return;
            }
        }
    }
    report.ok(
        "logs",
        format!("16 logs answer; about {kept} events are kept"),
    );
}

/// What is offered to seal passwords to, and whether the ring can open it.
async fn keys(report: &mut Report, bus: &Bus, directory: Option<&Path>) {
    let Ok(Ok(offered)) = timeout(LIMIT, key_ring::offered(bus)).await else {
        report.fail(
            "sealing keys",
            "they cannot be read",
            "see whether NATS answers, and look again",
        );
        return;
    };
    let ring = directory.map(|directory| {
        secretfile::read_text(&directory.join(KEY_RING))
            .map_err(|error| error.to_string())
            .and_then(|text| KeyRing::from_text(&text).map_err(|error| error.to_string()))
    });
    sealing(report, &offered, ring);
}

/// `ring` is the key ring, or why it cannot be read; `None` if it is on another machine.
fn sealing(report: &mut Report, offered: &BTreeSet<String>, ring: Option<Result<KeyRing, String>>) {
    if offered.is_empty() {
        report.fail(
            "sealing keys",
            "no watcher has offered a key",
            "start a watcher: passwords cannot be stored without",
        );
        return;
    }
    match ring {
        None => report.ok("sealing keys", format!("{} offered", offered.len())),
        Some(Err(error)) => report.fail(
            "sealing keys",
            error,
            "restore the key ring's file: without it no stored password opens",
        ),
        Some(Ok(ring)) => {
            let known = |id: &String| ring.public_keys().any(|key| key.id() == id);
            match offered.iter().find(|id| !known(id)) {
                None => report.ok(
                    "sealing keys",
                    format!("{} offered, the ring opens all", offered.len()),
                ),
                Some(id) => report.fail(
                    "sealing keys",
                    format!("the key {id} is offered, and is not in the ring"),
                    "restore the key ring's file, or set the passwords of the accounts anew",
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    /// What is said of one thing: verdict, finding and advice.
    fn said(judge: impl FnOnce(&mut Report)) -> Vec<(Verdict, String, String)> {
        let mut report = Report::default();
        judge(&mut report);
        let findings = report.findings.into_iter();
        findings
            .map(|finding| (finding.verdict, finding.said, finding.advice))
            .collect()
    }

    #[test]
    fn clocks_that_differ_are_told_by_how_much() {
        let judged = |ahead| said(|report| clock(report, ahead)).remove(0);
        for (ahead, verdict, differ) in [
            (0, Verdict::Ok, "0.000 s"),
            (1_999_999, Verdict::Ok, "2.000 s"),
            (-1_500_000, Verdict::Ok, "-1.500 s"),
            (2_000_000, Verdict::Warn, "2.000 s"),
            (-59_999_999, Verdict::Warn, "-60.000 s"),
            (60_000_000, Verdict::Fail, "60.000 s"),
            (-3_600_000_000, Verdict::Fail, "-3600.000 s"),
            (i64::MIN, Verdict::Fail, "-9223372036854.775 s"),
        ] {
            let (found, said, advice) = judged(ahead);
            assert_eq!(found, verdict, "{ahead}");
            assert!(said.ends_with(&format!("differ by {differ}")), "{said}");
            assert_eq!(advice.contains("NTP"), verdict != Verdict::Ok, "{advice}");
        }
    }

    #[test]
    fn an_old_server_is_no_good() {
        let judged = |number| said(|report| version(report, number, 1_500)).remove(0);
        let (verdict, said, advice) = judged("2.10.29");
        assert_eq!(
            (verdict, said.as_str()),
            (Verdict::Fail, "version 2.10.29 is too old")
        );
        assert!(advice.contains("2.11"));
        let (verdict, said, _) = judged("2.11.0");
        assert_eq!(
            (verdict, said.as_str()),
            (Verdict::Ok, "version 2.11.0, 1.5 ms away")
        );
    }

    #[test]
    fn nats_is_down_or_only_not_shown_to_this_command() {
        let judged = |code, own_nats, has_user| {
            let failure = Failure::new(code, "why");
            said(|report| not_connected(report, failure, own_nats, has_user)).remove(0)
        };
        let (down, refused) = (ExitCode::Unavailable, ExitCode::Permission);
        for (code, own_nats, has_user, verdict, advice) in [
            // Behind a process that lives: its own server, and another.
            (down, Some(true), false, Verdict::Fail, "nats.log"),
            (refused, Some(true), false, Verdict::Fail, "nats.log"),
            (
                down,
                Some(false),
                false,
                Verdict::Fail,
                "whether the servers run",
            ),
            (refused, Some(false), true, Verdict::Fail, "the user"),
            (
                refused,
                Some(false),
                false,
                Verdict::Warn,
                "name a NATS user",
            ),
            (
                ExitCode::Usage,
                Some(false),
                false,
                Verdict::Warn,
                "name a NATS user",
            ),
            // With --nats-url and no process.
            (down, None, true, Verdict::Fail, "whether the servers run"),
            (refused, None, false, Verdict::Fail, "the user"),
        ] {
            let found = judged(code, own_nats, has_user);
            assert_eq!((found.0, found.1.as_str()), (verdict, "why"), "{found:?}");
            assert!(found.2.contains(advice), "{found:?}");
        }
    }

    #[test]
    fn each_drift_is_told_and_one_that_loses_data_is_a_failure() {
        let drift = |field: &str, loses_data| Drift {
            stream: "MB_main_LOG_3".to_owned(),
            field: field.to_owned(),
            found: "1".to_owned(),
            wanted: "3".to_owned(),
            loses_data,
        };
        let none = said(|report| drifted(report, Vec::new()));
        assert_eq!((none.len(), none[0].0), (1, Verdict::Ok));
        let drifts = vec![
            drift("num_replicas", false),
            drift("", false),
            drift("storage", true),
        ];
        let found = said(|report| drifted(report, drifts));
        let verdicts: Vec<_> = found
            .iter()
            .map(|(verdict, said, _)| (*verdict, said.as_str()))
            .collect();
        assert_eq!(
            verdicts,
            [
                (Verdict::Warn, "MB_main_LOG_3 has num_replicas 1, not 3"),
                (Verdict::Warn, "MB_main_LOG_3 is missing"),
                (Verdict::Fail, "MB_main_LOG_3 has storage 1, not 3"),
            ]
        );
        assert!(found[0].2.contains("mailbell setup") && found[2].2.contains("lose data"));
    }

    #[test]
    fn a_key_that_the_ring_cannot_open_is_a_failure() {
        let [ring, other] = [(); 2].map(|()| {
            let mut ring = KeyRing::default();
            ring.add(1, &mut rand::rng()).unwrap();
            ring
        });
        let ids = |ring: &KeyRing| -> BTreeSet<String> {
            ring.public_keys().map(|key| key.id().to_owned()).collect()
        };
        let (ours, theirs) = (ids(&ring), ids(&other));
        let both: BTreeSet<String> = ours.union(&theirs).cloned().collect();
        let judged = |offered: &BTreeSet<String>, ring| {
            said(|report| sealing(report, offered, ring)).remove(0)
        };
        let read = || KeyRing::from_text(&ring.to_text()).map_err(|error| error.to_string());
        assert_eq!(judged(&ours, Some(read())).0, Verdict::Ok);
        assert_eq!(judged(&both, None).0, Verdict::Ok);
        let (verdict, said, advice) = judged(&both, Some(read()));
        let missing = theirs.first().unwrap();
        assert_eq!(verdict, Verdict::Fail);
        assert!(
            said.contains(missing.as_str()) && said.contains("not in the ring"),
            "{said}"
        );
        assert!(advice.contains("restore the key ring"), "{advice}");
        let (verdict, said, _) = judged(&ours, Some(Err("it is damaged".to_owned())));
        assert_eq!((verdict, said.as_str()), (Verdict::Fail, "it is damaged"));
        let (verdict, _, advice) = judged(&BTreeSet::new(), Some(read()));
        assert_eq!(verdict, Verdict::Fail);
        assert!(advice.contains("start a watcher"), "{advice}");
    }
}
