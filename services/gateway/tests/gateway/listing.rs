//! `ListMessages` through the owner of an account.

use std::{sync::Mutex, time::Duration};

use mailbell_bus::AskError;
use mailbell_core::cursor::Cursor;
use mailbell_gateway::Options;
use mailbell_proto::{
    bus::v1::{
        ListPage, OwnerError, OwnerRequest, OwnerResponse, PageResult,
        owner_request::Request as Asked, owner_response::Response as Answer,
    },
    push::v1::{
        FetchMessageRequest, ListMessagesRequest, ListMessagesResponse, Message,
        list_messages_request::Range,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Status};

use crate::support::{World, account, arrival, bearer, options};

fn list_page(request: OwnerRequest) -> ListPage {
    match request.request {
        Some(Asked::List(page)) => page,
        other => panic!("{other:?}"),
    }
}

fn answered(answer: Answer) -> Result<OwnerResponse, AskError> {
    Ok(OwnerResponse {
        response: Some(answer),
    })
}

/// The newest of messages 1 to 7, of a folder whose generation is 3.
fn newest(page: &ListPage) -> PageResult {
    let last = if page.last_uid == 0 { 7 } else { page.last_uid };
    let first = (last + 1).saturating_sub(page.limit).max(1);
    PageResult {
        messages: (first..=last)
            .map(|uid| Message {
                uid,
                preview: "text".to_owned(),
                ..Message::default()
            })
            .collect(),
        generation: 3,
        uid_next: 8,
        exists: 7,
        folder_name: "INBOX".to_owned(),
        more: first > 1,
        folders: vec![1],
    }
}

fn request() -> ListMessagesRequest {
    ListMessagesRequest {
        account: account(0).to_string(),
        range: Some(Range::Newest(100)),
        page_size: 3,
        ..ListMessagesRequest::default()
    }
}

async fn list(world: &World, request: ListMessagesRequest) -> Result<ListMessagesResponse, Status> {
    let token = world.minter.token(&[account(0), account(999)]);
    let mut client = world.client().await;
    let answer = client.list_messages(bearer(request, &token)).await?;
    Ok(answer.into_inner())
}

async fn refused(world: &World, request: ListMessagesRequest) -> Code {
    list(world, request).await.unwrap_err().code()
}

#[tokio::test]
async fn pages_from_the_newest_with_one_cursor() {
    let world = World::start().await;
    world.source.append(&arrival(&account(0), 1));
    let group = account(0).group();
    world
        .until("received", || world.value("received_total") == 1.0)
        .await;
    world.source.answer(|_, request| {
        let page = list_page(request);
        assert_eq!((page.folder, page.newest), (1, true));
        answered(Answer::Page(newest(&page)))
    });
    let mut request = request();
    let mut pages = Vec::new();
    let mut cursor = None;
    loop {
        let page = list(&world, request.clone()).await.unwrap();
        pages.push(page.messages.iter().map(|m| m.uid).collect::<Vec<_>>());
        assert_eq!((page.generation, page.uid_next, page.exists), (3, 8, 7));
        assert_eq!(page.folders, [1]);
        let taken = cursor.get_or_insert_with(|| page.cursor.clone());
        assert_eq!(*taken, page.cursor, "taken before the first page");
        // What arrives meanwhile comes after the cursor.
        world.source.append(&arrival(&account(0), 8));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(pages, [vec![5, 6, 7], vec![2, 3, 4], vec![1]]);
    let taken = Cursor::decode(&cursor.unwrap()).unwrap();
    assert_eq!(taken.0[group].position, 1);
    assert_eq!(world.value("gateway_listings_total{outcome=\"ok\"}"), 3.0);
}

#[tokio::test]
async fn never_beyond_the_token() {
    let world = World::start().await;
    world.source.answer(|_, _| panic!("the owner is not asked"));
    let other = ListMessagesRequest {
        account: account(1).to_string(),
        ..request()
    };
    assert_eq!(refused(&world, other).await, Code::PermissionDenied);
    let mut client = world.client().await;
    let missing = client.list_messages(request()).await.unwrap_err();
    assert_eq!(missing.code(), Code::Unauthenticated);
    for bad in [
        ListMessagesRequest {
            account: "x".to_owned(),
            ..request()
        },
        ListMessagesRequest {
            page_token: "x".to_owned(),
            ..request()
        },
        ListMessagesRequest {
            range: Some(Range::Newest(10_001)),
            ..request()
        },
        ListMessagesRequest {
            content: 9,
            ..request()
        },
    ] {
        assert_eq!(refused(&world, bad).await, Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_page_token_is_bound_to_its_listing() {
    let world = World::start().await;
    world
        .source
        .answer(|_, request| answered(Answer::Page(newest(&list_page(request)))));
    let page_token = list(&world, request()).await.unwrap().next_page_token;
    let other_range = ListMessagesRequest {
        range: Some(Range::Newest(99)),
        page_token: page_token.clone(),
        ..request()
    };
    assert_eq!(refused(&world, other_range).await, Code::InvalidArgument);
    let other_account = ListMessagesRequest {
        account: account(999).to_string(),
        page_token: page_token.clone(),
        ..request()
    };
    assert_eq!(refused(&world, other_account).await, Code::InvalidArgument);
    // The generation goes with it to the owner, who says that the folder was made anew.
    world.source.answer(|_, request| {
        assert_eq!(list_page(request).generation, 3);
        answered(Answer::Error(OwnerError {
            code: "generation-changed".to_owned(),
            ..OwnerError::default()
        }))
    });
    let next = ListMessagesRequest {
        page_token,
        ..request()
    };
    assert_eq!(refused(&world, next).await, Code::Aborted);
}

#[tokio::test]
async fn an_owner_that_cannot_answer_is_unavailable() {
    let world = World::start().await;
    for error in [AskError::NoOwner, AskError::Timeout, AskError::Garbled] {
        let answer = error.clone();
        world.source.answer(move |_, _| Err(answer.clone()));
        assert_eq!(
            refused(&world, request()).await,
            Code::Unavailable,
            "{error}"
        );
    }
    // Nobody owns what does not exist.
    world.source.answer(|_, _| Err(AskError::NoOwner));
    let missing = ListMessagesRequest {
        account: account(999).to_string(),
        ..request()
    };
    assert_eq!(refused(&world, missing).await, Code::NotFound);
    world.source.answer(|_, _| Ok(OwnerResponse::default()));
    assert_eq!(refused(&world, request()).await, Code::Unavailable);
}

/// A listing holds what its owner answers. As many as there are places are worked on at once, and the others are told to come again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_finds_no_place_for_a_listing_is_told_to_come_again() {
    let world = World::with(Options {
        listings: 1,
        ..options()
    })
    .await;
    let (begins, mut begun) = mpsc::channel(1);
    let (go_on, goes_on) = std::sync::mpsc::sync_channel(1);
    let goes_on = Mutex::new(goes_on);
    world.source.answer(move |_, request| {
        let _ = begins.try_send(());
        // Ends with its sender.
        let _ = tokio::task::block_in_place(|| goes_on.lock().unwrap().recv());
        answered(Answer::Page(newest(&list_page(request))))
    });
    let refused_meanwhile = async {
        begun.recv().await.unwrap();
        let second = timeout(Duration::from_secs(10), list(&world, request())).await;
        drop::<std::sync::mpsc::SyncSender<()>>(go_on);
        let second = second.unwrap().unwrap_err();
        assert_eq!(
            (second.code(), second.message()),
            (Code::Unavailable, "too many listings at once")
        );
    };
    let (first, ()) = tokio::join!(list(&world, request()), refused_meanwhile);
    assert_eq!(first.unwrap().messages.len(), 3);
    assert!(list(&world, request()).await.is_ok());
}

#[tokio::test]
async fn a_whole_message_is_not_there_yet() {
    let world = World::start().await;
    let token = world.minter.token(&[account(0)]);
    let mut client = world.client().await;
    let request = bearer(FetchMessageRequest::default(), &token);
    let status = client.fetch_message(request).await.err().unwrap();
    assert_eq!(status.code(), Code::Unimplemented);
}
