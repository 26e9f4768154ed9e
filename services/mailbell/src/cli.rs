//! What can be typed.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use mailbell_runtime::telemetry::TelemetryArgs;

use crate::{account, bench, doctor, listen, roles, secrets, shards, standalone, token};

/// Push e-mail for ordinary IMAP mailboxes
#[derive(Debug, Parser)]
#[command(
    name = "mailbell",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_long_help = "\
Start here:
  mailbell standalone                                  everything on this machine; stays in the foreground
  mailbell account add imaps://you@example.org@imap.example.org
                                                       watch a mailbox; asks for the password
  mailbell listen                                      show each new message as it arrives
  mailbell doctor                                      what is wrong, and what to do

A flag that shows [env: ...] can also be set as that variable, such as MAILBELL_STATE_DIR. Commands that change something print
what they did on standard output; everything else goes to standard error. Exit codes follow sysexits.h: 0 done, 64 usage,
65 bad data, 66 not found, 69 not there, 70 a bug, 73 cannot create, 75 try again, 77 not allowed."
)]
pub struct Cli {
    /// Where logs and traces go.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine, with a NATS server of its own
    Standalone(Box<standalone::Args>),
    /// Hold the connections to mail servers (one role of a cluster)
    Watcher(Box<roles::watcher::Args>),
    /// Hold the streams to devices (one role of a cluster)
    Gateway(Box<roles::gateway::Args>),
    /// Serve the admin API (one role of a cluster)
    Admin(Box<roles::admin::Args>),
    /// Keep installations on a Kubernetes cluster as they are wanted
    Operator(Box<roles::operator::Args>),
    /// Create and verify what an installation stores in NATS
    Setup(Box<roles::setup::Args>),
    /// Add, list, show, check, change and remove mail accounts
    Account(account::Args),
    /// Mint, revoke and list device tokens
    Token(token::Args),
    /// Show how watchers share the mailboxes, and what nobody watches
    Shards(shards::Args),
    /// Show each new message as it arrives, as a device would
    Listen(Box<listen::Args>),
    /// Say what is wrong, and what to do
    Doctor(Box<doctor::Args>),
    /// Measure a running installation
    Bench(bench::Args),
    /// Print the custom resource definitions of Kubernetes
    #[command(after_long_help = "\
What the chart mailbell-crds installs. Server-side apply takes it as it is; the definitions must be there before the operator.

Example:
  mailbell crds | kubectl apply --server-side -f -")]
    Crds,
    /// Make the Secrets that an installation on Kubernetes needs
    Secrets(secrets::Args),
    /// Print the completion script of a shell
    #[command(after_long_help = "\
Examples:
  mailbell completions bash > ~/.local/share/bash-completion/completions/mailbell
  mailbell completions fish > ~/.config/fish/completions/mailbell.fish")]
    Completions {
        /// For this shell
        shell: Shell,
    },
    /// Print docs/reference.md, generated from the commands
    #[command(hide = true)]
    Reference,
    /// Become nats-server, and end with the process that started it
    #[command(hide = true, name = crate::standalone::nats_child::GUARD_COMMAND)]
    NatsServerGuard(Guard),
}

/// See [`crate::standalone::nats_child`].
#[derive(Debug, Args)]
pub struct Guard {
    /// Who started it
    pub parent: i32,
    /// The server's binary
    pub binary: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Where a standalone installation lives.
#[derive(Debug, Clone, Default, Args)]
pub struct StateArgs {
    /// Directory of the standalone installation [default: $XDG_STATE_HOME/mailbell, else ~/.local/state/mailbell]
    #[arg(long, env = "MAILBELL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

impl StateArgs {
    /// The directory that was named, or the usual one.
    ///
    /// # Errors
    /// When neither is known.
    pub fn path(&self) -> Result<PathBuf, crate::failure::Failure> {
        self.state_dir
            .clone()
            .or_else(standalone::state_dir::StateDir::default_path)
            .ok_or_else(|| {
                crate::failure::Failure::usage(
                    "HOME is not set: name the state directory with --state-dir",
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn typical_lines_parse() {
        for line in [
            "mailbell standalone",
            "mailbell standalone --state-dir /tmp/x --push-listen 127.0.0.1:0 --admin-listen [::1]:0 --http-listen 127.0.0.1:0",
            "mailbell --log debug account add imaps://a@b.c@imap.b.c --folder INBOX --folder Work --external-id 7 --no-check",
            "mailbell account list --json --tenant a",
            "mailbell account remove default.01ARZ3NDEKTSV4RRFFQ69G5FAV --yes",
            "mailbell token mint --whole-tenant --ttl 30d --label Pixel",
            "mailbell token mint --account default.01ARZ3NDEKTSV4RRFFQ69G5FAV --account default.01ARZ3NDEKTSV4RRFFQ69G5FAW",
            "mailbell listen --json --count 3 --exit-after 1m --cursor-file /tmp/c",
            "mailbell doctor --json",
            "mailbell shards",
            "mailbell shards --watch --interval 5s --json",
            "mailbell shards --check --admin-url https://admin.example.org:7444",
            "mailbell watcher drain pod-1 --wait",
            "mailbell watcher drain pod-1 --undo --admin-token-file /t",
            "mailbell watcher --key-ring-file /k --member pod-1",
            "mailbell watcher --key-ring-file /k --nats-url tls://nats:4222 --nats-creds /c",
            "mailbell gateway --push-listen 0.0.0.0:7443 --tls-cert /c --tls-key /k",
            "mailbell admin --admin-token-file /t --signing-key-file /s",
            "mailbell setup --replicas 3",
            "mailbell setup --print-permissions --installation test",
            "mailbell completions zsh",
            "mailbell crds",
            "mailbell secrets --installation main -n mail nats-users nats-tls admin-token operator-token signing-key key-ring",
            "mailbell operator --image mailbell.dev/mailbell:0.1.0 --namespace mail --identity pod-1",
            "mailbell nats-server-guard 1 /bin/nats-server --config /c",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
        for line in [
            "mailbell",
            "mailbell account add",
            "mailbell account add imaps://a@b --password-stdin --password-file /x",
            "mailbell token mint",
            "mailbell token mint --whole-tenant --account default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "mailbell token mint --whole-tenant --ttl soon",
            "mailbell token mint --whole-tenant --ttl 0s",
            "mailbell shards --check --watch",
            "mailbell shards --interval 0s",
            "mailbell watcher",
            "mailbell watcher drain",
            "mailbell watcher drain pod.1",
            "mailbell watcher drain pod-1 --undo --wait",
            "mailbell watcher --key-ring-file /k drain pod-1",
            "mailbell watcher --key-ring-file /k --member pod.1",
            "mailbell gateway --tls-cert /c",
            "mailbell operator",
            "mailbell secrets",
            "mailbell secrets passwords",
            "mailbell secrets --installation A.B key-ring",
            "mailbell standalone --push-listen here",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn a_variable_is_named_after_its_flag() {
        fn walk(command: &clap::Command, path: &str) {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long() else {
                    continue;
                };
                if ["help", "version"].contains(&long) {
                    continue;
                }
                let expected = format!("MAILBELL_{}", long.replace('-', "_").to_uppercase());
                let given = argument
                    .get_env()
                    .map(|name| name.to_string_lossy().into_owned());
                // What is typed for one call only has no variable.
                if let Some(given) = given {
                    assert!(
                        given == expected || long == "url",
                        "{path} --{long}: {given}"
                    );
                }
                assert!(
                    argument.get_help().is_some(),
                    "{path} --{long} says nothing"
                );
            }
            for sub in command.get_subcommands() {
                walk(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        walk(&Cli::command(), "mailbell");
    }
}
