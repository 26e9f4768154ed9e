//! A device that doesn't read costs bounded memory, holds up nobody, and gets everything once it reads.

use mailbell_proto::push::v1::{SubscribeRequest, server_frame::Frame};
use mailbell_tests::{
    device,
    installation::Part,
    process::{self, until},
    world::{SETTLE_LIMIT, World, WorldOptions},
};

/// Each with some 600 bytes of content: more than any queue and window hold together, and delivered long before the gateway gives
/// up who doesn't read.
const MESSAGES: u64 = 500;
/// Devices that don't read.
const DEAF: u32 = 8;

#[tokio::test]
async fn a_device_that_does_not_read() {
    let mut world = World::start(WorldOptions::default()).await.unwrap();
    let quick = world.device(&[0]).await.unwrap();
    let slow = world.device(&[0]).await.unwrap();
    world.deliver(0, 100).await.unwrap();
    world.settle(&[&quick, &slow]).await.unwrap();
    // Raw streams that nobody reads, and a device whose app stops reading.
    let token = world.token(&[0]).await.unwrap();
    let mut deaf = Vec::new();
    let mut queue = 0;
    for _ in 0..DEAF {
        let mut client = device::bare(world.installation.push_url().unwrap())
            .await
            .unwrap();
        let request = device::with_token(SubscribeRequest::default(), &token).unwrap();
        let mut stream = client.subscribe(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap();
        let Some(Frame::Hello(hello)) = first.frame else {
            panic!("the first frame is {first:?}");
        };
        queue = hello.queue_events;
        deaf.push((client, stream));
    }
    slow.pause();
    let pid = world.installation.pid(Part::Standalone);
    let before = process::resident(pid);
    world.deliver(0, MESSAGES).await.unwrap();
    world.settle(&[&quick]).await.unwrap();
    // Whoever doesn't read is behind, and waits with a full queue and not with all that came.
    until(SETTLE_LIMIT, "all that don't read to be behind", || async {
        let behind = "mailbell_gateway_devices_behind";
        world.installation.metric(behind, &[]).await.unwrap() == f64::from(DEAF + 1)
    })
    .await
    .unwrap();
    let queued = world
        .installation
        .metric("mailbell_gateway_queued_frames", &[])
        .await
        .unwrap();
    let most = f64::from(queue) * f64::from(DEAF + 2);
    assert!(queued <= most, "{queued} frames wait, {most} may");
    let grown = process::resident(pid).saturating_sub(before) / 1_000_000;
    assert!(grown < 32, "{DEAF} deaf devices cost {grown} MB");
    slow.resume();
    world.settle(&[&quick, &slow]).await.unwrap();
    drop(deaf);
    world.search_leaks().await.unwrap();
}
