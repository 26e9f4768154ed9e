//! Where an installation is stored.

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::pods::{Pods, of_kubernetes};

/// Where everything is stored: in NATS servers of yours, or in some that the operator runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.external) != has(self.managed)")
        .message("name either nats.external (servers of yours) or nats.managed (servers that the operator runs), not both"),
    validation = Rule::new("has(self.external) == has(oldSelf.external)")
        .message("what is stored cannot be moved between nats.external and nats.managed: make another installation")
)]
pub struct Nats {
    /// Servers of yours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalNats>,
    /// Servers that the operator runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedNats>,
}

/// NATS servers of yours, version 2.11 or newer, with JetStream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.allowPlaintext) && self.allowPlaintext) || self.urls.all(url, url.startsWith('tls://'))")
        .message("a nats:// address is not encrypted: make it tls://, or say allowPlaintext: true"),
    validation = Rule::new("!has(self.caConfigMap) || self.urls.exists(url, url.startsWith('tls://'))")
        .message("caConfigMap is for TLS, which no address asks for: make them tls://, or leave caConfigMap out")
)]
pub struct ExternalNats {
    /// Their addresses: `tls://host:port`, or `nats://host:port`.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 500), regex(pattern = "^(tls|nats)://[^/, ]+$"))
    )]
    pub urls: Vec<String>,
    /// Secret of this namespace with the passwords of the roles' users: `setup`, `watcher`, `gateway` and `admin`. `mailbell setup
    /// --print-permissions` prints these users for the servers.
    #[schemars(length(min = 1, max = 253))]
    pub users_secret: String,
    /// ConfigMap of this namespace whose `ca.crt` has the root certificates of the servers. Unset: the usual ones.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map: Option<String>,
    /// Whether a connection without TLS is allowed.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// How many servers keep each message. 3 in a cluster.
    #[x_kube(validation = Rule::new("self in [1, 3, 5]").message("replicas must be 1, 3 or 5"))]
    #[serde(default = "one")]
    pub replicas: i32,
}

fn one() -> i32 {
    1
}

fn three() -> i32 {
    3
}

/// NATS servers that the operator runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.nodes == oldSelf.nodes")
        .message("the number of NATS servers cannot be changed: make another installation"),
    validation = Rule::new("!has(self.resources) || !has(self.pods) || !has(self.pods.resources)")
        .message("say what NATS servers get once: in nats.managed.resources, or in nats.managed.pods.resources")
)]
pub struct ManagedNats {
    /// How many: 3 lose nothing when one of them does; 1 is for trying it out.
    #[x_kube(validation = Rule::new("self in [1, 3]").message("nodes must be 1 or 3"))]
    #[serde(default = "three")]
    pub nodes: i32,
    /// Their image. It is yours to choose and to change; 2.11 or newer.
    #[schemars(length(min = 1, max = 500))]
    pub image: String,
    /// Their disks.
    pub storage: Storage,
    /// Secret of this namespace with the passwords of the roles' users: `setup`, `watcher`, `gateway` and `admin`. Each is of letters,
    /// digits, `-` and `_`, and begins with a letter. Unset: one is made, in `<name>-nats-users`.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users_secret: Option<String>,
    /// How connections to them, and between them, are encrypted. Unset: with a certificate that is made, in `<name>-nats-tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<NatsTls>,
    /// CPU and memory of a server. Unset: 1 GiB, and half a core asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<ResourceRequirements>>")]
    pub resources: Option<ResourceRequirements>,
    /// Where they run. Their resources stand here or above, not in both.
    #[serde(default)]
    pub pods: Pods,
}

impl ManagedNats {
    /// The Secret that is named for their certificate.
    #[must_use]
    pub fn tls_secret(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.secret_name.as_str())
    }
}

/// A certificate of NATS servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NatsTls {
    /// Secret of this namespace with `tls.crt`, `tls.key` and `ca.crt`, as cert-manager makes it. It is one for server and client, since
    /// servers show it to one another, with the name `*.<name>-nats.<namespace>.svc`; they and all pods trust whom `ca.crt` has. Servers
    /// read a renewed one within minutes, without a restart. Another Secret than before is named once all trust its authority: docs/operating.md says how.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// A disk of each server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.size == oldSelf.size")
        .message("the size of disks that exist cannot be changed here: make another installation"),
    validation = Rule::new("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)")
        .message("the storage class of disks that exist cannot be changed")
)]
pub struct Storage {
    /// Its size: a whole number of `Gi` or `Ti`, at least `8Gi`, of which Mailbell sets 7 aside from the start.
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,4}(Gi|Ti)$') && quantity(self).compareTo(quantity('8Gi')) >= 0")
        .message("size is a whole number of Gi or Ti such as 20Gi, at least 8Gi"))]
    #[schemars(length(min = 3, max = 7))]
    pub size: String,
    /// Its storage class. Unset: the cluster's default.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}
