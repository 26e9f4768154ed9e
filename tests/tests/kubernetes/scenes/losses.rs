//! Pods are killed, and nodes are lost.

use mailbell_test_cluster::in_private_network;

use super::operators::{leader_is_killed, operator_is_away};
use crate::{
    pods::Pod,
    world::{TAG, World},
};

/// Those of which the loss of one pod takes nothing away.
const PARTS: [&str; 4] = ["watcher", "gateway", "admin", "nats"];

/// All that watchers share, and how far from a half of it one may be, and stay.
const PARTITIONS: f64 = 1024.0;
const SLACK: f64 = 23.0;

#[test]
fn pods_are_killed() {
    in_private_network(async || {
        let world = World::start().await;
        world.assert_spread().await;
        for part in PARTS {
            let what = format!("a process of {part} is killed");
            world
                .under_load(&what, process_is_killed(&world, part))
                .await;
        }
        for part in PARTS {
            world
                .under_load(&format!("a pod of {part} is killed"), async {
                    world.delete_pod(&world.busiest(part).await).await;
                    world.wait_running(TAG).await;
                })
                .await;
        }
        leader_is_killed(&world).await;
        operator_is_away(&world).await;
    })
    .unwrap();
}

/// The kubelet finds out, and starts its container anew.
async fn process_is_killed(world: &World, part: &str) {
    let pod = world.busiest(part).await;
    let (uid, starts) = pod.life();
    assert!(pod.kill(&world.cluster), "{} runs", pod.name());
    world
        .until("its container is started anew", async || {
            let lives = world.lives().await;
            lives.iter().any(|(one, now)| *one == uid && *now > starts)
        })
        .await;
    world.wait_running(TAG).await;
}

#[test]
fn nodes_are_lost() {
    in_private_network(async || {
        let mut world = World::start().await;
        let node = world.node_in_use().await;
        let name = world.cluster.node_name(node);
        world
            .under_load("a node is drained", async {
                let drain = format!(
                    "drain {name} --ignore-daemonsets --delete-emptydir-data --timeout=240s"
                );
                world.kubectl(&drain).await;
                world.kubectl(&format!("uncordon {name}")).await;
                world.wait_running(TAG).await;
            })
            .await;
        let node = world.node_in_use().await;
        world
            .under_load("a node is cut off", async {
                world.cluster.cut_off(node, true).unwrap();
                world.wait_node(node, false).await;
                // All devices hear of mail from who is left, before the node is back.
                world.wait_told().await;
                world.cluster.cut_off(node, false).unwrap();
                world.wait_node(node, true).await;
                world.wait_running(TAG).await;
            })
            .await;
        let node = world.node_in_use().await;
        let load = world.load();
        world.cluster.kill_node(node).unwrap();
        world.wait_node(node, false).await;
        // The same, without it.
        world.wait_told().await;
        world.cluster.start_node(node).unwrap();
        world.wait_node(node, true).await;
        world.wait_running(TAG).await;
        world
            .end(load, "a node loses its power, and comes back")
            .await;
    })
    .unwrap();
}

impl World {
    /// Deletes a pod without telling it.
    pub(super) async fn delete_pod(&self, pod: &Pod) {
        let name = pod.name();
        let delete = format!("delete pod {name} --grace-period=0 --force");
        self.kubectl(&delete).await;
    }

    /// A node whose loss is felt: its watcher has mailboxes, its gateway devices, and a NATS server is there. Others are elsewhere.
    async fn node_in_use(&mut self) -> u8 {
        self.wait_shared().await;
        let watcher = self.busiest("watcher").await;
        let node = watcher.node();
        let gateways = self.pods_of("gateway").await;
        if !gateways.iter().any(|gateway| gateway.node() == node) {
            // It goes to the one node that has none.
            let other = gateways[0].node();
            self.kubectl(&format!("cordon {other}")).await;
            self.delete_pod(&gateways[0]).await;
            self.wait_running(TAG).await;
            self.kubectl(&format!("uncordon {other}")).await;
        }
        self.spread_devices(2).await;
        self.assert_spread().await;
        for part in ["watcher", "gateway", "nats"] {
            let pods = self.pods_of(part).await;
            let pod = pods.iter().find(|pod| pod.node() == node);
            let pod = pod.unwrap_or_else(|| panic!("{part} is on {node}"));
            // A gateway counts its devices now and then.
            let what = format!("the {part} of {node} has something to do");
            self.until(&what, async || part == "nats" || pod.burden().await > 0.0)
                .await;
        }
        let number = |number: &u8| self.cluster.node_name(*number) == node;
        (1..=3).find(number).unwrap()
    }

    /// Waits until both watchers have their share: one that was lost has it again, and gets no more.
    async fn wait_shared(&self) {
        self.until("the watchers share the mailboxes", async || {
            let mut least = PARTITIONS;
            for watcher in self.pods_of("watcher").await {
                let share = watcher.metric("mailbell_watcher_partitions", &[]).await;
                least = least.min(share);
            }
            least >= PARTITIONS / 2.0 - SLACK
        })
        .await;
    }

    /// Waits until the control plane takes a node for ready, or for lost.
    async fn wait_node(&self, number: u8, ready: bool) {
        self.until("the node is lost, or back", async || {
            self.cluster.is_ready(number).await.unwrap() == ready
        })
        .await;
    }
}
