//! Reading ranges of logs.

use std::sync::{Arc, Mutex};

use mailbell_bus::{Entry, Filter, Logs, Role};
use mailbell_core::ids::{AccountId, Position, Tenant};

use crate::{
    fake::{Fake, Lag},
    world::{World, account, account_of, append_all, event, partition, uid},
};

fn uids(entries: &[Entry]) -> Vec<u32> {
    entries
        .iter()
        .map(|entry| uid(entry.event.as_ref().unwrap()))
        .collect()
}

async fn read(logs: &Logs, filter: Filter, after: Position, up_to: Position) -> Vec<Entry> {
    let entries = logs
        .read(account(5, 0).group(), filter, after, up_to)
        .all()
        .await
        .unwrap();
    assert!(entries.is_sorted_by_key(|entry| entry.position));
    entries
}

/// Three accounts of one group, two of them in one partition, their events one after the other: positions 1 to 900.
async fn three(logs: &Logs) -> [AccountId; 3] {
    let accounts = [account(5, 0), account(5, 1), account(21, 0)];
    // In chunks of 90, of which each account has 30, pipelined within the chunk.
    for chunk in 0..10u32 {
        for account in &accounts {
            append_all(logs, account, chunk * 30 + 1..=chunk * 30 + 30).await;
        }
    }
    accounts
}

#[tokio::test]
async fn ranges_by_account_partition_and_group() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let [a, b, c] = three(&logs).await;
    let all: Vec<u32> = (1..=300).collect();
    let one = read(&logs, Filter::Account(a.clone()), 0, 900).await;
    assert_eq!(uids(&one), all);
    assert!(
        one.iter()
            .all(|entry| entry.account == a && entry.stored_us > 0)
    );
    assert_eq!(read(&logs, Filter::All, 0, 900).await.len(), 900);
    assert_eq!(
        read(&logs, Filter::Partition(partition(5)), 0, 900)
            .await
            .len(),
        600
    );
    assert_eq!(
        read(&logs, Filter::Partition(partition(37)), 0, 900)
            .await
            .len(),
        0
    );
    let two = read(
        &logs,
        Filter::Accounts(vec![c.clone(), a.clone(), a.clone()]),
        0,
        900,
    )
    .await;
    assert_eq!(two.len(), 600);
    // More than are read one by one.
    let mut many: Vec<_> = (2..30).map(|n| account(5, n)).collect();
    many.extend([b.clone(), c.clone()]);
    assert_eq!(read(&logs, Filter::Accounts(many), 0, 900).await.len(), 600);
    assert_eq!(
        read(&logs, Filter::Accounts(Vec::new()), 0, 900)
            .await
            .len(),
        0
    );
    // The ends of the range: 91..=120 are the first account's.
    let part = read(&logs, Filter::Account(a.clone()), 95, 115).await;
    assert_eq!(
        part.iter().map(|entry| entry.position).collect::<Vec<_>>(),
        (96..=115).collect::<Vec<_>>()
    );
    assert_eq!(read(&logs, Filter::Account(a), 900, 900).await.len(), 0);
}

#[tokio::test]
async fn a_batch_of_several_accounts_is_no_larger_than_one_of_all() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let accounts: Vec<_> = (0..8).map(|n| account(5, n)).collect();
    for from in (1..=60).step_by(10) {
        for account in &accounts {
            append_all(&logs, account, from..=from + 9).await;
        }
    }
    let mut reader = logs.read(accounts[0].group(), Filter::Accounts(accounts), 0, 480);
    let mut entries = 0;
    while let Some(batch) = reader.next_batch().await.unwrap() {
        assert!(batch.len() <= 256, "{}", batch.len());
        entries += batch.len();
    }
    assert_eq!(entries, 480);
}

#[tokio::test]
async fn a_tenant_reads_its_own() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let ours = Tenant::default();
    let theirs: Tenant = "theirs".parse().unwrap();
    let mine = account(5, 0);
    // In the same partition, and in another one of the same group.
    for (n, tenant) in [(5, &ours), (21, &ours), (5, &theirs), (21, &theirs)] {
        append_all(&logs, &account_of(tenant, n, 0), 1..=50).await;
    }
    for tenant in [&ours, &theirs] {
        let entries = read(&logs, Filter::Tenant(tenant.clone()), 0, 200).await;
        assert_eq!(entries.len(), 100);
        assert!(entries.iter().all(|entry| entry.account.tenant() == tenant));
    }
    let nobody: Tenant = "thei".parse().unwrap();
    assert!(
        read(&logs, Filter::Tenant(nobody.clone()), 0, 200)
            .await
            .is_empty()
    );
    // Many accounts of one tenant, and of several.
    let mut many: Vec<_> = (1..30).map(|n| account(5, n)).collect();
    many.push(mine.clone());
    assert_eq!(
        read(&logs, Filter::Accounts(many.clone()), 0, 200)
            .await
            .len(),
        50
    );
    many.push(account_of(&theirs, 21, 0));
    assert_eq!(read(&logs, Filter::Accounts(many), 0, 200).await.len(), 100);
}

#[tokio::test]
async fn who_looks_for_a_few_in_many_learns_how_far_it_is() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let [a, ..] = three(&logs).await;
    let absent: Vec<_> = (2..30).map(|n| account(5, n)).collect();
    let mut reader = logs.read(a.group(), Filter::Accounts(absent), 0, 900);
    let mut before = 0;
    let mut batches = 0;
    while let Some(entries) = reader.next_batch().await.unwrap() {
        assert!(entries.is_empty());
        assert!(reader.position() > before);
        before = reader.position();
        batches += 1;
    }
    assert_eq!(reader.position(), 900);
    assert!(batches >= 3, "{batches}");
}

#[tokio::test]
async fn gaps_of_purged_accounts() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let [a, b, c] = three(&logs).await;
    assert_eq!(logs.purge_account(&b).await.unwrap(), 300);
    assert_eq!(logs.purge_account(&b).await.unwrap(), 0);
    let tail = logs.tail(a.group()).await.unwrap();
    assert_eq!((tail.first, tail.last), (1, 900));
    assert_eq!(read(&logs, Filter::All, 0, 900).await.len(), 600);
    assert_eq!(
        read(&logs, Filter::Account(b.clone()), 0, 900).await.len(),
        0
    );
    assert_eq!(
        uids(&read(&logs, Filter::Partition(partition(5)), 0, 900).await),
        (1..=300).collect::<Vec<_>>()
    );
    // Everything: the positions are not given away again.
    logs.purge_account(&a).await.unwrap();
    logs.purge_account(&c).await.unwrap();
    let tail = logs.tail(a.group()).await.unwrap();
    assert_eq!((tail.first, tail.last), (901, 900));
    assert_eq!(read(&logs, Filter::All, 0, 900).await.len(), 0);
}

#[tokio::test]
async fn a_reader_tells_up_to_where_it_is() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let [a, _, c] = three(&logs).await;
    let mut reader = logs.read(a.group(), Filter::Accounts(vec![a, c]), 100, 700);
    assert_eq!(reader.position(), 100);
    let mut seen = 0;
    while let Some(batch) = reader.next_batch().await.unwrap() {
        assert!(batch.iter().all(|entry| entry.position > seen));
        seen = batch.last().unwrap().position;
        assert!(reader.position() >= seen);
    }
    assert_eq!(reader.position(), 700);
}

/// A follower that knows only the beginning of the log, or nothing, and says so in no way.
#[tokio::test]
async fn a_lagging_replica_hides_nothing() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    append_all(&logs, &account, 1..=30).await;
    for lag in [Lag::Nothing, Lag::Knows(1), Lag::Knows(29), Lag::Knows(30)] {
        let fake = Fake::start(&world, account.group(), lag).await;
        for filter in [Filter::Account(account.clone()), Filter::All] {
            assert_eq!(
                uids(&read(&logs, filter, 0, 30).await),
                (1..=30).collect::<Vec<_>>(),
                "{lag:?}"
            );
        }
        assert!(fake.asked() > 0);
    }
}

#[tokio::test]
async fn a_lost_message_of_a_batch_is_read_again() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    append_all(&logs, &account, 1..=30).await;
    for lost in [1, 2, 15, 30] {
        let fake = Fake::start(&world, account.group(), Lag::Loses(lost)).await;
        let read = read(&logs, Filter::Account(account.clone()), 0, 30).await;
        assert_eq!(uids(&read), (1..=30).collect::<Vec<_>>(), "{lost}");
        drop(fake);
    }
}

#[tokio::test]
async fn what_no_release_has_written_is_skipped() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let (a, b) = (account(5, 0), account(5, 1));
    let operator = world.operator().await;
    append_all(&logs, &a, 1..=1).await;
    // Somebody else's event under our subject, and no event at all.
    let subject = format!("mb.main.log.5.5.{a}");
    for payload in [event(&b, 7).encode().unwrap(), "nonsense".into()] {
        operator.request(subject.clone(), payload).await.unwrap();
    }
    append_all(&logs, &a, 2..=2).await;
    let entries = read(&logs, Filter::Account(a.clone()), 0, 4).await;
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.position, entry.event.as_ref().map(uid)))
        .collect();
    assert_eq!(seen, [(1, Some(1)), (2, None), (3, None), (4, Some(2))]);
}

#[tokio::test]
async fn reads_are_bounded_and_all_end() {
    let world = World::start_with(|options| options.concurrent_reads = 2).await;
    let logs = world.logs(Role::Watcher).await;
    let accounts = three(&logs).await;
    let done = Arc::new(Mutex::new(0));
    let reads = (0..60).map(|n| {
        let (logs, account, done) = (logs.clone(), accounts[n % 3].clone(), Arc::clone(&done));
        async move {
            let entries = read(&logs, Filter::Account(account), 0, 900).await;
            *done.lock().unwrap() += entries.len();
        }
    });
    futures_util::future::join_all(reads).await;
    assert_eq!(*done.lock().unwrap(), 60 * 300);
}
