//! Devices that do not read: bounded, and nobody else notices.

use std::time::Duration;

use mailbell_gateway::Options;
use mailbell_proto::push::v1::SubscribeRequest;
use tonic::Code;

use crate::support::{World, account, bearer, large, options};

#[tokio::test]
async fn a_slow_device_costs_its_queue_and_then_gets_everything() {
    let world = World::start().await;
    let mut slow = world.device(&[account(0)]).await;
    slow.live().await;
    let mut quick = world.device(&[account(0)]).await;
    quick.live().await;
    let expected: Vec<u32> = (1..=1000).collect();
    for uid in &expected {
        world.source.append(&large(*uid));
    }
    // 6 MB for each of them: the quick one has all of it, the slow one has not begun.
    assert_eq!(quick.uids(1000).await, expected);
    quick.cursor_at(&account(0), 1000).await;
    let behind = world.value("gateway_devices_behind");
    assert_eq!(behind, 1.0, "the slow one");
    assert!(world.value("gateway_queued_frames") <= 32.0);
    // All of the quick one's, and what the windows, buffers and queue of the slow one took.
    let queued = world.value("queued_total");
    assert!(queued < 1100.0, "{queued}");
    assert_eq!(slow.uids(1000).await, expected);
    slow.cursor_at(&account(0), 1000).await;
}

#[tokio::test]
async fn a_device_that_never_reads_is_closed() {
    let options = Options {
        slow_after: Duration::from_millis(300),
        ..options()
    };
    let world = World::with(options).await;
    let token = world.minter.token(&[account(0)]);
    let mut client = world.client().await;
    let request = bearer(SubscribeRequest::default(), &token);
    let mut stream = client.subscribe(request).await.unwrap().into_inner();
    for uid in 1..=500 {
        world.source.append(&large(uid));
    }
    let closed = "gateway_streams_ended_total{why=\"too-slow\"}";
    world.until("closed", || world.value(closed) == 1.0).await;
    // When it reads on, it finds what was in flight, and the end.
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an end without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    world
        .until("gone", || world.value("gateway_devices") == 0.0)
        .await;
    assert_eq!(world.value("gateway_queued_frames"), 0.0);
}
