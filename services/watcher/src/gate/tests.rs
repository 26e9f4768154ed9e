//! Waiting, on a paused clock.

use mailbell_core::pace::Cause;
use tokio::time::timeout;

use super::*;

const RATES: Rates = Rates {
    connects: 1000,
    host_connects: 100,
    host_logins: 10,
    handshakes: 16,
};
const MINUTE: Duration = Duration::from_secs(60);

fn account(number: usize) -> AccountId {
    format!("default.{:026}", number).parse().unwrap()
}

fn start() -> Urgency {
    Urgency::new(Cause::Start, 0)
}

fn gate() -> Gate {
    Gate::new(RATES, Metrics::default())
}

impl Gate {
    async fn pass(&self, host: &str, number: usize) -> Turn {
        self.enter(host, &account(number), start()).turn().await
    }

    async fn use_it(&self, host: &str, number: usize, outcome: Outcome) {
        let mut turn = self.pass(host, number).await;
        turn.begin();
        turn.end(outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn one_host_does_not_hold_up_another() {
    let gate = gate();
    let begun = Instant::now();
    for number in 0..12 {
        gate.use_it("a", number, Outcome::Answered).await;
    }
    // Without a burst to begin with: one at once, then one every 100 ms.
    assert_eq!(begun.elapsed().as_millis() / 100, 11);
    let begun = Instant::now();
    gate.use_it("b", 1, Outcome::Answered).await;
    assert!(begun.elapsed() < Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn names_of_hosts_are_one_in_any_case() {
    let gate = gate();
    gate.use_it("Mail.Example", 1, Outcome::Answered).await;
    let second = gate.use_it("mail.example", 2, Outcome::Answered);
    assert!(timeout(Duration::from_millis(50), second).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn handshakes_are_bounded_and_a_place_is_given_on() {
    let gate = Gate::new(
        Rates {
            handshakes: 1,
            ..RATES
        },
        Metrics::default(),
    );
    let first = gate.pass("a", 1).await;
    assert!(timeout(MINUTE, gate.pass("b", 2)).await.is_err());
    let mut second = gate.enter("b", &account(2), start());
    assert_eq!(gate.counts().handshake, 1);
    drop(first);
    // Its turn has come; it goes away without having looked.
    let third = gate.enter("a", &account(3), start());
    drop(second);
    second = third;
    assert!(timeout(MINUTE, second.turn()).await.is_ok());
    assert_eq!(gate.counts(), Counts::default());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_is_forgotten() {
    let gate = gate();
    let _first = gate.pass("a", 0).await;
    let waiting: Vec<_> = (0..1000)
        .map(|number| gate.enter("a", &account(number), start()))
        .collect();
    assert_eq!(gate.counts().pace, 1000);
    for one in waiting {
        tokio::select! {
            biased;
            _ = one.heard() => panic!("there is no token"),
            () = std::future::ready(()) => {}
        }
    }
    assert_eq!(gate.counts(), Counts::default());
    assert!(gate.inner.state().waiting.is_empty());
    // Nobody has used a token meanwhile.
    assert!(timeout(MINUTE, gate.pass("a", 5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_greater_share_counts_at_once_for_those_who_wait() {
    let gate = gate();
    gate.share(0.0);
    gate.use_it("a", 0, Outcome::Answered).await;
    let begun = Instant::now();
    let mut waiting = std::pin::pin!(gate.pass("a", 1));
    assert!(
        timeout(Duration::from_secs(10), &mut waiting)
            .await
            .is_err()
    );
    gate.share(0.5);
    assert!(timeout(Duration::from_millis(250), waiting).await.is_ok());
    assert!(begun.elapsed() < Duration::from_millis(10_300));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_host_that_fails_hears_of_it_once_and_goes_when_it_works() {
    let metrics = Metrics::default();
    let gate = Gate::new(RATES, metrics.clone());
    for number in 0..4 {
        gate.use_it("a", number, Outcome::Unreachable).await;
    }
    let mut last = gate.pass("a", 4).await;
    let before = gate.enter("a", &account(5), start());
    last.begin();
    last.end(Outcome::Failing);
    let after = gate.enter("a", &account(6), start());
    let counts = gate.counts();
    assert_eq!((counts.circuit, counts.open_circuits), (2, 1));
    assert_eq!(metrics.waiting_for("circuit"), 2);
    let (Heard::Held(before), Heard::Held(after)) = (before.heard().await, after.heard().await)
    else {
        panic!("nobody said that it may take long");
    };
    let Ok(Heard::Turn(mut probe)) = timeout(MINUTE, before.heard()).await else {
        panic!("told twice, or never probed");
    };
    let mut after = std::pin::pin!(after.heard());
    assert!(timeout(MINUTE, &mut after).await.is_err(), "two probes");
    probe.begin();
    probe.end(Outcome::Answered);
    let Ok(Heard::Turn(_)) = timeout(MINUTE, after).await else {
        panic!("the host works, and it waits on");
    };
    assert_eq!(gate.counts().open_circuits, 0);
    assert_eq!(metrics.waiting_for("circuit"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_one_host_counts_at_once_for_who_waits() {
    let gate = gate();
    let with = |logins| {
        let limits = HostLimits {
            logins_per_second: Some(logins),
            ..HostLimits::default()
        };
        let mut hosts = Hosts::default();
        hosts.insert("*.slow.test", limits);
        hosts
    };
    // One in 20 s, which is the least.
    gate.hosts(with(1));
    gate.share(0.05);
    gate.use_it("imap.Slow.test", 1, Outcome::Answered).await;
    let begun = Instant::now();
    let second = gate.use_it("imap.slow.test", 2, Outcome::Answered);
    let more = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        gate.hosts(with(100));
    };
    tokio::join!(second, more);
    let waited = begun.elapsed();
    assert!(
        waited >= Duration::from_secs(1) && waited < Duration::from_secs(2),
        "{waited:?}"
    );
}
