//! Mail that arrives all the time at several mailboxes, and how long each message took to each device.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mailbell_test_servers::Dovecot;
use mailbell_tests::{auditor::Seen, journal::Journal, load::message, world::SETTLE_LIMIT};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::subscribers::{Mailbox, Phone};

/// To each mailbox.
const EVERY: Duration = Duration::from_millis(400);

/// When something became of a message, by its number.
type Times = BTreeMap<u64, Instant>;

/// Numbers for messages, each given once.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(Arc<AtomicU64>);

impl Default for Numbers {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(1)))
    }
}

impl Numbers {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    /// The one that is given next.
    pub(crate) fn upcoming(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Mail to all mailboxes, followed on all devices.
#[derive(Debug)]
pub(crate) struct Load {
    stop: CancellationToken,
    /// One a mailbox.
    deliveries: Vec<JoinHandle<Times>>,
    devices: Vec<Follower>,
    connections: usize,
}

/// What one device is told.
#[derive(Debug)]
struct Follower {
    /// Of these mailboxes.
    mailboxes: Vec<usize>,
    told: watch::Receiver<Times>,
}

/// What became of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) messages: usize,
    /// From the delivery of a message until a device was told: the longest of any device, in which its longest gap is.
    pub(crate) longest: Duration,
    /// How often any device had connected before.
    pub(crate) connections: usize,
}

impl Load {
    pub(crate) fn start(
        dovecot: &Arc<Dovecot>,
        numbers: &Numbers,
        mailboxes: &[Mailbox],
        phones: &[Phone],
    ) -> Self {
        let stop = CancellationToken::new();
        let deliver = |mailbox: &Mailbox| {
            tokio::spawn(deliver(
                dovecot.clone(),
                mailbox.user.clone(),
                numbers.clone(),
                stop.clone(),
            ))
        };
        let deliveries = mailboxes.iter().map(deliver).collect();
        let follow = |phone: &Phone| {
            let (sender, told) = watch::channel(Times::new());
            tokio::spawn(follow(phone.device.follow(), sender));
            Follower {
                mailboxes: phone.mailboxes.clone(),
                told,
            }
        };
        Self {
            devices: phones.iter().map(follow).collect(),
            connections: connections(phones),
            deliveries,
            stop,
        }
    }

    /// Ends it, once all have been told.
    pub(crate) async fn stop(self) -> Outcome {
        self.stop.cancel();
        let mut delivered = Vec::new();
        for mailbox in self.deliveries {
            delivered.push(mailbox.await.unwrap());
        }
        let mut longest = Duration::ZERO;
        for mut device in self.devices {
            let of_device = device.mailboxes.iter().map(|n| &delivered[*n]);
            let sent: Vec<(&u64, &Instant)> = of_device.flatten().collect();
            let all = |told: &Times| sent.iter().all(|(number, _)| told.contains_key(number));
            let told = timeout(SETTLE_LIMIT, device.told.wait_for(all)).await;
            let told = told.expect("every message is told").unwrap();
            for (number, at) in sent {
                longest = longest.max(told[number].saturating_duration_since(*at));
            }
        }
        Outcome {
            messages: delivered.iter().map(BTreeMap::len).sum(),
            longest,
            connections: self.connections,
        }
    }
}

/// How often these have connected.
pub(crate) fn connections(phones: &[Phone]) -> usize {
    let of = |phone: &Phone| phone.device.journal().connections;
    phones.iter().map(of).sum()
}

async fn deliver(
    dovecot: Arc<Dovecot>,
    user: String,
    numbers: Numbers,
    stop: CancellationToken,
) -> Times {
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut delivered = Times::new();
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        let number = numbers.next();
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
