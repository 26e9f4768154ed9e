//! How partitions are shared, as people and programs read it.

use std::io::{self, Write};

use mailbell_proto::admin::v1::{
    GetShardsResponse, MemberState, ShardMember, ShardTotals, ShardWait, WaitReason,
};
use serde_json::{Value, json};

use crate::terminal::{Paint, Style, clean_line, table};

/// A longer name is cut in the table; --json has the whole.
const MAX_NAME: usize = 20;

fn state_word(state: MemberState) -> &'static str {
    match state {
        MemberState::Unspecified => "unknown",
        MemberState::Live => "live",
        MemberState::Draining => "draining",
        MemberState::Quiet => "quiet",
        MemberState::Stalled => "stalled",
        MemberState::Dead => "dead",
        MemberState::Left => "left",
        MemberState::Unannounced => "unannounced",
    }
}

fn reason_word(reason: WaitReason) -> &'static str {
    match reason {
        WaitReason::Unspecified => "unknown",
        WaitReason::HandOver => "hand-over",
        WaitReason::Detection => "detection",
        WaitReason::NoRoom => "no-room",
        WaitReason::Taking => "taking",
    }
}

/// How long something has been, roughly.
pub(super) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6000 => format!("{} min", seconds / 60),
        6000..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// `1 account`, `2 accounts`.
pub(super) fn some(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

pub(super) fn json(board: &GetShardsResponse) -> Value {
    let members: Vec<Value> = board.members.iter().map(member_json).collect();
    let waiting: Vec<Value> = board
        .waiting
        .iter()
        .map(|wait| {
            json!({
                "reason": reason_word(wait.reason()),
                "partitions": wait.partitions,
                "accounts": wait.accounts,
            })
        })
        .collect();
    let totals = board.totals.unwrap_or_default();
    json!({
        "members": members,
        "totals": {
            "partitions_owned": totals.partitions_owned,
            "partitions_handing_over": totals.partitions_handing_over,
            "partitions_unowned": totals.partitions_unowned,
            "accounts": totals.accounts,
            "accounts_handing_over": totals.accounts_handing_over,
            "accounts_unowned": totals.accounts_unowned,
            "unowned_ms": totals.unowned_ms,
        },
        "waiting": waiting,
        "steady": board.steady,
    })
}

fn member_json(member: &ShardMember) -> Value {
    json!({
        "id": member.id,
        "incarnation": member.incarnation,
        "release": member.release,
        "state": state_word(member.state()),
        "dead_in_ms": member.dead_in_ms,
        "weight": member.weight,
        "most_partitions": member.most_partitions,
        "egress": member.egress,
        "started_ms": member.started_ms,
        "still_ms": member.still_ms,
        "owned": member.owned,
        "wanted": member.wanted,
        "accounts": member.accounts,
        "loading": member.loading,
        "handing_over": member.handing_over,
        "watching": member.watching,
        "waiting_pace": member.waiting_pace,
        "waiting_circuit": member.waiting_circuit,
        "starting": member.starting,
        "quarantined": member.quarantined,
        "held_back": member.held_back,
    })
}

/// Those that have announced themselves and have not ended.
fn announced(board: &GetShardsResponse) -> impl Iterator<Item = &ShardMember> {
    board.members.iter().filter(|member| {
        !matches!(
            member.state(),
            MemberState::Dead | MemberState::Left | MemberState::Unannounced
        )
    })
}

pub(super) fn page(
    out: &mut impl Write,
    paint: Paint,
    board: &GetShardsResponse,
) -> io::Result<()> {
    if !board.members.is_empty() {
        members(out, paint, &board.members)?;
        writeln!(out)?;
    }
    let totals = board.totals.unwrap_or_default();
    writeln!(
        out,
        "partitions  {} owned, {} in hand-over, {} without an owner",
        totals.partitions_owned, totals.partitions_handing_over, totals.partitions_unowned
    )?;
    writeln!(
        out,
        "accounts    {}, {} without an owner",
        totals.accounts, totals.accounts_unowned
    )?;
    for wait in &board.waiting {
        writeln!(out, "waiting     {}", waits(wait))?;
    }
    for line in held_up(&board.members) {
        writeln!(out, "not yet     {line}")?;
    }
    if let Some(releases) = releases(board) {
        writeln!(out, "releases    {}", clean_line(&releases))?;
    }
    let (style, sentence) = verdict(board, &totals);
    writeln!(out, "\n{}", paint.paint(style, &sentence))
}

fn members(out: &mut impl Write, paint: Paint, members: &[ShardMember]) -> io::Result<()> {
    let heading = [
        "MEMBER", "STATE", "WEIGHT", "OWNS", "WANTS", "MOVING", "ACCOUNTS", "WATCHING", "WAITING",
        "AGE",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for member in members {
        let state = match member.state() {
            MemberState::Quiet => format!("dead in {} s", member.dead_in_ms.div_ceil(1000)),
            state => state_word(state).to_owned(),
        };
        let weight = match member.most_partitions {
            0 => member.weight.to_string(),
            most => format!("{}/{most}", member.weight),
        };
        rows.push(vec![
            short_name(&member.id),
            state,
            weight,
            member.owned.to_string(),
            member.wanted.to_string(),
            member
                .loading
                .saturating_add(member.handing_over)
                .to_string(),
            member.accounts.to_string(),
            member.watching.to_string(),
            reasons(member)
                .iter()
                .map(|(count, _)| u64::from(*count))
                .sum::<u64>()
                .to_string(),
            span(u64::from(member.still_ms)).replace(' ', ""),
        ]);
    }
    table(out, paint, &rows)
}

/// Pods of one set differ at the end of their names.
fn short_name(id: &str) -> String {
    let id = clean_line(id);
    let cut = id.chars().count().saturating_sub(MAX_NAME);
    match cut {
        0 => id,
        cut => std::iter::once('…')
            .chain(id.chars().skip(cut + 1))
            .collect(),
    }
}

/// Accounts of a member that are not watched, by why.
fn reasons(member: &ShardMember) -> [(u32, &'static str); 5] {
    [
        (member.starting, "log in now, or are about to"),
        (
            member.waiting_pace,
            "wait for their turn with their mail server",
        ),
        (
            member.waiting_circuit,
            "wait, since their mail server fails for many",
        ),
        (
            member.quarantined,
            "are left alone for a while: their sessions keep failing (see the log)",
        ),
        (
            member.held_back,
            "have a state that cannot be read (see the log)",
        ),
    ]
}

fn held_up(members: &[ShardMember]) -> Vec<String> {
    let mut sums: Vec<(u64, &'static str)> = Vec::new();
    let living = members.iter().filter(|member| {
        // What the dead last said of themselves holds no longer.
        !matches!(member.state(), MemberState::Dead | MemberState::Left)
    });
    for member in living {
        for (index, (count, why)) in reasons(member).into_iter().enumerate() {
            match sums.get_mut(index) {
                Some(sum) => sum.0 += u64::from(count),
                None => sums.push((u64::from(count), why)),
            }
        }
    }
    sums.into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{} {why}", some(count, "account")))
        .collect()
}

fn waits(wait: &ShardWait) -> String {
    let why = match wait.reason() {
        WaitReason::Unspecified => "for a reason that this release does not know",
        WaitReason::HandOver => "for their owner to give them away",
        WaitReason::Detection => "until their owner shows up or counts as dead",
        WaitReason::NoRoom => "for a watcher that has room for them",
        WaitReason::Taking => "for who should own them to take them",
    };
    let partitions = some(u64::from(wait.partitions), "partition");
    let accounts = some(wait.accounts, "account");
    format!("{partitions} with {accounts} {why}")
}

/// Only where there are several.
fn releases(board: &GetShardsResponse) -> Option<String> {
    let mut counts = std::collections::BTreeMap::new();
    for member in announced(board) {
        *counts.entry(member.release.as_str()).or_insert(0_u32) += 1;
    }
    let said: Vec<String> = counts
        .iter()
        .map(|(release, count)| format!("{release} ({count})"))
        .collect();
    (said.len() > 1).then(|| said.join(", "))
}

/// One sentence: whether all is well.
fn verdict(board: &GetShardsResponse, totals: &ShardTotals) -> (Style, String) {
    let watchers = announced(board).count() as u64;
    let nobody = "no watcher has announced itself";
    if totals.accounts_unowned > 0 {
        let why = match watchers {
            0 => format!(": {nobody}"),
            _ => String::new(),
        };
        let accounts = some(totals.accounts_unowned, "account");
        let for_long = span(totals.unowned_ms);
        return (
            Style::Red,
            format!("Nobody watches {accounts}, for {for_long} now{why}."),
        );
    }
    if watchers == 0 && totals.partitions_owned > 0 {
        let sentence = format!("{nobody}: those that own partitions are of an older release.");
        return (Style::Yellow, sentence);
    }
    if watchers == 0 {
        let sentence =
            format!("{nobody}: start one with `mailbell watcher` or `mailbell standalone`.");
        return (Style::Yellow, sentence);
    }
    if !board.steady {
        let sentence = "The store has not been read for long enough to tell who has died; look again in some seconds.";
        return (Style::Yellow, sentence.to_owned());
    }
    let moving = totals.partitions_handing_over + totals.partitions_unowned > 0;
    if moving || !board.waiting.is_empty() {
        let sentence = "Every account has an owner; not every partition is where it should be yet.";
        return (Style::Yellow, sentence.to_owned());
    }
    let who = match watchers {
        1 => "one watcher has".to_owned(),
        watchers => format!("{watchers} watchers share"),
    };
    let accounts = some(totals.accounts, "account");
    (Style::Green, format!("All is well: {who} {accounts}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str) -> ShardMember {
        ShardMember {
            id: id.to_owned(),
            release: "0.1.0".to_owned(),
            state: MemberState::Live.into(),
            weight: 100,
            owned: 512,
            wanted: 512,
            accounts: 1500,
            watching: 1500,
            still_ms: 1200,
            ..ShardMember::default()
        }
    }

    fn board() -> GetShardsResponse {
        GetShardsResponse {
            members: vec![member("a"), member("b")],
            totals: Some(ShardTotals {
                partitions_owned: 1024,
                accounts: 3000,
                ..ShardTotals::default()
            }),
            waiting: Vec::new(),
            steady: true,
        }
    }

    fn said(board: &GetShardsResponse) -> String {
        let mut out = Vec::new();
        page(&mut out, Paint::new(false), board).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_is_well_in_one_sentence() {
        let said = said(&board());
        assert!(
            said.ends_with("All is well: 2 watchers share 3000 accounts.\n"),
            "{said}"
        );
        assert!(said.starts_with("MEMBER"));
        assert!(!said.contains("releases") && !said.contains("waiting"));
    }

    #[test]
    fn it_fits_into_100_columns() {
        let mut board = board();
        board.members.push(ShardMember {
            id: "mailbell-watcher-of-a-long-name-7f9c".to_owned(),
            state: MemberState::Quiet.into(),
            dead_in_ms: 11_900,
            most_partitions: 1024,
            owned: 1024,
            wanted: 1024,
            loading: 1024,
            accounts: 10_000_000,
            watching: 10_000_000,
            waiting_pace: 1_000_000,
            waiting_circuit: 1,
            starting: 2,
            quarantined: 100_000,
            held_back: 100_000,
            still_ms: 99_000,
            release: "0.2.0".to_owned(),
            ..member("")
        });
        board.waiting = [
            WaitReason::HandOver,
            WaitReason::Detection,
            WaitReason::NoRoom,
            WaitReason::Taking,
        ]
        .map(|reason| ShardWait {
            reason: reason.into(),
            partitions: 1024,
            accounts: 1_000_000,
        })
        .to_vec();
        let said = said(&board);
        for line in said.lines() {
            assert!(
                line.chars().count() <= 100,
                "{}: {line}",
                line.chars().count()
            );
        }
        assert!(
            said.contains("dead in 12 s") && said.contains("1200003"),
            "{said}"
        );
        assert!(said.contains("releases    0.1.0 (2), 0.2.0 (1)"));
        assert!(said.contains("1 account wait"), "{said}");
        assert!(said.contains("not every partition"));
    }

    #[test]
    fn what_is_wrong_is_said_first_of_all() {
        let mut board = board();
        board.totals = Some(ShardTotals {
            accounts_unowned: 1,
            unowned_ms: 14_000,
            ..ShardTotals::default()
        });
        let sentence = |board: &GetShardsResponse| said(board).lines().last().unwrap().to_owned();
        assert_eq!(sentence(&board), "Nobody watches 1 account, for 14 s now.");
        board.members.clear();
        assert!(sentence(&board).contains("no watcher has announced itself"));
        board.totals = None;
        assert!(sentence(&board).starts_with("no watcher has announced itself: start one"));
        assert!(said(&board).starts_with("partitions  0 owned"));
        board.totals = Some(ShardTotals {
            partitions_owned: 1024,
            ..ShardTotals::default()
        });
        board.members.push(ShardMember {
            state: MemberState::Unannounced.into(),
            ..member("old")
        });
        assert!(sentence(&board).contains("older release"));
    }

    #[test]
    fn nothing_stored_commands_the_terminal() {
        let mut board = board();
        board.members[0].id = "\u{1b}[2J".to_owned();
        board.members[0].release = "\u{9b}2J".to_owned();
        assert!(!said(&board).contains(['\u{1b}', '\u{9b}']));
        assert_eq!(json(&board)["members"][1]["state"], "live");
    }
}
