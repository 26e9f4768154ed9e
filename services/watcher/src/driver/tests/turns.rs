//! Sessions that wait for their turn with a mail host, and what their logins say of it.

use super::*;

#[tokio::test(start_paused = true)]
async fn behind_a_host_that_fails_for_many_it_waits_and_says_so() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    let gate = &bench.context.gate;
    let turn = async |number: usize| {
        let other = format!("default.{number:026}").parse().unwrap();
        let urgency = Urgency::new(Cause::Asked, 0);
        let mut turn = gate.enter("mail.test", &other, urgency).turn().await;
        turn.begin();
        turn
    };
    for number in 0..5 {
        turn(number).await.end(Outcome::Unreachable);
    }
    let probe = turn(5).await;
    bench.server.break_connections();
    let shown = bench.log.until_shown(Health::Retrying, "host-unavailable");
    shown.await;
    let error = bench.list(newest(1)).await.unwrap().unwrap_err();
    assert_eq!((error.code.as_str(), error.retry), ("not-connected", true));
    assert_eq!(bench.server.look(|mailbox| mailbox.logins), 1);
    probe.end(Outcome::Answered);
    bench.idling().await;
    bench.log.until_shown(Health::Watching, "watching").await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_first_turn_counts_as_waiting_and_not_as_starting() {
    let bench = Bench::new(&[1]);
    let counts = Arc::new(slot::Counts::default());
    bench.slot.count_in(Some(Arc::clone(&counts)));
    let starting = || counts.starting.load(Ordering::Relaxed);
    assert_eq!(starting(), 1);
    // All handshakes with one host that there are at once.
    let gate = &bench.context.gate;
    let mut turns = Vec::new();
    for number in 0..RATES.handshakes / 4 {
        let other = format!("default.{number:026}").parse().unwrap();
        let urgency = Urgency::new(Cause::Asked, 0);
        turns.push(gate.enter("mail.test", &other, urgency).turn().await);
    }
    while gate.counts().handshake == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(starting(), 0);
    bench.server.change(|mailbox| mailbox.mute_after = Some(0));
    turns.clear();
    let said = |mailbox: &Mailbox| !mailbox.commands.is_empty();
    bench.server.until(said).await;
    assert_eq!(starting(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_password_says_nothing_of_the_host() {
    let server = Server::new(&[1]);
    server.change(|mailbox| mailbox.refuse = true);
    let log = MemoryLog::new();
    log.with(|state| state.checkpoint = Some((watching(2), 1)));
    let bench = Bench::start(server, log);
    let shown = bench
        .log
        .until_shown(Health::ActionNeeded, "bad-credentials");
    shown.await;
    tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
    assert_eq!(bench.context.gate.counts(), Counts::default());
}

#[tokio::test(start_paused = true)]
async fn who_is_asked_to_hurry_logs_in_at_once_and_shows_its_last_mail() {
    let server = Server::new(&[1]);
    server.change(|mailbox| mailbox.refuse = true);
    let log = MemoryLog::new();
    log.with(|state| {
        let known = Checkpoint {
            last_arrival_us: 7_000_000,
            ..watching(2)
        };
        state.checkpoint = Some((known, 1));
    });
    let bench = Bench::start(server, log);
    let shown = bench
        .log
        .until_shown(Health::ActionNeeded, "bad-credentials");
    shown.await;
    // It works again, and nobody changed anything here: it would find out by itself in a while.
    bench.server.change(|mailbox| mailbox.refuse = false);
    let since = Instant::now();
    bench.slot.hurry();
    bench.server.until(|mailbox| mailbox.logins == 1).await;
    assert!(since.elapsed() < Duration::from_secs(1));
    bench.log.until_shown(Health::Watching, "watching").await;
    let last = bench.log.with(|state| state.statuses.last().cloned());
    assert_eq!(last.unwrap().1.last_arrival_ms, 7_000);
}
