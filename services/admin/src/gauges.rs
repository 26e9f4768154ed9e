//! How partitions are shared, as gauges. Every admin process of an installation shows the same.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use mailbell_core::sharding::{
    Waiting,
    board::{Board, MemberState},
};
use mailbell_proto::bus::v1::MemberLoad;
use mailbell_runtime::metrics::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Unit,
};

/// `shards_members{state}`: watchers by state: `live`, `draining`, `quiet` (missed for some seconds), `stalled`, `dead`, `left`,
/// `unannounced` (of an older release).
pub const SHARDS_MEMBERS: &str = "shards_members";
/// `shards_partitions{state}`: partitions, 1024 in all: `owned`, `handing-over` (between two living watchers), `unowned`.
pub const SHARDS_PARTITIONS: &str = "shards_partitions";
/// `shards_accounts_unowned`: accounts that nobody watches, since nobody owns their partitions. Must be 0.
pub const SHARDS_ACCOUNTS_UNOWNED: &str = "shards_accounts_unowned";
/// `shards_unowned_seconds`: for how long the first of these has been without an owner; 0 if there is none. More than some tens of
/// seconds wants a person.
pub const SHARDS_UNOWNED: &str = "shards_unowned";
/// `shards_steady`: 1 if this process has read for long enough, without a pause, to tell who has died; else 0, and what the dead own
/// counts as owned in the others. That is so for some seconds after its start, and where it could not read.
pub const SHARDS_STEADY: &str = "shards_steady";
/// `shards_waiting_partitions{reason}`: partitions that are not where they should be: `hand-over`, `detection`, `no-room`, `taking`.
pub const SHARDS_WAITING_PARTITIONS: &str = "shards_waiting_partitions";
/// `shards_waiting_accounts{reason}`: the accounts of these.
pub const SHARDS_WAITING_ACCOUNTS: &str = "shards_waiting_accounts";
/// `shards_member_weight{member}`: a watcher's share relative to the others.
pub const SHARDS_MEMBER_WEIGHT: &str = "shards_member_weight";
/// `shards_member_partitions{member, state}`: partitions that a watcher has a claim to (`owned`), and that it should have (`wanted`); of
/// its own, as it counts them itself, those that it is taking (`loading`) and giving away (`handing-over`).
pub const SHARDS_MEMBER_PARTITIONS: &str = "shards_member_partitions";
/// `shards_member_accounts{member}`: accounts of the partitions that a watcher owns.
pub const SHARDS_MEMBER_ACCOUNTS: &str = "shards_member_accounts";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMember {
    member: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMemberState {
    member: String,
    state: &'static str,
}

const OWNED: &str = "owned";
const WANTED: &str = "wanted";
const LOADING: &str = "loading";
const HANDING_OVER: &str = "handing-over";

impl OfMember {
    fn new(id: &str) -> Self {
        Self {
            member: id.to_owned(),
        }
    }
}

impl OfMemberState {
    fn new(id: &str, state: &'static str) -> Self {
        Self {
            member: id.to_owned(),
            state,
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct ShardGauges {
    members: Family<State, Gauge>,
    partitions: Family<State, Gauge>,
    accounts_unowned: Gauge,
    unowned: Gauge,
    steady: Gauge,
    waiting_partitions: Family<Reason, Gauge>,
    waiting_accounts: Family<Reason, Gauge>,
    weights: Family<OfMember, Gauge>,
    member_partitions: Family<OfMemberState, Gauge>,
    member_accounts: Family<OfMember, Gauge>,
    /// Members that are shown: who is gone is shown no more.
    shown: Arc<Mutex<BTreeSet<String>>>,
}

fn gauge(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

impl ShardGauges {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(SHARDS_MEMBERS, "Watchers by state", gauges.members.clone());
        registry.register(
            SHARDS_PARTITIONS,
            "Partitions by state",
            gauges.partitions.clone(),
        );
        registry.register(
            SHARDS_ACCOUNTS_UNOWNED,
            "Accounts that nobody watches",
            gauges.accounts_unowned.clone(),
        );
        registry.register_with_unit(
            SHARDS_UNOWNED,
            "For how long the first of the accounts that nobody watches has been so",
            Unit::Seconds,
            gauges.unowned.clone(),
        );
        registry.register(
            SHARDS_STEADY,
            "Whether this process can tell who has died",
            gauges.steady.clone(),
        );
        registry.register(
            SHARDS_WAITING_PARTITIONS,
            "Partitions that are not where they should be, by why",
            gauges.waiting_partitions.clone(),
        );
        registry.register(
            SHARDS_WAITING_ACCOUNTS,
            "Accounts of partitions that are not where they should be, by why",
            gauges.waiting_accounts.clone(),
        );
        registry.register(
            SHARDS_MEMBER_WEIGHT,
            "Shares of the watchers relative to each other",
            gauges.weights.clone(),
        );
        registry.register(
            SHARDS_MEMBER_PARTITIONS,
            "Partitions of each watcher",
            gauges.member_partitions.clone(),
        );
        registry.register(
            SHARDS_MEMBER_ACCOUNTS,
            "Accounts of each watcher",
            gauges.member_accounts.clone(),
        );
        gauges
    }

    /// More often than all others: they are to be read by it.
    pub(crate) fn show_steady(&self, steady: bool) {
        self.steady.set(steady.into());
    }

    pub(crate) fn show(&self, board: &Board) {
        for state in MemberState::WORDS {
            let members = board.members.iter();
            let count = members.filter(|row| row.state.word() == state).count();
            let members = self.members.get_or_create(&State { state });
            members.set(gauge(count));
        }
        let totals = board.totals;
        for (state, count) in [
            (OWNED, totals.owned),
            (HANDING_OVER, totals.handing_over),
            ("unowned", totals.unowned),
        ] {
            let partitions = self.partitions.get_or_create(&State { state });
            partitions.set(gauge(count));
        }
        self.accounts_unowned.set(gauge(totals.accounts_unowned));
        let seconds = totals.unowned_for.unwrap_or_default().as_secs();
        self.unowned.set(gauge(seconds));
        for why in Waiting::SEEN {
            let wait = board.waiting.iter().find(|wait| wait.why == why);
            let (partitions, accounts) =
                wait.map_or((0, 0), |wait| (wait.partitions, wait.accounts));
            let reason = Reason { reason: why.word() };
            let waiting = self.waiting_partitions.get_or_create(&reason);
            waiting.set(gauge(partitions));
            let waiting = self.waiting_accounts.get_or_create(&reason);
            waiting.set(gauge(accounts));
        }
        self.show_members(board);
    }

    /// Each has one row: of an incarnation before, nothing is known but its claims.
    fn show_members(&self, board: &Board) {
        let rows = board.members.iter();
        let ids: BTreeSet<String> = rows.map(|row| row.record.id.clone()).collect();
        // Nothing that holds the lock can leave it half changed.
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in shown.difference(&ids) {
            self.weights.remove(&OfMember::new(gone));
            self.member_accounts.remove(&OfMember::new(gone));
            for state in [OWNED, WANTED, LOADING, HANDING_OVER] {
                self.member_partitions
                    .remove(&OfMemberState::new(gone, state));
            }
        }
        *shown = ids;
        for row in &board.members {
            let id = &row.record.id;
            let weight = self.weights.get_or_create(&OfMember::new(id));
            weight.set(gauge(row.record.weight));
            let accounts = self.member_accounts.get_or_create(&OfMember::new(id));
            accounts.set(gauge(row.accounts));
            // What the dead last said of themselves holds no longer.
            let load = match row.state.is_alive() {
                true => row.load(),
                false => MemberLoad::default(),
            };
            for (state, count) in [
                (OWNED, gauge(row.owned)),
                (WANTED, gauge(row.wanted)),
                (LOADING, load.loading.into()),
                (HANDING_OVER, load.handing_over.into()),
            ] {
                let of = OfMemberState::new(id, state);
                let partitions = self.member_partitions.get_or_create(&of);
                partitions.set(count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mailbell_core::sharding::board::{Row, Totals, Wait};
    use mailbell_proto::bus::v1::Member;
    use mailbell_runtime::metrics::Metrics;

    use super::*;

    fn row(id: &str, state: MemberState, owned: usize) -> Row {
        Row {
            record: Member {
                id: id.to_owned(),
                incarnation: "1".to_owned(),
                weight: 100,
                load: Some(MemberLoad {
                    loading: 3,
                    handing_over: 5,
                    ..MemberLoad::default()
                }),
                ..Member::default()
            },
            state,
            owned,
            wanted: 512,
            accounts: 10,
            still: std::time::Duration::ZERO,
        }
    }

    #[test]
    fn what_the_board_says_and_nobody_who_is_gone() {
        let mut metrics = Metrics::new("admin");
        let gauges = ShardGauges::register(metrics.registry());
        let mut board = Board {
            members: vec![
                row("a", MemberState::Live, 512),
                row("b", MemberState::Draining, 500),
                row("c", MemberState::Dead, 12),
            ],
            totals: Totals {
                owned: 900,
                handing_over: 100,
                unowned: 24,
                accounts_unowned: 7,
                ..Totals::default()
            },
            waiting: vec![Wait {
                why: Waiting::NoRoom,
                partitions: 24,
                accounts: 7,
            }],
            steady: true,
        };
        gauges.show(&board);
        gauges.show_steady(true);
        let text = metrics.encode().unwrap();
        for line in [
            "shards_steady 1",
            "shards_members{state=\"draining\"} 1",
            "shards_partitions{state=\"handing-over\"} 100",
            "shards_accounts_unowned 7",
            "shards_waiting_partitions{reason=\"no-room\"} 24",
            "shards_waiting_accounts{reason=\"no-room\"} 7",
            "shards_waiting_accounts{reason=\"hand-over\"} 0",
            "shards_member_weight{member=\"a\"} 100",
            "shards_member_partitions{member=\"a\",state=\"owned\"} 512",
            "shards_member_partitions{member=\"b\",state=\"wanted\"} 512",
            "shards_member_partitions{member=\"b\",state=\"loading\"} 3",
            "shards_member_partitions{member=\"b\",state=\"handing-over\"} 5",
            "shards_member_partitions{member=\"c\",state=\"owned\"} 12",
            "shards_member_partitions{member=\"c\",state=\"handing-over\"} 0",
            "shards_member_accounts{member=\"b\"} 10",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        board.members.truncate(1);
        board.waiting.clear();
        gauges.show(&board);
        gauges.show_steady(false);
        let text = metrics.encode().unwrap();
        assert!(text.contains("shards_steady 0"), "{text}");
        assert!(!text.contains("member=\"b\""), "{text}");
        assert!(
            text.contains("shards_waiting_accounts{reason=\"no-room\"} 0"),
            "{text}"
        );
    }
}
