//! A start while the store is away.

use std::time::Duration;

use mailbell_bus::{Bus, Role};
use mailbell_core::seal::KeyRing;
use mailbell_runtime::drain::Drain;
use mailbell_test_servers::{NatsOptions, NatsServer};

use crate::world::{connect, service, until_ready};

const LIMIT: Duration = Duration::from_secs(20);

/// A store that is set up and was killed, and a connection that knows.
async fn away() -> (NatsServer, Bus) {
    let mut nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    connect(&nats, Role::Setup).await.setup().await.unwrap();
    let key = KeyRing::default().add(1, &mut rand::rng()).unwrap();
    let watcher = connect(&nats, Role::Watcher).await;
    watcher.sealing_keys().put(&key.to_record()).await.unwrap();
    let bus = connect(&nats, Role::Admin).await;
    nats.kill();
    bus.link().wait_for(|link| !link.is_up()).await.unwrap();
    (nats, bus)
}

#[tokio::test]
async fn a_store_that_is_away_is_waited_for() {
    let (mut nats, bus) = away().await;
    let (service, health) = service(bus, LIMIT);
    let (drain, handle) = Drain::new();
    let mut run = tokio::spawn(service.run(handle));
    nats.restart().await.unwrap();
    until_ready(&mut run, &health).await;
    drain.drain_with_timeout(LIMIT).await.unwrap();
    run.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_is_heard_while_the_store_is_away() {
    let (_nats, bus) = away().await;
    let (service, health) = service(bus, LIMIT);
    let (drain, handle) = Drain::new();
    let run = tokio::spawn(service.run(handle));
    // It has tried once.
    tokio::task::yield_now().await;
    assert!(!health.readiness().ok);
    drain.drain_with_timeout(LIMIT).await.unwrap();
    run.await.unwrap().unwrap();
}
