//! What a person types to install Mailbell, and what is written into objects.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use mailbell_test_cluster::Cluster;
use mailbell_test_servers::Certificate;
use serde_json::{Value, json};

use crate::{balancer::Balancer, pods::NATS_SERVERS};

/// How long a change of the cluster may take. Generous: tests share two cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// By which pods know the mail server.
pub(crate) const MAIL_HOST: &str = "mail.test";
pub(crate) const NAMESPACE: &str = "mail";
/// Of the installation.
pub(crate) const NAME: &str = "main";
/// Of the mail provider.
pub(crate) const PROVIDER: &str = "provider";
/// By which the operator knows the admin API.
pub(crate) const ADMIN_HOST: &str = "main-admin.mail.svc";
/// The chart of the operator, and that of the definitions.
pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/mailbell");
const DEFINITIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/mailbell-crds");

pub(crate) async fn kubectl(cluster: &Cluster, words: &str) -> String {
    tool(cluster, "kubectl", words).await
}

pub(crate) async fn helm(cluster: &Cluster, words: &str) -> String {
    tool(cluster, "helm", words).await
}

async fn tool(cluster: &Cluster, name: &str, words: &str) -> String {
    attempt(cluster, name, words).await.unwrap()
}

async fn attempt(cluster: &Cluster, name: &str, words: &str) -> io::Result<String> {
    let mut all = vec!["--namespace", NAMESPACE];
    all.extend(words.split(' '));
    cluster.tool(name).done(&all, "").await
}

pub(crate) async fn apply(cluster: &Cluster, objects: Vec<Value>) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    let arguments = ["--namespace", NAMESPACE, "apply", "-f", "-"];
    let tool = cluster.tool("kubectl");
    tool.done(&arguments, &list.to_string()).await.unwrap();
}

pub(crate) async fn install_definitions(cluster: &Cluster) {
    let definitions = format!("install crds {DEFINITIONS} --create-namespace --wait");
    helm(cluster, &definitions).await;
}

/// The chart of the operator, of this image.
pub(crate) async fn install_operator(cluster: &Cluster, tag: &str) {
    let given = format!("--set installations={{{NAME}}} --set image.tag={tag} --wait --timeout 3m");
    helm(cluster, &format!("install mailbell {CHART} {given}")).await;
}

/// The certificate by which devices and commands know the installation, as cert-manager keeps it.
pub(crate) fn tls_secret(certificate: &Certificate) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "tls" },
        "type": "kubernetes.io/tls",
        "stringData": { "tls.crt": certificate.certificate_pem, "tls.key": certificate.key_pem },
    })
}

/// What the uninstalling leaves of the installation, as the chart says: its Secrets, and the disks of its NATS servers.
pub(crate) fn kept() -> BTreeSet<String> {
    let secrets = [
        "admin-token",
        "key-ring",
        "nats-tls",
        "nats-users",
        "operator-token",
        "signing-key",
    ];
    let secrets = secrets.map(|what| format!("secret/{NAME}-{what}"));
    let disks = (0..NATS_SERVERS).map(|n| format!("persistentvolumeclaim/data-{NAME}-nats-{n}"));
    secrets.into_iter().chain(disks).collect()
}

/// Who is trusted.
pub(crate) fn roots(certificate: &Certificate) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "imap-ca" },
        "data": { "ca.crt": certificate.authority_pem },
    })
}

/// Who runs the mail server, and whom to trust there.
pub(crate) fn provider() -> Value {
    json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "MailProvider",
        "metadata": { "name": PROVIDER },
        "spec": { "mailbell": NAME, "hosts": [MAIL_HOST], "caConfigMap": "imap-ca" },
    })
}

/// What is wanted. Watchers trust the mail server by it, or by a provider alone.
pub(crate) fn installation(trusts: bool) -> Value {
    json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "Mailbell",
        "metadata": { "name": NAME },
        "spec": {
            "watchers": {
                "scale": { "min": 2, "max": 2 },
                "allowPrivateHosts": true,
                "imapCaConfigMap": trusts.then_some("imap-ca"),
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
    })
}

pub(crate) async fn wait_ready(cluster: &Cluster) {
    let seconds = LIMIT.as_secs();
    let ready = format!("wait mailbell/{NAME} --for=condition=Ready --timeout={seconds}s");
    let mut all = vec!["--namespace", NAMESPACE];
    all.extend(ready.split(' '));
    let waited = cluster.tool("kubectl").done(&all, "").await;
    if let Err(error) = waited {
        panic!("{error}\n{}", state(cluster).await);
    }
}

pub(crate) async fn until(cluster: &Cluster, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds().await {
        if Instant::now() > deadline {
            panic!("not in time: {what}\n{}", state(cluster).await);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// For the text of a failure.
async fn state(cluster: &Cluster) -> String {
    let mut all = String::new();
    for words in [
        "get nodes,mailbells,mailaccounts,pods,jobs,pvc -o wide",
        "get events --sort-by=.lastTimestamp",
        "logs deployment/mailbell-operator --tail=20",
    ] {
        let said = attempt(cluster, "kubectl", words).await;
        // An operator that is away has no logs.
        all.push_str(&said.unwrap_or_else(|error| error.to_string()));
    }
    all
}

/// Where this service is reached: its port on each node.
pub(crate) async fn targets(cluster: &Cluster, service: &str) -> Vec<(Ipv4Addr, u16)> {
    let port = format!("get service {service} -o jsonpath={{.spec.ports[0].nodePort}}");
    let port = kubectl(cluster, &port).await.parse().unwrap();
    let at = |number| (cluster.node_address(number), port);
    (1..=3).map(at).collect()
}

/// In front of the port that this service has on each node.
pub(crate) async fn balancer(cluster: &Cluster, service: &str) -> Balancer {
    let anywhere = (Ipv4Addr::LOCALHOST, 0).into();
    let targets = targets(cluster, service).await;
    Balancer::start(anywhere, targets).await.unwrap()
}

/// The same in front of a service that was made anew.
pub(crate) async fn turn(balancer: &Balancer, cluster: &Cluster, service: &str) {
    let targets = targets(cluster, service).await;
    balancer.turn_to(targets).await.unwrap();
}
