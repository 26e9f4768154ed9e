//! Who may open a stream, and for how long.

use std::time::Duration;

use mailbell_core::token::Claims;
use mailbell_proto::push::v1::{SubscribeRequest, server_frame::Frame};
use tokio::time::Instant;
use tonic::Code;

use crate::support::{Device, Minter, World, account, arrival, claims, large, now_s};

#[tokio::test]
async fn a_stream_needs_a_good_token() {
    let world = World::start().await;
    let refused = async |token: &str| world.refused(SubscribeRequest::default(), token).await;
    let mut client = world.client().await;
    let missing = client.subscribe(SubscribeRequest::default()).await;
    assert_eq!(missing.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(refused("nonsense").await, Code::Unauthenticated);
    let forged = Minter::new("k1").token(&[account(0)]);
    assert_eq!(refused(&forged).await, Code::Unauthenticated);
    let expired = world.minter.sign(&Claims {
        exp: now_s() - 1,
        ..claims(&[account(0)])
    });
    assert_eq!(refused(&expired).await, Code::Unauthenticated);
    let good = world.minter.token(&[account(0)]);
    assert_eq!(refused(&good).await, Code::Ok);
    let other = SubscribeRequest {
        accounts: vec![account(1).to_string()],
        ..SubscribeRequest::default()
    };
    assert_eq!(world.refused(other, &good).await, Code::PermissionDenied);
    let tenant = SubscribeRequest {
        whole_tenant: true,
        ..SubscribeRequest::default()
    };
    assert_eq!(world.refused(tenant, &good).await, Code::PermissionDenied);
    let nonsense = SubscribeRequest {
        accounts: vec!["x".to_owned()],
        ..SubscribeRequest::default()
    };
    assert_eq!(world.refused(nonsense, &good).await, Code::InvalidArgument);
    for (why, count) in [
        ("missing", 1.0),
        ("malformed", 1.0),
        ("signature", 1.0),
        ("expired", 1.0),
    ] {
        let name = format!("gateway_tokens_refused_total{{why=\"{why}\"}}");
        assert_eq!(world.value(&name), count, "{why}");
    }
}

#[tokio::test]
async fn the_longest_token_that_is_minted_is_taken() {
    let world = World::start().await;
    let tenant = "t".repeat(63);
    let accounts = (0..256).map(|n| format!("{tenant}.01ARZ3NDEKTSV4RRFFQ6{n:06}"));
    let token = world.minter.sign(&Claims {
        accounts: accounts.collect(),
        tenant,
        ..claims(&[account(0)])
    });
    assert!(token.len() > 30_000, "{}", token.len());
    let request = SubscribeRequest::default();
    let mut device = world.subscribe(request, &token).await.unwrap();
    assert_eq!(device.hello.accounts.len(), 256);
    device.live().await;
}

/// The last words and the status of a stream that ends.
async fn last_words(device: &mut Device) -> (String, Code) {
    let (frames, status) = device.rest().await;
    let Some(Frame::GoAway(away)) = frames.last() else {
        panic!("{frames:?}");
    };
    (away.reason.clone(), status.code())
}

#[tokio::test]
async fn a_revoked_token_ends_its_streams_and_no_other() {
    let world = World::start().await;
    let mut device = world.device(&[account(0)]).await;
    let other = world.minter.sign(&Claims {
        jti: "t2".to_owned(),
        ..claims(&[account(0)])
    });
    let request = SubscribeRequest::default();
    let mut stays = world.subscribe(request.clone(), &other).await.unwrap();
    device.live().await;
    stays.live().await;
    let since = Instant::now();
    let tenant = "t".parse().unwrap();
    world.source.revoke(&tenant, "t1", (now_s() + 3600) * 1000);
    let revoked = ("token-revoked".to_owned(), Code::Unauthenticated);
    assert_eq!(last_words(&mut device).await, revoked);
    assert!(since.elapsed() < Duration::from_secs(5));
    let token = world.minter.token(&[account(0)]);
    assert_eq!(world.refused(request, &token).await, Code::Unauthenticated);
    world.source.append(&arrival(&account(0), 1));
    assert_eq!(stays.uids(1).await, [1]);
    // A key that is withdrawn ends all that it signed.
    world.source.remove_issuer("k1");
    assert_eq!(last_words(&mut stays).await, revoked);
}

#[tokio::test]
async fn a_revoked_device_that_does_not_read_is_cut_off() {
    let world = World::start().await;
    let device = world.device(&[account(0)]).await;
    for uid in 1..=100 {
        world.source.append(&large(uid));
    }
    world
        .until("behind", || world.value("gateway_devices_behind") == 1.0)
        .await;
    let since = Instant::now();
    let tenant = "t".parse().unwrap();
    world.source.revoke(&tenant, "t1", (now_s() + 3600) * 1000);
    let open = "connections{listener=\"device\"}";
    world.until("cut off", || world.value(open) == 0.0).await;
    assert!(since.elapsed() < Duration::from_secs(5));
    drop(device);
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let world = World::start().await;
    let token = world.minter.sign(&Claims {
        exp: now_s() + 5,
        ..claims(&[account(0)])
    });
    let request = SubscribeRequest::default();
    let mut device = world.subscribe(request, &token).await.unwrap();
    assert!(device.hello.token_expires_at_ms > now_s() * 1000);
    let expired = ("token-expired".to_owned(), Code::Unauthenticated);
    assert_eq!(last_words(&mut device).await, expired);
}

#[tokio::test]
async fn health_and_reflection_answer_without_a_token() {
    let world = World::start().await;
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", world.addr));
    let channel = endpoint.unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let request = || tonic_health::pb::HealthCheckRequest {
        service: "mailbell.push.v1.Push".to_owned(),
    };
    let serving = tonic_health::pb::health_check_response::ServingStatus::Serving as i32;
    // Told once a second; looked at until then.
    let mut look = tokio::time::interval(Duration::from_millis(20));
    let said = async {
        loop {
            let answer = health.check(request()).await;
            if answer.is_ok_and(|answer| answer.into_inner().status == serving) {
                return;
            }
            look.tick().await;
        }
    };
    tokio::time::timeout(crate::support::LIMIT, said)
        .await
        .unwrap();
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(
                String::new(),
            ),
        ),
    };
    let answer = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap();
    let text = format!("{answer:?}");
    assert!(text.contains("mailbell.push.v1.Push"), "{text}");
    assert!(!text.contains("mailbell.bus.v1"), "{text}");
}
