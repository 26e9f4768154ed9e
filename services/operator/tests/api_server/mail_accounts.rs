//! MailAccounts on a real API server, with an admin API that does what a test tells it. The real one is in `services/mailbell/tests`.

mod deleted;
mod killed;
mod passwords;
mod trouble;

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
use mailbell_proto::{admin::v1::Account, push::v1::ContentLevel};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    actors::Operator,
    fake_admin::{FakeAdmin, TOKEN},
    requests::{self, Requests},
    world::{World, account, mailbell, soon, with},
};

/// As an operator's, in a hurry.
const PACE: Pace = Pace {
    round: Duration::from_millis(300),
    busy: Duration::from_millis(300),
    secrets: Duration::from_millis(300),
    silence: Duration::from_secs(3),
    removal: Duration::from_secs(3),
    // None of these comes to an end.
    gift: Duration::from_secs(3600),
};

fn start(world: &World, admin: &FakeAdmin, identity: &str, user: Option<&str>) -> Operator {
    Operator::start_told(world, identity, user, tell(admin))
}

/// The next operator, whose requests of this kind are held back; there is one.
async fn start_held(
    world: &Arc<World>,
    admin: &FakeAdmin,
    parts: &'static [&'static str],
) -> (Operator, Arc<Requests>) {
    let requests = Requests::holding(parts);
    let operator = start_counted(world, "two", &requests, tell(admin));
    soon(requests.are_over()).await;
    (operator, requests)
}

/// Whose requests are counted.
fn start_counted(
    world: &Arc<World>,
    identity: &str,
    requests: &Arc<Requests>,
    tell: impl FnOnce(&mut Options),
) -> Operator {
    let (of, counted) = (Arc::clone(world), Arc::clone(requests));
    let client = async move { requests::client(&of, counted).await };
    Operator::start_by(world, identity, client, tell)
}

pub(crate) fn tell(admin: &FakeAdmin) -> impl FnOnce(&mut Options) + use<> {
    let url = admin.url("http");
    |options| {
        options.admin_url = Some(url);
        options.pace = PACE;
    }
}

/// With the password in the Secret that needs no mention.
pub(crate) fn declared(name: &str) -> Value {
    let object = with(&account(), "/metadata/name", json!(name));
    with(&object, "/spec/password", Value::Null)
}

/// An installation whose operator watches a mailbox for each of these MailAccounts.
async fn watched(names: &[&str]) -> Option<(Arc<World>, FakeAdmin, Operator)> {
    let world = World::new().await?;
    let admin = FakeAdmin::start(None);
    world.is_set_up().await;
    for name in names {
        world.apply(declared(name)).await;
    }
    let operator = start(&world, &admin, "one", None);
    for name in names {
        world.until_says(name, "True Watching").await;
    }
    Some((Arc::new(world), admin, operator))
}

impl World {
    /// An installation, the operator's token, and passwords.
    pub(crate) async fn is_set_up(&self) {
        self.create(&mailbell()).await;
        self.secret("main-operator-token", json!({ "token": TOKEN }))
            .await;
        let passwords = json!({ "alice": "a", "bob": "b", "again": "b", "carol": "c" });
        self.secret("mail-passwords", passwords).await;
    }

    pub(crate) fn id(&self, name: &str) -> String {
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
    pub(crate) async fn until_says(&self, name: &str, expected: &str) {
        let says = |account: &MailAccount| said(account).starts_with(expected);
        self.once_account(name, expected, says).await;
    }

    /// Takes the finalizer off one that is to be deleted.
    pub(crate) async fn free(&self, name: &str) {
        let freed = json!({ "metadata": { "finalizers": null } });
        let freed = Patch::Merge(&freed);
        let params = PatchParams::default();
        self.accounts().patch(name, &params, &freed).await.unwrap();
        self.until_gone(name).await;
    }

    pub(crate) async fn until_gone(&self, name: &str) {
        let gone = || async {
            let found = self.accounts().get_opt(name).await.unwrap();
            found.is_none().then_some(())
        };
        self.once(gone, "the end of a MailAccount").await;
    }

    pub(crate) async fn delete(&self, name: &str) {
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
    world.is_set_up().await;
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
