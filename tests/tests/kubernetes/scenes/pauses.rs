//! An installation, or a mail provider, rests for a while.

use mailbell_test_cluster::in_private_network;
use mailbell_tests::journal::Journal;
use serde_json::json;

use crate::{
    install::{LIMIT, PROVIDER},
    world::{Options, TAG, World},
};

/// So many messages arrive meanwhile.
const MESSAGES: u64 = 40;

/// Watchers trust the mail server by what is said of its provider.
#[test]
fn paused_and_resumed() {
    in_private_network(async || {
        let world = World::start_with(Options {
            provider: true,
            ..Options::default()
        })
        .await;
        installation_is_paused(&world).await;
        provider_is_paused(&world).await;
    })
    .unwrap();
}

async fn installation_is_paused(world: &World) {
    world
        .under_load("the installation is paused, and resumed", async {
            world.patch(&json!({ "paused": true })).await;
            world
                .until("only its NATS servers are left", async || {
                    let pods = world.pods().await;
                    let mut parts = pods.iter().map(|pod| pod.component());
                    parts.all(|part| part == "nats" || part.is_empty())
                })
                .await;
            world.assert_untold().await;
            world.patch(&json!({ "paused": false })).await;
            world.wait_running(TAG).await;
        })
        .await;
}

async fn provider_is_paused(world: &World) {
    let lives = world.lives().await;
    world
        .under_load("a mail provider is paused, and goes on", async {
            world.pause_provider(true).await;
            world
                .wait_states("paused", |journal, account| {
                    journal.state_code(account) == Some("provider-paused")
                })
                .await;
            world.assert_untold().await;
            world.pause_provider(false).await;
            world
                .wait_states("watched", |journal, account| {
                    journal.state_health(account) == "watching"
                })
                .await;
        })
        .await;
    assert_eq!(world.lives().await, lives, "nothing was started anew");
}

impl World {
    /// Mail arrives, of which no device hears.
    async fn assert_untold(&self) {
        let (told, first) = (self.told(), self.numbers.upcoming());
        self.until("mail arrives", async || {
            self.numbers.upcoming() > first + MESSAGES
        })
        .await;
        assert_eq!(self.told(), told);
    }

    async fn pause_provider(&self, paused: bool) {
        let patch = json!({ "spec": { "paused": paused } });
        self.kubectl(&format!(
            "patch mailprovider {PROVIDER} --type=merge -p {patch}"
        ))
        .await;
    }

    /// Waits until each device was told so of each of its mailboxes.
    async fn wait_states(&self, what: &str, is_so: impl Fn(&Journal, &str) -> bool) {
        for phone in &self.phones {
            for mailbox in &phone.mailboxes {
                let account = &self.mailboxes[*mailbox].account;
                let told = |journal: &Journal| is_so(journal, account);
                phone.device.wait(LIMIT, what, told).await.unwrap();
            }
        }
    }
}
