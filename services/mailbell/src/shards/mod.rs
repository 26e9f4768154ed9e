//! `mailbell shards`: how watchers share the mailboxes, through the admin API; and `mailbell watcher drain`.

pub mod drain;
mod print;

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use mailbell_proto::admin::v1::{GetShardsRequest, GetShardsResponse};
use mailbell_runtime::{ExitCode as Code, signals::Signals};
use tokio::time::MissedTickBehavior;

use crate::{
    admin_client::{AdminArgs, AdminClient, patiently},
    duration,
    failure::Failure,
    terminal::{Paint, done},
};

/// What `--check` ends with if accounts are watched by nobody: the answer to a question, and no failure of the command.
pub(crate) const UNOWNED: u8 = 1;
/// Cursor to the upper left, and everything below erased.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// How watchers share the mailboxes.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
All accounts lie in 1024 partitions, and each partition belongs to one watcher. In the table:

  STATE     live; draining: gives its partitions away; dead in 5 s: has not been heard of; stalled, dead: others take over;
            left: has ended in order; unannounced: of an older release
  WEIGHT    its share relative to the others, and the most partitions that it takes, if it has such a limit
  OWNS      partitions that it owns; WANTS: that it should own; MOVING: that it is taking or giving away
  WATCHING  accounts that are watched; WAITING: that are not yet, or cannot be. The lines below the table say why
  AGE       of its last sign of life; a watcher gives one every three seconds

With --check the command ends with 1 if there are accounts that nobody watches, so that a script can tell. Who has died is known
after twelve seconds only.

Examples:
  mailbell shards
  mailbell shards --watch --interval 1s
  mailbell shards --json | jq '.totals.accounts_unowned'
  mailbell shards --check > /dev/null || echo 'nobody watches some of them'")]
pub struct Args {
    /// Print JSON, one line
    #[arg(long)]
    json: bool,
    /// Show it again and again, until you press Ctrl-C
    #[arg(long)]
    watch: bool,
    /// How often, with --watch
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    interval: Duration,
    /// End with 1 if there are accounts that nobody watches
    #[arg(long, conflicts_with = "watch")]
    check: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("at least a second".to_owned()),
        interval => Ok(interval),
    }
}

/// Runs the command.
///
/// # Errors
/// What the admin API said.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    if args.watch {
        return watch(&mut client, args.json, args.interval).await;
    }
    let board = get(&mut client).await?;
    done(show(&board, args.json))?;
    let unowned = board.totals.unwrap_or_default().accounts_unowned;
    Ok(match args.check && unowned > 0 {
        true => ExitCode::from(UNOWNED),
        false => ExitCode::SUCCESS,
    })
}

async fn get(client: &mut AdminClient) -> Result<GetShardsResponse, Failure> {
    patiently(async || client.shards.get_shards(GetShardsRequest {}).await).await
}

fn show(board: &GetShardsResponse, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        true => writeln!(out, "{}", print::json(board)),
        false => print::page(&mut out, Paint::stdout(), board),
    }
}

async fn watch(client: &mut AdminClient, json: bool, every: Duration) -> Result<ExitCode, Failure> {
    let mut signals = Signals::install()?;
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let redraw = !json && io::stdout().is_terminal();
    loop {
        let next = async {
            tick.tick().await;
            get(client).await
        };
        let board = tokio::select! {
            biased;
            // First: who has seen enough waits for nothing.
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
            board = next => board,
        };
        let shown = match board {
            Ok(board) => {
                if redraw {
                    done(write!(io::stdout(), "{CLEAR}"))?;
                }
                let gap = if redraw || json { "" } else { "\n" };
                show(&board, json).and_then(|()| write!(io::stdout(), "{gap}"))
            }
            // It comes back, and somebody watches.
            Err(failure) if matches!(failure.code, Code::TempFail | Code::Unavailable) => {
                let _ = failure.report();
                Ok(())
            }
            Err(failure) => return Err(failure),
        };
        match shown.and_then(|()| io::stdout().flush()) {
            // Nobody reads any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(ExitCode::SUCCESS);
            }
            result => done(result)?,
        }
    }
}
