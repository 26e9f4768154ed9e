//! `mailbell setup`: the streams and buckets of an installation.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use mailbell_bus::{Bus, Metrics, Role, SetupReport, Upgrade, server_config::users_config};
use mailbell_core::schema::WriteVersion;
use mailbell_runtime::ExitCode as Code;

use super::nats::NatsArgs;
use crate::{failure::Failure, terminal::done};

/// What an installation stores in NATS.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Creates what is missing, and puts right what differs unless that would lose data. Safe to run again, and needed before the first
role of a cluster starts (standalone does it by itself). Its NATS user is the only one that may make streams.

An upgrade has two steps. First every process is replaced, one after the other: new and old work together, and there is a way back.
Later --finish-upgrade lets them store what only the new release knows. It refuses while an older watcher runs. Gateways and admins
it cannot see: upgrade them first, since an older one ends within seconds. After it, older releases do not start.

Examples:
  mailbell setup --nats-url tls://nats:4222 --nats-user setup --nats-password-file /run/secrets/nats-setup --finish-upgrade
  mailbell setup --print-permissions > /etc/nats/mailbell-users.conf
  mailbell setup --nats-url tls://nats:4222 --nats-user setup --nats-password-file /run/secrets/nats-setup --replicas 3")]
pub struct Args {
    /// Replicas of each stream: 1 on a single server, 3 in a cluster
    #[arg(long, env = "MAILBELL_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub replicas: u8,

    /// Only look, and say what differs
    #[arg(long)]
    pub dry_run: bool,

    /// Let the newest schema of this release be written, once every process is of this release; there is no way back
    ///
    /// Does nothing else: streams stay as they are.
    #[arg(long, conflicts_with_all = ["dry_run", "print_permissions"])]
    pub finish_upgrade: bool,

    /// Print the NATS users of all roles with their permissions, for the configuration of your NATS servers, and do nothing else
    #[arg(long, conflicts_with = "dry_run")]
    pub print_permissions: bool,

    /// How to reach NATS.
    #[command(flatten)]
    pub nats: NatsArgs,
}

/// Runs the command.
///
/// # Errors
/// What NATS said.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    if args.print_permissions {
        let text = users_config(&args.nats.installation()?);
        done(io::stdout().lock().write_all(text.as_bytes()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = args
        .nats
        .options(Role::Setup, "setup".to_owned(), Metrics::default())?;
    options.replicas = args.replicas;
    let bus = Bus::connect(options).await?;
    if args.finish_upgrade {
        let finished = bus.finish_upgrade().await;
        bus.close().await;
        return say_finished(&finished?);
    }
    let report = if args.dry_run {
        bus.verify().await
    } else {
        bus.setup().await
    };
    bus.close().await;
    let report = report?;
    done(print(&mut io::stdout().lock(), &report))?;
    Ok(if report.drift.is_empty() {
        ExitCode::SUCCESS
    } else {
        Code::Data.into()
    })
}

fn say_finished(upgrade: &Upgrade) -> Result<ExitCode, Failure> {
    let newest = WriteVersion::NEWEST.number();
    let said = match upgrade {
        Upgrade::Finished { before } => format!(
            "schema {newest} is written from now on (before: {}); older releases do not start any more",
            before.number()
        ),
        Upgrade::Nothing => format!("schema {newest} is written already"),
        Upgrade::OlderMembers(members) => {
            return Err(Failure::new(
                Code::TempFail,
                format!(
                    "nothing was changed: watchers of an older release run: {}; upgrade them first",
                    members.join(", ")
                ),
            ));
        }
    };
    done(writeln!(io::stdout().lock(), "{said}"))?;
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl io::Write, report: &SetupReport) -> io::Result<()> {
    for stream in &report.created {
        writeln!(out, "created  {stream}")?;
    }
    for (word, drifts) in [("changed", &report.changed), ("differs", &report.drift)] {
        for drift in drifts {
            writeln!(
                out,
                "{word}  {} {}: {} -> {}",
                drift.stream, drift.field, drift.found, drift.wanted
            )?;
        }
    }
    let untouched =
        report.created.is_empty() && report.changed.is_empty() && report.drift.is_empty();
    if untouched {
        writeln!(out, "everything is as it should be")?;
    }
    let newest = WriteVersion::NEWEST;
    if let Some(written) = report.write_version.filter(|written| *written < newest) {
        writeln!(
            out,
            "schema {} is written, so that the release before can come back; once it need not: mailbell setup --finish-upgrade",
            written.number()
        )?;
    }
    Ok(())
}
