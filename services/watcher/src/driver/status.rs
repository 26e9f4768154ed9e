//! The account's status record: written when something a person cares about changes, and else lazily.

use std::time::Duration;

use mailbell_core::{ids::AccountId, session::Status};
use mailbell_proto::{
    bus::v1::StatusRecord,
    push::v1::{AccountState, Health},
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use crate::{
    ledger::{Boxed, Ledger},
    metrics::Metrics,
};

const SCHEMA: u32 = 1;
/// Never more often than this.
const LEAST: Duration = Duration::from_secs(1);
/// What only says that mail arrived, or that a connection comes and goes, may wait this long.
const LAZY: Duration = Duration::from_secs(5);

/// Writes the newest status, at most once a second.
pub(super) struct StatusWriter {
    metrics: Metrics,
    /// The gauge that this session counts in.
    counted: Option<Gauge>,
    newest: Option<Status>,
    /// When `newest` is to be written; `None`: it is.
    due: Option<Instant>,
    /// What a person was told last.
    told: Option<(Health, &'static str)>,
    last: Option<Instant>,
    pub(super) writing: Option<Boxed<bool>>,
}

impl StatusWriter {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            counted: None,
            newest: None,
            due: None,
            told: None,
            last: None,
            writing: None,
        }
    }

    /// This is how the account is now.
    pub(super) fn show(&mut self, status: Status) {
        let gauge = self.metrics.sessions(status.health);
        gauge.inc();
        if let Some(before) = self.counted.replace(gauge) {
            before.dec();
        }
        let now = Instant::now();
        let important = self.told != Some((status.health, status.code));
        // "About to log in" is usually over before anybody could read it.
        let wait = if important && status.health != Health::Starting {
            self.last
                .map(|last| (last + LEAST).saturating_duration_since(now))
                .unwrap_or_default()
        } else {
            LAZY
        };
        let at = now + wait;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
        self.newest = Some(status);
    }

    /// When [`StatusWriter::write`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.writing.is_none())
    }

    /// Begins to write what is due.
    pub(super) fn write(&mut self, ledger: &dyn Ledger, account: &AccountId) {
        let now = Instant::now();
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        let Some(status) = &self.newest else { return };
        self.told = Some((status.health, status.code));
        self.last = Some(now);
        self.writing = Some(ledger.status(account.clone(), record(account, status)));
    }

    pub(super) fn on_written(&mut self, written: bool) {
        if !written {
            self.told = None;
            self.due.get_or_insert(Instant::now() + LAZY);
        }
    }
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        if let Some(counted) = &self.counted {
            counted.dec();
        }
    }
}

/// As it is stored.
pub(crate) fn record(account: &AccountId, status: &Status) -> StatusRecord {
    StatusRecord {
        schema: SCHEMA,
        state: Some(AccountState {
            account: account.to_string(),
            health: status.health.into(),
            code: status.code.to_owned(),
            sentence: status.sentence.clone(),
            since_ms: status.since_us / 1000,
            mode: status.mode.to_owned(),
            key: None,
        }),
        last_arrival_ms: status.last_arrival_us / 1000,
    }
}
