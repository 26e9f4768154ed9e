use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mailbell_client::{
    AppEvent, DisconnectReason, Error, Token, TokenError,
    proto::{client_frame, server_frame::Frame},
};
use tokio::time::Instant;
use tonic::Status;

use crate::gateway::{Gateway, arrived, cursor, hello, uids};

/// Gives `token-1`, `token-2` and so on.
fn counting() -> (
    Arc<AtomicUsize>,
    impl Fn() -> std::future::Ready<Result<Token, TokenError>>,
) {
    let count = Arc::new(AtomicUsize::new(0));
    let shared = Arc::clone(&count);
    let source = move || {
        let number = shared.fetch_add(1, Ordering::SeqCst) + 1;
        std::future::ready(Ok(Token::new(format!("token-{number}"))))
    };
    (count, source)
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_at_once() {
    let mut gateway = Gateway::start();
    let (count, source) = counting();
    let mut events = gateway
        .client()
        .token_provider(source)
        .build()
        .unwrap()
        .into_stream();
    let visitor = gateway.visitor().await;
    assert_eq!(visitor.authorization, "Bearer token-1");
    let start = Instant::now();
    visitor.refuse(Status::unauthenticated("expired"));
    let visitor = gateway.visitor().await;
    assert_eq!(visitor.authorization, "Bearer token-2");
    assert!(start.elapsed() < Duration::from_millis(50));
    let open = visitor.greet().await;
    open.send(arrived(1)).await;
    assert_eq!(uids(&mut events, 1).await, [1]);
    // A good token is kept over a reconnect.
    open.end(Status::unavailable("")).await;
    let visitor = gateway.visitor().await;
    assert_eq!(visitor.authorization, "Bearer token-2");
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_source_without_good_tokens_ends_the_stream() {
    let mut gateway = Gateway::start();
    let (_, source) = counting();
    let mut events = gateway
        .client()
        .token_provider(source)
        .build()
        .unwrap()
        .into_stream();
    let refusing = tokio::spawn(async move {
        for _ in 0..5 {
            gateway
                .visitor()
                .await
                .refuse(Status::unauthenticated("no"));
        }
        gateway
    });
    loop {
        match events.recv().await.unwrap() {
            Ok(AppEvent::Disconnected { reason, .. }) => {
                assert_eq!(reason, DisconnectReason::TokenRefused);
            }
            Ok(other) => panic!("{other:?}"),
            Err(Error::Unauthenticated(why)) => {
                assert_eq!(why, "no");
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    refusing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_accepted_and_refused_at_once_is_a_refused_one() {
    let mut gateway = Gateway::start();
    let (_, source) = counting();
    let mut events = gateway
        .client()
        .token_provider(source)
        .build()
        .unwrap()
        .into_stream();
    let greeting = tokio::spawn(async move {
        // The second stream is a good one: what was refused before it no longer counts.
        for attempt in 0..6 {
            let open = gateway.visitor().await.greet().await;
            for _ in 0..if attempt == 1 { 4 } else { 0 } {
                tokio::time::sleep(Duration::from_secs(9)).await;
                open.send(cursor("c")).await;
            }
            open.end(Status::unauthenticated("no")).await;
        }
        gateway
    });
    let mut waits = Vec::new();
    loop {
        match events.recv().await.unwrap() {
            Ok(AppEvent::Disconnected { reason, retry_in }) => {
                assert_eq!(reason, DisconnectReason::TokenRefused);
                waits.push(retry_in);
                assert!(waits.len() <= 5, "it goes on for ever: {waits:?}");
            }
            Ok(_) => {}
            Err(Error::Unauthenticated(_)) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(waits.len(), 5);
    let (at_once, backed_off) = waits.split_at(2);
    assert!(at_once.iter().all(Duration::is_zero), "{waits:?}");
    let floor = Duration::from_millis(100);
    assert!(backed_off.iter().all(|wait| *wait >= floor), "{waits:?}");
    greeting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_only_token_refused_ends_the_stream() {
    let mut gateway = Gateway::start();
    let mut events = gateway.client().build().unwrap().into_stream();
    gateway
        .visitor()
        .await
        .refuse(Status::unauthenticated("revoked"));
    let error = events.recv().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Unauthenticated(why) if why == "revoked"));
}

#[tokio::test(start_paused = true)]
async fn a_source_may_have_none_for_now_or_for_ever() {
    let gateway = Gateway::start();
    let asked = Arc::new(AtomicUsize::new(0));
    let source = move || {
        let last = asked.fetch_add(1, Ordering::SeqCst) == 2;
        std::future::ready(Err(if last {
            TokenError::Never("signed out".to_owned())
        } else {
            TokenError::Retry("offline".to_owned())
        }))
    };
    let mut events = gateway
        .client()
        .token_provider(source)
        .build()
        .unwrap()
        .into_stream();
    for _ in 0..2 {
        let event = events.recv().await.unwrap().unwrap();
        assert!(
            matches!(
                event,
                AppEvent::Disconnected {
                    reason: DisconnectReason::NoToken,
                    ..
                }
            ),
            "{event:?}"
        );
    }
    let error = events.recv().await.unwrap().unwrap_err();
    assert!(matches!(error, Error::NoToken(why) if why == "signed out"));
}

#[tokio::test(start_paused = true)]
async fn a_new_token_is_sent_before_the_old_one_expires() {
    let mut gateway = Gateway::start();
    let (_, source) = counting();
    let _events = gateway
        .client()
        .token_provider(source)
        .build()
        .unwrap()
        .into_stream();
    let mut open = gateway.visitor().await.accept();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut greeting = hello();
    greeting.heartbeat_ms = 600_000;
    greeting.token_expires_at_ms =
        i64::try_from((wall + Duration::from_secs(100)).as_millis()).unwrap();
    let start = Instant::now();
    open.send(Frame::Hello(greeting)).await;
    for (number, after) in [(2, 80), (3, 160)] {
        let client_frame::Frame::Reauthenticate(renewed) = open.heard().await else {
            panic!("not a token");
        };
        assert_eq!(renewed.token, format!("token-{number}"));
        let elapsed = start.elapsed().as_secs();
        assert!(elapsed.abs_diff(after) <= 5, "after {elapsed} s");
    }
}
