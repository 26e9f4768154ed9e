//! Servers that want to harm: each case that is known to hurt the parser or its buffers, and a few more.

use std::time::Duration;

use crate::script::{Step, answer, connected, examine, open, say, served};
use mailbell_imap::{Class, Connection, Error, GuardError, Patience, Wake};
use tokio::time::Instant;

/// What a limit was passed by, and how many bytes were taken from the server until then.
async fn limited(steps: Vec<Step>) -> (GuardError, usize) {
    let (mut connection, server) = served("", steps).await;
    let error = connection.noop().await.unwrap_err();
    drop(connection);
    match error {
        Error::LimitExceeded(limit) => (limit, server.await.unwrap()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_deep_body_structure_does_not_abort() {
    let deep = format!("{}{}", "(".repeat(4096), ")".repeat(4096));
    let open = "(".repeat(4096);
    let header = "BODY[HEADER.FIELDS (SUBJECT)]<0> {12}\r\nSubject: hi\n";
    for items in [
        format!("BODYSTRUCTURE {deep} {header}"),
        format!("{header} BODYSTRUCTURE {deep}"),
        format!("{header} X-FOO (\") BODYSTRUCTURE {open}\")"),
        format!("{header} FLAGS (\") BODYSTRUCTURE {open}\")"),
    ] {
        let fetch = format!("* 1 FETCH (UID 1 {items})\r\n{{tag}} OK\r\n");
        let mut connection = connected("", vec![answer("UID FETCH 1", &fetch)]).await;
        let message = connection.fetch(&[1]).await.unwrap().remove(0);
        assert_eq!(
            (message.subject.as_str(), message.preview.as_str()),
            ("hi", "")
        );
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_a_code_do_not_panic() {
    let mut connection = open(vec![
        say("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN]é\r\n"),
        answer("AUTHENTICATE PLAIN", "+ [ALERT]ü\r\n"),
        Step::Expect("AGFsaWNlAHNlY3JldA=="),
        say("* NO [ALERT]ß\r\n{tag} OK [CAPABILITY IMAP4rev1]\u{1f600}\r\n"),
        answer(
            "NOOP",
            "* OK [UIDNEXT 5]é\r\n* OK [ALERT]\u{0}é\r\n{tag} OK [ALERT]é\r\n",
        ),
    ])
    .await
    .unwrap();
    connection.noop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_long_line_is_cut_off_at_once() {
    let line = format!("* OK {}", "x".repeat(16 << 20));
    let (limit, taken) = limited(vec![Step::Answer("NOOP", line)]).await;
    assert_eq!(limit, GuardError::Line);
    assert!(taken < 100_000, "{taken}");
}

#[tokio::test(start_paused = true)]
async fn a_large_literal_is_not_even_begun() {
    for size in ["500000000", "99999999999999999999", "5000"] {
        let steps = vec![
            answer("NOOP", &format!("* 1 FETCH (BODY[1] {{{size}}}\r\n")),
            Step::Flood("x".repeat(1000)),
        ];
        let (limit, taken) = limited(steps).await;
        assert_eq!(limit, GuardError::Literal);
        assert!(taken < 20_000, "{taken}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_answer_ends() {
    for line in [
        "* 1 EXISTS\r\n",
        "* OK x\r\n",
        "* LIST () \"/\" x\r\n",
        "* X\r\n",
        "\r\n",
        "* 1 FETCH (UID\r\n",
        "?\r\n",
    ] {
        let (limit, taken) = limited(vec![answer("NOOP", ""), Step::Flood(line.into())]).await;
        assert_eq!(limit, GuardError::Answer, "{line}");
        assert!(taken < 400_000, "{taken}");
    }
    let mut connection = connected(
        "IDLE",
        vec![
            answer("IDLE", "+\r\n"),
            Step::Flood("* OK Still here\r\n".into()),
        ],
    )
    .await;
    let parked = connection.park().await.unwrap();
    let patience = Patience {
        until: Instant::now() + Duration::from_secs(99),
        quiet: Duration::from_secs(99),
    };
    let error = parked
        .wait(patience, std::future::pending())
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::LimitExceeded);
    connection = connected(
        "",
        vec![
            examine(1000, 2),
            answer("FETCH", ""),
            Step::Flood("* 1000 FETCH (UID 7)\r\n".into()),
        ],
    )
    .await;
    let error = connection.look("INBOX", 1, 10, false).await.unwrap_err();
    assert_eq!(error.class(), Class::LimitExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_every_message_is_no_flood() {
    const COUNT: u32 = 20_000;
    let changed = (1..=COUNT)
        .map(|number| {
            format!(
                "* {number} FETCH (UID {number} MODSEQ (123456789) FLAGS (\\Seen $Forwarded))\r\n"
            )
        })
        .collect::<String>();
    assert!(changed.len() > 1 << 20);
    let gone = "* 1 EXPUNGE\r\n".repeat(20_000);
    let done = |text: &str| format!("{text}{{tag}} OK\r\n");
    let mut connection = connected(
        "IDLE",
        vec![
            examine(COUNT + 1, COUNT + 2),
            answer(
                "FETCH 20000:20001 (UID)",
                &format!("{changed}* 20001 FETCH (UID 20001)\r\n{{tag}} OK\r\n"),
            ),
            answer("NOOP", &done(&changed)),
            answer("IDLE", &format!("+ idling\r\n{changed}* 20002 EXISTS\r\n")),
            Step::Expect("DONE"),
            say("{tag} OK done\r\n"),
            answer("NOOP", &done(&gone)),
        ],
    )
    .await;
    let look = connection.look("INBOX", 20_001, 1, false).await.unwrap();
    assert_eq!(look.uids, [20_001]);
    assert!(!connection.noop().await.unwrap());
    let patience = Patience {
        until: Instant::now() + Duration::from_secs(99),
        quiet: Duration::from_secs(99),
    };
    let parked = connection.park().await.unwrap();
    let (mut connection, wake) = parked.wait(patience, std::future::pending()).await.unwrap();
    assert_eq!(wake, Wake::Changed);
    assert!(connection.noop().await.unwrap());
    assert_eq!(connection.exists(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_is_left_out() {
    let mut connection = connected(
        "",
        vec![
            answer(
                "NOOP",
                "* STATUS INBOX (X-NEW (a (b)) MESSAGES 5 SIZE 18446744073709551615 UIDNEXT 6 UIDVALIDITY 1)\r\n\
                 * SEARCH 1 2 3\r\n* ESEARCH (TAG \"x\") ALL 1:5\r\n* SEARCH (MODSEQ 5)\r\n* METADATA \"\" (/private/x y)\r\n\
                 * ID (\"name\" NIL)\r\n* 7 FETCH (INTERNALDATE NIL)\r\n* QUOTA x\r\n* 99999999999 EXISTS\r\n{tag} OK\r\n",
            ),
            answer("NOOP", "{tag} OK\r\n"),
        ],
    )
    .await;
    assert!(!connection.noop().await.unwrap());
    assert!(!connection.noop().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_thousand_announcements_are_all_counted() {
    let many = (1..=1000)
        .map(|count| format!("* {count} EXISTS\r\n"))
        .collect::<String>();
    let mut connection = connected(
        "",
        vec![
            examine(0, 1),
            answer("NOOP", &format!("{many}{{tag}} OK\r\n")),
        ],
    )
    .await;
    connection.look("INBOX", 1, 10, false).await.unwrap();
    assert!(connection.noop().await.unwrap());
    assert_eq!(connection.exists(), Some(1000));
}

#[tokio::test(start_paused = true)]
async fn mail_is_never_taken_for_an_answer() {
    let mail = "x\r\nM1 OK\r\n* BYE\r\n* 9 EXISTS\r\n";
    let size = mail.len();
    let mut connection = connected(
        "",
        vec![
            examine(1, 2),
            answer("FETCH 1 (UID)", "* 1 FETCH (UID 1)\r\n{tag} OK\r\n"),
            answer("UID FETCH 1", &format!("* 1 FETCH (UID 1 BODY[HEADER.FIELDS (A)]<0> {{{size}}}\r\n{mail})\r\n{{tag}} OK\r\n")),
            // Where no literal may stand, what follows might be mail or not: better none at all.
            answer("UID FETCH 1", &format!("* 1 FETCH (UID 1 BODY[HEADER.FIELDS (A)]<0>{{{size}}}\r\n{mail})\r\n{{tag}} OK\r\n")),
        ],
    )
    .await;
    connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!(connection.fetch(&[1]).await.unwrap().len(), 1);
    assert_eq!(
        (connection.exists(), connection.is_dirty()),
        (Some(1), false)
    );
    let error = connection.fetch(&[1]).await.unwrap_err();
    assert!(
        matches!(error, Error::LimitExceeded(GuardError::Framing)),
        "{error:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn answers_out_of_place_end_the_connection() {
    for text in ["M1 OK x\r\n", "+ go on\r\n"] {
        let mut connection = connected("", vec![answer("NOOP", text)]).await;
        assert_eq!(
            connection.noop().await.unwrap_err().class(),
            Class::Protocol
        );
        assert_eq!(
            connection.noop().await.unwrap_err().class(),
            Class::Disconnected
        );
    }
}

#[tokio::test(start_paused = true)]
async fn lies_about_a_folder_do_no_harm() {
    // Four billion messages, of which none can be fetched.
    let mut steps = vec![examine(u32::MAX, 1)];
    steps.extend((0..40).map(|_| answer("FETCH", "{tag} NO gone\r\n")));
    let mut connection = connected("", steps).await;
    let look = connection.look("INBOX", 1, u32::MAX, false).await.unwrap();
    assert!(look.uids.is_empty() && !look.complete);
    // Every message has the same UID, or the highest.
    let mut steps = vec![examine(1000, 1)];
    steps.extend((0..40).map(|_| {
        answer(
            "FETCH",
            "* 1000 FETCH (UID 4294967295)\r\n* 999 FETCH (UID 4294967295)\r\n{tag} OK\r\n",
        )
    }));
    let mut connection: Connection = connected("", steps).await;
    let look = connection.look("INBOX", 1, 2, false).await.unwrap();
    assert_eq!(look.uid_next, u32::MAX);
    assert!(look.uids.len() <= 2);
}
