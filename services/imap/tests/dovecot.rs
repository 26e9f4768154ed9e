//! Against a real Dovecot: every way to connect, looks, pages, previews, IDLE.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::future::{pending, ready};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{CountingStream, endpoint, login, open, patience, settings};
use mailbell_imap::{
    Capability, Class, Connection, Error, ListQuery, LoginFault, SpecialUse, TlsFault, TlsMode,
    TlsSettings, Wake,
};
use mailbell_test_servers::{Certificate, Dovecot, DovecotOptions, Storage};

async fn dovecot() -> Dovecot {
    Dovecot::start(DovecotOptions::default()).await.unwrap()
}

fn fault(result: Result<Connection, Error>) -> TlsFault {
    match result.map(|_| ()) {
        Err(Error::Tls(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn connects_in_every_mode() {
    let server = dovecot().await;
    let settings = settings(&server);
    for tls in [TlsMode::Implicit, TlsMode::StartTls, TlsMode::Plain] {
        let mut connection = Connection::open(&endpoint(&server, tls), &login("secret"), &settings)
            .await
            .unwrap();
        for capability in [
            Capability::Idle,
            Capability::UidPlus,
            Capability::CondStore,
            Capability::Id,
        ] {
            assert!(connection.capabilities().has(capability), "{capability:?}");
        }
        assert!(connection.handshake() > Duration::ZERO);
        assert!(!connection.noop().await.unwrap());
        connection.logout().await;
    }
    let mut strict = settings.clone();
    strict.allow_plaintext = false;
    let refused = Connection::open(
        &endpoint(&server, TlsMode::Plain),
        &login("secret"),
        &strict,
    )
    .await;
    assert_eq!(refused.unwrap_err().class(), Class::PlaintextNotAllowed);
}

#[tokio::test]
async fn tells_tls_troubles_apart() {
    let server = dovecot().await;
    let mut endpoint = endpoint(&server, TlsMode::Implicit);
    let mut others = settings(&server);
    others.tls = TlsSettings::only([Certificate::localhost().authority_pem.as_bytes()]).unwrap();
    assert_eq!(
        fault(Connection::open(&endpoint, &login("secret"), &others).await),
        TlsFault::UnknownIssuer
    );

    endpoint.port = server.imap_port();
    assert_eq!(
        fault(Connection::open(&endpoint, &login("secret"), &settings(&server)).await),
        TlsFault::NotTls
    );

    for (certificate, expected) in [
        (
            Certificate::for_names(&["mail.example.org"]),
            TlsFault::WrongName,
        ),
        (Certificate::expired(), TlsFault::Expired),
    ] {
        let options = DovecotOptions {
            certificate: Some(certificate),
            ..Default::default()
        };
        let server = Dovecot::start(options).await.unwrap();
        for tls in [TlsMode::Implicit, TlsMode::StartTls] {
            let endpoint = common::endpoint(&server, tls);
            assert_eq!(
                fault(Connection::open(&endpoint, &login("secret"), &settings(&server)).await),
                expected
            );
        }
    }
}

#[tokio::test]
async fn tells_network_troubles_apart() {
    let mut server = dovecot().await;
    let mut unknown = endpoint(&server, TlsMode::Implicit);
    unknown.host = "no-such-host.invalid".into();
    let error = Connection::open(&unknown, &login("secret"), &settings(&server))
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Dns);
    server.stop().await;
    let error = Connection::open(
        &endpoint(&server, TlsMode::Implicit),
        &login("secret"),
        &settings(&server),
    )
    .await;
    assert_eq!(error.unwrap_err().class(), Class::Refused);
}

#[tokio::test]
async fn a_wrong_password_is_one_until_it_is_right() {
    let mut server = dovecot().await;
    let endpoint = endpoint(&server, TlsMode::Implicit);
    let settings = settings(&server);
    for password in ["wrong", "", "päßwörd"] {
        let error = Connection::open(&endpoint, &login(password), &settings)
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::BadCredentials(LoginFault::Refused)),
            "{error:?}"
        );
        assert!(error.is_permanent());
    }
    server.set_password("alice", "changed").await.unwrap();
    Connection::open(&endpoint, &login("changed"), &settings)
        .await
        .unwrap();

    server.set_password("alice", "pä\"ß\\ x").await.unwrap();
    Connection::open(&endpoint, &login("pä\"ß\\ x"), &settings)
        .await
        .unwrap();
    let error = Connection::open(&endpoint, &login("pä\"ß\\ "), &settings)
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::BadCredentials);
}

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
    connection.folder_status(&["INBOX"]).await.unwrap();
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
async fn lists_folders_and_their_status() {
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
    let status = connection
        .folder_status(&["INBOX", "None", &created.name])
        .await
        .unwrap();
    assert_eq!(status[0].unwrap().messages, Some(0));
    assert_eq!(status[1], None);
    let status = status[2].unwrap();
    assert_eq!((status.messages, status.uid_next), (Some(1), Some(2)));
    assert!(status.highest_modseq.is_some());
    let look = connection.look(&created.name, 1, 10, false).await.unwrap();
    assert_eq!(
        (look.uids.as_slice(), Some(look.uid_validity)),
        (&[1][..], status.uid_validity)
    );
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
