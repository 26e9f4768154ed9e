//! What is known of installations, and what comes of it.

use kube::runtime::{reflector::store, watcher::Event};
use serde_json::json;
use tokio::time::{advance, pause};

use super::*;
use crate::sizing::WINDOW;

const LOOK: Duration = Duration::from_secs(30);

fn mailbell(uid: &str) -> Mailbell {
    let object = json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "Mailbell",
        "metadata": { "name": "main", "namespace": "mail", "uid": uid },
        "spec": {
            "watchers": { "scale": { "min": 1, "max": 9 }, "mailboxesPerPod": 100 },
            "gateways": { "tls": { "insecurePlaintext": true } },
            "admin": { "tls": { "insecurePlaintext": true } },
            "nats": { "external": { "urls": ["tls://a"], "usersSecret": "users" } },
        },
    });
    serde_json::from_value(object).unwrap()
}

fn shards(registered: u64) -> Result<Shards, String> {
    Ok(Shards {
        mailboxes: Mailboxes {
            registered,
            ..Mailboxes::default()
        },
        ..Shards::default()
    })
}

fn gateways() -> Result<Gateways, String> {
    Ok(Gateways::default())
}

fn pods(there: i32, settled: bool) -> Pods {
    Pods {
        there,
        ready: there,
        settled,
    }
}

/// Looks for so long, and answers how many watchers there are to be then.
async fn after(loads: &Loads, shards: &Result<Shards, String>, time: Duration, there: Pods) -> i32 {
    let mailbell = mailbell("a");
    for _ in 0..time.as_secs() / LOOK.as_secs() {
        advance(LOOK).await;
        loads.note(&mailbell, shards.clone(), gateways());
    }
    loads.wanted(&mailbell, Sized::Watchers, there)
}

#[tokio::test]
async fn pods_go_one_by_one_and_none_while_another_is_on_its_way() {
    pause();
    let loads = Loads::new(WINDOW);
    assert_eq!(after(&loads, &shards(0), WINDOW, pods(5, true)).await, 5);
    assert_eq!(after(&loads, &shards(0), LOOK, pods(5, false)).await, 5);
    assert_eq!(after(&loads, &shards(0), LOOK, pods(5, true)).await, 4);
    // The next one is thought about anew.
    assert_eq!(after(&loads, &shards(0), LOOK, pods(4, true)).await, 4);
    assert_eq!(after(&loads, &shards(0), WINDOW, pods(4, true)).await, 3);
    let away = Err("away".to_owned());
    assert_eq!(after(&loads, &away, WINDOW * 3, pods(3, true)).await, 3);
    // More are wanted whatever is on its way.
    assert_eq!(after(&loads, &shards(650), LOOK, pods(3, false)).await, 7);
}

#[tokio::test]
async fn who_knows_nothing_for_a_while_says_so_until_it_knows_again() {
    pause();
    let (loads, mailbell) = (Loads::new(WINDOW), mailbell("a"));
    let away = Err("nobody answers".to_owned());
    after(&loads, &away, LOOK * 3, pods(3, true)).await;
    assert_eq!(loads.blind(&mailbell), None);
    loads.tell(&mailbell);
    // That nothing is known, which was said.
    loads.news().await;
    assert!(timeout(LOOK, loads.news()).await.is_err());
    after(&loads, &away, LOOK * 4, pods(3, true)).await;
    assert_eq!(loads.blind(&mailbell).as_deref(), Some("nobody answers"));
    // It is told at once.
    assert!(timeout(LOOK, loads.news()).await.is_ok());
    after(&loads, &shards(7), LOOK, pods(3, true)).await;
    assert_eq!(loads.blind(&mailbell), None);
    let seen = loads.tell(&mailbell).unwrap();
    assert_eq!(seen.counts.unwrap().mailboxes, Some(7));
}

/// Another one of the same name has nothing of the one before.
#[tokio::test]
async fn what_was_seen_is_of_the_object_itself() {
    pause();
    let loads = Loads::new(WINDOW);
    after(&loads, &shards(7), LOOK, pods(3, true)).await;
    assert!(loads.tell(&mailbell("a")).is_some());
    loads.is_said(&mailbell("a"), MailbellStatus::default());
    assert_eq!(loads.tell(&mailbell("b")), None);
    assert_eq!(loads.status(&mailbell("b")), None);
}

/// What is seen of one that was paused, or replaced, while it was looked at holds no longer.
#[test]
fn a_look_at_one_that_runs_no_longer_is_for_nothing() {
    let (store, mut writer) = store();
    let seen = mailbell("a");
    assert!(!runs(&store, &seen));
    let mut now = seen.clone();
    writer.apply_watcher_event(&Event::Apply(now.clone()));
    assert!(runs(&store, &seen));
    now.spec.paused = true;
    writer.apply_watcher_event(&Event::Apply(now));
    assert!(!runs(&store, &seen));
    writer.apply_watcher_event(&Event::Apply(mailbell("b")));
    assert!(!runs(&store, &seen));
}
