//! Passwords, and the Secrets that they are in.

use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use mailbell_operator::api::{AccountMode, MailAccount};
use mailbell_proto::push::v1::ContentLevel;
use serde_json::json;

use super::{declared, four_rounds, start, until, watched};
use crate::{
    fake_admin::FakeAdmin,
    world::{World, with},
};

const MAILBELL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell");

/// Of one Secret with many, also by an operator that has not seen the one before.
#[tokio::test]
async fn only_a_password_that_has_changed_is_set() {
    let names = ["alice", "bob"];
    let Some((world, admin, operator)) = watched(&names).await else {
        return;
    };
    let mut versions = Vec::new();
    for name in names {
        let status = world.accounts().get(name).await.unwrap().status.unwrap();
        versions.push(status.password_version.unwrap());
    }
    let all_say_another = async |versions: &mut [String]| {
        for (name, version) in names.iter().zip(versions) {
            let is_other = |account: &MailAccount| {
                let status = account.status.as_ref().unwrap();
                status.password_version.as_ref() != Some(&*version)
            };
            world
                .once_account(name, "of the new Secret", is_other)
                .await;
            let status = world.accounts().get(name).await.unwrap().status.unwrap();
            *version = status.password_version.unwrap();
        }
    };
    world
        .secret("mail-passwords", json!({ "alice": "a", "bob": "next" }))
        .await;
    all_say_another(&mut versions).await;
    assert_eq!(admin.passwords(&world.id("alice")), ["a"]);
    assert_eq!(admin.passwords(&world.id("bob")), ["b", "next"]);
    operator.stop().await;
    // The next one knows by the version that nothing is to be done.
    admin.calls_for_accounts();
    let operator = start(&world, &admin, "two", None);
    four_rounds(&admin).await;
    world
        .secret("mail-passwords", json!({ "alice": "a", "bob": "last" }))
        .await;
    all_say_another(&mut versions).await;
    assert_eq!(admin.passwords(&world.id("alice")), ["a"]);
    assert_eq!(admin.passwords(&world.id("bob")), ["b", "next", "last"]);
    operator.stop().await;
}

#[tokio::test]
async fn the_operator_reads_the_secrets_that_the_chart_names_and_no_other() {
    let Some(world) = World::new().await else {
        return;
    };
    let (installed, said) = world.helm(&["install", "mailbell", MAILBELL]).await;
    assert!(installed, "{said}");
    let admin = FakeAdmin::start(None);
    let operator = start(&world, &admin, "one", Some("mailbell-operator"));
    world.is_set_up().await;
    world.secret("other", json!({ "carol": "c" })).await;
    world.apply(declared("bob")).await;
    let elsewhere = json!({ "secretName": "other" });
    world
        .apply(with(&declared("carol"), "/spec/password", elsewhere))
        .await;
    world.until_says("bob", "True Watching").await;
    let sentence = "False SecretForbidden the operator may not read the Secret other: name it in mailAccounts.passwordSecrets";
    world.until_says("carol", sentence).await;
    world.delete("carol").await;
    world.until_gone("carol").await;
    world.delete("bob").await;
    world.until_gone("bob").await;
    operator.stop().await;
}

/// A tool may delete it and make it anew; the mailbox is watched all the while, and what needs no password goes on.
#[tokio::test]
async fn without_its_secret_a_mailbox_is_watched_and_all_but_its_password_changed() {
    let Some((world, admin, operator)) = watched(&["bob"]).await else {
        return;
    };
    let bob = world.id("bob");
    let is_gone = async || {
        let params = DeleteParams::default();
        let secrets = world.api::<Secret>();
        secrets.delete("mail-passwords", &params).await.unwrap();
    };
    let status = async || world.accounts().get("bob").await.unwrap().status.unwrap();
    let watched = "True Watching New mail is told at once.";
    let without = |why: &str| format!("{watched} Its password cannot be read ({why}");
    let no_secret = without("there is no Secret mail-passwords in this namespace: make it");
    let before = status().await;
    is_gone().await;
    world.until_says("bob", &no_secret).await;
    let said = status().await;
    assert_eq!(said.mode, Some(AccountMode::Idle));
    assert_eq!(said.password_version, before.password_version);
    let limited = with(&declared("bob"), "/spec/content", json!("key"));
    world
        .apply(with(&limited, "/spec/paused", json!(true)))
        .await;
    let is = |paused: bool, content: ContentLevel| {
        let account = admin.account(&bob).unwrap();
        account.paused == paused && account.content() == content
    };
    until(|| is(true, ContentLevel::Key), "paused and limited").await;
    // So it is for an operator that has never seen the Secret.
    operator.stop().await;
    let operator = start(&world, &admin, "two", None);
    world.apply(declared("bob")).await;
    until(|| is(false, ContentLevel::Preview), "as before").await;
    world.until_says("bob", &no_secret).await;
    assert_eq!(admin.passwords(&bob), ["b"]);
    world
        .secret("mail-passwords", json!({ "alice": "a" }))
        .await;
    let no_key = without("the Secret mail-passwords has no key bob: add it");
    world.until_says("bob", &no_key).await;
    is_gone().await;
    let bytes = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "mail-passwords" },
        "data": { "bob": "/w==" } });
    world.apply(bytes).await;
    let no_text = without("bob of the Secret mail-passwords is no text");
    world.until_says("bob", &no_text).await;
    admin.calls_for_accounts();
    four_rounds(&admin).await;
    // The stored one is bound to the server.
    let moved = with(
        &declared("bob"),
        "/spec/server/host",
        json!("mail.example.org"),
    );
    world.apply(moved).await;
    world.until_says("bob", "False NoPassword bob of").await;
    world.apply(declared("bob")).await;
    world.until_says("bob", &no_text).await;
    is_gone().await;
    world
        .secret("mail-passwords", json!({ "bob": "next" }))
        .await;
    let has_next = || admin.passwords(&bob) == ["b", "next"];
    until(has_next, "given the next password").await;
    let is_newer = |account: &MailAccount| {
        let status = account.status.as_ref().unwrap();
        status.password_version != before.password_version
            && status.conditions[0].message.ends_with("at once.")
    };
    world
        .once_account("bob", "of the new Secret", is_newer)
        .await;
    assert_eq!(world.events("bob", "NoSecret").await.len(), 0);
    operator.stop().await;
}

/// The watchers' key ring was lost, for instance, and made anew. It may be of no use, and is not tried all the time.
#[tokio::test]
async fn a_password_that_cannot_be_opened_is_given_again_at_a_bounded_pace() {
    let Some((world, admin, operator)) = watched(&["bob", "carol"]).await else {
        return;
    };
    let (bob, carol) = (world.id("bob"), world.id("carol"));
    // It is there, and a release before cannot read it: not to be written over.
    admin.says(&bob, "credential-newer");
    world.until_says("bob", "False CredentialNewer").await;
    assert_eq!(admin.passwords(&bob), ["b"]);
    admin.says(&bob, "sealing-key-missing");
    until(|| admin.passwords(&bob).len() == 2, "given again").await;
    world.until_says("bob", "True Watching").await;
    // Where it helps for a moment only, the next time is later, as where it does not help at all.
    admin.helps(false);
    admin.says(&bob, "credential-mismatch");
    world.until_says("bob", "False CredentialMismatch").await;
    admin.says(&carol, "credential-mismatch");
    until(|| admin.passwords(&carol).len() == 2, "given again").await;
    admin.says(&carol, "starting");
    world.until_says("carol", "False Starting").await;
    admin.says(&carol, "credential-missing");
    world.until_says("carol", "False CredentialMissing").await;
    admin.calls_for_accounts();
    four_rounds(&admin).await;
    assert_eq!(admin.passwords(&bob), ["b"; 2]);
    assert_eq!(admin.passwords(&carol), ["c"; 2]);
    operator.stop().await;
}
