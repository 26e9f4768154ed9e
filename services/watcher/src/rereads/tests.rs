//! Reads that crash, with a real nats-server.

use std::collections::BTreeSet;

use tokio::time::{Instant, timeout};

use super::*;
use crate::installation::Installation;

#[tokio::test]
async fn a_read_that_crashes_is_done_again_after_a_while() {
    let installation = Installation::new().await;
    let (_changes, reader) = installation.ledger.bus.accounts().follow();
    let mut rereads = Rereads::new(reader);
    // Of two groups; the read of one of them crashes.
    let partitions: BTreeSet<Partition> = Partition::all().take(2).collect();
    let groups: BTreeSet<Group> = partitions.iter().map(|one| one.group()).collect();
    assert_eq!(groups.len(), 2);
    rereads.panics = 1;
    let begun = Instant::now();
    rereads.begin(partitions.iter().copied().map(Reread::of).collect());
    let mut read = BTreeSet::new();
    while read.len() < 2 {
        let next = timeout(Duration::from_secs(60), rereads.next()).await;
        read.extend(
            next.unwrap()
                .into_iter()
                .map(|(wanted, _)| wanted.partition),
        );
        if read.len() == 1 {
            assert!(begun.elapsed() < AGAIN, "the other one waits for nothing");
        }
    }
    assert_eq!(read, partitions);
    assert!(begun.elapsed() >= AGAIN);
    assert!(rereads.under_way.is_empty());
}
