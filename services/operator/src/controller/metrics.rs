//! Names and labels of the operator's metrics; each name gets the prefix `mailbell_`. None has the name of an object as a label: of
//! these there may be any number, and `kubectl get mailbells` has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::runtime::reflector::Store;
use mailbell_runtime::metrics::{Registry, latency_histogram};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::histogram::Histogram,
    metrics::{MetricType, counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::Unit,
};
use tokio::sync::Notify;

use super::Error;
use crate::api::Mailbell;

/// `operator_leading`: 1 in the replica that works, 0 in the others.
pub const LEADING: &str = "operator_leading";
/// `operator_installations{state}`: installations by the reason of their condition Ready, in lower case: `running`, `changing`,
/// `impaired`, `starting`, `failed`, `paused`; `unknown`: none was said yet. Told by the replica that works.
pub const INSTALLATIONS: &str = "operator_installations";
/// `operator_looks_total{outcome}`: looks at an installation: `ok`, or the class of why it could not be looked after: `refused`,
/// `unavailable` (the API server has too much to do, or something that it needs fails), `unreachable`, `too-long`, `unreadable`, `denied`, `no-definitions`.
pub const LOOKS: &str = "operator_looks";
/// `operator_look_seconds`: how long a look took.
pub const LOOK: &str = "operator_look";

/// `operator_unreadable{kind}`: Mailbells, MailAccounts and MailProviders that are left alone, since they cannot be read. Told by
/// the replica that works.
pub const UNREADABLE: &str = "operator_unreadable";

/// The reasons of the condition Ready (`progress.rs`), and the states that they are.
const STATES: [(&str, &str); 6] = [
    ("Running", "running"),
    ("Changing", "changing"),
    ("Impaired", "impaired"),
    ("Starting", "starting"),
    ("Failed", "failed"),
    ("Paused", "paused"),
];
/// Of an installation whose Ready has not been said yet, or has a reason that this release does not know.
const UNKNOWN: &str = "unknown";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

/// The metrics of one operator. The default counts into nothing.
#[derive(Debug, Clone)]
pub struct Metrics {
    leading: Gauge,
    looks: Family<Outcome, Counter>,
    look: Histogram,
    unreadable: Family<Kind, Gauge>,
    installations: Installations,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            leading: Gauge::default(),
            looks: Family::default(),
            look: latency_histogram(),
            unreadable: Family::default(),
            installations: Installations::default(),
        }
    }
}

impl Metrics {
    /// Registers all of them, once a process.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for outcome in ["ok"].into_iter().chain(Error::CLASSES) {
            // There from the beginning, so that the first one shows as a change.
            drop(metrics.looks.get_or_create(&Outcome { outcome }));
        }
        registry.register(
            LEADING,
            "1 in the replica that works",
            metrics.leading.clone(),
        );
        registry.register(
            LOOKS,
            "Looks at an installation, by outcome",
            metrics.looks.clone(),
        );
        registry.register_with_unit(
            LOOK,
            "Duration of a look at an installation",
            Unit::Seconds,
            metrics.look.clone(),
        );
        registry.register(
            UNREADABLE,
            "Objects that are left alone, since they cannot be read",
            metrics.unreadable.clone(),
        );
        registry.register_collector(Box::new(metrics.installations.clone()));
        metrics
    }

    /// Until it is dropped this replica leads, and looks after the installations of this store.
    pub(super) fn lead(&self, store: Store<Mailbell>) -> Leading {
        self.leading.set(1);
        self.installations.set(Some(store));
        Leading(self.clone())
    }

    /// Of this kind none is known yet that cannot be read.
    pub(super) fn unreadable(&self, kind: &'static str) -> Arc<Unreadable> {
        let gauge = self.unreadable.get_or_create_owned(&Kind { kind });
        gauge.set(0);
        Arc::new(Unreadable {
            known: Mutex::default(),
            gauge,
            news: Notify::new(),
        })
    }

    #[cfg(test)]
    pub(super) fn count(&self, kind: &'static str) -> i64 {
        self.unreadable.get_or_create(&Kind { kind }).get()
    }

    pub(super) fn look(&self, error: Option<&Error>, took: Duration) {
        let outcome = error.map_or("ok", Error::class);
        self.looks.get_or_create(&Outcome { outcome }).inc();
        self.look.observe(took.as_secs_f64());
    }
}

/// The objects of one kind that cannot be read, by namespace and name, until it is dropped.
#[derive(Debug)]
pub(super) struct Unreadable {
    known: Mutex<Known>,
    gauge: Gauge,
    news: Notify,
}

#[derive(Debug, Default)]
struct Known {
    all: BTreeSet<(String, String)>,
    /// Those of the list that is being told, which count once all of it is.
    next: Option<BTreeSet<(String, String)>>,
}

impl Unreadable {
    pub(super) fn add(&self, object: &ObjectMeta) {
        self.change(|known| {
            let Known { all, next } = known;
            next.as_mut().unwrap_or(all).insert(place(object));
        });
    }

    pub(super) fn remove(&self, object: &ObjectMeta) {
        self.change(|known| {
            if known.next.is_none() && known.all.remove(&place(object)) {
                self.news.notify_one();
            }
        });
    }

    /// All are told of again, until [`Unreadable::end_list`].
    pub(super) fn begin_list(&self) {
        self.change(|known| known.next = Some(BTreeSet::new()));
    }

    pub(super) fn end_list(&self) {
        self.change(|known| {
            let Some(next) = known.next.take() else {
                return;
            };
            if !known.all.is_subset(&next) {
                self.news.notify_one();
            }
            known.all = next;
        });
    }

    /// Waits until there is one fewer. One that can be read again may be as it was, but for what could not be read of it.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// Whether there is one of this name, of which nothing else is known.
    pub(super) fn has(&self, namespace: &str, name: &str) -> bool {
        let place = (namespace.to_owned(), name.to_owned());
        self.known().all.contains(&place)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        let mut known = self.known();
        change(&mut known);
        let count = i64::try_from(known.all.len());
        self.gauge.set(count.unwrap_or(i64::MAX));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing that holds the lock can leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unreadable {
    fn drop(&mut self) {
        self.change(|known| *known = Known::default());
    }
}

fn place(object: &ObjectMeta) -> (String, String) {
    let text = |it: &Option<String>| it.clone().unwrap_or_default();
    (text(&object.namespace), text(&object.name))
}

/// See [`Metrics::lead`].
pub(super) struct Leading(Metrics);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.leading.set(0);
        self.0.installations.set(None);
    }
}

/// Counted at each scrape from what is watched anyway, so that one that is removed is not counted on.
#[derive(Clone, Default)]
struct Installations(Arc<Mutex<Option<Store<Mailbell>>>>);

impl Installations {
    fn set(&self, store: Option<Store<Mailbell>>) {
        // Nothing that holds the lock can leave it half changed.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = store;
    }

    /// How many are in which state; `None`: this replica does not know.
    fn count(&self) -> Option<BTreeMap<&'static str, i64>> {
        let store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = store.as_ref()?.state();
        let states = STATES.map(|(_, state)| state).into_iter();
        let mut counts: BTreeMap<_, _> = states.chain([UNKNOWN]).map(|state| (state, 0)).collect();
        for mailbell in all {
            let conditions = mailbell.status.iter().flat_map(|status| &status.conditions);
            *counts.entry(state(conditions)).or_default() += 1;
        }
        Some(counts)
    }
}

fn state<'a>(mut conditions: impl Iterator<Item = &'a Condition>) -> &'static str {
    let ready = conditions.find(|it| it.type_ == "Ready");
    let of = |ready: &Condition| {
        STATES
            .into_iter()
            .find(|(reason, _)| *reason == ready.reason)
    };
    ready.and_then(of).map_or(UNKNOWN, |(_, state)| state)
}

impl fmt::Debug for Installations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Installations")
    }
}

impl Collector for Installations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Installations by how they are";
        let mut family = encoder.encode_descriptor(INSTALLATIONS, help, None, MetricType::Gauge)?;
        for (state, count) in self.count().unwrap_or_default() {
            ConstGauge::new(count).encode(family.encode_family(&State { state })?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use kube::runtime::{reflector, watcher::Event};
    use serde_json::{Value, json};

    use super::*;
    use crate::progress::{Found, Progress, conditions};

    /// A reason that nobody counts would be an installation that no alert knows.
    #[test]
    fn each_way_an_installation_can_be_has_a_state() {
        let text = || "x".to_owned();
        let failed = |serves| Progress::Failed {
            text: text(),
            serves,
        };
        let all = [
            (Progress::Done, "running"),
            (Progress::Usable(text()), "impaired"),
            (Progress::Changing(text()), "changing"),
            (Progress::Waiting(text()), "starting"),
            (failed(true), "impaired"),
            (failed(false), "failed"),
        ];
        let of = |progress: &Progress, paused| {
            let stages = vec![("one", progress.clone())];
            let found = Found { stages, paused };
            state(conditions(&found, &[], Some(1), Timestamp::UNIX_EPOCH).iter())
        };
        for (progress, expected) in all {
            assert_eq!(of(&progress, false), expected, "{progress:?}");
            assert_ne!(of(&progress, true), UNKNOWN, "{progress:?}");
        }
        assert_eq!(of(&Progress::Done, true), "paused");
        assert_eq!(state([].into_iter()), UNKNOWN);
    }

    fn installation(name: &str, reason: &str) -> Mailbell {
        let ready = json!({ "type": "Ready", "status": "True", "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let object: Value = json!({
            "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell",
            "metadata": { "name": name, "namespace": "mail" },
            "spec": {
                "gateways": { "tls": { "insecurePlaintext": true } },
                "admin": { "tls": { "insecurePlaintext": true } },
                "nats": { "managed": { "image": "nats", "storage": { "size": "8Gi" } } },
            },
            "status": { "conditions": [ready] },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn who_leads_tells_of_installations_that_are_there_and_nobody_else_does() {
        let mut all = mailbell_runtime::metrics::Metrics::new("operator");
        let ours = Metrics::register(all.registry());
        let (store, mut writer) = reflector::store::<Mailbell>();
        writer.apply_watcher_event(&Event::Apply(installation("one", "Running")));
        writer.apply_watcher_event(&Event::Apply(installation("two", "Failed")));
        writer.apply_watcher_event(&Event::Apply(installation("three", "Of another release")));
        let count =
            |state: &str| format!("\nmailbell_operator_installations{{state=\"{state}\"}} ");
        let text = all.encode().unwrap();
        assert!(text.contains("\nmailbell_operator_leading 0\n"), "{text}");
        assert!(!text.contains(&count("running")), "{text}");
        let leading = ours.lead(store);
        let text = all.encode().unwrap();
        assert!(text.contains("\nmailbell_operator_leading 1\n"), "{text}");
        for (state, number) in [("running", 1), ("failed", 1), ("unknown", 1), ("paused", 0)] {
            assert!(
                text.contains(&format!("{}{number}\n", count(state))),
                "{text}"
            );
        }
        writer.apply_watcher_event(&Event::Delete(installation("two", "Failed")));
        let text = all.encode().unwrap();
        assert!(text.contains(&format!("{}0\n", count("failed"))), "{text}");
        drop(leading);
        let text = all.encode().unwrap();
        assert!(text.contains("\nmailbell_operator_leading 0\n"), "{text}");
        assert!(!text.contains(&count("running")), "{text}");
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert_eq!(text.matches(line).count(), 1, "{line}");
        }
    }

    #[test]
    fn each_class_of_a_failed_look_is_there_from_the_beginning() {
        let mut all = mailbell_runtime::metrics::Metrics::new("operator");
        let ours = Metrics::register(all.registry());
        ours.look(None, Duration::from_millis(3));
        ours.look(Some(&Error::TooLong), Duration::from_secs(120));
        let text = all.encode().unwrap();
        for kind in ["Mailbell", "MailAccount", "MailProvider"] {
            drop(ours.unreadable(kind));
            let line = format!("\nmailbell_operator_unreadable{{kind=\"{kind}\"}} 0\n");
            assert!(all.encode().unwrap().contains(&line), "{line}");
        }
        for (outcome, count) in [
            ("ok", 1),
            ("too-long", 1),
            ("refused", 0),
            ("unreachable", 0),
        ] {
            let line =
                format!("\nmailbell_operator_looks_total{{outcome=\"{outcome}\"}} {count}\n");
            assert!(text.contains(&line), "{line}: {text}");
        }
        assert!(
            text.contains("\nmailbell_operator_look_seconds_count 2\n"),
            "{text}"
        );
    }
}
