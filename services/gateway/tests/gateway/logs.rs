//! Logs that are cut, lost, or skip something: nobody is left with a silent hole.

use std::time::Duration;

use mailbell_core::ids::Group;
use mailbell_gateway::{Error, Options, source::memory::MemorySource};
use mailbell_proto::push::v1::{ListMessagesRequest, ResyncReason, SubscribeRequest};
use tonic::Code;

use crate::support::{World, account, arrival, bearer, neighbour, options};

/// Not ready soon after it hears nothing.
fn hasty() -> Options {
    Options {
        link_grace: Duration::from_millis(100),
        ..options()
    }
}

#[tokio::test]
async fn a_lost_log_is_a_resync_for_whom_it_concerns() {
    let world = World::start().await;
    let group = account(0).group();
    let other = (1..).map(account).find(|a| a.group() != group).unwrap();
    let mut concerned = world.device(&[account(0), other.clone()]).await;
    let mut unconcerned = world.device(std::slice::from_ref(&other)).await;
    concerned.live().await;
    unconcerned.live().await;
    for uid in 1..=3 {
        world.source.append(&arrival(&account(0), uid));
    }
    assert_eq!(concerned.uids(3).await, [1, 2, 3]);
    concerned.cursor_at(&account(0), 3).await;
    world.source.replace(group);
    let resync = concerned.resync().await;
    assert_eq!(resync.reason(), ResyncReason::LogChanged);
    let scope = resync.scope.unwrap();
    assert_eq!(
        (scope.account, scope.everything),
        (account(0).to_string(), false)
    );
    world.source.append(&arrival(&account(0), 4));
    world.source.append(&arrival(&other, 5));
    let mut both = concerned.uids(2).await;
    both.sort_unstable();
    assert_eq!(both, [4, 5]);
    assert_eq!(unconcerned.uids(1).await, [5]);
    // Its new cursor is good for the new history.
    while world.source.last(group) != cursor_position(&concerned) {
        concerned.try_next().await.unwrap();
    }
    world.source.append(&arrival(&account(0), 6));
    let mut again = world.again(&concerned, &[account(0), other]).await;
    assert_eq!(again.uids(1).await, [6]);
    again.live().await;
}

fn cursor_position(device: &crate::support::Device) -> u64 {
    let cursor = mailbell_core::cursor::Cursor::decode(&device.cursor).unwrap();
    cursor.0[account(0).group()].position
}

#[tokio::test]
async fn a_tail_that_was_cut_back_is_a_resync() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    for uid in 1..=10 {
        world.source.append(&arrival(&account(0), uid));
    }
    device.uids(10).await;
    world.source.cut(account(0).group(), 6);
    assert_eq!(device.resync().await.reason(), ResyncReason::LogChanged);
    // Positions are given a second time: they are other facts.
    world.source.append(&arrival(&account(0), 70));
    device.cursor.clear();
    assert_eq!(device.uids(1).await, [70]);
    device.cursor_at(&account(0), 7).await;
}

#[tokio::test]
async fn what_aged_out_unread_is_a_resync_and_a_purge_is_not() {
    let world = World::start().await;
    let other = neighbour(0);
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    world.source.append(&arrival(&account(0), 1));
    assert_eq!(device.uids(1).await, [1]);

    world.source.disconnect();
    for uid in 1..=5 {
        world.source.append(&arrival(&other, uid));
    }
    world.source.purge(&other);
    world.source.append(&arrival(&account(0), 2));
    world.source.reconnect();
    assert_eq!(device.uids(1).await, [2]);

    world.source.disconnect();
    for uid in 3..=9 {
        world.source.append(&arrival(&account(0), uid));
    }
    // Up to 11 are gone: 8 to 11 of them unread.
    world.source.expire(account(0).group(), 12);
    world.source.reconnect();
    assert_eq!(device.resync().await.reason(), ResyncReason::CursorTooOld);
    world.source.append(&arrival(&account(0), 10));
    assert_eq!(
        device.event().await.key.unwrap().account,
        account(0).to_string()
    );
}

#[tokio::test]
async fn consumers_that_are_made_anew_tell_nothing_twice_and_lose_nothing() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    for uid in 1..=60 {
        world.source.append(&arrival(&account(0), uid));
        if uid % 7 == 0 {
            world.source.remake_consumers();
        }
    }
    let expected: Vec<u32> = (1..=60).collect();
    assert_eq!(device.uids(60).await, expected);
}

#[tokio::test]
async fn a_log_without_a_leader_is_told_to_devices() {
    let world = World::with(hasty()).await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    let group = account(0).group();
    world.source.set_away(group, true);
    // Although the connection to NATS is good.
    while device.silent_since_ms == 0 {
        device.try_next().await.unwrap();
    }
    assert!(world.health.readiness().ok, "the others are there");
    for other in Group::all() {
        world.source.set_away(other, true);
    }
    let not_ready = || !world.health.readiness().ok;
    world.until("not ready", not_ready).await;
    for other in Group::all() {
        world.source.set_away(other, false);
    }
    world.ready().await;
    while device.silent_since_ms != 0 {
        device.try_next().await.unwrap();
    }
    world.source.append(&arrival(&account(0), 1));
    assert_eq!(device.uids(1).await, [1]);
}

#[tokio::test]
async fn a_log_that_is_away_at_the_start_keeps_out_only_whom_it_concerns() {
    let source = MemorySource::new();
    let group = account(0).group();
    let other = (1..).map(account).find(|a| a.group() != group).unwrap();
    source.set_away(group, true);
    let world = World::on(source, hasty()).await;
    let mut there = world.device(std::slice::from_ref(&other)).await;
    there.live().await;
    world.source.append(&arrival(&other, 1));
    assert_eq!(there.uids(1).await, [1]);
    while there.silent_since_ms == 0 {
        there.try_next().await.unwrap();
    }
    let token = world.minter.token(&[account(0), other]);
    let refused = async || world.refused(SubscribeRequest::default(), &token).await;
    assert_eq!(refused().await, Code::Unavailable);
    let request = ListMessagesRequest {
        account: account(0).to_string(),
        ..ListMessagesRequest::default()
    };
    let mut client = world.client().await;
    let listed = client.list_messages(bearer(request, &token));
    assert_eq!(listed.await.unwrap_err().code(), Code::Unavailable);
    world.source.set_away(group, false);
    while refused().await == Code::Unavailable {
        tokio::task::yield_now().await;
    }
    let mut both = world.device(&[account(0)]).await;
    both.live().await;
    world.source.append(&arrival(&account(0), 2));
    assert_eq!(both.uids(1).await, [2]);
}

#[tokio::test]
async fn a_follower_that_ends_ends_the_gateway() {
    let mut world = World::start().await;
    world.source.close_log(account(0).group());
    let ended = tokio::time::timeout(crate::support::LIMIT, &mut world.gateway.task);
    let ended = ended.await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::BusClosed)), "{ended:?}");
}
