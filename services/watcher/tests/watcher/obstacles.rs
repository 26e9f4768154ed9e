//! What stands in the way of one account, or of one group of them, and of nobody else.

use std::time::Duration;

use mailbell_bus::{Live, Role};
use mailbell_core::{
    event::{Event, Fact},
    ids::AccountId,
    schema::{NEWEST, WriteVersion},
};
use mailbell_proto::{
    bus::v1::{self as record, AccountRecord, ListPage},
    push::v1::Health,
};
use prost::Message as _;
use tokio::time::timeout;

use crate::world::{LIMIT, World, mail};

const WINDOW: Duration = Duration::from_secs(20);

/// Waits until the only watcher says of itself that so many accounts are about to start.
async fn until_starting(live: Live, accounts: u32) {
    let wait = async {
        loop {
            let members = live.members().await.unwrap();
            let load = members.first().and_then(|member| member.value.load);
            if load.is_some_and(|load| load.starting == accounts) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, wait).await.unwrap();
}

async fn until_code(world: &World, account: &AccountId, code: &str) {
    let wanted = |status: &record::StatusRecord, health| {
        let state = status.state.as_ref().unwrap();
        health == Health::ActionNeeded && state.code == code && state.sentence.ends_with('.')
    };
    world.until_status(account, wanted).await;
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_read_holds_back_its_own_account_only() {
    let mut world = World::new().await;
    let [garbled, newer, well] = [
        world.add(&["INBOX"]).await,
        world.add(&["INBOX"]).await,
        world.add(&["INBOX"]).await,
    ];
    for account in [&garbled, &newer, &well] {
        world.until_watching(account).await;
    }
    world.drain(WINDOW).await.unwrap();
    let key = |account: &AccountId| {
        let (group, partition) = (account.group(), account.partition());
        format!("$KV.MB_test_CKPT_{group}.{partition}.{account}")
    };
    let checkpoints = world.admin.checkpoints();
    let good = checkpoints.load(&garbled).await.unwrap().unwrap().value;
    world.publish(&key(&garbled), b"\x01nonsense").await;
    let of_tomorrow = record::Checkpoint {
        schema: NEWEST + 1,
        ..record::Checkpoint::default()
    };
    world
        .publish(&key(&newer), &of_tomorrow.encode_to_vec())
        .await;
    world.start().await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("one"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&well, 1).await, ["one"]);
    until_code(&world, &garbled, "checkpoint-unreadable").await;
    until_code(&world, &newer, "checkpoint-newer").await;
    for code in ["checkpoint-unreadable", "checkpoint-newer"] {
        let held = format!("mailbell_watcher_held_back{{code=\"{code}\"}}");
        assert_eq!(world.metric(&held), 1.0, "{}", world.metrics());
    }
    // Whoever asks for it does not wait.
    let refused = world.list(&newer, ListPage::default()).await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.retry),
        ("not-connected", true)
    );
    // Somebody mends it: it goes on where it was.
    world
        .publish(
            &key(&garbled),
            &good.to_record(WriteVersion::NEWEST).encode_to_vec(),
        )
        .await;
    assert_eq!(world.until_arrived(&garbled, 1).await, ["one"]);
    world.until_watching(&garbled).await;
    // It can be removed all the same.
    let tombstone = AccountRecord {
        removed_at_ms: 1,
        ..world.record(&["INBOX"])
    };
    world.write(&newer, tombstone, None).await;
    world.until_forgotten(&newer).await;
    let held = "mailbell_watcher_held_back{code=\"checkpoint-newer\"}";
    world.until_metric(held, 0.0).await;
}

#[tokio::test]
async fn a_group_whose_streams_do_not_answer_holds_up_no_other() {
    let mut world = World::new().await;
    let mut accounts = vec![world.add(&["INBOX"]).await];
    // Of four groups, one for each kind of stream and one that is well.
    while accounts.len() < 4 {
        let account = world.add(&["INBOX"]).await;
        if accounts
            .iter()
            .all(|other| other.group() != account.group())
        {
            accounts.push(account);
        }
    }
    for account in &accounts {
        world.until_watching(account).await;
    }
    world.drain(WINDOW).await.unwrap();
    let kinds = ["MB_test_LOG", "KV_MB_test_CKPT", "KV_MB_test_STATE"];
    for (kind, account) in kinds.iter().zip(&accounts) {
        world
            .delete_stream(&format!("{kind}_{}", account.group()))
            .await;
    }
    // Others are told how many accounts wait for a load, as their last owner counted, so that they give it no more for a while.
    let live = world.bus(Role::Admin).await.live();
    let claims = live.claims().await.unwrap();
    let waiting: u32 = claims
        .iter()
        .filter(|(partition, _)| {
            accounts[..3]
                .iter()
                .any(|one| one.group() == partition.group())
        })
        .map(|(_, claim)| claim.value.accounts)
        .sum();
    assert!(waiting > 0);
    let said = tokio::spawn(until_starting(live.clone(), waiting));
    let others = 1024 - 3 * 64;
    assert_eq!(world.start_in_part(others).await, others);
    said.await.unwrap();
    world
        .dovecot
        .deliver_lmtp("alice", &mail("one"))
        .await
        .unwrap();
    let well = accounts.pop().unwrap();
    assert_eq!(world.until_arrived(&well, 1).await, ["one"]);
    // They come back, and so do their accounts. (That of the lost records was lost with them.)
    world.set_up_again().await;
    world
        .until_metric("mailbell_watcher_partitions", 1024.0)
        .await;
    until_starting(live, 0).await;
    accounts.pop();
    // Whether it is told or lies below a new beginning: the status alone could be that of before.
    for account in &accounts {
        world
            .until_events(account, |events| {
                let told = crate::world::told::arrivals(events);
                let begun = |event: &Event| matches!(event.fact, Fact::Resync { uid_next: 2, .. });
                told.iter().any(|message| message.subject == "one") || events.iter().any(begun)
            })
            .await;
    }
    world
        .dovecot
        .deliver_lmtp("alice", &mail("two"))
        .await
        .unwrap();
    for account in &accounts {
        world
            .until_events(account, |events| {
                let told = crate::world::told::arrivals(events);
                told.iter().any(|message| message.subject == "two")
            })
            .await;
    }
}

#[tokio::test]
async fn a_log_without_room_is_told_in_the_status_until_there_is_room() {
    let world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("one"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    let config = world.fill_log(account.group()).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("two"))
        .await
        .unwrap();
    let code = async |code: &str| {
        let has = |status: &record::StatusRecord, _| status.state.as_ref().unwrap().code == code;
        world.until_status(&account, has).await;
    };
    code("storage-full").await;
    assert_eq!(world.until_arrived(&account, 1).await, ["one"]);
    let log = format!("MB_test_LOG_{}", account.group());
    world.update_stream(&log, &config).await;
    assert_eq!(world.until_arrived(&account, 2).await, ["one", "two"]);
    code("watching").await;
}

/// A watcher that no server lets in any more, since the password of its role is another by now, gives up
/// within seconds of being told to end.
#[tokio::test]
async fn whoever_is_refused_by_nats_ends_within_seconds_and_loses_nothing() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let conf = world.nats.directory().join("nats.conf");
    let before = std::fs::read_to_string(&conf).unwrap();
    let users = "\nauthorization { user: watcher, password: another }\n";
    std::fs::write(&conf, before.clone() + users).unwrap();
    world.nats.restart().await.unwrap();
    let dovecot = &world.dovecot;
    dovecot
        .deliver_lmtp("alice", &mail("meanwhile"))
        .await
        .unwrap();
    // For a server that is away it would wait for most of that time.
    timeout(LIMIT, world.drain(LIMIT * 10))
        .await
        .unwrap()
        .unwrap();
    std::fs::write(&conf, before).unwrap();
    world.nats.restart().await.unwrap();
    world.start().await;
    assert_eq!(world.until_arrived(&account, 1).await, ["meanwhile"]);
}
