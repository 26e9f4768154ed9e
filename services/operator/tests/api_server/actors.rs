//! An operator, and the parts that others play on a cluster: the user, and the controllers and nodes that are not here.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{NamespaceResourceScope, api::batch::v1::Job};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use mailbell_operator::{
    api::Mailbell,
    controller::{LOAD_EVERY, Metrics, Options, Pace, run},
    desired::API_SERVER_PORTS,
    sizing::WINDOW,
};
use mailbell_test_cluster::Workloads;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{runtime::Runtime, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::world::{World, mailbell, soon};

/// How often is looked whether something has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// One replica, with threads and connections of its own, as a process has them.
pub(crate) struct Operator {
    stop: CancellationToken,
    task: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Operator {
    pub(crate) fn start(world: &World, identity: &str) -> Self {
        Self::start_as(world, identity, None)
    }

    /// With the rights of a service account of the world's namespace.
    pub(crate) fn start_as(world: &World, identity: &str, account: Option<&str>) -> Self {
        Self::start_told(world, identity, account, |_| {})
    }

    /// Told something else than usual.
    pub(crate) fn start_with(
        world: &World,
        identity: &str,
        tell: impl FnOnce(&mut Options),
    ) -> Self {
        Self::start_told(world, identity, None, tell)
    }

    /// Both.
    pub(crate) fn start_told(
        world: &World,
        identity: &str,
        account: Option<&str>,
        tell: impl FnOnce(&mut Options),
    ) -> Self {
        let account = account.map(ToOwned::to_owned);
        let (server, namespace) = (Arc::clone(&world.server), world.namespace.clone());
        let mut options = options(world, identity);
        tell(&mut options);
        Self::launch(options, async move {
            match account {
                Some(account) => server.client_of(&namespace, &account).await.unwrap(),
                None => server.client().await.unwrap(),
            }
        })
    }

    /// By this client. It is made on the operator's own runtime, where its connections live.
    pub(crate) fn start_by(
        world: &World,
        identity: &str,
        client: impl Future<Output = Client> + Send + 'static,
        tell: impl FnOnce(&mut Options),
    ) -> Self {
        let mut options = options(world, identity);
        tell(&mut options);
        Self::launch(options, client)
    }

    fn launch(options: Options, client: impl Future<Output = Client> + Send + 'static) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let task = runtime.spawn(async move {
            run(client.await, options, Metrics::default(), stopped)
                .await
                .unwrap();
        });
        Self {
            stop,
            task,
            runtime: Some(runtime),
        }
    }

    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        soon(&mut self.task).await.unwrap();
    }

    /// As by SIGKILL: wherever it is, and its lease stays.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

fn options(world: &World, identity: &str) -> Options {
    Options {
        namespace: Some(world.namespace.clone()),
        own_namespace: world.namespace.clone(),
        identity: identity.to_owned(),
        image: IMAGE.to_owned(),
        // Nobody is there.
        admin_url: Some("http://127.0.0.1:1".to_owned()),
        gateways: Some(Vec::new()),
        look_every: LOAD_EVERY,
        scale_down_after: WINDOW,
        api_server_ports: API_SERVER_PORTS.to_vec(),
        pace: Pace::default(),
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl World {
    pub(crate) fn api<K>(&self) -> Api<K>
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

    pub(crate) async fn change(&self, change: Value) {
        let (params, patch) = (PatchParams::default(), Patch::Merge(change));
        self.mailbells()
            .patch("main", &params, &patch)
            .await
            .unwrap();
    }

    /// Once it is there.
    pub(crate) async fn there<K>(&self, name: &str) -> K
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

    pub(crate) async fn once<T, F: Future<Output = Option<T>>>(
        &self,
        look: impl Fn() -> F,
        what: &str,
    ) -> T {
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
    pub(crate) async fn setup(&self, image: &str) -> Job {
        self.job("main-setup-", image).await
    }

    /// The jobs that make Secrets.
    pub(crate) async fn secrets_are_made(&self, image: &str) {
        for begin in ["main-secrets-", "main-key-ring-"] {
            let job = self.job(begin, image).await;
            self.job_is_done(&job, "Complete").await;
        }
    }

    async fn job(&self, begin: &str, image: &str) -> Job {
        let of = |job: &Job| {
            let pod = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
            let is_of = pod.containers[0].image.as_deref() == Some(image);
            is_of && job.name_any().starts_with(begin)
        };
        let look = || async {
            let jobs = self
                .api::<Job>()
                .list(&ListParams::default())
                .await
                .unwrap();
            jobs.items.into_iter().find(of)
        };
        self.once(look, begin).await
    }

    fn workloads(&self) -> Workloads {
        Workloads::new(self.client.clone(), &self.namespace)
    }

    pub(crate) async fn says<K>(&self, object: &K, status: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        self.workloads().says(object, status).await.unwrap();
    }

    pub(crate) async fn set_is_ready(&self, name: &str) {
        let set = self.there(name).await;
        self.workloads().set_is_ready(&set).await.unwrap();
    }

    pub(crate) async fn deployment_is_ready(&self, name: &str) {
        let deployment = self.there(name).await;
        let said = self.workloads().deployment_is_ready(&deployment).await;
        said.unwrap();
    }

    pub(crate) async fn job_is_done(&self, job: &Job, kind: &str) {
        self.workloads().job_is_done(job, kind).await.unwrap();
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

    /// The operator has seen, and told, all that the user has changed.
    pub(crate) async fn is_looked_at(&self) {
        let looked = || async {
            let mailbell = self.mailbells().get("main").await.unwrap();
            let seen = mailbell.status?.observed_generation;
            (seen == mailbell.metadata.generation).then_some(())
        };
        self.once(looked, "a look").await;
    }

    /// Whatever there is does its work.
    pub(crate) async fn all_is_ready(&self) {
        self.workloads().all_are_ready().await.unwrap();
    }

    /// An operator that leads, and an installation of it that runs.
    pub(crate) async fn with_installation(&self) -> Operator {
        let operator = Operator::start(self, "one");
        self.create(&mailbell()).await;
        self.is_installed(IMAGE).await;
        self.until_ready_says("True Running").await;
        operator
    }

    /// All that there is to wait for.
    pub(crate) async fn is_installed(&self, image: &str) {
        self.secrets_are_made(image).await;
        self.set_is_ready("main-nats").await;
        let job = self.setup(image).await;
        self.job_is_done(&job, "Complete").await;
        self.deployment_is_ready("main-gateway").await;
        self.set_is_ready("main-watcher").await;
        self.deployment_is_ready("main-admin").await;
    }
}

pub(crate) const IMAGE: &str = "mailbell.dev/mailbell:0.1.0";
pub(crate) const NEXT: &str = "mailbell.dev/mailbell:0.2.0";
