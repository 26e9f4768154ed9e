//! One installation.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{
    Content,
    nats::Nats,
    pods::{Pods, Scale},
};

/// What is wanted of an installation. Everything but `nats` and a way to encrypt has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "mailbell.dev",
    version = "v1alpha1",
    kind = "Mailbell",
    namespaced,
    doc = "One installation of Mailbell: push e-mail for ordinary IMAP mailboxes.",
    status = "MailbellStatus",
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether mailboxes are watched and devices served: True also where some mailboxes are not watched, and Message says so"
    ),
    printcolumn(
        name = "Mailboxes",
        type_ = "integer",
        json_path = ".status.counts.mailboxes",
        description = "Mailboxes that are registered"
    ),
    printcolumn(
        name = "Watched",
        type_ = "integer",
        json_path = ".status.counts.watched",
        description = "Mailboxes that are watched now"
    ),
    printcolumn(
        name = "Devices",
        type_ = "integer",
        json_path = ".status.counts.devices",
        description = "Devices with an open stream"
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.versions.running",
        description = "The release that watchers and gateways run, or several while that changes"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What is going on, in words"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Looked",
        type_ = "date",
        json_path = ".status.lookedAt",
        description = "How long ago an operator has got through a look, within some minutes: not for 15, and none works, or it fails"
    ),
    validation = Rule::new("self.metadata.name.matches('^[a-z][a-z0-9-]{0,31}$')")
        .message("the name is the name of the installation, and begins those of its services: a letter, then at most 31 letters, digits and dashes")
)]
#[serde(rename_all = "camelCase")]
pub struct MailbellSpec {
    /// Image of all pods. Unset: the image of the operator. Changing it is an upgrade, pod by pod.
    #[schemars(length(min = 1, max = 500))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Secrets of this namespace with which the image is pulled.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    /// While true nothing is watched and nobody is served; what is stored stays.
    #[serde(default)]
    pub paused: bool,
    /// The most of messages that is read from mailboxes and shown to devices, whatever tokens allow.
    #[serde(default)]
    pub content: Content,
    /// The pods that hold the connections to mail servers.
    #[serde(default)]
    pub watchers: Watchers,
    /// The pods that hold the streams to devices.
    pub gateways: Gateways,
    /// The pods that serve the admin API.
    pub admin: Admin,
    /// Where everything is stored.
    pub nats: Nats,
    /// Whether Secrets are made that no field names. The chart mailbell has to know the installation's name for that (`installations`);
    /// without it they have to be there under the names that they would be made with, `<name>-operator-token` with a `token` among them.
    #[serde(default = "yes")]
    pub generate_secrets: bool,
    /// Logs, traces and metrics.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// While true, and once every pod runs this image, what only it knows is stored: there is no way back to an older one then.
    #[serde(default)]
    pub finish_upgrade: bool,
}

/// The pods that hold the connections to mail servers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Watchers {
    /// How many there may be.
    #[serde(default)]
    pub scale: Scale,
    /// So many mailboxes are given to a pod; more mailboxes make more pods. A pod takes a tenth more while others are away. Unset: 10,000.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailboxes_per_pod: Option<i32>,
    /// How many connections a second all watchers together begin to one mail host. Unset: 100.
    #[schemars(range(min = 1, max = 10_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects_per_host: Option<i32>,
    /// How many logins a second all watchers together try at one mail host. Unset: 50.
    #[schemars(range(min = 1, max = 10_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logins_per_host: Option<i32>,
    /// Whether mail servers on private, loopback and link-local addresses may be watched.
    #[serde(default)]
    pub allow_private_hosts: bool,
    /// Whether mail servers without TLS may be watched.
    #[serde(default)]
    pub allow_plaintext_imap: bool,
    /// ConfigMap of this namespace whose `ca.crt` has root certificates of mail servers, beside the usual ones.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imap_ca_config_map: Option<String>,
    /// Secret of this namespace whose `key.ring` has the keys that open stored passwords. Another one has the same keys, and may have
    /// more: watchers that could open nothing with it do not start. Unset: one is made, in `<name>-key-ring`.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_ring_secret: Option<String>,
    /// Tenants whose mailboxes rest: nobody connects for them until they are taken out again. Each of `a-z`, `0-9` and `-`.
    #[schemars(
        length(max = 1000),
        inner(length(min = 1, max = 63), regex(pattern = "^[a-z0-9-]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused_tenants: Vec<String>,
    /// Where they run, and with what.
    #[serde(default)]
    pub pods: Pods,
}

/// The pods that hold the streams to devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.gatewayApi) || !has(self.service) || !has(self.service.type) || self.service.type == 'ClusterIP'")
    .message("with gatewayApi the service is reached from inside the cluster: leave service.type out, or make it ClusterIP"))]
#[x_kube(validation = Rule::new("!has(self.gatewayApi) || !has(self.tls.secretName)")
    .message("with gatewayApi the Gateway has the certificate: say tls.insecurePlaintext: true"))]
pub struct Gateways {
    /// How many there may be.
    #[serde(default)]
    pub scale: Scale,
    /// So many devices are meant for a pod; more devices make more pods. A pod takes twice as many while others are away, at some 60 KB of
    /// memory each. Unset: 5,000.
    #[schemars(range(min = 1, max = 200_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices_per_pod: Option<i32>,
    /// Over so many seconds the devices of a pod that ends are sent to others. Unset: 60.
    #[schemars(range(min = 1, max = 3600))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<i32>,
    /// How devices' connections are encrypted.
    pub tls: ListenerTls,
    /// How devices reach them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Routes of the Gateway API to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_api: Option<GatewayApi>,
    /// Where they run, and with what.
    #[serde(default)]
    pub pods: Pods,
}

/// The pods that serve the admin API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.caConfigMap) || has(self.tls.secretName)")
    .message("caConfigMap is of use with a certificate only: name its secret in tls.secretName"))]
pub struct Admin {
    /// How many there are. Unset: 2.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// How connections to it are encrypted. A certificate has the name `<name>-admin.<namespace>.svc`, under which the operator calls it.
    pub tls: ListenerTls,
    /// ConfigMap of this namespace whose `ca.crt` has the root certificates of that certificate, for the operator. Unset: the usual ones.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map: Option<String>,
    /// Secret of this namespace whose `tokens` has the admin tokens, one a line. Unset: one is made, in `<name>-admin-token`.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<String>,
    /// Secret of this namespace whose `signing.pem` has the Ed25519 key that signs device tokens. Unset: one is made, in
    /// `<name>-signing-key`.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key_secret: Option<String>,
    /// How it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Where they run, and with what.
    #[serde(default)]
    pub pods: Pods,
}

/// How connections to a pod are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.secretName) != (has(self.insecurePlaintext) && self.insecurePlaintext)")
    .message("name a secret with a certificate in secretName, or say insecurePlaintext: true where something in front encrypts"))]
pub struct ListenerTls {
    /// Secret of this namespace with `tls.crt` and `tls.key`, as cert-manager makes it. It is read again when it changes.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_name: Option<String>,
    /// No TLS: tokens and mail cross the cluster's network in the clear, unless something in front encrypts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure_plaintext: bool,
}

/// How pods are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.loadBalancerSourceRanges) || (has(self.type) && self.type == 'LoadBalancer')")
    .message("loadBalancerSourceRanges are of use with type: LoadBalancer only"))]
pub struct Service {
    /// Its type. Unset: ClusterIP.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<ServiceType>,
    /// Its annotations, for what makes load balancers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// From these networks (CIDR) a load balancer may be reached.
    #[schemars(length(max = 64), inner(length(max = 64)))]
    #[x_kube(validation = Rule::new("self.all(range, isCIDR(range))").message("loadBalancerSourceRanges are networks such as 192.0.2.0/24"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_source_ranges: Vec<String>,
}

/// Its type. `NodePort`: on a port of each node that has one of its pods. `LoadBalancer`: by one of the cloud, which sends callers to such
/// nodes only. With both the pods see who calls. Unset: `ClusterIP`, inside the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ServiceType {
    /// Inside the cluster.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// On a port of each node that has one of its pods.
    NodePort,
    /// By a load balancer of the cloud.
    LoadBalancer,
}

/// Routes of the Gateway API to the gateways (a GRPCRoute without a time limit, as long streams need it).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayApi {
    /// The Gateways that devices come by.
    #[schemars(length(min = 1, max = 32))]
    pub parent_refs: Vec<ParentRef>,
    /// The names under which devices know it. None: all that the Gateway has.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
}

/// A Gateway of the Gateway API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace. Unset: this one.
    #[schemars(length(min = 1, max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its listener. Unset: all.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

fn yes() -> bool {
    true
}

/// Logs, traces and metrics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.otlpSample) || has(self.otlpEndpoint)")
    .message("otlpSample is of use with otlpEndpoint only"))]
pub struct Telemetry {
    /// What is logged: a level, or directives such as `info,mailbell_imap=debug`. Unset: `info,async_nats=warn`.
    #[schemars(length(min = 1, max = 500))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Collector of traces (OTLP over gRPC), such as `http://collector:4317`. Unset: none are sent.
    #[schemars(length(min = 1, max = 500), regex(pattern = "^https?://"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Share of messages that are traced, from 0 to 1. Unset: 1.
    #[schemars(range(min = 0, max = 1))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp_sample: Option<f64>,
}

/// How the installation is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailbellStatus {
    /// The generation of the spec that was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Progressing and Degraded, each with a sentence. Where something is missing and it serves all the same, as where some
    /// mailboxes are not watched, Ready is True with the reason Impaired.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// How many there are of what. Unset: not known now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// What runs. Unset: not known now of watchers and gateways, or nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<Versions>,
    /// Accounts whose MailAccounts are gone, and which are watched on. Unset: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_accounts: Option<LeftAccounts>,
    /// Tenants of its MailAccounts, where accounts are looked for that these leave; the first 1,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1_000))]
    pub tenants: Vec<String>,
    /// When an operator has looked; written anew after five to ten minutes, if nothing else is. Older than 15: none works, or its looks fail, and the rest of the
    /// status may hold no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked_at: Option<Time>,
}

/// Accounts that no MailAccount declares any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LeftAccounts {
    /// How many.
    pub count: i64,
    /// The first of them.
    #[schemars(length(max = 10))]
    pub ids: Vec<String>,
}

/// How many there are of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Mailboxes that are registered. Unset: not known now, as of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailboxes: Option<i64>,
    /// Mailboxes that are watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched: Option<i64>,
    /// Devices with an open stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<i64>,
}

impl Counts {
    /// While nothing runs.
    #[must_use]
    pub fn paused(self) -> Self {
        Self {
            watched: Some(0),
            devices: Some(0),
            ..self
        }
    }
}

/// What runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// The release of watchers and gateways, or several with commas during an upgrade.
    pub running: String,
    /// The image of admin processes, of which nobody asks the release: during an upgrade the one before, until all of them have the new one.
    /// Unset: not known now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_image: Option<String>,
    /// The image of NATS servers that the operator runs: while it changes the one before, until all of them have the new one. Unset: not
    /// known now, or the servers are yours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats_image: Option<String>,
}
