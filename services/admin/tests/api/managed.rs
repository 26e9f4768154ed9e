//! Accounts that are declared elsewhere: one writer each.

use mailbell_core::ids::AccountId;
use mailbell_proto::admin::v1::{
    Account, CreateAccountRequest, DeleteAccountRequest, ListTokensRequest, MintTokenRequest,
    UpdateAccountRequest,
};
use tonic::{Code, Status};

use crate::world::{World, request};

const ALICE: &str = "mailaccount/mail/alice";
const BOB: &str = "mailaccount/mail/bob";

fn declared(manager: &str) -> CreateAccountRequest {
    CreateAccountRequest {
        managed_by: manager.to_owned(),
        no_check: true,
        ..request(manager)
    }
}

fn paused(id: &str, manager: &str) -> UpdateAccountRequest {
    UpdateAccountRequest {
        id: id.to_owned(),
        paused: Some(true),
        managed_by: manager.to_owned(),
        ..UpdateAccountRequest::default()
    }
}

fn deleted(id: &str) -> DeleteAccountRequest {
    DeleteAccountRequest { id: id.to_owned() }
}

/// Refused as somebody else's, with a sentence that has these words, and not as a login that failed.
fn assert_managed<T: std::fmt::Debug>(answer: Result<T, Status>, words: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains(words), "{}", status.message());
    assert!(status.metadata().get(mailbell_admin::CHECK_CODE).is_none());
}

async fn made(world: &mut World, wanted: CreateAccountRequest) -> Account {
    let made = world.operator.accounts.create_account(wanted).await;
    made.unwrap().into_inner().account.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_elsewhere_is_changed_there_only() {
    let mut world = World::start().await;
    let account = made(&mut world, declared(ALICE)).await;
    assert_eq!(account.managed_by, ALICE);
    let id: AccountId = account.id.parse().unwrap();
    let record = world.bus.accounts().get(&id).await.unwrap().unwrap().value;
    assert_eq!((record.schema, record.managed_by.as_str()), (2, ALICE));

    let edit = "`kubectl edit mailaccount alice -n mail`";
    assert_managed(
        world.accounts.update_account(paused(&account.id, "")).await,
        edit,
    );
    let delete = "`kubectl delete mailaccount alice -n mail`";
    assert_managed(
        world.accounts.delete_account(deleted(&account.id)).await,
        delete,
    );
    let kept = world.bus.accounts().get(&id).await.unwrap().unwrap();
    assert_eq!((kept.revision, kept.value), (account.revision, record));

    // By who declares it, with the name and without.
    for manager in ["", ALICE] {
        let change = paused(&account.id, manager);
        let changed = world.operator.accounts.update_account(change).await;
        let changed = changed.unwrap().into_inner();
        assert_eq!((changed.paused, changed.managed_by.as_str()), (true, ALICE));
    }
    assert_managed(
        world
            .operator
            .accounts
            .update_account(paused(&account.id, BOB))
            .await,
        edit,
    );
    let gone = world.operator.accounts.delete_account(deleted(&account.id));
    gone.await.unwrap();
    // Whoever repeats what has been done hears that it is.
    world
        .accounts
        .delete_account(deleted(&account.id))
        .await
        .unwrap();
    // The name is free again.
    let again = made(&mut world, declared(ALICE)).await;
    assert_ne!(again.id, account.id);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_takes_over_only_what_carries_its_external_id() {
    let mut world = World::start().await;
    let mut by_hand = async |external_id: &str| {
        let wanted = CreateAccountRequest {
            no_check: true,
            ..request(external_id)
        };
        let made = world.accounts.create_account(wanted).await.unwrap();
        made.into_inner().account.unwrap()
    };
    let (theirs, meant) = (by_hand("customer-1").await, by_hand(ALICE).await);
    let nobody = "nobody has declared this account";
    for change in [
        paused(&theirs.id, ""),
        paused(&theirs.id, ALICE),
        paused(&meant.id, ""),
    ] {
        let answer = world.operator.accounts.update_account(change).await;
        assert_managed(answer, nobody);
    }
    for account in [&theirs, &meant] {
        let answer = world.operator.accounts.delete_account(deleted(&account.id));
        assert_managed(answer.await, nobody);
    }
    // Making it anew answers it as it is; taking it over is a change.
    let answer = world
        .operator
        .accounts
        .create_account(declared(ALICE))
        .await;
    let answer = answer.unwrap().into_inner();
    assert!(!answer.created);
    assert_eq!(answer.account.unwrap().managed_by, "");
    let taken = paused(&meant.id, ALICE);
    let taken = world.operator.accounts.update_account(taken).await;
    assert_eq!(taken.unwrap().into_inner().managed_by, ALICE);
    assert_managed(
        world.accounts.delete_account(deleted(&meant.id)).await,
        "kubectl delete mailaccount alice",
    );
    world
        .accounts
        .delete_account(deleted(&theirs.id))
        .await
        .unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_is_good_for_its_own_calls() {
    let mut world = World::start().await;
    let as_admin = world.accounts.create_account(declared(ALICE)).await;
    let status = as_admin.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(status.message().starts_with("managed_by: "), "{status:?}");
    let other_id = CreateAccountRequest {
        external_id: "customer-1".to_owned(),
        ..declared(ALICE)
    };
    for wrong in [
        request(ALICE),
        other_id,
        declared("mailaccount/mail/No Name"),
    ] {
        let status = world.operator.accounts.create_account(wrong).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with("managed_by: "), "{status:?}");
    }
    let mint = MintTokenRequest {
        whole_tenant: true,
        ..MintTokenRequest::default()
    };
    let refused = [
        world.operator.tokens.mint_token(mint).await.unwrap_err(),
        world
            .operator
            .tokens
            .list_tokens(ListTokensRequest::default())
            .await
            .unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    }
    world.stop().await;
}
