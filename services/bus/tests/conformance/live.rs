//! Members and claims as who looks on sees them, and requests to drain.

use mailbell_bus::{Bus, Role};
use mailbell_core::ids::MemberId;
use mailbell_proto::bus::v1::{Claim, Member};
use prost::Message as _;

use crate::world::{World, partition};

/// Writes as the watchers' user does, without Mailbell.
async fn put(raw: &async_nats::Client, key: &str, value: Vec<u8>) {
    let subject = format!("$KV.MB_main_LIVE.{key}");
    let answer = raw.request(subject, value.into()).await.unwrap();
    assert!(!String::from_utf8_lossy(&answer.payload).contains("error"));
}

fn member(id: &str) -> Vec<u8> {
    let member = Member {
        id: id.to_owned(),
        weight: 100,
        ..Member::default()
    };
    member.encode_to_vec()
}

async fn names(bus: &Bus) -> Vec<String> {
    let members = bus.live().members().await.unwrap();
    members.into_iter().map(|member| member.value.id).collect()
}

#[tokio::test]
async fn an_admin_sees_members_and_claims_as_they_are() {
    let world = World::start().await;
    let admin = world.bus(Role::Admin).await;
    assert!(admin.live().members().await.unwrap().is_empty());
    let raw = world.raw("watcher").await;
    for id in ["b", "a"] {
        put(&raw, &format!("member.{id}"), member(id)).await;
    }
    // A record under another's name, and what is none, hide nobody.
    put(&raw, "member.c", member("d")).await;
    put(&raw, "member.e", b"\xff\xff".to_vec()).await;
    assert_eq!(names(&admin).await, ["a", "b"]);
    let before = admin.live().members().await.unwrap()[0].revision;
    put(&raw, "member.a", member("a")).await;
    assert!(admin.live().members().await.unwrap()[0].revision > before);

    let claim = Claim {
        member: "a".to_owned(),
        accounts: 3,
        ..Claim::default()
    };
    for key in ["claim.5", "claim.1023", "claim.1024", "claim.x"] {
        put(&raw, key, claim.encode_to_vec()).await;
    }
    let claims = admin.live().claims().await.unwrap();
    let partitions: Vec<_> = claims.keys().copied().collect();
    assert_eq!(partitions, [partition(5), partition(1023)]);
    assert_eq!(claims[&partition(5)].value, claim);
}

#[tokio::test]
async fn a_request_to_drain_reaches_the_member_and_is_the_admins_to_write() {
    let world = World::start().await;
    let (admin, watcher) = (
        world.bus(Role::Admin).await.live(),
        world.bus(Role::Watcher).await.live(),
    );
    let id: MemberId = "watcher-0".parse().unwrap();
    assert_eq!(watcher.drain_request(&id).await.unwrap(), None);
    for drain in [true, false] {
        admin.request_drain(&id, "7", drain).await.unwrap();
        let request = watcher.drain_request(&id).await.unwrap().unwrap().value;
        assert_eq!((request.drain, request.incarnation.as_str()), (drain, "7"));
    }
    let refused = watcher.request_drain(&id, "", true).await;
    assert!(matches!(refused, Err(mailbell_bus::BusError::Denied(_))));
}
