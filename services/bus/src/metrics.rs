//! Names and labels of the bus' metrics; each name gets the prefix `mailbell_`.

use std::time::Duration;

use mailbell_runtime::metrics::latency_histogram;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// `bus_appends_total{outcome}`: `stored`, `duplicate`, `no-answer`, `disconnected`, `refused-full`, `refused-no-stream`,
/// `refused-denied`, `refused-too-large`, `refused-other`.
pub const APPENDS: &str = "bus_appends";
/// `bus_append_seconds`: from the call to the acknowledgement, of those that were stored.
pub const APPEND_SECONDS: &str = "bus_append_seconds";
/// `bus_reads_total{outcome}`: batches read from logs and buckets: `ok`, `asked-leader`, `failed`.
pub const READS: &str = "bus_reads";
/// `bus_calls_failed_total{code}`: requests to NATS that failed, by [`crate::Code`].
pub const CALLS_FAILED: &str = "bus_calls_failed";
/// `bus_connects_total`: connections made, the first one included.
pub const CONNECTS: &str = "bus_connects";
/// `bus_detours_total`: connections given up since their server did not answer for a stream, or for the membership: another
/// may have the way to it.
pub const DETOURS: &str = "bus_detours";
/// `bus_link_up`: 1 while connected.
pub const LINK_UP: &str = "bus_link_up";
/// `bus_pending`: requests that wait for an answer.
pub const PENDING: &str = "bus_pending";
/// `bus_consumers_made_total`: ordered consumers made, the first time included.
pub const CONSUMERS_MADE: &str = "bus_consumers_made";
/// `bus_damaged_entries_total`: log entries that no release of ours can have written.
pub const DAMAGED: &str = "bus_damaged_entries";
/// `bus_unknown_entries_total`: log entries of a kind that a newer release brought, passed over.
pub const UNKNOWN: &str = "bus_unknown_entries";
/// `bus_log_ids_changed_total`: histories found to be others.
pub const LOG_IDS_CHANGED: &str = "bus_log_ids_changed";
/// `bus_claims_lost_total`: partitions lost to a newer claim or by expiry.
pub const CLAIMS_LOST: &str = "bus_claims_lost";
/// `bus_owner_requests_total{outcome}`: `answered`, `busy`, `late`, `repeated`, `unreadable`.
pub const OWNER_REQUESTS: &str = "bus_owner_requests";
/// `bus_owner_requests_running`: requests of other processes that are being worked on or wait.
pub const OWNER_REQUESTS_RUNNING: &str = "bus_owner_requests_running";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// The metrics of one connection. The default counts into nothing.
#[derive(Debug, Clone)]
pub struct Metrics {
    appends: Family<Outcome, Counter>,
    append_seconds: Histogram,
    reads: Family<Outcome, Counter>,
    calls_failed: Family<CodeLabel, Counter>,
    owner_requests: Family<Outcome, Counter>,
    pub(crate) connects: Counter,
    pub(crate) detours: Counter,
    pub(crate) link_up: Gauge,
    pub(crate) pending: Gauge,
    pub(crate) consumers_made: Counter,
    pub(crate) damaged: Counter,
    pub(crate) unknown: Counter,
    pub(crate) log_ids_changed: Counter,
    pub(crate) claims_lost: Counter,
    pub(crate) owner_requests_running: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            appends: Family::default(),
            append_seconds: latency_histogram(),
            reads: Family::default(),
            calls_failed: Family::default(),
            owner_requests: Family::default(),
            connects: Counter::default(),
            detours: Counter::default(),
            link_up: Gauge::default(),
            pending: Gauge::default(),
            consumers_made: Counter::default(),
            damaged: Counter::default(),
            unknown: Counter::default(),
            log_ids_changed: Counter::default(),
            claims_lost: Counter::default(),
            owner_requests_running: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Registers all of them, once a process: in one with several roles, clones of the value count together.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            APPENDS,
            "Appends to logs by outcome",
            metrics.appends.clone(),
        );
        registry.register(
            APPEND_SECONDS,
            "Seconds from an append to its acknowledgement",
            metrics.append_seconds.clone(),
        );
        registry.register(
            READS,
            "Batches read from logs by outcome",
            metrics.reads.clone(),
        );
        registry.register(
            CALLS_FAILED,
            "Requests to NATS that failed, by class",
            metrics.calls_failed.clone(),
        );
        registry.register(
            CONNECTS,
            "Connections made to NATS",
            metrics.connects.clone(),
        );
        registry.register(
            DETOURS,
            "Connections to NATS given up since a stream did not answer over them",
            metrics.detours.clone(),
        );
        registry.register(
            LINK_UP,
            "1 while connected to NATS",
            metrics.link_up.clone(),
        );
        registry.register(
            PENDING,
            "Requests to NATS that wait for an answer",
            metrics.pending.clone(),
        );
        registry.register(
            CONSUMERS_MADE,
            "Ordered consumers made",
            metrics.consumers_made.clone(),
        );
        registry.register(
            DAMAGED,
            "Log entries that cannot be read",
            metrics.damaged.clone(),
        );
        registry.register(
            UNKNOWN,
            "Log entries of a kind that only a newer release knows",
            metrics.unknown.clone(),
        );
        registry.register(
            LOG_IDS_CHANGED,
            "Log histories found to be others",
            metrics.log_ids_changed.clone(),
        );
        registry.register(
            CLAIMS_LOST,
            "Partitions lost to a newer claim or by expiry",
            metrics.claims_lost.clone(),
        );
        registry.register(
            OWNER_REQUESTS,
            "Requests to this owner by outcome",
            metrics.owner_requests.clone(),
        );
        registry.register(
            OWNER_REQUESTS_RUNNING,
            "Requests to this owner that run or wait",
            metrics.owner_requests_running.clone(),
        );
        metrics
    }

    /// Those of the membership's own connection. What is counted once a process is the main connection's.
    pub(crate) fn of_membership(&self) -> Self {
        Self {
            detours: self.detours.clone(),
            ..Self::default()
        }
    }

    pub(crate) fn append(&self, outcome: &'static str, took: Option<Duration>) {
        self.appends.get_or_create(&Outcome { outcome }).inc();
        if let Some(took) = took {
            self.append_seconds.observe(took.as_secs_f64());
        }
    }

    pub(crate) fn read(&self, outcome: &'static str) {
        self.reads.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn call_failed(&self, code: crate::Code) {
        self.calls_failed
            .get_or_create(&CodeLabel {
                code: code.as_str(),
            })
            .inc();
    }

    pub(crate) fn owner_request(&self, outcome: &'static str) {
        self.owner_requests
            .get_or_create(&Outcome { outcome })
            .inc();
    }
}
