//! NATS: reachable, new enough, set up as it should be, its clock, the logs, the sealing keys.

use std::{path::Path, time::Duration};

use mailbell_bus::{Auth, Bus, BusError, Metrics, Role, Secret};
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
    let own = addresses.is_some_and(|addresses| addresses.own_nats);
    let bus = match connect(args, directory, addresses).await {
        Ok(bus) => bus,
        // The process has a user there, and may have a CA; this command was given no user: that says nothing of the process.
        Err(failure)
            if addresses.is_some_and(|addresses| !addresses.own_nats)
                && matches!(failure.code, ExitCode::Permission | ExitCode::Usage)
                && !args.nats.has_user() =>
        {
            report.warn(
                "NATS",
                failure.message,
                "name a NATS user with the same --nats flags as the installation's: without one NATS is not looked at",
            );
            return;
        }
        Err(failure) => {
            let advice = if own {
                "its log is nats.log in the state directory; the process starts it again by itself"
            } else {
                "see whether the servers run, and whether --nats-url and the user are right"
            };
            report.fail("NATS", failure.message, advice);
            return;
        }
    };
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

async fn server(report: &mut Report, bus: &Bus, own: bool) {
    let status = match bus.server_status().await {
        Ok(status) => status,
        Err(error) => {
            report.fail("NATS", error.to_string(), advice(&error));
            return;
        }
    };
    if nats_child::is_new_enough(&status.version) {
        let millis = status.round_trip_us as f64 / 1000.0;
        report.ok(
            "NATS",
            format!("version {}, {millis:.1} ms away", status.version),
        );
    } else {
        report.fail(
            "NATS",
            format!("version {} is too old", status.version),
            "upgrade nats-server to 2.11 or newer",
        );
    }
    if own {
        // It runs on the same machine: the same clock, however wrong.
        report.ok(
            "clock",
            "not looked at: NATS has the same; tokens and times of messages need one that NTP keeps right",
        );
        return;
    }
    let ahead = status.clock_ahead_us;
    let said = format!(
        "NATS and this machine differ by {:.3} s",
        ahead as f64 / 1e6
    );
    let advice = "set the clocks by NTP: times of messages and the expiry of tokens depend on them";
    match ahead.abs() {
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
        Ok(found) if found.drift.is_empty() => {
            report.ok("streams", "every stream and bucket is as it should be");
        }
        Ok(found) => {
            for drift in found.drift {
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
        Err(error) => report.fail("streams", error.to_string(), advice(&error)),
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
    if offered.is_empty() {
        report.fail(
            "sealing keys",
            "no watcher has offered a key",
            "start a watcher: passwords cannot be stored without",
        );
        return;
    }
    let Some(directory) = directory else {
        report.ok("sealing keys", format!("{} offered", offered.len()));
        return;
    };
    let path = directory.join(KEY_RING);
    let ring = secretfile::read_text(&path)
        .map_err(|error| error.to_string())
        .and_then(|text| KeyRing::from_text(&text).map_err(|error| error.to_string()));
    match ring {
        Err(error) => report.fail(
            "sealing keys",
            error,
            "restore the key ring's file: without it no stored password opens",
        ),
        Ok(ring) => {
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
