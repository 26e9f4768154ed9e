//! How much of messages leaves the mailbox: what the mail server was asked for, what is answered, and what lies in NATS.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use mailbell_core::event::{Event, Fact};
use mailbell_proto::{bus::v1::ListPage, push::v1::ContentLevel};
use mailbell_test_servers::DovecotOptions;
use prost::Message as _;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::world::{LIMIT, World, told::arrivals};

/// Dovecot writes down what sessions say and hear after their login.
struct Asked(TempDir);

impl Asked {
    fn new() -> Self {
        let directory = TempDir::with_prefix("mailbell-asked-").unwrap();
        // Of the user whom Dovecot gives mail to, whoever that is.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self(directory)
    }

    fn options(&self) -> DovecotOptions {
        let directory = self.0.path().display();
        DovecotOptions {
            config: format!("protocol imap {{\n  rawlog_dir = {directory}\n}}\n"),
            ..DovecotOptions::default()
        }
    }

    /// Every FETCH of a message's items so far.
    fn fetches(&self) -> Vec<String> {
        let mut fetches = Vec::new();
        for file in files(self.0.path()) {
            if file.extension().is_some_and(|end| end == "in") {
                let said = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
                let asked = said.lines().filter(|line| line.contains(" FETCH "));
                fetches.extend(asked.map(str::to_owned));
            }
        }
        fetches
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

/// Whether these words lie anywhere in what NATS stores.
fn is_stored(world: &World, words: &str) -> bool {
    let holds = |file: PathBuf| {
        // It may be gone again.
        let bytes = fs::read(file).unwrap_or_default();
        bytes
            .windows(words.len())
            .any(|part| part == words.as_bytes())
    };
    let store = world.nats.directory().join("store");
    files(&store).into_iter().any(holds)
}

/// A message with the same words in its sender, its subject and its text.
fn marked(words: &str, id: &str) -> Vec<u8> {
    format!(
        "From: {words} <{words}@example.org>\r\nTo: {words}@example.net\r\nSubject: {words}\r\n\
         Message-ID: <{id}@example.org>\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nDear {words}\r\n\
         --b\r\nContent-Type: application/pdf\r\nContent-Disposition: attachment; filename=\"{words}.pdf\"\r\n\r\nx\r\n--b--\r\n"
    )
    .into_bytes()
}

fn told(events: &[Event]) -> Vec<&Event> {
    let arrived = |event: &&Event| matches!(event.fact, Fact::Arrived { .. });
    events.iter().filter(arrived).collect()
}

const PAGE: ListPage = ListPage {
    folder: 1,
    first_uid: 0,
    last_uid: 0,
    limit: 10,
    newest: true,
    generation: 0,
};

#[tokio::test]
async fn with_headers_no_text_is_fetched_stored_or_listed() {
    let asked = Asked::new();
    let mut world = World::without_watcher(asked.options()).await;
    let most =
        |options: &mut mailbell_watcher::Options| options.most_content = ContentLevel::Headers;
    world.start_with(most).await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let delivered = marked("quinces", "1");
    world
        .dovecot
        .deliver_lmtp("alice", &delivered)
        .await
        .unwrap();
    let events = world
        .until_events(&account, |events| !told(events).is_empty())
        .await;
    let message = &arrivals(&events)[0];
    assert_eq!(
        (message.subject.as_str(), message.preview.as_str()),
        ("quinces", "")
    );
    assert!(message.has_attachments && told(&events)[0].alert);
    assert_eq!(message.from[0].address, "quinces@example.org");

    let page = world.list(&account, PAGE).await.unwrap();
    assert_eq!(page.folder_name, "INBOX");
    let listed = &page.messages[0];
    assert_eq!(
        (listed.subject.as_str(), listed.preview.as_str()),
        ("quinces", "")
    );
    assert_eq!(listed.content_id, message.content_id);
    let fetches = asked.fetches();
    assert!(
        fetches.iter().any(|asked| asked.contains("SUBJECT")),
        "{fetches:?}"
    );
    assert!(
        !fetches.iter().any(|asked| asked.contains("BODY.PEEK[1")),
        "{fetches:?}"
    );
    assert!(!is_stored(&world, "Dear quinces"));
}

#[tokio::test]
async fn with_key_nothing_of_a_message_leaves_its_mailbox() {
    let asked = Asked::new();
    let mut world = World::without_watcher(asked.options()).await;
    let most = |options: &mut mailbell_watcher::Options| options.most_content = ContentLevel::Key;
    world.start_with(most).await;
    let mut raw = world.dovecot.imap("alice").await.unwrap();
    raw.command("CREATE Work").await.unwrap();
    let account = world.add(&["INBOX", "Work"]).await;
    world.until_watching(&account).await;
    let delivered = marked("quinces", "1");
    world
        .dovecot
        .deliver_lmtp("alice", &delivered)
        .await
        .unwrap();
    world
        .until_events(&account, |events| told(events).len() == 1)
        .await;
    // A copy is known all the same, and another message is none.
    raw.command("SELECT INBOX").await.unwrap();
    raw.command("COPY 1 Work").await.unwrap();
    world
        .until_events(&account, |events| told(events).len() == 2)
        .await;
    let other = marked("quinces", "2");
    world.dovecot.append("alice", "Work", &other).await.unwrap();
    let events = world
        .until_events(&account, |events| told(events).len() == 3)
        .await;
    let told = told(&events);
    assert!(told.iter().all(|event| event.content.is_empty()));
    let alerts: Vec<bool> = told.iter().map(|event| event.alert).collect();
    assert_eq!(alerts, [true, false, true]);

    let page = world.list(&account, PAGE).await.unwrap();
    let only_uid = mailbell_proto::push::v1::Message {
        uid: 1,
        ..Default::default()
    };
    assert_eq!(
        (page.messages, page.folder_name.as_str()),
        (vec![only_uid], "")
    );
    let fetches = asked.fetches();
    assert!(
        fetches.iter().any(|asked| asked.contains("(MESSAGE-ID)")),
        "{fetches:?}"
    );
    for item in [
        "SUBJECT",
        "FROM",
        "BODYSTRUCTURE",
        "BODY.PEEK[1",
        "ENVELOPE",
    ] {
        assert!(
            !fetches.iter().any(|asked| asked.contains(item)),
            "{fetches:?}"
        );
    }

    // What is stored could be found: by another watcher, which may tell it.
    world.drain(Duration::from_secs(20)).await.unwrap();
    world.start().await;
    world.until_watching(&account).await;
    let later = marked("medlars", "3");
    world.dovecot.deliver_lmtp("alice", &later).await.unwrap();
    let begun = Instant::now();
    while !is_stored(&world, "Dear medlars") {
        assert!(begun.elapsed() < LIMIT, "{}", world.metrics());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(!is_stored(&world, "quinces"));
}

#[tokio::test]
async fn an_accounts_policy_counts_from_the_next_message_on_without_a_login() {
    let asked = Asked::new();
    let mut world = World::without_watcher(asked.options()).await;
    let most =
        |options: &mut mailbell_watcher::Options| options.most_content = ContentLevel::Headers;
    world.start_with(most).await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let logins = world.metric("mailbell_watcher_logins_total{outcome=\"ok\"}");
    let mut count = 0;
    // The lower one holds: PREVIEW does not lift what the installation says.
    for (policy, subject) in [
        (ContentLevel::Key, None),
        (ContentLevel::Preview, Some("quinces")),
        (ContentLevel::Key, None),
    ] {
        let mut record = world.record(&["INBOX"]);
        record.content = policy.into();
        world.write(&account, record, None).await;
        // The watcher hears of it in its own time: what a listing shows says that it has.
        let begun = Instant::now();
        loop {
            let page = world.list(&account, PAGE).await.unwrap();
            if page.folder_name.is_empty() == subject.is_none() {
                break;
            }
            assert!(begun.elapsed() < LIMIT, "{}", world.metrics());
            sleep(Duration::from_millis(50)).await;
        }
        count += 1;
        let delivered = marked("quinces", &count.to_string());
        world
            .dovecot
            .deliver_lmtp("alice", &delivered)
            .await
            .unwrap();
        let events = world
            .until_events(&account, |events| told(events).len() == count)
            .await;
        let told = told(&events);
        let last = told.last().unwrap();
        let message = mailbell_proto::push::v1::Message::decode(last.content.clone()).unwrap();
        assert_eq!(last.content.is_empty(), subject.is_none());
        assert_eq!(message.subject, subject.unwrap_or_default());
        assert!(message.preview.is_empty());
    }
    assert_eq!(
        world.metric("mailbell_watcher_logins_total{outcome=\"ok\"}"),
        logins
    );
    assert!(
        !asked
            .fetches()
            .iter()
            .any(|asked| asked.contains("BODY.PEEK[1"))
    );
}
