//! One mail provider: what its hosts take. The bounds are those of `mailbell_core::policy`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// What is said of a mail provider.
#[expect(
    clippy::duplicated_attributes,
    reason = "each of the columns has a type"
)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "mailbell.dev",
    version = "v1alpha1",
    kind = "MailProvider",
    namespaced,
    doc = "What the hosts of a mail provider take, whom to trust there, and whether its mailboxes rest.",
    status = "MailProviderStatus",
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether all of it is in force"
    ),
    printcolumn(
        name = "Paused",
        type_ = "boolean",
        json_path = ".spec.paused",
        description = "Whether nobody connects there"
    ),
    printcolumn(
        name = "Hosts",
        type_ = "string",
        json_path = ".spec.hosts",
        description = "Its hosts"
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
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MailProviderSpec {
    /// The Mailbell of this namespace whose watchers go by it.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a provider cannot move to another installation: make a new one"))]
    pub mailbell: String,
    /// Its hosts as accounts name them. `*.example.org` stands for all hosts below `example.org`, not for that itself, and the longest
    /// name that stands for a host counts. A host belongs to one provider: to the oldest that names it.
    #[schemars(
        length(min = 1, max = 100),
        inner(length(min = 1, max = 255)),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(
        validation = Rule::new("self.all(host, (size(host) <= 253 || host.startsWith('*.')) && (host.matches('^([*][.])?[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$') || (isIP(host) && ip(host).family() == 6)))")
            .message("each of hosts is a host, as imap.example.org or 2001:db8::1, or all below a name, as *.example.org; ports and brackets do not belong to it"),
        validation = Rule::new("self.all(host, self.exists_one(other, other.lowerAscii() == host.lowerAscii()))")
            .message("one of hosts stands there twice")
    )]
    pub hosts: Vec<String>,
    /// How much may be asked of each host.
    #[serde(default)]
    pub limits: ProviderLimits,
    /// What its servers do otherwise than others.
    #[serde(default)]
    pub quirks: ProviderQuirks,
    /// ConfigMap of this namespace whose `ca.crt` has root certificates that its hosts may have, beside the usual ones.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map: Option<String>,
    /// While true nobody connects to its hosts; mailboxes there go on by themselves when it ends.
    #[serde(default)]
    pub paused: bool,
}

/// How much may be asked of one host. Unset: what holds for every host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProviderLimits {
    /// How many connections all watchers together begin a second. Unset: `watchers.connectsPerHost` of the Mailbell.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects_per_second: Option<i32>,
    /// How many logins all watchers together try a second. Unset: `watchers.loginsPerHost` of the Mailbell.
    #[schemars(range(min = 1, max = 100_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logins_per_second: Option<i32>,
    /// How many connections of one watcher are between TCP and the end of the login at once.
    #[schemars(range(min = 1, max = 10_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<i32>,
}

/// What servers do otherwise than others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.idleMinutes) || !has(self.noIdle) || !self.noIdle")
    .message("idleMinutes is of use only where there is IDLE: leave out either idleMinutes or noIdle"))]
pub struct ProviderQuirks {
    /// IDLE is ended and begun anew after so many minutes. Not with `noIdle`.
    #[schemars(range(min = 1, max = 29))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_minutes: Option<i32>,
    /// IDLE is announced and does not work: mailboxes are polled.
    #[serde(default)]
    pub no_idle: bool,
    /// A mailbox is polled no more often than after so many seconds.
    #[schemars(range(min = 10, max = 1740))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_seconds: Option<i32>,
}

/// How it is with a mail provider.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MailProviderStatus {
    /// The generation of the spec that was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, with a sentence: whether watchers are told all of it, and if not, what to do.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
