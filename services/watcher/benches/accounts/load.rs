//! What runs in processes of its own: registering, timing reads, holding the other partitions.

use std::{io::Read as _, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};
use mailbell_bus::{Bus, Role, Share, ShareOptions, state::Cas};
use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Group, PARTITIONS, Partition, Tenant},
};
use mailbell_proto::{
    admin::v1::TlsMode,
    bus::v1::{AccountRecord, MemberLoad},
};
use tokio::task::{JoinSet, spawn_blocking};
use ulid::Ulid;

use crate::connect;

/// How many publishes are under way at once.
const AT_ONCE: u64 = 256;

/// The accounts, always the same ones.
pub(crate) fn accounts(count: u64) -> impl Iterator<Item = AccountId> {
    (0..count).map(account)
}

fn account(number: u64) -> AccountId {
    let time = 1_700_000_000_000_u128 << 80;
    AccountId::new(Tenant::default(), Ulid(time | u128::from(number)))
}

/// As most of them are: one host for many.
pub(crate) fn record() -> AccountRecord {
    AccountRecord {
        schema: 1,
        host: "127.0.0.1".to_owned(),
        port: 993,
        tls: TlsMode::Implicit.into(),
        user: "somebody-with-a-name@example.org".to_owned(),
        folders: vec!["INBOX".to_owned()],
        paused: true,
        ..AccountRecord::default()
    }
}

pub(crate) async fn part(name: &str, url: &str, numbers: &[u64]) -> anyhow::Result<()> {
    match (name, numbers) {
        ("register", [count]) => register(&connect(url, Role::Admin).await?, *count).await,
        ("read", []) => read(&connect(url, Role::Watcher).await?).await,
        ("claim", [weight, accounts]) => {
            claim(&connect(url, Role::Watcher).await?, *weight, *accounts).await
        }
        _ => bail!("{name} is no part, or not with {numbers:?}"),
    }
}

async fn register(bus: &Bus, count: u64) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let record = Arc::new(record());
    let checkpoint = Arc::new(Checkpoint::first(
        [("INBOX".to_owned(), 1, 1)],
        1_700_000_000_000_000,
    ));
    for first in 0..AT_ONCE {
        let (accounts, checkpoints) = (bus.accounts(), bus.checkpoints());
        let (record, checkpoint) = (Arc::clone(&record), Arc::clone(&checkpoint));
        tasks.spawn(async move {
            let mut number = first;
            while number < count {
                // In this order, as the admin API does.
                checkpoints.store(&account(number), &checkpoint, 0).await?;
                if accounts.create(&account(number), &record).await? == Cas::Conflict {
                    bail!("account {number} is there already");
                }
                number += AT_ONCE;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

async fn read(bus: &Bus) -> anyhow::Result<()> {
    let (_changes, reader) = bus.accounts().follow();
    let group = Group::all().next().context("no group")?;
    let partitions: Vec<Partition> = group.partitions().collect();
    reader.until_followed(group).await?;
    for count in [1, 1, 2, 4, 8, 9, 64] {
        let of: Vec<Partition> = partitions.iter().copied().take(count).collect();
        let begun = Instant::now();
        let read = reader.partitions(group, &of).await?;
        let accounts: usize = read.iter().map(|read| read.records.len()).sum();
        println!(
            "records of {count} partitions of a group, {accounts} accounts: read in {:.1?}",
            begun.elapsed()
        );
    }
    Ok(())
}

/// Takes nine tenths of the partitions, or whatever share `weight` is beside the 100 of the other, until standard input ends. It says
/// that each has as many of the `accounts` as any other, so that it gives them away as fast as it would if it watched them.
async fn claim(bus: &Bus, weight: u64, accounts: u64) -> anyhow::Result<()> {
    let each = u32::try_from(accounts / u64::from(PARTITIONS))?;
    let mut shards = bus.share(ShareOptions {
        weight: u32::try_from(weight)?,
        ..ShareOptions::new("pod-1", "1")
    })?;
    let mut stdin_ends = spawn_blocking(|| std::io::stdin().read(&mut [0]));
    let mut told = false;
    loop {
        let share = tokio::select! {
            // No order matters: the end ends it, and nothing else is lost by waiting again.
            biased;
            _ = &mut stdin_ends => return Ok(()),
            share = shards.next() => share.context("the bus was closed")?,
        };
        match share {
            Share::Load {
                partition, epoch, ..
            } => shards.serving(partition, epoch, each),
            Share::Finish { partition, epoch } => shards.finished(partition, epoch),
            Share::Stop { .. } => bail!("a claim was lost"),
            Share::Renewed { .. } | Share::Released { .. } | Share::Replaced => {}
        }
        let held = u32::try_from(shards.held())?;
        shards.report(MemberLoad {
            accounts: each.saturating_mul(held),
            ..MemberLoad::default()
        });
        if !told && shards.held() == usize::from(PARTITIONS) {
            told = true;
            println!("the other member has all partitions");
        }
    }
}
