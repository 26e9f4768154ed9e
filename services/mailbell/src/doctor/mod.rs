//! `mailbell doctor`: what is wrong, and what to do.

mod canary;
mod kube;
mod local;
mod mailboxes;
mod nats;
mod report;

use std::{
    fmt,
    io::{self, Write as _},
    process::ExitCode,
};

use mailbell_runtime::limits;

pub use canary::CanaryArgs;
pub use report::{Finding, Report, Verdict};

use crate::{
    admin_client::AdminArgs,
    failure::Failure,
    roles::nats::NatsArgs,
    standalone::addresses::Addresses,
    terminal::{Paint, done},
};

/// What is looked at.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
Looks at a standalone installation from outside, or with --nats-url and the NATS user of `mailbell setup` at one in a cluster.
A standalone installation on a NATS server that is not its own needs the user of that too. Changes nothing, but logs in to each
mailbox once (at most 50 of them), and does what --canary says.

With --kube it looks at the installations of a namespace on Kubernetes, by the current context of kubectl: definitions, operators and
their rights, what they say, Secrets (by name; certificates are read, and whether their keys are theirs), disks, jobs, pods, load balancers
and routes, NATS servers that the operator runs (by `get pods/proxy`), and MailAccounts (the first that are not as they should be, by name).
What you may not see is skipped, and said.

With --canary, in either case, it puts a message into the mailbox of an account, marked as read, and says how long it takes until a
device is told; then it removes the message (some servers keep what is removed in an archive). For that it logs in with a password that
you give, makes a token that is good for this account only, and revokes it. The mail server has to be able to remove a single message
(UIDPLUS). Ctrl-C removes both too.

With --json a finding's `verdict` is ok, warn, fail, or skipped: that was not looked at, and `said` says why.

Exit codes: 0 all is well, or there are only warnings; 69 something is wrong.

Examples:
  mailbell doctor
  mailbell doctor --kube --namespace mail
  mailbell doctor --canary default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --canary-password-file ~/.secret
  mailbell doctor --json | jq -r '.findings[] | select(.verdict == \"fail\") | .advice'")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Look at the installations on Kubernetes
    #[arg(long)]
    pub kube: bool,

    /// Their namespace [default: that of the pod, or of the current context]
    #[arg(long, short, requires = "kube", value_name = "NAME")]
    pub namespace: Option<String>,

    /// Do not log in to the mailboxes
    #[arg(long)]
    pub no_mailboxes: bool,

    /// A message that is followed to a device.
    #[command(flatten)]
    pub canary: CanaryArgs,

    /// How to reach the admin API.
    #[command(flatten)]
    pub admin: AdminArgs,

    /// How to reach NATS.
    #[command(flatten)]
    pub nats: NatsArgs,
}

/// Runs the command.
///
/// # Errors
/// When the report cannot be written.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    let report = examine(&args).await?;
    let mut out = io::stdout().lock();
    done(if args.json {
        writeln!(out, "{}", report.json())
    } else {
        report.print(&mut out, Paint::stdout())
    })?;
    Ok(if report.worst() == Verdict::Fail {
        mailbell_runtime::ExitCode::Unavailable.into()
    } else {
        ExitCode::SUCCESS
    })
}

async fn examine(args: &Args) -> Result<Report, Failure> {
    let mut report = Report::default();
    if args.kube {
        kube::examine(&mut report, args.namespace.as_deref()).await;
    } else {
        processes(&mut report, args).await?;
    }
    canary::examine(&mut report, &args.canary, &args.admin).await;
    Ok(report)
}

/// Of an installation whose addresses are in a state directory, or were given.
async fn processes(report: &mut Report, args: &Args) -> Result<(), Failure> {
    let directory = args.admin.state.path()?;
    // A cluster has no state directory.
    let remote = !args.nats.nats_url.is_empty();
    let addresses = if remote {
        None
    } else {
        local::directory(report, &directory);
        local::process(report, &directory).await
    };
    if let Some(addresses) = &addresses {
        let pid = addresses.pid;
        // Of the process that is looked at: this command has limits of its own, which prove nothing.
        let limit = limits::open_files_of(pid).map(|limit| limit.soft);
        files(report, pid, limit);
    }
    if remote || addresses.is_some() {
        nats::examine(report, args, &directory, addresses.as_ref()).await;
    }
    if addresses.is_some() || args.admin.admin_url.is_some() {
        mailboxes::examine(report, &args.admin, !args.no_mailboxes).await;
    }
    Ok(())
}

/// A mailbox and a device cost a descriptor each.
const FEW_FILES: u64 = 4096;

/// `limit` is what the process may open; `None` is unlimited.
fn files(report: &mut Report, pid: u32, limit: Result<Option<u64>, impl fmt::Display>) {
    match limit {
        Ok(Some(limit)) if limit < FEW_FILES => report.warn(
            "open files",
            format!("process {pid} may open {limit} files; each mailbox and each device needs one"),
            "raise the hard limit: `LimitNOFILE=65536` in the unit, or `ulimit -Hn` before the start",
        ),
        Ok(Some(limit)) => report.ok("open files", format!("process {pid} may open {limit}")),
        Ok(None) => report.ok("open files", format!("process {pid} has no limit")),
        Err(error) => report.warn(
            "open files",
            error.to_string(),
            format!("look at /proc/{pid}/limits"),
        ),
    }
}

/// For the modules of this one.
type Where<'a> = Option<&'a Addresses>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_open_files_are_a_warning() {
        let judged = |limit: Result<Option<u64>, &str>| {
            let mut report = Report::default();
            files(&mut report, 7, limit);
            let [finding] = <[Finding; 1]>::try_from(report.findings).unwrap();
            assert_eq!(finding.name, "open files");
            (finding.verdict, finding.said, finding.advice)
        };
        let (verdict, said, advice) = judged(Ok(Some(4095)));
        assert_eq!(verdict, Verdict::Warn);
        assert!(said.contains("process 7 may open 4095") && advice.contains("LimitNOFILE"));
        assert_eq!(judged(Ok(Some(4096))).0, Verdict::Ok);
        assert_eq!(judged(Ok(None)).0, Verdict::Ok);
        let (verdict, said, advice) = judged(Err("it is another user's"));
        assert_eq!(
            (verdict, said.as_str()),
            (Verdict::Warn, "it is another user's")
        );
        assert!(advice.contains("/proc/7/limits"));
    }
}
