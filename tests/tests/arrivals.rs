//! Mail that arrives reaches every subscribed device: once, in order, all of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mailbell_test_servers::{DovecotOptions, NatsCluster, NatsOptions, NatsServer};
use mailbell_tests::{
    installation::{Layout, Options, Part},
    load, process,
    world::{SETTLE_LIMIT, World, WorldOptions, alerted_once},
};

#[tokio::test]
async fn by_lmtp_and_by_append_to_three_devices_each() {
    let mut world = World::start(WorldOptions {
        users: 2,
        ..WorldOptions::default()
    })
    .await
    .unwrap();
    // Three devices hear of each account; one of them hears of both.
    let mut devices = Vec::new();
    for accounts in [&[0][..], &[0], &[1], &[1], &[0, 1]] {
        devices.push(world.device(accounts).await.unwrap());
    }
    let delivered = world.deliver(0, 3).await.unwrap();
    let appended = world.numbers(2);
    for number in appended.clone() {
        let user = world.account(1).user.clone();
        world
            .dovecot
            .append(&user, "INBOX", &load::message(number))
            .await
            .unwrap();
    }
    let all: Vec<_> = devices.iter().collect();
    world.settle(&all).await.unwrap();
    assert!(alerted_once(&devices[0], delivered.clone()));
    assert!(alerted_once(&devices[2], appended.clone()));
    assert!(alerted_once(&devices[4], delivered));
    assert!(alerted_once(&devices[4], appended));
    assert!(devices.iter().all(|device| device.journal().replaced == 0));
    world.search_leaks().await.unwrap();
}

#[tokio::test]
async fn a_burst_of_500_in_order() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let device = world.device(&[0]).await.unwrap();
    // As many as are told one by one at most.
    world.deliver(0, 500).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    world.settle(&[&device]).await.unwrap();
    let journal = device.journal();
    assert_eq!((journal.replaced, journal.arrivals().len()), (0, 501));
    world.search_leaks().await.unwrap();
}

#[tokio::test]
async fn a_message_of_50_mb_costs_no_memory() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let device = world.device(&[0]).await.unwrap();
    // What everything needs that any message needs is there after the first ones.
    world.deliver(0, 20).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    let before = process::peak_resident(world.installation.pid(Part::Standalone));
    let number = world.numbers(1).start;
    let big = load::sized_message(number, 50_000_000);
    let user = world.account(0).user.clone();
    world.dovecot.deliver_lmtp(&user, &big).await.unwrap();
    drop(big);
    world.settle(&[&device]).await.unwrap();
    let after = process::peak_resident(world.installation.pid(Part::Standalone));
    let grown = after.saturating_sub(before) / 1_000_000;
    assert!(grown < 10, "the peak grew by {grown} MB");
}

#[tokio::test]
async fn a_folder_made_anew_is_listed_whole() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let device = world.device(&[0]).await.unwrap();
    world.deliver(0, 5).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    let before = world.truth(0).await.unwrap();
    // Another UIDVALIDITY for INBOX, as after a restore: the mail goes, and comes again under other UIDs.
    world.dovecot.stop().await;
    let mail = world
        .dovecot
        .directory()
        .join("mail")
        .join(&world.account(0).user);
    for entry in std::fs::read_dir(&mail).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("dovecot") {
            std::fs::remove_file(&path).unwrap();
        }
    }
    // Dovecot takes the second at which a folder is made for its UIDVALIDITY.
    after_second(before.generation).await;
    world.dovecot.restart().await.unwrap();
    let after = world.truth(0).await.unwrap();
    assert_ne!(before.generation, after.generation);
    assert_eq!(after.mail.len(), 5);
    world.settle(&[&device]).await.unwrap();
    assert!(device.journal().replaced > 0);
}

/// Returns once the clock has left this second, counted from 1970.
async fn after_second(second: u32) {
    let left = UNIX_EPOCH + Duration::from_secs(u64::from(second) + 1);
    while SystemTime::now() < left {
        tokio::time::sleep(process::LOOK_EVERY).await;
    }
}

#[tokio::test]
async fn over_a_restart_of_the_mail_server() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let device = world.device(&[0]).await.unwrap();
    world.deliver(0, 3).await.unwrap();
    world.dovecot.stop().await;
    let id = world.account(0).id.clone();
    device
        .wait(SETTLE_LIMIT, "the account's trouble", |journal| {
            journal.state_health(&id) == "retrying"
        })
        .await
        .unwrap();
    world.dovecot.restart().await.unwrap();
    world.deliver(0, 3).await.unwrap();
    world.settle(&[&device]).await.unwrap();
    device
        .wait(SETTLE_LIMIT, "the end of the trouble", |journal| {
            journal.state_health(&id) == "watching"
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_password_that_is_wrong_and_later_right() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let device = world.device(&[0]).await.unwrap();
    world.deliver(0, 1).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    let account = world.account(0).clone();
    // The mail server's password changes, and its sessions end.
    world
        .dovecot
        .set_password(&account.user, "planted-other-password-zq81")
        .await
        .unwrap();
    world.dovecot.restart().await.unwrap();
    device
        .wait(SETTLE_LIMIT, "the wrong password", |journal| {
            journal.state_code(&account.id) == Some("bad-credentials")
        })
        .await
        .unwrap();
    world.deliver(0, 2).await.unwrap();
    let file = world
        .installation
        .password_file("new", "planted-other-password-zq81")
        .unwrap();
    let file = file.display().to_string();
    world
        .installation
        .cli(&["account", "update", &account.id, "--password-file", &file])
        .await
        .unwrap()
        .ok()
        .unwrap();
    world.settle(&[&device]).await.unwrap();
    // It follows the messages that were missed.
    device
        .wait(SETTLE_LIMIT, "the word that all is well", |journal| {
            journal.state_health(&account.id) == "watching"
        })
        .await
        .unwrap();
    world.search_leaks().await.unwrap();
}

#[tokio::test]
async fn without_idle_by_polling() {
    let mut world = World::start(WorldOptions {
        dovecot: DovecotOptions {
            capability: Some("IMAP4rev1 LITERAL+ SASL-IR".to_owned()),
            ..DovecotOptions::default()
        },
        ..WorldOptions::default()
    })
    .await
    .unwrap();
    let device = world.device(&[0]).await.unwrap();
    let id = world.account(0).id.clone();
    device
        .wait(SETTLE_LIMIT, "polling", |journal| {
            journal
                .states
                .get(&id)
                .is_some_and(|state| state.mode == "poll")
        })
        .await
        .unwrap();
    world.deliver(0, 3).await.unwrap();
    world.settle(&[&device]).await.unwrap();
}

#[tokio::test]
async fn on_a_nats_server_of_ones_own() {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let mut world = World::start(WorldOptions {
        installation: Options {
            nats_url: Some(nats.url()),
            ..Options::default()
        },
        ..WorldOptions::default()
    })
    .await
    .unwrap();
    let device = world.device(&[0]).await.unwrap();
    world.deliver(0, 10).await.unwrap();
    assert_eq!(world.installation.nats_pid(), None);
    world.settle(&[&device]).await.unwrap();
}

#[tokio::test]
async fn on_three_nats_nodes_of_which_one_is_killed() {
    let mut cluster = NatsCluster::start(3).await.unwrap();
    let mut world = World::start(WorldOptions {
        installation: Options {
            layout: Layout::Roles,
            nats_url: Some(cluster.url()),
            replicas: 3,
            ..Options::default()
        },
        ..WorldOptions::default()
    })
    .await
    .unwrap();
    let device = world.device(&[0]).await.unwrap();
    for node in 0..3 {
        world.deliver(0, 20).await.unwrap();
        cluster.nodes[node].kill();
        world.deliver(0, 20).await.unwrap();
        world.settle(&[&device]).await.unwrap();
        cluster.nodes[node].restart().await.unwrap();
    }
    world.settle(&[&device]).await.unwrap();
}

#[tokio::test]
async fn what_is_read_before_it_is_told_does_not_alert() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let device = world.device(&[0]).await.unwrap();
    let numbers = world.numbers(1);
    let user = world.account(0).user.clone();
    let mut imap = world.dovecot.imap(&user).await.unwrap();
    imap.append("INBOX", "\\Seen", &load::message(numbers.start))
        .await
        .unwrap();
    world.settle(&[&device]).await.unwrap();
    assert!(!alerted_once(&device, numbers.clone()));
    assert!(device.journal().arrivals().contains(&numbers.start));
}
