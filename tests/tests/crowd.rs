//! Many mailboxes on the synthetic mail server, watched by real processes. `MAILBELL_CROWD_USERS=<n>` makes more of them.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::{Duration, Instant};

use mailbell_test_servers::{NatsOptions, NatsServer, proxy::Mode};
use mailbell_tests::{
    crowd::{Crowd, CrowdOptions},
    installation::{Options, Part},
    process::until,
};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(120);

async fn crowd(nats: &NatsServer, users: usize, own_ways: bool) -> Crowd {
    let crowd = Crowd::start(CrowdOptions {
        users,
        watchers: 1,
        own_ways,
        installation: Options {
            nats_url: Some(nats.url()),
            ..Options::default()
        },
    })
    .await
    .unwrap();
    crowd.watched(SOON).await.unwrap();
    crowd
}

#[tokio::test]
async fn mail_of_200_accounts_reaches_devices() {
    let asked = std::env::var("MAILBELL_CROWD_USERS").ok();
    let users = asked.and_then(|users| users.parse().ok()).unwrap_or(200);
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let mut crowd = crowd(&nats, users, false).await;
    let begin = Instant::now();
    let sample = crowd.device(&[0, 7, users - 1]).await.unwrap();
    let all = crowd.device_of_all().await.unwrap();
    for user in 0..users {
        crowd.deliver(user, 2).unwrap();
    }
    crowd.judge(&[&sample, &all]).await.unwrap();
    crowd.watched(SOON).await.unwrap();
    let verdict = crowd.verdict(begin..Instant::now(), &[]);
    assert!(verdict.overlaps.is_empty(), "{verdict}");
    assert!(verdict.unwatched.is_empty(), "{verdict}");
    crowd.finish(&[&sample, &all]).await.unwrap();
}

#[tokio::test]
async fn a_watcher_is_cut_off_from_mail_alone_and_from_nats_alone() {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let mut crowd = crowd(&nats, 5, true).await;
    let watcher = Part::Watcher(0);
    let device = crowd.device(&[0, 4]).await.unwrap();
    let begin = Instant::now();

    crowd.ways(watcher).unwrap().imap.set(Mode::Cut);
    until(SOON, "the end of all sessions", || async {
        crowd.server.connections() == 0
    })
    .await
    .unwrap();
    assert!(crowd.installation.is_ready().await);
    crowd.deliver(0, 1).unwrap();
    crowd.ways(watcher).unwrap().imap.set(Mode::PASS);
    crowd.judge(&[&device]).await.unwrap();
    crowd.watched(SOON).await.unwrap();

    for nats in &crowd.ways(watcher).unwrap().nats {
        nats.set(Mode::Cut);
    }
    until(SOON, "the watcher to miss NATS", || async {
        !crowd.installation.is_ready().await
    })
    .await
    .unwrap();
    // Sessions stay while NATS is away.
    crowd.watched(SOON).await.unwrap();
    crowd.deliver(4, 1).unwrap();
    for nats in &crowd.ways(watcher).unwrap().nats {
        nats.set(Mode::PASS);
    }
    crowd.installation.ready().await.unwrap();
    crowd.judge(&[&device]).await.unwrap();

    crowd.watched(SOON).await.unwrap();
    let verdict = crowd.verdict(begin..Instant::now(), &[]);
    let holders: Vec<&str> = verdict.logins.keys().map(|holder| &**holder).collect();
    assert_eq!(holders, [watcher.to_string()], "{verdict}");
    assert_eq!(verdict.longest_gaps().len(), 5, "{verdict}");
    crowd.finish(&[&device]).await.unwrap();
}

/// Waits until a process lives, whatever it has to do.
async fn lives(crowd: &Crowd, part: Part) {
    until(SOON, "a sign of life", || async {
        let page = crowd.installation.page_of(part, "/healthz").await;
        page.is_ok_and(|page| page.status == 200)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn watchers_come_stop_and_go() {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let mut crowd = crowd(&nats, 3, true).await;
    let first = Part::Watcher(0);
    let second = crowd.add_watcher().await.unwrap();
    lives(&crowd, second).await;
    assert_eq!(crowd.installation.watchers(), [first, second]);
    crowd.installation.signal(second, Signal::STOP).unwrap();
    crowd.installation.signal(second, Signal::CONT).unwrap();
    lives(&crowd, second).await;
    crowd.installation.terminate(second).await.unwrap();
    assert_eq!(crowd.installation.watchers(), [first]);
    crowd.installation.ready().await.unwrap();
    crowd.installation.launch(second).unwrap();
    lives(&crowd, second).await;
    // Who is killed is missed no more.
    crowd.installation.kill(second);
    crowd.installation.ready().await.unwrap();
    crowd.watched(SOON).await.unwrap();
}
