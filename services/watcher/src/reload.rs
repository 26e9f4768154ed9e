//! What is known of one account whose session begins alone: it is new, it crashed, or its checkpoint cannot be read.

use std::{sync::Arc, time::Duration};

use mailbell_bus::{BusError, Code, patience};
use mailbell_core::{
    backoff::Backoff,
    ownership::fold,
    session::{Failure, Known, Status, Stop},
};
use mailbell_proto::push::v1::Health;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::{Instant, sleep_until};

use crate::{
    driver::{Context, End, finished, status_record},
    failure,
    ledger::Boxed,
    slot::Slot,
};

/// A checkpoint that cannot be read is looked at again after a delay between these: somebody may have mended it.
const UNREADABLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Loads what is known of the account. Gives up only when the session is told to stop. For as long as the checkpoint cannot be
/// read the account is held back, and says so.
pub(crate) async fn reload(context: &Arc<Context>, slot: &Slot) -> Result<Known, End> {
    let (first, most) = UNREADABLE;
    let (mut backoff, mut seldom) = (patience(), Backoff::new(first, first, most));
    let mut held: Option<HeldBack> = None;
    let mut writing: Option<Boxed<bool>> = None;
    loop {
        let removed = slot.stopping() == Some(Stop::Removed);
        let wait = match attempt(context, slot, removed).await {
            Ok(known) => return Ok(known),
            Err(Obstacle::Passing) => backoff.next(&mut rand::rng()),
            Err(Obstacle::Unreadable(failure)) => {
                if held.as_ref().is_none_or(|held| held.code != failure.code) {
                    tracing::error!(account = %slot.account, code = failure.code, "an account is held back");
                    held = Some(HeldBack::new(context, failure.code));
                    slot.set_health(Health::ActionNeeded);
                    let record = status_record(&slot.account, &status(context, failure));
                    writing = Some(context.ledger.status(slot.account.clone(), record));
                }
                seldom.next(&mut rand::rng())
            }
        };
        let again = Instant::now() + wait;
        loop {
            match slot.stopping() {
                Some(Stop::Lost) => return Err(End::Lost),
                Some(Stop::HandOver) => return Err(End::HandedOver),
                // Nothing has to be read to be forgotten.
                Some(Stop::Removed) if held.is_some() && !removed => break,
                // It is told once what is known is loaded.
                Some(Stop::Removed) | None => {}
            }
            // There is no connection that could answer.
            slot.refuse_requests(failure::NOT_CONNECTED);
            tokio::select! {
                // A stop goes first; what else is told stays in the slot until the session looks, which it does at its start.
                biased;
                () = slot.notified() => {}
                written = finished(&mut writing) => {
                    if !written {
                        // Said again with the next attempt.
                        held = None;
                    }
                }
                () = sleep_until(again) => break,
            }
        }
    }
}

/// Why what is known could not be loaded.
enum Obstacle {
    /// NATS is away or slow.
    Passing,
    /// A person must act, or another release.
    Unreadable(Failure),
}

/// `removed`: a checkpoint that cannot be read is passed over.
async fn attempt(context: &Context, slot: &Slot, removed: bool) -> Result<Known, Obstacle> {
    let account = &slot.account;
    let mut known = match context.ledger.load(account.clone()).await {
        Ok(found) => found.map_or_else(Known::default, |found| Known {
            checkpoint: found.value,
            revision: Some(found.revision),
            unstored_from: None,
        }),
        // Some revision, since there is one that must not be replaced.
        Err(error) if removed && error.code() == Code::Data => Known {
            revision: Some(0),
            ..Known::default()
        },
        Err(error) => return Err(obstacle(&error)),
    };
    let (log_id, after) = (known.checkpoint.log_id, known.checkpoint.position);
    let tail = context.ledger.tail(account.clone(), log_id, after).await;
    let tail = tail.ok_or(Obstacle::Passing)?;
    for (position, event) in &tail.events {
        fold(&mut known, tail.log_id, *position, event);
    }
    Ok(known)
}

fn obstacle(error: &BusError) -> Obstacle {
    match failure::of_checkpoint(error) {
        Some(failure) => Obstacle::Unreadable(failure),
        None => Obstacle::Passing,
    }
}

fn status(context: &Context, failure: Failure) -> Status {
    Status {
        health: Health::ActionNeeded,
        code: failure.code,
        sentence: failure.sentence,
        since_us: context.clock.now_us(),
        mode: "",
        last_arrival_us: 0,
    }
}

/// Counts an account for as long as it is held back.
struct HeldBack {
    code: &'static str,
    gauges: [Gauge; 2],
}

impl HeldBack {
    fn new(context: &Context, code: &'static str) -> Self {
        let metrics = &context.metrics;
        let gauges = [
            metrics.held_back(code),
            metrics.sessions(Health::ActionNeeded),
        ];
        for gauge in &gauges {
            gauge.inc();
        }
        Self { code, gauges }
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        for gauge in &self.gauges {
            gauge.dec();
        }
    }
}
