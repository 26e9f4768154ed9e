//! The short way of a look: what was announced is read along with it, unless something leaves a doubt about what is new.

use std::time::Duration;

use mailbell_imap::Connection;

use crate::script::{Step, answer, looked};

/// What a server says of a message with a text of its own.
fn message(sequence: u32, uid: u32) -> String {
    format!(
        "* {sequence} FETCH (UID {uid} FLAGS () RFC822.SIZE 5 BODYSTRUCTURE (\"TEXT\" \"PLAIN\" (\"CHARSET\" \"utf-8\") NIL NIL \
         \"7BIT\" 5 1) BODY[1]<0> {{5}}\r\nhello BODY[HEADER.FIELDS (SUBJECT)]<0> {{15}}\r\nSubject: no {uid}\r\n)\r\n"
    )
}

/// A connection that has looked at one message, with UID 1, and was then told this.
async fn told(news: &str, mut steps: Vec<Step>) -> Connection {
    steps.insert(0, answer("NOOP", &format!("{news}{{tag}} OK\r\n")));
    let mut connection = looked("", steps).await;
    connection.noop().await.unwrap();
    connection
}

/// The long way, of two messages of which the second is new.
fn long_way(uid: u32) -> Step {
    answer(
        "FETCH 1:2 (UID)",
        &format!("* 1 FETCH (UID 1)\r\n* 2 FETCH (UID {uid})\r\n{{tag}} OK\r\n"),
    )
}

#[tokio::test(start_paused = true)]
async fn one_question_gives_a_new_message_whole() {
    let page = format!("{}{}{{tag}} OK\r\n", message(2, 2), message(3, 3));
    let mut connection = told(
        "* 3 EXISTS\r\n",
        vec![
            answer(" FETCH 2:3 (UID FLAGS", &page),
            // The text was in it too.
            answer("NOOP", "* 4 EXISTS\r\n{tag} OK\r\n"),
            answer(
                " FETCH 4 (UID FLAGS",
                &format!("{}{{tag}} OK\r\n", message(4, 4)),
            ),
        ],
    )
    .await;
    let look = connection.look("INBOX", 2, 10, false).await.unwrap();
    assert_eq!(
        (look.uids.as_slice(), look.uid_next, look.total_new),
        (&[2, 3][..], 4, 2)
    );
    assert!(look.complete && !connection.is_dirty());
    let messages = connection.fetch(&look.uids).await.unwrap();
    let texts = messages
        .iter()
        .map(|message| (message.uid, message.preview.as_str()));
    assert_eq!(texts.collect::<Vec<_>>(), [(2, "hello"), (3, "hello")]);
    // And so on.
    connection.noop().await.unwrap();
    let look = connection.look("INBOX", 4, 10, false).await.unwrap();
    assert_eq!((look.uids.as_slice(), look.uid_next), (&[4][..], 5));
}

#[tokio::test(start_paused = true)]
async fn a_doubt_about_what_is_new_takes_the_long_way() {
    for (why, news, first, second_uid) in [
        (
            "a gap in the UIDs",
            "* 2 EXISTS\r\n",
            Some(message(2, 4)),
            4,
        ),
        ("not there yet", "* 2 EXISTS\r\n", Some(String::new()), 2),
        (
            "one that can't be read",
            "* 2 EXISTS\r\n",
            Some("* 2 FETCH (UID 2 RFC822.SIZE 5 BODYSTRUCTURE (NIL ((()))))\r\n".to_owned()),
            2,
        ),
        (
            "an answer about another message",
            "* 2 EXISTS\r\n",
            Some(message(1, 2)),
            2,
        ),
        (
            "a message is gone, so that the numbers have moved",
            "* 3 EXISTS\r\n* 1 EXPUNGE\r\n",
            None,
            3,
        ),
        (
            "fewer without a word",
            "* 1 EXISTS\r\n* 0 EXISTS\r\n* 2 EXISTS\r\n",
            None,
            2,
        ),
    ] {
        let mut steps = Vec::new();
        if let Some(first) = first {
            steps.push(answer(
                " FETCH 2 (UID FLAGS",
                &format!("{first}{{tag}} OK\r\n"),
            ));
        }
        steps.push(long_way(second_uid));
        let mut connection = told(news, steps).await;
        let look = connection.look("INBOX", 2, 10, false).await.unwrap();
        assert_eq!(look.uids, [second_uid], "{why}");
        assert_eq!(look.uid_next, second_uid + 1, "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_begin_than_the_last_end_takes_the_long_way() {
    let mut connection = told("* 2 EXISTS\r\n", vec![long_way(2)]).await;
    let look = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!(look.uids, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_along_is_not_old() {
    let page = || format!("{}{{tag}} OK\r\n", message(2, 2));
    let mut connection = told(
        "* 2 EXISTS\r\n",
        vec![
            answer(" FETCH 2 (UID FLAGS", &page()),
            answer(
                "UID FETCH 2 (UID FLAGS",
                &page().replace("FLAGS ()", "FLAGS (\\Seen)"),
            ),
        ],
    )
    .await;
    let look = connection.look("INBOX", 2, 10, false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let messages = connection.fetch(&look.uids).await.unwrap();
    assert_eq!(messages.len(), 1);
    assert!(messages.iter().all(|message| message.flags == ["\\Seen"]));
}
