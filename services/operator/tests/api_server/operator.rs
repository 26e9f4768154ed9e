//! The operator on a real API server. There are no controllers and no pods, so a test says itself that something is ready, as those
//! would: what comes of the objects on nodes is left to the tests on a cluster.

use std::time::Duration;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        batch::v1::Job,
        core::v1::{ConfigMap, Event, Service},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use mailbell_operator::{
    api::Mailbell,
    controller::{Options, run},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::world::{World, mailbell, soon, with};

/// How often is looked whether something has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One replica.
pub(crate) struct Operator {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Operator {
    fn start(world: &World, identity: &str) -> Self {
        Self::start_as(world, identity, world.client.clone())
    }

    /// With the rights of this client.
    pub(crate) fn start_as(world: &World, identity: &str, client: Client) -> Self {
        let options = Options {
            namespace: Some(world.namespace.clone()),
            own_namespace: world.namespace.clone(),
            identity: identity.to_owned(),
            image: "mailbell.dev/mailbell:0.1.0".to_owned(),
        };
        let stop = CancellationToken::new();
        let run = run(client, options, stop.clone());
        Self {
            stop,
            task: tokio::spawn(async move { run.await.unwrap() }),
        }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        soon(self.task).await.unwrap();
    }

    /// As by SIGKILL: wherever it is, and its lease stays.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

impl World {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) async fn create(&self, object: &Value) {
        let object: Mailbell = serde_json::from_value(object.clone()).unwrap();
        let params = PostParams::default();
        self.mailbells().create(&params, &object).await.unwrap();
    }

    async fn change(&self, change: Value) {
        let (params, patch) = (PatchParams::default(), Patch::Merge(change));
        self.mailbells()
            .patch("main", &params, &patch)
            .await
            .unwrap();
    }

    /// Once it is there.
    async fn there<K>(&self, name: &str) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        self.once(
            || async { self.api::<K>().get_opt(name).await.unwrap() },
            name,
        )
        .await
    }

    async fn once<T, F: Future<Output = Option<T>>>(&self, look: impl Fn() -> F, what: &str) -> T {
        let waiting = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                sleep(LOOK_EVERY).await;
            }
        };
        let limit = Duration::from_secs(60);
        let Ok(found) = tokio::time::timeout(limit, waiting).await else {
            let state = self.mailbells().get_opt("main").await;
            panic!(
                "{what} does not come: {:?}",
                state.map(|it| it.map(|it| it.status))
            );
        };
        found
    }

    /// The setup, which has a name of its own for each image.
    async fn setup(&self, image: &str) -> Job {
        let of = |job: &Job| {
            let pod = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
            pod.containers[0].image.as_deref() == Some(image)
        };
        let look = || async {
            let jobs = self
                .api::<Job>()
                .list(&ListParams::default())
                .await
                .unwrap();
            jobs.items.into_iter().find(of)
        };
        self.once(look, "the setup").await
    }

    async fn says<K>(&self, object: &K, status: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let patch = Patch::Merge(json!({ "status": status }));
        let params = PatchParams::default();
        let (api, name) = (self.api::<K>(), object.name_any());
        api.patch_status(&name, &params, &patch).await.unwrap();
    }

    async fn set_is_ready(&self, name: &str) {
        let set: StatefulSet = self.there(name).await;
        let count = set.spec.as_ref().unwrap().replicas;
        let status = json!({ "observedGeneration": set.metadata.generation, "replicas": count,
            "readyReplicas": count, "currentRevision": "a", "updateRevision": "a" });
        self.says(&set, status).await;
    }

    async fn deployment_is_ready(&self, name: &str) {
        let deployment: Deployment = self.there(name).await;
        let count = deployment.spec.as_ref().unwrap().replicas;
        let status = json!({ "observedGeneration": deployment.metadata.generation, "replicas": count,
            "updatedReplicas": count, "readyReplicas": count, "availableReplicas": count });
        self.says(&deployment, status).await;
    }

    async fn job_is_done(&self, job: &Job, kind: &str) {
        let condition = |kind: &str| json!({ "type": kind, "status": "True" });
        let mut status = json!({
            "startTime": "2026-01-01T00:00:00Z",
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
            "completionTime": "2026-01-01T00:01:00Z",
            "succeeded": 1,
        });
        if kind == "Failed" {
            status = json!({
                "startTime": "2026-01-01T00:00:00Z",
                "conditions": [condition("FailureTarget"), condition("Failed")],
            });
        }
        self.says(job, status).await;
    }

    /// What `kubectl get` shows of it.
    pub(crate) async fn until_ready_says(&self, expected: &str) {
        let look = || async {
            let status = self.mailbells().get("main").await.unwrap().status?;
            let ready = status
                .conditions
                .into_iter()
                .find(|it| it.type_ == "Ready")?;
            let said = format!("{} {} {}", ready.status, ready.reason, ready.message);
            said.contains(expected).then_some(())
        };
        self.once(look, expected).await;
    }

    /// All that there is to wait for.
    pub(crate) async fn is_installed(&self, image: &str) {
        self.set_is_ready("main-nats").await;
        let job = self.setup(image).await;
        self.job_is_done(&job, "Complete").await;
        self.deployment_is_ready("main-gateway").await;
        self.set_is_ready("main-watcher").await;
        self.deployment_is_ready("main-admin").await;
    }
}

pub(crate) const IMAGE: &str = "mailbell.dev/mailbell:0.1.0";
const NEXT: &str = "mailbell.dev/mailbell:0.2.0";

/// Nothing is begun before what it stands on is there, and each step is said in words.
#[tokio::test]
async fn an_installation_is_made_step_by_step() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world
        .until_ready_says("False Starting The NATS servers: 0 of 3 pods of main-nats are ready.")
        .await;
    let jobs = world
        .api::<Job>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(jobs.items.len(), 0);
    world.set_is_ready("main-nats").await;
    let job = world.setup(IMAGE).await;
    world
        .until_ready_says("False Starting The gateways: waiting for the setup of what is stored.")
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
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
    let first = world.setup(IMAGE).await;
    world.change(json!({ "spec": { "image": NEXT } })).await;
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
        .until_ready_says("False Failed The setup of what is stored: the job main-setup-")
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
    assert_eq!(watchers().await, IMAGE);
    world.deployment_is_ready("main-gateway").await;
    let upgraded = || async { (watchers().await == NEXT).then_some(()) };
    world
        .once(upgraded, "the watchers of the next release")
        .await;
    assert_eq!(image("main-admin").await, IMAGE);
    world.set_is_ready("main-watcher").await;
    let upgraded = || async { (image("main-admin").await == NEXT).then_some(()) };
    world
        .once(upgraded, "the admin API of the next release")
        .await;
    world.deployment_is_ready("main-admin").await;
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
    // Only now, and only since it is asked for, there is no way back.
    world
        .change(json!({ "spec": { "finishUpgrade": true } }))
        .await;
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
    operator.stop().await;
}

#[tokio::test]
async fn what_somebody_changes_or_removes_is_put_right() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
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
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
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
    make("not-ours", json!([])).await;
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
    assert!(configs.get_opt("not-ours").await.unwrap().is_some());
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
    let _: StatefulSet = world.there("main-nats").await;
    let two = Operator::start(&world, "two");
    let leader = async |world: &World| {
        let lease: k8s_openapi::api::coordination::v1::Lease =
            world.there("mailbell-operator").await;
        lease.spec.unwrap().holder_identity
    };
    assert_eq!(leader(&world).await.as_deref(), Some("one"));
    one.kill().await;
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

/// A step that was half done by one that died is done by the next.
#[tokio::test]
async fn one_that_is_killed_at_any_step_leaves_nothing_half_done() {
    let Some(world) = World::new().await else {
        return;
    };
    world
        .create(&with(&mailbell(), "/spec/nats/managed/nodes", json!(1)))
        .await;
    let ready = || async {
        let status = world.mailbells().get("main").await.unwrap().status?;
        status
            .conditions
            .iter()
            .any(|it| it.type_ == "Ready" && it.status == "True")
            .then_some(())
    };
    // Each lives a little longer than the one before: from the first request to the last.
    for step in 0..40_u64 {
        let operator = Operator::start(&world, "one");
        sleep(Duration::from_millis(step * 20)).await;
        operator.kill().await;
        let there = world
            .api::<StatefulSet>()
            .get_opt("main-nats")
            .await
            .unwrap();
        if there.is_some() {
            world.set_is_ready("main-nats").await;
        }
    }
    let operator = Operator::start(&world, "one");
    world.is_installed(IMAGE).await;
    world.once(ready, "all of it").await;
    operator.stop().await;
}
