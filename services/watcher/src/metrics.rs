//! Names and labels of the watcher's metrics; each name gets the prefix `mailbell_`.

use std::{sync::atomic::AtomicU64, time::Duration};

use mailbell_core::pace::Counts;
use mailbell_proto::push::v1::Health;
use mailbell_runtime::metrics::{latency_family, latency_histogram};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// `watcher_milestones_total{milestone}`: messages that were `detected`, `fetched`, `appended`; appends that were `retried`.
pub const MILESTONES: &str = "watcher_milestones";
/// `watcher_hop_seconds{hop}`: `detected-fetched`, `fetched-appended`.
pub const HOPS: &str = "watcher_hop";
/// `watcher_sessions{health}`: `starting`, `watching`, `retrying`, `action-needed`, `paused`, `removed`.
pub const SESSIONS: &str = "watcher_sessions";
/// `watcher_logins_total{outcome}`: `ok`, or the code of what went wrong (`failure.rs`).
pub const LOGINS: &str = "watcher_logins";
/// `watcher_failures_total{code}`: failures on the mail server's side, logins included, by code.
pub const FAILURES: &str = "watcher_failures";
/// `watcher_content_bytes_total`: bytes of content that was appended.
pub const CONTENT_BYTES: &str = "watcher_content_bytes";
/// `watcher_sessions_ended_total{reason}`: `handed-over`, `lost`, `removed`, `conflict`, `panicked`.
pub const ENDED: &str = "watcher_sessions_ended";
/// `watcher_clock_ahead_seconds`: how far the clock of NATS is ahead of this machine's, where it is so far that mailboxes are watched by
/// that of NATS; else 0.
pub const CLOCK_AHEAD: &str = "watcher_clock_ahead_seconds";
/// `watcher_held_back{code}`: accounts that are not watched, since what is known of them cannot be read.
pub const HELD_BACK: &str = "watcher_held_back";
/// `watcher_waiting{reason}`: accounts that wait to connect: for a token of their host (`pace`), for a host that fails for many
/// (`circuit`), for a handshake of others to end (`handshake`).
pub const WAITING: &str = "watcher_waiting";
/// `watcher_budget_part`: the part, from 0 to 1, that this watcher has of what one address may do at a mail host.
pub const BUDGET_PART: &str = "watcher_budget_part";
/// `watcher_circuits_open`: hosts that fail for many accounts and are only probed.
pub const CIRCUITS_OPEN: &str = "watcher_circuits_open";
/// `watcher_policy_refused`: 1 while the policy file, as it is now, cannot be used, and what it said before stays in
/// force; else 0.
pub const POLICY_REFUSED: &str = "watcher_policy_refused";
/// `watcher_quarantined`: accounts whose session ended by itself and waits before it begins anew.
pub const QUARANTINED: &str = "watcher_quarantined";
/// `watcher_partitions`: partitions that are owned.
pub const PARTITIONS: &str = "watcher_partitions";
/// `watcher_load_seconds`: from the claim of a partition to the begin of its sessions.
pub const LOAD: &str = "watcher_load";
/// `watcher_claims_kept_total`: claims that went before their time (the bucket was lost) and were taken anew, with their sessions running.
pub const CLAIMS_KEPT: &str = "watcher_claims_kept";
/// `watcher_requests_total{kind, outcome}`: `check`, `list`, `login`, `unknown`; `ok`, `refused`.
pub const REQUESTS: &str = "watcher_requests";
/// `watcher_checkpoints_total{outcome}`: `stored`, `conflict`, `failed`.
pub const CHECKPOINTS: &str = "watcher_checkpoints";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Milestone {
    milestone: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hop {
    hop: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabel {
    health: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    kind: &'static str,
    outcome: &'static str,
}

/// The metrics of one watcher. The default counts into nothing.
#[derive(Debug, Clone)]
pub struct Metrics {
    milestones: Family<Milestone, Counter>,
    hops: Family<Hop, Histogram>,
    sessions: Family<HealthLabel, Gauge>,
    logins: Family<Outcome, Counter>,
    failures: Family<Code, Counter>,
    ended: Family<Reason, Counter>,
    requests: Family<Request, Counter>,
    checkpoints: Family<Outcome, Counter>,
    clock_ahead: Gauge,
    held_back: Family<Code, Gauge>,
    waiting: Family<Reason, Gauge>,
    budget_part: Gauge<f64, AtomicU64>,
    circuits_open: Gauge,
    policy_refused: Gauge,
    pub(crate) quarantined: Gauge,
    pub(crate) content_bytes: Counter,
    pub(crate) partitions: Gauge,
    pub(crate) load: Histogram,
    pub(crate) claims_kept: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            milestones: Family::default(),
            hops: latency_family(),
            sessions: Family::default(),
            logins: Family::default(),
            failures: Family::default(),
            ended: Family::default(),
            requests: Family::default(),
            checkpoints: Family::default(),
            clock_ahead: Gauge::default(),
            held_back: Family::default(),
            waiting: Family::default(),
            budget_part: Gauge::default(),
            circuits_open: Gauge::default(),
            policy_refused: Gauge::default(),
            quarantined: Gauge::default(),
            content_bytes: Counter::default(),
            partitions: Gauge::default(),
            load: latency_histogram(),
            claims_kept: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers all of them, once a process.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            MILESTONES,
            "Messages by how far the watcher has brought them",
            metrics.milestones.clone(),
        );
        registry.register_with_unit(
            HOPS,
            "Time from one milestone of a message to the next",
            Unit::Seconds,
            metrics.hops.clone(),
        );
        registry.register(
            SESSIONS,
            "Account sessions by how they are",
            metrics.sessions.clone(),
        );
        registry.register(LOGINS, "Logins by outcome", metrics.logins.clone());
        registry.register(
            FAILURES,
            "Failures on the mail server's side",
            metrics.failures.clone(),
        );
        registry.register(
            ENDED,
            "Account sessions that ended, by reason",
            metrics.ended.clone(),
        );
        registry.register(
            REQUESTS,
            "Requests of other processes by outcome",
            metrics.requests.clone(),
        );
        registry.register(
            CHECKPOINTS,
            "Checkpoints written, by outcome",
            metrics.checkpoints.clone(),
        );
        registry.register(
            CLOCK_AHEAD,
            "How far the clock of NATS is ahead of this machine's, where it is far",
            metrics.clock_ahead.clone(),
        );
        registry.register(
            HELD_BACK,
            "Accounts that are not watched, since what is known of them cannot be read",
            metrics.held_back.clone(),
        );
        registry.register(
            BUDGET_PART,
            "The part that this watcher has of what one address may do at a mail host",
            metrics.budget_part.clone(),
        );
        registry.register(
            WAITING,
            "Accounts that wait to connect, by reason",
            metrics.waiting.clone(),
        );
        registry.register(
            CIRCUITS_OPEN,
            "Mail hosts that fail for many accounts and are only probed",
            metrics.circuits_open.clone(),
        );
        registry.register(
            POLICY_REFUSED,
            "Whether the policy file cannot be used, and what it said before stays in force",
            metrics.policy_refused.clone(),
        );
        registry.register(
            QUARANTINED,
            "Accounts whose session ended by itself and waits before it begins anew",
            metrics.quarantined.clone(),
        );
        registry.register(
            CONTENT_BYTES,
            "Bytes of content appended",
            metrics.content_bytes.clone(),
        );
        registry.register(
            PARTITIONS,
            "Partitions that are owned",
            metrics.partitions.clone(),
        );
        registry.register_with_unit(
            LOAD,
            "Time from the claim of a partition to the begin of its sessions",
            Unit::Seconds,
            metrics.load.clone(),
        );
        registry.register(
            CLAIMS_KEPT,
            "Claims that aged out and were taken anew",
            metrics.claims_kept.clone(),
        );
        metrics
    }

    pub(crate) fn milestone(&self, milestone: &'static str, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.milestones
            .get_or_create(&Milestone { milestone })
            .inc_by(count);
    }

    pub(crate) fn hop(&self, hop: &'static str, from_us: i64, to_us: i64) {
        let took = u64::try_from(to_us.saturating_sub(from_us)).unwrap_or(0);
        self.hops
            .get_or_create(&Hop { hop })
            .observe(Duration::from_micros(took).as_secs_f64());
    }

    pub(crate) fn sessions(&self, health: Health) -> Gauge {
        let health = match health {
            Health::Watching => "watching",
            Health::Retrying => "retrying",
            Health::ActionNeeded => "action-needed",
            Health::Paused => "paused",
            Health::Removed => "removed",
            Health::Starting | Health::Unspecified => "starting",
        };
        self.sessions.get_or_create_owned(&HealthLabel { health })
    }

    pub(crate) fn clock_ahead(&self, seconds: i64) {
        self.clock_ahead.set(seconds);
    }

    pub(crate) fn budget_part(&self, part: f64) {
        self.budget_part.set(part);
    }

    pub(crate) fn held_back(&self, code: &'static str) -> Gauge {
        self.held_back.get_or_create_owned(&Code { code })
    }

    pub(crate) fn waiting(&self, counts: &Counts) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (reason, count) in [
            ("pace", counts.pace),
            ("circuit", counts.circuit),
            ("handshake", counts.handshake),
        ] {
            let family = &self.waiting;
            family.get_or_create(&Reason { reason }).set(gauge(count));
        }
        self.circuits_open.set(gauge(counts.open_circuits));
    }

    pub(crate) fn policy_refused(&self, refused: bool) {
        self.policy_refused.set(refused.into());
    }

    pub(crate) fn login(&self, outcome: &'static str) {
        self.logins.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn failure(&self, code: &'static str) {
        self.failures.get_or_create(&Code { code }).inc();
    }

    pub(crate) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn request(&self, kind: &'static str, outcome: &'static str) {
        self.requests
            .get_or_create(&Request { kind, outcome })
            .inc();
    }

    pub(crate) fn checkpoint(&self, outcome: &'static str) {
        self.checkpoints.get_or_create(&Outcome { outcome }).inc();
    }

    /// For tests: how many accounts wait for this reason.
    #[cfg(test)]
    pub(crate) fn waiting_for(&self, reason: &'static str) -> i64 {
        self.waiting.get_or_create(&Reason { reason }).get()
    }

    /// For tests: how many messages came so far.
    #[cfg(test)]
    pub(crate) fn milestones(&self, milestone: &'static str) -> u64 {
        self.milestones
            .get_or_create(&Milestone { milestone })
            .get()
    }
}
