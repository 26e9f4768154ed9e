//! An operator that dies at any of its steps for MailAccounts.

use std::sync::Arc;

use serde_json::json;

use super::{declared, said, start, start_counted, tell};
use crate::{
    fake_admin::FakeAdmin,
    requests::Requests,
    world::{World, soon},
};

/// Before the first request about MailAccounts, before the second one, and so on: more than it takes from a new one to a watched mailbox,
/// and from a deleted one to none.
const STEPS: usize = 12;

/// Registers, or deletes, until it dies; or until all is done, where that takes fewer steps.
async fn killed(world: &Arc<World>, admin: &FakeAdmin, steps: usize, done: impl Future) {
    let requests = Requests::limited("/mailaccounts", steps);
    let operator = start_counted(world, "one", &requests, tell(admin));
    soon(async {
        tokio::select! {
            // Either may be first.
            biased;
            () = requests.are_over() => {}
            _ = done => {}
        }
    })
    .await;
    operator.kill();
}

impl World {
    async fn until_watched(&self, names: &[String]) {
        for name in names {
            let watched = |account: &_| said(account).starts_with("True Watching");
            self.once_account(name, "watched", watched).await;
        }
    }
}

#[tokio::test]
async fn what_is_killed_at_any_step_registers_nothing_twice_and_leaves_no_account() {
    let Some(world) = World::new().await else {
        return;
    };
    let (world, admin) = (Arc::new(world), FakeAdmin::start(None));
    world.is_set_up().await;
    let names: Vec<String> = (0..STEPS).map(|step| format!("m{step}")).collect();
    let passwords: serde_json::Map<_, _> = names
        .iter()
        .map(|name| (name.clone(), json!("a")))
        .collect();
    world.secret("mail-passwords", passwords.into()).await;
    for (step, name) in names.iter().enumerate() {
        world.apply(declared(name)).await;
        killed(&world, &admin, step, world.until_watched(&names[..=step])).await;
    }
    let operator = start(&world, &admin, "one", None);
    world.until_watched(&names).await;
    operator.stop().await;
    assert_eq!((admin.made(), admin.accounts()), (STEPS, STEPS));
    for (step, name) in names.iter().enumerate() {
        world.delete(name).await;
        killed(&world, &admin, step, world.until_gone(name)).await;
    }
    let operator = start(&world, &admin, "one", None);
    for name in &names {
        world.until_gone(name).await;
    }
    operator.stop().await;
    // Nor was one made anew that was to go.
    assert_eq!((admin.made(), admin.accounts()), (STEPS, 0));
}
