//! Names and labels of the admin API's metrics; each name gets the prefix `mailbell_`.

use std::time::Instant;

use mailbell_core::sharding::board::{Board, MemberState};
use mailbell_runtime::metrics::{Registry, latency_family};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Unit,
};

use crate::Error;

/// `admin_calls_total{call, code}`: calls by method and by gRPC status.
pub const CALLS: &str = "admin_calls";
/// `admin_call_seconds{call}`: how long they took.
pub const CALL: &str = "admin_call";
/// `admin_refused_total`: calls with a missing or wrong admin token.
pub const REFUSED: &str = "admin_refused";
/// `admin_checks_total{outcome}`: logins that watchers were asked to try: `good`, `failed` (by the mail server or the settings),
/// `unanswered`.
pub const CHECKS: &str = "admin_checks";
/// `admin_accounts`: accounts that are not removed.
pub const ACCOUNTS: &str = "admin_accounts";

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallCode {
    call: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallName {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// How partitions are shared. Every admin process of an installation shows the same.
#[derive(Debug, Clone)]
pub(crate) struct ShardGauges {
    members: Family<State, Gauge>,
    partitions: Family<State, Gauge>,
    accounts_unowned: Gauge,
    unowned: Gauge,
}

impl ShardGauges {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let gauges = Self {
            members: Family::default(),
            partitions: Family::default(),
            accounts_unowned: Gauge::default(),
            unowned: Gauge::default(),
        };
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
        gauges
    }

    pub(crate) fn show(&self, board: &Board) {
        let set = |family: &Family<State, Gauge>, state, count: usize| {
            let gauge = family.get_or_create(&State { state });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        for state in MemberState::WORDS {
            let members = board.members.iter();
            let count = members.filter(|row| row.state.word() == state).count();
            set(&self.members, state, count);
        }
        let totals = board.totals;
        for (state, count) in [
            ("owned", totals.owned),
            ("handing-over", totals.handing_over),
            ("unowned", totals.unowned),
        ] {
            set(&self.partitions, state, count);
        }
        let accounts = i64::try_from(totals.accounts_unowned).unwrap_or(i64::MAX);
        self.accounts_unowned.set(accounts);
        let seconds = totals.unowned_for.unwrap_or_default().as_secs();
        self.unowned.set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }
}

/// The metrics of one service.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    calls: Family<CallCode, Counter>,
    seconds: Family<CallName, Histogram>,
    checks: Family<Outcome, Counter>,
    pub(crate) refused: Counter,
    pub(crate) accounts: Gauge,
    pub(crate) shards: ShardGauges,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            calls: Family::default(),
            seconds: latency_family(),
            checks: Family::default(),
            refused: Counter::default(),
            accounts: Gauge::default(),
            shards: ShardGauges::register(registry),
        };
        registry.register(
            CALLS,
            "Calls by method and gRPC status",
            metrics.calls.clone(),
        );
        registry.register_with_unit(
            CALL,
            "Duration of a call",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register(
            REFUSED,
            "Calls without a good admin token",
            metrics.refused.clone(),
        );
        registry.register(
            CHECKS,
            "Logins that watchers were asked to try",
            metrics.checks.clone(),
        );
        registry.register(
            ACCOUNTS,
            "Accounts that are not removed",
            metrics.accounts.clone(),
        );
        metrics
    }

    pub(crate) fn check(&self, outcome: &'static str) {
        self.checks.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a call and gives its answer the form that tonic wants.
    pub(crate) async fn call<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<tonic::Response<T>, tonic::Status> {
        let start = Instant::now();
        let result = work.await;
        let code = result.as_ref().err().map_or(tonic::Code::Ok, Error::code);
        self.calls
            .get_or_create(&CallCode {
                call,
                code: word(code),
            })
            .inc();
        self.seconds
            .get_or_create(&CallName { call })
            .observe(start.elapsed().as_secs_f64());
        result.map(tonic::Response::new).map_err(Error::into_status)
    }
}

/// The codes that [`Error::code`] gives.
fn word(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid-argument",
        Code::NotFound => "not-found",
        Code::AlreadyExists => "already-exists",
        Code::Aborted => "aborted",
        Code::FailedPrecondition => "failed-precondition",
        Code::Unavailable => "unavailable",
        _ => "internal",
    }
}
