//! Everything that waits can run in a task of its own: this has only to compile.

use std::time::Duration;

use mailbell_bus::{
    Bus, Filter, Follower, LogReader, Logs, OwnerService, Role, Shards, ShareOptions,
};
use mailbell_core::{checkpoint::Checkpoint, event::Event, ids::AccountId};
use mailbell_proto::bus::v1::{AccountRecord, OwnerRequest, TokenRecord};

use crate::world::World;

fn sends<T: Send>(_future: T) {}

fn of_the_bus(bus: &Bus, account: &AccountId) {
    sends(bus.setup());
    sends(bus.verify());
    sends(bus.logs());
    sends(bus.logs_that_answer());
    sends(bus.ask(account, OwnerRequest::default(), Duration::ZERO));
    sends(bus.accounts().list(None, 1, None));
    sends(bus.accounts().update(account, &AccountRecord::default(), 0));
    sends(bus.checkpoints().load_group(account.group()));
    sends(bus.checkpoints().store(account, &Checkpoint::default(), 0));
    sends(bus.external_ids().claim(account.tenant(), "", account));
    sends(bus.tokens().put(&TokenRecord::default()));
    sends(async { bus.accounts().watch([]).next().await });
    sends(bus.close());
}

fn of_logs(logs: &Logs, mut reader: LogReader, follower: &mut Follower, event: &Event) {
    sends(logs.append(event));
    sends(logs.tail(event.account.group()));
    sends(logs.purge_account(&event.account));
    sends(logs.ids().check(event.account.group()));
    sends(reader.next_batch());
    sends(reader.all());
    sends(follower.next());
}

fn of_owners(shards: &mut Shards, service: &OwnerService) {
    sends(shards.left());
    sends(shards.next());
    sends(service.own(&[]));
    sends(service.disown(&[]));
}

#[tokio::test]
async fn everything_that_waits_can_be_spawned() {
    let world = World::start().await;
    let bus = world.bus(Role::Watcher).await;
    let account = crate::world::account(5, 0);
    of_the_bus(&bus, &account);
    let logs = bus.logs().await.unwrap();
    let reader = logs.read(account.group(), Filter::All, 0, 0);
    of_logs(
        &logs,
        reader,
        &mut logs.follow(account.group(), 1),
        &crate::world::event(&account, 1),
    );
    let mut shards = bus.share(ShareOptions::new("a", "1")).unwrap();
    let service = bus.serve(mailbell_bus::ServeOptions::default(), |_, _| async {
        mailbell_bus::refuse("no", "No.", false)
    });
    of_owners(&mut shards, &service);
    assert_eq!(shards.held(), 0);
}
