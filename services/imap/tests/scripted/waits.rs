//! Waiting, on servers that tell, don't tell, or stop answering.

use std::future::{pending, ready};
use std::time::Duration;

use mailbell_imap::{Capability, Class, Connection, Settings, Wake};
use tokio::time::Instant;

use crate::script::{Step, answer, login, looked, patience, plain, say, serve, settings};

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
async fn a_server_is_not_asked_to_idle_where_that_is_not_allowed() {
    let steps = vec![
        say("* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi\r\n"),
        answer(
            "AUTHENTICATE PLAIN ",
            "{tag} OK [CAPABILITY IMAP4rev1 IDLE] in\r\n",
        ),
        answer("NOOP", "{tag} OK\r\n"),
    ];
    let (stream, _) = serve(steps);
    let settings = Settings {
        idle: false,
        ..settings()
    };
    let (endpoint, login) = (plain(), login());
    let opened = Connection::over(stream, &endpoint, &login, &settings, Duration::ZERO);
    let connection = opened.await.unwrap();
    assert!(connection.capabilities().has(Capability::Idle) && !connection.idles());
    let parked = connection.park().await.unwrap();
    assert!(!parked.is_idling());
    let (mut connection, wake) = parked.wait(patience(60, 600), pending()).await.unwrap();
    assert_eq!(wake, Wake::Expired);
    assert!(!connection.noop().await.unwrap());
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
