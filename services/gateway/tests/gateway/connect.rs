//! The stream with a way back.

use mailbell_core::token::Claims;
use mailbell_proto::push::v1::{
    Ack, ClientFrame, ContentLevel, EventKey, EventKind, Reauthenticate, SubscribeRequest,
    client_frame::Frame as Said,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::{Device, World, account, arrival, bearer, claims, now_s};

type Way = mpsc::Sender<ClientFrame>;

fn said(frame: Said) -> ClientFrame {
    ClientFrame { frame: Some(frame) }
}

async fn connect(world: &World, first: Said, token: &str) -> Result<(Device, Way), Status> {
    let (way, frames) = mpsc::channel(8);
    way.send(said(first)).await.unwrap();
    let mut client = world.client().await;
    let request = bearer(ReceiverStream::new(frames), token);
    let stream = client.connect(request).await?.into_inner();
    Ok((Device::new(stream).await, way))
}

async fn connected(world: &World, token: &str) -> (Device, Way) {
    let first = Said::Subscribe(SubscribeRequest::default());
    let (mut device, way) = connect(world, first, token).await.unwrap();
    device.live().await;
    (device, way)
}

fn key(n: u32) -> EventKey {
    EventKey {
        account: account(n).to_string(),
        folder: 1,
        generation: 7,
        uid: 1,
        kind: EventKind::Arrived.into(),
        modseq: 0,
    }
}

async fn ends(device: &mut Device) -> Code {
    device.rest().await.1.code()
}

#[tokio::test]
async fn acknowledgements_are_counted_for_own_accounts() {
    let world = World::start().await;
    let token = world.minter.token(&[account(0)]);
    let (mut device, way) = connected(&world, &token).await;
    world.source.append(&arrival(&account(0), 1));
    assert_eq!(device.uids(1).await, [1]);
    let nonsense = EventKey::default();
    let keys = vec![key(0), key(1), nonsense];
    way.send(said(Said::Ack(Ack { keys }))).await.unwrap();
    world
        .until("acked", || world.value("acked_total") == 1.0)
        .await;
    // The client's half is closed: the stream is over.
    drop(way);
    let end = device.rest().await.1;
    assert_eq!(end.code(), Code::Ok);
    world
        .until("gone", || world.value("gateway_devices") == 0.0)
        .await;
}

#[tokio::test]
async fn what_a_client_must_not_say_ends_the_stream() {
    let world = World::start().await;
    let token = world.minter.token(&[account(0)]);
    let ack = Said::Ack(Ack::default());
    let status = connect(&world, ack, &token).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument);
    let many = Said::Ack(Ack {
        keys: vec![EventKey::default(); 513],
    });
    let twice = Said::Subscribe(SubscribeRequest::default());
    for wrong in [many, twice] {
        let (mut device, way) = connected(&world, &token).await;
        way.send(said(wrong)).await.unwrap();
        assert_eq!(ends(&mut device).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_new_token_prolongs_the_stream() {
    let world = World::start().await;
    let short = world.minter.sign(&Claims {
        exp: now_s() + 5,
        ..claims(&[account(0)])
    });
    let (mut device, way) = connected(&world, &short).await;
    let token = world.minter.sign(&Claims {
        jti: "t2".to_owned(),
        ..claims(&[account(0), account(1)])
    });
    let new = Said::Reauthenticate(Reauthenticate { token });
    way.send(said(new)).await.unwrap();
    // The old one is over, and then revoked as well: neither ends the stream.
    let past = now_s() + 6;
    while now_s() <= past {
        device.try_next().await.unwrap();
    }
    let tenant = "t".parse().unwrap();
    world.source.revoke(&tenant, "t1", (past + 60) * 1000);
    for _ in 0..3 {
        device.try_next().await.unwrap();
    }
    // The new one does.
    world.source.revoke(&tenant, "t2", (past + 60) * 1000);
    assert_eq!(ends(&mut device).await, Code::Unauthenticated);
}

#[tokio::test]
async fn a_new_token_must_allow_what_the_stream_shows() {
    let world = World::start().await;
    let good = world.minter.token(&[account(0)]);
    let other = world.minter.token(&[account(1)]);
    let less = world.minter.sign(&Claims {
        content: mailbell_core::content::word(ContentLevel::Key).to_owned(),
        ..claims(&[account(0)])
    });
    for (token, code) in [
        (other, Code::PermissionDenied),
        (less, Code::PermissionDenied),
        ("nonsense".to_owned(), Code::Unauthenticated),
    ] {
        let (mut device, way) = connected(&world, &good).await;
        let new = Said::Reauthenticate(Reauthenticate { token });
        way.send(said(new)).await.unwrap();
        assert_eq!(ends(&mut device).await, code);
    }
}
