//! Passwords, and the Secrets that they are in.

use mailbell_operator::api::MailAccount;
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
