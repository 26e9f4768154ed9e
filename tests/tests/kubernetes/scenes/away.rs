//! It is uninstalled, and installed again on what it has left.

use std::collections::BTreeSet;

use mailbell_test_cluster::in_private_network;
use mailbell_tests::{journal::Journal, world::SETTLE_LIMIT};
use serde_json::Value;

use crate::{
    install::kept,
    subscribers::{Mailbox, Phone, declaration},
    world::World,
};

/// What charts/mailbell/UPGRADING.md says that stays, and that all goes on with it.
#[test]
fn uninstalled_it_leaves_what_is_documented() {
    in_private_network(async || {
        let mut world = World::start().await;
        world.can_resume().await;
        let declared = world.let_go().await;
        let before = world.accounts().await;
        let relisted = world.relisted();
        let load = world.load();
        world.kubectl("delete mailbell main --timeout=120s").await;
        world.helm("uninstall mailbell --wait").await;
        world
            .until("all pods are gone", async || {
                world.kubectl("get pods -o name").await.is_empty()
            })
            .await;
        assert_left(&world).await;
        let told = world.told();
        world.install_again().await;
        let what = "uninstalled, and installed again";
        world.end(load, what).await;
        assert!(world.told() > told);
        assert_eq!(
            world.relisted(),
            relisted,
            "what came was pushed: checkpoints and logs are there"
        );
        assert_eq!(world.accounts().await, before);

        // The mailbox that was declared has another account now, and is watched from then on.
        let declaration = declaration(&declared.user, world.dovecot.imaps_port());
        world.apply(declaration.into()).await;
        world.wait_declared().await;
        let last = world.mailboxes.len() - 1;
        assert_ne!(world.mailboxes[last].account, declared.account);
        world.add_device(&[last]).await;
        world
            .first_message(&world.phones[world.phones.len() - 1])
            .await;
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
    let mut expected = kept();
    // The definitions are a release of their own; the others are the namespace's and the test's.
    let others = [
        "lease.coordination.k8s.io/mailbell-operator",
        "secret/sh.helm.release.v1.crds.v1",
        "configmap/kube-root-ca.crt",
        "serviceaccount/default",
        "configmap/imap-ca",
        "secret/mail-passwords",
        "secret/tls",
    ];
    expected.extend(others.map(ToOwned::to_owned));
    let expected: BTreeSet<&str> = expected.iter().map(String::as_str).collect();
    assert_eq!(left, expected);
}

impl World {
    /// Deletes what is declared, of which devices hear that it is gone: its mailbox, and the devices that are left.
    async fn let_go(&mut self) -> Mailbox {
        let declared = self.mailboxes.pop().unwrap();
        let of_declared = |phone: &mut Phone| phone.mailboxes.contains(&self.mailboxes.len());
        let gone: Vec<Phone> = self.phones.extract_if(.., of_declared).collect();
        assert!(!gone.is_empty() && !self.phones.is_empty());
        self.kubectl("delete mailaccounts --all --timeout=120s")
            .await;
        for phone in gone {
            let removed = |journal: &Journal| journal.state_health(&declared.account) == "removed";
            let waited = phone.device.wait(SETTLE_LIMIT, "it is removed", removed);
            waited.await.unwrap();
        }
        declared
    }

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
        let of = |phone: &Phone| phone.device.journal().relisted;
        self.phones.iter().map(of).sum()
    }

    async fn can_resume(&self) {
        for phone in &self.phones {
            phone.device.can_resume().await.unwrap();
        }
    }
}
