//! Watchers that come and go in order.

use mailbell_tests::sharing::{ALONE, Scene, SceneOptions, ask_to_drain};

use super::{W, finish, nats_server, scene};

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
    finish("scale 1, 4, 2", scene, ALONE).await;
}

/// A client lists folders all the while: whatever it is answered is right, or says "try again".
#[tokio::test]
async fn one_after_the_other_is_restarted_under_load() {
    let (_nats, mut scene) = scene().await;
    let listings = scene.crowd.listings().await.unwrap();
    for watcher in &W[..3] {
        scene.crowd.installation.terminate(*watcher).await.unwrap();
        scene.crowd.installation.launch(*watcher).unwrap();
        scene.crowd.installation.ready().await.unwrap();
    }
    scene.shared_by(&W[..3]).await.unwrap();
    let listed = listings.stop().await.unwrap();
    println!("rolling restart: {listed:?}");
    assert!(listed.answers > scene.crowd.accounts.len(), "{listed:?}");
    finish("rolling restart", scene, ALONE).await;
}

#[tokio::test]
async fn one_that_is_asked_to_drain_gives_all_away_while_it_lives() {
    let (nats, mut scene) = scene().await;
    ask_to_drain(&nats.url(), W[1], true).await.unwrap();
    scene.shared_by(&[W[0], W[2]]).await.unwrap();
    assert!(scene.crowd.installation.runs(W[1]));
    ask_to_drain(&nats.url(), W[1], false).await.unwrap();
    scene.shared_by(&W[..3]).await.unwrap();
    finish("drain", scene, ALONE).await;
}
