//! The operator on a real API server. There are no controllers and no pods, so a test says itself that something is ready, as those
//! would: what comes of the objects on nodes is left to the tests on a cluster.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::Job,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Event, Service},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::SignedDuration,
};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use mailbell_operator::crds;
use serde_json::{Value, json};

use crate::{
    actors::{IMAGE, NEXT, Operator},
    requests::{self, Requests},
    world::{World, define, definitions_of_others, mailbell, provider, with},
};

/// Nothing is begun before what it stands on is there, and each step is said in words.
#[tokio::test]
async fn an_installation_is_made_step_by_step() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world
        .until_ready_says("False Starting The Secrets: the job main-")
        .await;
    world.secrets_are_made(IMAGE).await;
    world
        .until_ready_says("False Starting The NATS servers: 0 of 3 pods of main-nats are ready.")
        .await;
    let jobs = world
        .api::<Job>()
        .list(&ListParams::default())
        .await
        .unwrap();
    let mut jobs = jobs.items.iter();
    assert!(jobs.all(|job| !job.name_any().starts_with("main-setup-")));
    world.set_is_ready("main-nats").await;
    let job = world.setup(IMAGE).await;
    world
        .until_ready_says(&format!(
            "False Starting The setup of what is stored: the job {} runs.",
            job.name_any()
        ))
        .await;
    assert!(
        world
            .api::<Deployment>()
            .get_opt("main-gateway")
            .await
            .unwrap()
            .is_none()
    );
    world.job_is_done(&job, "Complete").await;
    world.deployment_is_ready("main-gateway").await;
    world
        .until_ready_says("False Starting The watchers: 0 of 2 pods of main-watcher are ready.")
        .await;
    world.set_is_ready("main-watcher").await;
    world.deployment_is_ready("main-admin").await;
    world
        .until_ready_says("True Running Everything runs.")
        .await;
    // One event for each change of what is said, and none for a look that finds nothing new.
    let reasons = || async {
        let events = world
            .api::<Event>()
            .list(&ListParams::default())
            .await
            .unwrap();
        let of_us = events
            .items
            .into_iter()
            .filter(|event| event.involved_object.kind.as_deref() == Some("Mailbell"));
        let mut reasons: Vec<_> = of_us
            .map(|event| (event.reason.unwrap(), event.series.is_none()))
            .collect();
        reasons.sort();
        (reasons == [("Running".to_owned(), true), ("Starting".to_owned(), true)]).then_some(())
    };
    world.once(reasons, "an event a change").await;
    operator.stop().await;
}

/// The pods of the release before go on until the new ones can start, and its setup is removed when the new one is done.
#[tokio::test]
async fn an_upgrade_waits_for_the_setup_and_goes_on_part_by_part() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = world.with_installation().await;
    let first = world.setup(IMAGE).await;
    world
        .change(json!({ "spec": { "image": NEXT, "finishUpgrade": true } }))
        .await;
    world.secrets_are_made(NEXT).await;
    let second = world.setup(NEXT).await;
    world
        .until_ready_says("True Changing The setup of what is stored: the job main-setup-")
        .await;
    let image = async |name: &str| {
        let deployment: Deployment = world.there(name).await;
        deployment.spec.unwrap().template.spec.unwrap().containers[0]
            .image
            .clone()
            .unwrap()
    };
    assert_eq!(image("main-gateway").await, IMAGE);
    // One that has failed says what to do, and what runs goes on.
    world.job_is_done(&second, "Failed").await;
    world
        .until_ready_says("True Impaired The setup of what is stored: the job main-setup-")
        .await;
    assert_eq!(image("main-gateway").await, IMAGE);
    let name = second.name_any();
    world
        .api::<Job>()
        .delete(&name, &DeleteParams::background())
        .await
        .unwrap();
    let again = || async {
        let job = world.api::<Job>().get_opt(&name).await.unwrap()?;
        (job.uid() != second.uid()).then_some(job)
    };
    let again = world.once(again, "the setup again").await;
    world.job_is_done(&again, "Complete").await;
    let upgraded = || async { (image("main-gateway").await == NEXT).then_some(()) };
    world
        .once(upgraded, "the gateways of the next release")
        .await;
    let watchers = async || {
        let set: StatefulSet = world.there("main-watcher").await;
        let pod = set.spec.unwrap().template.spec.unwrap();
        pod.containers[0].image.clone().unwrap()
    };
    world.until_ready_says("True Changing The gateways: ").await;
    assert_eq!(watchers().await, IMAGE);
    world.deployment_is_ready("main-gateway").await;
    let upgraded = || async { (watchers().await == NEXT).then_some(()) };
    world
        .once(upgraded, "the watchers of the next release")
        .await;
    world.until_ready_says("True Changing The watchers: ").await;
    assert_eq!(image("main-admin").await, IMAGE);
    world.set_is_ready("main-watcher").await;
    let upgraded = || async { (image("main-admin").await == NEXT).then_some(()) };
    world
        .once(upgraded, "the admin API of the next release")
        .await;
    world.deployment_is_ready("main-admin").await;
    // Only now there is no way back.
    let finish = || async {
        let jobs = world
            .api::<Job>()
            .list(&ListParams::default())
            .await
            .unwrap();
        jobs.items
            .into_iter()
            .find(|job| job.name_any().starts_with("main-finish-"))
    };
    let finish = world.once(finish, "the end of the upgrade").await;
    world
        .until_ready_says("True Changing The end of the upgrade: the job main-finish-")
        .await;
    world.job_is_done(&finish, "Complete").await;
    world.until_ready_says("True Running").await;
    let gone = || async {
        world
            .api::<Job>()
            .get_opt(&first.name_any())
            .await
            .unwrap()
            .is_none()
            .then_some(())
    };
    world.once(gone, "the setup before to be removed").await;
    operator.stop().await;
}

#[tokio::test]
async fn what_somebody_changes_or_removes_is_put_right() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = world.with_installation().await;
    let before: Service = world.there("main-gateway").await;
    world
        .api::<Service>()
        .delete("main-gateway", &DeleteParams::default())
        .await
        .unwrap();
    let there = || async {
        let service = world
            .api::<Service>()
            .get_opt("main-gateway")
            .await
            .unwrap()?;
        (service.uid() != before.uid()).then_some(())
    };
    world.once(there, "the service").await;
    // Also where somebody else has applied the same field by force.
    let params = PatchParams::apply("somebody").force();
    let theirs = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "main-nats" },
        "data": { "nats.conf": "debug: true", "mine": "stays" } });
    let configs = world.api::<ConfigMap>();
    configs
        .patch("main-nats", &params, &Patch::Apply(theirs))
        .await
        .unwrap();
    let right = || async {
        let data = configs.get("main-nats").await.unwrap().data.unwrap();
        assert_eq!(data["mine"], "stays");
        data["nats.conf"].contains("jetstream").then_some(())
    };
    world.once(right, "the configuration").await;
    // Never beyond the bound, whoever says so.
    let scaled = Patch::Merge(json!({ "spec": { "replicas": 99 } }));
    let sets = world.api::<StatefulSet>();
    sets.patch("main-watcher", &PatchParams::default(), &scaled)
        .await
        .unwrap();
    let bounded = || async {
        let set = sets.get("main-watcher").await.unwrap();
        (set.spec.unwrap().replicas <= Some(10)).then_some(())
    };
    world.once(bounded, "the bound of the watchers").await;
    operator.stop().await;
}

/// Somebody else's object that has our labels is not ours, and what is wanted no longer goes.
#[tokio::test]
async fn what_is_wanted_no_longer_is_removed_and_nothing_else() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = world.with_installation().await;
    let owner = world
        .mailbells()
        .get("main")
        .await
        .unwrap()
        .controller_owner_ref(&())
        .unwrap();
    let labels = json!({ "app.kubernetes.io/managed-by": "mailbell-operator", "app.kubernetes.io/instance": "main" });
    let configs = world.api::<ConfigMap>();
    let make = async |name: &str, owners: Value| {
        let object =
            json!({ "metadata": { "name": name, "labels": labels, "ownerReferences": owners } });
        let object: ConfigMap = serde_json::from_value(object).unwrap();
        configs
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
    };
    make("a-not-ours", json!([])).await;
    // Of a release before, which had one more.
    make("main-before", json!([owner])).await;
    let gone = || async {
        configs
            .get_opt("main-before")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    };
    world.once(gone, "the orphan to be removed").await;
    assert!(configs.get_opt("a-not-ours").await.unwrap().is_some());
    operator.stop().await;
}

/// One leads; when it ends, or dies, the other does. The server may be away meanwhile.
#[tokio::test]
async fn one_of_two_leads_and_the_other_takes_over() {
    let Some(mut world) = World::alone_with_definitions().await else {
        return;
    };
    let one = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.secrets_are_made(IMAGE).await;
    let _: StatefulSet = world.there("main-nats").await;
    let two = Operator::start(&world, "two");
    let leader = async |world: &World| {
        let lease: Lease = world.there("mailbell-operator").await;
        lease.spec.unwrap().holder_identity
    };
    assert_eq!(leader(&world).await.as_deref(), Some("one"));
    one.kill();
    let led = || async { (leader(&world).await.as_deref() == Some("two")).then_some(()) };
    world.once(led, "the other one to lead").await;
    world.set_is_ready("main-nats").await;
    let _ = world.setup(IMAGE).await;
    world.restart().await;
    let job = world.setup(IMAGE).await;
    world.job_is_done(&job, "Complete").await;
    let _: Deployment = world.there("main-gateway").await;
    let three = Operator::start(&world, "three");
    // In order: at once, and not when the lease has aged.
    two.stop().await;
    let led = || async { (leader(&world).await.as_deref() == Some("three")).then_some(()) };
    tokio::time::timeout(
        Duration::from_secs(10),
        world.once(led, "the third one to lead"),
    )
    .await
    .unwrap();
    three.stop().await;
}

/// What the API server refuses is said where people look, and holds only what comes after it.
#[tokio::test]
async fn what_is_refused_is_said_in_the_status() {
    let Some(world) = World::new().await else {
        return;
    };
    // Somebody has a service of this name, and pods behind it.
    let theirs = json!({ "metadata": { "name": "main-watcher", "labels": { "app.kubernetes.io/instance": "main" } },
        "spec": { "clusterIP": "None", "selector": { "app": "theirs" } } });
    let theirs: Service = serde_json::from_value(theirs).unwrap();
    let services = world.api::<Service>();
    let theirs = services
        .create(&PostParams::default(), &theirs)
        .await
        .unwrap();
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.secrets_are_made(IMAGE).await;
    world.set_is_ready("main-nats").await;
    let job = world.setup(IMAGE).await;
    world.job_is_done(&job, "Complete").await;
    world.deployment_is_ready("main-gateway").await;
    world
        .until_ready_says("False Failed The watchers: Service main-watcher: it is there already, and was not made for this installation: ")
        .await;
    // Nothing of it was changed: it would have gone with the installation.
    assert_eq!(services.get("main-watcher").await.unwrap(), theirs);
    services
        .delete("main-watcher", &DeleteParams::default())
        .await
        .unwrap();
    world.set_is_ready("main-watcher").await;
    world.deployment_is_ready("main-admin").await;
    world.until_ready_says("True Running").await;
    operator.stop().await;
}

/// What somebody else writes of it, or a newer release, is nothing to the others.
#[tokio::test]
async fn an_object_that_cannot_be_read_is_left_alone() {
    let Some(world) = World::new().await else {
        return;
    };
    let broken = with(&mailbell(), "/metadata/name", json!("broken"));
    world.create(&mailbell()).await;
    world.apply(broken).await;
    // A time for the API server.
    let status = r#"{"status":{"lookedAt":"2024-01-01T00:00:00+99:00"}}"#;
    let patch = async |status: &str| {
        let patch = ["patch", "mailbell", "broken", "--subresource=status"];
        let (worked, said) = world
            .kubectl(&[&patch[..], &["--type=merge", "-p", status]].concat(), "")
            .await;
        assert!(worked, "{said}");
    };
    patch(status).await;
    assert!(world.mailbells().get("broken").await.is_err());
    let operator = Operator::start_told(&world, "one", None, |options| {
        // It has all looked at.
        options.look_every = Duration::from_secs(3600);
    });
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
    let sets = world.api::<StatefulSet>();
    assert!(sets.get_opt("broken-nats").await.unwrap().is_none());
    // Nobody is known to have looked at it.
    patch(r#"{"status":null}"#).await;
    let looked = || async {
        let broken = world.mailbells().get("broken").await.unwrap();
        broken.status?.observed_generation
    };
    world.once(looked, "a look at the other one").await;
    // Nothing else of it has changed since that look.
    patch(status).await;
    patch(r#"{"status":null}"#).await;
    world.once(looked, "a look at what is as it was").await;
    operator.stop().await;
}

/// What the API server says may have the time in it, or a port.
const IN_OTHER_WORDS: [&str; 5] = [
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"port 1","code":500}"#,
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"port 2","code":500}"#,
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"port 3","code":500}"#,
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"port 4","code":500}"#,
    r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"port 5","code":500}"#,
];

/// An operator of which so many requests for an object are refused in other words each time.
fn start_refused(
    world: &Arc<World>,
    parts: &'static [&'static str],
    times: usize,
) -> (Operator, Arc<Requests>) {
    let answers = IN_OTHER_WORDS.map(|body| (500, body));
    let requests = Requests::answered(parts, answers[..times].to_vec());
    let (of, counted) = (Arc::clone(world), Arc::clone(&requests));
    let client = async move { requests::client(&of, counted).await };
    (Operator::start_by(world, "one", client, |_| {}), requests)
}

/// Until all are, not before the waits of two seconds and of four are over.
async fn refused_slowly(world: &World, requests: &Requests, begun: Instant) {
    let over = || async { (requests.unanswered() == 0).then_some(()) };
    world.once(over, "the last of these answers").await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(6), "{took:?}");
}

/// That is written each time, and is no reason to ask again at once.
#[tokio::test]
async fn what_is_refused_in_other_words_each_time_is_tried_again_less_and_less_often() {
    let Some(world) = World::new().await else {
        return;
    };
    let world = Arc::new(world);
    // One look may have another reason.
    let parts = &["PATCH", "/grpcroutes/main-gateway"];
    let (operator, requests) = start_refused(&world, parts, 4);
    let plain = json!({ "insecurePlaintext": true });
    world
        .create(&with(&mailbell(), "/spec/gateways/tls", plain))
        .await;
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
    let begun = Instant::now();
    let route = json!({ "parentRefs": [{ "name": "edge" }] });
    world
        .change(json!({ "spec": { "gateways": { "gatewayApi": route } } }))
        .await;
    refused_slowly(&world, &requests, begun).await;
    world.until_ready_says("True Running").await;
    operator.stop().await;
}

/// The same of what stands in the statuses of MailProviders.
#[tokio::test]
async fn a_policy_that_is_refused_in_other_words_each_time_is_tried_again_less_and_less_often() {
    let Some(world) = World::new().await else {
        return;
    };
    let world = Arc::new(world);
    world.has(&provider()).await;
    let begun = Instant::now();
    // The first status of the provider is a reason to look, and one look may have another.
    let parts = &["PATCH", "/configmaps/main-policy"];
    let (operator, requests) = start_refused(&world, parts, 5);
    world.create(&mailbell()).await;
    refused_slowly(&world, &requests, begun).await;
    world.until_provider_says("example", "True InForce").await;
    operator.stop().await;
}

/// A cluster without the Gateway API serves all the same, and says what it lacks; with it there is a route for as long as one is wanted.
#[tokio::test]
async fn a_route_is_there_while_it_is_wanted_and_the_cluster_knows_routes() {
    let Some(world) = World::alone().await else {
        return;
    };
    define(&world.client, crds::definitions()).await;
    let operator = Operator::start(&world, "one");
    let edge =
        |listener: &str| json!({ "parentRefs": [{ "name": "edge", "sectionName": listener }] });
    let plain = json!({ "insecurePlaintext": true });
    let plain = with(&mailbell(), "/spec/gateways/tls", plain);
    world
        .create(&with(&plain, "/spec/gateways/gatewayApi", edge("push")))
        .await;
    world.is_installed(IMAGE).await;
    world
        .until_ready_says("True Impaired The gateways: there is no Gateway API on this cluster")
        .await;
    define(&world.client, definitions_of_others(&world.server)).await;
    // It looks again in some minutes, or when something changes.
    let routed = |routes: Value| json!({ "spec": { "gateways": { "gatewayApi": routes } } });
    world.change(routed(edge("devices"))).await;
    world
        .until_ready_says("True Running Everything runs.")
        .await;
    let api = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "GRPCRoute");
    let api = ApiResource::from_gvk(&api);
    let routes: Api<DynamicObject> =
        Api::namespaced_with(world.client.clone(), &world.namespace, &api);
    let route = routes.get("main-gateway").await.unwrap();
    assert_eq!(
        route.data["spec"]["parentRefs"][0]["sectionName"],
        "devices"
    );
    let backend = &route.data["spec"]["rules"][0]["backendRefs"][0];
    let service: Service = world.there("main-gateway").await;
    let port = service.spec.unwrap().ports.unwrap()[0].port;
    assert_eq!(
        (&backend["name"], &backend["port"]),
        (&json!("main-gateway"), &json!(port))
    );
    // Somebody else's is not touched.
    let theirs = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
        "metadata": { "name": "theirs", "labels": route.metadata.labels }, "spec": { "rules": [] } });
    world.apply(theirs).await;
    world.change(routed(Value::Null)).await;
    let gone = || async {
        let there = routes.get_opt("main-gateway").await.unwrap();
        there.is_none().then_some(())
    };
    world.once(gone, "the end of the route").await;
    assert!(routes.get_opt("theirs").await.unwrap().is_some());
    operator.stop().await;
}

/// Who reads a list sees whether what stands in it is of today, also while nothing happens.
#[tokio::test]
async fn a_list_tells_that_somebody_looks() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = world.with_installation().await;
    let status = async || world.mailbells().get("main").await.unwrap().status.unwrap();
    let before = status().await;
    let looked_at = before.looked_at.clone().unwrap();
    // As it is after some minutes.
    let old = Time(looked_at.0 - SignedDuration::from_mins(6));
    let aged = Patch::Merge(json!({ "status": { "lookedAt": old } }));
    let (api, params) = (world.mailbells(), PatchParams::default());
    api.patch_status("main", &params, &aged).await.unwrap();
    // That alone is no reason to look: a part of it is taken away.
    let gone = world.api::<Service>();
    gone.delete("main-gateway", &DeleteParams::default())
        .await
        .unwrap();
    let moved = || async {
        let now = status().await;
        (now.looked_at.as_ref()? >= &looked_at).then_some(now)
    };
    let now = world.once(moved, "another look").await;
    assert_eq!(
        (now.conditions, now.observed_generation),
        (before.conditions, before.observed_generation)
    );
    let (_, listed) = world.kubectl(&["get", "mailbells"], "").await;
    let mut lines = listed.lines();
    assert!(lines.next().unwrap().ends_with("LOOKED"), "{listed}");
    let ago = lines.next().unwrap().split_whitespace().last().unwrap();
    assert!(ago.ends_with('s'), "{listed}");
    operator.stop().await;
}

/// What is changed by being applied would be seen, and applied again, for ever.
#[tokio::test]
async fn what_is_applied_again_is_no_change() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.is_looked_at().await;
    let versions = async || {
        let (policies, params) = (world.api::<NetworkPolicy>(), ListParams::default());
        let policies = policies.list(&params).await.unwrap().items.into_iter();
        let version = |policy: NetworkPolicy| (policy.name_any(), policy.resource_version());
        policies.map(version).collect::<Vec<_>>()
    };
    let before = versions().await;
    assert!(before.len() > 4, "{before:?}");
    // A setting of pods that are not there yet.
    world
        .change(json!({ "spec": { "watchers": { "connectsPerHost": 7 } } }))
        .await;
    world.is_looked_at().await;
    assert_eq!(versions().await, before);
    operator.stop().await;
}
