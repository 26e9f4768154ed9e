//! NATS fails under watchers that share.

use std::time::Duration;

use mailbell_test_servers::{NatsCluster, NatsOptions, proxy::Mode};
use mailbell_tests::{
    process::until,
    sharing::{ALONE, SOON, Scene, SceneOptions},
};

use super::{W, finish, leader_of_claims, scene};

/// A node passes nothing on for others, so a watcher whose node has no way to the leader of a log reads nothing of it; what it is given
/// meanwhile is alone until it has gone to another node, which may take it several tries.
const OUTAGE: Duration = Duration::from_secs(120);

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
    cluster
        .route(leader, (leader + 1) % 3, Mode::STALLED)
        .unwrap();
    scene.crowd.installation.terminate(fourth).await.unwrap();
    // The route stays as it is until all is well without it.
    scene.shared_by(&W[..3]).await.unwrap();
    cluster.route(leader, (leader + 1) % 3, Mode::PASS).unwrap();
    finish("cluster", scene, OUTAGE).await;
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
