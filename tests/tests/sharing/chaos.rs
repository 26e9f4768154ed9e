//! Watchers and NATS fail at random, several at once.
//!
//! Each seed decides what fails when, for how long, and who gets mail. How far each process has come by then isn't the seed's to
//! decide. `MAILBELL_CHAOS_SEEDS=<n>` runs more of them, `MAILBELL_CHAOS_SEED=<n>` one alone.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    env,
    time::Duration,
};

use anyhow::Context as _;
use mailbell_test_servers::{NatsOptions, NatsServer, proxy::Mode};
use mailbell_tests::{
    installation::Part,
    sharing::{Scene, SceneOptions},
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::time::{Instant, sleep_until};

use super::W;

/// So many seeds, unless more are asked for.
const SEEDS: u64 = 2;
/// Things fail for so long.
const CHAOS: Duration = Duration::from_secs(30);
/// Each failure ends, and the next begins, so many milliseconds later.
const LASTS: std::ops::Range<u64> = 500..20_000;
const NEXT: std::ops::Range<u64> = 200..5_000;
/// All may be away for most of it, and then there is what follows.
const ALONE: Duration = Duration::from_secs(150);

#[derive(Debug, Clone, Copy)]
enum Fault {
    Killed,
    /// Ended in order.
    Gone,
    Frozen,
    NoNats(Mode),
    NoMail(Mode),
}

const FAULTS: [Fault; 12] = [
    Fault::Killed,
    Fault::Killed,
    Fault::Gone,
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
    let mut nats = NatsServer::start(NatsOptions::default()).await?;
    let options = SceneOptions {
        seed,
        ..SceneOptions::new(nats.url())
    };
    let mut scene = Scene::start(options).await?;
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut faulty: BTreeMap<Part, (Instant, Fault)> = BTreeMap::new();
    let end = Instant::now() + CHAOS;
    let mut next = Instant::now();
    let mut count = 0;
    loop {
        // What ends first, or the next that begins.
        let healed = faulty
            .iter()
            .map(|(watcher, (at, fault))| (*at, *watcher, *fault))
            .min_by_key(|(at, ..)| *at);
        match healed {
            Some((at, watcher, fault)) if at <= next || next >= end => {
                sleep_until(at).await;
                faulty.remove(&watcher);
                heal(&mut scene, watcher, fault).await.context("healing")?;
                continue;
            }
            None if next >= end => break,
            _ => {}
        }
        sleep_until(next).await;
        next += Duration::from_millis(rng.random_range(NEXT));
        count += 1;
        scene.supervise()?;
        let fate = rng.random_range(0..8);
        let fault = FAULTS[rng.random_range(0..FAULTS.len())];
        let lasts = Duration::from_millis(rng.random_range(LASTS));
        if fate == 0 {
            println!("seed {seed}: NATS");
            nats.kill();
            nats.restart().await?;
            continue;
        }
        // Whoever was away is given little for a minute, so it is mostly the one with the most to lose.
        let victim = if fate < 4 {
            W[rng.random_range(0..3)]
        } else {
            richest(&scene)
        };
        if let Entry::Vacant(fine) = faulty.entry(victim) {
            println!("seed {seed}: {victim} {fault:?} for {lasts:?}");
            fail(&mut scene, victim, fault).await.context("failing")?;
            fine.insert((Instant::now() + lasts, fault));
        }
    }
    scene.supervise()?;
    let verdict = scene.finish(ALONE).await?;
    println!("seed {seed}: {count} faults; {verdict}");
    Ok(())
}

/// Who has the most mailboxes now.
fn richest(scene: &Scene) -> Part {
    let shares = scene.crowd.shares();
    let share = |watcher: &Part| shares.get(&watcher.to_string()).copied();
    W[..3].iter().copied().max_by_key(share).unwrap_or(W[0])
}

async fn fail(scene: &mut Scene, watcher: Part, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Killed => scene.kill(watcher),
        Fault::Gone => scene.end(watcher).await?,
        Fault::Frozen => scene.freeze(watcher)?,
        Fault::NoNats(mode) => scene.cut_from_nats(watcher, mode)?,
        Fault::NoMail(mode) => scene.cut_from_mail(watcher, mode)?,
    }
    Ok(())
}

async fn heal(scene: &mut Scene, watcher: Part, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Killed | Fault::Gone => scene.crowd.installation.launch(watcher)?,
        Fault::Frozen => scene.thaw(watcher)?,
        Fault::NoNats(_) => scene.heal_nats(watcher).await?,
        Fault::NoMail(_) => scene.heal_mail(watcher).await?,
    }
    Ok(())
}
