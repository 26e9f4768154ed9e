//! A device that comes back gets what it missed, or is told to list and ends up with everything.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

use std::path::Path;

use mailbell_test_servers::{NatsOptions, NatsServer};
use mailbell_tests::{
    device::Device,
    installation::Options,
    logs::Logs,
    process::tail,
    world::{SETTLE_LIMIT, World, WorldOptions},
};

/// A world on a NATS server of the test, so that the test can damage its logs.
async fn world(users: usize) -> (NatsServer, Logs, World) {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let world = World::start(WorldOptions {
        users,
        installation: Options {
            nats_url: Some(nats.url()),
            ..Options::default()
        },
        ..WorldOptions::default()
    })
    .await
    .unwrap();
    let logs = Logs::connect(&nats.url()).await.unwrap();
    (nats, logs, world)
}

/// The device is told to list, and does: it may have all that it needs before that.
async fn lists(world: &World, device: &Device) {
    let listed = device
        .wait(SETTLE_LIMIT, "a list", |journal| journal.replaced > 0)
        .await;
    if let Err(error) = listed {
        panic!("{error:#}\n{}", tail(&world.installation.log_file()));
    }
}

#[tokio::test]
async fn with_a_cursor_nothing_is_missed_and_nothing_is_listed() {
    let (_nats, logs, mut world) = world(1).await;
    let mut device = world.device(&[0]).await.unwrap();
    world.deliver(0, 10).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    device.stop().await.unwrap();
    let account = world.account(0).id.clone();
    let last = logs.last(&account).await.unwrap();
    world.deliver(0, 20).await.unwrap();
    logs.reaches(&account, last + 20).await.unwrap();
    device.start().unwrap();
    world.settle(&[&device]).await.unwrap();
    let journal = device.journal();
    assert_eq!((journal.resumed, journal.replaced), (1, 0));
    assert_eq!(journal.arrivals().len(), 31);
}

#[tokio::test]
async fn with_a_cursor_older_than_the_log() {
    let (_nats, logs, mut world) = world(1).await;
    let mut device = world.device(&[0]).await.unwrap();
    world.deliver(0, 5).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    device.stop().await.unwrap();
    let account = world.account(0).id.clone();
    let last = logs.last(&account).await.unwrap();
    world.deliver(0, 5).await.unwrap();
    logs.reaches(&account, last + 5).await.unwrap();
    logs.expire().await.unwrap();
    // A gateway that had them in memory could still tell them.
    world.installation.stop().await.unwrap();
    world.installation.start_all().await.unwrap();
    device.start().unwrap();
    lists(&world, &device).await;
    // What was told before is in the list too, and doesn't alert again: the auditor sees to that.
    world.settle(&[&device]).await.unwrap();
    assert_eq!(device.journal().arrivals().len(), 6);
}

#[tokio::test]
async fn with_more_missed_than_one_list_holds() {
    let (_nats, logs, mut world) = world(1).await;
    let mut device = world.device(&[0]).await.unwrap();
    world.deliver(0, 5).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    device.stop().await.unwrap();
    let account = world.account(0).id.clone();
    let last = logs.last(&account).await.unwrap();
    // A client lists the newest 200 of a folder.
    world.deliver(0, 300).await.unwrap();
    logs.reaches(&account, last + 300).await.unwrap();
    logs.expire().await.unwrap();
    world.installation.stop().await.unwrap();
    world.installation.start_all().await.unwrap();
    device.start().unwrap();
    lists(&world, &device).await;
    world.settle(&[&device]).await.unwrap();
    assert_eq!(device.journal().arrivals().len(), 6);
}

#[tokio::test]
async fn with_a_cursor_of_another_log() {
    let (_nats, logs, mut world) = world(1).await;
    let mut device = world.device(&[0]).await.unwrap();
    world.deliver(0, 5).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    device.stop().await.unwrap();
    world.installation.stop().await.unwrap();
    logs.delete().await.unwrap();
    world.deliver(0, 5).await.unwrap();
    world.installation.start_all().await.unwrap();
    device.start().unwrap();
    lists(&world, &device).await;
    world.settle(&[&device]).await.unwrap();
}

#[tokio::test]
async fn when_the_logs_are_deleted_under_the_feet_of_everybody() {
    let (_nats, logs, mut world) = world(1).await;
    let device = world.device(&[0]).await.unwrap();
    world.deliver(0, 5).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    logs.delete().await.unwrap();
    world.deliver(0, 5).await.unwrap();
    // A process that needs setup anew may be restarted by its supervisor; nothing may be lost over that.
    world.installation.stop().await.unwrap();
    world.installation.start_all().await.unwrap();
    lists(&world, &device).await;
    world.settle(&[&device]).await.unwrap();
}

#[tokio::test]
async fn when_the_logs_lost_their_end() {
    let (mut nats, logs, mut world) = world(1).await;
    let mut device = world.device(&[0]).await.unwrap();
    world.deliver(0, 5).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    // The logs of now, put back later: what follows is lost from them, as by a restore of a snapshot.
    world.installation.stop().await.unwrap();
    let account = world.account(0).id.clone();
    let name = logs.name_of(&account).await.unwrap();
    let before = logs.last(&account).await.unwrap();
    nats.stop().await;
    let streams = nats.directory().join("store/jetstream/$G/streams");
    let kept = tempfile::tempdir().unwrap();
    copy(&streams.join(&name), &kept.path().join(&name));
    nats.restart().await.unwrap();
    world.installation.start_all().await.unwrap();
    world.deliver(0, 10).await.unwrap();
    world.settle(&[&device]).await.unwrap();
    device.stop().await.unwrap();
    world.installation.stop().await.unwrap();
    nats.stop().await;
    std::fs::remove_dir_all(streams.join(&name)).unwrap();
    copy(&kept.path().join(&name), &streams.join(&name));
    nats.restart().await.unwrap();
    assert_eq!(logs.last(&account).await.unwrap(), before);
    world.installation.start_all().await.unwrap();
    world.deliver(0, 3).await.unwrap();
    device.start().unwrap();
    lists(&world, &device).await;
    world.settle(&[&device]).await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn with_an_account_added_to_the_subscription() {
    let (_nats, _logs, mut world) = world(2).await;
    let mut device = world.device(&[0]).await.unwrap();
    world.deliver(0, 3).await.unwrap();
    // The device doesn't hear of these until it subscribes to the account.
    world.deliver(1, 4).await.unwrap();
    world.judge(&[&device]).await.unwrap();
    device.stop().await.unwrap();
    let token = world.token(&[0, 1]).await.unwrap();
    let places = vec![world.account(0).inbox(), world.account(1).inbox()];
    device.subscribe(token, places);
    device.start().unwrap();
    lists(&world, &device).await;
    world.settle(&[&device]).await.unwrap();
}

#[tokio::test]
async fn a_quiet_account_is_not_listed_because_its_log_expired() {
    let (_nats, logs, mut world) = world(2).await;
    let mut quiet = world.device(&[0]).await.unwrap();
    let other = world.device(&[1]).await.unwrap();
    world.deliver(0, 1).await.unwrap();
    world.deliver(1, 20).await.unwrap();
    world.judge(&[&quiet, &other]).await.unwrap();
    // Its Cursor frames tell the quiet device of the others' progress, without a word about them.
    let ids = [&world.account(0).id, &world.account(1).id].map(String::as_str);
    quiet.stores_the_end(&logs, &ids).await.unwrap();
    quiet.stop().await.unwrap();
    other.stores_the_end(&logs, &ids).await.unwrap();
    logs.expire().await.unwrap();
    // A gateway that had all of it in memory would need no log.
    world.installation.stop().await.unwrap();
    world.installation.start_all().await.unwrap();
    quiet.start().unwrap();
    quiet
        .wait(SETTLE_LIMIT, "live again", |journal| {
            journal.live && journal.connections == 2
        })
        .await
        .unwrap();
    world.settle(&[&quiet, &other]).await.unwrap();
    let journal = quiet.journal();
    assert_eq!((journal.resumed, journal.replaced), (1, 0));
}

#[tokio::test]
async fn over_an_orderly_restart_of_the_installation() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let device = world.device(&[0]).await.unwrap();
    world.deliver(0, 10).await.unwrap();
    world.installation.stop().await.unwrap();
    world.deliver(0, 10).await.unwrap();
    world.installation.start_all().await.unwrap();
    world.deliver(0, 10).await.unwrap();
    world.settle(&[&device]).await.unwrap();
    let journal = device.journal();
    assert_eq!((journal.replaced, journal.arrivals().len()), (0, 31));
}
