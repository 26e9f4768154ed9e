//! Whatever is killed, at whatever point: no message is lost, none is told twice, and all come in order.
//!
//! Each seed decides what is delivered when, and what is killed after how long. How far each process has come by then isn't the
//! seed's to decide, so a seed that fails may need several runs to fail again. `MAILBELL_CHAOS_SEEDS=<n>` runs more of them,
//! `MAILBELL_CHAOS_SEED=<n>` one alone, `MAILBELL_CHAOS_MESSAGES=<n>` more messages each.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says how far it came"
)]

use std::{env, time::Duration};

use anyhow::Context as _;
use mailbell_test_servers::{NatsOptions, NatsServer};
use mailbell_tests::{
    device::Device,
    installation::{Layout, Options, Part, READY_LIMIT},
    load,
    world::{World, WorldOptions},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// What a seed delivers.
const MESSAGES: u64 = 2_000;
/// The most that is delivered at once.
const MOST_AT_ONCE: u64 = 80;
/// So many seeds, unless more are asked for.
const SEEDS: u64 = 3;

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

fn seeds() -> Vec<u64> {
    match setting("MAILBELL_CHAOS_SEED") {
        Some(seed) => vec![seed],
        None => (1..=setting("MAILBELL_CHAOS_SEEDS").unwrap_or(SEEDS)).collect(),
    }
}

/// Runs a scenario with each seed; a failure says how to run it again.
async fn with_seeds<F: Future<Output = anyhow::Result<()>>>(
    test: &str,
    mut scenario: impl FnMut(u64) -> F,
) {
    for seed in seeds() {
        println!("{test}: seed {seed}");
        if let Err(error) = scenario(seed).await {
            panic!(
                "seed {seed}: {error:#}\nagain: MAILBELL_CHAOS_SEED={seed} cargo test -p mailbell-tests --test chaos {test}"
            );
        }
    }
}

/// What a scenario kills.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Part(Part),
    /// Its own or the test's.
    Nats,
    /// Process and NATS server at once.
    Power,
    /// A device is switched off and on.
    Device(usize),
}

struct Scene {
    world: World,
    nats: Option<NatsServer>,
    devices: Vec<Device>,
    rng: SmallRng,
}

impl Scene {
    async fn start(seed: u64, layout: Layout) -> anyhow::Result<Self> {
        let nats = match layout {
            Layout::Standalone => None,
            Layout::Roles => Some(NatsServer::start(NatsOptions::default()).await?),
        };
        let mut world = World::start(WorldOptions {
            users: 2,
            installation: Options {
                layout,
                nats_url: nats.as_ref().map(NatsServer::url),
                ..Options::default()
            },
            ..WorldOptions::default()
        })
        .await?;
        let mut devices = Vec::new();
        for accounts in [&[0][..], &[1], &[0, 1]] {
            devices.push(world.device(accounts).await?);
        }
        Ok(Self {
            world,
            nats,
            devices,
            rng: SmallRng::seed_from_u64(seed),
        })
    }

    /// Delivers messages in portions, and kills something during most of them.
    async fn run(mut self, victims: &[Victim]) -> anyhow::Result<()> {
        let mut left = setting("MAILBELL_CHAOS_MESSAGES").unwrap_or(MESSAGES);
        let mut deaths = 0;
        while left > 0 {
            let count = self.rng.random_range(1..=MOST_AT_ONCE).min(left);
            left -= count;
            let account = self.rng.random_range(0..2);
            let numbers = self.world.numbers(count);
            let user = self.world.account(account).user.clone();
            // Dovecot tells of new mail half a second after the first: most of the work is done from then on.
            let pause = Duration::from_millis(self.rng.random_range(0..900));
            let victim = self
                .rng
                .random_bool(0.6)
                .then(|| victims[self.rng.random_range(0..victims.len())]);
            if let Some(victim) = victim {
                let delivering = load::deliver(&self.world.dovecot, &user, numbers);
                let (delivered, ()) = tokio::join!(delivering, tokio::time::sleep(pause));
                delivered.context("LMTP")?;
                self.kill(victim).await?;
                deaths += 1;
            } else {
                load::deliver(&self.world.dovecot, &user, numbers).await?;
            }
        }
        self.recover().await?;
        let devices: Vec<&Device> = self.devices.iter().collect();
        println!("{deaths} deaths");
        self.world.finish(&devices).await
    }

    async fn kill(&mut self, victim: Victim) -> anyhow::Result<()> {
        let down = Duration::from_millis(self.rng.random_range(0..400));
        // The end of the last life may not have been survived yet: then it is killed while it starts, which is as good.
        match victim {
            Victim::Part(part) => {
                self.world.installation.kill(part);
                tokio::time::sleep(down).await;
                self.world.installation.launch(part)?;
            }
            Victim::Nats => match &mut self.nats {
                Some(nats) => {
                    nats.kill();
                    tokio::time::sleep(down).await;
                    nats.restart().await?;
                }
                None => {
                    if self.world.installation.nats_pid().is_some() {
                        self.world.installation.kill_nats()?;
                    }
                }
            },
            Victim::Power => {
                self.world.installation.power_cut();
                tokio::time::sleep(down).await;
                self.world.installation.launch(Part::Standalone)?;
            }
            Victim::Device(n) => {
                self.devices[n].stop().await?;
                tokio::time::sleep(down).await;
                self.devices[n].start()?;
            }
        }
        Ok(())
    }

    /// Whatever died lives again.
    async fn recover(&mut self) -> anyhow::Result<()> {
        self.world.installation.start_all().await
    }
}

#[tokio::test]
async fn standalone_and_its_nats_server_at_random_points() {
    with_seeds(
        "standalone_and_its_nats_server_at_random_points",
        |seed| async move {
            let scene = Scene::start(seed, Layout::Standalone).await?;
            scene
                .run(&[
                    Victim::Part(Part::Standalone),
                    Victim::Nats,
                    Victim::Power,
                    Victim::Device(0),
                ])
                .await
        },
    )
    .await;
}

#[tokio::test]
async fn each_role_and_nats_at_random_points() {
    with_seeds("each_role_and_nats_at_random_points", |seed| async move {
        let scene = Scene::start(seed, Layout::Roles).await?;
        scene
            .run(&[
                Victim::Part(Part::Watcher),
                Victim::Part(Part::Watcher),
                Victim::Part(Part::Gateway),
                Victim::Part(Part::Gateway),
                Victim::Part(Part::Admin),
                Victim::Nats,
                Victim::Device(2),
            ])
            .await
    })
    .await;
}

/// A process that comes to this place for the n-th time dies right there.
async fn dies_at(place: &str, nth: u32) -> anyhow::Result<()> {
    const COUNT: u64 = 30;
    let mut scene = Scene::start(u64::from(nth), Layout::Standalone).await?;
    let standalone = Part::Standalone;
    scene.world.deliver(0, COUNT).await?;
    scene
        .world
        .settle(&scene.devices.iter().collect::<Vec<_>>())
        .await?;
    // Something to replay: a device that was away.
    scene.devices[0].stop().await?;
    scene.world.deliver(0, COUNT).await?;
    let rest: Vec<&Device> = scene.devices.iter().skip(1).collect();
    scene.world.settle(&rest).await?;

    scene.world.installation.stop().await?;
    let value = format!("{place}:{nth}");
    scene.world.installation.options().env = vec![("MAILBELL_FAILPOINT".to_owned(), value)];
    scene.world.installation.launch(standalone)?;
    scene.devices[0].start()?;
    for account in 0..2 {
        scene.world.deliver(account, COUNT).await?;
    }
    scene
        .world
        .installation
        .died_at_failpoint(standalone, READY_LIMIT)
        .await
        .with_context(|| {
            format!("nothing came to {place} {nth} times; was the binary built with --features failpoints?")
        })?;
    scene.world.installation.options().env.clear();
    scene.world.installation.start_all().await?;
    let devices: Vec<&Device> = scene.devices.iter().collect();
    scene.world.finish(&devices).await
}

async fn dies_at_first_and_later(place: &str, later: u32) {
    for nth in [1, later] {
        if let Err(error) = dies_at(place, nth).await {
            panic!("{place}:{nth}: {error:#}");
        }
    }
}

#[tokio::test]
async fn right_after_an_append_was_sent() {
    dies_at_first_and_later("after-append", 17).await;
}

#[tokio::test]
async fn right_after_an_append_was_acknowledged() {
    dies_at_first_and_later("after-ack", 17).await;
}

#[tokio::test]
async fn right_before_a_checkpoint_is_written() {
    dies_at_first_and_later("before-checkpoint", 2).await;
}

#[tokio::test]
async fn while_a_device_attaches() {
    dies_at_first_and_later("during-attach", 3).await;
}

#[tokio::test]
async fn while_a_device_is_replayed() {
    dies_at_first_and_later("during-replay", 2).await;
}
