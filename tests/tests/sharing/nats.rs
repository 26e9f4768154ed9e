//! NATS fails under watchers that share.

use std::time::Instant;

use mailbell_test_servers::{NatsCluster, NatsOptions, proxy::Mode};
use mailbell_tests::{
    process::until,
    sessions::{Fault, Gap},
    sharing::{ALONE, NO_ROUTE, SOON, Scene, SceneOptions},
};

use super::{W, finish, finish_after, leader_of_claims, scene};

#[tokio::test]
async fn the_leader_of_the_claims_is_killed_and_routes_are_cut() {
    let mut cluster = NatsCluster::start_cuttable(3, NatsOptions::default())
        .await
        .unwrap();
    let options = SceneOptions {
        replicas: 3,
        a_second: 10,
        ..SceneOptions::new(cluster.url())
    };
    let mut scene = Scene::start(options).await.unwrap();
    // A hand-over is under way.
    let fourth = scene.crowd.add_watcher().await.unwrap();
    let name = fourth.to_string();
    until(SOON, "the hand-over to begin", || async {
        scene.crowd.shares().contains_key(&name)
    })
    .await
    .unwrap();
    let leader = leader_of_claims(&cluster).await;
    cluster.nodes[leader].kill();
    scene.shared_by(&W).await.unwrap();
    cluster.nodes[leader].restart().await.unwrap();

    let leader = leader_of_claims(&cluster).await;
    let cut = Instant::now();
    cluster
        .route(leader, (leader + 1) % 3, Mode::STALLED)
        .unwrap();
    scene.crowd.installation.terminate(fourth).await.unwrap();
    // The route stays as it is until all is well without it.
    scene.shared_by(&W[..3]).await.unwrap();
    cluster.route(leader, (leader + 1) % 3, Mode::PASS).unwrap();
    let faults = [Fault::since(cut, NO_ROUTE)];
    let verdict = finish_after("cluster", scene, &faults).await;
    let before = verdict.gaps.iter().filter(|gap| gap.time.end <= cut);
    println!(
        "cluster: at most {:?} alone before the cut",
        before.map(Gap::length).max().unwrap_or_default()
    );
}

#[tokio::test]
async fn nats_is_killed_while_partitions_change_hands() {
    let (mut nats, mut scene) = scene().await;
    let fourth = scene.crowd.add_watcher().await.unwrap();
    let name = fourth.to_string();
    until(SOON, "the hand-over to begin", || async {
        scene.crowd.shares().contains_key(&name)
    })
    .await
    .unwrap();
    nats.kill();
    nats.restart().await.unwrap();
    scene.shared_by(&W).await.unwrap();
    finish("NATS killed in a hand-over", scene, ALONE).await;
}
