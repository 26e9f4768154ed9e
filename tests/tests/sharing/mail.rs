//! Real mailboxes, on Dovecot, change hands between watchers: what a mail server means is the same whoever asks it.

use std::ops::Range;

use mailbell_test_servers::NatsServer;
use mailbell_tests::{
    auditor,
    device::Device,
    installation::{Layout, Options, WatcherOptions},
    leaks::PASSWORD,
    load,
    process::until,
    sharing::SOON,
    world::{World, WorldOptions, alerted_once},
};
use serde_json::json;

use super::{W, board, nats_server, row};

/// Few enough for Dovecot's processes, and so many that no watcher has none by chance: one time in 5,000.
const USERS: usize = 24;
/// More than are told one by one, when they come at once.
const FLOOD: u64 = 600;

async fn world(nats: &NatsServer) -> World {
    World::start(WorldOptions {
        users: USERS,
        installation: Options {
            layout: Layout::Roles,
            watchers: vec![WatcherOptions::default(); 3],
            nats_url: Some(nats.url()),
            ..Options::default()
        },
        ..WorldOptions::default()
    })
    .await
    .unwrap()
}

/// Waits until each of so many watchers owns accounts, and nothing is on its way.
async fn shared_by(world: &World, watchers: usize) {
    until(SOON, "the mailboxes to be shared", || async {
        let board = board(&world.installation).await;
        let members = board["members"].as_array().unwrap();
        let with_some = members
            .iter()
            .filter(|member| member["state"] == "live" && member["accounts"] != 0);
        with_some.count() == watchers && board["waiting"] == json!([])
    })
    .await
    .unwrap();
}

/// Delivers so many messages to each mailbox.
async fn deliver_to_all(world: &World, count: u64) -> Vec<Range<u64>> {
    let mut told = Vec::new();
    for n in 0..world.accounts.len() {
        told.push(world.deliver(n, count).await.unwrap());
    }
    told
}

/// Gives an account and its mailbox a new password; no login is tried, as nobody might answer just now.
async fn new_password(world: &mut World, n: usize) {
    let account = world.account(n).clone();
    let password = format!("{PASSWORD}-new");
    world
        .dovecot
        .set_password(&account.user, &password)
        .await
        .unwrap();
    let file = world.installation.password_file("new", &password).unwrap();
    let file = file.display().to_string();
    let update = ["account", "update", &account.id, "--no-check"];
    let said = world
        .installation
        .cli(&[&update[..], &["--password-file", &file]].concat())
        .await;
    said.unwrap().ok().unwrap();
}

fn all_alerted_once(device: &Device, told: Vec<Range<u64>>) {
    for numbers in told {
        assert!(alerted_once(device, numbers.clone()), "{numbers:?}");
    }
}

/// A watcher is killed, and before another has taken over there is a flood, mail that was read elsewhere, and a new password for
/// nearly all. Then another gives all away in order, while mail arrives.
#[tokio::test]
async fn floods_flags_and_passwords_are_as_ever_when_another_takes_over() {
    let nats = nats_server().await;
    let mut world = world(&nats).await;
    let everybody: Vec<usize> = (0..USERS).collect();
    let all = world.device(&everybody).await.unwrap();
    let first = world.device(&[0]).await.unwrap();
    shared_by(&world, 3).await;
    let told = deliver_to_all(&world, 2).await;
    world.judge(&[&all, &first]).await.unwrap();
    all_alerted_once(&all, told);

    world.installation.kill(W[1]);
    world.deliver(0, FLOOD).await.unwrap();
    let read = world.numbers(USERS as u64);
    for (n, number) in (0..USERS).zip(read.clone()) {
        let user = &world.account(n).user;
        let mut imap = world.dovecot.imap(user).await.unwrap();
        let message = load::message(number);
        imap.append("INBOX", "\\Seen", &message).await.unwrap();
    }
    for n in 1..USERS {
        new_password(&mut world, n).await;
    }
    // Who logs in from now on needs the new one.
    world.dovecot.restart().await.unwrap();
    shared_by(&world, 2).await;
    let told = deliver_to_all(&world, 2).await;
    world.settle(&[&all, &first]).await.unwrap();
    all_alerted_once(&all, told);
    let alerted = auditor::alerted(&all.journal().seen);
    assert!(read.clone().all(|number| !alerted.contains(&number)));

    let name = W[0].to_string();
    let drain = ["watcher", "drain", &name, "--wait"];
    let (said, told) = tokio::join!(world.installation.cli(&drain), async {
        let mut told = Vec::new();
        for _ in 0..10 {
            told.extend(deliver_to_all(&world, 1).await);
        }
        told
    });
    let said = said.unwrap().ok().unwrap();
    assert!(said.contains(&format!("{name}  owns nothing")), "{said}");
    let board = board(&world.installation).await;
    let drained = row(&board, &name);
    assert_eq!(drained["state"], "draining");
    assert_eq!(
        (&drained["owned"], &drained["accounts"]),
        (&json!(0), &json!(0))
    );
    assert!(world.installation.runs(W[0]));
    world.settle(&[&all, &first]).await.unwrap();
    all_alerted_once(&all, told);
    world.search_leaks().await.unwrap();
}
