//! What is wanted is changed: more pods, fewer, another certificate.

use std::{collections::BTreeSet, net::SocketAddr};

use mailbell_runtime::tls::{ALPN_H2, Roots, client_config};
use mailbell_test_cluster::in_private_network;
use serde_json::json;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::{
    TlsConnector,
    rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

use crate::{
    figures,
    install::{NAMESPACE, tls_secret},
    world::{TAG, World},
};

/// The parts that devices and commands connect to, and their ports.
const LISTENERS: [(&str, u16); 2] = [("gateway", 7443), ("admin", 7444)];

#[test]
fn scaled_and_renewed() {
    in_private_network(async || {
        let mut world = World::start().await;
        figures::print_operator(&world).await;
        scaled(&mut world).await;
        renewed(&world).await;
    })
    .unwrap();
}

async fn scaled(world: &mut World) {
    let before = pods(world).await;
    world
        .under_load("watchers and gateways from 2 to 3", scale(world, 3))
        .await;
    let more = pods(world).await;
    assert!(before.is_subset(&more), "{before:?} stay in {more:?}");
    world.spread_devices(3).await;
    let (logs, steps) = (follow(world, &more), world.steps());
    world
        .under_load("watchers and gateways from 3 to 2", scale(world, 2))
        .await;
    let left = pods(world).await;
    assert!(left.is_subset(&more), "{left:?} are of {more:?}");
    // One of each has gone, in order: it has given its mailboxes away, and told its devices to go elsewhere.
    let mut gone = BTreeSet::new();
    for (name, log) in logs {
        if !left.contains(&name) {
            let part = if name.contains("watcher") {
                "watcher"
            } else {
                "gateway"
            };
            let log = log.await.unwrap();
            assert!(
                part != "watcher" || log.contains("handed over"),
                "{name}: {log}"
            );
            gone.insert(part);
        }
    }
    assert_eq!(gone.len(), 2, "{more:?} became {left:?}");
    assert!(world.told_to_go(&steps) > 0, "no device was on it");
}

async fn scale(world: &World, pods: usize) {
    let scale = json!({ "scale": { "min": pods, "max": pods } });
    world
        .patch(&json!({ "watchers": scale, "gateways": scale }))
        .await;
    world.wait_scaled(TAG, pods).await;
}

/// The names of watchers and gateways.
async fn pods(world: &World) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for part in ["watcher", "gateway"] {
        let pods = world.pods_of(part).await;
        names.extend(pods.iter().map(|pod| pod.name().to_owned()));
    }
    names
}

/// What these pods log until they end.
fn follow(world: &World, pods: &BTreeSet<String>) -> Vec<(String, JoinHandle<String>)> {
    let follow = |name: &String| {
        let (tool, pod) = (world.cluster.tool("kubectl"), name.clone());
        let log = tokio::spawn(async move {
            let words = ["--namespace", NAMESPACE, "logs", "--follow", &pod];
            let said = tool.run(&words, "").await.unwrap();
            String::from_utf8_lossy(&said.stdout).into_owned()
        });
        (name.clone(), log)
    };
    pods.iter().map(follow).collect()
}

async fn renewed(world: &World) {
    let certificate = world.new_certificate();
    let new = CertificateDer::from_pem_slice(certificate.certificate_pem.as_bytes()).unwrap();
    let lives = world.lives().await;
    world
        .under_load("the certificate is renewed", async {
            for at in listeners(world).await {
                assert_ne!(shown(world, at).await, new, "{at} has the first one");
            }
            world.apply(vec![tls_secret(&certificate)]).await;
            world
                .until("all show the new certificate", async || {
                    for at in listeners(world).await {
                        if shown(world, at).await != new {
                            return false;
                        }
                    }
                    true
                })
                .await;
        })
        .await;
    assert_eq!(world.lives().await, lives, "nothing was started anew");
}

/// Where each pod listens that has the certificate.
async fn listeners(world: &World) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for (part, port) in LISTENERS {
        all.extend(world.pods_of(part).await.iter().map(|pod| pod.at(port)));
    }
    assert_eq!(all.len(), 4, "two gateways and two admins");
    all
}

/// The certificate that one shows to a device that trusts its authority.
async fn shown(world: &World, at: SocketAddr) -> CertificateDer<'static> {
    let roots = world.authority_file();
    let client = client_config(Roots::File(&roots), &[ALPN_H2]).unwrap();
    let stream = TcpStream::connect(at).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let connected = TlsConnector::from(client).connect(name, stream).await;
    let connected = connected.unwrap();
    let (_, session) = connected.get_ref();
    session.peer_certificates().unwrap()[0].clone().into_owned()
}
