//! An account whose session ended by itself: it waits, and says so in its status and the metrics. Devices are not told: what is
//! appended has to be in a checkpoint, and bound the claim until it is, and that is a session's work.

use std::{sync::Arc, time::Duration};

use mailbell_core::{ids::AccountId, session::Status};
use mailbell_proto::push::v1::Health;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    driver::{Context, status_record},
    failure,
};

/// A status that could not be written is written again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// Counts the account and shows its status for as long as it waits. The session that follows writes one of its own: what is
/// still on its way here is dropped before.
#[derive(Debug)]
pub(crate) struct Quarantine {
    until: Instant,
    gauges: [Gauge; 2],
    writing: JoinHandle<()>,
}

impl Quarantine {
    pub(crate) fn new(context: &Arc<Context>, account: &AccountId, until: Instant) -> Self {
        let metrics = &context.metrics;
        let gauges = [
            metrics.quarantined.clone(),
            metrics.sessions(Health::Retrying),
        ];
        for gauge in &gauges {
            gauge.inc();
        }
        let writing = tokio::spawn(write(Arc::clone(context), account.clone()));
        Self {
            until,
            gauges,
            writing,
        }
    }

    /// When the session begins anew.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }
}

impl Drop for Quarantine {
    fn drop(&mut self) {
        self.writing.abort();
        for gauge in &self.gauges {
            gauge.dec();
        }
    }
}

async fn write(context: Arc<Context>, account: AccountId) {
    let failure = failure::quarantined();
    let status = Status {
        health: Health::Retrying,
        code: failure.code,
        sentence: failure.sentence,
        since_us: context.clock.now_us(),
        mode: "",
        last_arrival_us: 0,
    };
    let record = status_record(&account, &status);
    while !context.ledger.status(account.clone(), record.clone()).await {
        sleep(AGAIN).await;
    }
}
