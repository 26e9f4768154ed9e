//! Mail that arrives all the time, and how long each message took to a device.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use mailbell_test_servers::Dovecot;
use mailbell_tests::{
    auditor::Seen, device::Device, journal::Journal, load::message, world::SETTLE_LIMIT,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

const EVERY: Duration = Duration::from_millis(200);

/// When something became of a message, by its number.
type Times = BTreeMap<u64, Instant>;

/// Mail to one mailbox, followed on one device.
#[derive(Debug)]
pub(crate) struct Load {
    stop: CancellationToken,
    deliveries: JoinHandle<Times>,
    told: watch::Receiver<Times>,
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) messages: usize,
    /// From the delivery of a message until the device was told: the longest, in which the device's longest gap is.
    pub(crate) longest: Duration,
}

impl Load {
    /// Delivers messages of these numbers.
    pub(crate) fn start(
        dovecot: Arc<Dovecot>,
        user: String,
        numbers: impl Iterator<Item = u64> + Send + 'static,
        device: &Device,
    ) -> Self {
        let stop = CancellationToken::new();
        let deliveries = tokio::spawn(deliver(dovecot, user, numbers, stop.clone()));
        let (sender, told) = watch::channel(Times::new());
        tokio::spawn(follow(device.follow(), sender));
        Self {
            stop,
            deliveries,
            told,
        }
    }

    /// Ends it, once all have been told.
    pub(crate) async fn stop(mut self) -> Outcome {
        self.stop.cancel();
        let delivered = self.deliveries.await.unwrap();
        let all = |told: &Times| delivered.keys().all(|number| told.contains_key(number));
        let told = timeout(SETTLE_LIMIT, self.told.wait_for(all)).await;
        let told = told.expect("every message is told").unwrap();
        let took = |(number, at): (&u64, &Instant)| told[number].saturating_duration_since(*at);
        Outcome {
            messages: delivered.len(),
            longest: delivered.iter().map(took).max().unwrap_or_default(),
        }
    }
}

async fn deliver(
    dovecot: Arc<Dovecot>,
    user: String,
    mut numbers: impl Iterator<Item = u64>,
    stop: CancellationToken,
) -> Times {
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut delivered = Times::new();
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        let number = numbers.next().unwrap();
        let done = dovecot.deliver_lmtp(&user, &message(number)).await;
        done.unwrap();
        delivered.insert(number, Instant::now());
    }
    delivered
}

/// Until nobody asks any more, or the device is gone.
async fn follow(mut journal: watch::Receiver<Journal>, told: watch::Sender<Times>) {
    let mut read = 0;
    while !told.is_closed() {
        let now = Instant::now();
        let new: Vec<u64> = {
            let journal = journal.borrow_and_update();
            let new = journal.seen[read..].iter().flat_map(numbers);
            let new = new.collect();
            read = journal.seen.len();
            new
        };
        told.send_modify(|told| {
            for number in new {
                told.entry(number).or_insert(now);
            }
        });
        if journal.changed().await.is_err() {
            return;
        }
    }
}

fn numbers(fact: &Seen) -> Vec<u64> {
    match fact {
        Seen::Arrived { mail, .. } => vec![mail.number],
        Seen::Replaced { mail, .. } => mail.iter().map(|mail| mail.number).collect(),
        Seen::Gone { .. } => Vec::new(),
    }
}
