//! It is uninstalled, and installed again on what it has left.

use std::collections::BTreeSet;

use mailbell_test_cluster::in_private_network;
use serde_json::Value;

use crate::world::{Options, World};

/// What charts/mailbell/UPGRADING.md says that stays, and that all goes on with it.
#[test]
fn uninstalled_it_leaves_what_is_documented() {
    in_private_network(async || {
        let world = World::start_with(Options {
            declared: false,
            ..Options::default()
        })
        .await;
        world.can_resume().await;
        let before = world.accounts().await;
        world
            .kubectl("delete mailaccounts --all --timeout=120s")
            .await;
        world.kubectl("delete mailbell main --timeout=120s").await;
        world.helm("uninstall mailbell --wait").await;
        world
            .until("all pods are gone", async || {
                world.kubectl("get pods -o name").await.is_empty()
            })
            .await;
        assert_left(&world).await;

        let (relisted, told) = (world.relisted(), world.told());
        world.deliver().await;
        world.install_again().await;
        // What came meanwhile, and one message more.
        world.judge().await;
        assert_eq!(world.accounts().await, before);
        assert!(world.told() > told);
        assert_eq!(
            world.relisted(),
            relisted,
            "what came was pushed: checkpoints and logs are there"
        );
        println!("uninstalled, and installed again: what came meanwhile was pushed, none lost");
    })
    .unwrap();
}

async fn assert_left(world: &World) {
    let left = world
        .kubectl(
            "get deployments,statefulsets,jobs,services,configmaps,secrets,serviceaccounts,roles,rolebindings,\
             networkpolicies,poddisruptionbudgets,leases,persistentvolumeclaims -o name",
        )
        .await;
    let left: BTreeSet<&str> = left.lines().collect();
    let kept = [
        "admin-token",
        "key-ring",
        "nats-tls",
        "nats-users",
        "operator-token",
        "signing-key",
    ];
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
}

impl World {
    /// The ids of all accounts that the admin API has.
    async fn accounts(&self) -> BTreeSet<String> {
        let list = self.cli(&["account", "list", "--json"]).await;
        let id = |line: &str| {
            let account: Value = serde_json::from_str(line).unwrap();
            account["id"].as_str().unwrap().to_owned()
        };
        list.lines().map(id).collect()
    }

    /// How many lists of whole folders devices have got.
    fn relisted(&self) -> usize {
        let of = |phone: &crate::subscribers::Phone| phone.device.journal().relisted;
        self.phones.iter().map(of).sum()
    }

    /// How many messages devices have got.
    fn told(&self) -> usize {
        let of = |phone: &crate::subscribers::Phone| phone.device.journal().messages;
        self.phones.iter().map(of).sum()
    }

    async fn can_resume(&self) {
        for phone in &self.phones {
            phone.device.can_resume().await.unwrap();
        }
    }
}
