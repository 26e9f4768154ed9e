//! A device that doesn't read costs bounded memory, holds up nobody, and gets everything once it reads.

use mailbell_proto::push::v1::SubscribeRequest;
use mailbell_tests::{
    device,
    installation::Part,
    process,
    world::{World, WorldOptions},
};

/// Each with some 700 bytes of content: several times what any queue or window holds.
const MESSAGES: u64 = 1_500;
/// Devices that don't read.
const DEAF: usize = 8;

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
    for _ in 0..DEAF {
        let mut client = device::bare(world.installation.push_url().unwrap())
            .await
            .unwrap();
        let request = device::with_token(SubscribeRequest::default(), &token).unwrap();
        let stream = client.subscribe(request).await.unwrap().into_inner();
        deaf.push((client, stream));
    }
    slow.pause();
    let pid = world.installation.pid(Part::Standalone);
    let before = process::resident(pid);
    world.deliver(0, MESSAGES).await.unwrap();
    world.settle(&[&quick]).await.unwrap();
    let grown = process::resident(pid).saturating_sub(before) / 1_000_000;
    assert!(grown < 32, "{DEAF} deaf devices cost {grown} MB");
    slow.resume();
    world.settle(&[&quick, &slow]).await.unwrap();
    drop(deaf);
    world.search_leaks().await.unwrap();
}
