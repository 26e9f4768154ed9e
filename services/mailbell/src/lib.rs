//! The one binary of Mailbell: every role, and the commands that a person types.
//!
//! [`main`] parses, [`cli`] says what there is, and each command is a module of its own:
//!
//! * [`standalone`]: everything on one machine; [`roles`]: one role a process, for a cluster;
//! * [`account`], [`token`], [`shards`]: the admin API for people; [`listen`]: what a device sees; [`doctor`]: what is wrong and what to do;
//! * [`mailbell_operator`]: the custom resources of Kubernetes, which `crds` prints; [`secrets`]: what an installation there needs;
//! * [`reference`](mod@reference): `docs/reference.md`, generated from [`cli`].

pub mod account;
pub mod admin_client;
pub mod bench;
pub mod certificate;
pub mod cli;
pub mod doctor;
pub mod duration;
pub mod failure;
pub mod listen;
pub mod reference;
pub mod roles;
pub mod secrets;
pub mod shards;
pub mod standalone;
pub mod terminal;
pub mod token;

use std::{io::Write as _, process::ExitCode};

use clap::{
    CommandFactory as _, Parser as _,
    error::{ContextKind, ContextValue, ErrorKind},
};
use mailbell_runtime::tls;

use cli::{Cli, Command};
use failure::Failure;
use standalone::nats_child;

/// What the process does, from its arguments to its exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Help and version are no errors; everything else that clap says is a usage error of our own number.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is no reason for another error.
    let _ = match refused_value(error) {
        // clap would repeat the value, which may have a password in it that was typed where none belongs.
        Some(text) => writeln!(
            std::io::stderr(),
            "error: {text}\n\nFor more information, try '--help'."
        ),
        None => error.print(),
    };
    if error.use_stderr() {
        mailbell_runtime::ExitCode::Usage.into()
    } else {
        ExitCode::SUCCESS
    }
}

/// What is wrong with a value that a parser of ours has refused.
fn refused_value(error: &clap::Error) -> Option<String> {
    let refused = error.kind() == ErrorKind::ValueValidation;
    let reason = std::error::Error::source(error).filter(|_| refused)?;
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.as_str(),
        _ => "an argument",
    };
    Some(format!("{argument}: {reason}"))
}

fn run(cli: Cli) -> Result<ExitCode, Failure> {
    // Before any thread: this one becomes another program.
    let command = match cli.command {
        Command::NatsServerGuard(guard) => {
            let error = nats_child::guard(guard.parent, &guard.binary, &guard.arguments);
            return Err(Failure::unavailable(format!(
                "cannot run {}: {error}",
                guard.binary.display()
            )));
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "mailbell", &mut script);
            return print(&script);
        }
        Command::Reference => return print(reference::text().as_bytes()),
        Command::Crds => return print(crds()?.as_bytes()),
        command => command,
    };
    tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::internal(format!("cannot start: {error}")))?;
    let telemetry = cli.telemetry;
    let result = runtime.block_on(async move {
        match command {
            Command::Standalone(args) => Box::pin(standalone::run(*args, &telemetry)).await,
            Command::Watcher(args) => Box::pin(roles::watcher::run(*args, &telemetry)).await,
            Command::Gateway(args) => Box::pin(roles::gateway::run(*args, &telemetry)).await,
            Command::Admin(args) => Box::pin(roles::admin::run(*args, &telemetry)).await,
            Command::Operator(args) => Box::pin(roles::operator::run(*args, &telemetry)).await,
            Command::Setup(args) => Box::pin(roles::setup::run(*args)).await,
            Command::Account(args) => Box::pin(account::run(args)).await,
            Command::Token(args) => Box::pin(token::run(args)).await,
            Command::Shards(args) => Box::pin(shards::run(args)).await,
            Command::Listen(args) => Box::pin(listen::run(*args, &telemetry)).await,
            Command::Doctor(args) => Box::pin(doctor::run(*args)).await,
            Command::Secrets(args) => Box::pin(secrets::run(args)).await,
            Command::Bench(args) => Box::pin(bench::run(args)).await,
            Command::Completions { .. }
            | Command::Crds
            | Command::Reference
            | Command::NatsServerGuard(_) => Ok(ExitCode::SUCCESS),
        }
    });
    // A blocking read of a terminal that nobody answers must not hold up the end.
    runtime.shutdown_background();
    result
}

/// All definitions, as one stream of YAML documents.
fn crds() -> Result<String, Failure> {
    let mut text =
        String::from("# Generated by `mailbell crds`; change the code, then `make crds`.\n");
    for definition in mailbell_operator::crds::definitions() {
        let document = mailbell_operator::crds::yaml(&definition);
        text.push_str("---\n");
        text.push_str(&document.map_err(|error| Failure::internal(error.to_string()))?);
    }
    Ok(text)
}

fn print(text: &[u8]) -> Result<ExitCode, Failure> {
    match std::io::stdout().lock().write_all(text) {
        // Who reads only the beginning has had enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::unavailable(format!("cannot write: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
