//! What one history is like: drawn from its seed, so that histories differ in kind and not only in luck.

use std::{sync::OnceLock, time::Duration};

use mailbell_core::{
    ids::{AccountId, Group, Tenant},
    session::Limits,
    timing::Timing,
};
use rand::{RngExt as _, rngs::SmallRng};
use ulid::Ulid;

use crate::{
    faults::Fault,
    world::{MS, S},
};

/// Where an account is: partitions and logs are numbered from 0 here.
pub(crate) struct Place {
    pub(crate) account: AccountId,
    pub(crate) partition: usize,
    pub(crate) log: usize,
    pub(crate) folders: &'static [&'static str],
}

/// How many partitions the model has.
pub(crate) const PARTITIONS: usize = 3;
/// How many names there are for watchers.
pub(crate) const MEMBERS: usize = 4;
/// How many logs the model has.
pub(crate) const LOGS: usize = 2;
/// Which log a partition is in.
pub(crate) const LOG_OF: [usize; PARTITIONS] = [0, 0, 1];

/// Two accounts of one partition, a third in the same log, a fourth of another tenant in another log.
pub(crate) fn places() -> &'static [Place] {
    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let one: Tenant = "one".parse().unwrap();
        let two: Tenant = "two".parse().unwrap();
        let ids = |tenant: &Tenant| {
            let tenant = tenant.clone();
            (0..).map(move |n| AccountId::new(tenant.clone(), Ulid::from_parts(n, 7)))
        };
        let first = ids(&one).next().unwrap();
        let home = first.partition();
        let second = ids(&one).skip(1).find(|id| id.partition() == home).unwrap();
        let third = ids(&one)
            .find(|id| id.group() == home.group() && id.partition() != home)
            .unwrap();
        let fourth = ids(&two).find(|id| id.group() != home.group()).unwrap();
        let place = |account, partition, folders| Place {
            account,
            partition,
            log: LOG_OF[partition],
            folders,
        };
        vec![
            place(first, 0, &["INBOX", "Work"][..]),
            place(second, 0, &["INBOX"][..]),
            place(third, 1, &["INBOX"][..]),
            place(fourth, 2, &["INBOX", "Work"][..]),
        ]
    })
}

/// The real group behind a log of the model.
pub(crate) fn group(log: usize) -> Group {
    let place = places().iter().find(|place| place.log == log);
    place.unwrap().account.group()
}

/// See the module.
pub(crate) struct Scenario {
    pub(crate) chaos_lasts: Duration,
    /// Mean time between faults.
    pub(crate) pace: Duration,
    pub(crate) faults: Vec<(Fault, u32)>,
    pub(crate) slow: f64,
    pub(crate) ack_lost: f64,
    pub(crate) ack_late: f64,
    pub(crate) doubled: f64,
    pub(crate) mail_fails: f64,
    pub(crate) store_unsure: f64,
    /// How far replicas may lag.
    pub(crate) lag: Duration,
    pub(crate) log_age: Duration,
    /// Watchers at the beginning, and all their names.
    pub(crate) members: usize,
    pub(crate) names: [String; MEMBERS],
    /// Weights of watchers, and how many of all partitions they take at most (0: no limit): each has one of each.
    pub(crate) weights: &'static [u32],
    pub(crate) rooms: &'static [u32],
    /// How many partitions a watcher gives away at once, and how many accounts may wait with one that is given any.
    pub(crate) giving: usize,
    pub(crate) backlog: u32,
    /// Whether a key that ages out leaves a marker.
    pub(crate) markers: bool,
    /// How far two clocks may differ: each is up to half of it behind the true time, or ahead.
    pub(crate) skew: Duration,
    pub(crate) window: usize,
    pub(crate) queue: usize,
    pub(crate) batch: usize,
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
}

impl Scenario {
    pub(crate) fn draw(rng: &mut SmallRng) -> Self {
        let rare = |rng: &mut SmallRng, most: f64| match rng.random_range(0..3) {
            0 => 0.0,
            1 => most / 10.0,
            _ => most,
        };
        let faults = Fault::ALL
            .iter()
            .map(|(fault, weight)| (*fault, weight * [0, 1, 1, 3][rng.random_range(0..4)]))
            .collect();
        let log_age = [40 * S, 120 * S, 3600 * S][rng.random_range(0..3)];
        // How far clocks differ, and what must be longer: how long a key of LIVE lives, and for how long a gap stays open, which may be
        // counted by two of them.
        let (skew, live_age, hole_age) = [
            (2 * S, 12 * S, 20 * S),
            (8 * S, 12 * S, 20 * S),
            (100 * S, 300 * S, 120 * S),
        ][rng.random_range(0..3)];
        let timing = Timing {
            duplicate_window: 30 * S,
            blind_retry: 24 * S,
            ack_timeout: S,
            log_age,
            tombstone_age: 2 * log_age,
            checkpoint_delay: [300 * MS, S, 4 * S][rng.random_range(0..3)],
            claim_refresh: 3 * S,
            live_age,
            member_renew: S,
            member_dead: 4 * S,
            take_back: 15 * S,
            heartbeat: 5 * S,
            cursor_delay: 300 * MS,
            drain_window: 2 * S,
        };
        timing.check().unwrap();
        let limits = Limits {
            flood: 8,
            page: 4,
            hole_age,
            unread_age: 30 * S,
            sweep: 10 * S,
            idle: 60 * S,
            poll_least: S,
            poll_most: 15 * S,
            poll_handshakes: 10,
            tell_after: 3 * S,
            permanent_retry: 20 * S,
            alert_margin: 600 * S,
            reconnect_first: 500 * MS,
            reconnect_most: 10 * S,
            append_most: 3 * S,
        };
        Self {
            chaos_lasts: rng.random_range(30 * S..120 * S),
            pace: [200 * MS, S, 4 * S][rng.random_range(0..3)],
            faults,
            slow: rare(rng, 0.05),
            ack_lost: rare(rng, 0.2),
            ack_late: rare(rng, 0.1),
            doubled: rare(rng, 0.1),
            mail_fails: rare(rng, 0.03),
            store_unsure: rare(rng, 0.1),
            lag: [5 * MS, 300 * MS, 5 * S][rng.random_range(0..3)],
            log_age,
            members: rng.random_range(1..=3),
            names: std::array::from_fn(|name| format!("w{name}-{}", rng.random_range(0..3))),
            weights: [&[100][..], &[100], &[50, 100, 400]][rng.random_range(0..3)],
            rooms: [&[0][..], &[0], &[0, 400, 700], &[200, 300, 500]][rng.random_range(0..4)],
            giving: [1, 32][rng.random_range(0..2)],
            backlog: [0, 500][rng.random_range(0..2)],
            markers: rng.random_bool(0.5),
            skew,
            window: [0, 3, 50][rng.random_range(0..3)],
            queue: [6, 12, 60][rng.random_range(0..3)],
            batch: [2, 5, 50][rng.random_range(0..3)],
            limits,
            timing,
        }
    }
}
