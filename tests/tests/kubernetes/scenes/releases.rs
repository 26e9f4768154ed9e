//! It is installed, upgraded, and put back.

use std::time::{Duration, Instant};

use mailbell_test_cluster::in_private_network;
use mailbell_tests::cli;
use serde_json::{Value, json};

use crate::{
    install::NAMESPACE,
    subscribers::{LATE_USER, declaration},
    world::{NEXT_TAG, Options, PREV_TAG, TAG, World},
};

/// For a cluster at rest to be well by all that doctor looks at.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn installed_and_upgraded() {
    in_private_network(async || {
        let world = World::start().await;
        world.assert_spread().await;
        assert_eq!(world.push.nodes_in_use(), 2, "devices are on both gateways");
        world.wait_counted().await;
        // As docs/operating.md has it.
        let said = world.helm("test mailbell --logs").await;
        assert!(said.contains("Phase:          Succeeded"), "{said}");
        for (name, words) in [
            ("operator", "works"),
            ("installation main", "Everything runs."),
        ] {
            let good = format!("ok    {name} ");
            let mut lines = said.lines();
            let found = lines.any(|line| line.contains(&good) && line.contains(words));
            assert!(found, "{name}: {said}");
        }
        all_is_well(&world).await;
        rolled(&world, "upgrade", world.upgrade(NEXT_TAG)).await;
        let back = async {
            world.helm("rollback mailbell 1 --wait").await;
            world.wait_running(TAG).await;
        };
        rolled(&world, "rollback", back).await;
    })
    .unwrap();
}

/// Under load; each device is told to go elsewhere before its gateway goes.
async fn rolled(world: &World, what: &str, happens: impl Future<Output = ()>) {
    let steps = world.steps();
    world.under_load(what, happens).await;
    assert_eq!(world.told_to_go(&steps), world.phones.len());
}

/// Whoever may everything sees what `helm test` does not: pods, certificates, disks, and what the NATS servers say themselves. A stream
/// may just be choosing its leader anew.
async fn all_is_well(world: &World) {
    let begun = Instant::now();
    let (findings, said) = loop {
        let (findings, said) = look(world).await;
        if findings.iter().all(|it| it["verdict"] == "ok") {
            break (findings, said);
        }
        assert!(begun.elapsed() < LIMIT, "{said}");
    };
    for (name, words) in [
        ("rights of mailbell-operator", "it has all"),
        ("certificate main-nats-tls", "for *.main-nats.mail.svc"),
        ("disks main", "all 3 have their volume"),
        ("NATS main", "3 of 3 servers are ready"),
        ("NATS main", "its servers agree, all copies of 67 streams"),
    ] {
        let has = |it: &Value| it["name"] == name && it["said"].as_str().unwrap().contains(words);
        assert!(findings.iter().any(has), "{name} {words}: {said}");
    }
}

/// What doctor finds, and all that it says.
async fn look(world: &World) -> (Vec<Value>, String) {
    let arguments = ["doctor", "--kube", "--namespace", NAMESPACE, "--json"];
    let mut command = cli::command(world.directory(), arguments).unwrap();
    command.env("KUBECONFIG", world.cluster.kubeconfig());
    let said = cli::finish(command).await.unwrap();
    let report: Value = serde_json::from_str(&said.out).expect(&said.err);
    (report["findings"].as_array().unwrap().clone(), said.out)
}

/// Two programs, of which the older one knows one schema less.
#[test]
fn upgraded_from_the_release_before() {
    in_private_network(async || {
        let world = World::start_with(Options {
            tag: PREV_TAG,
            declared: false,
            ..Options::default()
        })
        .await;
        world
            .under_load("upgrade from the release before", world.upgrade(TAG))
            .await;
        world
            .under_load("rollback to the release before", async {
                world.helm("rollback mailbell 1 --wait").await;
                world.wait_running(PREV_TAG).await;
            })
            .await;
        world
            .under_load("upgrade again, and finished", async {
                world.upgrade(TAG).await;
                // What the release before does not know is stored only from then on.
                let late = declaration(LATE_USER, world.dovecot.imaps_port());
                world.apply(late.into()).await;
                world
                    .until("it says what it waits for", async || {
                        sentence(&world).await.contains("finishUpgrade: true")
                    })
                    .await;
                world.patch(&json!({ "finishUpgrade": true })).await;
                world
                    .until("it is watched", async || {
                        sentence(&world).await.starts_with("True")
                    })
                    .await;
                world.wait_running(TAG).await;
            })
            .await;
    })
    .unwrap();
}

/// Whether the account that is declared late is watched, and what it says of that.
async fn sentence(world: &World) -> String {
    let ready = ".status.conditions[?(@.type==\"Ready\")]";
    let words =
        format!("get mailaccount {LATE_USER} -o jsonpath={{{ready}.status}}/{{{ready}.message}}");
    world.kubectl(&words).await
}
