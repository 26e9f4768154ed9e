//! Watchers that fail.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use mailbell_test_servers::{NatsOptions, NatsServer, proxy::Mode, synthetic::SessionRecord};
use mailbell_tests::{
    clock,
    installation::Part,
    journal::Journal,
    process::until,
    sessions::Fault,
    sharing::{ALONE, NO_MAIL, SOON, Scene, SceneOptions},
};

use super::{W, asked, board, finish, finish_after, nats_server, row, scene};

/// [`ALONE`] where one watcher logs two thousand accounts in, built without optimisation.
const THOUSANDS: Duration = Duration::from_secs(120);

/// A server that takes a client for dead within nine seconds, which is less than the detection of a dead watcher takes.
const IMPATIENT: &str = "ping_interval: \"3s\"\nping_max: 2\n";

/// The connections of a watcher that NATS has or had: why each was closed, if it was.
async fn connections(nats: &NatsServer, watcher: Part, state: &str) -> Vec<String> {
    let name = watcher.to_string();
    let its = nats.connections(state, |word| word == name).await.unwrap();
    let its = its.iter();
    its.map(|connection| connection["reason"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Waits until somebody else has a session of every mailbox too, or alone.
async fn others_have_all(scene: &Scene, away: &[Part]) {
    let away: Vec<String> = away.iter().map(Part::to_string).collect();
    until(SOON, "the others to take over", || async {
        let held = scene.crowd.server.held();
        held.len() == scene.crowd.accounts.len()
            && held.values().all(|holders| {
                holders
                    .iter()
                    .any(|holder| !away.contains(&holder.to_string()))
            })
    })
    .await
    .unwrap();
}

/// Lets all logs forget what they were given sooner than any detection takes.
async fn shorten_duplicate_windows(url: &str) {
    let jetstream = async_nats::jetstream::new(async_nats::connect(url).await.unwrap());
    let mut streams = jetstream.streams();
    let mut logs = 0;
    while let Some(stream) = streams.next().await {
        let mut config = stream.unwrap().config;
        if config.name.contains("LOG") {
            config.duplicate_window = Duration::from_secs(1);
            jetstream.update_stream(config).await.unwrap();
            logs += 1;
        }
    }
    assert!(logs > 0);
}

/// Waits until nobody has a session by the way of a watcher.
async fn holds_nothing(scene: &Scene, watcher: Part) {
    let name = watcher.to_string();
    until(SOON, "the end of its sessions", || async {
        !scene.crowd.shares().contains_key(&name)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_accounts_of_one_that_is_killed_are_watched_again() {
    let (_nats, mut scene) = scene().await;
    let requests = scene.crowd.requests().await.unwrap();
    let begin = Instant::now();
    scene.kill(W[2]);
    scene.shared_by(&W[..2]).await.unwrap();
    println!("killed: all watched again after {:?}", begin.elapsed());
    let asked = asked("one killed", &scene, requests).await;
    // Nobody owns what it had for twelve seconds.
    assert!(asked.listings.refusals > 0, "{asked:?}");
    finish("one killed", scene, ALONE).await;
}

/// As many as a small installation has, at one mail host that lets many in: one watcher dies while another is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_accounts_are_taken_over_by_one() {
    let nats = nats_server().await;
    let rates = ["MAILBELL_LOGINS_PER_HOST", "MAILBELL_CONNECTS_PER_HOST"];
    let options = SceneOptions {
        users: 3000,
        a_second: 50,
        env: rates
            .map(|name| (name.to_owned(), "1000".to_owned()))
            .to_vec(),
        ..SceneOptions::new(nats.url())
    };
    let mut scene = Scene::start(options).await.unwrap();
    scene.freeze(W[1]).unwrap();
    scene.kill(W[2]);
    others_have_all(&scene, &W[1..3]).await;
    scene.thaw(W[1]).unwrap();
    scene.crowd.installation.launch(W[2]).unwrap();
    scene.shared_by(&W[..3]).await.unwrap();
    finish("thousands", scene, THOUSANDS).await;
}

/// What it does when it goes on, NATS no longer takes for a double: its logs forget after a second here, not after five minutes. By then
/// NATS has dropped it, and so has the mail server half of its sessions; the others are open and have much to say.
#[tokio::test]
async fn one_that_is_stopped_and_goes_on_tells_nothing_twice() {
    let options = NatsOptions {
        config: IMPATIENT.to_owned(),
        ..NatsOptions::default()
    };
    let nats = NatsServer::start(options).await.unwrap();
    let mut scene = Scene::start(SceneOptions::new(nats.url())).await.unwrap();
    shorten_duplicate_windows(&nats.url()).await;
    let requests = scene.crowd.requests().await.unwrap();
    let connected = connections(&nats, W[1], "open").await.len();
    assert!(connected > 0);
    scene.freeze(W[1]).unwrap();
    // The others have taken what it had; its sessions stay open, and nobody reads them.
    others_have_all(&scene, &W[1..2]).await;
    until(SOON, "NATS to drop it", || async {
        let closed = connections(&nats, W[1], "closed").await;
        let silent = closed.iter().filter(|reason| *reason == "Stale Connection");
        silent.count() >= connected && connections(&nats, W[1], "open").await.is_empty()
    })
    .await
    .unwrap();
    let name = W[1].to_string();
    let even = |session: &SessionRecord| session.user.is_some_and(|user| user % 2 == 0);
    let server = Arc::clone(&scene.crowd.server);
    let held = || {
        let mut sessions = server.records();
        sessions.retain(|session| session.ended.is_none() && *session.holder == *name);
        sessions.iter().map(even).collect::<BTreeSet<bool>>()
    };
    assert_eq!(held(), [false, true].into());
    server.cut(|session| *session.holder == *name && even(session));
    until(SOON, "the end of half of its sessions", || async {
        held() == [false].into()
    })
    .await
    .unwrap();
    scene.thaw(W[1]).unwrap();
    scene.shared_by(&[W[0], W[2]]).await.unwrap();
    // It is given nothing back for a minute.
    scene.shared_by(&W[..3]).await.unwrap();
    asked("one stopped", &scene, requests).await;
    finish("one stopped", scene, ALONE).await;
}

#[tokio::test]
async fn those_that_are_cut_off_from_nats_lose_their_share() {
    let (_nats, mut scene) = scene().await;
    for cut in [
        &[(W[0], Mode::Cut), (W[1], Mode::MUTE)][..],
        &[(W[2], Mode::DEAF)],
    ] {
        let requests = scene.crowd.requests().await.unwrap();
        for (watcher, mode) in cut {
            scene.cut_from_nats(*watcher, *mode).unwrap();
        }
        let away: Vec<Part> = cut.iter().map(|(watcher, _)| *watcher).collect();
        others_have_all(&scene, &away).await;
        for watcher in away {
            scene.heal_nats(watcher).await.unwrap();
        }
        scene.crowd.single(SOON).await.unwrap();
        println!("{cut:?}: {:?}", scene.crowd.shares());
        asked("cut off from NATS", &scene, requests).await;
    }
    finish("cut off from NATS", scene, ALONE).await;
}

/// It lives, so nobody takes what it has; its accounts say so, and are watched again when the way is healed.
#[tokio::test]
async fn one_that_is_cut_off_from_mail_keeps_its_share() {
    let (_nats, mut scene) = scene().await;
    let name = W[1].to_string();
    let before = scene.crowd.shares();
    let cut = Instant::now();
    scene.cut_from_mail(W[1], Mode::Cut).unwrap();
    holds_nothing(&scene, W[1]).await;
    let all = scene.crowd.device_of_all().await.unwrap();
    let share = before.get(&name).copied().unwrap();
    let accounts = scene.crowd.accounts.clone();
    let retrying = |journal: &Journal| {
        accounts
            .iter()
            .filter(|account| journal.state_health(&account.id) == "retrying")
            .count()
    };
    all.wait(SOON, "the states of its accounts", |journal| {
        retrying(journal) >= share
    })
    .await
    .unwrap();
    // Longer than the detection of a dead member would take, by the others' own renewals.
    let deadline = Instant::now() + Duration::from_secs(18);
    until(SOON, "the detection to have been due", || async {
        Instant::now() > deadline
    })
    .await
    .unwrap();
    let mut meanwhile = before.clone();
    meanwhile.remove(&name);
    assert_eq!(scene.crowd.shares(), meanwhile);
    scene.heal_mail(W[1]).await.unwrap();
    let cut = Fault::since(cut, NO_MAIL);
    scene.shared_by(&W[..3]).await.unwrap();
    assert_eq!(scene.crowd.shares(), before);
    all.wait(SOON, "the states of its accounts", |journal| {
        retrying(journal) == 0
    })
    .await
    .unwrap();
    // Nobody else was to take what it had.
    finish_after("cut off from mail", scene, &[cut]).await;
}

/// A way that falls silent is told from a quiet mailbox after minutes only. Who has something to ask finds out sooner: an IDLE that does
/// not end within 15 s is given up, and so is a command without an answer after a minute.
#[tokio::test]
async fn ways_to_mail_that_fall_silent_are_given_up_by_who_asks() {
    let (_nats, mut scene) = scene().await;
    let before = scene.crowd.shares();
    let modes = [Mode::STALLED, Mode::DEAF, Mode::MUTE];
    let cut = Instant::now();
    for (watcher, mode) in W.into_iter().zip(modes) {
        scene.cut_from_mail(watcher, mode).unwrap();
    }
    let all = scene.crowd.accounts.len();
    let asked = scene.crowd.list_all().await.unwrap();
    println!("silent: {asked:?}");
    assert_eq!(asked.refusals, all);
    let timeout = ["code=\"timeout\""];
    // Mail arrives all the while: where a command was under way, that one is given up first, at its limit of 60 s.
    until(SOON, "all silent ways to be given up", || async {
        let installation = &scene.crowd.installation;
        let given_up = installation.metric("mailbell_watcher_failures_total", &timeout);
        given_up.await.unwrap() >= all as f64
    })
    .await
    .unwrap();
    // Each lives, so nobody takes what it has.
    let board = board(&scene.crowd.installation).await;
    for watcher in &W[..3] {
        let name = watcher.to_string();
        let row = row(&board, &name);
        assert_eq!(row["state"], "live");
        assert_eq!(row["accounts"], before[&name]);
    }
    for watcher in &W[..3] {
        scene.heal_mail(*watcher).await.unwrap();
    }
    let cut = Fault::since(cut, NO_MAIL);
    scene.shared_by(&W[..3]).await.unwrap();
    assert_eq!(scene.crowd.shares(), before);
    let asked = scene.crowd.list_all().await.unwrap();
    assert_eq!(asked.answers, all, "{asked:?}");
    finish_after("silent", scene, &[cut]).await;
}

#[tokio::test]
async fn all_are_killed_at_once() {
    let (_nats, mut scene) = scene().await;
    for watcher in &W[..3] {
        scene.kill(*watcher);
    }
    until(SOON, "the end of all sessions", || async {
        scene.crowd.server.held().is_empty()
    })
    .await
    .unwrap();
    for watcher in &W[..3] {
        scene.crowd.installation.launch(*watcher).unwrap();
    }
    scene.shared_by(&W[..3]).await.unwrap();
    finish("all killed", scene, ALONE).await;
}

/// Who is a quarter of an hour ahead or behind is a member as any other, and mail alerts as ever.
#[tokio::test]
async fn clocks_that_differ_by_half_an_hour_change_nothing() {
    let (_nats, mut scene) = scene().await;
    for (n, seconds) in [(0, 900), (1, -900)] {
        let options = scene.crowd.installation.options();
        options.watchers[n].env = clock::set_off(seconds).unwrap();
        scene.crowd.installation.terminate(W[n]).await.unwrap();
        scene.crowd.installation.launch(W[n]).unwrap();
        scene.crowd.installation.ready().await.unwrap();
    }
    scene.shared_by(&W[..3]).await.unwrap();
    scene.kill(W[2]);
    scene.shared_by(&W[..2]).await.unwrap();
    scene.freeze(W[0]).unwrap();
    others_have_all(&scene, &W[..1]).await;
    scene.thaw(W[0]).unwrap();
    finish("clocks", scene, ALONE).await;
}

/// A clock that is set by half an hour while mailboxes are watched by it: what was stored by it then is read by owners whose clock is
/// right.
#[tokio::test]
async fn a_clock_that_is_stepped_changes_nothing() {
    let (_nats, mut scene) = scene().await;
    let mut clocks = Vec::new();
    for watcher in &W[..2] {
        let clock = clock::Stepped::new().unwrap();
        let options = scene.crowd.installation.options();
        options.watchers[clocks.len()].env = clock.env().unwrap();
        scene.crowd.installation.terminate(*watcher).await.unwrap();
        scene.crowd.installation.launch(*watcher).unwrap();
        scene.crowd.installation.ready().await.unwrap();
        clocks.push(clock);
    }
    scene.shared_by(&W[..3]).await.unwrap();
    clocks[0].step(1800).await.unwrap();
    clocks[1].step(-1800).await.unwrap();
    // What they see now they store by their clocks.
    scene.more_arrived(100).await.unwrap();
    scene.kill(W[0]);
    scene.shared_by(&W[1..3]).await.unwrap();
    scene.kill(W[1]);
    scene.shared_by(&W[2..3]).await.unwrap();
    finish("stepped clocks", scene, ALONE).await;
}
