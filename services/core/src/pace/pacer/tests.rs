//! Who goes when, and that nobody is forgotten.

use std::collections::HashMap;

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::SmallRng};

use super::*;
use crate::pace::Cause;

const RATES: Rates = Rates {
    connects: 1000,
    host_connects: 20,
    host_logins: 10,
    handshakes: 256,
};

/// Drives a pacer, and answers each that goes as the host does.
struct World {
    pacer: Pacer,
    rng: SmallRng,
    now: Duration,
    news: Vec<News>,
    account: u64,
}

impl World {
    fn new(rates: Rates) -> Self {
        Self {
            pacer: Pacer::new(rates, Duration::ZERO),
            rng: SmallRng::seed_from_u64(1),
            now: Duration::ZERO,
            news: Vec::new(),
            account: 0,
        }
    }

    fn enter(&mut self, host: &str, cause: Cause, active_us: i64) -> Ticket {
        self.account += 1;
        let urgency = Urgency::new(cause, active_us);
        self.pacer
            .enter(host, self.account, urgency, self.now, &mut self.news)
    }

    fn enter_many(&mut self, host: &str, count: usize) -> Vec<Ticket> {
        (0..count)
            .map(|_| self.enter(host, Cause::Start, 0))
            .collect()
    }

    fn done(&mut self, ticket: Ticket, outcome: Outcome) {
        self.pacer
            .done(ticket, outcome, self.now, &mut self.rng, &mut self.news);
    }

    /// Who may go now.
    fn poll(&mut self) -> Vec<Ticket> {
        self.pacer.poll(self.now, &mut self.news);
        let (gone, held): (Vec<_>, Vec<_>) = std::mem::take(&mut self.news)
            .into_iter()
            .partition(|news| matches!(news, News::Go(_)));
        self.news = held;
        gone.into_iter()
            .map(|news| match news {
                News::Go(ticket) | News::Held(ticket) => ticket,
            })
            .collect()
    }

    /// Goes on to `end`; everybody is answered with `outcome` at once.
    fn run(&mut self, end: Duration, outcome: Outcome) -> Vec<(Duration, Ticket)> {
        let mut all = Vec::new();
        loop {
            for ticket in self.poll() {
                all.push((self.now, ticket));
                self.done(ticket, outcome);
            }
            match self.pacer.next_at(self.now) {
                Some(at) if at <= end => self.now = at,
                _ => break,
            }
        }
        self.now = end;
        all
    }

    fn seconds(&mut self, seconds: u64, outcome: Outcome) -> usize {
        let end = self.now + Duration::from_secs(seconds);
        self.run(end, outcome).len()
    }

    fn held(&mut self) -> usize {
        std::mem::take(&mut self.news).len()
    }
}

#[test]
fn the_stricter_of_both_rates_holds_and_each_host_has_its_own() {
    let mut world = World::new(RATES);
    world.enter_many("a", 1000);
    assert_eq!(world.seconds(10, Outcome::Answered), 101);
    world.enter("b", Cause::Start, 0);
    assert_eq!(world.poll().len(), 1);
}

#[test]
fn a_connection_that_never_came_to_a_login_costs_none() {
    let mut world = World::new(RATES);
    // Too few accounts to say anything about the host.
    for _ in 0..300 {
        let urgency = Urgency::new(Cause::Start, 0);
        world
            .pacer
            .enter("a", 1, urgency, world.now, &mut world.news);
    }
    let gone = world.seconds(10, Outcome::Unreachable);
    assert!((200..=205).contains(&gone), "{gone}");
}

#[test]
fn the_share_scales_the_rate_at_once_and_never_to_nothing() {
    let mut world = World::new(RATES);
    world.enter_many("a", 5000);
    assert_eq!(world.seconds(10, Outcome::Answered), 101);
    world.pacer.set_share(0.1, world.now);
    let gone = world.seconds(10, Outcome::Answered);
    assert!((10..=12).contains(&gone), "{gone}");
    world.pacer.set_share(0.0, world.now);
    let gone = world.seconds(200, Outcome::Answered);
    assert!((10..=11).contains(&gone), "{gone}");
    // Who waits for the token of the low rate hears of the higher one.
    world.pacer.set_share(1.0, world.now);
    assert!(world.seconds(10, Outcome::Answered) >= 100);
}

/// These hosts have these limits.
fn hosts(name: &str, own: HostLimits) -> Hosts<HostLimits> {
    let mut all = Hosts::default();
    all.insert(name, own);
    all
}

#[test]
fn a_host_with_limits_of_its_own_has_these_at_once_and_its_share_of_them() {
    let mut world = World::new(RATES);
    let logins = |logins| HostLimits {
        logins_per_second: Some(logins),
        ..HostLimits::default()
    };
    world.enter_many("mail.slow.test", 5000);
    world.enter_many("a", 5000);
    assert_eq!(world.seconds(10, Outcome::Answered), 202);
    // Who waits for the token of the one rate hears of the other.
    let slow = hosts("*.slow.test", logins(1));
    world.pacer.set_hosts(slow, world.now);
    let gone = world.seconds(10, Outcome::Answered);
    assert!((108..=112).contains(&gone), "{gone}");
    // A host that comes later has them from the start, and takes nothing from one beside it.
    world.enter_many("other.slow.test", 5000);
    let gone = world.seconds(10, Outcome::Answered);
    assert!((118..=122).contains(&gone), "{gone}");
    // The stricter of both rates holds: 20 connects a second are left.
    let fast = hosts("*.slow.test", logins(1000));
    world.pacer.set_hosts(fast, world.now);
    let gone = world.seconds(10, Outcome::Answered);
    assert!((495..=512).contains(&gone), "{gone}");
    world.pacer.set_share(0.1, world.now);
    let gone = world.seconds(10, Outcome::Answered);
    assert!((45..=60).contains(&gone), "{gone}");
    world.pacer.set_share(1.0, world.now);
    world.pacer.set_hosts(Hosts::default(), world.now);
    let gone = world.seconds(10, Outcome::Answered);
    assert!((295..=310).contains(&gone), "{gone}");
}

#[test]
fn a_host_may_have_more_or_fewer_handshakes_than_others() {
    let mut world = World::new(Rates {
        host_connects: 1000,
        host_logins: 1000,
        handshakes: 16,
        ..RATES
    });
    world.enter_many("slow", 100);
    let mut hanging = 0;
    let mut hang = |world: &mut World, connections| {
        let own = HostLimits {
            connections: Some(connections),
            ..HostLimits::default()
        };
        world.pacer.set_hosts(hosts("slow", own), world.now);
        for _ in 0..20 {
            hanging += world.poll().len();
            world.now += Duration::from_millis(50);
        }
        hanging
    };
    assert_eq!(hang(&mut world, 2), 2);
    assert_eq!(hang(&mut world, 9), 9);
    // Those that hang already are not cut off.
    assert_eq!(hang(&mut world, 1), 9);
    // No host has more than there are.
    assert_eq!(hang(&mut world, 10_000), 16);
    assert_eq!(world.pacer.counts().handshake, 84);
}

#[test]
fn people_then_running_sessions_then_the_recently_active() {
    let mut world = World::new(RATES);
    world.enter("a", Cause::Start, 0);
    world.poll();
    let old = world.enter("a", Cause::Start, 1);
    let also_old = world.enter("a", Cause::Start, 1);
    let young = world.enter("a", Cause::Start, 2);
    let running = world.enter("a", Cause::Reconnect, 0);
    let asked = world.enter("a", Cause::Asked, 0);
    let gone = world.run(Duration::from_secs(2), Outcome::Answered);
    let order: Vec<Ticket> = gone.into_iter().map(|(_, ticket)| ticket).collect();
    assert_eq!(order, [asked, running, young, old, also_old]);
}

#[test]
fn the_least_urgent_comes_to_its_turn_beside_others_without_end() {
    let mut world = World::new(RATES);
    let last = world.enter("a", Cause::Start, 0);
    let mut turns = 0;
    loop {
        world.enter("a", Cause::Reconnect, 5);
        world.enter("a", Cause::Reconnect, 5);
        world.now += Duration::from_millis(100);
        let gone = world.poll();
        turns += gone.len();
        for ticket in &gone {
            world.done(*ticket, Outcome::Answered);
        }
        if gone.contains(&last) {
            break;
        }
        assert!(turns < 20, "it starves");
    }
}

#[test]
fn a_slow_host_holds_a_quarter_of_the_handshakes() {
    let mut world = World::new(Rates {
        host_connects: 1000,
        host_logins: 1000,
        handshakes: 16,
        ..RATES
    });
    world.enter_many("slow", 100);
    let mut hanging = Vec::new();
    for _ in 0..100 {
        world.now += Duration::from_millis(50);
        hanging.extend(world.poll());
    }
    assert_eq!(hanging.len(), 4);
    assert_eq!(world.pacer.counts().handshake, 96);
    world.enter("other", Cause::Start, 0);
    assert_eq!(world.poll().len(), 1);
    world.done(hanging[0], Outcome::Failing);
    assert_eq!(world.poll().len(), 1);
}

#[test]
fn who_goes_away_leaves_place_and_token() {
    let mut world = World::new(RATES);
    let [first, second, third] = world.enter_many("a", 3)[..] else {
        unreachable!()
    };
    assert_eq!(world.poll(), [first]);
    // Its turn had come, and nobody noticed.
    let mut news = Vec::new();
    world
        .pacer
        .leave(first, world.now, &mut world.rng, &mut news);
    assert_eq!(world.poll(), [second]);
    world
        .pacer
        .leave(third, world.now, &mut world.rng, &mut news);
    world
        .pacer
        .leave(third, world.now, &mut world.rng, &mut news);
    assert_eq!(world.pacer.counts(), Counts::default());
    assert_eq!(world.pacer.next_at(world.now), None);
}

#[test]
fn a_host_that_fails_for_many_is_probed_and_comes_back_slowly() {
    let mut world = World::new(RATES);
    world.enter_many("a", 500);
    world.seconds(60, Outcome::Failing);
    let counts = world.pacer.counts();
    assert_eq!((counts.open_circuits, counts.pace), (1, 0));
    assert!(counts.circuit > 470, "only probes went: {counts:?}");
    assert!(world.held() >= 490, "all that wait are told");
    world.enter("a", Cause::Start, 0);
    assert_eq!(world.held(), 1, "who comes later too");
    // It works again.
    let began = world.now;
    let gone = world.run(began + Duration::from_secs(180), Outcome::Answered);
    let first = gone.first().unwrap().0;
    assert!(first - began <= Duration::from_secs(60));
    let within = |from: u64, to: u64| {
        let range = first + Duration::from_secs(from)..first + Duration::from_secs(to);
        gone.iter().filter(|(at, _)| range.contains(at)).count()
    };
    assert!(within(0, 1) <= 2, "a slow start: {}", within(0, 1));
    assert!(
        within(25, 26) >= 9,
        "then the full rate: {}",
        within(25, 26)
    );
    assert_eq!(world.pacer.counts().open_circuits, 0);
}

#[test]
fn too_many_connections_lower_the_rate_and_open_nothing() {
    let mut world = World::new(RATES);
    world.enter_many("a", 5000);
    let before = world.seconds(10, Outcome::Answered);
    world.seconds(12, Outcome::Throttled);
    let after = world.seconds(10, Outcome::Answered);
    assert!(after * 3 < before, "{before}, then {after}");
    assert_eq!(world.pacer.counts().open_circuits, 0);
    world.seconds(320, Outcome::Answered);
    assert!(world.seconds(10, Outcome::Answered) >= 100);
}

#[test]
fn hosts_at_rest_are_forgotten() {
    let mut world = World::new(Rates {
        connects: 1_000_000,
        ..RATES
    });
    for number in 0..3 * MAX_HOSTS {
        world.now += Duration::from_millis(1);
        world.enter(&number.to_string(), Cause::Start, 0);
        for ticket in world.poll() {
            world.done(ticket, Outcome::Answered);
        }
        assert!(world.pacer.hosts() <= MAX_HOSTS + 1);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Enter(u8, u8),
    Leave(usize),
    Done(usize, Outcome),
    Wait(u64),
    Share(f64),
    Own(u8, u32, u32),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop::sample::select(vec![
        Outcome::Answered,
        Outcome::Throttled,
        Outcome::Unreachable,
        Outcome::Failing,
        Outcome::Unknown,
        Outcome::Unused,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 0u8..4).prop_map(|(host, active)| Step::Enter(host, active)),
        1 => any::<usize>().prop_map(Step::Leave),
        3 => (any::<usize>(), outcome()).prop_map(|(which, outcome)| Step::Done(which, outcome)),
        3 => (0u64..3000).prop_map(Step::Wait),
        1 => (0.0f64..1.0).prop_map(Step::Share),
        1 => (0u8..3, 1u32..=20, 1u32..=2).prop_map(|(host, rate, most)| Step::Own(host, rate, most)),
    ]
}

proptest! {
    #[test]
    fn nobody_is_forgotten_and_no_bound_is_broken(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new(Rates { handshakes: 8, ..RATES });
        let mut waiting: HashMap<Ticket, u8> = HashMap::new();
        let mut flying: Vec<(Ticket, u8)> = Vec::new();
        // Tokens of a host that went and were not given back.
        let mut used = [0u32; 3];
        // The one host that has limits of its own, and its connections.
        let mut own = None;
        for step in steps {
            match step {
                Step::Enter(host, active) => {
                    let ticket = world.enter(&host.to_string(), Cause::Start, active.into());
                    waiting.insert(ticket, host);
                }
                Step::Leave(which) if !waiting.is_empty() => {
                    let mut tickets: Vec<_> = waiting.keys().copied().collect();
                    tickets.sort_unstable();
                    let ticket = tickets[which % tickets.len()];
                    waiting.remove(&ticket);
                    world.pacer.leave(ticket, world.now, &mut world.rng, &mut world.news);
                }
                Step::Done(which, outcome) if !flying.is_empty() => {
                    let (ticket, host) = flying.swap_remove(which % flying.len());
                    if outcome == Outcome::Unused {
                        used[usize::from(host)] -= 1;
                    }
                    world.done(ticket, outcome);
                }
                Step::Wait(millis) => world.now += Duration::from_millis(millis),
                Step::Share(share) => world.pacer.set_share(share, world.now),
                Step::Own(host, rate, most) => {
                    let limits = HostLimits {
                        connects_per_second: Some(rate),
                        logins_per_second: Some(rate),
                        connections: Some(most),
                    };
                    world.pacer.set_hosts(hosts(&host.to_string(), limits), world.now);
                    own = Some((host, most));
                }
                Step::Leave(_) | Step::Done(..) => {}
            }
            let gone = world.poll();
            let went: Vec<u8> = gone.iter().map(|ticket| waiting.get(ticket).copied().unwrap_or(9)).collect();
            for ticket in gone {
                let host = waiting.remove(&ticket);
                prop_assert!(host.is_some(), "somebody went who did not wait");
                let host = host.unwrap_or_default();
                flying.push((ticket, host));
                used[usize::from(host)] += 1;
            }
            let counts = world.pacer.counts();
            prop_assert_eq!(counts.pace + counts.circuit + counts.handshake, waiting.len());
            prop_assert!(flying.len() <= 8);
            for host in 0..3u8 {
                let hanging = flying.iter().filter(|(_, of)| *of == host).count();
                prop_assert!(hanging <= 2);
                if let Some((_, most)) = own.filter(|(of, _)| *of == host && went.contains(of)) {
                    prop_assert!(hanging <= usize::try_from(most).unwrap_or_default());
                }
                // Of connects: 20 a second, and a burst of a fifth of that.
                let most = 5.0 + 20.0 * world.now.as_secs_f64();
                prop_assert!(f64::from(used[usize::from(host)]) <= most);
            }
            if let Some(at) = world.pacer.next_at(world.now) {
                prop_assert!(at >= world.now);
            }
        }
        // The hosts work, and nobody new comes.
        for (ticket, _) in flying {
            world.done(ticket, Outcome::Answered);
        }
        let left = waiting.len();
        let end = world.now + Duration::from_secs(3600 * 24);
        prop_assert_eq!(world.run(end, Outcome::Answered).len(), left);
        prop_assert_eq!(world.pacer.counts().pace, 0);
    }
}
