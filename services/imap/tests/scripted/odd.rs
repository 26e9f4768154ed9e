//! Servers that are old, odd or in trouble.

use std::future::pending;
use std::time::Duration;

use mailbell_imap::{
    Capability, Class, Connection, Error, ListQuery, LoginFault, TlsFault, TlsMode, Wake,
};

use crate::script::{
    Step, answer, connected, examine, login, looked, open, patience, plain, say, serve, settings,
};

#[tokio::test(start_paused = true)]
async fn capabilities_are_read_again_after_login() {
    let connection = open(vec![
        say("* OK hi\r\n"),
        answer(
            "CAPABILITY",
            "* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\n{tag} OK\r\n",
        ),
        answer("AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==", "{tag} OK in\r\n"),
        answer(
            "CAPABILITY",
            "* CAPABILITY IMAP4rev1 IDLE ID\r\n{tag} OK\r\n",
        ),
        answer(
            "ID (\"name\" \"Mailbell\" \"version\" \"",
            "* ID (\"name\" NIL)\r\n{tag} BAD no\r\n",
        ),
    ])
    .await
    .unwrap();
    assert!(connection.capabilities().has(Capability::Idle));
    assert!(!connection.capabilities().has(Capability::AuthPlain));
}

#[tokio::test(start_paused = true)]
async fn logs_in_by_what_the_server_has() {
    // SASL without an initial response.
    open(vec![
        say("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN LOGINDISABLED] hi\r\n"),
        answer("AUTHENTICATE PLAIN", "+ \r\n"),
        Step::Expect("AGFsaWNlAHNlY3JldA=="),
        say("{tag} OK [CAPABILITY IMAP4rev1] x\r\n"),
    ])
    .await
    .unwrap();
    let (stream, _) = serve(vec![
        say("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN LOGINDISABLED] hi\r\n"),
        answer(
            "AUTHENTICATE PLAIN",
            "+ \r\n* OK keep\r\n{tag} NO [AUTHENTICATIONFAILED] x\r\n",
        ),
    ]);
    let error = Connection::over(stream, &plain(), &login(), &settings(), Duration::ZERO)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::BadCredentials(LoginFault::Refused)));

    // LOGIN, quoted, and with a literal that the server has to ask for.
    open(vec![
        say("* OK [CAPABILITY IMAP4rev1 IDLE] hi\r\n"),
        answer(
            "LOGIN \"alice\" \"secret\"",
            "{tag} OK [CAPABILITY IMAP4rev1] x\r\n",
        ),
    ])
    .await
    .unwrap();
    let mut foreign = login();
    foreign.secret = "ä".as_bytes().to_vec().into();
    let (stream, _) = serve(vec![
        say("* OK [CAPABILITY IMAP4rev1 IDLE] hi\r\n"),
        answer("LOGIN \"alice\" {2}", "+ go on\r\n"),
        Step::Expect("ä"),
        say("{tag} OK [CAPABILITY IMAP4rev1] x\r\n"),
    ]);
    Connection::over(stream, &plain(), &foreign, &settings(), Duration::ZERO)
        .await
        .unwrap();

    let error = open(vec![say(
        "* OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi\r\n",
    )])
    .await
    .unwrap_err();
    assert_eq!(error.class(), Class::LoginDisabled);
    // Logged in already.
    open(vec![say("* PREAUTH [CAPABILITY IMAP4rev1] hi\r\n")])
        .await
        .unwrap();

    for bad in ["a\r\nb", "a\0b", "a\nb"] {
        let mut bad_login = login();
        bad_login.user = bad.into();
        let (stream, _) = serve(vec![]);
        let error = Connection::over(stream, &plain(), &bad_login, &settings(), Duration::ZERO)
            .await
            .unwrap_err();
        assert_eq!(error.class(), Class::InvalidInput);
    }
}

#[tokio::test(start_paused = true)]
async fn starttls_can_not_be_got_around() {
    let mut endpoint = plain();
    endpoint.tls = TlsMode::StartTls;
    for (steps, expected) in [
        (
            vec![say("* OK [CAPABILITY IMAP4rev1] hi\r\n")],
            TlsFault::NotOffered,
        ),
        (
            vec![say("* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n")],
            TlsFault::Injection,
        ),
        (
            vec![
                say("* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n"),
                answer(
                    "STARTTLS",
                    "{tag} OK go\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n",
                ),
            ],
            TlsFault::Injection,
        ),
        (
            vec![
                say("* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n"),
                answer("STARTTLS", "{tag} NO no\r\n"),
            ],
            TlsFault::NotOffered,
        ),
    ] {
        let (stream, _) = serve(steps);
        let error = Connection::over(stream, &endpoint, &login(), &settings(), Duration::ZERO)
            .await
            .unwrap_err();
        assert!(
            matches!(error, Error::Tls(fault) if fault == expected),
            "{error:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_mail_server_is_told_apart() {
    for (greeting, class) in [
        ("220 smtp ESMTP\r\n", Class::Protocol),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", Class::Protocol),
        ("+OK POP3\r\n", Class::Protocol),
        ("* BYE [ALERT] Too many connections\r\n", Class::Throttled),
        ("* BYE go away\r\n", Class::Disconnected),
        ("", Class::Timeout),
        ("* OK", Class::Timeout),
    ] {
        assert_eq!(
            open(vec![say(greeting)]).await.unwrap_err().class(),
            class,
            "{greeting}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn uid_next_is_found_where_it_is_not_said() {
    let mut connection = connected(
        "",
        vec![
            answer(
                "EXAMINE",
                "* 3 EXISTS\r\n* OK [UIDVALIDITY 9] x\r\n{tag} OK\r\n",
            ),
            answer("FETCH 3 (UID)", "* 3 FETCH (UID 30)\r\n{tag} OK\r\n"),
            answer(
                "FETCH 1:3 (UID)",
                "* 1 FETCH (UID 10)\r\n* 2 FETCH (UID 20)\r\n* 3 FETCH (UID 30)\r\n{tag} OK\r\n",
            ),
            answer("EXAMINE", "* 0 EXISTS\r\n{tag} OK\r\n"),
        ],
    )
    .await;
    let look = connection.look("INBOX", 20, 10, false).await.unwrap();
    assert_eq!(
        (look.uid_next, look.uids.as_slice(), look.total_new),
        (31, &[20, 30][..], 2)
    );
    assert_eq!(
        connection
            .look("Other", 1, 10, false)
            .await
            .unwrap_err()
            .class(),
        Class::Protocol
    );
}

#[tokio::test(start_paused = true)]
async fn refusals_of_folders_are_told_apart() {
    let mut connection = connected(
        "",
        vec![
            answer("EXAMINE \"A\"", "{tag} NO [NONEXISTENT] x\r\n"),
            answer("EXAMINE \"B\"", "{tag} NO x\r\n"),
            answer(
                "EXAMINE \"C\"",
                "{tag} NO User is authenticated but not connected.\r\n",
            ),
            answer("EXAMINE \"D\"", "{tag} BAD x\r\n"),
            examine(0, 1),
        ],
    )
    .await;
    for (folder, class) in [
        ("A", Class::NoSuchFolder),
        ("B", Class::NoSuchFolder),
        ("C", Class::Throttled),
        ("D", Class::Protocol),
    ] {
        assert_eq!(
            connection
                .look(folder, 1, 10, false)
                .await
                .unwrap_err()
                .class(),
            class
        );
    }
    assert_eq!(
        connection.look("INBOX", 1, 10, false).await.unwrap().exists,
        0
    );
}

#[tokio::test(start_paused = true)]
async fn announced_and_not_there_yet_is_not_complete() {
    let mut connection = connected(
        "",
        vec![
            examine(2, 3),
            answer("FETCH 1:2 (UID)", "* 1 FETCH (UID 1)\r\n{tag} OK\r\n"),
            answer(
                "FETCH 1:2 (UID)",
                "* 1 FETCH (UID 1)\r\n* 3 EXISTS\r\n* 2 FETCH (UID 2)\r\n{tag} OK\r\n",
            ),
        ],
    )
    .await;
    let look = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!(
        (look.uids.as_slice(), look.complete, look.uid_next),
        (&[1][..], false, 3)
    );
    assert!(!connection.is_dirty());
    let look = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!((look.uids.as_slice(), look.complete), (&[1, 2][..], true));
    assert!(connection.is_dirty());
    assert_eq!(connection.exists(), Some(3));
    // News since the look: no IDLE is sent, the wait is over at once.
    let parked = connection.park().await.unwrap();
    assert!(parked.is_dirty() && !parked.is_idling());
    assert_eq!(
        parked.wait(patience(600, 600), pending()).await.unwrap().1,
        Wake::Changed
    );
}

#[tokio::test(start_paused = true)]
async fn changes_of_flags_within_an_answer_keep_nothing_out() {
    let flags = "* 1 FETCH (UID 1 FLAGS (\\Seen))\r\n".repeat(5);
    let mut connection = connected(
        "",
        vec![
            examine(2, 3),
            answer(
                "FETCH 1:2 (UID)",
                &format!("{flags}* 1 FETCH (UID 1)\r\n* 2 FETCH (UID 2)\r\n{{tag}} OK\r\n"),
            ),
            answer(
                "UID FETCH 1:2 (UID)",
                &format!("{flags}* 1 FETCH (UID 1)\r\n* 2 FETCH (UID 2)\r\n{{tag}} OK\r\n"),
            ),
        ],
    )
    .await;
    let look = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!((look.uids.as_slice(), look.complete), (&[1, 2][..], true));
    assert_eq!(connection.existing(&[(1, 2)]).await.unwrap(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_spoils_a_page_costs_only_itself() {
    let good =
        |uid: u32| format!("* {uid} FETCH (UID {uid} FLAGS () RFC822.SIZE 5 INTERNALDATE NIL)\r\n");
    // Messages 2 and 4 make the server refuse everything, in its usual words; message 3 is gone.
    const NO: &str = "{tag} NO [SERVERBUG] Internal error occurred. Refer to server log for more information. [2026-06-01 12:00:00]\r\n";
    let mut connection = connected(
        "",
        vec![
            examine(4, 5),
            answer(
                "FETCH 1:4 (UID)",
                "* 1 FETCH (UID 1)\r\n* 2 FETCH (UID 2)\r\n* 3 FETCH (UID 3)\r\n* 4 FETCH (UID 4)\r\n{tag} OK\r\n",
            ),
            answer("UID FETCH 1:4 (UID FLAGS", &format!("{}{NO}", good(1))),
            answer(
                "UID FETCH 1:4 (UID FLAGS)",
                "* 1 FETCH (UID 1 FLAGS ())\r\n* 2 FETCH (UID 2 FLAGS ())\r\n* 3 FETCH (UID 4 FLAGS (\\Seen))\r\n{tag} OK\r\n",
            ),
            answer("UID FETCH 2 (UID FLAGS", NO),
            answer(
                "UID FETCH 2 (UID FLAGS INTERNALDATE RFC822.SIZE)",
                &format!("{}{{tag}} OK\r\n", good(2)),
            ),
            // Of this one nothing can be read at all.
            answer("UID FETCH 4 (UID FLAGS", NO),
            answer("UID FETCH 4 (UID FLAGS INTERNALDATE RFC822.SIZE)", NO),
            // A structure that the parser can't make sense of.
            answer(
                "UID FETCH 5 (UID FLAGS",
                "* 4 FETCH (UID 5 RFC822.SIZE 5 BODYSTRUCTURE (NIL ((()))))\r\n{tag} OK\r\n",
            ),
            answer(
                "UID FETCH 5 (UID FLAGS",
                &format!("{}{{tag}} OK\r\n", good(5)),
            ),
        ],
    )
    .await;
    let page = connection
        .list("INBOX", ListQuery::Newest(4))
        .await
        .unwrap();
    let told = page
        .messages
        .iter()
        .map(|message| (message.uid, message.size, message.is_seen()))
        .collect::<Vec<_>>();
    assert_eq!(
        told,
        [(1, Some(5), false), (2, Some(5), false), (4, None, true)]
    );
    assert_eq!(connection.fetch(&[5]).await.unwrap()[0].size, Some(5));
}

#[tokio::test(start_paused = true)]
async fn messages_of_which_none_can_be_read_are_asked_for_again() {
    const NO: &str = "{tag} NO [UNAVAILABLE] Backend error\r\n";
    const NAMES: &str = "* 1 FETCH (UID 1 FLAGS ())\r\n* 2 FETCH (UID 2 FLAGS ())\r\n{tag} OK\r\n";
    let mut connection = looked(
        "",
        vec![
            answer("NOOP", "* 2 EXISTS\r\n{tag} OK\r\n"),
            answer(" FETCH 2 (UID FLAGS", NO),
            answer(
                "FETCH 1:2 (UID)",
                "* 1 FETCH (UID 1)\r\n* 2 FETCH (UID 2)\r\n{tag} OK\r\n",
            ),
            // Alone it may be damaged, or the server in trouble.
            answer("UID FETCH 2 (UID FLAGS", NO),
            answer(
                "UID FETCH 2 (UID FLAGS)",
                "* 2 FETCH (UID 2 FLAGS ())\r\n{tag} OK\r\n",
            ),
            answer("UID FETCH 2 (UID FLAGS", NO),
            answer("UID FETCH 2 (UID FLAGS", NO),
            // Flags, date and size come from an index while what messages are is away.
            answer("UID FETCH 1:2 (UID FLAGS", NO),
            answer("UID FETCH 1:2 (UID FLAGS)", NAMES),
            answer("UID FETCH 1 (UID FLAGS", NO),
            answer(
                "UID FETCH 1 (UID FLAGS INTERNALDATE RFC822.SIZE)",
                "* 1 FETCH (UID 1 RFC822.SIZE 7)\r\n{tag} OK\r\n",
            ),
            answer("UID FETCH 2 (UID FLAGS", NO),
            answer("UID FETCH 2 (UID FLAGS INTERNALDATE RFC822.SIZE)", NO),
            // Beside one that can be read, the other one is told by its UID.
            answer("UID FETCH 1:2 (UID FLAGS", NO),
            answer("UID FETCH 1:2 (UID FLAGS)", NAMES),
            answer(
                "UID FETCH 1 (UID FLAGS",
                "* 1 FETCH (UID 1 RFC822.SIZE 7)\r\n{tag} OK\r\n",
            ),
            answer("UID FETCH 2 (UID FLAGS", NO),
            answer("UID FETCH 2 (UID FLAGS INTERNALDATE RFC822.SIZE)", NO),
            // A text that can't be read costs itself.
            answer(
                "UID FETCH 2 (UID FLAGS",
                "* 2 FETCH (UID 2 RFC822.SIZE 5 BODYSTRUCTURE ((\"text\" \"plain\" NIL NIL NIL \"7bit\" 5 1) \"mixed\"))\r\n{tag} OK\r\n",
            ),
            answer("UID FETCH 2 (UID BODY", NO),
            // Most servers that are in trouble say so of the names too.
            answer("UID FETCH 2 (UID FLAGS", NO),
            answer("UID FETCH 2 (UID FLAGS)", NO),
        ],
    )
    .await;
    connection.noop().await.unwrap();
    let look = connection.look("INBOX", 2, 10, false).await.unwrap();
    assert_eq!(look.uids, [2]);
    for uids in [&[2][..], &[1, 2]] {
        let error = connection.fetch(uids).await.unwrap_err();
        assert_eq!(error.class(), Class::Throttled, "{uids:?}");
    }
    let messages = connection.fetch(&[1, 2]).await.unwrap();
    let told = messages.iter().map(|message| (message.uid, message.size));
    assert_eq!(told.collect::<Vec<_>>(), [(1, Some(7)), (2, None)]);
    let messages = connection.fetch(&[2]).await.unwrap();
    assert_eq!((messages[0].uid, messages[0].size), (2, Some(5)));
    assert_eq!(
        connection.fetch(&[2]).await.unwrap_err().class(),
        Class::Throttled
    );
}

#[tokio::test(start_paused = true)]
async fn a_folder_of_which_the_server_knows_otherwise_is_opened_anew() {
    let mut connection = connected(
        "",
        vec![
            examine(5, 9),
            answer("FETCH 1:5 (UID)", "{tag} BAD Invalid messageset\r\n"),
            examine(1, 9),
            answer("FETCH 1 (UID)", "* 1 FETCH (UID 8)\r\n{tag} OK\r\n"),
        ],
    )
    .await;
    let look = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!((look.uids.len(), look.complete), (0, false));
    let look = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!((look.uids.as_slice(), look.complete), (&[8][..], true));
}

#[tokio::test(start_paused = true)]
async fn news_of_a_folder_that_was_given_up_is_heard() {
    for news in ["* 6 EXISTS\r\n", "* 5 EXPUNGE\r\n"] {
        let mut connection = connected(
            "IDLE",
            vec![
                examine(5, 9),
                answer("FETCH 1:5 (UID)", "{tag} BAD Invalid messageset\r\n"),
                answer("IDLE", &format!("+ idling\r\n{news}")),
                Step::Expect("DONE"),
                say("{tag} OK done\r\n"),
                examine(1, 9),
                answer("FETCH 1 (UID)", "* 1 FETCH (UID 8)\r\n{tag} OK\r\n"),
            ],
        )
        .await;
        let look = connection.look("INBOX", 1, 10, false).await.unwrap();
        assert!(!look.complete && !connection.is_dirty());
        let parked = connection.park().await.unwrap();
        let (mut connection, wake) = parked.wait(patience(60, 600), pending()).await.unwrap();
        assert_eq!(wake, Wake::Changed, "{news}");
        let look = connection.look("INBOX", 1, 10, false).await.unwrap();
        assert_eq!(look.uids, [8]);
    }
}
