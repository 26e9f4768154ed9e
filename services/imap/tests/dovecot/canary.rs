//! A message of our own, and its removal.

use mailbell_imap::{Canary, Error};
use mailbell_test_servers::{Dovecot, DovecotOptions};

use crate::common::open;

/// Beside others, of which one waits to be removed by its owner.
#[tokio::test]
async fn a_message_is_put_into_a_folder_and_it_alone_is_removed() {
    let server = Dovecot::start(DovecotOptions::default()).await.unwrap();
    let mut raw = server.imap("alice").await.unwrap();
    raw.command("CREATE Entw&APw-rfe").await.unwrap();
    let other = b"Subject: other\r\n\r\nx\r\n";
    raw.append("Entw&APw-rfe", "\\Deleted", other)
        .await
        .unwrap();
    let mut canary = Canary::over(open(&server).await).unwrap();
    let put = canary
        .put("Entwürfe", "Subject: canary\r\n\r\nx\r\n")
        .await
        .unwrap();
    assert_eq!(put.uid, 2);
    raw.command("SELECT Entw&APw-rfe").await.unwrap();
    let flags = raw.command("UID FETCH 2 (FLAGS)").await.unwrap();
    assert!(flags.contains("\\Seen"), "{flags}");
    canary.remove(&put).await.unwrap();
    raw.command("NOOP").await.unwrap();
    let left = raw.command("UID SEARCH ALL").await.unwrap();
    assert!(left.contains("* SEARCH 1\r\n"), "{left}");
    canary.logout().await;
}

#[tokio::test]
async fn nothing_is_put_where_it_cannot_be_and_nothing_removed_of_another_generation() {
    let server = Dovecot::start(DovecotOptions::default()).await.unwrap();
    let mut canary = Canary::over(open(&server).await).unwrap();
    let message = "Subject: canary\r\n\r\nx\r\n";
    for (folder, message) in [
        ("Nowhere", message),
        ("INBOX", "x\0"),
        ("INBOX", &"x".repeat(5000)),
    ] {
        let error = canary.put(folder, message).await.unwrap_err();
        let expected = match folder {
            "INBOX" => matches!(error, Error::InvalidInput(_)),
            _ => matches!(error, Error::NoSuchFolder),
        };
        assert!(expected, "{error:?}");
    }
    let mut put = canary.put("INBOX", message).await.unwrap();
    put.uid_validity += 1;
    let error = canary.remove(&put).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchFolder), "{error:?}");
    put.uid_validity -= 1;
    canary.remove(&put).await.unwrap();
}
