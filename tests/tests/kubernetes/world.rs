//! A cluster, a mail server beside it, and Mailbell on it, with the accounts and devices of a test.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use mailbell_test_cluster::{Cluster, ClusterOptions, archive};
use mailbell_test_servers::{Certificate, Dovecot, DovecotOptions};
use mailbell_tests::{
    auditor::{Place, Truth},
    cli,
    device::Device,
    installation::write_secret,
    load::deliver,
    mailbox,
    world::{SETTLE_LIMIT, judge},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::balancer::Balancer;

/// How long a change of the cluster may take. Generous: tests share two cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// By which pods know the mail server.
const MAIL_HOST: &str = "mail.test";
const NAMESPACE: &str = "mail";
/// By which the operator knows the admin API.
const ADMIN_HOST: &str = "main-admin.mail.svc";
const USER: &str = "alice";
/// Of the operator, watchers, gateways and the admin API: two each.
const PODS: usize = 8;
const NATS_SERVERS: usize = 3;
/// Of the image that `make image` makes, and of the same with another name.
pub(crate) const TAG: &str = env!("CARGO_PKG_VERSION");
pub(crate) const NEXT_TAG: &str = "next";

/// All of it. In this order it ends.
#[derive(Debug)]
pub(crate) struct World {
    push: Balancer,
    admin: Balancer,
    pub(crate) cluster: Cluster,
    pub(crate) dovecot: Arc<Dovecot>,
    directory: TempDir,
    certificate: Certificate,
    account: String,
    next: Arc<AtomicU64>,
}

impl World {
    /// A cluster of three nodes with an installation that is ready, and one account.
    pub(crate) async fn start() -> Self {
        let certificate =
            Certificate::for_names(&["localhost", "127.0.0.1", MAIL_HOST, ADMIN_HOST]);
        let images = ["mailbell", "mailbell-next", "nats"].map(|name| archive(name).unwrap());
        let options = ClusterOptions {
            nodes: 3,
            images: images.to_vec(),
            names: vec![MAIL_HOST.to_owned()],
        };
        let dovecot = DovecotOptions {
            users: vec![(USER.to_owned(), "secret".to_owned())],
            certificate: Some(certificate.clone()),
            // Pods come by the bridge.
            config: "listen = *\n".to_owned(),
            ..DovecotOptions::default()
        };
        let (cluster, dovecot) = tokio::join!(Cluster::start(&options), Dovecot::start(dovecot));
        let cluster = cluster.unwrap();
        install(&cluster, &certificate).await;
        let push = balancer(&cluster, "main-gateway").await;
        let admin = balancer(&cluster, "main-admin").await;
        let directory = TempDir::with_prefix("mailbell-test-").unwrap();
        let mut world = Self {
            push,
            admin,
            cluster,
            dovecot: Arc::new(dovecot.unwrap()),
            directory,
            certificate,
            account: String::new(),
            next: Arc::new(AtomicU64::new(1)),
        };
        world.add_account().await;
        world
    }

    async fn add_account(&mut self) {
        let token = "get secret main-admin-token -o jsonpath={.data.tokens}";
        let token = BASE64_STANDARD.decode(self.kubectl(token).await).unwrap();
        let token = String::from_utf8(token).unwrap();
        write_secret(&self.path("admin.token"), &token).unwrap();
        write_secret(&self.path("password"), "secret\n").unwrap();
        fs::write(self.path("ca.crt"), &self.certificate.authority_pem).unwrap();
        let url = format!("imaps://{USER}@{MAIL_HOST}:{}", self.dovecot.imaps_port());
        let password = self.path("password");
        let password = password.to_str().unwrap();
        let added = [
            "account",
            "add",
            &url,
            "--password-file",
            password,
            "--json",
        ];
        self.account = text(&self.cli(&added).await, "id");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command as a person types it outside of the cluster; what it printed.
    async fn cli(&self, arguments: &[&str]) -> Value {
        let mut command = cli::command(self.directory.path(), arguments).unwrap();
        command
            .env("MAILBELL_ADMIN_URL", self.admin.url())
            .env("MAILBELL_ADMIN_TOKEN_FILE", self.path("admin.token"))
            .env("MAILBELL_ADMIN_CA", self.path("ca.crt"));
        let said = cli::finish(command).await.unwrap();
        serde_json::from_str(&said.ok().unwrap()).unwrap()
    }

    /// A device outside of the cluster, connected and live.
    pub(crate) async fn device(&self) -> Device {
        let minted = ["token", "mint", "--json", "--account", &self.account];
        let token = text(&self.cli(&minted).await, "token");
        let places = vec![Place::inbox(&self.account)];
        let device = Device::new(self.push.url(), token, places).unwrap();
        let mut device = device.trusting(self.certificate.authority_pem.clone());
        device.start().unwrap();
        let live = device.wait(SETTLE_LIMIT, "live", |journal| journal.live);
        live.await.unwrap();
        device
    }

    pub(crate) fn user(&self) -> String {
        USER.to_owned()
    }

    /// Numbers for messages, each given once.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u64> + Send + 'static {
        let next = self.next.clone();
        std::iter::repeat_with(move || next.fetch_add(1, Ordering::Relaxed))
    }

    /// One more message, after which each device must have all that lies in the mailbox, once and in order.
    pub(crate) async fn judge(&self, devices: &[&Device]) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let last = deliver(&self.dovecot, USER, number..number + 1).await;
        last.unwrap();
        let truth: Truth = mailbox::read(&self.dovecot, USER, "INBOX").await.unwrap();
        let all = BTreeMap::from([(Place::inbox(&self.account), truth)]);
        judge(devices, &all).await.unwrap();
    }

    /// In the namespace of the installation; what it printed.
    pub(crate) async fn kubectl(&self, words: &str) -> String {
        kubectl(&self.cluster, words).await
    }

    pub(crate) async fn helm(&self, words: &str) -> String {
        helm(&self.cluster, words).await
    }

    /// Waits until all pods are there and ready, those of Mailbell with this image, and the installation is too.
    pub(crate) async fn wait_running(&self, tag: &str) {
        let image = format!("mailbell.dev/mailbell:{tag}");
        self.until("all pods run", async || {
            let pods = self.pods().await;
            // What jobs leave has ended.
            let stay = pods.iter().filter(|pod| owner(pod) != "Job");
            let ready: Vec<&str> = stay.filter(|pod| is_ready(pod)).map(image_of).collect();
            let ours = ready.iter().filter(|of| **of == image).count();
            ready.len() == PODS + NATS_SERVERS && ours == PODS
        })
        .await;
        self.wait_ready().await;
    }

    pub(crate) async fn wait_ready(&self) {
        wait_ready(&self.cluster).await;
    }

    /// Waits until the installation shows its one mailbox and its one device: the operator has asked the admin API and all gateways.
    pub(crate) async fn wait_counted(&self) {
        let counts = "get mailbell main -o jsonpath={.status.counts.mailboxes}/{.status.counts.watched}/{.status.counts.devices}";
        self.until("the mailbox and the device are counted", async || {
            self.kubectl(counts).await == "1/1/1"
        })
        .await;
    }

    /// The pods of the namespace, as the API server has them.
    pub(crate) async fn pods(&self) -> Vec<Value> {
        let list: Value = serde_json::from_str(&self.kubectl("get pods -o json").await).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// That the loss of a node takes no part of the installation away.
    pub(crate) async fn assert_spread(&self) {
        let pods = self.pods().await;
        for part in ["watcher", "gateway", "admin", "nats"] {
            let of_part = pods.iter().filter(|pod| component(pod) == part);
            let nodes: Vec<&str> = of_part
                .map(|pod| pod["spec"]["nodeName"].as_str().unwrap())
                .collect();
            let distinct: BTreeSet<&str> = nodes.iter().copied().collect();
            assert!(nodes.len() > 1, "{part} has {} pods", nodes.len());
            assert_eq!(distinct.len(), nodes.len(), "{part}: {nodes:?}");
        }
    }

    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds().await {
            if Instant::now() > deadline {
                panic!("not in time: {what}\n{}", state(&self.cluster).await);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn owner(pod: &Value) -> &str {
    let owner = pod["metadata"]["ownerReferences"][0]["kind"].as_str();
    owner.unwrap_or_default()
}

fn component(pod: &Value) -> &str {
    let component = pod["metadata"]["labels"]["app.kubernetes.io/component"].as_str();
    component.unwrap_or_default()
}

fn image_of(pod: &Value) -> &str {
    let image = pod["spec"]["containers"][0]["image"].as_str();
    image.unwrap_or_default()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

async fn kubectl(cluster: &Cluster, words: &str) -> String {
    let mut all = vec!["--namespace", NAMESPACE];
    all.extend(words.split(' '));
    cluster.tool("kubectl").done(&all, "").await.unwrap()
}

async fn helm(cluster: &Cluster, words: &str) -> String {
    let mut all = vec!["--namespace", NAMESPACE];
    all.extend(words.split(' '));
    cluster.tool("helm").done(&all, "").await.unwrap()
}

/// Both charts, then the object, as docs/operating.md has it.
async fn install(cluster: &Cluster, certificate: &Certificate) {
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts");
    let charts = charts.display();
    helm(
        cluster,
        &format!("install crds {charts}/mailbell-crds --create-namespace --wait"),
    )
    .await;
    let given = "--set installations={main} --wait --timeout 3m";
    helm(
        cluster,
        &format!("install mailbell {charts}/mailbell {given}"),
    )
    .await;
    let objects = json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "imap-ca" },
            "data": { "ca.crt": certificate.authority_pem },
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": { "name": "tls" },
            "type": "kubernetes.io/tls",
            "stringData": { "tls.crt": certificate.certificate_pem, "tls.key": certificate.key_pem },
        },
        {
            "apiVersion": "mailbell.dev/v1alpha1",
            "kind": "Mailbell",
            "metadata": { "name": "main" },
            "spec": {
                "watchers": {
                    "scale": { "min": 2, "max": 2 },
                    "allowPrivateHosts": true,
                    "imapCaConfigMap": "imap-ca",
                },
                "gateways": {
                    "scale": { "min": 2, "max": 2 },
                    "drainSeconds": 10,
                    "tls": { "secretName": "tls" },
                    "service": { "type": "NodePort" },
                },
                // Of one authority with the mail server's.
                "admin": { "tls": { "secretName": "tls" }, "caConfigMap": "imap-ca", "service": { "type": "NodePort" } },
                "nats": { "managed": { "nodes": NATS_SERVERS, "image": "mailbell.dev/tests/nats:1", "storage": { "size": "8Gi" } } },
            },
        },
    ]});
    let arguments = ["--namespace", NAMESPACE, "apply", "-f", "-"];
    let applied = cluster
        .tool("kubectl")
        .done(&arguments, &objects.to_string())
        .await;
    applied.unwrap();
    wait_ready(cluster).await;
}

async fn wait_ready(cluster: &Cluster) {
    let ready = format!(
        "wait mailbell/main --for=condition=Ready --timeout={}s",
        LIMIT.as_secs()
    );
    let mut all = vec!["--namespace", NAMESPACE];
    all.extend(ready.split(' '));
    let waited = cluster.tool("kubectl").done(&all, "").await;
    if let Err(error) = waited {
        panic!("{error}\n{}", state(cluster).await);
    }
}

/// For the text of a failure.
async fn state(cluster: &Cluster) -> String {
    let mut all = String::new();
    for words in [
        "get nodes,mailbells,pods,jobs,pvc -o wide",
        "get events --sort-by=.lastTimestamp",
        "logs deployment/mailbell-operator --tail=20",
    ] {
        all.push_str(&kubectl(cluster, words).await);
    }
    all
}

/// In front of the port that this service has on each node.
async fn balancer(cluster: &Cluster, service: &str) -> Balancer {
    let port = format!("get service {service} -o jsonpath={{.spec.ports[0].nodePort}}");
    let port = kubectl(cluster, &port).await.parse().unwrap();
    let nodes = (1..=3).map(|number| (cluster.node_address(number), port));
    Balancer::start(nodes.collect()).await.unwrap()
}
