//! Account records at scale: changes that are followed, partitions that are read, and how the two meet.

use std::{collections::BTreeMap, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use mailbell_bus::{
    Bus, BusError, Role,
    state::{AccountChange, AccountChanges, AccountReader, Accounts, Cas, PartitionRecords},
};
use mailbell_core::{
    ids::{AccountId, Group, Partition},
    records::Merge,
};
use mailbell_proto::bus::v1::{AccountRecord, StatusRecord};
use mailbell_test_servers::proxy::Mode;
use serde_json::json;

use crate::world::{World, account, accounts_of, api, listen, options, partition, soon};

fn record(host: &str) -> AccountRecord {
    AccountRecord {
        schema: 1,
        host: host.to_owned(),
        port: 993,
        ..AccountRecord::default()
    }
}

async fn put(accounts: &Accounts, id: &AccountId, host: &str) -> u64 {
    let revision = accounts.get(id).await.unwrap().map_or(0, |r| r.revision);
    match accounts.update(id, &record(host), revision).await.unwrap() {
        Cas::Stored(revision) => revision,
        Cas::Conflict => panic!("a conflict"),
    }
}

async fn change(changes: &mut AccountChanges) -> AccountChange {
    soon(changes.next()).await.unwrap()
}

/// Reads until it works: a bucket that was made anew is noticed after a moment.
async fn read(reader: &AccountReader, group: Group, of: &[Partition]) -> Vec<PartitionRecords> {
    soon(async {
        loop {
            match reader.partitions(group, of).await {
                Ok(read) => return read,
                Err(BusError::NoStream(_) | BusError::Timeout(_) | BusError::Disconnected) => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

/// Batches that are pulled out of the bucket that has [`nine`].
const NEXT_BATCHES: &str = "$JS.API.CONSUMER.MSG.NEXT.KV_MB_main_STATE_5.*";

/// Seconds in which a test has long failed.
const FOR_EVER: u64 = 200;

/// So many of a group that they are read by one pass over all of its bucket.
fn nine() -> [Partition; 9] {
    [5, 21, 37, 53, 69, 85, 101, 117, 133].map(partition)
}

/// So many accounts of the first of [`nine`], of which some are large: a batch has no room for all that it may have.
async fn put_large(accounts: &Accounts, count: usize) -> Vec<AccountId> {
    let ids = accounts_of(5, count);
    for (number, ids) in ids.chunks(500).enumerate() {
        let host = "a".repeat(if number % 2 == 0 { 5000 } else { 1 });
        join_all(ids.iter().map(|id| put(accounts, id, &host))).await;
    }
    ids
}

fn hosts(read: &PartitionRecords) -> BTreeMap<AccountId, String> {
    read.records
        .iter()
        .map(|(id, record)| (id.clone(), record.host.clone()))
        .collect()
}

async fn admin_and_watcher(world: &World) -> (Accounts, Bus) {
    let admin = world.bus(Role::Admin).await.accounts();
    (admin, world.bus(Role::Watcher).await)
}

#[tokio::test]
async fn partitions_are_read_whole_and_changes_come_after() {
    let mut world = World::start().await;
    let (accounts, watcher) = admin_and_watcher(&world).await;
    // Partitions of group 5, with more accounts than one batch has.
    let all: Vec<u16> = (0..9).map(|n| n * 16 + 5).collect();
    for number in 0..3 {
        for p in &all {
            put(&accounts, &account(*p, number), &format!("{p}-{number}")).await;
        }
    }
    accounts.delete(&account(5, 2)).await.unwrap();
    let statuses = watcher.statuses();
    statuses
        .put(&account(5, 1), &StatusRecord::default())
        .await
        .unwrap();
    let (mut changes, reader) = watcher.accounts().follow();
    let group = partition(5).group();
    // One by one, a few at once, and in one pass.
    for count in [1, 2, 6, 9] {
        let of: Vec<Partition> = all.iter().take(count).map(|p| partition(*p)).collect();
        let found = read(&reader, group, &of).await;
        let names: Vec<Partition> = found.iter().map(|read| read.partition).collect();
        assert_eq!(names, of);
        for read in &found {
            let p = read.partition.number();
            let left = if p == 5 { 2 } else { 3 };
            let expected: BTreeMap<_, _> = (0..left)
                .map(|n| (account(p, n), format!("{p}-{n}")))
                .collect();
            assert_eq!(hosts(read), expected);
        }
    }
    // None of these was told as a change; what comes now is.
    let revision = put(&accounts, &account(21, 0), "new").await;
    let AccountChange::Put {
        account: id,
        record,
        version,
    } = change(&mut changes).await
    else {
        panic!("a change")
    };
    assert_eq!((id, record.host.as_str()), (account(21, 0), "new"));
    assert_eq!(version.revision, revision);
    let found = read(&reader, group, &[partition(21)]).await;
    assert!(found[0].version >= version);
    accounts.delete(&account(21, 0)).await.unwrap();
    let removed = change(&mut changes).await;
    assert!(
        matches!(removed, AccountChange::Removed { account: id, version: later } if id == account(21, 0) && later > version)
    );
    // Over a restart of the server nothing is missed and nothing is told again.
    world.server.kill();
    world.server.restart().await.unwrap();
    let accounts = world.bus(Role::Admin).await.accounts();
    put(&accounts, &account(21, 0), "again").await;
    let again = change(&mut changes).await;
    assert!(
        matches!(again, AccountChange::Put { record, version: later, .. } if record.host == "again" && later > version)
    );
}

#[tokio::test]
async fn a_partition_has_more_accounts_than_a_batch() {
    let world = World::start().await;
    let (accounts, watcher) = admin_and_watcher(&world).await;
    // Several batches of a pass over the whole bucket, too, which is how nine partitions are read.
    let ids = accounts_of(5, 8_200);
    let other = account(21, 0);
    put(&accounts, &other, "one").await;
    for ids in ids.chunks(500) {
        let record = record("one");
        let puts = ids.iter().map(|id| accounts.create(id, &record));
        for put in join_all(puts).await {
            assert!(matches!(put, Ok(Cas::Stored(_))), "{put:?}");
        }
    }
    let (_changes, reader) = watcher.accounts().follow();
    let found = read(&reader, ids[0].group(), &[partition(5)]).await;
    assert_eq!(hosts(&found[0]).into_keys().collect::<Vec<_>>(), ids);
    // One that is empty too.
    let several = nine();
    let found = read(&reader, ids[0].group(), &several).await;
    assert_eq!(
        found.iter().map(|read| read.partition).collect::<Vec<_>>(),
        several
    );
    let accounts: Vec<Vec<AccountId>> = found
        .iter()
        .map(|read| hosts(read).into_keys().collect())
        .collect();
    let mut expected = vec![ids, vec![other]];
    expected.resize(several.len(), Vec::new());
    assert_eq!(accounts, expected);
}

/// Each key moves to the bucket's end over and over: one that was not passed yet goes on from what the leader called the end.
#[tokio::test]
async fn a_pass_over_a_bucket_misses_nothing_that_is_written_meanwhile() {
    let world = World::start().await;
    let (accounts, watcher) = admin_and_watcher(&world).await;
    let several = nine();
    let ids: Vec<AccountId> = several
        .iter()
        .flat_map(|partition| accounts_of(partition.number(), 200))
        .collect();
    let write = |id| put(&accounts, id, "one");
    join_all(ids.iter().map(write)).await;
    let (_changes, reader) = watcher.accounts().follow();
    let group = ids[0].group();
    let reads = async {
        for _ in 0..20 {
            let found = read(&reader, group, &several).await;
            let accounts: Vec<AccountId> = found
                .iter()
                .flat_map(|read| hosts(read).into_keys())
                .collect();
            assert_eq!(accounts.len(), ids.len());
            assert_eq!(accounts, ids);
        }
    };
    let writes = async {
        // From the end: these are passed last.
        for some in ids.rchunks(20).cycle() {
            join_all(some.iter().map(write)).await;
        }
    };
    tokio::select! {
        () = reads => {}
        () = writes => {}
    }
}

/// In the middle of it: it fails in time, and goes well once NATS is heard again.
#[tokio::test]
async fn a_pass_over_a_bucket_that_is_cut_off_fails_and_is_done_again() {
    let world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let ids = put_large(&accounts, 3000).await;
    let group = ids[0].group();
    let operator = world.operator().await;
    let nine = nine();
    // That a connection is gone is heard.
    for (cut, ack_timeout) in [(Mode::DEAF, 3), (Mode::MUTE, 3), (Mode::Cut, FOR_EVER)] {
        let (proxy, url) = world.proxy().await;
        let mut options = options(&url, Role::Watcher);
        options.timing.ack_timeout = Duration::from_secs(ack_timeout);
        let watcher = Bus::connect(options).await.unwrap();
        let (_changes, reader) = watcher.accounts().follow();
        reader.until_followed(group).await.unwrap();
        let mut asked = listen(&operator, NEXT_BATCHES).await;
        let cut_off = async {
            // The second: the first one came.
            for _ in 0..2 {
                asked.next().await.unwrap();
            }
            proxy.set(cut);
        };
        let pass = reader.partitions(group, &nine);
        let (failed, ()) = soon(async { tokio::join!(pass, cut_off) }).await;
        assert!(failed.is_err(), "{failed:?}");
        proxy.set(Mode::Cut);
        proxy.set(Mode::PASS);
        let found = read(&reader, group, &nine).await;
        assert_eq!(hosts(&found[0]).into_keys().collect::<Vec<_>>(), ids);
    }
}

/// As when the server in which it lives is restarted: it is made anew, and goes on where it was.
#[tokio::test]
async fn a_pass_over_a_bucket_outlives_its_consumer() {
    let world = World::start().await;
    let (accounts, watcher) = admin_and_watcher(&world).await;
    let ids = put_large(&accounts, 3000).await;
    let (_changes, reader) = watcher.accounts().follow();
    reader.until_followed(ids[0].group()).await.unwrap();
    let operator = world.operator().await;
    let mut asked = listen(&operator, NEXT_BATCHES).await;
    let delete = async {
        let first = asked.next().await.unwrap().subject;
        let again = asked.next().await.unwrap().subject;
        assert_eq!(first, again);
        let name = first.rsplit('.').next().unwrap();
        let delete = format!("CONSUMER.DELETE.KV_MB_main_STATE_5.{name}");
        api(&operator, &delete, json!({})).await;
        // Nothing of what was asked of it is said of another.
        while asked.next().await.unwrap().subject == first {}
    };
    let nine = nine();
    let pass = reader.partitions(ids[0].group(), &nine);
    let (found, ()) = soon(async { tokio::join!(pass, delete) }).await;
    let found: Vec<AccountId> = hosts(&found.unwrap()[0]).into_keys().collect();
    assert_eq!(found.len(), ids.len());
    assert_eq!(found, ids);
}

/// Passes over a large bucket of which nothing can be pulled: it is read by direct gets.
async fn pass_without_pulling(world: &World, role: Role, ids: &[AccountId]) {
    let mut options = world.options(role);
    // That it is refused is heard.
    options.timing.ack_timeout = Duration::from_secs(FOR_EVER);
    let bus = Bus::connect(options).await.unwrap();
    let (_changes, reader) = bus.accounts().follow();
    reader.until_followed(ids[0].group()).await.unwrap();
    let operator = world.operator().await;
    let mut heard = listen(&operator, "$JS.API.>").await;
    let found = soon(reader.partitions(ids[0].group(), &nine())).await;
    let found: Vec<AccountId> = hosts(&found.unwrap()[0]).into_keys().collect();
    assert_eq!(found, ids);
    let end = "$JS.API.END";
    operator.publish(end, "".into()).await.unwrap();
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    loop {
        let subject = soon(heard.next()).await.unwrap().subject;
        if *subject == *end {
            break;
        }
        if let Some((call, _)) = subject.split_once(".KV_MB_main_STATE_5") {
            *calls.entry(call.replace("$JS.API.", "")).or_default() += 1;
        }
    }
    let count = |call: &str| calls.get(call).copied().unwrap_or_default();
    assert!(count("CONSUMER.CREATE") > 0, "{calls:?}");
    assert_eq!(count("CONSUMER.MSG.NEXT"), 0, "{calls:?}");
    // Each has room for a megabyte of the 7.5 that there are.
    assert!(count("DIRECT.GET") >= 8, "{calls:?}");
}

/// As a watcher whose NATS user is still that of an earlier release.
#[tokio::test]
async fn who_may_not_pull_passes_over_a_bucket_by_direct_gets() {
    let world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let ids = put_large(&accounts, 3000).await;
    pass_without_pulling(&world, Role::Admin, &ids).await;
}

/// As where the cluster has no leader to make it.
#[tokio::test]
async fn without_a_consumer_a_bucket_is_passed_over_by_direct_gets() {
    let world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let ids = put_large(&accounts, 3000).await;
    let operator = world.operator().await;
    let stream = "KV_MB_main_STATE_5";
    let info = api(&operator, &format!("STREAM.INFO.{stream}"), json!({})).await;
    let mut config = info["config"].clone();
    // One: the consumer that follows the changes.
    config["max_consumers"] = json!(1);
    api(&operator, &format!("STREAM.DELETE.{stream}"), json!({})).await;
    let made = api(&operator, &format!("STREAM.CREATE.{stream}"), config).await;
    assert_eq!(made["config"]["max_consumers"], 1, "{made}");
    assert_eq!(put_large(&accounts, 3000).await, ids);
    pass_without_pulling(&world, Role::Watcher, &ids).await;
}

#[tokio::test]
async fn what_changes_during_a_load_is_neither_lost_nor_undone() {
    let world = World::start().await;
    let (accounts, watcher) = admin_and_watcher(&world).await;
    let ids: Vec<AccountId> = (0..20).map(|n| account(5, n)).collect();
    for id in &ids {
        put(&accounts, id, "before").await;
    }
    let (mut changes, reader) = watcher.accounts().follow();
    let (last, group) = (account(5, 20), ids[0].group());
    let writes = async {
        for round in 0..5 {
            for (number, id) in ids.iter().enumerate() {
                if (number + round) % 4 == 0 {
                    accounts.delete(id).await.unwrap();
                } else {
                    put(&accounts, id, &format!("{round}-{number}")).await;
                }
            }
        }
        put(&accounts, &last, "last").await;
    };
    let reads = async {
        let mut merge = Merge::reading();
        let mut known: BTreeMap<AccountId, String> = BTreeMap::new();
        // Followed before the writes have gone far: only then are changes told beside the read.
        let _ = read(&reader, group, &[partition(5)]).await;
        let loading = async {
            // In the middle of the writes.
            while accounts
                .get(&ids[7])
                .await
                .unwrap()
                .is_some_and(|r| r.value.host == "before")
            {
                tokio::task::yield_now().await;
            }
            read(&reader, group, &[partition(5)]).await.remove(0)
        };
        tokio::pin!(loading);
        let mut loaded = false;
        loop {
            tokio::select! {
                biased;
                found = &mut loading, if !loaded => {
                    loaded = true;
                    let records = found.records.into_iter().map(|(id, record)| (id, record.host));
                    known = merge.on_read(found.version, records).into_iter().collect();
                }
                told = changes.next() => {
                    let told = match told.unwrap() {
                        AccountChange::Put { account, record, version } => merge.on_change(account, version, Some(record.host)),
                        AccountChange::Removed { account, version } => merge.on_change(account, version, None),
                        AccountChange::Restarted { .. } => panic!("nothing restarts here"),
                    };
                    match told {
                        Some((id, Some(host))) => { known.insert(id, host); }
                        Some((id, None)) => { known.remove(&id); }
                        None => {}
                    }
                }
            }
            if loaded && known.contains_key(&last) {
                return known;
            }
        }
    };
    let ((), known) = soon(Box::pin(async { tokio::join!(writes, reads) })).await;
    let mut there = BTreeMap::new();
    for (id, found) in accounts.list(None, 1000, None).await.unwrap().records {
        there.insert(id, found.value.host);
    }
    assert_eq!(known, there);
}

#[tokio::test]
async fn a_bucket_made_anew_is_another_history() {
    let world = World::start().await;
    let (accounts, watcher) = admin_and_watcher(&world).await;
    let id = account(5, 0);
    for host in ["one", "two", "three"] {
        put(&accounts, &id, host).await;
    }
    let (mut changes, reader) = watcher.accounts().follow();
    let before = read(&reader, id.group(), &[partition(5)]).await.remove(0);
    let operator = world.operator().await;
    api(&operator, "STREAM.DELETE.KV_MB_main_STATE_5", json!({})).await;
    world.bus(Role::Setup).await.setup().await.unwrap();
    let other = account(5, 1);
    put(&accounts, &other, "new").await;
    let AccountChange::Restarted { group, history } = change(&mut changes).await else {
        panic!("a restart")
    };
    assert_eq!(group, id.group());
    let after = read(&reader, group, &[partition(5)]).await.remove(0);
    assert_eq!(after.version.history, history);
    // Although revisions count from the start.
    assert!(after.version.revision < before.version.revision && after.version > before.version);
    assert_eq!(hosts(&after), BTreeMap::from([(other, "new".to_owned())]));
    put(&accounts, &id, "again").await;
    let again = change(&mut changes).await;
    assert!(matches!(again, AccountChange::Put { version, .. } if version > after.version));
}
