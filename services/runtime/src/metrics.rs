//! The metrics of one process, in the OpenMetrics text format.
//!
//! A crate registers its own metrics into [`Metrics::registry`], where every name gets the prefix `mailbell_`. The usual
//! `process_*` metrics and [`BUILD`] are there from the start. Names are constants in one `metrics.rs` a crate, and label
//! values come from closed sets: an account, an address or an error's text in a label makes a series that never ends.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        counter::ConstCounter, family::Family, gauge::ConstGauge, histogram::Histogram, info::Info,
    },
    registry::Unit,
};

pub use prometheus_client::registry::Registry;

use crate::{limits, process};

/// The prefix of every metric of ours.
pub const PREFIX: &str = "mailbell";

/// `mailbell_build_info{version, role}`: always 1.
pub const BUILD: &str = "build";

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the latency buckets, in seconds: 0.1 ms to 60 s in steps of 1, 2.5, 5, coarser where only "it hangs" is to
/// be told. The targets (2 ms, 5 ms) are bounds themselves, so that "how many were within" needs no interpolation.
pub const LATENCY_BUCKETS: [f64; 19] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 20.0, 30.0, 60.0,
];

/// A histogram of seconds with [`LATENCY_BUCKETS`].
#[must_use]
pub fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_BUCKETS)
}

/// A family of [`latency_histogram`]s, one a label set.
#[must_use]
pub fn latency_family<S: Clone + std::hash::Hash + Eq>() -> Family<S, Histogram> {
    Family::new_with_constructor(latency_histogram)
}

/// All metrics of this process.
#[derive(Debug)]
pub struct Metrics {
    root: Registry,
    prefixed: Registry,
}

impl Metrics {
    /// The registry of a process of this role, with the process' own metrics in it.
    #[must_use]
    pub fn new(role: &'static str) -> Self {
        let mut root = Registry::default();
        root.register_collector(Box::new(ProcessCollector {
            start: process::start_time_seconds(),
        }));
        let mut prefixed = Registry::with_prefix(PREFIX);
        let labels = vec![("version", env!("CARGO_PKG_VERSION")), ("role", role)];
        prefixed.register(BUILD, "Version and role of this process", Info::new(labels));
        Self { root, prefixed }
    }

    /// Where a role's crate registers its metrics.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.prefixed
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// When a metric cannot be formatted, which is a bug of its crate.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        prometheus_client::encoding::text::encode_registry(&mut text, &self.root)?;
        encode(&mut text, &self.prefixed)?;
        Ok(text)
    }
}

/// The metrics that every Prometheus client library calls by these names; read at each scrape.
#[derive(Debug)]
struct ProcessCollector {
    start: Option<f64>,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let files = limits::open_files().ok().and_then(|limit| limit.soft);
        let gauges = [
            (
                "process_resident_memory",
                "Resident memory",
                Some(Unit::Bytes),
                process::resident_bytes(),
            ),
            (
                "process_open_fds",
                "Open files and sockets",
                None,
                process::open_descriptors(),
            ),
            (
                "process_max_fds",
                "Limit of open files and sockets",
                None,
                files,
            ),
            ("process_threads", "Threads", None, process::threads()),
        ];
        for (name, help, unit, value) in gauges {
            // What the system does not tell is left out: a zero would be a lie.
            let Some(value) = value.and_then(|value| i64::try_from(value).ok()) else {
                continue;
            };
            put(
                &mut encoder,
                name,
                help,
                unit.as_ref(),
                &ConstGauge::new(value),
            )?;
        }
        if let Some(cpu) = process::cpu_time() {
            put(
                &mut encoder,
                "process_cpu",
                "CPU time, user and system",
                Some(&Unit::Seconds),
                &ConstCounter::new(cpu.as_secs_f64()),
            )?;
        }
        if let Some(start) = self.start {
            put(
                &mut encoder,
                "process_start_time",
                "Start, since the epoch",
                Some(&Unit::Seconds),
                &ConstGauge::new(start),
            )?;
        }
        Ok(())
    }
}

fn put(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn process_and_build_metrics_are_there_from_the_start() {
        let text = Metrics::new("gateway").encode().unwrap();
        for name in [
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_max_fds ",
            "process_threads ",
            "process_cpu_seconds_total ",
            "process_start_time_seconds ",
            &format!(
                "mailbell_build_info{{version=\"{}\",role=\"gateway\"}} 1",
                env!("CARGO_PKG_VERSION")
            ),
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(name)),
                "{name} is missing in\n{text}"
            );
        }
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_is_registered_gets_the_prefix() {
        let mut metrics = Metrics::new("gateway");
        let counter: Counter = Counter::default();
        metrics
            .registry()
            .register("detected", "Messages detected", counter.clone());
        counter.inc_by(3);
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains("\nmailbell_detected_total 3\n")
        );
    }

    #[test]
    fn latency_buckets_rise_and_hold_the_targets() {
        assert!(LATENCY_BUCKETS.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(LATENCY_BUCKETS.contains(&0.002) && LATENCY_BUCKETS.contains(&0.005));
        let mut metrics = Metrics::new("gateway");
        let family = latency_family::<Vec<(&'static str, &'static str)>>();
        metrics
            .registry()
            .register_with_unit("hop", "One hop", Unit::Seconds, family.clone());
        family
            .get_or_create(&vec![("hop", "fetch")])
            .observe(0.0015);
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("mailbell_hop_seconds_bucket{le=\"0.001\",hop=\"fetch\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("mailbell_hop_seconds_bucket{le=\"0.002\",hop=\"fetch\"} 1"),
            "{text}"
        );
    }
}
