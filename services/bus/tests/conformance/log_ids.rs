//! The identity of a log's history.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use mailbell_bus::{AppendOutcome, Role};
use mailbell_core::{ids::Group, timing::Timing};
use serde_json::json;

use crate::world::{World, account, api, append, append_all, event, insist, soon};

#[tokio::test]
async fn one_id_a_log_for_every_process() {
    let world = World::start().await;
    let (one, two) = (
        world.logs(Role::Watcher).await,
        world.logs(Role::Gateway).await,
    );
    let ids: Vec<_> = Group::all().map(|group| one.ids().get(group)).collect();
    assert_eq!(
        ids,
        Group::all()
            .map(|group| two.ids().get(group))
            .collect::<Vec<_>>()
    );
    let mut different = ids.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), 16);
}

#[tokio::test]
async fn a_log_that_is_away_keeps_no_other_from_being_used() {
    let world = World::start().await;
    let (here, away) = (account(5, 0), account(6, 0));
    let delete = format!("STREAM.DELETE.MB_main_LOG_{}", away.group());
    api(&world.operator().await, &delete, json!({})).await;
    let watcher = world.bus(Role::Watcher).await;
    let refused = watcher.logs().await.unwrap_err();
    assert!(refused.is_retryable(), "{refused}");
    let logs = watcher.logs_that_answer().await.unwrap();
    append(&logs, &event(&here, 1)).await;
    assert!(logs.ids().check(away.group()).await.is_err());
    // It comes back, and has an identity from then on.
    world.bus(Role::Setup).await.setup().await.unwrap();
    let (log_id, tail) = logs.ids().check(away.group()).await.unwrap();
    assert_eq!((log_id, tail.last), (logs.ids().get(away.group()), 0));
    append(&logs, &event(&away, 1)).await;
}

#[tokio::test]
async fn a_log_made_anew_has_another_id_and_all_learn_of_it() {
    let world = World::start().await;
    let (watcher, gateway) = (
        world.logs(Role::Watcher).await,
        world.logs(Role::Gateway).await,
    );
    let account = account(5, 0);
    let group = account.group();
    append_all(&watcher, &account, 1..=3).await;
    let old = watcher.ids().get(group);
    api(
        &world.operator().await,
        &format!("STREAM.DELETE.MB_main_LOG_{group}"),
        json!({}),
    )
    .await;
    world.bus(Role::Setup).await.setup().await.unwrap();
    for logs in [&watcher, &gateway] {
        let mut ids = logs.ids().watch();
        soon(ids.wait_for(|ids| ids[group] != old)).await.unwrap();
    }
    let new = watcher.ids().get(group);
    assert_eq!(new, gateway.ids().get(group));
    // Other logs keep theirs.
    let other = Group::new(6).unwrap();
    let fresh = world.logs(Role::Watcher).await;
    assert_eq!(fresh.ids().get(other), watcher.ids().get(other));
    assert_eq!(fresh.ids().get(group), new);
    // And it is stable now.
    assert_eq!(watcher.ids().check(group).await.unwrap().0, new);
    let outcome = watcher.append(&event(&account, 4)).await;
    assert_eq!(
        outcome,
        AppendOutcome::Stored {
            position: 1,
            log_id: Some(new),
            duplicate: false
        }
    );
}

fn stream_directory(world: &World, group: Group) -> PathBuf {
    world
        .server
        .directory()
        .join(format!("store/jetstream/$G/streams/MB_main_LOG_{group}"))
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Takes the log back to its fifth position, as restoring a backup does.
async fn cut_back(world: &mut World, logs: &mailbell_bus::Logs) {
    let account = account(5, 0);
    let backup = tempfile::tempdir().unwrap();
    append_all(logs, &account, 1..=5).await;
    world.server.stop().await;
    copy(&stream_directory(world, account.group()), backup.path());
    world.server.restart().await.unwrap();
    insist(logs, &event(&account, 6)).await;
    append_all(logs, &account, 7..=9).await;
    world.server.stop().await;
    std::fs::remove_dir_all(stream_directory(world, account.group())).unwrap();
    copy(backup.path(), &stream_directory(world, account.group()));
    world.server.restart().await.unwrap();
}

#[tokio::test]
async fn a_cut_tail_is_another_history() {
    let mut world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let group = account(5, 0).group();
    let old = logs.ids().get(group);
    cut_back(&mut world, &logs).await;
    let (id, tail) = soon(async {
        loop {
            if let Ok(answer) = logs.ids().check(group).await {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(tail.last, 5);
    assert_ne!(id, old);
    // Found out once.
    assert_eq!(logs.ids().check(group).await.unwrap().0, id);
    assert_eq!(world.logs(Role::Gateway).await.ids().get(group), id);
}

#[tokio::test]
async fn an_acknowledgement_below_what_was_seen_is_another_history() {
    let mut world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    let account = account(5, 0);
    let old = logs.ids().get(account.group());
    cut_back(&mut world, &logs).await;
    let outcome = insist(&logs, &event(&account, 20)).await;
    let AppendOutcome::Stored {
        position: 6,
        log_id: Some(id),
        ..
    } = outcome
    else {
        panic!("{outcome:?}")
    };
    assert_ne!(id, old);
    assert_eq!(logs.ids().get(account.group()), id);
    let outcome = logs.append(&event(&account, 21)).await;
    assert_eq!(
        outcome,
        AppendOutcome::Stored {
            position: 7,
            log_id: Some(id),
            duplicate: false
        }
    );
}

#[tokio::test]
async fn what_was_seen_is_known_after_a_restart_of_all() {
    let mut world = World::start_with(|options| {
        options.timing = Timing {
            checkpoint_delay: Duration::from_millis(5),
            ..Timing::default()
        };
    })
    .await;
    let group = account(5, 0).group();
    let logs = world.logs(Role::Watcher).await;
    let old = logs.ids().get(group);
    append_all(&logs, &account(5, 0), 1..=5).await;
    // Written lazily, so wait until it is.
    let operator = world.operator().await;
    let question = json!({ "last_by_subj": format!("$KV.MB_main_CTL.log.{group}") });
    let written = || async {
        use base64::Engine as _;
        use prost::Message as _;
        let got = api(&operator, "STREAM.MSG.GET.KV_MB_main_CTL", question.clone()).await;
        let data = base64::engine::general_purpose::STANDARD
            .decode(got["message"]["data"].as_str().unwrap())
            .unwrap();
        mailbell_proto::bus::v1::LogIdentity::decode(data.as_slice())
            .unwrap()
            .highest_seen
    };
    soon(async { while written().await < 5 {} }).await;
    drop(logs);
    world.server.stop().await;
    // The log is lost up to its beginning, by a purge that nobody told of.
    world.server.restart().await.unwrap();
    let operator = world.operator().await;
    let info = api(
        &operator,
        &format!("STREAM.INFO.MB_main_LOG_{group}"),
        json!({}),
    )
    .await;
    api(
        &operator,
        &format!("STREAM.DELETE.MB_main_LOG_{group}"),
        json!({}),
    )
    .await;
    api(
        &operator,
        &format!("STREAM.CREATE.MB_main_LOG_{group}"),
        info["config"].clone(),
    )
    .await;
    let logs = world.logs(Role::Watcher).await;
    assert_ne!(logs.ids().get(group), old);
    append(&logs, &event(&account(5, 0), 1)).await;
}

#[tokio::test]
async fn nothing_keeps_up_once_the_logs_are_dropped() {
    let world = World::start().await;
    let bus = world.bus(Role::Admin).await;
    let operator = world.operator().await;
    // Who listens, not what the server still remembers.
    let listen = |many: usize| {
        let operator = &operator;
        async move {
            loop {
                let call = "CONSUMER.LIST.KV_MB_main_CTL";
                let list = api(operator, call, json!({})).await;
                let consumers = list["consumers"].as_array().unwrap();
                let bound = |consumer: &&serde_json::Value| consumer["push_bound"] == true;
                if consumers.iter().filter(bound).count() == many {
                    break;
                }
            }
        }
    };
    let logs = bus.logs().await.unwrap();
    soon(listen(1)).await;
    let handle = logs.ids().clone();
    drop(logs);
    let id = handle.get(account(5, 0).group());
    soon(listen(1)).await;
    drop(handle);
    soon(listen(0)).await;
    assert_eq!(
        bus.logs().await.unwrap().ids().get(account(5, 0).group()),
        id
    );
}
