//! What is said where mailboxes that should be watched are not.

use std::time::Duration;

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Event};
use kube::api::ListParams;
use mailbell_operator::controller::LOAD_EVERY;
use serde_json::json;

use crate::{
    actors::{IMAGE, Operator},
    fake_admin::{FakeAdmin, TOKEN},
    world::{World, mailbell, with},
};

/// As long as the alert waits.
const LONG: Duration = Duration::from_secs(120);

/// An admin API by which each of twenty mailboxes is watched, and the token for it.
async fn all_watched() -> Option<(World, FakeAdmin)> {
    let world = World::new().await?;
    world
        .secret("main-operator-token", json!({ "token": TOKEN }))
        .await;
    let admin = FakeAdmin::start(None);
    admin.watches(20, 0, Duration::ZERO);
    Some((world, admin))
}

/// Who reads `kubectl get mailbells` alone is not told that all is well; and is told when it is again.
#[tokio::test]
async fn ready_is_not_said_of_mailboxes_that_nobody_watches() {
    let Some((world, admin)) = all_watched().await else {
        return;
    };
    let start = |identity: &str, look_every: Duration| {
        Operator::start_with(&world, identity, |options| {
            options.admin_url = Some(admin.url("http"));
            options.look_every = look_every;
        })
    };
    let soon = Duration::from_millis(100);
    let operator = start("one", soon);
    world.create(&mailbell()).await;
    world.is_installed(IMAGE).await;
    world
        .until_ready_says("True Running Everything runs.")
        .await;
    admin.watches(15, 5, LONG);
    world
        .until_ready_says("True Impaired The mailboxes: nobody watches 5 of 20: `mailbell shards`")
        .await;
    assert_eq!(world.degraded().await, "True Failed");
    // Whoever leads next, and has not looked yet, says nothing else.
    operator.stop().await;
    let operator = start("two", LOAD_EVERY);
    let other = json!({ "spec": { "watchers": { "pausedTenants": ["acme"] } } });
    world.change(other).await;
    world.is_looked_at().await;
    world
        .until_ready_says("True Impaired The mailboxes: nobody watches 5 of 20: `mailbell shards`")
        .await;
    operator.stop().await;
    let operator = start("three", soon);
    admin.watches(0, 20, LONG);
    world
        .until_ready_says("False Failed The mailboxes: nobody watches 20 of 20: ")
        .await;
    let (_, listed) = world.kubectl(&["get", "mailbells"], "").await;
    assert!(
        listed.contains("False") && listed.contains("nobody watches 20 of 20"),
        "{listed}"
    );
    // It is not asked for longer than until it is known again.
    admin.watches(20, 0, Duration::ZERO);
    world
        .until_ready_says("True Running Everything runs.")
        .await;
    assert_eq!(world.degraded().await, "False Whole");
    let told = || async {
        let (events, params) = (world.api::<Event>(), ListParams::default());
        let events = events.list(&params).await.unwrap().items.into_iter();
        let about = |event: &Event| event.involved_object.kind.as_deref() == Some("Mailbell");
        let mut told: Vec<_> = events
            .filter(about)
            .filter_map(|event| Some((event.reason?, event.type_?, event.series.is_none())))
            .filter(|(reason, ..)| ["Impaired", "Failed"].contains(&reason.as_str()))
            .collect();
        told.sort();
        let warning = |reason: &str| (reason.to_owned(), "Warning".to_owned(), true);
        (told == [warning("Failed"), warning("Impaired")]).then_some(())
    };
    world.once(told, "an event a change").await;
    operator.stop().await;
}

/// One that is impaired for a long time, as where a pod has no room, is not silent about what comes meanwhile.
#[tokio::test]
async fn each_trouble_has_an_event_and_its_numbers_have_none() {
    let Some((world, admin)) = all_watched().await else {
        return;
    };
    let operator = Operator::start_with(&world, "one", |options| {
        options.admin_url = Some(admin.url("http"));
        options.look_every = Duration::from_millis(100);
    });
    let scale = json!({ "min": 4, "max": 10 });
    world
        .create(&with(&mailbell(), "/spec/watchers/scale", scale))
        .await;
    world.is_installed(IMAGE).await;
    world
        .until_ready_says("True Running Everything runs.")
        .await;
    let watchers_are_ready = async |count: i32| {
        let set: StatefulSet = world.there("main-watcher").await;
        world.says(&set, json!({ "readyReplicas": count })).await;
        format!("True Impaired The watchers: {count} of 4 pods of main-watcher are ready.")
    };
    for count in [3, 2] {
        let said = watchers_are_ready(count).await;
        world.until_ready_says(&said).await;
    }
    admin.watches(15, 5, LONG);
    world
        .until_ready_says("True Impaired The mailboxes: nobody watches 5 of 20: ")
        .await;
    let said = watchers_are_ready(3).await;
    admin.watches(20, 0, Duration::ZERO);
    world.until_ready_says(&said).await;
    world.set_is_ready("main-watcher").await;
    // The last event.
    let told = || async {
        let (events, params) = (world.api::<Event>(), ListParams::default());
        let events = events.list(&params).await.unwrap().items.into_iter();
        let about = |event: &Event| event.involved_object.kind.as_deref() == Some("Mailbell");
        let (impaired, others): (Vec<_>, Vec<_>) = events
            .filter(about)
            .partition(|event| event.reason.as_deref() == Some("Impaired"));
        let mut others = others.into_iter();
        let runs_again = |it: Event| it.reason.as_deref() == Some("Running") && it.series.is_some();
        others.any(runs_again).then_some(impaired)
    };
    let told = world.once(told, "that all runs again").await;
    let mut told: Vec<_> = told.into_iter().filter_map(|it| it.message).collect();
    told.sort();
    let begins = told.iter().map(|it| it.split(": `").next().unwrap());
    assert_eq!(
        begins.collect::<Vec<_>>(),
        [
            "The mailboxes: nobody watches 5 of 20",
            "The watchers: 3 of 4 pods of main-watcher are ready.",
        ]
    );
    operator.stop().await;
}

impl World {
    /// Status and reason.
    async fn degraded(&self) -> String {
        let status = self.mailbells().get("main").await.unwrap().status.unwrap();
        let mut conditions = status.conditions.iter();
        let degraded = conditions.find(|it| it.type_ == "Degraded").unwrap();
        format!("{} {}", degraded.status, degraded.reason)
    }
}
