//! With a real nats-server.

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
    let once = Proofs::new(Duration::MAX);
    let anew = Proofs::new(Duration::ZERO);
    for proofs in [&once, &anew] {
        proofs.see(ledger, group).await.unwrap();
    }
    // The log is empty: this position was lost.
    let mut checkpoint = first_checkpoint();
    checkpoint.log_id = log_id;
    checkpoint.position = 7;
    installation.store(&account, &checkpoint).await;
    once.see(ledger, group).await.unwrap();
    let (same, _) = ledger.logs.ids().check(group).await.unwrap();
    assert_eq!(same, log_id);
    anew.see(ledger, group).await.unwrap();
    let (other, tail) = ledger.logs.ids().check(group).await.unwrap();
    assert_ne!(other, log_id);
    assert_eq!(tail.last, 0);
}
