//! Folders: looks, pages, status, names.

use crate::common::open;
use crate::dovecot;
use mailbell_imap::{Class, ListQuery, SpecialUse};
use mailbell_test_servers::{Dovecot, DovecotOptions, Storage};

#[tokio::test]
async fn an_unknown_folder_leaves_the_connection_good() {
    let server = dovecot().await;
    let mut connection = open(&server).await;
    for name in ["No such", "Grüße/\"x\\", "a\r\nb"] {
        assert_eq!(
            connection
                .look(name, 1, 10, false)
                .await
                .unwrap_err()
                .class(),
            Class::NoSuchFolder,
            "{name}"
        );
    }
    assert_eq!(
        connection.look("INBOX", 1, 10, false).await.unwrap().exists,
        0
    );
}

#[tokio::test]
async fn looks_find_what_is_new_and_how_much() {
    let options = DovecotOptions {
        storage: Storage::Sdbox,
        ..Default::default()
    };
    let server = Dovecot::start(options).await.unwrap();
    let mut raw = server.imap("alice").await.unwrap();
    let mut connection = open(&server).await;
    let empty = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!(
        (
            empty.exists,
            empty.uid_next,
            empty.total_new,
            empty.complete
        ),
        (0, 1, 0, true)
    );
    assert!(empty.highest_modseq.is_some());

    for number in 1..=100 {
        raw.append(
            "INBOX",
            "",
            format!("Subject: {number}\r\n\r\nx\r\n").as_bytes(),
        )
        .await
        .unwrap();
    }
    // Gaps: all multiples of 7 go.
    raw.command("SELECT INBOX").await.unwrap();
    let sevens = (7..=98)
        .step_by(7)
        .map(|uid| uid.to_string())
        .collect::<Vec<_>>()
        .join(",");
    raw.command(&format!("UID STORE {sevens} +FLAGS.SILENT (\\Deleted)"))
        .await
        .unwrap();
    raw.command("EXPUNGE").await.unwrap();
    let all = (1..=100).filter(|uid| uid % 7 != 0).collect::<Vec<u32>>();

    assert!(connection.noop().await.unwrap());
    for (from, cap) in [
        (1, 10),
        (1, 200),
        (7, 86),
        (8, 5),
        (50, 10),
        (50, 100),
        (99, 10),
        (100, 1),
        (101, 5),
        (500, 5),
    ] {
        let look = connection
            .look("INBOX", from, cap, from % 2 == 0)
            .await
            .unwrap();
        let new = all
            .iter()
            .copied()
            .filter(|uid| *uid >= from)
            .collect::<Vec<_>>();
        let newest = &new[new.len().saturating_sub(cap as usize)..];
        assert_eq!(look.uids, newest, "from {from} cap {cap}");
        assert_eq!(look.total_new as usize, new.len(), "from {from} cap {cap}");
        assert_eq!(
            (look.exists as usize, look.uid_next, look.complete),
            (all.len(), 101, true)
        );
        assert_eq!(look.uid_validity, empty.uid_validity);
    }

    // Pages in both directions have it all.
    let mut up = Vec::new();
    loop {
        let page = connection
            .list(
                "INBOX",
                ListQuery::After(up.last().copied().unwrap_or(0), 9),
            )
            .await
            .unwrap();
        assert!(page.messages.len() <= 9);
        up.extend(page.messages.iter().map(|message| message.uid));
        if !page.more {
            break;
        }
    }
    assert_eq!(up, all);
    let newest = connection
        .list("INBOX", ListQuery::Newest(64))
        .await
        .unwrap();
    let mut down = newest
        .messages
        .iter()
        .rev()
        .map(|message| message.uid)
        .collect::<Vec<_>>();
    assert!(newest.more);
    while down.len() < all.len() {
        let page = connection
            .list("INBOX", ListQuery::Before(*down.last().unwrap(), 64))
            .await
            .unwrap();
        down.extend(page.messages.iter().rev().map(|message| message.uid));
        assert_eq!(page.more, down.len() < all.len());
    }
    down.reverse();
    assert_eq!(down, all);
    assert_eq!(newest.messages.last().unwrap().subject, "100");
    assert!(
        connection
            .list("INBOX", ListQuery::After(u32::MAX, 5))
            .await
            .unwrap()
            .messages
            .is_empty()
    );
    assert!(
        connection
            .list("INBOX", ListQuery::Before(1, 5))
            .await
            .unwrap()
            .messages
            .is_empty()
    );
    // Gone meanwhile: left out.
    let uids = connection
        .fetch(&[6, 7, 8])
        .await
        .unwrap()
        .iter()
        .map(|message| message.uid)
        .collect::<Vec<_>>();
    assert_eq!(uids, [6, 8]);
}

#[tokio::test]
async fn lists_folders_and_opens_what_it_lists() {
    let server = dovecot().await;
    let mut raw = server.imap("alice").await.unwrap();
    raw.command("CREATE \"Entw&APw-rfe/&U,BTFw-\"")
        .await
        .unwrap();
    raw.append("Entw&APw-rfe/&U,BTFw-", "", b"Subject: x\r\n\r\n")
        .await
        .unwrap();
    let mut connection = open(&server).await;
    let folders = connection.folders().await.unwrap();
    let uses = |name: &str| {
        folders
            .iter()
            .find(|folder| folder.name == name)
            .unwrap()
            .special_use
            .clone()
    };
    assert_eq!(uses("INBOX"), []);
    assert_eq!(uses("Sent"), [SpecialUse::Sent]);
    assert_eq!(uses("Trash"), [SpecialUse::Trash]);
    let created = folders
        .iter()
        .find(|folder| folder.name == "Entwürfe/台北")
        .unwrap();
    assert_eq!((created.delimiter, created.selectable), (Some('/'), true));
    let look = connection.look(&created.name, 1, 10, false).await.unwrap();
    assert_eq!((look.uids.as_slice(), look.uid_next), (&[1][..], 2));
    assert!(look.highest_modseq.is_some());
}

#[tokio::test]
async fn a_folder_made_anew_has_another_generation() {
    let server = dovecot().await;
    let mut raw = server.imap("alice").await.unwrap();
    raw.command("CREATE F").await.unwrap();
    let first = open(&server).await.look("F", 1, 10, false).await.unwrap();
    raw.command("DELETE F").await.unwrap();
    raw.command("CREATE F").await.unwrap();
    assert_ne!(
        open(&server)
            .await
            .look("F", 1, 10, false)
            .await
            .unwrap()
            .uid_validity,
        first.uid_validity
    );
}
