//! Names and labels of the admin API's metrics; each name gets the prefix `mailbell_`.

use std::time::Instant;

use mailbell_runtime::metrics::{Registry, latency_family};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Unit,
};

use crate::{Error, gauges::ShardGauges};

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
        Code::PermissionDenied => "permission-denied",
        Code::Unavailable => "unavailable",
        _ => "internal",
    }
}
