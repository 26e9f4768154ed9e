//! Watchers that come and go in order.

use std::time::Instant;

use mailbell_tests::{
    process::until,
    sessions::Fault,
    sharing::{ALONE, SOON, Scene, SceneOptions},
};

use serde_json::json;

use super::{W, asked, board, finish_after, finish_in_order, nats_server, row, scene};

#[tokio::test]
async fn from_one_to_four_and_back_to_two() {
    let nats = nats_server().await;
    let options = SceneOptions {
        users: 300,
        watchers: 1,
        a_second: 30,
        ..SceneOptions::new(nats.url())
    };
    let mut scene = Scene::start(options).await.unwrap();
    for _ in 1..4 {
        scene.crowd.add_watcher().await.unwrap();
    }
    scene.shared_by(&W).await.unwrap();
    scene.crowd.installation.ready().await.unwrap();
    for watcher in [W[1], W[3]] {
        scene.crowd.installation.terminate(watcher).await.unwrap();
    }
    scene.shared_by(&[W[0], W[2]]).await.unwrap();
    finish_in_order("scale 1, 4, 2", scene).await;
}

/// A mail host lets few in a second: a new watcher gets its share no faster than these, so that no account waits long for its turn. If
/// it got it as fast as the watchers can, some would wait for half a minute.
#[tokio::test]
async fn where_logins_are_few_accounts_move_as_they_can_log_in() {
    let nats = nats_server().await;
    let options = SceneOptions {
        users: 200,
        watchers: 2,
        env: vec![("MAILBELL_LOGINS_PER_HOST".to_owned(), "10".to_owned())],
        ..SceneOptions::new(nats.url())
    };
    let mut scene = Scene::start(options).await.unwrap();
    scene.crowd.add_watcher().await.unwrap();
    scene.shared_by(&W[..3]).await.unwrap();
    finish_in_order("few logins", scene).await;
}

/// Clients ask the owners all the while: whatever they are answered is right, or says "try again".
#[tokio::test]
async fn one_after_the_other_is_restarted_under_load() {
    let (_nats, mut scene) = scene().await;
    let requests = scene.crowd.requests().await.unwrap();
    for watcher in &W[..3] {
        scene.crowd.installation.terminate(*watcher).await.unwrap();
        scene.crowd.installation.launch(*watcher).unwrap();
        scene.crowd.installation.ready().await.unwrap();
    }
    scene.shared_by(&W[..3]).await.unwrap();
    asked("rolling restart", &scene, requests).await;
    finish_in_order("rolling restart", scene).await;
}

#[tokio::test]
async fn one_that_is_asked_to_drain_gives_all_away_while_it_lives() {
    let (_nats, mut scene) = scene().await;
    let requests = scene.crowd.requests().await.unwrap();
    let name = W[1].to_string();
    let drain = ["watcher", "drain", &name];
    let said = scene.crowd.installation.cli(&drain).await.unwrap();
    assert!(said.ok().unwrap().contains("is asked to drain"));
    scene.shared_by(&[W[0], W[2]]).await.unwrap();
    assert!(scene.crowd.installation.runs(W[1]));
    let undo = ["watcher", "drain", &name, "--undo"];
    let said = scene.crowd.installation.cli(&undo).await.unwrap();
    said.ok().unwrap();
    scene.shared_by(&W[..3]).await.unwrap();
    asked("drain", &scene, requests).await;
    finish_in_order("drain", scene).await;
}

/// One is twice as large as another, and the third wants few.
#[tokio::test]
async fn shares_are_as_large_as_was_asked_for() {
    let nats = nats_server().await;
    let arguments: [&[&str]; 3] = [&["--weight", "200"], &[], &["--most-accounts", "20"]];
    let options = SceneOptions {
        users: 300,
        args: arguments
            .map(|args| args.iter().map(ToString::to_string).collect())
            .to_vec(),
        ..SceneOptions::new(nats.url())
    };
    let mut scene = Scene::start(options).await.unwrap();
    let shared = until(SOON, "shares of the sizes that were asked for", || async {
        let board = board(&scene.crowd.installation).await;
        let number = |part: usize, field: &str| {
            let row = row(&board, &W[part].to_string());
            row[field].as_u64().unwrap()
        };
        let (large, small, few) = (
            number(0, "owned"),
            number(1, "owned"),
            number(2, "accounts"),
        );
        // What is not exact is said in `mailbell_core::sharding::assignment` and of `--most-accounts`.
        let most = |share: u64| share + share.isqrt() + 1;
        let rest = large + small;
        large <= most(rest * 2 / 3)
            && small <= most(rest / 3)
            && (1..=22).contains(&few)
            && board["waiting"] == json!([])
    });
    shared.await.unwrap();

    // The others are gone. It takes no more than it was allowed, and the rest waits; also when it is begun anew.
    let gone = Instant::now();
    for watcher in &W[..2] {
        scene.kill(*watcher);
    }
    within_its_limit(&scene).await;
    let taken = scene.crowd.installation.terminate(W[2]).await;
    taken.unwrap();
    scene.crowd.installation.launch(W[2]).unwrap();
    within_its_limit(&scene).await;
    for back in &W[..2] {
        scene.crowd.installation.launch(*back).unwrap();
    }
    // Nobody had room for most of them meanwhile.
    let gone = Fault::since(gone, ALONE);
    scene.crowd.level(&W[..3], SOON).await.unwrap();
    finish_after("weights", scene, &[gone]).await;
}

/// Waits until the third watcher, which is alone and wants 20 accounts at most, has taken what it has room for.
async fn within_its_limit(scene: &Scene) {
    let name = W[2].to_string();
    until(SOON, "what it has room for to be taken", || async {
        let shares = scene.crowd.shares();
        let few = shares.get(&name).copied().unwrap_or_default();
        // What it learns of the mailboxes that it takes is how many there were in others: more by chance, but never twice as many.
        assert!(few < 40, "{few} of 20");
        let board = board(&scene.crowd.installation).await;
        let waiting = board["waiting"].as_array().unwrap();
        let no_room = waiting.iter().all(|wait| wait["reason"] == "no-room");
        no_room && !waiting.is_empty() && few >= 10
    })
    .await
    .unwrap();
}
