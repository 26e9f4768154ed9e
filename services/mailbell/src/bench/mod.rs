//! `mailbell bench`: what a running installation does, measured from outside.

mod bare;
mod cpu;
mod latency;
mod lmtp;
mod stats;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;

/// Measurements.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How long a message takes from the mail server's notice to a device, beside a plain IDLE client
    #[command(after_long_help = "\
Delivers numbered messages by LMTP to a mailbox that the installation watches, listens as a device, and beside it watches the same
mailbox with the plainest IDLE client there can be. Everything runs on one clock, so run it on one machine. The mailbox fills up:
use one of its own.

  exists -> device    from the plain client's EXISTS to the device's app
  exists -> fetched   from its EXISTS to its having the message's headers: the least that any program needs
  device - fetched    for each message, how much later the device had it than the plain client; below 0 is earlier
  detected -> device  from the watcher's own reading of EXISTS to the device's app, and its hops

A mail server that gathers notices (Dovecot: half a second) tells of several messages at once when they come faster than that; with
an --interval-ms of 700 or more each message is told of alone.

Example:
  mailbell bench latency --imap-url imap+plaintext://bench@127.0.0.1:10143 --password-file pw --lmtp 127.0.0.1:10024 \\
    --push-url http://127.0.0.1:7443 --token-file token --account default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z --pid standalone=4711")]
    Latency(Box<latency::Args>),
}

/// Runs the command.
///
/// # Errors
/// What cannot be reached, or did not arrive.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Latency(args) => latency::run(*args).await,
    }
}
