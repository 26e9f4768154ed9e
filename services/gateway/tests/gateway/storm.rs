//! Very many devices that come back at once.

use mailbell_core::delivery::WindowLimits;
use mailbell_gateway::Options;
use mailbell_proto::push::v1::SubscribeRequest;
use tonic::Code;

use crate::support::{Device, World, account, arrival, bearer, options};

const DEVICES: usize = 200;

#[tokio::test]
async fn a_storm_asks_each_leader_a_few_times_and_serves_everybody() {
    let first = World::start().await;
    let mut device = first.device(&[account(0)]).await;
    device.live().await;
    for uid in 1..=30 {
        first.source.append(&arrival(&account(0), uid));
    }
    assert_eq!(device.uids(1).await, [1]);
    device.uids(29).await;
    device.cursor_at(&account(0), 30).await;
    for uid in 31..=60 {
        first.source.append(&arrival(&account(0), uid));
    }
    drop(first.gateway);

    // Another gateway takes all of them; its window knows nothing of what they missed.
    let options = Options {
        window: WindowLimits {
            entries: 4,
            bytes: 1024 * 1024,
        },
        replays: 4,
        ..options()
    };
    let world = World::on(first.source, options).await;
    let token = world.minter.token(&[account(0)]);
    let request = SubscribeRequest {
        cursor: device.cursor.clone(),
        digest: device.hello.digest.clone(),
        ..SubscribeRequest::default()
    };
    let mut client = world.client().await;
    let questions = world.source.questions();
    let mut coming = tokio::task::JoinSet::new();
    for _ in 0..DEVICES {
        let mut client = client.clone();
        let request = bearer(request.clone(), &token);
        coming.spawn(async move {
            let stream = client.subscribe(request).await.unwrap().into_inner();
            let mut device = Device::new(stream).await;
            let uids = device.uids(30).await;
            device.live().await;
            uids
        });
    }
    let expected: Vec<u32> = (31..=60).collect();
    while let Some(uids) = coming.join_next().await {
        assert_eq!(uids.unwrap(), expected);
    }
    let asked = world.source.questions() - questions;
    // One question serves all who wait for it, with four reads at a time some 50 to 80 of them. If only the attaches or only the
    // reads asked each for itself, it would be more than 200.
    assert!(asked < 150, "{asked} questions");
    let bad = client.subscribe(SubscribeRequest::default()).await;
    assert!(bad.is_err());
}

#[tokio::test]
async fn one_device_too_many_is_refused_until_another_has_gone() {
    let options = Options {
        devices: 2,
        ..options()
    };
    let world = World::with(options).await;
    let first = world.device(&[account(0)]).await;
    let _second = world.device(&[account(0)]).await;
    let token = world.minter.token(&[account(0)]);
    let request = SubscribeRequest::default();
    let refused = world.refused(request.clone(), &token).await;
    assert_eq!(refused, Code::ResourceExhausted);
    drop(first);
    world
        .until("gone", || world.value("gateway_devices") == 1.0)
        .await;
    assert_eq!(world.refused(request, &token).await, Code::Ok);
}
