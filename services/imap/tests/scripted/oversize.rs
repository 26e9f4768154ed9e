//! Messages whose answers are too large: each costs itself at most, and nobody's time without end.

use std::time::Duration;

use crate::script::{Step, answer, connected, examine, served, settings};
use mailbell_imap::{Class, Error, GuardError, ListQuery};
use tokio::time::Instant;

const PLAIN: &str = "(\"text\" \"plain\" NIL NIL NIL \"7bit\" 5 1)";

/// What a server says of one message.
fn items(uid: u32, structure: &str) -> String {
    format!(
        "* {uid} FETCH (UID {uid} FLAGS () RFC822.SIZE 9 {structure}BODY[HEADER.FIELDS (SUBJECT)]<0> {{15}}\r\nSubject: no {uid}\r\n)\r\n"
    )
}

fn structure(parts: usize) -> String {
    format!("BODYSTRUCTURE ({} \"mixed\") ", PLAIN.repeat(parts))
}

fn text(uid: u32, text: &str) -> String {
    format!(
        "* {uid} FETCH (UID {uid} BODY[1]<0> {{{}}}\r\n{text})\r\n",
        text.len()
    )
}

#[tokio::test(start_paused = true)]
async fn a_message_of_many_parts_costs_its_preview_only() {
    for parts in [2000, 100_000] {
        let page = [
            items(1, &structure(1)),
            items(2, &structure(parts)),
            items(3, &structure(1)),
        ]
        .concat();
        let texts = text(1, "one") + &text(3, "three");
        let mut connection = connected(
            "",
            vec![
                answer("UID FETCH 1:3 ", &(page + "{tag} OK\r\n")),
                answer("UID FETCH 2 ", &(items(2, "") + "{tag} OK\r\n")),
                answer("UID FETCH 1,3 ", &(texts + "{tag} OK\r\n")),
                answer("NOOP", "{tag} OK\r\n"),
            ],
        )
        .await;
        let messages = connection.fetch(&[1, 2, 3]).await.unwrap();
        let told = messages
            .iter()
            .map(|message| (message.subject.as_str(), message.preview.as_str()))
            .collect::<Vec<_>>();
        assert_eq!(told, [("no 1", "one"), ("no 2", ""), ("no 3", "three")]);
        assert!(!connection.noop().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_sends_whole_texts_costs_previews_only() {
    // What looks like answers is mail.
    let whole = "M1 OK\r\n* BYE\r\n* 9 EXISTS\r\n".repeat(100_000);
    let page = items(1, &structure(1)) + &items(2, &structure(1));
    let texts = text(1, &whole) + &text(2, "two");
    let mut connection = connected(
        "",
        vec![
            answer("UID FETCH 1:2 ", &(page + "{tag} OK\r\n")),
            answer("UID FETCH 1:2 ", &(texts + "{tag} OK\r\n")),
            answer("NOOP", "{tag} OK\r\n"),
        ],
    )
    .await;
    let messages = connection.fetch(&[1, 2]).await.unwrap();
    let told = messages
        .iter()
        .map(|message| (message.subject.as_str(), message.preview.as_str()))
        .collect::<Vec<_>>();
    assert_eq!(told, [("no 1", ""), ("no 2", "two")]);
    assert!(!connection.noop().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_header_beyond_its_part_leaves_the_least() {
    let large = |structure: &str| {
        format!(
            "* 1 FETCH (UID 1 {structure}BODY[HEADER.FIELDS (SUBJECT)]<0> {{200000}}\r\n{})\r\n{{tag}} OK\r\n",
            "x".repeat(200_000)
        )
    };
    let mut connection = connected(
        "",
        vec![
            answer("BODYSTRUCTURE", &large(&structure(1))),
            answer("HEADER.FIELDS", &large("")),
            answer(
                "RFC822.SIZE)",
                "* 1 FETCH (UID 1 RFC822.SIZE 7)\r\n{tag} OK\r\n",
            ),
        ],
    )
    .await;
    let message = connection.fetch(&[1]).await.unwrap().remove(0);
    assert_eq!((message.uid, message.size), (1, Some(7)));
}

#[tokio::test(start_paused = true)]
async fn a_flood_ends_the_connection_all_the_same() {
    let literal = "x".repeat(200_000);
    let (few, many) = (100_000, 17 << 20);
    let thousand = || "x".repeat(1000);
    for (start, flood, expected, most) in [
        // One response without end; one after the other, up to the literal that isn't begun any more.
        (
            "* 1 FETCH (UID 1 BODYSTRUCTURE (",
            PLAIN.to_owned(),
            GuardError::Answer,
            many,
        ),
        (
            "",
            format!("* 1 FETCH (UID 1 BODY[1] {{200000}}\r\n{literal})\r\n"),
            GuardError::Literal,
            many,
        ),
        // What is announced to be beyond all bounds isn't waited for.
        (
            "* 1 FETCH (UID 1 BODY[1] {4000000000}\r\n",
            thousand(),
            GuardError::Literal,
            few,
        ),
        (
            "* 1 FETCH (UID 1 BODY[1] {99999999999}\r\n",
            thousand(),
            GuardError::Literal,
            few,
        ),
        // Not about a message.
        ("* LIST () \"/\" ", thousand(), GuardError::Line, few),
    ] {
        let steps = vec![answer("UID FETCH 1 ", start), Step::Flood(flood)];
        let (mut connection, server) = served("", steps).await;
        let error = connection.fetch(&[1]).await.unwrap_err();
        assert!(
            matches!(error, Error::LimitExceeded(limit) if limit == expected),
            "{start:?}: {error:?}"
        );
        drop(connection);
        let taken = server.await.unwrap();
        assert!(taken < most, "{start:?}: {taken}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_trickle_of_what_is_discarded_ends_in_time() {
    let mut steps = vec![answer(
        "UID FETCH",
        "* 1 FETCH (UID 1 BODY[1] {9000000}\r\n",
    )];
    steps.extend((0..100).flat_map(|_| {
        [
            Step::Pause(Duration::from_secs(10)),
            Step::Say("x".repeat(1000)),
        ]
    }));
    let mut connection = connected("", steps).await;
    let start = Instant::now();
    let error = connection.fetch(&[1]).await.unwrap_err();
    assert_eq!(error.class(), Class::Timeout);
    assert_eq!(start.elapsed(), settings().timeouts.command);
}

#[tokio::test(start_paused = true)]
async fn many_slow_commands_end_in_time_together() {
    let slow = |answer: Step| [Step::Pause(Duration::from_secs(50)), answer];
    let no = || answer("FETCH", "{tag} NO later\r\n");
    let newest = "* 999 FETCH (UID 5999)\r\n* 1000 FETCH (UID 6000)\r\n{tag} OK\r\n";
    let searching = || {
        let mut steps = vec![examine(1000, 6001), answer("FETCH 999:1000", newest)];
        steps.extend((0..20).flat_map(|_| slow(no())));
        steps
    };
    let limit = settings().timeouts.request;

    let mut connection = connected("", searching()).await;
    let start = Instant::now();
    let error = connection.look("INBOX", 5000, 1, false).await.unwrap_err();
    assert!(matches!(error, Error::Timeout("look")), "{error:?}");
    assert_eq!(start.elapsed(), limit);
    assert_eq!(
        connection.noop().await.unwrap_err().class(),
        Class::Disconnected
    );

    let steps = (0..20).flat_map(|_| slow(no())).collect();
    let mut connection = connected("", steps).await;
    let start = Instant::now();
    let error = connection.fetch(&[1, 2, 3, 4, 5]).await.unwrap_err();
    assert!(matches!(error, Error::Timeout("fetch")), "{error:?}");
    assert_eq!(start.elapsed(), limit);

    let mut steps = searching();
    steps.remove(1);
    let mut connection = connected("", steps).await;
    let start = Instant::now();
    let error = connection
        .list("INBOX", ListQuery::Before(5000, 10))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Timeout("list")), "{error:?}");
    assert_eq!(start.elapsed(), limit);
}
