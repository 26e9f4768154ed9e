//! Several watcher processes share the mailboxes, on real NATS servers and with production timing: a member renews every 3 s and is
//! dead after 12 s. They come and go ([`scale`]), fail ([`faults`]), lose NATS ([`nats`]), and all of it at random ([`chaos`]): with tens to hundreds of mailboxes on the synthetic
//! mail server, and with real ones on Dovecot ([`mail`]).
//!
//! Mail arrives all the time. Each scene is judged on the mail server's side (who held which mailbox when, who was alone, and for how
//! long) and on the devices' (nothing lost, doubled or reordered), and prints what it counted. How long a mailbox may be alone is what
//! `docs/sharing.md` says, for two busy cores; what a take-over takes is measured by a benchmark.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise and says what it counted"
)]

mod chaos;
mod faults;
mod looks;
mod mail;
mod nats;
mod scale;

use std::time::Duration;

use mailbell_test_servers::{NatsCluster, NatsOptions, NatsServer};
use mailbell_tests::{
    installation::{Installation, Part},
    process::LOOK_EVERY,
    requests::{Asked, Requests},
    sessions::{Fault, Verdict},
    sharing::{ALONE, IN_ORDER, SOON, Scene, SceneOptions},
};
use serde_json::Value;

/// The stream of the bucket of claims and members.
const LIVE: &str = "KV_MB_main_LIVE";

/// The first watchers by name.
const W: [Part; 4] = [
    Part::Watcher(0),
    Part::Watcher(1),
    Part::Watcher(2),
    Part::Watcher(3),
];

async fn nats_server() -> NatsServer {
    NatsServer::start(NatsOptions::default()).await.unwrap()
}

/// The node that leads the log of the claims, once there is one.
async fn leader_of_claims(cluster: &NatsCluster) -> usize {
    let looking = async {
        loop {
            if let Some(leader) = cluster.stream_leader(LIVE).await {
                return leader;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let found = tokio::time::timeout(SOON, looking).await;
    found.unwrap()
}

/// A small scene on a NATS server of its own.
async fn scene() -> (NatsServer, Scene) {
    let nats = nats_server().await;
    let scene = Scene::start(SceneOptions::new(nats.url())).await.unwrap();
    (nats, scene)
}

async fn finish(name: &str, scene: Scene, alone: Duration) {
    let verdict = scene.finish(alone).await.unwrap();
    println!("{name}: {verdict}");
}

/// How long a mailbox was alone is counted from the last of these.
async fn finish_after(name: &str, scene: Scene, faults: &[Fault]) -> Verdict {
    let verdict = scene.finish_after(faults, ALONE).await.unwrap();
    let after = verdict.gaps.iter().map(|gap| gap.after(faults)).max();
    println!("{name}: at most {after:?} alone after the last fault; {verdict}");
    verdict
}

/// All was handed over in order: nothing was watched twice, not for a moment.
async fn finish_in_order(name: &str, scene: Scene) {
    let verdict = scene.finish(IN_ORDER).await.unwrap();
    println!("{name}: {verdict}");
    assert!(verdict.overlaps.is_empty(), "{verdict}");
}

/// Ends what clients ask of the owners all the while. Each answer was right, and nobody had to wait for its own deadline. There are some
/// from before the end, and more than refusals.
async fn asked(name: &str, scene: &Scene, requests: Requests) -> Asked {
    let asked = requests.stop().await.unwrap();
    println!("{name}: {asked:?}");
    for counts in [asked.listings, asked.checks] {
        assert!(counts.answers > scene.crowd.accounts.len(), "{asked:?}");
        assert!(counts.refusals < counts.answers, "{asked:?}");
    }
    asked
}

/// What `mailbell shards` says.
async fn board(installation: &Installation) -> Value {
    let said = installation.cli(&["shards", "--json"]).await.unwrap();
    serde_json::from_str(&said.ok().unwrap()).unwrap()
}

/// What it says of a member.
fn row<'a>(board: &'a Value, member: &str) -> &'a Value {
    let mut rows = board["members"].as_array().unwrap().iter();
    rows.find(|row| row["id"] == member).unwrap()
}
