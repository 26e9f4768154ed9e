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
use tokio::time::{Instant, MissedTickBehavior, sleep};

use crate::{
    admin_client::{AdminArgs, AdminClient, patiently},
    duration,
    failure::Failure,
    terminal::{Paint, done},
};

/// What `--check` ends with if accounts are watched by nobody: the answer to a question, and no failure of the command.
pub(crate) const UNOWNED: u8 = 1;
/// How long `--check` waits until it is known who has died, which takes twelve seconds after an admin process was started, or could not
/// read. The rest is for one read that fails meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks meanwhile.
const AGAIN: Duration = Duration::from_secs(1);
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
after twelve seconds only. An admin process that has just been started, or could not reach NATS, does not know it yet: then --check
looks again for up to 30 seconds, and ends with 75 if it is not known by then.

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
    /// End with 1 if there are accounts that nobody watches, with 75 if that cannot be told
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
    let (board, code) = match args.check {
        true => check(&mut client).await?,
        false => (get(&mut client).await?, ExitCode::SUCCESS),
    };
    done(show(&board, args.json))?;
    Ok(code)
}

/// Looks until it can be told whether there are accounts that nobody watches, and what to end with.
async fn check(client: &mut AdminClient) -> Result<(GetShardsResponse, ExitCode), Failure> {
    let until = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let board = get(client).await?;
        if let Some(code) = answer(&board) {
            return Ok((board, code));
        }
        if Instant::now() + AGAIN > until {
            return Ok((board, Code::TempFail.into()));
        }
        if !told {
            // Nobody is left to tell if this fails.
            let _ = writeln!(
                io::stderr(),
                "mailbell: not yet known who has died: looking again for up to {PATIENCE:?}"
            );
            told = true;
        }
        sleep(AGAIN).await;
    }
}

/// What `--check` ends with; `None`: the dead may own some.
fn answer(board: &GetShardsResponse) -> Option<ExitCode> {
    let unowned = board.totals.unwrap_or_default().accounts_unowned;
    match (unowned, board.steady) {
        (0, false) => None,
        (0, true) => Some(ExitCode::SUCCESS),
        _ => Some(ExitCode::from(UNOWNED)),
    }
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

#[cfg(test)]
mod tests {
    use mailbell_proto::admin::v1::ShardTotals;

    use super::*;

    #[test]
    fn who_does_not_know_the_dead_does_not_say_that_all_are_watched() {
        let board = |accounts_unowned, steady| GetShardsResponse {
            totals: Some(ShardTotals {
                accounts_unowned,
                ..ShardTotals::default()
            }),
            steady,
            ..GetShardsResponse::default()
        };
        assert_eq!(answer(&board(0, true)), Some(ExitCode::SUCCESS));
        assert_eq!(answer(&board(0, false)), None);
        for steady in [true, false] {
            assert_eq!(answer(&board(3, steady)), Some(ExitCode::from(UNOWNED)));
        }
    }
}
