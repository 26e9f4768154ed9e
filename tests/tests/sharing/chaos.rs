//! Watchers, their ways to mail servers, and NATS fail at random, several at once.
//!
//! Each seed decides what fails when, for how long, and who gets mail; every third one is played on a cluster of three NATS servers.
//! How far each process has come by then isn't the seed's to decide. `MAILBELL_CHAOS_SEEDS=<n>` runs more of them,
//! `MAILBELL_CHAOS_SEED=<n>` one alone.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    env,
    ops::Range,
    time::Duration,
};

use anyhow::{Context as _, bail};
use mailbell_test_servers::{NatsCluster, NatsOptions, NatsServer, proxy::Mode};
use mailbell_tests::{
    clock,
    installation::Part,
    sessions,
    sharing::{ALONE, NO_MAIL, NO_ROUTE, Scene, SceneOptions},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::time::{Instant, sleep_until};

use super::{W, leader_of_claims, nats_server};

/// So many seeds, unless more are asked for.
const SEEDS: u64 = 3;
/// Every so many-th seed has a cluster.
const CLUSTER: u64 = 3;
/// Things fail for so long.
const CHAOS: Duration = Duration::from_secs(30);
/// Each failure ends, and the next begins, so many milliseconds later.
const LASTS: Range<u64> = 500..20_000;
const NEXT: Range<u64> = 200..5_000;

#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    /// Ended in order.
    Gone,
    /// Ended in order, and on its return its clock is so many seconds off.
    Clock(i64),
    Frozen,
    NoNats(Mode),
    NoMail(Mode),
    /// One more watcher is there for a while.
    OneMore,
    /// A node of the cluster is away: the leader of the claims.
    NoNode(usize),
    /// Between two nodes of the cluster no packet passes.
    NoRoute(usize, usize),
}

/// What happens to watchers that are there all the time.
const FAULTS: [Fault; 14] = [
    Fault::Killed,
    Fault::Killed,
    Fault::Gone,
    Fault::Clock(900),
    Fault::Clock(-900),
    Fault::Frozen,
    Fault::Frozen,
    Fault::NoNats(Mode::Cut),
    Fault::NoNats(Mode::STALLED),
    Fault::NoNats(Mode::STALLED_TO_SERVER),
    Fault::NoMail(Mode::Cut),
    Fault::NoMail(Mode::STALLED),
    Fault::NoMail(Mode::DEAF),
    Fault::NoMail(Mode::MUTE),
];

impl Fault {
    /// For the judge: it was done to this one then, and is healed now.
    fn since(self, begin: Instant, victim: Victim) -> sessions::Fault {
        let fault = sessions::Fault::since(begin.into_std(), ALONE);
        match (self, victim) {
            (Self::NoMail(_), Victim::Watcher(watcher)) => sessions::Fault {
                alone: NO_MAIL,
                holder: Some(watcher.to_string()),
                ..fault
            },
            (Self::NoRoute(..), _) => sessions::Fault {
                alone: NO_ROUTE,
                ..fault
            },
            _ => fault,
        }
    }
}

/// What fails one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Watcher(Part),
    Nats,
}

enum Nats {
    One(NatsServer),
    Three(NatsCluster),
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

#[tokio::test]
async fn watchers_and_nats_at_random_moments() {
    let seeds = match setting("MAILBELL_CHAOS_SEED") {
        Some(seed) => vec![seed],
        None => (1..=setting("MAILBELL_CHAOS_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    for seed in seeds {
        let ran = run(seed).await;
        assert!(
            ran.is_ok(),
            "seed {seed}: {:#}\nagain: MAILBELL_CHAOS_SEED={seed} cargo test -p mailbell-tests --test sharing chaos",
            ran.unwrap_err()
        );
    }
}

async fn run(seed: u64) -> anyhow::Result<()> {
    let (nats, url, replicas) = if seed.is_multiple_of(CLUSTER) {
        let cluster = NatsCluster::start_cuttable(3, NatsOptions::default()).await?;
        let url = cluster.url();
        (Nats::Three(cluster), url, 3)
    } else {
        let server = nats_server().await;
        let url = server.url();
        (Nats::One(server), url, 1)
    };
    let options = SceneOptions {
        seed,
        replicas,
        ..SceneOptions::new(url)
    };
    let mut world = World {
        scene: Scene::start(options).await?,
        nats,
    };
    let mut rng = SmallRng::seed_from_u64(seed);
    // What is broken now, since when, and until when.
    let mut faulty: BTreeMap<Victim, (Fault, Range<Instant>)> = BTreeMap::new();
    let mut faults = Vec::new();
    let end = Instant::now() + CHAOS;
    let mut next = Instant::now();
    let (mut count, mut nodes, mut routes) = (0, 0, 0);
    loop {
        // What ends first, or the next that begins.
        let healed = faulty
            .iter()
            .map(|(victim, (fault, time))| (*victim, *fault, time.clone()))
            .min_by_key(|(.., time)| time.end);
        match healed {
            Some((victim, fault, time)) if time.end <= next || next >= end => {
                sleep_until(time.end).await;
                faulty.remove(&victim);
                world.heal(victim, fault).await.context("healing")?;
                faults.push(fault.since(time.start, victim));
                continue;
            }
            None if next >= end => break,
            _ => {}
        }
        sleep_until(next).await;
        next += Duration::from_millis(rng.random_range(NEXT));
        count += 1;
        world.scene.supervise()?;
        let fate = rng.random_range(0..10);
        let fault = FAULTS[rng.random_range(0..FAULTS.len())];
        let (a, b) = (rng.random_range(0..3), rng.random_range(1..3));
        let lasts = Duration::from_millis(rng.random_range(LASTS));
        let (victim, fault) = match (fate, &mut world.nats) {
            (0 | 1, Nats::One(server)) => {
                println!("seed {seed}: NATS");
                let begin = Instant::now();
                server.kill();
                server.restart().await?;
                faults.push(sessions::Fault::since(begin.into_std(), ALONE));
                continue;
            }
            // One and the other in turn, so that even a short run has both.
            (0 | 1, Nats::Three(_)) if routes < nodes => {
                routes += 1;
                (Victim::Nats, Fault::NoRoute(a, (a + b) % 3))
            }
            (0 | 1, Nats::Three(cluster)) => {
                nodes += 1;
                (Victim::Nats, Fault::NoNode(leader_of_claims(cluster).await))
            }
            (2, _) => (Victim::Watcher(W[3]), Fault::OneMore),
            (3..6, _) => (Victim::Watcher(W[a]), fault),
            // Whoever was away is given little for a minute, so it is mostly the one with the most to lose.
            _ => (Victim::Watcher(richest(&world.scene)), fault),
        };
        if let Entry::Vacant(fine) = faulty.entry(victim) {
            println!("seed {seed}: {victim:?} {fault:?} for {lasts:?}");
            let begin = Instant::now();
            world.fail(victim, fault).await.context("failing")?;
            fine.insert((fault, begin..Instant::now() + lasts));
        }
    }
    world.scene.supervise()?;
    let verdict = world.scene.finish_after(&faults, ALONE).await?;
    let after = verdict.gaps.iter().map(|gap| gap.after(&faults));
    println!(
        "seed {seed}: {count} faults, at most {:?} alone after the last; {verdict}",
        after.max().unwrap_or_default()
    );
    Ok(())
}

/// Who of those that are there all the time has the most mailboxes now.
fn richest(scene: &Scene) -> Part {
    let shares = scene.crowd.shares();
    let share = |watcher: &Part| shares.get(&watcher.to_string()).copied();
    W[..3].iter().copied().max_by_key(share).unwrap_or(W[0])
}

struct World {
    scene: Scene,
    nats: Nats,
}

impl World {
    fn cluster(&mut self) -> anyhow::Result<&mut NatsCluster> {
        match &mut self.nats {
            Nats::Three(cluster) => Ok(cluster),
            Nats::One(_) => bail!("this is no cluster"),
        }
    }

    async fn fail(&mut self, victim: Victim, fault: Fault) -> anyhow::Result<()> {
        let Victim::Watcher(watcher) = victim else {
            let cluster = self.cluster()?;
            match fault {
                Fault::NoNode(node) => cluster.nodes[node].kill(),
                Fault::NoRoute(a, b) => cluster.route(a, b, Mode::STALLED)?,
                _ => bail!("{fault:?} is nothing of NATS"),
            }
            return Ok(());
        };
        let scene = &mut self.scene;
        match fault {
            Fault::Killed => scene.kill(watcher),
            Fault::Gone => scene.end(watcher).await?,
            Fault::Clock(seconds) => {
                scene.end(watcher).await?;
                let watchers = &mut scene.crowd.installation.options().watchers;
                let n = W.iter().position(|other| *other == watcher);
                watchers[n.context("an unknown watcher")?].env = clock::set_off(seconds)?;
            }
            Fault::Frozen => scene.freeze(watcher)?,
            Fault::NoNats(mode) => scene.cut_from_nats(watcher, mode)?,
            Fault::NoMail(mode) => scene.cut_from_mail(watcher, mode)?,
            // It has its ways from its first time on.
            Fault::OneMore if scene.crowd.ways(watcher).is_ok() => {
                scene.crowd.installation.launch(watcher)?;
            }
            Fault::OneMore => {
                scene.crowd.add_watcher().await?;
            }
            Fault::NoNode(_) | Fault::NoRoute(..) => bail!("{fault:?} is nothing of a watcher"),
        }
        Ok(())
    }

    async fn heal(&mut self, victim: Victim, fault: Fault) -> anyhow::Result<()> {
        let Victim::Watcher(watcher) = victim else {
            let cluster = self.cluster()?;
            match fault {
                Fault::NoNode(node) => cluster.nodes[node].restart().await?,
                Fault::NoRoute(a, b) => cluster.route(a, b, Mode::PASS)?,
                _ => bail!("{fault:?} is nothing of NATS"),
            }
            return Ok(());
        };
        let scene = &mut self.scene;
        match fault {
            Fault::Killed | Fault::Gone | Fault::Clock(_) => {
                scene.crowd.installation.launch(watcher)?;
            }
            Fault::Frozen => scene.thaw(watcher)?,
            Fault::NoNats(_) => scene.heal_nats(watcher).await?,
            Fault::NoMail(_) => scene.heal_mail(watcher).await?,
            Fault::OneMore => scene.end(watcher).await?,
            Fault::NoNode(_) | Fault::NoRoute(..) => bail!("{fault:?} is nothing of a watcher"),
        }
        Ok(())
    }
}
