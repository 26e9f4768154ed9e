//! An installation for unit tests, on a real nats-server.

use mailbell_bus::{Bus, BusOptions, Role, state::Cas};
use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Partition},
};
use mailbell_test_servers::{NatsOptions, NatsServer};
use ulid::Ulid;

use crate::ledger::BusLedger;

#[derive(Debug)]
pub(crate) struct Installation {
    pub(crate) admin: Bus,
    /// As a watcher has it.
    pub(crate) ledger: BusLedger,
    pub(crate) nats: NatsServer,
}

impl Installation {
    pub(crate) async fn new() -> Self {
        let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
        let connect = async |role| {
            let options = BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role);
            Bus::connect(options).await.unwrap()
        };
        connect(Role::Setup).await.setup().await.unwrap();
        let bus = connect(Role::Watcher).await;
        let logs = bus.logs().await.unwrap();
        Self {
            admin: connect(Role::Admin).await,
            ledger: BusLedger { bus, logs },
            nats,
        }
    }

    /// Stores the first checkpoint of an account.
    pub(crate) async fn store(&self, account: &AccountId, checkpoint: &Checkpoint) {
        let checkpoints = self.admin.checkpoints();
        let stored = checkpoints.store(account, checkpoint, 0).await;
        assert!(matches!(stored, Ok(Cas::Stored(_))), "{stored:?}");
    }
}

/// An account whose partition is as wanted.
pub(crate) fn account_in(wanted: impl Fn(Partition) -> bool) -> AccountId {
    let account = || AccountId::new("default".parse().unwrap(), Ulid::generate());
    let mut accounts = std::iter::repeat_with(account);
    accounts.find(|one| wanted(one.partition())).unwrap()
}

/// What an account has that was just made.
pub(crate) fn first_checkpoint() -> Checkpoint {
    Checkpoint::first([("INBOX".to_owned(), 9, 1)], 0)
}
