//! MailAccounts on a real API server, with an admin API that does what a test tells it. The real one is in `services/mailbell/tests`.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Event;
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use mailbell_operator::{
    api::MailAccount,
    controller::{Options, Pace},
};
use mailbell_proto::{
    admin::v1::Account,
    push::v1::{AccountState, ContentLevel, Health},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    actors::Operator,
    fake_admin::{FakeAdmin, TOKEN},
    requests::{self, Requests},
    world::{World, account, mailbell, soon, with},
};

const MAILBELL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell");

/// As an operator's, in a hurry.
const PACE: Pace = Pace {
    round: Duration::from_millis(300),
    busy: Duration::from_millis(300),
    secrets: Duration::from_millis(300),
    silence: Duration::from_secs(3),
    removal: Duration::from_secs(3),
};

fn start(world: &World, admin: &FakeAdmin, identity: &str, user: Option<&str>) -> Operator {
    Operator::start_told(world, identity, user, tell(admin))
}

fn tell(admin: &FakeAdmin) -> impl FnOnce(&mut Options) {
    let url = admin.url("http");
    |options| {
        options.admin_url = Some(url);
        options.pace = PACE;
    }
}

/// With the password in the Secret that needs no mention.
fn declared(name: &str) -> Value {
    let object = with(&account(), "/metadata/name", json!(name));
    with(&object, "/spec/password", Value::Null)
}

impl World {
    /// An installation, the operator's token, and passwords.
    async fn is_set_up(&self, passwords: Value) {
        self.create(&mailbell()).await;
        self.secret("main-operator-token", json!({ "token": TOKEN }))
            .await;
        self.secret("mail-passwords", passwords).await;
    }

    fn id(&self, name: &str) -> String {
        format!("mailaccount/{}/{name}", self.namespace)
    }

    async fn once_account(&self, name: &str, what: &str, is_so: impl Fn(&MailAccount) -> bool) {
        let look = async || {
            let account = self.accounts().get(name).await.unwrap();
            is_so(&account).then_some(()).ok_or(account.status)
        };
        let begin = Instant::now();
        while let Err(status) = look().await {
            let limit = Duration::from_secs(60);
            assert!(begin.elapsed() < limit, "{name} is not {what}: {status:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the condition begins so: its status, its reason, and its sentence.
    async fn until_says(&self, name: &str, expected: &str) {
        let says = |account: &MailAccount| said(account).starts_with(expected);
        self.once_account(name, expected, says).await;
    }

    async fn until_gone(&self, name: &str) {
        let gone = || async {
            let found = self.accounts().get_opt(name).await.unwrap();
            found.is_none().then_some(())
        };
        self.once(gone, "the end of a MailAccount").await;
    }

    async fn delete(&self, name: &str) {
        let params = DeleteParams::default();
        self.accounts().delete(name, &params).await.unwrap();
    }

    /// What was said of it by events of this kind, each of which was told once.
    async fn events(&self, name: &str, reason: &str) -> Vec<String> {
        let (api, params) = (self.api::<Event>(), ListParams::default());
        let all = api.list(&params).await.unwrap().items.into_iter();
        let is = |event: &Event| {
            event.involved_object.name.as_deref() == Some(name)
                && event.reason.as_deref() == Some(reason)
        };
        let all = all.filter(is).map(|event| {
            assert!(event.series.is_none(), "told again: {event:?}");
            event.message.unwrap()
        });
        all.collect()
    }
}

fn said(account: &MailAccount) -> String {
    let mut conditions = account.status.iter().flat_map(|it| &it.conditions);
    let ready = conditions.next();
    ready.map_or_else(String::new, |it| {
        format!("{} {} {}", it.status, it.reason, it.message)
    })
}

/// One change a change, and none while nothing changes.
#[tokio::test]
async fn an_account_is_as_it_is_declared() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    let operator = start(&world, &admin, "one", None);
    // Each thing that is missing is named, and once it is there it goes on.
    world.apply(declared("bob")).await;
    world
        .until_says("bob", "False NoInstallation there is no Mailbell main")
        .await;
    world.create(&mailbell()).await;
    world
        .until_says("bob", "False NoSecret there is no Secret mail-passwords")
        .await;
    world
        .secret("mail-passwords", json!({ "alice": "a" }))
        .await;
    world
        .until_says(
            "bob",
            "False NoPassword the Secret mail-passwords has no key bob",
        )
        .await;
    world
        .secret("mail-passwords", json!({ "alice": "a", "bob": "b\n" }))
        .await;
    world
        .until_says(
            "bob",
            "Unknown AdminAway there is no Secret main-operator-token",
        )
        .await;
    world
        .secret("main-operator-token", json!({ "token": TOKEN }))
        .await;
    world.until_says("bob", "True Watching New mail").await;
    let made = admin.account(&world.id("bob")).unwrap();
    assert_eq!(
        (made.folders, made.managed_by),
        (vec!["INBOX".to_owned()], world.id("bob"))
    );
    // Without the line end that an editor has left there.
    assert_eq!(admin.passwords(&world.id("bob")), ["b"]);

    // Mail that comes is told, but not each message: a status is no log.
    let bob = world.id("bob");
    let mail_at = |seconds: i64| {
        let mut account = admin.account(&bob).unwrap();
        account.last_arrival_ms = seconds * 1000;
        account.revision += 1;
        admin.put(account);
    };
    let arrival = |account: &MailAccount| {
        let status = account.status.as_ref()?;
        status.last_arrival.as_ref().map(|at| at.0.as_second())
    };
    mail_at(1_800_000_000);
    let is_told = |account: &MailAccount| arrival(account) == Some(1_800_000_000);
    world.once_account("bob", "told of its mail", is_told).await;
    mail_at(1_800_000_009);

    // Four rounds, each of one page, and not a word.
    let before = world.accounts().get("bob").await.unwrap();
    admin.calls_for_accounts();
    four_rounds(&admin).await;
    let after = world.accounts().get("bob").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());

    let paused = with(&declared("bob"), "/spec/paused", json!(true));
    world.apply(paused.clone()).await;
    let is = |external: &str, what: fn(&Account) -> bool| {
        admin.account(external).is_some_and(|it| what(&it))
    };
    until(|| is(&bob, |it| it.paused), "paused").await;
    let moved = with(&paused, "/spec/server/host", json!("mail.example.org"));
    world
        .apply(with(&moved, "/spec/folders", json!(["inbox", "Work"])))
        .await;
    let is_moved = |it: &Account| {
        it.server.as_ref().unwrap().host == "mail.example.org" && it.folders == ["INBOX", "Work"]
    };
    until(|| is(&bob, is_moved), "moved").await;
    // The stored password is bound to the server.
    assert_eq!(admin.passwords(&bob), ["b", "b"]);
    // What is not as it is declared is put right, and what is not there made.
    let mut drifted = admin.account(&bob).unwrap();
    drifted.folders.clear();
    admin.put(drifted);
    until(|| is(&bob, is_moved), "put right").await;
    // The policy too, in both directions.
    let has = |content: ContentLevel| {
        admin
            .account(&bob)
            .is_some_and(|it| it.content() == content)
    };
    world
        .apply(with(&moved, "/spec/content", json!("key")))
        .await;
    until(|| has(ContentLevel::Key), "limited").await;
    let mut drifted = admin.account(&bob).unwrap();
    drifted.content = ContentLevel::Unspecified.into();
    admin.put(drifted);
    until(|| has(ContentLevel::Key), "limited again").await;
    world.apply(moved).await;
    until(|| has(ContentLevel::Preview), "lifted").await;
    world.delete("bob").await;
    world.until_gone("bob").await;
    assert!(admin.account(&bob).is_none());
    assert_eq!(world.events("bob", "AccountLeft").await.len(), 0);
    // Each thing was told once, though it was looked at again and again.
    for reason in ["NoInstallation", "NoSecret", "NoPassword", "AdminAway"] {
        assert_eq!(world.events("bob", reason).await.len(), 1, "{reason}");
    }
    operator.stop().await;
}

/// Each of one page, and nothing else, since calls were last asked for.
async fn four_rounds(admin: &FakeAdmin) {
    let mut calls = Vec::new();
    let rounds = || {
        calls.extend(admin.calls_for_accounts());
        calls.len() >= 4
    };
    until(rounds, "rounds").await;
    assert!(calls.iter().all(|call| *call == "list"), "{calls:?}");
}

async fn until(mut is_so: impl FnMut() -> bool, what: &str) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// One that was there before it was declared: of a release before, or of another cluster whose manifests are applied here.
#[tokio::test]
async fn what_carries_its_id_is_taken_over_and_several_are_kept_apart() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    let theirs = Account {
        id: "default.theirs".to_owned(),
        external_id: world.id("bob"),
        folders: vec!["Other".to_owned()],
        ..Account::default()
    };
    admin.put(theirs);
    world
        .is_set_up(json!({ "bob": "b", "again": "b", "carol": "c" }))
        .await;
    for name in ["bob", "again", "carol"] {
        world.apply(declared(name)).await;
    }
    let operator = start(&world, &admin, "one", None);
    let mut ids = Vec::new();
    for name in ["bob", "again", "carol"] {
        world.until_says(name, "True Watching").await;
        let account = admin.account(&world.id(name)).unwrap();
        assert_eq!(
            (account.managed_by, account.folders),
            (world.id(name), vec!["INBOX".to_owned()])
        );
        let status = world.accounts().get(name).await.unwrap().status.unwrap();
        assert_eq!(status.account.as_deref(), Some(account.id.as_str()));
        ids.push(account.id);
    }
    assert_eq!(ids[0], "default.theirs");
    assert!(ids[1] != ids[2] && ids[1] != ids[0]);
    assert_eq!(admin.passwords(&world.id("bob")), ["b"]);
    operator.stop().await;
}

/// Of one Secret with many, also by an operator that has not seen the one before.
#[tokio::test]
async fn only_a_password_that_has_changed_is_set() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    world.is_set_up(json!({ "alice": "a", "bob": "b" })).await;
    let names = ["alice", "bob"];
    for name in names {
        world.apply(declared(name)).await;
    }
    let operator = start(&world, &admin, "one", None);
    let mut versions = Vec::new();
    for name in names {
        world.until_says(name, "True Watching").await;
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
    world.is_set_up(json!({ "bob": "b" })).await;
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

/// It may be back in a moment; if it is not, that is said, and nobody waits for it without end.
#[tokio::test]
async fn an_admin_api_that_is_away_holds_nothing_up_for_ever() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    world
        .is_set_up(json!({ "alice": "a", "bob": "b", "carol": "c" }))
        .await;
    for name in ["alice", "bob"] {
        world.apply(declared(name)).await;
    }
    let operator = start(&world, &admin, "one", None);
    for name in ["alice", "bob"] {
        world.until_says(name, "True Watching").await;
    }
    drop(admin);
    // Nobody knows it yet.
    world.apply(declared("carol")).await;
    world
        .until_says("carol", "Unknown AdminAway the admin API does not answer")
        .await;
    let bob = world.accounts().get("bob").await.unwrap();
    assert!(said(&bob).starts_with("True Watching"), "{}", said(&bob));
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

/// By a finalizer that somebody has taken off, also for an operator that has not seen the MailAccount.
#[tokio::test]
async fn an_account_whose_mail_account_is_gone_is_named_until_it_is_gone_too() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    world.is_set_up(json!({ "bob": "b", "carol": "c" })).await;
    let operator = start(&world, &admin, "one", None);
    for name in ["bob", "carol"] {
        world.apply(declared(name)).await;
        world.until_says(name, "True Watching").await;
    }
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
    let freed = json!({ "metadata": { "finalizers": null } });
    let params = PatchParams::default();
    let freed = Patch::Merge(&freed);
    world
        .accounts()
        .patch("bob", &params, &freed)
        .await
        .unwrap();
    world.until_gone("bob").await;
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

/// The watchers' key ring was lost, for instance, and made anew. It may be of no use, and is not tried all the time.
#[tokio::test]
async fn a_password_that_cannot_be_opened_is_given_again_at_a_bounded_pace() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    world.is_set_up(json!({ "bob": "b" })).await;
    world.apply(declared("bob")).await;
    let operator = start(&world, &admin, "one", None);
    world.until_says("bob", "True Watching").await;
    let bob = world.id("bob");
    let is_said = |code: &str| {
        let mut account = admin.account(&bob).unwrap();
        account.state = Some(AccountState {
            health: Health::ActionNeeded.into(),
            code: code.to_owned(),
            sentence: "It cannot be opened.".to_owned(),
            ..AccountState::default()
        });
        account.revision += 1;
        admin.put(account);
    };
    // It is there, and a release before cannot read it: not to be written over.
    is_said("credential-newer");
    world.until_says("bob", "False CredentialNewer").await;
    assert_eq!(admin.passwords(&bob), ["b"]);
    is_said("sealing-key-missing");
    until(|| admin.passwords(&bob).len() == 2, "given again").await;
    world.until_says("bob", "True Watching").await;
    // Where it does not help, the next time is a minute later at the earliest.
    admin.helps(false);
    is_said("credential-mismatch");
    until(|| admin.passwords(&bob).len() == 3, "given again").await;
    is_said("starting");
    world.until_says("bob", "False Starting").await;
    is_said("credential-missing");
    world.until_says("bob", "False CredentialMissing").await;
    admin.calls_for_accounts();
    four_rounds(&admin).await;
    assert_eq!(admin.passwords(&bob), ["b"; 3]);
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
    world.is_set_up(json!({ "bob": "b" })).await;
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

/// Whoever leads then may hear of what was deleted before it hears of the installation, and takes that for none that is not there.
#[tokio::test]
async fn what_is_deleted_while_nobody_leads_is_deleted_by_the_next_one() {
    let Some(world) = World::new().await else {
        return;
    };
    let world = Arc::new(world);
    let admin = FakeAdmin::start(None);
    world.is_set_up(json!({ "bob": "b" })).await;
    let operator = start(&world, &admin, "one", None);
    world.apply(declared("bob")).await;
    world.until_says("bob", "True").await;
    operator.stop().await;
    world.delete("bob").await;
    let requests = Requests::holding(&["/mailbells"]);
    let (of, held) = (Arc::clone(&world), Arc::clone(&requests));
    let client = async move { requests::client(&of, held).await };
    let operator = Operator::start_by(&world, "two", client, tell(&admin));
    soon(requests.are_over()).await;
    // All others are listed and watched: MailAccounts, and nine kinds of objects; and the lease was written.
    let begun = || async { (requests.made() >= 20).then_some(()) };
    world.once(begun, "the beginning").await;
    requests.let_go();
    world.until_gone("bob").await;
    assert!(admin.calls().contains(&"delete"));
    assert_eq!(admin.account(&world.id("bob")), None);
    operator.stop().await;
}

/// What is read of one may be older than what was last written of it.
#[tokio::test]
async fn each_change_is_told_once_while_the_watch_is_late() {
    let Some(world) = World::new().await else {
        return;
    };
    let world = Arc::new(world);
    let admin = FakeAdmin::start(None);
    world.is_set_up(json!({ "bob": "b" })).await;
    world.apply(declared("bob")).await;
    let operator = start(&world, &admin, "one", None);
    world.until_says("bob", "True Watching").await;
    operator.stop().await;
    let requests = Requests::holding(&["/mailaccounts?", "watch=true"]);
    let (of, held) = (Arc::clone(&world), Arc::clone(&requests));
    let client = async move { requests::client(&of, held).await };
    let operator = Operator::start_by(&world, "two", client, tell(&admin));
    soon(requests.are_over()).await;
    let mut account = admin.account(&world.id("bob")).unwrap();
    account.state = Some(AccountState {
        health: Health::ActionNeeded.into(),
        code: "bad-credentials".to_owned(),
        sentence: "The password is refused.".to_owned(),
        ..AccountState::default()
    });
    account.revision += 1;
    admin.put(account);
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
