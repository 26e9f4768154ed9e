//! The servers start, serve, survive a restart and end.

use mailbell_test_servers::{
    Dovecot, DovecotOptions, NatsCluster, NatsOptions, NatsServer, Storage,
};

#[tokio::test]
async fn dovecot_delivers_and_keeps_mail_over_a_restart() {
    for storage in [Storage::Maildir, Storage::Sdbox] {
        let mut dovecot = Dovecot::start(DovecotOptions {
            storage,
            ..Default::default()
        })
        .await
        .unwrap();
        dovecot
            .deliver_lmtp("alice", b"Subject: one\r\n\r\n.\r\nbody\r\n")
            .await
            .unwrap();
        dovecot
            .append("alice", "INBOX", b"Subject: two\r\n\r\nbody\r\n")
            .await
            .unwrap();
        dovecot.restart().await.unwrap();
        let answer = dovecot
            .imap("alice")
            .await
            .unwrap()
            .command("EXAMINE INBOX")
            .await
            .unwrap();
        assert!(answer.contains("* 2 EXISTS"), "{answer}");
        dovecot.kill();
        dovecot.restart().await.unwrap();
        dovecot.set_password("alice", "other!").await.unwrap();
        dovecot.set_password("bob", "third").await.unwrap();
        dovecot.imap("alice").await.unwrap();
        dovecot.imap("bob").await.unwrap();
        dovecot.set_password("bob", "THIRD").await.unwrap();
        dovecot.imap("bob").await.unwrap();
        dovecot.stop().await;
        dovecot.imap("alice").await.unwrap_err();
    }
}

#[tokio::test]
async fn nats_comes_back_on_its_port_after_a_kill() {
    let mut nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    let port = nats.port();
    assert!(nats.pid().is_some());
    nats.kill();
    tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap_err();
    nats.restart().await.unwrap();
    tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
}

#[tokio::test]
async fn three_nats_nodes_make_a_cluster() {
    let mut cluster = NatsCluster::start(3).await.unwrap();
    cluster.nodes[0].kill();
    cluster.nodes[0].restart().await.unwrap();
    assert_eq!(cluster.url().split(',').count(), 3);
}
