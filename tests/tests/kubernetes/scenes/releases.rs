//! It is installed, upgraded, and put back.

use mailbell_test_cluster::in_private_network;
use serde_json::json;

use crate::{
    subscribers::{LATE_USER, declaration},
    world::{NEXT_TAG, Options, PREV_TAG, TAG, World},
};

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
        world.under_load("upgrade", world.upgrade(NEXT_TAG)).await;
        world
            .under_load("rollback", async {
                world.helm("rollback mailbell 1 --wait").await;
                world.wait_running(TAG).await;
            })
            .await;
    })
    .unwrap();
}

/// Two programs, of which the older one knows one schema less.
#[test]
fn upgraded_from_the_release_before() {
    in_private_network(async || {
        let world = World::start_with(Options {
            tag: PREV_TAG,
            declared: false,
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
