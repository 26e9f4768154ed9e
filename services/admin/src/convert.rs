//! Between what is stored and what is answered.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mailbell_core::{
    content::policy,
    ids::AccountId,
    schema::{may_rewrite, of_account},
    sharding::{
        Waiting,
        board::{Board, MemberState, Row},
    },
};
use mailbell_proto::{
    admin::v1 as api,
    bus::v1::{AccountRecord, CheckResult, StatusRecord, TokenRecord},
    push::v1::{AccountState, Health},
};

use crate::validate::Server;

/// The schema of token records.
pub(crate) const TOKEN_SCHEMA: u32 = 1;

/// The schema of an account's record in place of one of schema `before` (0: of none): the lowest that knows all that it says. One that is
/// too new for this release keeps its own, and the store does not take it: written in another it would lose what is not known here.
pub(crate) fn schema(record: &AccountRecord, before: u32) -> u32 {
    match may_rewrite(before) {
        true => of_account(record),
        false => before,
    }
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The settings in which two accounts may differ.
pub(crate) fn same_settings(a: &AccountRecord, b: &AccountRecord) -> bool {
    same_server(a, b) && a.folders == b.folders && policy(a.content) == policy(b.content)
}

/// What a credential is bound to.
pub(crate) fn same_server(a: &AccountRecord, b: &AccountRecord) -> bool {
    (&a.host, a.port, a.tls, &a.user) == (&b.host, b.port, b.tls, &b.user)
}

pub(crate) fn put_server(record: &mut AccountRecord, server: Server) {
    record.host = server.host;
    record.port = server.port;
    record.tls = server.tls.into();
    record.user = server.user;
}

pub(crate) fn account(
    id: &AccountId,
    record: AccountRecord,
    revision: u64,
    status: Option<StatusRecord>,
) -> api::Account {
    let last_arrival_ms = status.as_ref().map_or(0, |status| status.last_arrival_ms);
    let state = status
        .and_then(|status| status.state)
        .unwrap_or_else(|| unknown_state(id, &record));
    api::Account {
        id: id.to_string(),
        external_id: record.external_id,
        server: Some(api::ImapServer {
            host: record.host,
            port: record.port,
            tls: record.tls,
            user: record.user,
        }),
        folders: record.folders,
        paused: record.paused,
        created_at_ms: record.created_at_ms,
        updated_at_ms: record.updated_at_ms,
        state: Some(state),
        last_arrival_ms,
        revision,
        managed_by: record.managed_by,
        content: policy(record.content).into(),
    }
}

/// Before its owner has said anything.
fn unknown_state(id: &AccountId, record: &AccountRecord) -> AccountState {
    let (health, code, sentence) = if record.paused {
        (Health::Paused, "paused", "The account is paused.")
    } else {
        (
            Health::Starting,
            "starting",
            "The account was added and is not watched yet.",
        )
    };
    AccountState {
        account: id.to_string(),
        health: health.into(),
        code: code.to_owned(),
        sentence: sentence.to_owned(),
        since_ms: record.updated_at_ms,
        ..AccountState::default()
    }
}

/// The state of an account whose partition nobody has owned for so long. What waits for a person, or for its owner, still does.
pub(crate) fn unwatched(state: &mut AccountState, unwatched: Duration) {
    if !matches!(
        state.health(),
        Health::Unspecified | Health::Starting | Health::Watching | Health::Retrying
    ) {
        return;
    }
    let ms = i64::try_from(unwatched.as_millis()).unwrap_or(i64::MAX);
    state.set_health(Health::Retrying);
    state.code = "no-watcher".to_owned();
    state.sentence =
        "Nobody watches it now: no living watcher owns its partition. `mailbell shards` says why; what arrives is told later."
            .to_owned();
    state.since_ms = now_ms().saturating_sub(ms);
    state.mode.clear();
}

pub(crate) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

pub(crate) fn board(board: Board) -> api::GetShardsResponse {
    let totals = board.totals;
    let unowned = totals.unowned_for.unwrap_or_default();
    api::GetShardsResponse {
        members: board.members.into_iter().map(shard_member).collect(),
        totals: Some(api::ShardTotals {
            partitions_owned: count(totals.owned),
            partitions_handing_over: count(totals.handing_over),
            partitions_unowned: count(totals.unowned),
            accounts: totals.accounts,
            accounts_handing_over: totals.accounts_handing_over,
            accounts_unowned: totals.accounts_unowned,
            unowned_ms: u64::try_from(unowned.as_millis()).unwrap_or(u64::MAX),
        }),
        waiting: board
            .waiting
            .into_iter()
            .map(|wait| api::ShardWait {
                reason: reason(wait.why).into(),
                partitions: count(wait.partitions),
                accounts: wait.accounts,
            })
            .collect(),
        steady: board.steady,
    }
}

fn reason(why: Waiting) -> api::WaitReason {
    match why {
        Waiting::HandOver | Waiting::TakeBack => api::WaitReason::HandOver,
        Waiting::Detection => api::WaitReason::Detection,
        Waiting::NoRoom => api::WaitReason::NoRoom,
        Waiting::Taking => api::WaitReason::Taking,
    }
}

fn shard_member(row: Row) -> api::ShardMember {
    let load = row.load();
    let (state, dead_in) = match row.state {
        MemberState::Live => (api::MemberState::Live, Duration::ZERO),
        MemberState::Draining => (api::MemberState::Draining, Duration::ZERO),
        MemberState::Quiet { dead_in } => (api::MemberState::Quiet, dead_in),
        MemberState::Stalled => (api::MemberState::Stalled, Duration::ZERO),
        MemberState::Dead => (api::MemberState::Dead, Duration::ZERO),
        MemberState::Left => (api::MemberState::Left, Duration::ZERO),
        MemberState::Unannounced => (api::MemberState::Unannounced, Duration::ZERO),
    };
    api::ShardMember {
        state: state.into(),
        dead_in_ms: millis(dead_in),
        still_ms: millis(row.still),
        owned: count(row.owned),
        wanted: count(row.wanted),
        accounts: row.accounts,
        id: row.record.id,
        incarnation: row.record.incarnation,
        release: row.record.release,
        weight: row.record.weight,
        most_partitions: row.record.most_partitions,
        egress: row.record.egress,
        started_ms: row.record.started_ms,
        loading: load.loading,
        handing_over: load.handing_over,
        watching: load.watching,
        waiting_pace: load.waiting_pace,
        waiting_circuit: load.waiting_circuit,
        starting: load.starting,
        quarantined: load.quarantined,
        held_back: load.held_back,
    }
}

pub(crate) fn check(result: CheckResult) -> api::CheckAccountResponse {
    api::CheckAccountResponse {
        ok: result.ok,
        code: result.code,
        sentence: result.sentence,
        folders: result
            .folders
            .into_iter()
            .map(|folder| api::FolderCheck {
                name: folder.name,
                exists: folder.exists,
                messages: folder.messages,
                generation: folder.generation,
                uid_next: folder.uid_next,
            })
            .collect(),
        handshake_ms: result.handshake_ms,
        capabilities: result.capabilities,
    }
}

/// Its id is known to callers with the tenant in it, so that it names one record.
pub(crate) fn token(record: TokenRecord, revoked: bool) -> api::Token {
    api::Token {
        id: format!("{}.{}", record.tenant, record.id),
        tenant: record.tenant,
        accounts: record.accounts,
        whole_tenant: record.whole_tenant,
        content: record.content,
        issued_at_ms: record.issued_at_ms,
        expires_at_ms: record.expires_at_ms,
        label: record.label,
        revoked,
    }
}

#[cfg(test)]
mod tests {
    use mailbell_core::schema::NEWEST;

    use super::*;

    /// The store refuses to have it written, in this schema and no other.
    #[test]
    fn a_record_that_is_too_new_keeps_its_schema() {
        let record = AccountRecord::default();
        assert_eq!(schema(&record, NEWEST + 1), NEWEST + 1);
        assert_eq!(schema(&record, NEWEST), 1);
        assert_eq!(schema(&record, 0), 1);
    }

    #[test]
    fn what_waits_for_a_person_is_not_covered_up() {
        for (health, after) in [
            (Health::Watching, Health::Retrying),
            (Health::Starting, Health::Retrying),
            (Health::ActionNeeded, Health::ActionNeeded),
            (Health::Paused, Health::Paused),
        ] {
            let mut state = AccountState {
                health: health.into(),
                mode: "idle".to_owned(),
                ..AccountState::default()
            };
            unwatched(&mut state, Duration::from_secs(60));
            assert_eq!(state.health(), after, "{health:?}");
            let covered = health != after;
            assert_eq!(state.mode.is_empty(), covered);
            assert_eq!(state.code == "no-watcher", covered);
        }
    }
}
