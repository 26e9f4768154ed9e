//! The load generator and the reader of the mailbox agree, on a real server.

use mailbell_test_servers::{Dovecot, DovecotOptions};
use mailbell_tests::{auditor::Mail, leaks, load, mailbox};

#[tokio::test]
async fn what_was_delivered_is_what_lies_there() {
    let user = format!("{}@example.org", leaks::USER);
    let dovecot = Dovecot::start(DovecotOptions {
        users: vec![(user.clone(), leaks::PASSWORD.to_owned())],
        ..DovecotOptions::default()
    })
    .await
    .unwrap();
    load::deliver(&dovecot, &user, 100..105).await.unwrap();
    dovecot
        .append(&user, "INBOX", &load::sized_message(7, 100_000))
        .await
        .unwrap();
    let truth = mailbox::read(&dovecot, &user, "INBOX").await.unwrap();
    assert!(truth.generation > 0);
    let expected: Vec<Mail> = [100, 101, 102, 103, 104, 7]
        .into_iter()
        .zip(1..)
        .map(|(number, uid)| Mail { uid, number })
        .collect();
    assert_eq!(truth.mail, expected);
}
