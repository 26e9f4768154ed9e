//! Records in buckets.

use std::collections::BTreeMap;

use bytes::Bytes;
use mailbell_bus::{
    BusError, Role,
    state::{Cas, Change, Watch},
};
use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Group, Tenant},
    schema,
};
use mailbell_proto::bus::v1::{
    AccountRecord, Issuer, SealedCredential, SealingKey, StatusRecord, TokenRecord,
};
use serde_json::json;

use crate::world::{World, account, account_of, api, soon};

fn record(host: &str) -> AccountRecord {
    AccountRecord {
        schema: 1,
        host: host.to_owned(),
        port: 993,
        ..AccountRecord::default()
    }
}

fn stored(cas: Cas) -> u64 {
    match cas {
        Cas::Stored(revision) => revision,
        Cas::Conflict => panic!("a conflict"),
    }
}

#[tokio::test]
async fn an_accounts_life() {
    let world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let id = account(5, 0);
    assert_eq!(accounts.get(&id).await.unwrap(), None);
    let first = stored(accounts.create(&id, &record("one")).await.unwrap());
    assert_eq!(
        accounts.create(&id, &record("other")).await.unwrap(),
        Cas::Conflict
    );
    // The acknowledgement was lost, so it is tried again.
    assert_eq!(
        accounts.create(&id, &record("one")).await.unwrap(),
        Cas::Stored(first)
    );
    let read = accounts.get(&id).await.unwrap().unwrap();
    assert_eq!((read.value, read.revision), (record("one"), first));
    let second = stored(accounts.update(&id, &record("two"), first).await.unwrap());
    assert_eq!(
        accounts.update(&id, &record("three"), first).await.unwrap(),
        Cas::Conflict
    );
    assert_eq!(accounts.get(&id).await.unwrap().unwrap().revision, second);
    accounts.delete(&id).await.unwrap();
    assert_eq!(accounts.get(&id).await.unwrap(), None);
    assert_eq!(
        accounts.update(&id, &record("late"), second).await.unwrap(),
        Cas::Conflict
    );
    // A mark of the removal lies there; it can be made again.
    stored(accounts.create(&id, &record("again")).await.unwrap());
}

#[tokio::test]
async fn a_checkpoint_of_an_old_owner_fails() {
    let world = World::start().await;
    let (old, new) = (
        world.bus(Role::Watcher).await.checkpoints(),
        world.bus(Role::Watcher).await.checkpoints(),
    );
    let id = account(5, 0);
    let at = |position| Checkpoint {
        position,
        ..Checkpoint::default()
    };
    assert_eq!(old.load(&id).await.unwrap(), None);
    let first = stored(old.store(&id, &at(1), 0).await.unwrap());
    let loaded = new.load(&id).await.unwrap().unwrap();
    assert_eq!((&loaded.value, loaded.revision), (&at(1), first));
    let second = stored(new.store(&id, &at(9), first).await.unwrap());
    assert_eq!(old.store(&id, &at(2), first).await.unwrap(), Cas::Conflict);
    assert_eq!(
        new.load(&id).await.unwrap().unwrap(),
        mailbell_bus::state::Versioned {
            value: at(9),
            revision: second
        }
    );
    let other = account(5, 1);
    stored(new.store(&other, &at(3), 0).await.unwrap());
    let mut all = new.load_group(id.group()).await.unwrap();
    all.sort_by_key(|(_, found)| found.as_ref().unwrap().revision);
    assert_eq!(
        all.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(),
        [id.clone(), other]
    );
    new.delete(&id).await.unwrap();
    assert_eq!(new.load_group(id.group()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_newer_releases_record_is_not_rewritten() {
    use prost::Message as _;
    let world = World::start().await;
    let watcher = world.bus(Role::Watcher).await;
    let id = account(5, 0);
    let newer = mailbell_proto::bus::v1::Checkpoint {
        schema: schema::NEWEST + 1,
        ..Default::default()
    };
    let subject = format!("$KV.MB_main_CKPT_5.5.{id}");
    world
        .operator()
        .await
        .request(subject, newer.encode_to_vec().into())
        .await
        .unwrap();
    assert!(matches!(
        watcher.checkpoints().load(&id).await,
        Err(BusError::NewerRecord(_))
    ));
    // It does not keep its neighbours from being loaded.
    let neighbour = account(5, 1);
    let checkpoint = Checkpoint::default();
    stored(
        watcher
            .checkpoints()
            .store(&neighbour, &checkpoint, 0)
            .await
            .unwrap(),
    );
    let all = watcher.checkpoints().load_group(id.group()).await.unwrap();
    assert_eq!(all.len(), 2);
    for (account, found) in all {
        if account == neighbour {
            assert_eq!(found.unwrap().value, checkpoint);
        } else {
            assert!(matches!(found, Err(BusError::NewerRecord(_))), "{found:?}");
        }
    }
    let newer = AccountRecord {
        schema: schema::NEWEST + 1,
        ..record("one")
    };
    let refused = world
        .bus(Role::Admin)
        .await
        .accounts()
        .update(&id, &newer, 0)
        .await;
    assert!(matches!(refused, Err(BusError::NewerRecord(_))));
    // What cannot be read at all is said so.
    let subject = format!("$KV.MB_main_CRED_5.5.{id}");
    world
        .operator()
        .await
        .request(subject, "\u{1}nonsense".into())
        .await
        .unwrap();
    assert!(matches!(
        watcher.credentials().get(&id).await,
        Err(BusError::Record(_))
    ));
}

#[tokio::test]
async fn credentials_statuses() {
    let world = World::start().await;
    let (admin, watcher) = (world.bus(Role::Admin).await, world.bus(Role::Watcher).await);
    let id = account(5, 0);
    let sealed = |key: &str| SealedCredential {
        schema: 1,
        key_id: key.to_owned(),
        encapsulated_key: Bytes::from_static(b"key"),
        ciphertext: Bytes::from_static(b"sealed"),
    };
    admin.credentials().put(&id, &sealed("one")).await.unwrap();
    assert_eq!(
        watcher.credentials().get(&id).await.unwrap().unwrap().value,
        sealed("one")
    );
    admin.credentials().delete(&id).await.unwrap();
    assert_eq!(watcher.credentials().get(&id).await.unwrap(), None);
    let status = StatusRecord {
        schema: 1,
        last_arrival_ms: 5,
        ..StatusRecord::default()
    };
    watcher.statuses().put(&id, &status).await.unwrap();
    assert_eq!(
        admin.statuses().get(&id).await.unwrap().unwrap().value,
        status
    );
    // A status and an account do not meet.
    assert_eq!(admin.accounts().get(&id).await.unwrap(), None);
    watcher.statuses().delete(&id).await.unwrap();
    assert_eq!(admin.statuses().get(&id).await.unwrap(), None);
}

#[tokio::test]
async fn pages() {
    let world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let (one, two): (Tenant, Tenant) = ("one".parse().unwrap(), "two".parse().unwrap());
    let mut expected: Vec<AccountId> = Vec::new();
    for partition in [3, 19, 5] {
        for number in 0..4 {
            expected.push(account_of(&one, partition, number));
            stored(
                accounts
                    .create(&account_of(&one, partition, number), &record("one"))
                    .await
                    .unwrap(),
            );
            stored(
                accounts
                    .create(&account_of(&two, partition, number), &record("two"))
                    .await
                    .unwrap(),
            );
        }
    }
    let mut seen = Vec::new();
    let mut token = None;
    let mut pages = 0;
    loop {
        let page = accounts.list(Some(&one), 5, token.as_ref()).await.unwrap();
        assert!(page.records.len() <= 5);
        assert!(
            page.records
                .iter()
                .all(|(_, record)| record.value.host == "one")
        );
        seen.extend(page.records.into_iter().map(|(id, _)| id));
        pages += 1;
        if pages == 1 {
            // Written in the middle of the listing, behind or before us: still there at least once.
            let first = seen[0].clone();
            let revision = accounts.get(&first).await.unwrap().unwrap().revision;
            stored(
                accounts
                    .update(&first, &record("one"), revision)
                    .await
                    .unwrap(),
            );
        }
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    seen.sort();
    seen.dedup();
    expected.sort();
    assert_eq!(seen, expected);
    let all = accounts.list(None, 1000, None).await.unwrap();
    assert_eq!((all.records.len(), all.next), (24, None));
    let foreign = mailbell_bus::state::PageToken::from_text("99.x");
    assert!(matches!(
        accounts.list(None, 5, Some(&foreign)).await,
        Err(BusError::Options(_))
    ));
}

#[tokio::test]
async fn one_that_cannot_be_read_hides_no_other() {
    let world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let (unreadable, neighbour) = (account(5, 0), account(5, 1));
    let subject = format!("$KV.MB_main_STATE_5.account.5.{unreadable}");
    let operator = world.operator().await;
    operator
        .request(subject, "\u{1}nonsense".into())
        .await
        .unwrap();
    stored(accounts.create(&neighbour, &record("one")).await.unwrap());
    let page = accounts.list(None, 5, None).await.unwrap();
    let listed: Vec<AccountId> = page.records.into_iter().map(|(id, _)| id).collect();
    assert_eq!((listed, page.next), (vec![neighbour], None));
    assert!(matches!(
        accounts.get(&unreadable).await,
        Err(BusError::Record(_))
    ));
}

async fn change<K, V>(watch: &mut Watch<K, V>) -> Change<K, V> {
    soon(watch.next()).await.unwrap()
}

/// What a watch tells until every group is loaded.
async fn loaded(
    watch: &mut Watch<AccountId, AccountRecord>,
    groups: usize,
) -> BTreeMap<AccountId, String> {
    let (mut all, mut left) = (BTreeMap::new(), groups);
    while left > 0 {
        match change(watch).await {
            Change::Put { key, value, .. } => {
                all.insert(key, value.host);
            }
            Change::Removed { key } => {
                all.remove(&key);
            }
            Change::Loaded { .. } => left -= 1,
            Change::Restarted { group } => all.retain(|id, _| id.group() != group),
        }
    }
    all
}

#[tokio::test]
async fn a_watch_loads_and_goes_on() {
    let mut world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let watcher = world.bus(Role::Watcher).await;
    let ids: Vec<AccountId> = (0..40).map(|n| account(n, 0)).collect();
    for id in &ids {
        stored(accounts.create(id, &record("one")).await.unwrap());
    }
    accounts.delete(&ids[7]).await.unwrap();
    // The same bucket has other keys, the last ones before and behind.
    watcher
        .statuses()
        .put(&ids[1], &StatusRecord::default())
        .await
        .unwrap();
    let mut watch = watcher.accounts().watch(Group::all());
    let all = loaded(&mut watch, 16).await;
    assert_eq!(all.len(), 39);
    assert!(!all.contains_key(&ids[7]));
    let revision = accounts.get(&ids[0]).await.unwrap().unwrap().revision;
    let revision = stored(
        accounts
            .update(&ids[0], &record("two"), revision)
            .await
            .unwrap(),
    );
    assert_eq!(
        change(&mut watch).await,
        Change::Put {
            key: ids[0].clone(),
            value: record("two"),
            revision
        }
    );
    accounts.delete(&ids[0]).await.unwrap();
    assert_eq!(
        change(&mut watch).await,
        Change::Removed {
            key: ids[0].clone()
        }
    );
    // Over a restart of the server nothing is missed and nothing is told again.
    world.server.kill();
    world.server.restart().await.unwrap();
    let accounts = world.bus(Role::Admin).await.accounts();
    let revision = stored(accounts.create(&ids[0], &record("three")).await.unwrap());
    assert_eq!(
        change(&mut watch).await,
        Change::Put {
            key: ids[0].clone(),
            value: record("three"),
            revision
        }
    );
}

#[tokio::test]
async fn a_bucket_made_anew_is_told_from_the_start() {
    let world = World::start().await;
    let accounts = world.bus(Role::Admin).await.accounts();
    let id = account(5, 0);
    stored(accounts.create(&id, &record("one")).await.unwrap());
    let mut watch = world
        .bus(Role::Gateway)
        .await
        .accounts()
        .watch([id.group()]);
    assert_eq!(loaded(&mut watch, 1).await.len(), 1);
    api(
        &world.operator().await,
        "STREAM.DELETE.KV_MB_main_STATE_5",
        json!({}),
    )
    .await;
    world.bus(Role::Setup).await.setup().await.unwrap();
    assert_eq!(
        change(&mut watch).await,
        Change::Restarted { group: id.group() }
    );
    assert_eq!(
        change(&mut watch).await,
        Change::Loaded { group: id.group() }
    );
    let revision = stored(accounts.create(&id, &record("two")).await.unwrap());
    assert_eq!(
        change(&mut watch).await,
        Change::Put {
            key: id,
            value: record("two"),
            revision
        }
    );
}

#[tokio::test]
async fn one_account_an_external_id() {
    let world = World::start().await;
    let (one, two) = (
        world.bus(Role::Admin).await.external_ids(),
        world.bus(Role::Admin).await.external_ids(),
    );
    let tenant = Tenant::default();
    let (a, b) = (account(5, 0), account(6, 0));
    for external in [
        "user@example.org",
        "",
        "with spaces and > * .",
        &"x".repeat(3000),
    ] {
        let (first, second) = tokio::join!(
            one.claim(&tenant, external, &a),
            two.claim(&tenant, external, &b)
        );
        let winner = first.unwrap();
        assert_eq!(second.unwrap(), winner);
        assert_eq!(
            one.get(&tenant, external).await.unwrap(),
            Some(winner.clone())
        );
        assert_eq!(one.claim(&tenant, external, &winner).await.unwrap(), winner);
        // Only who has it frees it.
        let loser = if winner == a { &b } else { &a };
        one.free(&tenant, external, loser).await.unwrap();
        assert_eq!(
            two.get(&tenant, external).await.unwrap(),
            Some(winner.clone())
        );
        one.free(&tenant, external, &winner).await.unwrap();
        one.free(&tenant, external, &winner).await.unwrap();
        assert_eq!(two.get(&tenant, external).await.unwrap(), None);
        assert_eq!(two.claim(&tenant, external, &b).await.unwrap(), b);
    }
    let other: Tenant = "other".parse().unwrap();
    assert_eq!(
        one.claim(&other, "", &a).await.unwrap(),
        a,
        "a tenant's ids are its own"
    );
}

#[tokio::test]
async fn tokens_issuers_keys_and_revocations() {
    let world = World::start().await;
    let (admin, gateway, watcher) = (
        world.bus(Role::Admin).await,
        world.bus(Role::Gateway).await,
        world.bus(Role::Watcher).await,
    );
    let tenant = Tenant::default();
    let token = |id: &str| TokenRecord {
        schema: 1,
        id: id.to_owned(),
        tenant: "default".to_owned(),
        ..Default::default()
    };
    for id in ["a", "b", "c"] {
        admin.tokens().put(&token(id)).await.unwrap();
    }
    assert_eq!(
        admin
            .tokens()
            .get(&tenant, "b")
            .await
            .unwrap()
            .unwrap()
            .value,
        token("b")
    );
    admin.tokens().delete(&tenant, "b").await.unwrap();
    let page = admin.tokens().list(Some(&tenant), 10, None).await.unwrap();
    let ids: Vec<_> = page
        .records
        .iter()
        .map(|((_, id), _)| id.as_str())
        .collect();
    assert_eq!(ids, ["a", "c"]);
    assert!(matches!(
        admin.tokens().put(&token("a.b")).await,
        Err(BusError::Options(_))
    ));

    let mut issuers = gateway.issuers().watch();
    let issuer = Issuer {
        schema: 1,
        kid: "k1".to_owned(),
        ..Issuer::default()
    };
    assert!(matches!(change(&mut issuers).await, Change::Loaded { .. }));
    admin.issuers().put(&issuer).await.unwrap();
    assert!(
        matches!(change(&mut issuers).await, Change::Put { key, value, .. } if key == "k1" && value == issuer)
    );
    admin.issuers().delete("k1").await.unwrap();
    assert_eq!(
        change(&mut issuers).await,
        Change::Removed {
            key: "k1".to_owned()
        }
    );

    let key = SealingKey {
        schema: 1,
        key_id: "s1".to_owned(),
        public_key: Bytes::from_static(b"public"),
    };
    watcher.sealing_keys().put(&key).await.unwrap();
    let mut keys = admin.sealing_keys().watch();
    assert!(matches!(change(&mut keys).await, Change::Put { value, .. } if value == key));
    assert!(matches!(change(&mut keys).await, Change::Loaded { .. }));

    let now = i64::try_from(
        std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_millis(),
    )
    .unwrap();
    admin
        .revocations()
        .revoke(&tenant, "a", now + 60_000)
        .await
        .unwrap();
    admin
        .revocations()
        .revoke(&tenant, "old", now - 1)
        .await
        .unwrap();
    let mut revoked = gateway.revocations().watch();
    let Change::Put { key, value, .. } = change(&mut revoked).await else {
        panic!("a revocation")
    };
    assert_eq!(
        (key, value.expires_at_ms),
        ((tenant.clone(), "a".to_owned()), now + 60_000)
    );
    assert!(
        matches!(change(&mut revoked).await, Change::Loaded { .. }),
        "an expired token needs no revocation"
    );
    admin
        .revocations()
        .revoke(&tenant, "c", now + 60_000)
        .await
        .unwrap();
    assert!(
        matches!(change(&mut revoked).await, Change::Put { key, .. } if key == (tenant, "c".to_owned()))
    );
}
