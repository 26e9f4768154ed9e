//! Pods are killed, and nodes are lost.

use mailbell_test_cluster::in_private_network;

use crate::world::{TAG, World};

#[test]
fn pods_are_killed() {
    in_private_network(async || {
        let world = World::start().await;
        world.assert_spread().await;
        for part in ["watcher", "gateway", "admin", "nats"] {
            world
                .under_load(&format!("a pod of {part} is killed"), async {
                    let pods = world.pods_of(part).await;
                    let first = pods[0].name();
                    world
                        .kubectl(&format!("delete pod {first} --grace-period=0 --force"))
                        .await;
                    world.wait_running(TAG).await;
                })
                .await;
        }
    })
    .unwrap();
}

#[test]
fn nodes_are_lost() {
    in_private_network(async || {
        let mut world = World::start().await;
        world
            .under_load("a node is drained", async {
                world
                    .kubectl(
                        "drain node-2 --ignore-daemonsets --delete-emptydir-data --timeout=240s",
                    )
                    .await;
                world.kubectl("uncordon node-2").await;
                world.wait_running(TAG).await;
            })
            .await;
        world
            .under_load("a node is cut off", async {
                world.cluster.cut_off(3, true).unwrap();
                world.wait_node(3, false).await;
                // All devices hear of mail from who is left, before the node is back.
                world.wait_told().await;
                world.cluster.cut_off(3, false).unwrap();
                world.wait_node(3, true).await;
                world.wait_running(TAG).await;
            })
            .await;
        let load = world.load();
        world.cluster.kill_node(1).unwrap();
        world.wait_node(1, false).await;
        // The same, without it.
        world.wait_told().await;
        world.cluster.start_node(1).unwrap();
        world.wait_node(1, true).await;
        world.wait_running(TAG).await;
        world
            .end(load, "a node loses its power, and comes back")
            .await;
    })
    .unwrap();
}

impl World {
    /// Waits until the control plane takes a node for ready, or for lost.
    async fn wait_node(&self, number: u8, ready: bool) {
        self.until("the node is lost, or back", async || {
            self.cluster.is_ready(number).await.unwrap() == ready
        })
        .await;
    }
}
