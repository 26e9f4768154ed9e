//! What is read of messages, and what that costs.

use crate::common::{CountingStream, endpoint, login, open, patience, settings};
use crate::dovecot;
use mailbell_imap::{Connection, ListQuery, TlsMode, Wake};
use mailbell_test_servers::{Dovecot, DovecotOptions};
use std::fs::Permissions;
use std::future::ready;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn multipart(subtype: &str, parts: &[&str]) -> String {
    let mut text = format!("Content-Type: multipart/{subtype}; boundary=b{subtype}\r\n\r\n");
    for part in parts {
        text += &format!("--b{subtype}\r\n{part}\r\n");
    }
    text + &format!("--b{subtype}--\r\n")
}

#[tokio::test]
async fn makes_previews_of_all_kinds_of_text() {
    let server = dovecot().await;
    let html = "Content-Type: text/html; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
                <head><style>p { color: =\r\nred }</style></head><p>Gr=FC=DFe&nbsp;&amp; <b>mehr</b></p>";
    let plain = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nSGFsbG8g8J+YgCBXZWx0\r\n";
    let pdf = "Content-Type: application/pdf; name=\"(((a\\\".pdf\"\r\nContent-Disposition: attachment\r\n\r\nx";
    let forwarded = "Content-Type: message/rfc822\r\n\r\nSubject: ((inner\r\nContent-Type: text/plain\r\n\r\nnot this";
    let related = multipart(
        "related",
        &[
            html,
            "Content-Type: image/png\r\nContent-ID: <a@b>\r\n\r\nx",
        ],
    );
    let alternative = multipart(
        "alternative",
        &["Content-Type: text/plain\r\n\r\n", &related],
    );
    let blank = multipart(
        "alternative",
        &["Content-Type: text/plain\r\n\r\n \r\n", html],
    );
    let long = "wörd ".repeat(51) + "w";
    let cases: Vec<(Vec<u8>, &str, bool)> = vec![
        (b"Subject: x\r\n\r\n  plain \r\n\r\n text ".to_vec(), "plain text", false),
        (b"Subject: x\r\n\r\n".to_vec(), "", false),
        (format!("MIME-Version: 1.0\r\n{plain}").into_bytes(), "Hallo 😀 Welt", false),
        (format!("MIME-Version: 1.0\r\n{html}").into_bytes(), "Grüße & mehr", false),
        (
            b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=koi8-r\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xf0\xd2\xc9\xd7\xc5\xd4".to_vec(),
            "Привет",
            false,
        ),
        (multipart("mixed", &[plain, pdf]).into_bytes(), "Hallo 😀 Welt", true),
        (multipart("mixed", &[&alternative, forwarded]).into_bytes(), "Grüße & mehr", true),
        (related.clone().into_bytes(), "Grüße & mehr", false),
        // A plain text of white space only, in the first part and elsewhere.
        (multipart("alternative", &["Content-Type: text/plain\r\n\r\n\r\n  \r\n", html]).into_bytes(), "Grüße & mehr", false),
        (multipart("mixed", &[&blank, pdf]).into_bytes(), "Grüße & mehr", true),
        (multipart("mixed", &[forwarded]).into_bytes(), "", true),
        (format!("Subject: x\r\n\r\n{}", "wörd ".repeat(10_000)).into_bytes(), &long, false),
    ];
    for (message, ..) in &cases {
        server.deliver_lmtp("alice", message).await.unwrap();
    }
    let mut connection = open(&server).await;
    let look = connection.look("INBOX", 1, 64, false).await.unwrap();
    let messages = connection.fetch(&look.uids).await.unwrap();
    assert_eq!(messages.len(), cases.len());
    for (message, (source, preview, attachments)) in messages.iter().zip(&cases) {
        let source = String::from_utf8_lossy(&source[..source.len().min(300)]).into_owned();
        assert_eq!(message.preview, preview.trim_end(), "{source}");
        assert_eq!(message.has_attachments, *attachments, "{source}");
    }
}

#[tokio::test]
async fn reads_headers_dates_flags_and_sizes() {
    let server = dovecot().await;
    let source = "From: =?utf-8?q?J=C3=BCrgen?= <j@example.org>\r\nTo: a@example.org, B <b@example.org>\r\n\
                  Subject: Grüße\r\n aus Köln\r\nMessage-ID: <2@x>\r\nReferences: <1@x>\r\n\
                  Date: Mon, 1 Jun 2026 12:00:00 +0200\r\n\r\nhi\r\n";
    let mut raw = server.imap("alice").await.unwrap();
    raw.append("INBOX", "\\Flagged $Label1", source.as_bytes())
        .await
        .unwrap();
    let mut connection = open(&server).await;
    connection.look("INBOX", 1, 64, false).await.unwrap();
    let message = connection.fetch(&[1]).await.unwrap().remove(0);
    assert_eq!((message.uid, message.size), (1, Some(source.len() as u32)));
    assert_eq!(
        (
            message.from[0].name.as_str(),
            message.from[0].address.as_str()
        ),
        ("Jürgen", "j@example.org")
    );
    assert_eq!(message.to.len(), 2);
    assert_eq!(message.subject, "Grüße aus Köln");
    assert_eq!(
        (message.message_id.as_deref(), message.thread.as_deref()),
        (Some("2@x"), Some("1@x"))
    );
    assert_eq!(message.date, Some(1_780_308_000_000));
    assert!(message.has_flag("\\flagged") && message.has_flag("$Label1") && !message.is_seen());
    assert!(message.modseq.is_some());
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis() as i64;
    assert!((now - message.internal_date.unwrap()).abs() < 120_000);
    assert!(!format!("{message:?}{connection:?}").contains("example"));
}

#[tokio::test]
async fn a_thousand_recipients_hide_nothing() {
    let server = dovecot().await;
    let many = |format: &dyn Fn(usize) -> String, glue: &str| {
        (0..1000).map(format).collect::<Vec<_>>().join(glue)
    };
    let to = many(&|n| format!("Recipient {n} <r{n}@example.org>"), ",\r\n ");
    let references = many(&|n| format!("<{n}@x>"), "\r\n ");
    let rest = "Subject: minutes\r\nMessage-ID: <m@x>\r\nIn-Reply-To: <999@x>\r\nDate: Mon, 1 Jun 2026 12:00:00 +0200\r\n";
    let long = references.repeat(4);
    for message in [
        format!("From: a@x\r\nTo: {to}\r\n{rest}References: {references}\r\n\r\nhi\r\n"),
        format!("To: {to}\r\nFrom: a@x\r\nReferences: {references}\r\n{rest}\r\nhi\r\n"),
        format!("References: {long}\r\nFrom: a@x\r\nTo: b@x, c@x, d@x, e@x\r\n{rest}\r\nhi\r\n"),
    ] {
        server
            .append("alice", "INBOX", message.as_bytes())
            .await
            .unwrap();
    }
    let mut connection = open(&server).await;
    let look = connection.look("INBOX", 1, 64, false).await.unwrap();
    let messages = connection.fetch(&look.uids).await.unwrap();
    assert_eq!(messages.len(), 3);
    for message in &messages {
        let uid = message.uid;
        assert_eq!(message.subject, "minutes", "{uid}");
        assert_eq!(message.message_id.as_deref(), Some("m@x"), "{uid}");
        assert_eq!(message.thread.as_deref(), Some("0@x"), "{uid}");
        assert_eq!(message.date, Some(1_780_308_000_000), "{uid}");
        assert_eq!(message.from[0].address, "a@x", "{uid}");
        assert_eq!(message.preview, "hi", "{uid}");
        // The one whose references come first has them cut off.
        assert_eq!(message.to.len(), if uid == 3 { 0 } else { 4 }, "{uid}");
    }
}

#[tokio::test]
async fn a_message_of_50_mb_costs_a_few_kilobytes() {
    let server = dovecot().await;
    let mut message = b"Subject: big\r\nMIME-Version: 1.0\r\n".to_vec();
    let body = multipart(
        "mixed",
        &["Content-Type: text/plain\r\n\r\nsee the file", "@"],
    );
    let (before, after) = body.split_once('@').unwrap();
    message.extend_from_slice(before.as_bytes());
    message.extend_from_slice(
        b"Content-Type: application/zip; name=a.zip\r\nContent-Transfer-Encoding: base64\r\n\r\n",
    );
    for _ in 0..50 * 1024 * 1024 / 1024 {
        writeln!(message, "{}\r", "A".repeat(1022)).unwrap();
    }
    message.extend_from_slice(after.as_bytes());
    server.deliver_lmtp("alice", &message).await.unwrap();

    let read = Arc::new(AtomicU64::new(0));
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", server.imap_port()))
        .await
        .unwrap();
    let stream = CountingStream {
        inner: stream,
        read: Arc::clone(&read),
    };
    let endpoint = endpoint(&server, TlsMode::Plain);
    let mut connection = Connection::over(
        Box::new(stream),
        &endpoint,
        &login("secret"),
        &settings(&server),
        Duration::ZERO,
    )
    .await
    .unwrap();
    let look = connection.look("INBOX", 1, 64, false).await.unwrap();
    let big = connection.fetch(&look.uids).await.unwrap().remove(0);
    assert!(big.size.unwrap() > 50 << 20);
    assert_eq!(big.preview, "see the file");
    assert!(big.has_attachments);
    let read = read.load(Ordering::Relaxed);
    assert!(read < 8 << 10, "{read} bytes were read");
}

#[tokio::test]
async fn a_message_of_many_parts_keeps_no_other_back() {
    let server = dovecot().await;
    // The second is too large even where it is the only one on its page.
    let parts = [1500, 9000].map(|count| {
        let part = "Content-Type: text/plain\r\n\r\nx";
        let body = multipart("mixed", &vec![part; count]);
        format!("Subject: {count} parts\r\nMIME-Version: 1.0\r\n{body}")
    });
    assert!(parts.iter().all(|message| message.len() < 1 << 20));
    let ordinary = |number: u32| format!("Subject: ordinary {number}\r\n\r\ntext {number}\r\n");
    let messages = [
        ordinary(1),
        parts[0].clone(),
        ordinary(3),
        parts[1].clone(),
        ordinary(5),
    ];
    for message in &messages {
        server
            .deliver_lmtp("alice", message.as_bytes())
            .await
            .unwrap();
    }
    let mut connection = open(&server).await;
    let look = connection.look("INBOX", 1, 64, false).await.unwrap();
    let told = connection.fetch(&look.uids).await.unwrap();
    let told = told
        .iter()
        .map(|message| (message.subject.as_str(), message.preview.as_str()))
        .collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            ("ordinary 1", "text 1"),
            ("1500 parts", ""),
            ("ordinary 3", "text 3"),
            ("9000 parts", ""),
            ("ordinary 5", "text 5"),
        ]
    );
    // The same connection goes on.
    let page = connection.list("INBOX", ListQuery::Newest(64)).await;
    assert_eq!(page.unwrap().messages.len(), 5);
}

/// A server that keeps headers beside the message still tells of those. Dovecot 2.3 keeps none unless told to; 2.4.1 does.
#[tokio::test]
async fn a_message_that_the_server_can_not_read_keeps_no_other_back() {
    let headers = "date from in-reply-to message-id references sender subject to";
    let headers = headers.replace(' ', " hdr.");
    for (cache, subject) in [
        ("flags".to_owned(), ""),
        (
            format!("flags date.received size.virtual imap.bodystructure hdr.{headers}"),
            "no 2",
        ),
    ] {
        one_of_three_can_not_be_read(&cache, subject).await;
    }
}

/// The second; its header is known if the server has cached it.
async fn one_of_three_can_not_be_read(cache: &str, second: &str) {
    let options = DovecotOptions {
        config: format!("imap_fetch_failure = no-after\nmail_cache_fields = {cache}\n"),
        ..Default::default()
    };
    let server = Dovecot::start(options).await.unwrap();
    for number in 1..=3 {
        let message = format!("Subject: no {number}\r\n\r\ntext {number}\r\n");
        server
            .append("alice", "INBOX", message.as_bytes())
            .await
            .unwrap();
    }
    // By what it holds: the names of a maildir do not sort by age, their microseconds have no leading zeros.
    let path = ["cur", "new"]
        .iter()
        .flat_map(|part| {
            std::fs::read_dir(server.directory().join("mail/alice").join(part)).unwrap()
        })
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_to_string(path).unwrap().contains("text 2"))
        .unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
    let mut connection = open(&server).await;
    let look = connection.look("INBOX", 1, 64, false).await.unwrap();
    let told = connection.fetch(&look.uids).await.unwrap();
    let told = told
        .iter()
        .map(|message| {
            (
                message.uid,
                message.subject.as_str(),
                message.preview.as_str(),
            )
        })
        .collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            (1, "no 1", "text 1"),
            (2, second, ""),
            (3, "no 3", "text 3")
        ],
        "{}",
        server.log()
    );
    assert!(!connection.noop().await.unwrap());
}

#[tokio::test]
async fn the_mailbox_is_never_changed() {
    let server = dovecot().await;
    let mut raw = server.imap("alice").await.unwrap();
    for number in 0..5 {
        raw.append(
            "INBOX",
            "",
            format!("Subject: {number}\r\n\r\nbody\r\n").as_bytes(),
        )
        .await
        .unwrap();
    }
    let mut connection = open(&server).await;
    let look = connection.look("INBOX", 1, 64, false).await.unwrap();
    assert_eq!(connection.fetch(&look.uids).await.unwrap().len(), 5);
    connection
        .list("INBOX", ListQuery::Newest(64))
        .await
        .unwrap();
    connection.existing(&[(1, 9)]).await.unwrap();
    let parked = connection.park().await.unwrap();
    let (connection, wake) = parked.wait(patience(600), ready(())).await.unwrap();
    assert_eq!(wake, Wake::Interrupted);
    connection.logout().await;
    // The first to open it with SELECT still gets all of them as recent and unseen.
    let answer = raw.command("SELECT INBOX").await.unwrap();
    assert!(answer.contains("* 5 RECENT"), "{answer}");
    let answer = raw.command("UID SEARCH UNSEEN").await.unwrap();
    assert!(answer.contains("* SEARCH 1 2 3 4 5"), "{answer}");
}

/// Who lists is told of what is there now, not of what was there when the folder was opened.
#[tokio::test]
async fn a_listing_of_an_open_folder_has_what_came_and_not_what_went() {
    let server = dovecot().await;
    let mut raw = server.imap("alice").await.unwrap();
    let mut connection = open(&server).await;
    connection.look("INBOX", 1, 64, false).await.unwrap();
    for number in 1..=2 {
        let text = format!("Subject: {number}\r\n\r\nbody\r\n");
        raw.append("INBOX", "", text.as_bytes()).await.unwrap();
        let page = connection.list("INBOX", ListQuery::Newest(64)).await;
        let page = page.unwrap();
        assert_eq!(
            (page.exists, page.messages.len()),
            (number, number as usize)
        );
        assert!(page.uid_next > number);
    }
    raw.command("SELECT INBOX").await.unwrap();
    raw.command("UID STORE 1 +FLAGS.SILENT (\\Deleted)")
        .await
        .unwrap();
    raw.command("EXPUNGE").await.unwrap();
    let page = connection.list("INBOX", ListQuery::After(0, 64)).await;
    let page = page.unwrap();
    assert_eq!((page.exists, page.messages[0].uid), (1, 2));
    // What a listing was told is still news to the watching.
    assert!(connection.is_dirty());
}
