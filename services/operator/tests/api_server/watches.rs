//! Watches of the API server that end as none does within a test.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

use crate::{
    actors::{IMAGE, Operator},
    requests::{self, Requests},
    world::{World, mailbell},
};

/// A line of a watch: what it has told last is not known any more.
const EXPIRED: &str = concat!(
    r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#,
    r#""message":"too old resource version","reason":"Expired","code":410}}"#,
    "\n"
);
const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}"#;
const FAILS: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"etcdserver: leader changed","reason":"","code":500}"#;

/// It is begun anew, with all that came meanwhile, and nothing is taken for removed.
#[tokio::test]
async fn a_watch_that_has_expired_fails_or_is_cut_off_is_begun_anew() {
    let Some(world) = World::new().await else {
        return;
    };
    let world = Arc::new(world);
    world.create(&mailbell()).await;
    let cut_off = r#"{"type":"DELETED","object":{"apiVersion":"mailbell.dev/v1al"#;
    let answers = vec![(200, EXPIRED), (410, GONE), (200, cut_off), (500, FAILS)];
    let requests = Requests::answered(&["/mailbells?", "watch=true"], answers);
    let (of, counted) = (Arc::clone(&world), Arc::clone(&requests));
    let client = async move { requests::client(&of, counted).await };
    let operator = Operator::start_by(&world, "one", client, |_| {});
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
    let before: Service = world.there("main-gateway").await;
    let over = || async { (requests.unanswered() == 0).then_some(()) };
    world.once(over, "the last of these answers").await;
    world
        .change(json!({ "spec": { "watchers": { "connectsPerHost": 7 } } }))
        .await;
    let heard = || async {
        let mailbell = world.mailbells().get("main").await.unwrap();
        let seen = mailbell.status.as_ref()?.observed_generation;
        (seen == mailbell.meta().generation).then_some(())
    };
    world.once(heard, "a look at what was changed").await;
    let after: Service = world.there("main-gateway").await;
    assert_eq!(after.uid(), before.uid());
    operator.stop().await;
}
