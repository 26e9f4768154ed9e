//! The synthetic mail server, driven by the real adapter: what Mailbell asks of a server, it answers as one does.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{future::pending, time::Duration};

use mailbell_imap::{
    Class, Connection, Endpoint, Error, ListQuery, Login, Patience, Settings, TlsMode, TlsSettings,
    Wake,
};
use mailbell_test_servers::{
    Proxy, SyntheticImap, SyntheticOptions,
    proxy::Mode,
    synthetic::{Greeting, LoginAnswer},
};
use mailbell_tests::{load, process::until};

const SOON: Duration = Duration::from_secs(30);

async fn server(users: usize) -> SyntheticImap {
    SyntheticImap::start(SyntheticOptions {
        users,
        ..SyntheticOptions::default()
    })
    .await
    .unwrap()
}

async fn open_with(port: u16, user: usize, password: &str) -> Result<Connection, Error> {
    open_at("127.0.0.1", port, user, password).await
}

async fn open_at(host: &str, port: u16, user: usize, password: &str) -> Result<Connection, Error> {
    let mut settings = Settings::new(TlsSettings::system(None).unwrap());
    settings.allow_plaintext = true;
    let endpoint = Endpoint {
        host: host.to_owned(),
        port,
        tls: TlsMode::Plain,
    };
    let login = Login {
        user: SyntheticImap::user(user),
        secret: password.as_bytes().to_vec().into(),
    };
    Connection::open(&endpoint, &login, &settings).await
}

async fn open(server: &SyntheticImap, user: usize) -> Result<Connection, Error> {
    open_with(server.port(), user, server.password()).await
}

fn patience() -> Patience {
    let soon = tokio::time::Instant::now() + SOON;
    Patience {
        until: soon,
        quiet: SOON,
    }
}

#[tokio::test]
async fn from_login_to_an_arrival() {
    let server = server(2).await;
    let first = server.deliver(1, load::message(1)).unwrap();
    let mut connection = open(&server, 1).await.unwrap();
    let look = connection.look("INBOX", 1, 10, false).await.unwrap();
    assert_eq!(look.uid_validity, server.generation());
    assert_eq!((look.uids, look.exists), (vec![first], 1));
    assert_eq!((look.uid_next, look.uid_next_exact), (first + 1, true));
    connection.noop().await.unwrap();

    let parked = connection.park().await.unwrap();
    assert!(parked.is_idling());
    let uid = server.deliver(1, load::message(2)).unwrap();
    let (mut connection, wake) = parked.wait(patience(), pending()).await.unwrap();
    assert_eq!(wake, Wake::Changed);
    let look = connection.look("INBOX", uid, 10, false).await.unwrap();
    assert_eq!(look.uids, [uid]);
    let messages = connection.fetch(&look.uids).await.unwrap();
    let message = messages.first().unwrap();
    assert_eq!(load::number_in(&message.subject), Some(2));
    assert!(message.preview.contains("number 2"), "{}", message.preview);
    assert!(message.internal_date.is_some());

    let page = connection
        .list("INBOX", ListQuery::Newest(1))
        .await
        .unwrap();
    assert_eq!((page.messages.len(), page.more), (1, true));
    let page = connection
        .list("INBOX", ListQuery::After(first, 9))
        .await
        .unwrap();
    assert_eq!((page.messages.len(), page.more), (1, false));
    assert_eq!(connection.existing(&[(1, first)]).await.unwrap(), [first]);
    let folders = connection.folders().await.unwrap();
    assert_eq!(folders.first().unwrap().name, "INBOX");
    let missing = connection.look("Other", 1, 10, false).await;
    assert!(matches!(missing, Err(Error::NoSuchFolder)));
    connection.logout().await;

    until(SOON, "the end", || async { server.connections() == 0 })
        .await
        .unwrap();
    let records = server.records();
    let session = records.first().unwrap();
    assert_eq!((session.user, session.idles.len()), (Some(1), 1));
    assert_eq!(&*session.holder, SyntheticImap::DIRECT);
    assert!(session.ended.is_some() && !session.idles_now());
}

#[tokio::test]
async fn many_at_once_and_what_came_while_nobody_waited() {
    let server = server(1).await;
    let mut connection = open(&server, 0).await.unwrap();
    connection.look("INBOX", 1, 10, false).await.unwrap();
    for number in 1..=300 {
        server.deliver(0, load::message(number)).unwrap();
    }
    // Told before the connection is asked to wait, or right behind.
    let parked = connection.park().await.unwrap();
    let (mut connection, wake) = parked.wait(patience(), pending()).await.unwrap();
    assert_eq!(wake, Wake::Changed);
    let look = connection.look("INBOX", 1, 64, false).await.unwrap();
    assert_eq!((look.total_new, look.uids.len()), (300, 64));
    let messages = connection.fetch(&look.uids).await.unwrap();
    let numbers: Vec<_> = messages
        .iter()
        .filter_map(|message| load::number_in(&message.subject))
        .collect();
    assert_eq!(numbers, (237..=300).collect::<Vec<u64>>());
}

#[tokio::test]
async fn logins_fail_as_a_test_wants() {
    let server = server(2).await;
    let wrong = open_with(server.port(), 0, "other").await;
    assert_eq!(wrong.unwrap_err().class(), Class::BadCredentials);
    let unknown = open(&server, 2).await;
    assert_eq!(unknown.unwrap_err().class(), Class::BadCredentials);
    for (answer, class) in [
        (LoginAnswer::WrongPassword, Class::BadCredentials),
        (LoginAnswer::TooManyConnections, Class::Throttled),
        (LoginAnswer::Unavailable, Class::Throttled),
        (LoginAnswer::HangUp, Class::Disconnected),
    ] {
        server.conduct(|conduct| {
            conduct.login_of.insert(1, answer);
        });
        assert_eq!(open(&server, 1).await.unwrap_err().class(), class);
        open(&server, 0).await.unwrap();
    }
    server.heal();
    server.conduct(|conduct| conduct.most_sessions = Some(1));
    let held = open(&server, 1).await.unwrap();
    assert_eq!(
        open(&server, 1).await.unwrap_err().class(),
        Class::Throttled
    );
    held.logout().await;
    until(SOON, "the end", || async { server.connections() == 0 })
        .await
        .unwrap();
    open(&server, 1).await.unwrap();
}

#[tokio::test]
async fn the_host_fails_for_all_and_comes_back() {
    let server = server(1).await;
    let mut connection = open(&server, 0).await.unwrap();
    connection.look("INBOX", 1, 10, false).await.unwrap();
    let parked = connection.park().await.unwrap();
    server.outage();
    parked.wait(patience(), pending()).await.unwrap_err();
    until(SOON, "the refusal", || async {
        let refused = open(&server, 0).await;
        matches!(refused, Err(error) if error.class() == Class::Refused)
    })
    .await
    .unwrap();
    for greeting in [Greeting::Unavailable, Greeting::TooManyConnections] {
        server.heal();
        server.conduct(|conduct| conduct.greeting = greeting);
        until(SOON, "the goodbye", || async {
            let refused = open(&server, 0).await;
            matches!(refused, Err(error) if error.class() == Class::Throttled)
        })
        .await
        .unwrap();
    }
    server.heal();
    open(&server, 0).await.unwrap();
}

#[tokio::test]
async fn each_holder_has_a_way_of_its_own_that_can_be_cut() {
    let server = server(1).await;
    let way = server.listen("watcher-1").await.unwrap();
    let proxy = Proxy::start(way).await.unwrap();
    let (host, port) = (proxy.address().ip().to_string(), proxy.address().port());
    let mut connection = open_at(&host, port, 0, server.password()).await.unwrap();
    connection.look("INBOX", 1, 10, false).await.unwrap();
    let parked = connection.park().await.unwrap();
    assert_eq!(server.watched(), 1);
    let direct = open(&server, 0).await.unwrap();
    proxy.set(Mode::Cut);
    parked.wait(patience(), pending()).await.unwrap_err();
    until(SOON, "the end", || async { server.connections() == 1 })
        .await
        .unwrap();
    let records = server.records();
    let ended: Vec<_> = records
        .iter()
        .filter(|session| session.ended.is_some())
        .map(|session| &*session.holder)
        .collect();
    assert_eq!((ended, server.watched()), (vec!["watcher-1"], 0));
    let all = server.cut(|session| &*session.holder == SyntheticImap::DIRECT);
    assert_eq!(all, 1);
    drop(direct);
}
