//! Mail servers that go away, refuse, lack things, or change under a session.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

use mailbell_core::event::{Event, Fact};
use mailbell_proto::{
    bus::v1::AccountRecord,
    push::v1::{Health, ResyncReason},
};
use mailbell_test_servers::DovecotOptions;

use crate::world::{World, mail, told::assert_no_repeats};

#[tokio::test]
async fn a_restarted_mail_server_is_found_again() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world.dovecot.stop().await;
    let status = world
        .until_status(&account, |_, health| health == Health::Retrying)
        .await;
    let state = status.state.unwrap();
    assert!(
        ["disconnected", "refused", "throttled"].contains(&state.code.as_str()),
        "{state:?}"
    );
    // Devices are told of it, since it lasts.
    world
        .until_events(&account, |events| {
            events.iter().any(|event| {
                matches!(
                    event.fact,
                    Fact::AccountState {
                        health: Health::Retrying,
                        ..
                    }
                )
            })
        })
        .await;
    world.dovecot.restart().await.unwrap();
    world
        .dovecot
        .deliver_lmtp("alice", &mail("back"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&account, 1).await, ["back"]);
    world.until_watching(&account).await;
}

#[tokio::test]
async fn a_wrong_password_is_told_and_the_right_one_taken_at_once() {
    let world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let wrong = AccountRecord {
        credential_version: 2,
        ..world.record(&["INBOX"])
    };
    let sealed = world.sealed(&account, &wrong, "wrong");
    world.write(&account, wrong.clone(), Some(sealed)).await;
    let status = world
        .until_status(&account, |_, health| health == Health::ActionNeeded)
        .await;
    assert_eq!(status.state.unwrap().code, "bad-credentials");
    world
        .dovecot
        .deliver_lmtp("alice", &mail("meanwhile"))
        .await
        .unwrap();
    let right = AccountRecord {
        credential_version: 3,
        ..wrong
    };
    let sealed = world.sealed(&account, &right, "secret");
    world.write(&account, right, Some(sealed)).await;
    assert_eq!(world.until_arrived(&account, 1).await, ["meanwhile"]);
    // Devices hear of both.
    let told = |events: &[Event]| {
        let health = |event: &Event| match event.fact {
            Fact::AccountState { health, .. } => Some(health),
            _ => None,
        };
        events.iter().filter_map(health).collect::<Vec<_>>()
    };
    world
        .until_events(&account, |events| {
            told(events).ends_with(&[Health::ActionNeeded, Health::Watching])
        })
        .await;
}

#[tokio::test]
async fn a_password_sealed_for_another_host_is_not_used() {
    let world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let moved = AccountRecord {
        host: "127.0.0.1".to_owned(),
        ..world.record(&["INBOX"])
    };
    world.write(&account, moved, None).await;
    let status = world
        .until_status(&account, |_, health| health == Health::ActionNeeded)
        .await;
    assert_eq!(status.state.unwrap().code, "credential-mismatch");
}

#[tokio::test]
async fn without_idle_it_polls() {
    let world = World::with(DovecotOptions {
        capability: Some("IMAP4rev1 SASL-IR LITERAL+ UIDPLUS".to_owned()),
        ..DovecotOptions::default()
    })
    .await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("polled"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&account, 1).await, ["polled"]);
    let status = world
        .until_status(&account, |status, _| status.last_arrival_ms > 0)
        .await;
    assert_eq!(status.state.unwrap().mode, "poll");
}

#[tokio::test]
async fn a_folder_made_anew_is_one_resync() {
    let world = World::new().await;
    world
        .dovecot
        .imap("alice")
        .await
        .unwrap()
        .command("CREATE Work")
        .await
        .unwrap();
    world
        .dovecot
        .append("alice", "Work", &mail("early"))
        .await
        .unwrap();
    let account = world.add(&["INBOX", "Work"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .append("alice", "Work", &mail("first"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    let mut imap = world.dovecot.imap("alice").await.unwrap();
    imap.command("DELETE Work").await.unwrap();
    // Dovecot's UIDVALIDITY counts seconds: the same second would be the same generation.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    imap.command("CREATE Work").await.unwrap();
    world
        .until_events(&account, |events| {
            events.iter().any(|event| {
                matches!(
                    event.fact,
                    Fact::Resync {
                        reason: ResyncReason::Generation,
                        uid_next: 1,
                        ..
                    }
                )
            })
        })
        .await;
    world
        .dovecot
        .append("alice", "Work", &mail("second"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&account, 2).await, ["first", "second"]);
    let events = world.events(&account).await;
    let resyncs = events
        .iter()
        .filter(|(_, event)| matches!(event.fact, Fact::Resync { .. }));
    assert_eq!(resyncs.count(), 1);
    assert_no_repeats(&events);
}

#[tokio::test]
async fn folders_and_the_pause_switch_change_while_it_runs() {
    let world = World::new().await;
    world
        .dovecot
        .imap("alice")
        .await
        .unwrap()
        .command("CREATE Work")
        .await
        .unwrap();
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let record = world.record(&["INBOX", "Work"]);
    world.write(&account, record.clone(), None).await;
    // A folder that policy adds later begins at its UIDNEXT, and says so.
    world
        .until_events(&account, |events| {
            events.iter().any(|event| {
                event.folder_name == "Work" && matches!(event.fact, Fact::Resync { .. })
            })
        })
        .await;
    world
        .dovecot
        .append("alice", "Work", &mail("work"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    let paused = AccountRecord {
        paused: true,
        ..record.clone()
    };
    world.write(&account, paused, None).await;
    world
        .until_status(&account, |_, health| health == Health::Paused)
        .await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("paused"))
        .await
        .unwrap();
    world.write(&account, record, None).await;
    assert_eq!(world.until_arrived(&account, 2).await, ["work", "paused"]);
}

#[tokio::test]
async fn a_message_that_the_server_cannot_read_stops_no_other() {
    // Beside others, and alone, where nothing proves that the server is well.
    for (subjects, told) in [
        (
            &["before", "unreadable", "after"][..],
            &["before", "after", ""][..],
        ),
        (&["unreadable"], &[""]),
    ] {
        let world = World::new().await;
        let account = world.add(&["INBOX"]).await;
        world.until_watching(&account).await;
        let record = world.record(&["INBOX"]);
        let paused = AccountRecord {
            paused: true,
            ..record.clone()
        };
        world.write(&account, paused, None).await;
        world
            .until_status(&account, |_, health| health == Health::Paused)
            .await;
        let inbox = world.dovecot.directory().join("mail/alice/new");
        let stored = || {
            let files = std::fs::read_dir(&inbox).into_iter().flatten().flatten();
            files.map(|file| file.path()).collect::<Vec<_>>()
        };
        let mut before = Vec::new();
        for subject in subjects {
            let delivered = world.dovecot.deliver_lmtp("alice", &mail(subject)).await;
            delivered.unwrap();
            if *subject == "unreadable" {
                // Dovecot says BYE to whoever fetches what it may not open.
                let file = stored().into_iter().find(|file| !before.contains(file));
                let unreadable = Permissions::from_mode(0o000);
                std::fs::set_permissions(file.unwrap(), unreadable).unwrap();
            }
            before = stored();
        }
        world.write(&account, record, None).await;
        let found = world.until_arrived(&account, told.len()).await;
        assert_eq!(found, told);
    }
}
