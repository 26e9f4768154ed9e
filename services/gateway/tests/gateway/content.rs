//! The content policy: no token allows more than the installation, also of what was stored before.

use mailbell_core::{delivery::WindowLimits, token::Claims};
use mailbell_gateway::Options;
use mailbell_proto::{
    bus::v1::{AccountRecord, OwnerResponse, PageResult, owner_response::Response as Answer},
    push::v1::{
        self as push, ContentLevel, ListMessagesRequest, Message, SubscribeRequest, event::Body,
        list_messages_request::Range,
    },
};

use crate::support::{World, account, arrival, bearer, claims, options};

/// A gateway whose window is small, so that what was missed is read from the log.
async fn with(most_content: ContentLevel) -> World {
    World::with(Options {
        most_content,
        window: WindowLimits {
            entries: 2,
            bytes: 1024 * 1024,
        },
        ..options()
    })
    .await
}

fn shown(event: push::Event) -> Option<(String, String)> {
    match event.body {
        Some(Body::Arrived(arrived)) => arrived
            .message
            .map(|message| (message.subject, message.preview)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_shows_no_more_than_the_installation_live_replayed_and_listed() {
    for (most, expected) in [
        (ContentLevel::Preview, ContentLevel::Preview),
        (ContentLevel::Headers, ContentLevel::Headers),
        (ContentLevel::Key, ContentLevel::Key),
    ] {
        let world = with(most).await;
        let expect = |uid: u32| match expected {
            ContentLevel::Key => None,
            ContentLevel::Headers => Some((format!("message {uid}"), String::new())),
            _ => Some((format!("message {uid}"), "dear reader".to_owned())),
        };
        let mut device = world.device(&[account(0)]).await;
        assert_eq!(device.hello.content(), expected);
        device.live().await;
        world.source.append(&arrival(&account(0), 1));
        assert_eq!(shown(device.event().await), expect(1));
        device.cursor_at(&account(0), 1).await;
        // More than the window holds: the log tells it, as it was stored.
        for uid in 2..=9 {
            world.source.append(&arrival(&account(0), uid));
        }
        world
            .until("caught up", || world.value("received_total") >= 9.0)
            .await;
        let mut again = world.again(&device, &[account(0)]).await;
        assert_eq!(again.hello.content(), expected);
        for uid in 2..=9 {
            assert_eq!(shown(again.event().await), expect(uid));
        }
        assert!(world.source.reads() > 0);

        world.source.answer(|_, _| {
            Ok(OwnerResponse {
                response: Some(Answer::Page(PageResult {
                    messages: vec![Message {
                        uid: 1,
                        subject: "message 1".to_owned(),
                        preview: "dear reader".to_owned(),
                        ..Message::default()
                    }],
                    generation: 7,
                    uid_next: 2,
                    exists: 1,
                    ..PageResult::default()
                })),
            })
        });
        let request = ListMessagesRequest {
            account: account(0).to_string(),
            range: Some(Range::Newest(10)),
            content: ContentLevel::Preview.into(),
            ..ListMessagesRequest::default()
        };
        let token = world.minter.token(&[account(0)]);
        let mut client = world.client().await;
        let page = client.list_messages(bearer(request, &token)).await.unwrap();
        let message = page.into_inner().messages.remove(0);
        let listed = (message.subject, message.preview);
        assert_eq!(listed, expect(1).unwrap_or_default());
    }
}

#[tokio::test]
async fn the_lowest_of_all_holds() {
    let world = with(ContentLevel::Headers).await;
    let hears = async |token: &str, asked: ContentLevel| {
        let request = SubscribeRequest {
            content: asked.into(),
            ..SubscribeRequest::default()
        };
        let device = world.subscribe(request, token).await.unwrap();
        device.hello.content()
    };
    let whole = world.minter.token(&[account(0)]);
    let key = world.minter.sign(&Claims {
        content: "key".to_owned(),
        ..claims(&[account(0)])
    });
    assert_eq!(hears(&key, ContentLevel::Preview).await, ContentLevel::Key);
    assert_eq!(hears(&whole, ContentLevel::Key).await, ContentLevel::Key);
    assert_eq!(
        hears(&whole, ContentLevel::Preview).await,
        ContentLevel::Headers
    );
    // A watcher that may tell less has told less.
    let mut device = world.device(&[account(0)]).await;
    device.live().await;
    let mut event = arrival(&account(0), 1);
    event.content = bytes::Bytes::new();
    world.source.append(&event);
    let event = device.event().await;
    assert!(event.alert && event.folder_name.is_empty());
    assert_eq!(shown(event), None);
}

#[tokio::test]
async fn what_was_stored_before_an_account_had_a_policy_is_replayed_by_it() {
    for (policy, expected) in [
        (
            ContentLevel::Headers,
            Some(("message 2".to_owned(), String::new())),
        ),
        (ContentLevel::Key, None),
    ] {
        let world = with(ContentLevel::Preview).await;
        let mut device = world.device(&[account(0)]).await;
        device.live().await;
        world.source.append(&arrival(&account(0), 1));
        assert!(shown(device.event().await).is_some());
        device.cursor_at(&account(0), 1).await;
        for uid in 2..=9 {
            world.source.append(&arrival(&account(0), uid));
        }
        world
            .until("caught up", || world.value("received_total") >= 9.0)
            .await;
        let record = AccountRecord {
            content: policy.into(),
            ..AccountRecord::default()
        };
        world.source.put_account(&account(0), record);
        let mut again = world.again(&device, &[account(0)]).await;
        assert_eq!(shown(again.event().await), expected);
        assert!(world.source.reads() > 0);
    }
}
