//! What happens to an installation, one after the other, while mail arrives.

use std::collections::BTreeSet;

use mailbell_test_cluster::in_private_network;
use mailbell_tests::device::Device;

use crate::{
    load::Load,
    world::{NEXT_TAG, TAG, World},
};

/// The chart of the operator.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/mailbell");

/// Runs what happens while mail arrives, and judges what a device was told.
async fn under_load(world: &World, device: &Device, what: &str, happens: impl Future<Output = ()>) {
    let before = device.journal().connections;
    let load = Load::start(world.dovecot.clone(), world.user(), world.numbers(), device);
    happens.await;
    let outcome = load.stop().await;
    world.judge(&[device]).await;
    println!(
        "{what}: {} messages, none lost; the longest took {:?} to the device, which connected {} times",
        outcome.messages,
        outcome.longest,
        device.journal().connections - before,
    );
}

#[test]
fn installed_and_upgraded() {
    in_private_network(async || {
        let world = World::start().await;
        world.wait_running(TAG).await;
        world.assert_spread().await;
        let device = world.device().await;
        world.judge(&[&device]).await;
        world.wait_counted().await;
        under_load(&world, &device, "upgrade", async {
            let next = format!(
                "upgrade mailbell {CHART} --reset-then-reuse-values --set image.tag={NEXT_TAG} --wait"
            );
            world.helm(&next).await;
            world.wait_running(NEXT_TAG).await;
        })
        .await;
        under_load(&world, &device, "rollback", async {
            world.helm("rollback mailbell 1 --wait").await;
            world.wait_running(TAG).await;
        })
        .await;
    })
    .unwrap();
}

#[test]
fn pods_are_killed() {
    in_private_network(async || {
        let world = World::start().await;
        world.wait_running(TAG).await;
        world.assert_spread().await;
        let device = world.device().await;
        for part in ["watcher", "gateway", "admin", "nats"] {
            under_load(
                &world,
                &device,
                &format!("a pod of {part} is killed"),
                async {
                    let selector = format!("app.kubernetes.io/component={part}");
                    let first =
                        format!("get pods -l {selector} -o jsonpath={{.items[0].metadata.name}}");
                    let first = world.kubectl(&first).await;
                    world
                        .kubectl(&format!("delete pod {first} --grace-period=0 --force"))
                        .await;
                    world.wait_running(TAG).await;
                },
            )
            .await;
        }
    })
    .unwrap();
}

#[test]
fn nodes_are_lost() {
    in_private_network(async || {
        let world = World::start().await;
        world.wait_running(TAG).await;
        let device = world.device().await;
        under_load(&world, &device, "a node is drained", async {
            world
                .kubectl("drain node-2 --ignore-daemonsets --delete-emptydir-data --timeout=240s")
                .await;
            world.kubectl("uncordon node-2").await;
            world.wait_running(TAG).await;
        })
        .await;
        under_load(&world, &device, "a node is cut off", async {
            world.cluster.cut_off(3, true).unwrap();
            world
                .until("the node is not ready", async || {
                    !world.cluster.is_ready(3).await.unwrap()
                })
                .await;
            // Mail goes on arriving at who is left, before the node is back.
            world.judge(&[&device]).await;
            world.cluster.cut_off(3, false).unwrap();
            world
                .until("the node is ready", async || {
                    world.cluster.is_ready(3).await.unwrap()
                })
                .await;
            world.wait_running(TAG).await;
        })
        .await;
    })
    .unwrap();
}

/// What charts/mailbell/UPGRADING.md says that stays.
#[test]
fn uninstalled_it_leaves_what_is_documented() {
    in_private_network(async || {
        let world = World::start().await;
        world.wait_running(TAG).await;
        world.kubectl("delete mailbell main --timeout=120s").await;
        world.helm("uninstall mailbell --wait").await;
        world
            .until("all pods are gone", async || world.pods().await.is_empty())
            .await;
        let left = world
            .kubectl(
                "get deployments,statefulsets,jobs,services,configmaps,secrets,serviceaccounts,roles,rolebindings,\
                 networkpolicies,poddisruptionbudgets,leases,persistentvolumeclaims -o name",
            )
            .await;
        let left: BTreeSet<&str> = left.lines().collect();
        let kept = ["admin-token", "key-ring", "nats-tls", "nats-users", "operator-token", "signing-key"];
        let mut expected: BTreeSet<String> = kept.map(|what| format!("secret/main-{what}")).into();
        expected.extend((0..3).map(|server| format!("persistentvolumeclaim/data-main-nats-{server}")));
        // The definitions are a release of their own; the others are the namespace's and the test's.
        let others = [
            "lease.coordination.k8s.io/mailbell-operator",
            "secret/sh.helm.release.v1.crds.v1",
            "configmap/kube-root-ca.crt",
            "serviceaccount/default",
            "configmap/imap-ca",
            "secret/tls",
        ];
        expected.extend(others.map(ToOwned::to_owned));
        let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
        assert_eq!(left, expected);
    })
    .unwrap();
}
