//! A device that comes back: from the window, from the log, or with a Resync.

use mailbell_core::{
    cursor::Cursor,
    delivery::WindowLimits,
    ids::{AccountId, LogId},
};
use mailbell_gateway::Options;
use mailbell_proto::push::v1::{EventKind, ResyncReason, SubscribeRequest, server_frame::Frame};

use crate::support::{Device, World, account, arrival, neighbour, options};

fn small_window() -> Options {
    Options {
        window: WindowLimits {
            entries: 4,
            bytes: 1024 * 1024,
        },
        ..options()
    }
}

/// A device that has the first `count` events and is gone.
async fn left_after(world: &World, accounts: &[AccountId], count: u32) -> Device {
    let mut device = world.device(accounts).await;
    device.live().await;
    for uid in 1..=count {
        world.source.append(&arrival(&accounts[0], uid));
    }
    device.uids(count as usize).await;
    device
        .cursor_at(&accounts[0], world.source.last(accounts[0].group()))
        .await;
    device
}

fn append(world: &World, account: &AccountId, uids: std::ops::RangeInclusive<u32>) {
    for uid in uids {
        world.source.append(&arrival(account, uid));
    }
}

async fn caught_up(world: &World, count: f64) {
    world
        .until("caught up", || world.value("received_total") >= count)
        .await;
}

#[tokio::test]
async fn from_the_window_without_a_read() {
    let world = World::start().await;
    let before = left_after(&world, &[account(0)], 3).await;
    append(&world, &account(0), 4..=9);
    caught_up(&world, 9.0).await;
    let mut device = world.again(&before, &[account(0)]).await;
    assert_eq!(device.uids(6).await, [4, 5, 6, 7, 8, 9]);
    device.live().await;
    assert_eq!(world.source.reads(), 0);
    append(&world, &account(0), 10..=10);
    assert_eq!(device.uids(1).await, [10]);
}

#[tokio::test]
async fn from_the_log_in_order_and_then_live() {
    let world = World::with(small_window()).await;
    let other = neighbour(0);
    world
        .source
        .put_account(&other, mailbell_proto::bus::v1::AccountRecord::default());
    let accounts = [account(0), other.clone()];
    let before = left_after(&world, &accounts, 3).await;
    append(&world, &account(0), 4..=150);
    append(&world, &other, 1..=150);
    append(&world, &account(0), 151..=200);
    caught_up(&world, 350.0).await;
    let mut device = world.again(&before, &accounts).await;
    let expected: Vec<u32> = (4..=150).chain(1..=150).chain(151..=200).collect();
    assert_eq!(device.uids(expected.len()).await, expected);
    device.live().await;
    // 64 entries a read, 16 a queue: what did not fit was kept.
    let reads = world.source.reads();
    assert!((1..=12).contains(&reads), "{reads}");
    append(&world, &account(0), 201..=201);
    assert_eq!(device.uids(1).await, [201]);
    // The same through a tenant's token, which needs a listing first: its cursor was for less.
    let token = world.minter.token(&[]);
    let mut tenant = world.subscribe(before.resume(), &token).await.unwrap();
    let resync = tenant.resync().await;
    assert_eq!(resync.reason(), ResyncReason::SubscriptionChanged);
    tenant.live().await;
}

#[tokio::test]
async fn what_comes_during_a_replay_comes_after_it() {
    let world = World::with(small_window()).await;
    let before = left_after(&world, &[account(0)], 3).await;
    append(&world, &account(0), 4..=40);
    caught_up(&world, 40.0).await;
    world.source.hold_reads(true);
    let mut device = world.again(&before, &[account(0)]).await;
    world.until("reading", || world.source.reads() > 0).await;
    append(&world, &account(0), 41..=80);
    caught_up(&world, 80.0).await;
    // Its cursor stays where it was: a device that dies now has lost nothing.
    let Ok(Frame::Cursor(cursor)) = device.try_next().await else {
        panic!("no cursor");
    };
    assert_eq!(cursor.token, before.cursor.clone());
    world.source.hold_reads(false);
    let expected: Vec<u32> = (4..=80).collect();
    assert_eq!(device.uids(77).await, expected);
    device.live().await;
}

#[tokio::test]
async fn a_read_that_fails_is_tried_again() {
    let world = World::with(small_window()).await;
    let before = left_after(&world, &[account(0)], 3).await;
    append(&world, &account(0), 4..=40);
    caught_up(&world, 40.0).await;
    world.source.hold_reads(true);
    let mut device = world.again(&before, &[account(0)]).await;
    world.until("reading", || world.source.reads() > 0).await;
    world.source.disconnect();
    world.source.hold_reads(false);
    let failed = "gateway_replay_reads_total{outcome=\"failed\"}";
    world.until("failed", || world.value(failed) >= 1.0).await;
    world.source.reconnect();
    let expected: Vec<u32> = (4..=40).collect();
    assert_eq!(device.uids(37).await, expected);
    device.live().await;
}

async fn resynced(world: &World, request: SubscribeRequest, reason: ResyncReason) -> Device {
    let token = world.minter.token(&[account(0)]);
    let mut device = world.subscribe(request, &token).await.unwrap();
    let resync = device.resync().await;
    assert_eq!(resync.reason(), reason);
    assert!(resync.scope.unwrap().everything && resync.key.is_none());
    device.live().await;
    device
}

#[tokio::test]
async fn a_cursor_older_than_the_log_is_a_resync() {
    let world = World::with(small_window()).await;
    let before = left_after(&world, &[account(0)], 3).await;
    append(&world, &account(0), 4..=40);
    caught_up(&world, 40.0).await;
    world.source.expire(account(0).group(), 5);
    let mut device = resynced(&world, before.resume(), ResyncReason::CursorTooOld).await;
    append(&world, &account(0), 41..=41);
    assert_eq!(device.uids(1).await, [41]);
}

#[tokio::test]
async fn what_ages_out_during_the_read_is_a_resync() {
    let world = World::with(small_window()).await;
    let before = left_after(&world, &[account(0)], 3).await;
    append(&world, &account(0), 4..=40);
    caught_up(&world, 40.0).await;
    world.source.hold_reads(true);
    let mut device = world.again(&before, &[account(0)]).await;
    world.until("reading", || world.source.reads() > 0).await;
    world.source.expire(account(0).group(), 20);
    world.source.hold_reads(false);
    assert_eq!(device.resync().await.reason(), ResyncReason::CursorTooOld);
    device.live().await;
}

#[tokio::test]
async fn a_quiet_log_that_has_expired_is_no_resync() {
    let world = World::with(small_window()).await;
    let before = left_after(&world, &[account(0)], 3).await;
    world.source.expire(account(0).group(), 4);
    let mut device = world.again(&before, &[account(0)]).await;
    device.live().await;
    append(&world, &account(0), 4..=4);
    assert_eq!(device.uids(1).await, [4]);
}

#[tokio::test]
async fn purged_accounts_leave_no_hole() {
    let world = World::with(small_window()).await;
    let other = neighbour(0);
    world
        .source
        .put_account(&other, mailbell_proto::bus::v1::AccountRecord::default());
    let before = left_after(&world, &[account(0)], 3).await;
    append(&world, &other, 1..=20);
    append(&world, &account(0), 4..=9);
    caught_up(&world, 29.0).await;
    world.source.purge(&other);
    let mut device = world.again(&before, &[account(0)]).await;
    assert_eq!(device.uids(6).await, [4, 5, 6, 7, 8, 9]);
    device.live().await;
}

#[tokio::test]
async fn a_cursor_that_proves_nothing_is_a_resync() {
    let world = World::start().await;
    let before = left_after(&world, &[account(0)], 3).await;
    let with = |cursor: Cursor| SubscribeRequest {
        cursor: cursor.encode(),
        ..before.resume()
    };
    let group = account(0).group();
    let good = Cursor::decode(&before.cursor).unwrap();
    let mut other = good.clone();
    other.0[group].log_id = LogId([9; 16]);
    resynced(&world, with(other), ResyncReason::LogChanged).await;
    let mut beyond = good.clone();
    beyond.0[group].position = 4;
    resynced(&world, with(beyond), ResyncReason::LogChanged).await;
    let mut damaged = before.resume();
    damaged.cursor = damaged.cursor.slice(1..);
    resynced(&world, damaged, ResyncReason::BadCursor).await;
    let mut changed = before.resume();
    changed.kinds = vec![EventKind::Arrived.into()];
    resynced(&world, changed, ResyncReason::SubscriptionChanged).await;
    let mut undigested = before.resume();
    undigested.digest.clear();
    resynced(&world, undigested, ResyncReason::SubscriptionChanged).await;
    // In a log that none of its accounts is in, anything goes.
    let mut elsewhere = good;
    let other = (1..).map(account).find(|a| a.group() != group).unwrap();
    elsewhere.0[other.group()].log_id = LogId([9; 16]);
    let token = world.minter.token(&[account(0)]);
    let mut device = world.subscribe(with(elsewhere), &token).await.unwrap();
    device.live().await;
}

#[tokio::test]
async fn a_gateway_that_starts_later_takes_the_cursor_of_another() {
    let world = World::start().await;
    let before = left_after(&world, &[account(0)], 30).await;
    append(&world, &account(0), 31..=60);
    let later = World::on(world.source.clone(), options()).await;
    let mut device = later.again(&before, &[account(0)]).await;
    let expected: Vec<u32> = (31..=60).collect();
    assert_eq!(device.uids(30).await, expected);
    device.live().await;
    assert!(world.source.reads() > 0);
}

#[tokio::test]
async fn what_a_removed_account_left_in_the_log_is_told_to_nobody() {
    let world = World::with(small_window()).await;
    let other = neighbour(0);
    world
        .source
        .put_account(&other, mailbell_proto::bus::v1::AccountRecord::default());
    let accounts = [account(0), other.clone()];
    let before = left_after(&world, &accounts, 3).await;
    append(&world, &other, 1..=20);
    append(&world, &account(0), 4..=23);
    let mut removal = arrival(&other, 0);
    removal.content = bytes::Bytes::new();
    removal.fact = mailbell_core::event::Fact::AccountState {
        counter: 1,
        health: mailbell_proto::push::v1::Health::Removed,
    };
    world.source.append(&removal);
    append(&world, &account(0), 24..=40);
    caught_up(&world, 61.0).await;
    // Not purged yet.
    let tombstone = mailbell_proto::bus::v1::AccountRecord {
        removed_at_ms: 1,
        ..mailbell_proto::bus::v1::AccountRecord::default()
    };
    world.source.put_account(&other, tombstone);
    let mut device = world.again(&before, &accounts).await;
    let (mut uids, mut removed) = (Vec::new(), 0);
    while uids.len() < 37 {
        match device.try_next().await.unwrap() {
            Frame::Event(event) => {
                let key = event.key.unwrap();
                assert_eq!(key.account, account(0).to_string());
                uids.push(key.uid);
            }
            Frame::AccountState(state) => {
                assert_eq!(state.account, other.to_string());
                removed += 1;
            }
            _ => {}
        }
    }
    assert_eq!(uids, (4..=40).collect::<Vec<_>>());
    assert_eq!(removed, 1);
}
