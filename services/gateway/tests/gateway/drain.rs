//! How a gateway ends, and how it sends old streams elsewhere.

use std::time::Duration;

use mailbell_gateway::Options;
use mailbell_proto::push::v1::{GoAway, SubscribeRequest, server_frame::Frame};
use tokio::time::Instant;
use tonic::Code;

use crate::support::{Device, World, account, arrival, large, options};

async fn end(mut device: Device, since: Instant) -> (GoAway, Code, Duration, usize) {
    let (frames, status) = device.rest().await;
    let away = frames.iter().find_map(|frame| match frame {
        Frame::GoAway(away) => Some(away.clone()),
        _ => None,
    });
    (away.unwrap(), status.code(), since.elapsed(), frames.len())
}

#[tokio::test]
async fn a_drain_spreads_its_devices_and_ends() {
    let world = World::start().await;
    let mut devices = Vec::new();
    for _ in 0..8 {
        let mut device = world.device(&[account(0)]).await;
        device.live().await;
        devices.push(device);
    }
    let mut idle_client = world.client().await;
    let since = Instant::now();
    world.drain.begin(Duration::from_secs(10));
    let ends = devices.into_iter().map(|device| end(device, since));
    let ends = futures_util::future::join_all(ends);
    let events = async {
        world.source.append(&arrival(&account(0), 1));
    };
    let (mut ends, ()) = tokio::join!(ends, events);
    ends.sort_by_key(|(away, ..)| away.reconnect_after_ms);
    for (n, (away, code, after, _)) in (0u32..).zip(&ends) {
        // 8 devices over 400 ms, one every 50.
        assert_eq!(away.reconnect_after_ms, n * 50);
        assert_eq!((away.reason.as_str(), *code), ("drain", Code::Unavailable));
        assert!(
            *after >= Duration::from_millis(u64::from(n) * 50),
            "{after:?}"
        );
    }
    // Those that stayed longest were served until they left.
    assert_eq!(ends[7].3, 2, "the GoAway and the event");
    assert!(!world.health.readiness().ok);
    let token = world.minter.token(&[account(0)]);
    let request = crate::support::bearer(SubscribeRequest::default(), &token);
    let refused = idle_client.subscribe(request).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let drained = world.drain.drain_with_timeout(Duration::ZERO).await;
    assert_eq!(
        drained,
        Ok(()),
        "every handle was let go, well before the deadline"
    );
    assert!(since.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_drain_is_bounded_whatever_devices_do() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    // It does not read any more, and is so far behind that its end does not fit into the buffers between.
    for uid in 1..=100 {
        world.source.append(&large(uid));
    }
    world
        .until("behind", || world.value("gateway_devices_behind") == 1.0)
        .await;
    let since = Instant::now();
    let window = Duration::from_secs(1);
    let _ = world.drain.drain_with_timeout(window).await;
    world
        .until("ended", || world.gateway.task.is_finished())
        .await;
    assert!(since.elapsed() < Duration::from_secs(3));
    drop(device);
}

#[tokio::test]
async fn an_old_stream_is_sent_elsewhere() {
    let options = Options {
        stream_age: Some(Duration::from_millis(200)),
        ..options()
    };
    let world = World::with(options).await;
    let since = Instant::now();
    let device = world.device(&[account(0)]).await;
    let (away, code, after, _) = end(device, since).await;
    assert_eq!((away.reason.as_str(), code), ("age", Code::Unavailable));
    assert!(away.reconnect_after_ms <= 1000);
    assert!(after >= Duration::from_millis(180), "{after:?}");
    assert!(world.health.readiness().ok);
}

#[tokio::test]
async fn a_connection_without_streams_is_closed() {
    let options = Options {
        idle: Duration::from_millis(100),
        ..options()
    };
    let world = World::with(options).await;
    let _idle = world.client().await;
    let mut device = world.device(&[account(0)]).await;
    let open = "connections{listener=\"device\"}";
    world.until("closed", || world.value(open) == 1.0).await;
    device.live().await;
    world.source.append(&arrival(&account(0), 1));
    assert_eq!(device.uids(1).await, [1]);
}
