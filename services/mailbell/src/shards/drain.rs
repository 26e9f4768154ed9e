//! `mailbell watcher drain`: asks a watcher to give its partitions to the others.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use mailbell_core::ids::MemberId;
use mailbell_proto::admin::v1::{DrainMemberRequest, GetShardsResponse, MemberState, WaitReason};
use mailbell_runtime::{ExitCode as Code, signals::Signals};
use tokio::time::MissedTickBehavior;

use super::{get, print::some};
use crate::{
    admin_client::{AdminArgs, AdminClient, patiently},
    failure::Failure,
    terminal::{clean_line, done},
};

/// Partitions move by the dozen a second.
const EVERY: Duration = Duration::from_secs(1);

/// Which watcher, and how.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = "\
The watcher gives its partitions to the others, a few at a time and without a gap that a device would see, and takes none until it is
asked to by --undo, or is started anew. It keeps those for which no other watcher has room. A watcher that is ended by SIGTERM does
the same by itself; this is for doing it before, and for looking on.

Examples:
  mailbell watcher drain mailbell-watcher-2 --wait
  mailbell watcher drain mailbell-watcher-2 --undo")]
pub struct Args {
    /// The watcher, as `mailbell shards` shows it
    member: MemberId,
    /// Let it take partitions again
    #[arg(long)]
    undo: bool,
    /// Wait until it owns nothing. Ctrl-C ends the waiting only
    #[arg(long, conflicts_with = "undo")]
    wait: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
///
/// # Errors
/// What the admin API said.
pub async fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut client = AdminClient::connect(&args.admin).await?;
    let request = DrainMemberRequest {
        member: args.member.to_string(),
        undo: args.undo,
    };
    let asked = patiently(async || client.shards.drain_member(request.clone()).await).await?;
    let what = match (args.undo, asked.changed) {
        (false, true) => "is asked to drain",
        (false, false) => "drains already",
        (true, true) => "is asked to take part again",
        (true, false) => "takes part already",
    };
    let owned = some(u64::from(asked.owned), "partition");
    let member = &args.member;
    done(writeln!(
        io::stdout().lock(),
        "{member}  {what}; it owns {owned}"
    ))?;
    match args.wait {
        true => wait(&mut client, member, &asked.incarnation).await,
        false => Ok(ExitCode::SUCCESS),
    }
}

async fn wait(
    client: &mut AdminClient,
    member: &MemberId,
    incarnation: &str,
) -> Result<ExitCode, Failure> {
    let mut signals = Signals::install()?;
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    loop {
        let look = async {
            tick.tick().await;
            get(client).await
        };
        let board = tokio::select! {
            biased;
            // First: who no longer wants to wait does not wait for an answer.
            _ = signals.next() => {
                tell(&format!("no longer waiting; {member} goes on draining, and `mailbell watcher drain {member} --undo` ends that"));
                return Ok(Code::TempFail.into());
            }
            board = look => board?,
        };
        let progress = progress(&board, member, incarnation);
        match progress {
            Progress::Done(how) => {
                done(writeln!(io::stdout().lock(), "{member}  {how}"))?;
                return Ok(ExitCode::SUCCESS);
            }
            left if last == Some(left) => {}
            left @ Progress::Left {
                owned,
                accounts,
                stuck,
            } => {
                let why = if stuck {
                    "; no other watcher has room for them"
                } else {
                    ""
                };
                let (owned, accounts) =
                    (some(owned.into(), "partition"), some(accounts, "account"));
                tell(&format!("{owned} with {accounts} to go{why}"));
                last = Some(left);
            }
        }
    }
}

fn tell(sentence: &str) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(io::stderr(), "mailbell: {}", clean_line(sentence));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Done(&'static str),
    Left {
        owned: u32,
        accounts: u64,
        /// Nobody else has room for any of them, or there is nobody else.
        stuck: bool,
    },
}

/// How far this start of a watcher is.
fn progress(board: &GetShardsResponse, member: &MemberId, incarnation: &str) -> Progress {
    let found = board
        .members
        .iter()
        .find(|row| row.id == member.as_str() && row.incarnation == incarnation);
    let Some(row) = found else {
        return Progress::Done("has ended, or was started anew");
    };
    let waits = |why| board.waiting.iter().any(|wait| wait.reason() == why);
    match row.state() {
        MemberState::Left => Progress::Done("has given everything away, and has ended"),
        MemberState::Dead | MemberState::Stalled => {
            Progress::Done("is dead; the others take what it had")
        }
        _ if row.owned == 0 && row.loading == 0 => Progress::Done("owns nothing"),
        _ => Progress::Left {
            owned: row.owned,
            accounts: row.accounts,
            // It should own nothing, so what it has waits for one or the other; what waits for room alone may be others'.
            stuck: waits(WaitReason::NoRoom) && !waits(WaitReason::HandOver),
        },
    }
}

#[cfg(test)]
mod tests {
    use mailbell_proto::admin::v1::{ShardMember, ShardWait};

    use super::*;

    #[test]
    fn it_is_done_when_this_start_of_it_owns_nothing() {
        let member: MemberId = "a".parse().unwrap();
        let mut board = GetShardsResponse {
            members: vec![ShardMember {
                id: "a".to_owned(),
                incarnation: "1".to_owned(),
                state: MemberState::Draining.into(),
                owned: 3,
                accounts: 9,
                ..ShardMember::default()
            }],
            ..GetShardsResponse::default()
        };
        let left = |stuck| Progress::Left {
            owned: 3,
            accounts: 9,
            stuck,
        };
        assert_eq!(progress(&board, &member, "1"), left(false));
        for (why, stuck) in [
            (WaitReason::NoRoom, true),
            // Others are without room; what it has goes on.
            (WaitReason::HandOver, false),
        ] {
            board.waiting.push(ShardWait {
                reason: why.into(),
                ..ShardWait::default()
            });
            assert_eq!(progress(&board, &member, "1"), left(stuck));
        }
        assert!(matches!(progress(&board, &member, "2"), Progress::Done(_)));
        for state in [MemberState::Left, MemberState::Dead] {
            board.members[0].state = state.into();
            assert!(matches!(progress(&board, &member, "1"), Progress::Done(_)));
        }
        board.members[0].set_state(MemberState::Draining);
        board.members[0].owned = 0;
        assert_eq!(
            progress(&board, &member, "1"),
            Progress::Done("owns nothing")
        );
    }
}
