//! The content policy of an account, from the API to its record.

use mailbell_core::ids::AccountId;
use mailbell_proto::{
    admin::v1::{Account, CreateAccountRequest, UpdateAccountRequest},
    push::v1::ContentLevel,
};
use tonic::Code;

use crate::world::{World, request};

fn wanted(content: ContentLevel) -> CreateAccountRequest {
    CreateAccountRequest {
        no_check: true,
        content: content.into(),
        ..request("customer-1")
    }
}

/// The schema of its record, and the policy there.
async fn stored(world: &World, account: &Account) -> (u32, i32) {
    let id: AccountId = account.id.parse().unwrap();
    let record = world.bus.accounts().get(&id).await.unwrap().unwrap().value;
    (record.schema, record.content)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_stored_answered_kept_and_lifted() {
    let mut world = World::start().await;
    let made = world
        .accounts
        .create_account(wanted(ContentLevel::Key))
        .await;
    let account = made.unwrap().into_inner().account.unwrap();
    assert_eq!(account.content(), ContentLevel::Key);
    let key = ContentLevel::Key.into();
    assert_eq!(stored(&world, &account).await, (2, key));
    // The same again is the same; with another policy it is another wish.
    let again = world
        .accounts
        .create_account(wanted(ContentLevel::Key))
        .await;
    assert!(!again.unwrap().into_inner().created);
    for other in [ContentLevel::Unspecified, ContentLevel::Headers] {
        let status = world
            .accounts
            .create_account(wanted(other))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    }

    let mut change = async |content: i32, paused| {
        let change = UpdateAccountRequest {
            id: account.id.clone(),
            content,
            paused,
            ..UpdateAccountRequest::default()
        };
        world.accounts.update_account(change).await
    };
    let paused = change(0, Some(true)).await.unwrap().into_inner();
    assert_eq!((paused.paused, paused.content()), (true, ContentLevel::Key));
    let status = change(9, None).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().starts_with("content: "), "{status:?}");
    let lifted = change(ContentLevel::Preview.into(), None).await.unwrap();
    assert_eq!(lifted.into_inner().content(), ContentLevel::Preview);
    // Every release reads it again.
    assert_eq!(stored(&world, &account).await, (1, 0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_older_watcher_may_run_no_account_gets_a_policy() {
    let mut world = World::unfinished().await;
    for level in [ContentLevel::Key, ContentLevel::Headers] {
        let status = world
            .accounts
            .create_account(wanted(level))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(status.message().contains("--finish-upgrade"), "{status:?}");
    }
    let made = world
        .accounts
        .create_account(wanted(ContentLevel::Preview))
        .await;
    let account = made.unwrap().into_inner().account.unwrap();
    let change = UpdateAccountRequest {
        id: account.id.clone(),
        content: ContentLevel::Key.into(),
        ..UpdateAccountRequest::default()
    };
    let status = world.accounts.update_account(change).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert_eq!(stored(&world, &account).await, (1, 0));
    world.stop().await;
}
