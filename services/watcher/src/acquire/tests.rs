//! Accounts of which what is known cannot be put together, with a real nats-server.

use mailbell_bus::{AppendOutcome, state::Cas};
use mailbell_core::event::Fact;
use mailbell_proto::bus::v1::AccountRecord;
use prost::bytes::Bytes;
use tokio::time::timeout;

use super::*;
use crate::installation::{Installation, account_in, first_checkpoint};

/// A time in an event that makes its folding panic.
pub(super) const POISON: i64 = i64::MIN;

fn arrived(account: &AccountId, uid: u32, detected_us: i64) -> Event {
    Event {
        account: account.clone(),
        folder: 1,
        generation: 9,
        fact: Fact::Arrived {
            uid,
            digest: u64::from(uid),
        },
        alert: true,
        owner_epoch: 1,
        traceparent: String::new(),
        detected_us,
        fetched_us: 1,
        folder_name: "INBOX".to_owned(),
        content: Bytes::new(),
    }
}

#[tokio::test]
async fn an_event_whose_folding_panics_holds_back_its_own_account_only() {
    let installation = Installation::new().await;
    let poisoned = account_in(|_| true);
    // One in the same partition, and one in another of the group.
    let partition = poisoned.partition();
    let beside = account_in(|one| one == partition);
    let other = account_in(|one| one != partition && one.group() == partition.group());
    for account in [&poisoned, &beside, &other] {
        installation.store(account, &first_checkpoint()).await;
        let record = AccountRecord {
            schema: 1,
            ..AccountRecord::default()
        };
        let created = installation.admin.accounts().create(account, &record).await;
        assert!(matches!(created, Ok(Cas::Stored(_))), "{created:?}");
    }
    let BusLedger { bus, logs } = &installation.ledger;
    for (account, uid, detected_us) in [
        (&poisoned, 1, 1),
        (&poisoned, 2, POISON),
        (&poisoned, 3, 3),
        (&beside, 1, 1),
        (&other, 1, 1),
    ] {
        let appended = logs.append(&arrived(account, uid, detected_us)).await;
        assert!(
            matches!(appended, AppendOutcome::Stored { .. }),
            "{appended:?}"
        );
    }
    let (_changes, reader) = bus.accounts().follow();
    let mut loads = Loads::new(reader, Arc::new(Proofs::new(Duration::MAX)));
    let taken = Taken {
        epoch: 1,
        before: None,
    };
    let log_id = logs.ids().get(partition.group());
    loads.begin(
        &installation.ledger,
        vec![(partition, taken), (other.partition(), taken)],
    );
    let loaded = timeout(Duration::from_secs(60), loads.next())
        .await
        .unwrap();
    assert_eq!(loaded.partitions.len(), 2);
    let Found {
        records,
        known,
        unreadable,
    } = loaded.found;
    // It has its record, and what there is of it stays in the log: nobody may call that flushed.
    let all = records.iter().flat_map(|read| &read.records);
    assert_eq!(all.filter(|(account, _)| *account == poisoned).count(), 1);
    let bound = Flush {
        log_id,
        bound: Some(0),
    };
    assert_eq!(unreadable, [(poisoned.clone(), bound)].into());
    assert!(!known.contains_key(&poisoned));
    for account in [&beside, &other] {
        let folders = &known[account].checkpoint.folders;
        assert_eq!(folders[0].uid_next, 2, "{account}");
    }
}

/// What an owner gave away in order needs no second look at the checkpoints of its group; what a dead one left does.
#[tokio::test]
async fn what_the_dead_leave_is_loaded_after_another_look() {
    let installation = Installation::new().await;
    let ledger = &installation.ledger;
    let account = account_in(|_| true);
    let (group, partition) = (account.group(), account.partition());
    let of_others = account_in(|one| one != partition && one.group() == group);
    let log_id = ledger.logs.ids().get(group);
    let proofs = Arc::new(Proofs::new(Duration::ZERO));
    proofs.see(ledger, group, false).await.unwrap();
    // Written since: the log, which is empty, was cut.
    let mut checkpoint = first_checkpoint();
    (checkpoint.log_id, checkpoint.position) = (log_id, 7);
    installation.store(&of_others, &checkpoint).await;
    let (_changes, reader) = ledger.bus.accounts().follow();
    let mut loads = Loads::new(reader, proofs);
    for released in [true, false] {
        let before = Before {
            log_id,
            flushed: 0,
            released,
        };
        let taken = Taken {
            epoch: 1,
            before: Some(before),
        };
        loads.begin(ledger, vec![(partition, taken)]);
        let loaded = timeout(Duration::from_secs(60), loads.next()).await;
        loads.go_on(ledger, &loaded.unwrap());
        let same = ledger.logs.ids().get(group) == log_id;
        assert_eq!(same, released);
    }
}
