//! MailAccounts that are deleted, by the operator's leave or without it.

use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, Patch, PatchParams};
use mailbell_proto::admin::v1::Account;
use serde_json::{Value, json};

use super::{declared, start, start_held, watched};
use crate::world::{provider, with};

/// By a finalizer that somebody has taken off, also for an operator that has not seen the MailAccount.
#[tokio::test]
async fn an_account_whose_mail_account_is_gone_is_named_until_it_is_gone_too() {
    let Some((world, admin, operator)) = watched(&["bob", "carol"]).await else {
        return;
    };
    operator.stop().await;
    let bob = admin.account(&world.id("bob")).unwrap();
    // Of another kind, and so nobody's business.
    admin.put(Account {
        external_id: "other".to_owned(),
        id: "default.other".to_owned(),
        ..bob.clone()
    });
    let mut other = admin.account("other").unwrap();
    other.managed_by = String::new();
    admin.put(other);
    world.delete("bob").await;
    world.free("bob").await;
    let left = |expected: Option<(i64, Vec<String>)>| {
        let world = &world;
        async move {
            let is = || async {
                let mailbell = world.mailbells().get("main").await.unwrap();
                let left = mailbell.status?.left_accounts;
                (left.map(|left| (left.count, left.ids)) == expected).then_some(())
            };
            world.once(is, "what is left").await;
        }
    };
    let of_bob = Some((1, vec![bob.id.clone()]));
    let operator = start(&world, &admin, "two", None);
    left(of_bob.clone()).await;
    // With the last MailAccount of the tenant goes the reason to ask for it, but for this.
    world.delete("carol").await;
    world.until_gone("carol").await;
    operator.stop().await;
    admin.put(Account {
        external_id: world.id("dave"),
        id: "default.dave".to_owned(),
        managed_by: world.id("dave"),
        ..Account::default()
    });
    let operator = start(&world, &admin, "three", None);
    left(Some((2, vec![bob.id.clone(), "default.dave".to_owned()]))).await;
    // Declared again it is nobody's any more, and so it is when it is gone.
    world.apply(declared("bob")).await;
    world.until_says("bob", "True Watching").await;
    left(Some((1, vec!["default.dave".to_owned()]))).await;
    admin.remove(&world.id("dave"));
    left(None).await;
    operator.stop().await;
}

/// As after a roll-back: what is said of mailboxes that are watched stays, and none of them is named as one that nobody declares.
#[tokio::test]
async fn what_cannot_be_read_is_not_gone() {
    let Some((world, admin, operator)) = watched(&["alice", "bob", "carol"]).await else {
        return;
    };
    let status = async |object: &str, status: Value| {
        let (kind, name) = object.split_once('/').unwrap();
        let status = json!({ "status": status }).to_string();
        let patch = [
            "patch",
            kind,
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
        ];
        let (worked, said) = world.kubectl(&[&patch[..], &[&status]].concat(), "").await;
        assert!(worked, "{said}");
    };
    // A time for the API server, and for nobody else.
    let time = "2024-01-01T00:00:00+99:00";
    operator.stop().await;
    status("mailaccount/bob", json!({ "lastArrival": time })).await;
    assert!(world.accounts().get("bob").await.is_err());
    let carol = admin.account(&world.id("carol")).unwrap();
    world.delete("carol").await;
    world.free("carol").await;
    let operator = start(&world, &admin, "two", None);
    let left = || async {
        let mailbell = world.mailbells().get("main").await.unwrap();
        let left = mailbell.status?.left_accounts;
        Some(left?.ids).filter(|ids| !ids.is_empty())
    };
    assert_eq!(world.once(left, "what is left").await, [carol.id]);
    status("mailaccount/bob", json!({ "lastArrival": null })).await;
    world.until_says("bob", "True Watching").await;
    // The same of the installation that it names.
    status("mailbell/main", json!({ "lookedAt": time })).await;
    let pause = Patch::Merge(json!({ "spec": { "paused": true } }));
    let params = PatchParams::default();
    world
        .accounts()
        .patch("bob", &params, &pause)
        .await
        .unwrap();
    world.apply(declared("again")).await;
    // The operator has seen both: of what comes after them it tells.
    let provider = provider();
    world
        .has(&with(&provider, "/spec/mailbell", json!("other")))
        .await;
    world
        .until_provider_says("example", "False NoInstallation")
        .await;
    status("mailbell/main", json!({ "lookedAt": null })).await;
    world.until_says("again", "True Watching").await;
    let paused = || async {
        let bob = admin.account(&world.id("bob")).unwrap();
        bob.paused.then_some(())
    };
    world.once(paused, "the pause").await;
    let events = world.api::<Event>();
    let events = events.list(&ListParams::default()).await.unwrap();
    let mut reasons = events.items.iter().filter(|event| {
        let of = event.involved_object.name.as_deref();
        ["bob", "again"].map(Some).contains(&of)
    });
    assert!(reasons.all(|event| event.reason.as_deref() != Some("NoInstallation")));
    operator.stop().await;
}

/// Nothing but the status tells the next operator where to look.
#[tokio::test]
async fn the_last_mail_account_of_a_tenant_leaves_an_account_that_is_named_too() {
    let Some((world, admin, operator)) = watched(&["bob"]).await else {
        return;
    };
    let status = || async { world.mailbells().get("main").await.unwrap().status };
    let known = || async {
        let tenants = status().await?.tenants;
        (tenants == ["default"]).then_some(())
    };
    world.once(known, "its tenant").await;
    operator.stop().await;
    let bob = admin.account(&world.id("bob")).unwrap();
    world.delete("bob").await;
    world.free("bob").await;
    let operator = start(&world, &admin, "two", None);
    let named = || async { (status().await?.left_accounts?.ids == [bob.id.clone()]).then_some(()) };
    world.once(named, "what is left").await;
    admin.remove(&world.id("bob"));
    let forgotten = || async {
        let status = status().await?;
        (status.left_accounts.is_none() && status.tenants.is_empty()).then_some(())
    };
    world.once(forgotten, "nothing to look for").await;
    operator.stop().await;
}

/// Whoever leads then may hear of what was deleted before it hears of the installation, and takes that for none that is not there.
#[tokio::test]
async fn what_is_deleted_while_nobody_leads_is_deleted_by_the_next_one() {
    let Some((world, admin, operator)) = watched(&["bob"]).await else {
        return;
    };
    operator.stop().await;
    world.delete("bob").await;
    let (operator, requests) = start_held(&world, &admin, &["/mailbells"]).await;
    // All others are listed and watched: MailAccounts, and nine kinds of objects; and the lease was written.
    let begun = || async { (requests.made() >= 20).then_some(()) };
    world.once(begun, "the beginning").await;
    requests.let_go();
    world.until_gone("bob").await;
    assert!(admin.calls().contains(&"delete"));
    assert_eq!(admin.account(&world.id("bob")), None);
    operator.stop().await;
}
