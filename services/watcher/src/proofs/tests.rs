//! With a real nats-server.

use mailbell_bus::{Bus, BusOptions, Role};
use tokio::time::timeout;

use super::*;
use crate::installation::{Installation, account_in, first_checkpoint};

/// A checkpoint of any partition shows that its group's log was cut, also one that others wrote after an earlier look.
#[tokio::test]
async fn a_log_that_was_cut_is_found_out_by_checkpoints_that_others_wrote_later() {
    let installation = Installation::new().await;
    let ledger = &installation.ledger;
    let account = account_in(|_| true);
    let group = account.group();
    let log_id = ledger.logs.ids().get(group);
    let lasting = Proofs::new(Duration::MAX);
    let passing = Proofs::new(Duration::ZERO);
    for proofs in [&lasting, &passing] {
        proofs.see(ledger, group, false).await.unwrap();
    }
    // The log is empty: this position was lost.
    let mut checkpoint = first_checkpoint();
    checkpoint.log_id = log_id;
    checkpoint.position = 7;
    installation.store(&account, &checkpoint).await;
    lasting.see(ledger, group, true).await.unwrap();
    passing.see(ledger, group, false).await.unwrap();
    let (same, _) = ledger.logs.ids().check(group).await.unwrap();
    assert_eq!(same, log_id);
    passing.see(ledger, group, true).await.unwrap();
    let (other, tail) = ledger.logs.ids().check(group).await.unwrap();
    assert_ne!(other, log_id);
    assert_eq!(tail.last, 0);
}

#[tokio::test]
async fn a_bucket_that_does_not_answer_takes_nobodys_turn() {
    let installation = Installation::new().await;
    // Of one that was never set up.
    let options = BusOptions::new(
        vec![installation.nats.url()],
        "other".parse().unwrap(),
        Role::Watcher,
    );
    let without = BusLedger {
        bus: Bus::connect(options).await.unwrap(),
        logs: installation.ledger.logs.clone(),
    };
    let proofs = Proofs::new(Duration::MAX);
    let group = account_in(|_| true).group();
    let turns = proofs.turns.acquire_many(2).await.unwrap();
    let without = proofs.see(&without, group, true);
    let failed = timeout(Duration::from_secs(60), without).await.unwrap();
    assert!(matches!(failed, Err(BusError::NoStream(_))), "{failed:?}");
    drop(turns);
    proofs.see(&installation.ledger, group, true).await.unwrap();
}
