//! Names and labels of the gateway's metrics; each name gets the prefix `mailbell_`. Labels come from closed sets.

use mailbell_proto::push::v1::ResyncReason;
use mailbell_runtime::metrics::{Registry, latency_family};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Unit,
};

/// `received_total`: entries read from the logs by this gateway's followers.
pub const RECEIVED: &str = "received";
/// `repeated_total`: entries of the logs whose key the log held shortly before.
pub const REPEATED: &str = "repeated";
/// `queued_total`: facts put into a device's queue.
pub const QUEUED: &str = "queued";
/// `written_total`: facts handed to a device's connection.
pub const WRITTEN: &str = "written";
/// `acked_total`: facts that a device acknowledged.
pub const ACKED: &str = "acked";
/// `resynced_total{reason}`: times a device was told to list. For a reason of its gateway's own: `cursor-too-old`, `log-changed`,
/// `subscription-changed`, `bad-cursor`; as the log says: `generation`, `bulk`, `baseline`; `other`.
pub const RESYNCED: &str = "resynced";
/// `gateway_hop_seconds{hop}`: `detected-received`, `appended-received`, `received-queued`, `queued-written`, `detected-written`.
pub const HOP_SECONDS: &str = "gateway_hop";
/// `gateway_devices`: attached devices.
pub const DEVICES: &str = "gateway_devices";
/// `gateway_devices_behind`: of those, devices whose queue is full or which are being replayed to.
pub const BEHIND: &str = "gateway_devices_behind";
/// `gateway_queued_frames`: frames that wait in the devices' queues.
pub const DEPTH: &str = "gateway_queued_frames";
/// `gateway_attaches_total{outcome}`: `live`, `replayed`, `resynced`.
pub const ATTACHES: &str = "gateway_attaches";
/// `gateway_refused_total{status}`: calls refused, by gRPC status in lower case with hyphens.
pub const REFUSED: &str = "gateway_refused";
/// `gateway_tokens_refused_total{why}`: `missing`, `malformed`, `unknown-key`, `key-not-yet-known`, `signature`, `claims`,
/// `expired`, `revoked`.
pub const TOKENS_REFUSED: &str = "gateway_tokens_refused";
/// `gateway_streams_ended_total{why}`: `client`, `drain`, `age`, `token-expired`, `token-revoked`, `too-slow`, `resync-untold`.
pub const ENDED: &str = "gateway_streams_ended";
/// `gateway_replay_reads_total{outcome}`: `ok`, `failed`.
pub const READS: &str = "gateway_replay_reads";
/// `gateway_log_changes_total{reason}`: times a log's history was found to be another, or to lack something.
pub const LOG_CHANGES: &str = "gateway_log_changes";
/// `gateway_listings_total{outcome}`: ListMessages calls: `ok`, or the gRPC status.
pub const LISTINGS: &str = "gateway_listings";
/// `gateway_damaged_entries_total`: entries whose content could not be read; they are told without it.
pub const DAMAGED: &str = "gateway_damaged_entries";

/// One label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Hop {
    pub(crate) hop: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StatusLabel {
    pub(crate) status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Why {
    pub(crate) why: &'static str,
}

/// The metrics of a gateway. The default counts into nothing.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) received: Counter,
    pub(crate) repeated: Counter,
    pub(crate) queued: Counter,
    pub(crate) written: Counter,
    pub(crate) acked: Counter,
    pub(crate) resynced: Family<Reason, Counter>,
    pub(crate) detected_received: Histogram,
    pub(crate) appended_received: Histogram,
    pub(crate) received_queued: Histogram,
    pub(crate) queued_written: Histogram,
    pub(crate) detected_written: Histogram,
    pub(crate) devices: Gauge,
    pub(crate) behind: Gauge,
    pub(crate) depth: Gauge,
    pub(crate) attaches: Family<Outcome, Counter>,
    pub(crate) refused: Family<StatusLabel, Counter>,
    pub(crate) tokens_refused: Family<Why, Counter>,
    pub(crate) ended: Family<Why, Counter>,
    pub(crate) reads: Family<Outcome, Counter>,
    pub(crate) log_changes: Family<Reason, Counter>,
    pub(crate) listings: Family<Outcome, Counter>,
    pub(crate) damaged: Counter,
    hops: Family<Hop, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        let hops: Family<Hop, Histogram> = latency_family();
        // Taken out once: a look-up in the family is a lock, and these are touched for every fact of every device.
        let hop = |hop| hops.get_or_create_owned(&Hop { hop });
        Self {
            received: Counter::default(),
            repeated: Counter::default(),
            queued: Counter::default(),
            written: Counter::default(),
            acked: Counter::default(),
            resynced: Family::default(),
            detected_received: hop("detected-received"),
            appended_received: hop("appended-received"),
            received_queued: hop("received-queued"),
            queued_written: hop("queued-written"),
            detected_written: hop("detected-written"),
            devices: Gauge::default(),
            behind: Gauge::default(),
            depth: Gauge::default(),
            attaches: Family::default(),
            refused: Family::default(),
            tokens_refused: Family::default(),
            ended: Family::default(),
            reads: Family::default(),
            log_changes: Family::default(),
            listings: Family::default(),
            damaged: Counter::default(),
            hops,
        }
    }
}

/// A reason as a label: a closed set.
pub(crate) const fn reason_word(reason: ResyncReason) -> &'static str {
    match reason {
        ResyncReason::CursorTooOld => "cursor-too-old",
        ResyncReason::LogChanged => "log-changed",
        ResyncReason::SubscriptionChanged => "subscription-changed",
        ResyncReason::BadCursor => "bad-cursor",
        ResyncReason::Generation => "generation",
        ResyncReason::Bulk => "bulk",
        ResyncReason::Baseline => "baseline",
        ResyncReason::Unspecified => "other",
    }
}

impl Metrics {
    /// Counts that a device was told to list.
    pub(crate) fn count_resync(&self, reason: ResyncReason) {
        let reason = reason_word(reason);
        self.resynced.get_or_create(&Reason { reason }).inc();
    }

    /// Registers all of them.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter(RECEIVED, "Entries read from the logs", &this.received);
        counter(REPEATED, "Entries told again by a log", &this.repeated);
        counter(QUEUED, "Facts queued for a device", &this.queued);
        counter(WRITTEN, "Facts handed to a connection", &this.written);
        counter(ACKED, "Facts acknowledged by a device", &this.acked);
        counter(DAMAGED, "Entries with unreadable content", &this.damaged);
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            registry.register(name, help, gauge.clone());
        };
        gauge(DEVICES, "Attached devices", &this.devices);
        gauge(BEHIND, "Attached devices that are behind", &this.behind);
        gauge(DEPTH, "Frames in the devices' queues", &this.depth);
        for reason in (0..).map_while(|number| ResyncReason::try_from(number).ok()) {
            // There from the beginning, so that the first one shows as a change.
            let reason = reason_word(reason);
            drop(this.resynced.get_or_create(&Reason { reason }));
        }
        registry.register(RESYNCED, "Devices told to list", this.resynced.clone());
        registry.register_with_unit(
            HOP_SECONDS,
            "Time of one hop of a fact",
            Unit::Seconds,
            this.hops.clone(),
        );
        registry.register(ATTACHES, "Attaches", this.attaches.clone());
        registry.register(REFUSED, "Calls refused", this.refused.clone());
        registry.register(
            TOKENS_REFUSED,
            "Tokens refused",
            this.tokens_refused.clone(),
        );
        registry.register(ENDED, "Streams ended", this.ended.clone());
        registry.register(READS, "Reads for replays", this.reads.clone());
        registry.register(LOG_CHANGES, "Logs found changed", this.log_changes.clone());
        registry.register(LISTINGS, "ListMessages calls", this.listings.clone());
        this
    }
}

/// Seconds between two times in microseconds; `None` if one is not known or a clock went back.
pub(crate) fn seconds(from_us: i64, to_us: i64) -> Option<f64> {
    let micros = to_us.checked_sub(from_us)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact below 2^53 us, which is 285 years"
    )]
    (from_us > 0 && micros >= 0).then(|| micros as f64 / 1e6)
}

/// Counts a hop whose ends are known.
pub(crate) fn observe(hop: &Histogram, from_us: i64, to_us: i64) {
    if let Some(seconds) = seconds(from_us, to_us) {
        hop.observe(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_registered_once() {
        let mut metrics = mailbell_runtime::metrics::Metrics::new("gateway");
        let ours = Metrics::register(metrics.registry());
        ours.received.inc();
        observe(&ours.detected_written, 1, 1_000_001);
        observe(&ours.detected_written, 0, 5);
        observe(&ours.detected_written, 9, 5);
        let text = metrics.encode().unwrap();
        assert!(text.contains("\nmailbell_received_total 1\n"), "{text}");
        let count = "mailbell_gateway_hop_seconds_count{hop=\"detected-written\"} 1";
        assert!(text.contains(count), "{text}");
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert_eq!(text.matches(line).count(), 1, "{line}");
        }
    }
}
