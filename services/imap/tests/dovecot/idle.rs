//! Waiting for mail.

use crate::common::{self, open, patience};
use crate::dovecot;
use mailbell_imap::{Capability, Class, Wake};
use mailbell_test_servers::{Dovecot, DovecotOptions, Storage};
use std::future::pending;
use std::time::Duration;

#[tokio::test]
async fn idle_wakes_up_for_mail() {
    let server = dovecot().await;
    let mut connection = open(&server).await;
    let mut next = connection
        .look("INBOX", 1, 64, false)
        .await
        .unwrap()
        .uid_next;
    for round in 0..3 {
        let parked = connection.park().await.unwrap();
        assert!(parked.is_idling() && !parked.is_dirty());
        let message = format!("Subject: {round}\r\n\r\nx\r\n");
        let deliver = async {
            if round == 1 {
                server
                    .append("alice", "INBOX", message.as_bytes())
                    .await
                    .unwrap();
            } else {
                server
                    .deliver_lmtp("alice", message.as_bytes())
                    .await
                    .unwrap();
            }
        };
        let (waited, ()) = tokio::join!(parked.wait(patience(600), pending()), deliver);
        let wake;
        (connection, wake) = waited.unwrap();
        assert_eq!(wake, Wake::Changed);
        let look = connection.look("INBOX", next, 64, false).await.unwrap();
        assert_eq!(
            (look.uids.as_slice(), look.uid_next),
            (&[next][..], next + 1)
        );
        assert_eq!(
            connection.fetch(&look.uids).await.unwrap()[0].subject,
            round.to_string()
        );
        next = look.uid_next;
    }
}

#[tokio::test]
async fn no_arrival_is_missed_whenever_it_comes() {
    const MESSAGES: u32 = 120;
    let server = Dovecot::start(DovecotOptions {
        storage: Storage::Sdbox,
        ..Default::default()
    })
    .await
    .unwrap();
    let mut raw = server.imap("alice").await.unwrap();
    let sender = tokio::spawn(async move {
        for number in 0..MESSAGES {
            raw.append(
                "INBOX",
                "",
                format!("Subject: {number}\r\n\r\nx\r\n").as_bytes(),
            )
            .await
            .unwrap();
            // Bursts and pauses of all lengths, so that arrivals hit each step of the watcher.
            let pause = u64::from(number * number * 7919 % 97) * 1000
                / if number % 3 == 0 { 1 } else { 40 };
            tokio::time::sleep(Duration::from_micros(pause)).await;
        }
    });
    let mut connection = open(&server).await;
    let (mut next, mut seen) = (1, Vec::new());
    while seen.len() < MESSAGES as usize {
        let look = connection.look("INBOX", next, 64, false).await.unwrap();
        assert!(look.total_new <= 64);
        seen.extend(
            connection
                .fetch(&look.uids)
                .await
                .unwrap()
                .iter()
                .map(|message| message.subject.clone()),
        );
        next = look.uid_next;
        if seen.len() == MESSAGES as usize {
            break;
        }
        // Dovecot tells after half a second at most; a wait that has to end by itself missed something.
        let (back, wake) = connection
            .park()
            .await
            .unwrap()
            .wait(patience(20), pending())
            .await
            .unwrap();
        assert_eq!(
            wake,
            Wake::Changed,
            "only {} of {MESSAGES} were seen",
            seen.len()
        );
        connection = back;
    }
    sender.await.unwrap();
    assert_eq!(
        seen,
        (0..MESSAGES)
            .map(|number| number.to_string())
            .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn polls_where_there_is_no_idle() {
    let options = DovecotOptions {
        capability: Some("IMAP4rev1 UIDPLUS".into()),
        ..Default::default()
    };
    let server = Dovecot::start(options).await.unwrap();
    let mut connection = open(&server).await;
    assert!(!connection.capabilities().has(Capability::Idle));
    connection.look("INBOX", 1, 64, false).await.unwrap();
    let parked = connection.park().await.unwrap();
    assert!(!parked.is_idling());
    server
        .append("alice", "INBOX", b"Subject: x\r\n\r\nx\r\n")
        .await
        .unwrap();
    let now = tokio::time::Instant::now();
    let patience = mailbell_imap::Patience {
        until: now,
        quiet: Duration::from_secs(60),
    };
    let (mut connection, wake) = parked.wait(patience, pending()).await.unwrap();
    assert_eq!(wake, Wake::Expired);
    assert!(connection.noop().await.unwrap());
    let parked = connection.park().await.unwrap();
    let (mut connection, wake) = parked.wait(common::patience(600), pending()).await.unwrap();
    assert_eq!(wake, Wake::Changed);
    assert_eq!(
        connection.look("INBOX", 1, 64, false).await.unwrap().uids,
        [1]
    );
    assert!(!connection.noop().await.unwrap());
}

#[tokio::test]
async fn the_end_of_the_server_ends_a_wait() {
    let mut server = dovecot().await;
    let mut connection = open(&server).await;
    connection.look("INBOX", 1, 10, false).await.unwrap();
    let parked = connection.park().await.unwrap();
    server.stop().await;
    let error = parked.wait(patience(600), pending()).await.unwrap_err();
    assert_eq!(error.class(), Class::Disconnected);
    server.restart().await.unwrap();

    // A crash: TLS ends without a word.
    let mut connection = open(&server).await;
    let waiting = {
        let mut connection = open(&server).await;
        connection.look("INBOX", 1, 10, false).await.unwrap();
        connection.park().await.unwrap()
    };
    server.kill();
    assert_eq!(
        connection.noop().await.unwrap_err().class(),
        Class::Disconnected
    );
    let error = waiting.wait(patience(600), pending()).await.unwrap_err();
    assert_eq!(error.class(), Class::Disconnected);
    server.restart().await.unwrap();
    open(&server).await.logout().await;
}
