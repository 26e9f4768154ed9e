//! Servers that are old, odd, in trouble or slow, played from a script on a paused clock.

use std::future::{pending, ready};
use std::time::Duration;

use crate::script::{Step, answer, connected, examine, login, open, plain, say, serve, settings};
use mailbell_imap::{
    Capability, Class, Connection, Error, ListQuery, LoginFault, Patience, TlsFault, TlsMode, Wake,
};
use tokio::time::Instant;

fn patience(until: u64, quiet: u64) -> Patience {
    Patience {
        until: Instant::now() + Duration::from_secs(until),
        quiet: Duration::from_secs(quiet),
    }
}

/// A connection that has looked at a folder with one message.
async fn looked(capabilities: &str, mut steps: Vec<Step>) -> Connection {
    steps.splice(
        0..0,
        [
            examine(1, 2),
            answer("FETCH 1 (UID)", "* 1 FETCH (UID 1)\r\n{tag} OK\r\n"),
        ],
    );
    let mut connection = connected(capabilities, steps).await;
    assert_eq!(
        connection.look("INBOX", 1, 10, false).await.unwrap().uids,
        [1]
    );
    connection
}

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
async fn news_before_the_continuation_counts() {
    // Exchange Online says EXISTS between IDLE and its continuation.
    let connection = looked(
        "IDLE",
        vec![
            answer("IDLE", "* 2 EXISTS\r\n+ idling\r\n"),
            Step::Expect("DONE"),
            say("{tag} OK done\r\n"),
            answer("IDLE", "* 3 EXISTS\r\n+ idling\r\n"),
        ],
    )
    .await;
    let parked = connection.park().await.unwrap();
    assert!(parked.is_idling() && parked.is_dirty());
    let (connection, wake) = parked.wait(patience(600, 600), pending()).await.unwrap();
    assert_eq!((wake, connection.exists()), (Wake::Changed, Some(2)));
}

/// Steps of an IDLE that ends in order.
fn idle(during: Vec<Step>, after: &str) -> Vec<Step> {
    let mut steps = vec![answer("IDLE", "+ idling\r\n")];
    steps.extend(during);
    steps.push(Step::Expect("DONE"));
    steps.push(Step::Say(format!("{{tag}} OK done\r\n{after}")));
    steps
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_news_wakes_up() {
    for (news, wake, exists) in [
        ("* 2 EXISTS\r\n", Wake::Changed, 2),
        ("* 5 EXISTS\r\n* 1 RECENT\r\n", Wake::Changed, 5),
        ("* 1 RECENT\r\n", Wake::Changed, 1),
        ("* 1 EXPUNGE\r\n", Wake::Changed, 0),
        ("* VANISHED 1\r\n", Wake::Changed, 1),
        // The same number, a change of flags, signs of life: not news.
        (
            "* 1 EXISTS\r\n* OK Still here\r\n* 1 FETCH (FLAGS (\\Seen))\r\n* 0 RECENT\r\n+ idling\r\n\r\n",
            Wake::Expired,
            1,
        ),
    ] {
        let connection = looked("IDLE", idle(vec![say(news)], "")).await;
        let parked = connection.park().await.unwrap();
        let start = Instant::now();
        let (connection, woke) = parked.wait(patience(60, 600), pending()).await.unwrap();
        assert_eq!((woke, connection.exists()), (wake, Some(exists)), "{news}");
        assert_eq!(
            start.elapsed() >= Duration::from_secs(60),
            wake == Wake::Expired
        );
        assert_eq!(connection.is_dirty(), wake == Wake::Changed);
    }
}

#[tokio::test(start_paused = true)]
async fn signs_of_life_put_off_the_probe() {
    let minutes = |count: u64| Step::Pause(Duration::from_secs(count * 60));
    let alive = || say("* OK Still here\r\n");
    // Something is heard each 4 minutes: up to the end.
    let during = vec![
        minutes(4),
        alive(),
        minutes(4),
        alive(),
        minutes(4),
        alive(),
    ];
    let parked = looked("IDLE", idle(during, "")).await.park().await.unwrap();
    let start = Instant::now();
    let (_, wake) = parked
        .wait(patience(15 * 60, 5 * 60), pending())
        .await
        .unwrap();
    assert_eq!((wake, start.elapsed().as_secs()), (Wake::Expired, 15 * 60));
    // Then nothing any more: tried after 5 minutes, and it still answers.
    let parked = looked("IDLE", idle(vec![minutes(4), alive()], ""))
        .await
        .park()
        .await
        .unwrap();
    let start = Instant::now();
    let (connection, wake) = parked
        .wait(patience(15 * 60, 5 * 60), pending())
        .await
        .unwrap();
    assert_eq!((wake, start.elapsed().as_secs()), (Wake::Quiet, 9 * 60));
    drop(connection);
    // A link that is dead.
    let parked = looked("IDLE", vec![answer("IDLE", "+ idling\r\n")])
        .await
        .park()
        .await
        .unwrap();
    let start = Instant::now();
    let error = parked
        .wait(patience(15 * 60, 5 * 60), pending())
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::Timeout);
    assert_eq!(
        start.elapsed(),
        Duration::from_secs(5 * 60) + settings().timeouts.done
    );
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_wait_loses_nothing() {
    // News in the middle of a line when the caller interrupts, the rest with the end of IDLE, more behind it.
    let steps = vec![
        answer("IDLE", "+ idling\r\n* 2 EX"),
        Step::Expect("DONE"),
        say("ISTS\r\n"),
        say("{tag} OK done\r\n* 7 EXISTS\r\n"),
    ];
    let parked = looked("IDLE", steps).await.park().await.unwrap();
    let (connection, wake) = parked.wait(patience(600, 600), ready(())).await.unwrap();
    assert_eq!(wake, Wake::Interrupted);
    assert_eq!(
        (connection.is_dirty(), connection.exists()),
        (true, Some(2))
    );
    let parked = connection.park().await.unwrap();
    assert!(parked.is_dirty());
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_the_end_of_idle_is_read_by_the_next_command() {
    let mut steps = idle(vec![], "* 7 EXISTS\r\n* OK ");
    steps.push(answer("NOOP", "x\r\n{tag} OK\r\n"));
    let parked = looked("IDLE", steps).await.park().await.unwrap();
    let (mut connection, wake) = parked.wait(patience(60, 600), pending()).await.unwrap();
    assert_eq!(wake, Wake::Expired);
    assert!(connection.noop().await.unwrap());
    assert_eq!(connection.exists(), Some(7));
}

#[tokio::test(start_paused = true)]
async fn servers_that_end_or_refuse_idle_are_polled() {
    let parked = looked(
        "IDLE",
        vec![answer(
            "IDLE",
            "+ idling\r\n* OK x\r\n{tag} OK had enough\r\n",
        )],
    )
    .await
    .park()
    .await
    .unwrap();
    assert_eq!(
        parked.wait(patience(600, 600), pending()).await.unwrap().1,
        Wake::Ended
    );
    for refusal in ["{tag} NO not now\r\n", "{tag} BAD what\r\n"] {
        let steps = vec![
            answer("IDLE", refusal),
            answer("NOOP", "* 2 EXISTS\r\n{tag} OK\r\n"),
        ];
        let parked = looked("IDLE", steps).await.park().await.unwrap();
        assert!(!parked.is_idling());
        let (mut connection, wake) = parked.wait(patience(60, 600), pending()).await.unwrap();
        assert_eq!(wake, Wake::Expired);
        assert!(connection.noop().await.unwrap());
    }
    let steps = vec![answer("IDLE", "* 2 EXISTS\r\n{tag} NO not now\r\n")];
    let parked = looked("IDLE", steps).await.park().await.unwrap();
    assert_eq!(
        parked.wait(patience(60, 600), pending()).await.unwrap().1,
        Wake::Changed
    );
}

#[tokio::test(start_paused = true)]
async fn without_idle_a_half_line_is_kept_for_the_next_command() {
    let steps = vec![say("* 2 EX"), answer("NOOP", "ISTS\r\n{tag} OK\r\n")];
    let parked = looked("", steps).await.park().await.unwrap();
    assert!(!parked.is_idling());
    let (mut connection, wake) = parked.wait(patience(60, 600), pending()).await.unwrap();
    assert_eq!((wake, connection.is_dirty()), (Wake::Expired, false));
    assert!(connection.noop().await.unwrap());
    assert_eq!(connection.exists(), Some(2));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_connection_is_told_with_its_reason() {
    for (last, class) in [
        ("* BYE Server shutting down.\r\n", Class::Disconnected),
        (
            "* BYE [UNAVAILABLE] too many connections\r\n",
            Class::Throttled,
        ),
    ] {
        let later = Step::Pause(Duration::from_secs(1));
        let parked = looked(
            "IDLE",
            vec![answer("IDLE", "+ idling\r\n"), later, say(last)],
        )
        .await
        .park()
        .await
        .unwrap();
        assert_eq!(
            parked
                .wait(patience(600, 600), pending())
                .await
                .unwrap_err()
                .class(),
            class
        );
        let mut connection = looked("", vec![answer("NOOP", last)]).await;
        assert_eq!(connection.noop().await.unwrap_err().class(), class);
        assert_eq!(
            connection.noop().await.unwrap_err().class(),
            Class::Disconnected
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_answering_is_left_in_time() {
    let mut connection = looked("IDLE", vec![]).await;
    let start = Instant::now();
    assert_eq!(connection.noop().await.unwrap_err().class(), Class::Timeout);
    assert_eq!(start.elapsed(), settings().timeouts.command);
    connection.logout().await;
    assert!(start.elapsed() <= settings().timeouts.command + settings().timeouts.logout);

    let connection = looked("IDLE", vec![]).await;
    let start = Instant::now();
    assert_eq!(connection.park().await.unwrap_err().class(), Class::Timeout);
    assert_eq!(start.elapsed(), settings().timeouts.command);

    // One that sends a byte now and then is none the better.
    let mut steps = vec![answer("NOOP", "")];
    steps.extend((0..100).flat_map(|_| [Step::Pause(Duration::from_secs(10)), say("*")]));
    let mut connection = looked("", steps).await;
    let start = Instant::now();
    assert_eq!(connection.noop().await.unwrap_err().class(), Class::Timeout);
    assert_eq!(start.elapsed(), settings().timeouts.command);

    let connection = looked("", vec![]).await;
    let start = Instant::now();
    connection.logout().await;
    assert_eq!(start.elapsed(), settings().timeouts.logout);
    let parked = looked("IDLE", vec![answer("IDLE", "+ x\r\n")])
        .await
        .park()
        .await
        .unwrap();
    let start = Instant::now();
    parked.logout().await;
    assert_eq!(start.elapsed(), settings().timeouts.logout);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_spoils_a_page_costs_only_itself() {
    let good =
        |uid: u32| format!("* {uid} FETCH (UID {uid} FLAGS () RFC822.SIZE 5 INTERNALDATE NIL)\r\n");
    // Message 2 makes the server refuse everything; message 3 is gone.
    let mut connection = connected(
        "",
        vec![
            examine(3, 4),
            answer(
                "FETCH 1:3 (UID)",
                "* 1 FETCH (UID 1)\r\n* 2 FETCH (UID 2)\r\n* 3 FETCH (UID 3)\r\n{tag} OK\r\n",
            ),
            answer(
                "UID FETCH 1:3 (UID FLAGS",
                &format!("{}{{tag}} NO cannot read\r\n", good(1)),
            ),
            answer("UID FETCH 2 (UID FLAGS", "{tag} NO cannot read\r\n"),
            answer(
                "UID FETCH 2 (UID FLAGS INTERNALDATE RFC822.SIZE)",
                &format!("{}{{tag}} OK\r\n", good(2)),
            ),
            answer("UID FETCH 3 (UID FLAGS", "{tag} OK\r\n"),
            // A structure that the parser can't make sense of.
            answer(
                "UID FETCH 4 (UID FLAGS",
                "* 4 FETCH (UID 4 RFC822.SIZE 5 BODYSTRUCTURE (NIL ((()))))\r\n{tag} OK\r\n",
            ),
            answer(
                "UID FETCH 4 (UID FLAGS",
                &format!("{}{{tag}} OK\r\n", good(4)),
            ),
        ],
    )
    .await;
    let page = connection
        .list("INBOX", ListQuery::Newest(3))
        .await
        .unwrap();
    assert_eq!(
        page.messages
            .iter()
            .map(|message| message.uid)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(connection.fetch(&[4]).await.unwrap()[0].size, Some(5));
}
