//! Checkpoints that cannot even be read without a panic, with a real nats-server.

use mailbell_test_servers::{NatsOptions, NatsServer};

use super::*;
use crate::{BusOptions, Role};

/// A counter of a checkpoint that makes its reading panic.
pub(super) const POISON: u64 = u64::MAX;

#[tokio::test]
async fn a_checkpoint_whose_reading_panics_holds_up_no_other() {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let connect = async |role| {
        let options = BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role);
        Bus::connect(options).await.unwrap()
    };
    connect(Role::Setup).await.setup().await.unwrap();
    let checkpoints = connect(Role::Watcher).await.checkpoints();
    let ulids = ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "01ARZ3NDEKTSV4RRFFQ69G5FAW"];
    let [poisoned, well] =
        ulids.map(|ulid| format!("default.{ulid}").parse::<AccountId>().unwrap());
    for (account, counter) in [(&poisoned, POISON), (&well, 7)] {
        let checkpoint = Checkpoint {
            counter,
            ..Checkpoint::default()
        };
        let stored = checkpoints.store(account, &checkpoint, 0).await.unwrap();
        assert!(matches!(stored, Cas::Stored(_)));
    }
    let mut found = Vec::new();
    for account in [&poisoned, &well] {
        let (group, partition) = (account.group(), account.partition());
        checkpoints
            .scan_group(group, |one| found.push(one))
            .await
            .unwrap();
        let of_one = checkpoints.load_partitions(group, &[partition]).await;
        found.extend(of_one.unwrap());
        found.push((
            account.clone(),
            checkpoints.load(account).await.map(Option::unwrap),
        ));
    }
    let readings = |account| {
        let of = found.iter().filter(move |(found, _)| found == account);
        of.map(|(_, read)| read)
    };
    for read in readings(&poisoned) {
        assert!(matches!(read, Err(BusError::Record(_))), "{read:?}");
    }
    for read in readings(&well) {
        assert_eq!(read.as_ref().unwrap().value.counter, 7);
    }
    // A scan of its group, its partition, it alone.
    assert!(readings(&poisoned).count() >= 3 && readings(&well).count() >= 3);
}
