//! Two releases on one installation, and the end of an upgrade.

use mailbell_bus::{Bus, BusError, Followed, Role, ShareOptions, Upgrade, state::Cas};
use mailbell_core::{
    checkpoint::Checkpoint,
    event::Fact,
    ids::{AccountId, Group},
    schema::{NEWEST, TooOld, WriteVersion},
};
use mailbell_proto::bus::v1::{self as bus, LogEvent, LogIdentity, Meta};
use prost::Message as _;

use crate::{
    sharing::quick,
    world::{World, account, append, event, followed, next_uid, soon},
};

const ARRIVAL: i64 = 5;

async fn write(world: &World, subject: &str, bytes: Vec<u8>) {
    let operator = world.operator().await;
    let answer = operator.request(subject.to_owned(), bytes.into());
    answer.await.unwrap();
}

/// Makes it an installation that an older, or a newer, release has made.
async fn written_in(world: &World, write_version: u32) {
    let meta = Meta {
        schema: 1,
        partitions: 1024,
        groups: 16,
        write_version,
    };
    write(world, "$KV.MB_main_CTL.meta", meta.encode_to_vec()).await;
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        last_arrival_us: ARRIVAL,
        ..Checkpoint::default()
    }
}

async fn store(bus: &Bus, account: &AccountId, revision: u64) -> u64 {
    match bus
        .checkpoints()
        .store(account, &checkpoint(), revision)
        .await
    {
        Ok(Cas::Stored(revision)) => revision,
        other => panic!("{other:?}"),
    }
}

/// The last arrival, as it is stored.
async fn stored_arrival(bus: &Bus, account: &AccountId) -> i64 {
    let found = bus.checkpoints().load(account).await.unwrap();
    found.unwrap().value.last_arrival_us
}

#[tokio::test]
async fn what_an_older_watcher_does_not_know_is_not_written_until_it_is_gone() {
    let world = World::start_with(quick).await;
    written_in(&world, NEWEST - 1).await;
    let (setup, watcher) = (world.bus(Role::Setup).await, world.bus(Role::Watcher).await);
    let report = setup.setup().await.unwrap();
    assert_eq!(report.write_version, Some(WriteVersion::FIRST));
    watcher.check_meta().await.unwrap();
    let id = account(5, 0);
    let revision = store(&watcher, &id, 0).await;
    assert_eq!(stored_arrival(&watcher, &id).await, 0);

    let shards = world.bus(Role::Watcher).await.share(ShareOptions {
        writes: NEWEST - 1,
        ..ShareOptions::new("older", "one")
    });
    let shards = shards.unwrap();
    soon(async {
        while setup.finish_upgrade().await.unwrap()
            != Upgrade::OlderMembers(vec!["older".to_owned()])
        {
            // Its record was not there yet; nothing forbade it then.
            written_in(&world, NEWEST - 1).await;
        }
    })
    .await;
    // It dies: its record stands still, and keeps nobody any more.
    drop(shards);
    let before = WriteVersion::FIRST;
    assert_eq!(
        setup.finish_upgrade().await.unwrap(),
        Upgrade::Finished { before }
    );
    assert_eq!(setup.finish_upgrade().await.unwrap(), Upgrade::Nothing);

    watcher.check_meta().await.unwrap();
    assert_eq!(watcher.write_version(), WriteVersion::NEWEST);
    store(&watcher, &id, revision).await;
    assert_eq!(stored_arrival(&watcher, &id).await, ARRIVAL);
}

#[tokio::test]
async fn a_record_proves_what_may_be_written() {
    let world = World::start().await;
    let id = account(5, 0);
    let first = world.bus(Role::Admin).await;
    first.check_meta().await.unwrap();
    assert_eq!(
        first.write_version(),
        WriteVersion::NEWEST,
        "it was made so"
    );
    let revision = store(&first, &id, 0).await;
    // This one has not looked at `meta` yet.
    let second = world.bus(Role::Watcher).await;
    assert_eq!(second.write_version(), WriteVersion::FIRST);
    assert_eq!(stored_arrival(&second, &id).await, ARRIVAL);
    store(&second, &id, revision).await;
    assert_eq!(stored_arrival(&second, &id).await, ARRIVAL);
}

#[tokio::test]
async fn a_release_that_is_too_old_does_not_run() {
    let world = World::start_with(quick).await;
    let running = world.bus(Role::Gateway).await;
    running.check_meta().await.unwrap();
    written_in(&world, NEWEST + 1).await;
    let too_old = BusError::TooOld(TooOld {
        written: NEWEST + 1,
        newest: NEWEST,
    });
    let setup = world.bus(Role::Setup).await;
    assert_eq!(setup.setup().await.unwrap_err(), too_old);
    assert_eq!(setup.verify().await.unwrap_err(), too_old);
    assert_eq!(setup.finish_upgrade().await.unwrap_err(), too_old);
    for role in [Role::Watcher, Role::Gateway] {
        assert_eq!(world.bus(role).await.logs().await.unwrap_err(), too_old);
    }
    // One that runs already finds out by itself.
    assert_eq!(soon(running.outdated()).await, too_old);
}

#[tokio::test]
async fn a_newer_releases_log_identity_is_not_rewritten() {
    let world = World::start().await;
    let group = Group::new(3).unwrap();
    let newer = LogIdentity {
        schema: NEWEST + 1,
        log_id: vec![9; 16].into(),
        // Of another stream than the one that is there.
        stream_created_us: 1,
        highest_seen: 0,
    };
    write(&world, "$KV.MB_main_CTL.log.3", newer.encode_to_vec()).await;
    let refused = world.bus(Role::Watcher).await.logs().await.unwrap_err();
    assert_eq!(refused, BusError::NewerRecord(format!("log.{group}")));
}

#[tokio::test]
async fn a_kind_that_came_later_is_passed_over_and_its_position_counts() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let id = account(5, 0);
    append(&logs, &event(&id, 1)).await;
    let newer = event(&id, 2).encode().unwrap();
    let mut newer = LogEvent::decode(newer).unwrap();
    if let Some(bus::Header { key: Some(key), .. }) = &mut newer.header {
        key.kind = 99;
    }
    let subject = format!("mb.main.log.{}.5.{id}", id.group());
    write(&world, &subject, newer.encode_to_vec()).await;
    append(&logs, &event(&id, 3)).await;

    let mut follower = world.logs(Role::Gateway).await.follow(id.group(), 1);
    assert!(matches!(
        followed(&mut follower).await,
        Followed::Made { .. }
    ));
    assert_eq!(next_uid(&mut follower).await, 1);
    match followed(&mut follower).await {
        Followed::Entry(entry) => {
            assert_eq!((entry.position, &entry.account), (2, &id));
            assert_eq!(entry.event, None);
        }
        other => panic!("{other:?}"),
    }
    match followed(&mut follower).await {
        Followed::Entry(entry) => {
            let event = entry.event.unwrap();
            assert_eq!(entry.position, 3);
            assert!(matches!(event.fact, Fact::Arrived { uid: 3, .. }));
        }
        other => panic!("{other:?}"),
    }
}
