//! Accounts on a real store, with an owner that answers as it is told.
use std::time::Duration;

use crate::world::{World, good, request};
use mailbell_bus::state::Cas;
use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Partition},
    seal,
};
use mailbell_proto::{
    admin::v1::{
        CheckAccountRequest, CreateAccountRequest, DeleteAccountRequest, ExternalId,
        GetAccountRequest, ImapServer, ListAccountsRequest, UpdateAccountRequest,
        get_account_request::By,
    },
    bus::v1::{AccountRecord, CheckResult},
    push::v1::Health,
};
use tonic::Code;

fn by_id(id: &str) -> GetAccountRequest {
    GetAccountRequest {
        by: Some(By::Id(id.to_owned())),
    }
}

fn by_external(id: &str) -> GetAccountRequest {
    GetAccountRequest {
        by: Some(By::ExternalId(ExternalId {
            tenant: String::new(),
            id: id.to_owned(),
        })),
    }
}

fn refused() -> CheckResult {
    CheckResult {
        ok: false,
        code: "bad-credentials".to_owned(),
        sentence: "The password is wrong; set the right one.".to_owned(),
        ..CheckResult::default()
    }
}

async fn password_of(world: &World, id: &AccountId) -> Vec<u8> {
    let record = world.bus.accounts().get(id).await.unwrap().unwrap().value;
    let sealed = world
        .bus
        .credentials()
        .get(id)
        .await
        .unwrap()
        .unwrap()
        .value;
    seal::open(&world.ring, &seal::Binding::of(id, &record), &sealed)
        .unwrap()
        .to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_tried_written_whole_and_made_once() {
    let mut world = World::start().await;
    world.answer(good(&["INBOX", "Work"]));
    let mut wanted = request("ext-1");
    wanted.folders = vec!["inbox".to_owned(), "Work".to_owned()];
    let made = world
        .accounts
        .create_account(wanted.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(made.created);
    let account = made.account.unwrap();
    let server = account.server.clone().unwrap();
    assert_eq!(
        (server.host.as_str(), server.port),
        ("mail.example.org", 993)
    );
    assert_eq!(account.folders, ["INBOX", "Work"]);
    assert_eq!(account.state.as_ref().unwrap().health(), Health::Starting);

    let id: AccountId = account.id.parse().unwrap();
    let asked = world.asked();
    assert_eq!(asked.len(), 1);
    let (asked_id, check) = &asked[0];
    let record = check.account.clone().unwrap();
    assert_eq!(asked_id, &id);
    let opened = seal::open(
        &world.ring,
        &seal::Binding::of(&id, &record),
        check.credential.as_ref().unwrap(),
    );
    assert_eq!(opened.unwrap().as_slice(), b"secret");
    assert_eq!(password_of(&world, &id).await, b"secret");
    let checkpoint = world
        .bus
        .checkpoints()
        .load(&id)
        .await
        .unwrap()
        .unwrap()
        .value;
    let folders: Vec<_> = checkpoint
        .folders
        .iter()
        .map(|folder| {
            (
                folder.id,
                folder.name.as_str(),
                folder.generation,
                folder.uid_next,
            )
        })
        .collect();
    assert_eq!(folders, [(1, "INBOX", 7, 42), (2, "Work", 7, 42)]);

    // The same again: the same account, and no other login.
    let again = world
        .accounts
        .create_account(wanted.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(!again.created);
    assert_eq!(again.account.unwrap().id, account.id);
    assert!(world.asked().is_empty());
    let found = world
        .accounts
        .get_account(by_external("ext-1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((&found.id, found.revision), (&account.id, account.revision));

    // Other settings.
    wanted.server.as_mut().unwrap().user = "bob".to_owned();
    let status = world.accounts.create_account(wanted).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(
        status.message().contains(&account.id),
        "{}",
        status.message()
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_fails_leaves_no_account() {
    let mut world = World::start().await;
    world.answer(refused());
    let status = world
        .accounts
        .create_account(request("ext-1"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        status.message(),
        "The password is wrong; set the right one."
    );
    assert_eq!(
        status.metadata().get(mailbell_admin::CHECK_CODE).unwrap(),
        "bad-credentials"
    );
    let id = world.asked()[0].0.clone();
    assert_eq!(world.bus.accounts().get(&id).await.unwrap(), None);
    assert_eq!(world.bus.credentials().get(&id).await.unwrap(), None);
    assert_eq!(world.bus.checkpoints().load(&id).await.unwrap(), None);

    // A folder that is not there is as bad.
    let mut missing = good(&["INBOX"]);
    missing.folders[0].exists = false;
    world.answer(missing);
    let status = world
        .accounts
        .create_account(request("ext-1"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("INBOX"));

    // Without a check it is added all the same, with no checkpoint.
    let unchecked = CreateAccountRequest {
        no_check: true,
        ..request("ext-1")
    };
    world.asked();
    let account = world
        .accounts
        .create_account(unchecked)
        .await
        .unwrap()
        .into_inner()
        .account
        .unwrap();
    assert!(world.asked().is_empty());
    let id: AccountId = account.id.parse().unwrap();
    assert_eq!(world.bus.checkpoints().load(&id).await.unwrap(), None);
    assert_eq!(password_of(&world, &id).await, b"secret");

    // What is asked of the owner later is answered as it is.
    world.answer(refused());
    let check = CheckAccountRequest { id: account.id };
    let result = world
        .accounts
        .check_account(check)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (result.ok, result.code.as_str()),
        (false, "bad-credentials")
    );
    assert_eq!(
        world.asked()[0].1,
        mailbell_proto::bus::v1::CheckLogin::default()
    );
    // Only one that works is worth another try of the session.
    assert!(world.hurried().is_empty());
    world.answer(good(&["INBOX"]));
    let check = CheckAccountRequest { id: id.to_string() };
    let result = world.accounts.check_account(check).await.unwrap();
    assert!(result.into_inner().ok);
    assert_eq!(world.hurried(), [id]);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_was_cut_off_goes_on_where_it_stood() {
    let mut world = World::start().await;
    let tenant = "default".parse().unwrap();
    for cut_after in 1..=3 {
        let external = format!("cut-{cut_after}");
        let id = AccountId::new("default".parse().unwrap(), ulid::Ulid::generate());
        let claimed = world
            .bus
            .external_ids()
            .claim(&tenant, &external, &id)
            .await
            .unwrap();
        assert_eq!(claimed, id);
        if cut_after >= 2 {
            let binding = seal::Binding {
                account: &id,
                host: "elsewhere.example.org",
                port: 1,
                tls: 1,
                user: "old",
            };
            let key = world.ring.newest().unwrap();
            let old = seal::seal(key, &binding, b"old", &mut rand::rng()).unwrap();
            world.bus.credentials().put(&id, &old).await.unwrap();
        }
        if cut_after >= 3 {
            let old = Checkpoint::first([("INBOX".to_owned(), 1, 1)], 0);
            let stored = world.bus.checkpoints().store(&id, &old, 0).await.unwrap();
            assert!(matches!(stored, Cas::Stored(_)));
        }
        let made = world
            .accounts
            .create_account(request(&external))
            .await
            .unwrap()
            .into_inner();
        assert!(made.created);
        assert_eq!(made.account.unwrap().id, id.to_string());
        assert_eq!(password_of(&world, &id).await, b"secret");
        let checkpoint = world
            .bus
            .checkpoints()
            .load(&id)
            .await
            .unwrap()
            .unwrap()
            .value;
        assert_eq!(checkpoint.folders[0].uid_next, 42);
    }
    // Nobody looked this time: what an earlier try saw is not where it begins.
    let id = AccountId::new("default".parse().unwrap(), ulid::Ulid::generate());
    let ids = world.bus.external_ids();
    ids.claim(&tenant, "unseen", &id).await.unwrap();
    let old = Checkpoint::first([("INBOX".to_owned(), 1, 1)], 0);
    let stored = world.bus.checkpoints().store(&id, &old, 0).await.unwrap();
    assert!(matches!(stored, Cas::Stored(_)));
    let unseen = CreateAccountRequest {
        no_check: true,
        ..request("unseen")
    };
    let made = world.accounts.create_account(unseen).await.unwrap();
    let account = made.into_inner().account.unwrap();
    assert_eq!(account.id, id.to_string());
    assert_eq!(world.bus.checkpoints().load(&id).await.unwrap(), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_calls_at_once_make_one_account() {
    let world = World::start().await;
    let calls = (0..8).map(|_| {
        let mut accounts = world.accounts.clone();
        tokio::spawn(async move { accounts.create_account(request("same")).await })
    });
    let mut ids = Vec::new();
    let mut created = 0;
    for call in calls.collect::<Vec<_>>() {
        let answer = call.await.unwrap().unwrap().into_inner();
        created += u32::from(answer.created);
        ids.push(answer.account.unwrap().id);
    }
    ids.dedup();
    assert_eq!((ids.len(), created), (1, 1));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_needs_the_password_when_the_server_changes() {
    let mut world = World::start().await;
    let account = world
        .accounts
        .create_account(request(""))
        .await
        .unwrap()
        .into_inner()
        .account
        .unwrap();
    let id: AccountId = account.id.parse().unwrap();
    world.asked();
    let moved = UpdateAccountRequest {
        id: account.id.clone(),
        server: Some(ImapServer {
            host: "other.example.org".to_owned(),
            ..account.server.clone().unwrap()
        }),
        ..UpdateAccountRequest::default()
    };
    let status = world
        .accounts
        .update_account(moved.clone())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("password: "));

    // Tried first: a wrong one changes nothing.
    world.answer(refused());
    let moved = UpdateAccountRequest {
        password: Some("new secret".to_owned()),
        ..moved
    };
    let status = world
        .accounts
        .update_account(moved.clone())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(password_of(&world, &id).await, b"secret");

    world.answer(good(&["INBOX"]));
    let changed = world
        .accounts
        .update_account(moved)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(changed.server.unwrap().host, "other.example.org");
    assert!(changed.revision > account.revision);
    assert_eq!(password_of(&world, &id).await, b"new secret");
    let record = world.bus.accounts().get(&id).await.unwrap().unwrap().value;
    assert_eq!(record.credential_version, 2);

    // Pausing needs no login; other folders do, with the password as it is stored.
    world.asked();
    let paused = UpdateAccountRequest {
        id: account.id.clone(),
        paused: Some(true),
        revision: changed.revision,
        ..UpdateAccountRequest::default()
    };
    let now_paused = world
        .accounts
        .update_account(paused.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(now_paused.paused && world.asked().is_empty());
    world.answer(good(&["Work"]));
    let folders = UpdateAccountRequest {
        id: account.id.clone(),
        folders: vec!["Work".to_owned()],
        ..UpdateAccountRequest::default()
    };
    let changed = world
        .accounts
        .update_account(folders)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (changed.folders, changed.paused),
        (vec!["Work".to_owned()], true)
    );
    let (_, check) = &world.asked()[0];
    assert!(check.account.is_some() && check.credential.is_none());

    // Somebody else was faster.
    let status = world.accounts.update_account(paused).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_account_leaves_a_bare_tombstone() {
    let mut world = World::start().await;
    let account = world
        .accounts
        .create_account(request("ext"))
        .await
        .unwrap()
        .into_inner()
        .account
        .unwrap();
    let id: AccountId = account.id.parse().unwrap();
    let delete = DeleteAccountRequest {
        id: account.id.clone(),
    };
    for _ in 0..2 {
        world.accounts.delete_account(delete.clone()).await.unwrap();
    }
    let record = world.bus.accounts().get(&id).await.unwrap().unwrap().value;
    assert!(record.removed_at_ms > 0);
    assert_eq!(
        (
            record.host.as_str(),
            record.user.as_str(),
            record.folders.len()
        ),
        ("", "", 0)
    );
    assert_eq!(world.bus.credentials().get(&id).await.unwrap(), None);
    // The checkpoint is what tells the watcher that devices have not heard of it yet.
    assert!(world.bus.checkpoints().load(&id).await.unwrap().is_some());
    for gone in [by_id(&account.id), by_external("ext")] {
        let status = world.accounts.get_account(gone).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
    }
    let list = world
        .accounts
        .list_accounts(ListAccountsRequest::default())
        .await
        .unwrap();
    assert!(list.into_inner().accounts.is_empty());
    // The external id is free for another.
    let another = world
        .accounts
        .create_account(request("ext"))
        .await
        .unwrap()
        .into_inner();
    assert!(another.created);
    let another = another.account.unwrap().id;
    assert_ne!(another, account.id);
    // Deleting the old one once more does not take it from the new one.
    world.accounts.delete_account(delete).await.unwrap();
    let found = world
        .accounts
        .get_account(by_external("ext"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.id, another);

    // A removal that a crash cut off right after the tombstone.
    let id: AccountId = another.parse().unwrap();
    let before = world.bus.accounts().get(&id).await.unwrap().unwrap();
    let tombstone = AccountRecord {
        removed_at_ms: 1,
        external_id: "ext".to_owned(),
        ..AccountRecord::default()
    };
    world
        .bus
        .accounts()
        .update(&id, &tombstone, before.revision)
        .await
        .unwrap();
    let third = world
        .accounts
        .create_account(request("ext"))
        .await
        .unwrap()
        .into_inner();
    assert!(third.created && third.account.unwrap().id != another);
    assert_eq!(world.bus.credentials().get(&id).await.unwrap(), None);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_in_order() {
    let mut world = World::start().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let wanted = CreateAccountRequest {
            tenant: if n % 2 == 0 { "a" } else { "b" }.to_owned(),
            no_check: true,
            ..request("")
        };
        let made = world
            .accounts
            .create_account(wanted)
            .await
            .unwrap()
            .into_inner();
        ids.push(made.account.unwrap().id);
    }
    ids.sort();
    let mut seen = Vec::new();
    let mut page = ListAccountsRequest {
        page_size: 3,
        ..ListAccountsRequest::default()
    };
    loop {
        let answer = world
            .accounts
            .list_accounts(page.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(answer.accounts.len() <= 3);
        seen.extend(answer.accounts.into_iter().map(|account| account.id));
        if answer.next_page_token.is_empty() {
            break;
        }
        page.page_token = answer.next_page_token;
    }
    assert_eq!(seen, ids);
    let of_a = ListAccountsRequest {
        tenant: "a".to_owned(),
        ..ListAccountsRequest::default()
    };
    let answer = world
        .accounts
        .list_accounts(of_a)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.accounts.len(), 4);
    let wrong = ListAccountsRequest {
        page_token: "x".to_owned(),
        ..ListAccountsRequest::default()
    };
    let status = world.accounts.list_accounts(wrong).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_owner_it_says_so() {
    // A login may take 150 seconds; nobody waits that long to hear that no watcher runs.
    let mut world = World::start_with(Duration::from_millis(600)).await;
    let service = world.service.take().unwrap();
    // Who is on its way out says that somebody else owns it now.
    let all: Vec<Partition> = Partition::all().collect();
    service.disown(&all).await;
    drop(service);
    let asked = world.accounts.create_account(request("ext"));
    let answer = tokio::time::timeout(Duration::from_secs(60), asked).await;
    let status = answer.expect("it is answered").unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("no watcher"), "{status:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_changes_nothing() {
    let mut world = World::start().await;
    let mut no_host = request("ext");
    no_host.server.as_mut().unwrap().host = "a b".to_owned();
    let no_password = CreateAccountRequest {
        password: String::new(),
        ..request("ext")
    };
    for (wrong, field) in [(no_host, "server.host: "), (no_password, "password: ")] {
        let status = world.accounts.create_account(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    }
    assert!(world.asked().is_empty());
    let tenant = "default".parse().unwrap();
    assert_eq!(
        world.bus.external_ids().get(&tenant, "ext").await.unwrap(),
        None
    );
    world.stop().await;
}
