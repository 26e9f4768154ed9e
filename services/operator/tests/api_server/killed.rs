//! An operator that dies at any of its steps.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::PodTemplateSpec,
};
use kube::{ResourceExt as _, api::ListParams};
use serde_json::json;

use crate::{
    actors::{IMAGE, NEXT, Operator},
    requests::{self, IsMeant, Requests},
    world::{World, mailbell, soon, with},
};

/// What another release changes, and where it is told.
const CHANGED: [&str; 4] = ["/deployments/", "/statefulsets/", "/jobs/", "/mailbells/"];

fn changes(request: &str) -> bool {
    !request.starts_with("GET ") && CHANGED.iter().any(|kind| request.contains(kind))
}

/// A step that was half done by one that died is done by the next, wherever it died.
#[tokio::test]
async fn one_that_is_killed_at_any_step_leaves_nothing_half_done() {
    let Some(world) = World::new().await else {
        return;
    };
    let world = Arc::new(world);
    world
        .create(&with(&mailbell(), "/spec/nats/managed/nodes", json!(1)))
        .await;
    let unsent = killed_at_each_step(&world, |_| true).await;
    let objects = unsent.iter().filter(|it| it.starts_with("PATCH "));
    assert!(objects.count() > 30, "{unsent:#?}");
    let first = setups(&world, IMAGE).await;
    assert_eq!(first.len(), 1);
    // On the way to another release, of which none of the one before is left.
    world.change(json!({ "spec": { "image": NEXT } })).await;
    let unsent = killed_at_each_step(&world, changes).await;
    for (method, name) in [
        ("PATCH", "/jobs/main-setup-"),
        ("PATCH", "/statefulsets/main-watcher"),
        ("PATCH", "/deployments/main-gateway"),
        ("PATCH", "/deployments/main-admin"),
        ("DELETE", first[0].as_str()),
        ("PATCH", "/mailbells/main/status"),
    ] {
        let is_it = |it: &String| it.starts_with(method) && it.contains(name);
        assert!(unsent.iter().any(is_it), "{method} {name}: {unsent:#?}");
    }
    assert_eq!(setups(&world, NEXT).await.len(), 1);
    assert_eq!(setups(&world, IMAGE).await, [""; 0]);
    let (deployments, sets) = (world.api::<Deployment>(), world.api::<StatefulSet>());
    let params = ListParams::default();
    let pods = deployments.list(&params).await.unwrap().into_iter();
    let mut pods: Vec<_> = pods.map(|it| it.spec.unwrap().template).collect();
    let others = sets.list(&params).await.unwrap().into_iter();
    let others = others.filter(|it| it.name_any() != "main-nats");
    pods.extend(others.map(|it| it.spec.unwrap().template));
    let image = |pod: PodTemplateSpec| pod.spec.unwrap().containers[0].image.clone().unwrap();
    let images: Vec<_> = pods.into_iter().map(image).collect();
    assert_eq!(images, [NEXT; 3]);
}

/// Names of the setups of this image.
async fn setups(world: &World, image: &str) -> Vec<String> {
    let jobs = world.api::<Job>();
    let jobs = jobs.list(&ListParams::default()).await.unwrap().into_iter();
    let of = |job: &Job| {
        let pod = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        pod.containers[0].image.as_deref() == Some(image)
    };
    let all = jobs.filter(of).map(|job| job.name_any());
    all.filter(|name| name.starts_with("main-setup-")).collect()
}

/// Before its first request that is meant; then, by another one, before the first that is not known from that, and so on, until one has said
/// that all is as it is wanted. Answers these requests.
async fn killed_at_each_step(world: &Arc<World>, is_meant: IsMeant) -> BTreeSet<String> {
    let runs = || async {
        let mailbell = world.mailbells().get("main").await.unwrap();
        let status = mailbell.status?;
        let mut conditions = status.conditions.iter();
        let runs = conditions.any(|it| it.reason == "Running");
        // What was said of the generation before is not meant.
        (runs && status.observed_generation == mailbell.metadata.generation).then_some(())
    };
    let ready = || {
        Box::pin(async {
            world.all_is_ready().await;
            runs().await
        })
    };
    let mut known = BTreeSet::new();
    loop {
        let requests = Requests::only(is_meant, known.clone());
        let (of, counted) = (Arc::clone(world), Arc::clone(&requests));
        let client = async move { requests::client(&of, counted).await };
        let operator = Operator::start_by(world, "one", client, |_| {});
        let is_done = soon(async {
            tokio::select! {
                () = requests.are_over() => false,
                () = world.once(ready, "all of it") => true,
            }
        });
        if is_done.await {
            operator.stop().await;
            return known;
        }
        operator.kill();
        known.extend(requests.unsent());
    }
}
