//! Whatever is killed, at whatever point: no message is lost, none is told twice, and all come in order.
//!
//! Each seed decides what is delivered when, and what is killed after how long. How far each process has come by then isn't the
//! seed's to decide, so a seed that fails may need several runs to fail again. `MAILBELL_CHAOS_SEEDS=<n>` runs more of them,
//! `MAILBELL_CHAOS_SEED=<n>` one alone, `MAILBELL_CHAOS_MESSAGES=<n>` more messages each (about as many where a process
//! dies at a named place).

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops at the first surprise and says how far it came"
)]

use std::{env, time::Duration};

use anyhow::{Context as _, ensure};
use mailbell_test_servers::{NatsCluster, NatsOptions, NatsServer};
use mailbell_tests::{
    device::Device,
    installation::{Layout, Options, Part, READY_LIMIT},
    load,
    process::tail,
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

fn seeds(usual: u64) -> Vec<u64> {
    match setting("MAILBELL_CHAOS_SEED") {
        Some(seed) => vec![seed],
        None => (1..=setting("MAILBELL_CHAOS_SEEDS").unwrap_or(usual)).collect(),
    }
}

/// Runs a scenario with each seed; a failure says how to run it again.
async fn with_seeds<F: Future<Output = anyhow::Result<()>>>(
    test: &str,
    usual: u64,
    mut scenario: impl FnMut(u64) -> F,
) {
    for seed in seeds(usual) {
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
    /// The test's own: none if the process under test has one of its own, one, or the nodes of a cluster.
    nats: Vec<NatsServer>,
    devices: Vec<Device>,
    rng: SmallRng,
}

impl Scene {
    async fn start(seed: u64, layout: Layout) -> anyhow::Result<Self> {
        let nats = match layout {
            Layout::Standalone => Vec::new(),
            Layout::Roles => vec![NatsServer::start(NatsOptions::default()).await?],
        };
        Self::start_on(seed, layout, nats).await
    }

    async fn start_on(seed: u64, layout: Layout, nats: Vec<NatsServer>) -> anyhow::Result<Self> {
        let urls: Vec<String> = nats.iter().map(NatsServer::url).collect();
        let mut world = World::start(WorldOptions {
            users: 2,
            installation: Options {
                layout,
                nats_url: (!urls.is_empty()).then(|| urls.join(",")),
                replicas: u8::try_from(nats.len())?.max(1),
                ..Options::default()
            },
            ..WorldOptions::default()
        })
        .await?;
        let mut devices = Vec::new();
        for accounts in [&[0][..], &[1], &[0, 1]] {
            devices.push(world.device(accounts).await?);
        }
        for device in &devices {
            device.can_resume().await?;
        }
        Ok(Self {
            world,
            nats,
            devices,
            rng: SmallRng::seed_from_u64(seed),
        })
    }

    /// Delivers messages in portions, and kills something during most of them.
    async fn run(mut self, victims: &[Victim], messages: u64) -> anyhow::Result<()> {
        let mut left = setting("MAILBELL_CHAOS_MESSAGES").unwrap_or(messages);
        let mut dead = Vec::new();
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
                dead.push(victim);
            } else {
                load::deliver(&self.world.dovecot, &user, numbers).await?;
            }
        }
        println!("{} deaths: {dead:?}", dead.len());
        self.finish().await
    }

    /// Whatever was killed lives again, and every device has everything by resuming: no kill loses a log, so none is a reason to
    /// list a whole folder. The range of a flood may be listed.
    async fn finish(mut self) -> anyhow::Result<()> {
        self.world.installation.ready().await?;
        let devices: Vec<&Device> = self.devices.iter().collect();
        self.world.finish(&devices).await?;
        for (n, device) in devices.iter().enumerate() {
            let journal = device.journal();
            ensure!(
                journal.relisted == 0,
                "device {n} had to list anew\n  {}",
                journal.told()
            );
        }
        Ok(())
    }

    async fn kill(&mut self, victim: Victim) -> anyhow::Result<()> {
        let down = Duration::from_millis(self.rng.random_range(0..400));
        // The end of the last life may not have been survived yet: then it is killed while it starts, which is as good. Not so
        // NATS, unless it is its own: a process that starts without it gives up, for its supervisor to try again.
        match victim {
            Victim::Part(part) => {
                self.world.installation.kill(part);
                tokio::time::sleep(down).await;
                self.world.installation.launch(part)?;
            }
            Victim::Nats if self.nats.is_empty() => {
                self.world.installation.nats_runs().await?;
                self.world.installation.kill_nats()?;
            }
            Victim::Nats => {
                self.world.installation.ready().await?;
                let node = self.rng.random_range(0..self.nats.len());
                self.nats[node].kill();
                tokio::time::sleep(down).await;
                self.nats[node].restart().await?;
            }
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
        // Nobody dies of another's death.
        for part in self.world.installation.options().parts() {
            ensure!(
                self.world.installation.runs(part),
                "{part} ended after {victim:?}\n{}",
                tail(&self.world.installation.log_file())
            );
        }
        Ok(())
    }
}

#[tokio::test]
async fn standalone_and_its_nats_server_at_random_points() {
    with_seeds(
        "standalone_and_its_nats_server_at_random_points",
        SEEDS,
        |seed| async move {
            let victims = [
                Victim::Part(Part::Standalone),
                Victim::Nats,
                Victim::Power,
                Victim::Device(0),
            ];
            let scene = Scene::start(seed, Layout::Standalone).await?;
            scene.run(&victims, MESSAGES).await
        },
    )
    .await;
}

#[tokio::test]
async fn each_role_and_nats_at_random_points() {
    with_seeds(
        "each_role_and_nats_at_random_points",
        SEEDS,
        |seed| async move {
            let victims = [
                Victim::Part(Part::Watcher(0)),
                Victim::Part(Part::Watcher(0)),
                Victim::Part(Part::Gateway),
                Victim::Part(Part::Gateway),
                Victim::Part(Part::Admin),
                Victim::Nats,
                Victim::Device(2),
            ];
            let scene = Scene::start(seed, Layout::Roles).await?;
            scene.run(&victims, MESSAGES).await
        },
    )
    .await;
}

#[tokio::test]
async fn any_of_three_nats_nodes_at_random_points() {
    let test = "any_of_three_nats_nodes_at_random_points";
    with_seeds(test, 1, |seed| async move {
        let nodes = NatsCluster::start(3).await?.nodes;
        let scene = Scene::start_on(seed, Layout::Roles, nodes).await?;
        let victims = [
            Victim::Nats,
            Victim::Part(Part::Watcher(0)),
            Victim::Part(Part::Gateway),
        ];
        scene.run(&victims, 800).await
    })
    .await;
}

/// At each of these places a process dies so often per seed, unless more messages are asked for; with two seeds and five places
/// that takes 2,400.
const ROUNDS: u64 = 2;
/// What one round delivers, more or less.
const A_ROUND: u64 = 120;

/// A process dies right at this place, when it comes there for the n-th time, `most` at most. Every other seed has one process a
/// role, of which the others live on.
async fn dies_at(place: &str, role: Part, most: u32, seed: u64) -> anyhow::Result<()> {
    let (layout, part) = if seed % 2 == 1 {
        (Layout::Standalone, Part::Standalone)
    } else {
        (Layout::Roles, role)
    };
    let mut scene = Scene::start(seed, layout).await?;
    let asked = setting("MAILBELL_CHAOS_MESSAGES");
    for _ in 0..asked.map_or(ROUNDS, |messages| messages.div_ceil(A_ROUND)) {
        let nth = scene.rng.random_range(1..=most);
        println!("{place}: seed {seed}, {part} at {nth}");
        // Something to replay: a device that was away.
        scene.devices[0].stop().await?;
        let missed = scene.rng.random_range(20..=40);
        scene.world.deliver(0, missed).await?;
        let rest: Vec<&Device> = scene.devices.iter().skip(1).collect();
        scene.world.settle(&rest).await?;

        let installation = &mut scene.world.installation;
        installation.kill(part);
        let value = format!("{place}:{nth}");
        installation.options().env = vec![("MAILBELL_FAILPOINT".to_owned(), value)];
        installation.launch(part)?;
        installation.options().env.clear();
        scene.devices[0].start()?;
        for account in 0..2 {
            let count = scene.rng.random_range(30..=60);
            scene.world.deliver(account, count).await?;
        }
        scene
            .world
            .installation
            .died_at_failpoint(part, READY_LIMIT)
            .await
            .with_context(|| {
                format!("nothing died at {place}:{nth}; was the binary built with --features failpoints?")
            })?;
        scene.world.installation.launch(part)?;
        scene.world.installation.ready().await?;
    }
    scene.finish().await
}

#[tokio::test]
async fn right_after_an_append_was_stored() {
    with_seeds("right_after_an_append_was_stored", 2, |seed| {
        dies_at("after-append", Part::Watcher(0), 40, seed)
    })
    .await;
}

#[tokio::test]
async fn right_after_an_append_was_acknowledged() {
    with_seeds("right_after_an_append_was_acknowledged", 2, |seed| {
        dies_at("after-ack", Part::Watcher(0), 40, seed)
    })
    .await;
}

#[tokio::test]
async fn right_before_a_checkpoint_is_written() {
    with_seeds("right_before_a_checkpoint_is_written", 2, |seed| {
        dies_at("before-checkpoint", Part::Watcher(0), 2, seed)
    })
    .await;
}

#[tokio::test]
async fn while_a_device_attaches() {
    with_seeds("while_a_device_attaches", 2, |seed| {
        dies_at("during-attach", Part::Gateway, 3, seed)
    })
    .await;
}

#[tokio::test]
async fn while_a_device_is_replayed() {
    with_seeds("while_a_device_is_replayed", 2, |seed| {
        dies_at("during-replay", Part::Gateway, 2, seed)
    })
    .await;
}
