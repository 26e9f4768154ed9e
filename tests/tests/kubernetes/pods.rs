//! The pods of an installation, as the API server has them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use mailbell_test_cluster::Cluster;
use mailbell_tests::http::{get, metric};
use serde_json::Value;

use crate::{install::kubectl, world::World};

/// What the names of the operator's pods begin with.
pub(crate) const OPERATOR: &str = "mailbell-operator";
/// Where pods show their metrics.
pub(crate) const METRICS_PORT: u16 = 7445;

/// Of the operator and the admin API: two each.
const OTHERS: usize = 4;
pub(crate) const NATS_SERVERS: usize = 3;

/// One pod.
#[derive(Debug, Clone)]
pub(crate) struct Pod(Value);

impl Pod {
    /// The kind of what has made it.
    fn owner(&self) -> &str {
        let owner = &self.0["metadata"]["ownerReferences"][0]["kind"];
        owner.as_str().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap()
    }

    pub(crate) fn component(&self) -> &str {
        let component = &self.0["metadata"]["labels"]["app.kubernetes.io/component"];
        component.as_str().unwrap_or_default()
    }

    pub(crate) fn node(&self) -> &str {
        self.0["spec"]["nodeName"].as_str().unwrap_or_default()
    }

    pub(crate) fn image(&self) -> &str {
        let image = &self.0["spec"]["containers"][0]["image"];
        image.as_str().unwrap_or_default()
    }

    /// Whether it is to be given what is in this Secret.
    pub(crate) fn names(&self, secret: &str) -> bool {
        self.0["spec"]
            .to_string()
            .contains(&format!("\"{secret}\""))
    }

    /// The address of its node, once it has one.
    pub(crate) fn host(&self) -> Option<Ipv4Addr> {
        self.0["status"]["hostIP"].as_str()?.parse().ok()
    }

    /// Where it listens on a port.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        let address = self.0["status"]["podIP"].as_str().unwrap();
        SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
    }

    /// Which it is, and how often its container was started anew.
    pub(crate) fn life(&self) -> (String, u64) {
        let uid = self.0["metadata"]["uid"].as_str().unwrap().to_owned();
        let restarts = &self.0["status"]["containerStatuses"][0]["restartCount"];
        // Of one that is new nothing is said yet.
        (uid, restarts.as_u64().unwrap_or_default())
    }

    /// Kills its process, of which the kubelet is told nothing. Whether there was one.
    pub(crate) fn kill(&self, cluster: &Cluster) -> bool {
        let id = &self.0["status"]["containerStatuses"][0]["containerID"];
        let id = id.as_str().and_then(|id| id.strip_prefix("containerd://"));
        id.is_some_and(|id| cluster.kill_container(id).unwrap())
    }

    /// The sum of a metric's series, 0 if there is none.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = get(self.at(METRICS_PORT), "/metrics").await.unwrap();
        metric(&page.body, name, labels).unwrap_or_default()
    }

    /// How many mailboxes it watches, or to how many devices it has a stream.
    pub(crate) async fn burden(&self) -> f64 {
        let watched = ["health=\"watching\""];
        match self.component() {
            "watcher" => self.metric("mailbell_watcher_sessions", &watched).await,
            "gateway" => self.metric("mailbell_gateway_devices", &[]).await,
            _ => 0.0,
        }
    }

    /// It is not about to go.
    pub(crate) fn is_ready(&self) -> bool {
        let conditions = self.0["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        self.0["metadata"]["deletionTimestamp"].is_null()
            && conditions
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }
}

/// All of the namespace, but what jobs leave, which has ended.
pub(crate) async fn pods(cluster: &Cluster) -> Vec<Pod> {
    let list: Value = serde_json::from_str(&kubectl(cluster, "get pods -o json").await).unwrap();
    let all = list["items"].as_array().unwrap().iter().cloned().map(Pod);
    all.filter(|pod| pod.owner() != "Job").collect()
}

impl World {
    pub(crate) async fn pods(&self) -> Vec<Pod> {
        pods(&self.cluster).await
    }

    pub(crate) async fn pods_of(&self, part: &str) -> Vec<Pod> {
        let mut pods = self.pods().await;
        pods.retain(|pod| pod.component() == part);
        pods
    }

    pub(crate) async fn operators(&self) -> Vec<Pod> {
        let mut pods = self.pods().await;
        pods.retain(|pod| pod.name().starts_with(OPERATOR));
        pods
    }

    /// The pod of a part to which most mailboxes or devices belong.
    pub(crate) async fn busiest(&self, part: &str) -> Pod {
        let mut found = None;
        for pod in self.pods_of(part).await {
            let burden = pod.burden().await;
            if found.as_ref().is_none_or(|(most, _)| burden > *most) {
                found = Some((burden, pod));
            }
        }
        found.unwrap().1
    }

    /// Which pods there are, and how often each was started.
    pub(crate) async fn lives(&self) -> BTreeSet<(String, u64)> {
        self.pods().await.iter().map(Pod::life).collect()
    }

    /// Waits until all pods are there and ready, those of Mailbell with this image, and the installation is too.
    pub(crate) async fn wait_running(&self, tag: &str) {
        self.wait_scaled(tag, 2).await;
    }

    /// The same, with so many watchers and as many gateways. Those that were more are gone.
    pub(crate) async fn wait_scaled(&self, tag: &str, each: usize) {
        let image = format!("mailbell.dev/mailbell:{tag}");
        let ours = OTHERS + 2 * each;
        self.until("all pods run", async || {
            let pods = self.pods().await;
            let ready: Vec<&Pod> = pods.iter().filter(|pod| pod.is_ready()).collect();
            let of = |part: &str| pods.iter().filter(|pod| pod.component() == part).count();
            ready.len() == ours + NATS_SERVERS
                && ready.iter().filter(|pod| pod.image() == image).count() == ours
                && ["watcher", "gateway"].iter().all(|part| of(part) == each)
        })
        .await;
        self.wait_ready().await;
    }

    /// That the loss of a node takes no part of the installation away.
    pub(crate) async fn assert_spread(&self) {
        let pods = self.pods().await;
        for part in ["watcher", "gateway", "admin", "nats"] {
            let of_part = pods.iter().filter(|pod| pod.component() == part);
            let nodes: Vec<&str> = of_part.map(Pod::node).collect();
            let distinct: BTreeSet<&str> = nodes.iter().copied().collect();
            assert!(nodes.len() > 1, "{part} has {} pods", nodes.len());
            assert_eq!(distinct.len(), nodes.len(), "{part}: {nodes:?}");
        }
    }
}
