//! Admin APIs that are away or refuse, and an API server whose watch is late.

use std::time::Duration;

use kube::api::DeleteParams;
use mailbell_operator::controller::Options;
use mailbell_proto::push::v1::ContentLevel;
use serde_json::json;

use super::{declared, four_rounds, said, start, start_counted, start_held, tell, until, watched};
use crate::{
    actors::Operator,
    fake_admin::{FakeAdmin, TOKEN},
    requests::Requests,
    world::{World, mailbell, with},
};

/// It may be back in a moment; if it is not, that is said, and nobody waits for it without end.
#[tokio::test]
async fn an_admin_api_that_is_away_holds_nothing_up_for_ever() {
    let Some((world, admin, operator)) = watched(&["alice", "bob"]).await else {
        return;
    };
    operator.stop().await;
    // One that waits longer than any test.
    let requests = Requests::limited("", usize::MAX);
    let (patient, hurried) = (tell(&admin), tell(&admin));
    let patient = |options: &mut Options| {
        patient(options);
        options.pace.silence = Duration::MAX;
    };
    let operator = start_counted(&world, "two", &requests, patient);
    admin.calls_for_accounts();
    four_rounds(&admin).await;
    drop(admin);
    // Of one that is new nobody knows how it is, and of the others it is not said yet.
    world.apply(declared("carol")).await;
    world
        .until_says("carol", "Unknown AdminAway the admin API does not answer")
        .await;
    let first = requests.tokens();
    until(|| requests.tokens() >= first + 4, "asked again").await;
    let bob = world.accounts().get("bob").await.unwrap();
    assert!(said(&bob).starts_with("True Watching"), "{}", said(&bob));
    operator.stop().await;
    let operator = Operator::start_told(&world, "three", None, hurried);
    world
        .until_says("bob", "Unknown AdminAway the admin API does not answer")
        .await;
    world.delete("bob").await;
    world
        .until_says("bob", "False Removing its account could not be deleted yet")
        .await;
    world.until_gone("bob").await;
    let left = world.events("bob", "AccountLeft").await;
    assert_eq!(left.len(), 1);
    assert!(left[0].contains("does not answer"), "{left:?}");
    // Of one that was never registered nothing is left.
    world.delete("carol").await;
    world.until_gone("carol").await;
    assert_eq!(world.events("carol", "AccountLeft").await.len(), 0);
    // With its installation there is nobody to ask any more.
    let params = DeleteParams::default();
    world.mailbells().delete("main", &params).await.unwrap();
    world.until_says("alice", "False NoInstallation").await;
    world.delete("alice").await;
    world.until_gone("alice").await;
    let left = world.events("alice", "AccountLeft").await;
    assert!(left[0].contains("there is no Mailbell main"), "{left:?}");
    operator.stop().await;
}

#[tokio::test]
async fn an_admin_api_that_is_silent_holds_up_no_other_installation() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    admin.is_silent_of("quiet");
    world.is_set_up().await;
    // By its name it would be asked first.
    let other = with(&mailbell(), "/metadata/name", json!("another"));
    world.create(&other).await;
    world
        .secret("another-operator-token", json!({ "token": TOKEN }))
        .await;
    let quiet = with(&declared("alice"), "/spec/tenant", json!("quiet"));
    let quiet = with(&quiet, "/spec/mailbell", json!("another"));
    world.apply(quiet).await;
    world.apply(declared("bob")).await;
    let operator = start(&world, &admin, "one", None);
    world.until_says("bob", "True Watching").await;
    // Not only in the first round: while one call waits, the other installation is asked again and again.
    let (mut waited, mut lists) = (0, 0);
    let rounds = || {
        let calls = admin.calls_for_accounts();
        if waited != admin.waited() {
            (waited, lists) = (admin.waited(), 0);
        }
        lists += calls.iter().filter(|call| **call == "list").count();
        lists >= 6
    };
    until(rounds, "rounds while one waits").await;
    admin.says(&world.id("bob"), "bad-credentials");
    world.until_says("bob", "False BadCredentials").await;
    operator.stop().await;
}

/// It is tried again, ever less often, but at once when something else is declared.
#[tokio::test]
async fn what_is_refused_is_said_and_not_asked_for_all_the_time() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    admin.refuses(Some("not before the upgrade is finished"));
    world.is_set_up().await;
    world.apply(declared("bob")).await;
    let operator = start(&world, &admin, "one", None);
    world
        .until_says("bob", "False Refused not before the upgrade is finished")
        .await;
    // Not in each round: it waits 2, 4, 8 and more seconds.
    let mut calls = Vec::new();
    let rounds = || {
        calls.extend(admin.calls_for_accounts());
        calls.iter().filter(|call| **call == "list").count() >= 12
    };
    until(rounds, "rounds").await;
    let tries = calls.iter().filter(|call| **call == "create").count();
    assert!((1..8).contains(&tries), "{calls:?}");
    admin.refuses(None);
    let other = with(&declared("bob"), "/spec/paused", json!(true));
    world.apply(other).await;
    world.until_says("bob", "True Watching").await;
    assert_eq!(world.events("bob", "Refused").await.len(), 1);
    operator.stop().await;
}

/// What is read of one may be older than what was last written of it.
#[tokio::test]
async fn each_change_is_told_once_while_the_watch_is_late() {
    let Some((world, admin, operator)) = watched(&["bob"]).await else {
        return;
    };
    operator.stop().await;
    let (operator, requests) = start_held(&world, &admin, &["/mailaccounts?", "watch=true"]).await;
    admin.says(&world.id("bob"), "bad-credentials");
    world.until_says("bob", "False BadCredentials").await;
    admin.calls_for_accounts();
    four_rounds(&admin).await;
    assert_eq!(world.events("bob", "BadCredentials").await.len(), 1);
    requests.let_go();
    // Once it is known what stands there, nothing is written any more.
    let quiet = || async {
        let before = requests.statuses();
        four_rounds(&admin).await;
        (requests.statuses() == before).then_some(())
    };
    world.once(quiet, "an end of writing").await;
    operator.stop().await;
}

#[tokio::test]
async fn an_older_admin_is_not_asked_each_round_for_what_it_does_not_know() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    admin.is_old(true);
    let operator = start(&world, &admin, "one", None);
    world.is_set_up().await;
    let key = with(&declared("bob"), "/spec/content", json!("key"));
    world.apply(key).await;
    let trouble = "Unknown AdminTooOld the admin API did all of it but the content policy, which is `preview`";
    world.until_says("bob", trouble).await;
    // Longer and longer it is only listed.
    let (mut quiet, mut updates) = (0, 0);
    let rests = || {
        for call in admin.calls_for_accounts() {
            quiet = if call == "list" { quiet + 1 } else { 0 };
            updates += usize::from(call == "update");
        }
        quiet >= 5 && updates >= 2
    };
    until(rests, "left alone after an update").await;
    world.until_says("bob", trouble).await;
    let bob = world.id("bob");
    assert_eq!(admin.passwords(&bob), ["b"]);
    admin.is_old(false);
    world.until_says("bob", "True Watching").await;
    assert_eq!(admin.account(&bob).unwrap().content(), ContentLevel::Key);
    assert_eq!(world.events("bob", "AdminTooOld").await.len(), 1);
    operator.stop().await;
}
