//! Ends and beginnings: SIGTERM, crashes, removal.

use std::time::Duration;

use mailbell_bus::{AskError, Role, Share, ShareOptions};
use mailbell_core::{
    event::Fact,
    ids::{AccountId, Tenant},
};
use mailbell_proto::{
    bus::v1::{AccountRecord, OwnerRequest},
    push::v1::Health,
};

use mailbell_test_servers::DovecotOptions;
use mailbell_watcher::Error;
use ulid::Ulid;

use crate::world::{
    World, mail,
    told::{arrivals, assert_no_repeats, assert_numbered},
};

#[tokio::test]
async fn a_drain_stores_releases_and_logs_out() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    for number in 0..5 {
        let message = mail(&format!("n{number}"));
        world.dovecot.deliver_lmtp("alice", &message).await.unwrap();
    }
    world.until_arrived(&account, 5).await;
    assert_eq!(world.drain(Duration::from_secs(20)).await, Ok(()));
    let (last, _) = world.events(&account).await.pop().unwrap();
    let stored = world
        .admin
        .checkpoints()
        .load(&account)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stored.value.position, last);
    // The check at the beginning logged out too.
    world.until_logouts(2).await;
    // Nobody answers, and anybody may take over at once, knowing that all of it is stored.
    let asked = world
        .admin
        .ask(&account, OwnerRequest::default(), Duration::from_secs(5))
        .await;
    assert_eq!(asked.unwrap_err(), AskError::NoOwner);
    let other = world.bus(Role::Watcher).await;
    let mut shards = other.share(ShareOptions::new("pod-1", "x")).unwrap();
    let mut taken = 0;
    let taking = async {
        while taken < 1024 {
            let Some(Share::Load {
                partition, before, ..
            }) = shards.next().await
            else {
                continue;
            };
            taken += 1;
            let before = before.unwrap();
            if partition == account.partition() {
                assert!(before.flushed >= last, "{before:?}");
            }
        }
    };
    tokio::time::timeout(crate::world::LIMIT, taking)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_session_that_cannot_end_is_cut_short_and_the_next_owner_folds_its_log() {
    let mut world = World::without_watcher(DovecotOptions::default()).await;
    let finish = Duration::from_secs(1);
    world.start_with(|options| options.finish = finish).await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    // What it knows cannot be stored from now on, and until it is stored a session does not end by itself.
    let checkpoints = world.admin.checkpoints();
    let known = async || checkpoints.load(&account).await.unwrap().unwrap();
    let stream = format!("KV_MB_test_CKPT_{}", account.group());
    let config = world.refuse_all(&stream).await;
    let before = known().await;
    let message = mail("one");
    world.dovecot.deliver_lmtp("alice", &message).await.unwrap();
    world.until_arrived(&account, 1).await;
    let (told, _) = world.events(&account).await.pop().unwrap();
    let begun = tokio::time::Instant::now();
    // A drain that must wait to its end takes three quarters of that, and leaves the partition to be found.
    let window = Duration::from_secs(60);
    assert_eq!(world.drain(window).await, Ok(()));
    assert!(begun.elapsed() >= finish && begun.elapsed() < window / 2);
    let claims = world.admin.live().claims().await.unwrap();
    assert_eq!(claims.len(), 1024);
    let held = claims.iter().filter(|(_, claim)| !claim.value.released);
    assert_eq!(held.count(), 0);
    let flushed = claims[&account.partition()].value.flushed;
    assert!(flushed < told, "{flushed} {told}");
    let left = known().await;
    assert_eq!(left.revision, before.revision);
    assert!(left.value.position < told);

    world.update_stream(&stream, &config).await;
    let message = mail("two");
    world.dovecot.deliver_lmtp("alice", &message).await.unwrap();
    world.start().await;
    assert_eq!(world.until_arrived(&account, 2).await, ["one", "two"]);
    world.drain(window).await.unwrap();
    let events = world.events(&account).await;
    assert_no_repeats(&events);
    let arrived = |(_, event): &(_, _)| {
        matches!(
            event,
            mailbell_core::event::Event {
                fact: Fact::Arrived { .. },
                ..
            }
        )
    };
    assert_eq!(events.iter().filter(|event| arrived(event)).count(), 2);
    assert_eq!(known().await.value.position, events.last().unwrap().0);
}

#[tokio::test]
async fn a_drain_is_bounded_when_nats_is_away() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    // That of the check.
    world.until_logouts(1).await;
    world.nats.kill();
    let begun = tokio::time::Instant::now();
    let _ = world.drain(Duration::from_secs(4)).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    // The mail server is told all the same.
    world.until_logouts(2).await;
}

#[tokio::test]
async fn mail_of_a_pause_between_two_watchers_is_told_once() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let mut count = 0;
    for round in 0..3 {
        world
            .dovecot
            .deliver_lmtp("alice", &mail(&format!("seen{round}")))
            .await
            .unwrap();
        count += 1;
        world.until_arrived(&account, count).await;
        if round == 1 {
            world.crash().await;
        } else {
            world.drain(Duration::from_secs(20)).await.unwrap();
        }
        world
            .dovecot
            .deliver_lmtp("alice", &mail(&format!("missed{round}")))
            .await
            .unwrap();
        count += 1;
        world.start().await;
        world.until_arrived(&account, count).await;
    }
    let subjects = world.until_arrived(&account, count).await;
    assert_eq!(
        subjects,
        ["seen0", "missed0", "seen1", "missed1", "seen2", "missed2"]
    );
    assert_no_repeats(&world.events(&account).await);
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_burst_loses_and_repeats_nothing() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let messages: Vec<_> = (0..200).map(|number| mail(&format!("n{number}"))).collect();
    for part in messages.chunks(40) {
        let already = world.events(&account).await.len();
        world
            .dovecot
            .deliver_many("alice", part.iter().map(Vec::as_slice))
            .await
            .unwrap();
        world
            .until_events(&account, |events| events.len() > already)
            .await;
        world.crash().await;
        world.start().await;
    }
    let events = world
        .until_events(&account, |events| arrivals(events).len() >= 200)
        .await;
    assert_numbered(&events, 200);
    assert_no_repeats(&world.events(&account).await);
}

#[tokio::test]
async fn another_process_of_the_same_name_takes_over_and_the_first_one_ends() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("one"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    let first = world.leave();
    world.start().await;
    let ended = tokio::time::timeout(crate::world::LIMIT, first).await;
    let error = ended.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, Error::Replaced(_)), "{error}");
    world
        .dovecot
        .deliver_lmtp("alice", &mail("two"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&account, 2).await, ["one", "two"]);
    assert_no_repeats(&world.events(&account).await);
}

#[tokio::test]
async fn a_lost_checkpoint_is_rebuilt_from_the_log() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("one"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    world.drain(Duration::from_secs(20)).await.unwrap();
    world.admin.checkpoints().delete(&account).await.unwrap();
    world
        .dovecot
        .deliver_lmtp("alice", &mail("two"))
        .await
        .unwrap();
    world.start().await;
    // All of it was flushed, so nothing but the mailbox itself can say where to begin: devices list it.
    world
        .until_events(&account, |events| {
            events
                .iter()
                .any(|event| matches!(event.fact, Fact::Resync { uid_next: 3, .. }))
        })
        .await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("three"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&account, 2).await, ["one", "three"]);
}

#[tokio::test]
async fn accounts_without_a_checkpoint_begin_with_what_their_partition_found() {
    const ACCOUNTS: usize = 200;
    let mut world = World::new().await;
    world.drain(Duration::from_secs(20)).await.unwrap();
    let one = AccountId::new(Tenant::default(), Ulid::generate());
    let accounts = std::iter::repeat_with(|| AccountId::new(Tenant::default(), Ulid::generate()))
        .filter(|account| account.partition() == one.partition())
        .take(ACCOUNTS);
    for account in accounts {
        let record = AccountRecord {
            paused: true,
            ..world.record(&["INBOX"])
        };
        world.write(&account, record, None).await;
    }
    let calls = world.note_calls(one.group()).await;
    world.start().await;
    let paused = "mailbell_watcher_sessions{health=\"paused\"}";
    world.until_metric(paused, ACCOUNTS as f64).await;
    // What is asked is about the group and the partition. Beside it the group's log is asked every two seconds how far it is.
    let asked = [
        "STREAM.INFO",
        "STREAM.MSG.GET",
        "DIRECT.GET",
        "CONSUMER.CREATE",
        "CONSUMER.MSG.NEXT",
    ];
    let count: usize = asked
        .iter()
        .flat_map(|call| ["CKPT", "LOG"].map(|stream| calls.of(call, stream).len()))
        .sum();
    assert!(0 < count && count < ACCOUNTS, "{count}");
}

#[tokio::test]
async fn checkpoints_are_read_after_the_records() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.drain(Duration::from_secs(20)).await.unwrap();
    let calls = world.note_calls(account.group()).await;
    world.start().await;
    // By a pass over the bucket, or a few partitions by themselves.
    let reads = |stream| {
        let calls = ["CONSUMER.MSG.NEXT", "DIRECT.GET"].map(|call| calls.of(call, stream));
        let mut places = calls.concat();
        places.sort_unstable();
        places
    };
    let (records, checkpoints) = (reads("STATE"), reads("CKPT"));
    // Those of the group are looked at once in advance, for how far the log had come. The checkpoint of an account is there before its
    // record is: so where they are read again after the records, an account that is found without one has none.
    let read = records.first().unwrap();
    let before = checkpoints.iter().filter(|at| *at < read).count();
    assert!(
        before == 1 && checkpoints.len() > 1,
        "{records:?}, {checkpoints:?}"
    );
}

#[tokio::test]
async fn a_removed_account_ends_and_leaves_nothing() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    let other = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world.until_watching(&other).await;
    let tombstone = AccountRecord {
        removed_at_ms: 1,
        ..world.record(&["INBOX"])
    };
    world.write(&account, tombstone, None).await;
    world.until_forgotten(&account).await;
    assert!(world.events(&account).await.is_empty());
    assert!(
        world
            .admin
            .statuses()
            .get(&account)
            .await
            .unwrap()
            .is_none()
    );
    world
        .dovecot
        .deliver_lmtp("alice", &mail("after"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&other, 1).await, ["after"]);
    assert!(world.events(&account).await.is_empty());
    // The next start leaves it at that.
    world.drain(Duration::from_secs(20)).await.unwrap();
    world.start().await;
    world
        .until_status(&other, |_, health| health == Health::Watching)
        .await;
    assert!(world.events(&account).await.is_empty());
}

#[tokio::test]
async fn an_account_that_is_removed_before_its_first_checkpoint_leaves_nothing() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    let never_begun = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world.until_watching(&never_begun).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("one"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    world.until_arrived(&never_begun, 1).await;
    world.drain(Duration::from_secs(20)).await.unwrap();
    // As if nothing had been stored of them but the log and the status, or the status alone.
    world
        .admin
        .logs()
        .await
        .unwrap()
        .purge_account(&never_begun)
        .await
        .unwrap();
    for account in [&account, &never_begun] {
        world.admin.checkpoints().delete(account).await.unwrap();
        let tombstone = AccountRecord {
            removed_at_ms: 1,
            ..world.record(&["INBOX"])
        };
        world.write(account, tombstone, None).await;
        // The admin API deletes the password at once.
        world.admin.credentials().delete(account).await.unwrap();
    }
    world.start().await;
    for account in [&account, &never_begun] {
        world.until_forgotten(account).await;
        assert!(world.events(account).await.is_empty());
    }
}
