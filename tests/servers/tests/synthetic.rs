//! The synthetic mail server with more connections than any other test has.

use mailbell_test_servers::{RawImap, SyntheticImap, SyntheticOptions};

/// Descriptors: each connection has one at either end.
const USERS: usize = 2_000;

#[tokio::test]
async fn thousands_idle_and_each_hears_of_its_own_mail() {
    let server = SyntheticImap::start(SyntheticOptions {
        users: USERS,
        ..SyntheticOptions::default()
    })
    .await
    .unwrap();
    let mut clients = Vec::new();
    for n in 0..USERS {
        let name = SyntheticImap::user(n);
        let mut client = RawImap::login(server.port(), &name, server.password())
            .await
            .unwrap();
        client.command("EXAMINE INBOX").await.unwrap();
        client.begin("IDLE").await.unwrap();
        assert_eq!(client.read_response().await.unwrap(), b"+ idling\r\n");
        clients.push(client);
    }
    assert_eq!(server.watched(), USERS);
    for n in 0..USERS {
        server.deliver(n, *b"Subject: x\r\n\r\nx\r\n").unwrap();
    }
    for client in &mut clients {
        assert_eq!(client.read_response().await.unwrap(), b"* 1 EXISTS\r\n");
    }
}
