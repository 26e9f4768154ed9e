//! One API server for all tests, with Mailbell's custom resources; each test has a namespace of its own.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use mailbell_operator::{
    api::{MailAccount, MailProvider, Mailbell},
    crds,
};
use mailbell_test_cluster::{ApiServer, Binaries, MISSING};
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(60);

/// Goes with the last test that has it: what is static is never dropped.
static SERVER: Mutex<Weak<ApiServer>> = Mutex::const_new(Weak::new());
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// What one test has for itself.
pub(crate) struct World {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) client: Client,
    pub(crate) namespace: String,
}

impl World {
    /// `None`, and a line on standard error: there is no Kubernetes here. With `CI` set that is a failure.
    pub(crate) async fn new() -> Option<Self> {
        let mut shared = SERVER.lock().await;
        let server = match shared.upgrade() {
            Some(server) => server,
            None => with_definitions().await?,
        };
        *shared = Arc::downgrade(&server);
        drop(shared);
        Some(Self::on(server).await)
    }

    /// On a server of its own, without Mailbell's definitions.
    pub(crate) async fn alone() -> Option<Self> {
        Some(Self::on(bare().await?).await)
    }

    /// On a server of its own, which it may restart.
    pub(crate) async fn alone_with_definitions() -> Option<Self> {
        Some(Self::on(with_definitions().await?).await)
    }

    /// Another namespace of the same server.
    pub(crate) async fn beside(&self) -> Self {
        Self::on(Arc::clone(&self.server)).await
    }

    /// Stops the server and starts it again; only of one that nobody else has.
    pub(crate) async fn restart(&mut self) {
        let server = Arc::get_mut(&mut self.server).unwrap();
        server.restart().await.unwrap();
    }

    async fn on(server: Arc<ApiServer>) -> Self {
        let client = server.client().await.unwrap();
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("test-{number}");
        let object = json!({ "metadata": { "name": namespace } });
        let object: Namespace = serde_json::from_value(object).unwrap();
        let (namespaces, params) = (Api::all(client.clone()), PostParams::default());
        namespaces.create(&params, &object).await.unwrap();
        Self {
            server,
            client,
            namespace,
        }
    }

    pub(crate) fn mailbells(&self) -> Api<Mailbell> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn accounts(&self) -> Api<MailAccount> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn providers(&self) -> Api<MailProvider> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// What a person types: what it says, and whether it worked.
    pub(crate) async fn kubectl(&self, arguments: &[&str], input: &str) -> (bool, String) {
        self.type_in("kubectl", arguments, input).await
    }

    /// The same.
    pub(crate) async fn helm(&self, arguments: &[&str]) -> (bool, String) {
        self.type_in("helm", arguments, "").await
    }

    async fn type_in(&self, tool: &str, arguments: &[&str], input: &str) -> (bool, String) {
        let mut all = vec!["--namespace", &self.namespace];
        all.extend(arguments);
        let output = self.server.tool(tool).run(&all, input).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }
}

async fn bare() -> Option<Arc<ApiServer>> {
    let Some(binaries) = Binaries::find() else {
        eprintln!("left out: {MISSING}");
        return None;
    };
    Some(Arc::new(ApiServer::start(binaries).await.unwrap()))
}

async fn with_definitions() -> Option<Arc<ApiServer>> {
    let server = bare().await?;
    let client = server.client().await.unwrap();
    define(&client, crds::definitions()).await;
    define(&client, definitions_of_others(&server)).await;
    Some(server)
}

/// Until the server takes objects of these kinds.
pub(crate) async fn define(client: &Client, definitions: Vec<CustomResourceDefinition>) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions {
        let name = definition.name_any();
        let (params, patch) = (PatchParams::apply("tests"), Patch::Apply(&definition));
        api.patch(&name, &params, &patch).await.unwrap();
        let established = await_condition(api.clone(), &name, is_crd_established());
        soon(established).await.unwrap();
    }
}

/// Of the Gateway API, of the Prometheus operator and of cert-manager.
pub(crate) fn definitions_of_others(server: &ApiServer) -> Vec<CustomResourceDefinition> {
    let files = std::fs::read_dir(server.definitions())
        .unwrap()
        .map(|file| {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            serde_saphyr::from_str(&text).unwrap()
        });
    files.collect()
}

/// Waits for what must come.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap()
}

/// The manifest of the guide: with nothing in it that has a default.
pub(crate) fn mailbell() -> Value {
    json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "Mailbell",
        "metadata": { "name": "main" },
        "spec": {
            "gateways": { "tls": { "secretName": "push-tls" } },
            "admin": { "tls": { "secretName": "admin-tls" } },
            "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } },
        },
    })
}

pub(crate) fn account() -> Value {
    json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "MailAccount",
        "metadata": { "name": "bob" },
        "spec": {
            "mailbell": "main",
            "server": { "host": "imap.example.org", "user": "bob" },
            "password": { "secretName": "bob" },
        },
    })
}

pub(crate) fn provider() -> Value {
    json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "MailProvider",
        "metadata": { "name": "example" },
        "spec": { "mailbell": "main", "hosts": ["imap.example.org", "*.example.net"] },
    })
}

/// A copy with something else at this place, such as `/spec/nats/managed/nodes`; null takes it away.
pub(crate) fn with(object: &Value, place: &str, value: Value) -> Value {
    let mut copy = object.clone();
    let (parents, name) = place.rsplit_once('/').unwrap();
    let mut at = &mut copy;
    for parent in parents.split('/').skip(1) {
        at = at
            .as_object_mut()
            .unwrap()
            .entry(parent)
            .or_insert(json!({}));
    }
    let at = at.as_object_mut().unwrap();
    if value.is_null() {
        at.remove(name);
    } else {
        at.insert(name.to_owned(), value);
    }
    copy
}
