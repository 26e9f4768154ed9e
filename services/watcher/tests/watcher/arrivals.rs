//! New mail ends up in the log.

use mailbell_core::{event::Fact, ids::INBOX};
use mailbell_proto::push::v1::Health;

use crate::world::{
    World, mail,
    told::{arrivals, assert_no_repeats, assert_numbered, assert_told},
};

#[tokio::test]
async fn delivered_and_appended_mail_is_told_with_what_it_says() {
    let world = World::new().await;
    // What was there before the account was added is no news.
    world
        .dovecot
        .deliver_lmtp("alice", &mail("old"))
        .await
        .unwrap();
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("one"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    world
        .dovecot
        .append("alice", "INBOX", &mail("two"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&account, 2).await, ["one", "two"]);

    let events = world.events(&account).await;
    let events: Vec<_> = events.into_iter().map(|(_, event)| event).collect();
    let message = &arrivals(&events)[0];
    assert_eq!(message.from[0].name, "Bob");
    assert_eq!(message.from[0].address, "bob@example.org");
    assert_eq!(message.preview, "Hello from one");
    assert!(message.size > 100 && message.internal_date_ms > 0 && message.content_id.len() == 16);
    let event = events
        .iter()
        .find(|event| matches!(event.fact, Fact::Arrived { uid: 2, .. }))
        .unwrap();
    assert!(event.alert && event.folder == INBOX && event.generation > 0);
    assert_eq!(event.folder_name, "INBOX");
    assert!(event.traceparent.starts_with("00-"));
    assert!(0 < event.detected_us && event.detected_us <= event.fetched_us);
    // Devices hear that it is watched.
    let watching = |event: &&mailbell_core::event::Event| {
        matches!(
            event.fact,
            Fact::AccountState {
                health: Health::Watching,
                ..
            }
        )
    };
    assert_eq!(events.iter().filter(watching).count(), 1);

    let status = world
        .until_status(&account, |status, _| status.last_arrival_ms > 0)
        .await;
    assert_eq!(status.state.unwrap().mode, "idle");
    for (name, value) in [
        ("watcher_milestones_total{milestone=\"detected\"}", 2.0),
        ("watcher_milestones_total{milestone=\"fetched\"}", 2.0),
        ("watcher_milestones_total{milestone=\"appended\"}", 2.0),
        ("watcher_hop_seconds_count{hop=\"fetched-appended\"}", 2.0),
        ("watcher_sessions{health=\"watching\"}", 1.0),
        ("watcher_logins_total{outcome=\"ok\"}", 2.0),
    ] {
        assert_eq!(
            world.metric(&format!("mailbell_{name}")),
            value,
            "{name}\n{}",
            world.metrics()
        );
    }
}

#[tokio::test]
async fn a_burst_comes_whole_and_in_order() {
    let world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let messages: Vec<_> = (0..500).map(|number| mail(&format!("n{number}"))).collect();
    world
        .dovecot
        .deliver_many("alice", messages.iter().map(Vec::as_slice))
        .await
        .unwrap();
    let events = world
        .until_events(&account, |events| arrivals(events).len() >= 500)
        .await;
    assert_numbered(&events, 500);
    assert_no_repeats(&world.events(&account).await);
}

#[tokio::test]
async fn other_folders_are_swept_and_those_people_do_not_read_are_silent() {
    let world = World::new().await;
    let account = world.add(&["Sent", "INBOX"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .append("alice", "Sent", &mail("sent"))
        .await
        .unwrap();
    world
        .dovecot
        .append("alice", "INBOX", &mail("received"))
        .await
        .unwrap();
    let events = world
        .until_events(&account, |events| arrivals(events).len() == 2)
        .await;
    let alerts = |folder: &str| {
        let mut of_folder = events.iter().filter(|event| {
            event.folder_name == folder && matches!(event.fact, Fact::Arrived { .. })
        });
        of_folder.next().unwrap().alert
    };
    assert!(alerts("INBOX") && !alerts("Sent"));
}

#[tokio::test]
async fn arrivals_while_nats_is_away_are_told_when_it_is_back() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("before"))
        .await
        .unwrap();
    world.until_arrived(&account, 1).await;
    world.nats.kill();
    for number in 0..20 {
        let message = mail(&format!("away{number}"));
        world.dovecot.deliver_lmtp("alice", &message).await.unwrap();
    }
    world.nats.restart().await.unwrap();
    world
        .dovecot
        .deliver_lmtp("alice", &mail("after"))
        .await
        .unwrap();
    let events = world
        .until_events(&account, |events| arrivals(events).len() >= 22)
        .await;
    // This one had its UID before the others came.
    assert_eq!(arrivals(&events)[0].subject, "before");
    let mut expected = vec!["before".to_owned(), "after".to_owned()];
    expected.extend((0..20).map(|number| format!("away{number}")));
    assert_told(&events, expected);
    assert_no_repeats(&world.events(&account).await);
}

#[tokio::test]
async fn sessions_outlive_an_outage_in_which_members_would_be_dead() {
    let mut world = World::new().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let logins = |world: &World| world.metric("mailbell_watcher_logins_total{outcome=\"ok\"}");
    let before = logins(&world);
    world.nats.kill();
    // Nothing can be asked meanwhile. Its record stands still from now on, and for so long that it would be a dead member's.
    tokio::time::sleep(world.timing.member_dead + world.timing.member_renew).await;
    world
        .dovecot
        .deliver_lmtp("alice", &mail("away"))
        .await
        .unwrap();
    world.nats.restart().await.unwrap();
    assert_eq!(world.until_arrived(&account, 1).await, ["away"]);
    world
        .dovecot
        .deliver_lmtp("alice", &mail("after"))
        .await
        .unwrap();
    assert_eq!(world.until_arrived(&account, 2).await, ["away", "after"]);
    assert_eq!(logins(&world), before, "the session stayed");
    let page = mailbell_proto::bus::v1::ListPage {
        folder: 1,
        ..Default::default()
    };
    assert_eq!(world.list(&account, page).await.unwrap().exists, 2);
    assert_no_repeats(&world.events(&account).await);
}
