//! What every kind of pod can be told.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, CSIVolumeSource, ConfigMapVolumeSource, EmptyDirVolumeSource, EnvVarSource,
    ProjectedVolumeSource, ResourceRequirements, SecretVolumeSource, Toleration,
};
use kube::KubeSchema;
use schemars::{
    JsonSchema, Schema, SchemaGenerator,
    transform::{RecursiveTransform, Transform as _},
};
use serde::{Deserialize, Serialize};

/// How many pods there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.min <= self.max").message("min must not be larger than max"))]
pub struct Scale {
    /// Never fewer pods than this. 2 or more keep serving while one of them is replaced.
    #[schemars(range(min = 1, max = 1000))]
    pub min: i32,
    /// Never more pods than this.
    #[schemars(range(min = 1, max = 1000))]
    pub max: i32,
}

impl Default for Scale {
    fn default() -> Self {
        Self { min: 2, max: 10 }
    }
}

/// The schema of a type of Kubernetes without its descriptions: `kubectl explain pod.spec` has them, and with them a definition is
/// larger than `kubectl apply` can note in an annotation.
pub(super) fn of_kubernetes<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = T::json_schema(generator);
    let mut strip = RecursiveTransform(|schema: &mut Schema| {
        // A field of this name is an object.
        if schema
            .get("description")
            .is_some_and(|text| text.is_string())
        {
            schema.remove("description");
        }
    });
    strip.transform(&mut schema);
    schema
}

/// What the operator itself tells pods, in variables of these names. The fields of a `Mailbell` say the same, and nothing says it twice.
pub(crate) const VARIABLES: [&str; 38] = [
    "GOMEMLIMIT",
    "MAILBELL_ADMIN_LISTEN",
    "MAILBELL_ADMIN_PASSWORD",
    "MAILBELL_ADMIN_TOKEN_FILE",
    "MAILBELL_ALLOW_PLAINTEXT_IMAP",
    "MAILBELL_ALLOW_PRIVATE_HOSTS",
    "MAILBELL_CONNECTS_PER_HOST",
    "MAILBELL_DRAIN",
    "MAILBELL_GATEWAY_PASSWORD",
    "MAILBELL_HTTP_LISTEN",
    "MAILBELL_IMAP_CA",
    "MAILBELL_INSECURE_PLAINTEXT",
    "MAILBELL_INSTALLATION",
    "MAILBELL_KEY_RING_FILE",
    "MAILBELL_LOG",
    "MAILBELL_LOGINS_PER_HOST",
    "MAILBELL_LOG_FORMAT",
    "MAILBELL_MOST_ACCOUNTS",
    "MAILBELL_MOST_CONTENT",
    "MAILBELL_MOST_DEVICES",
    "MAILBELL_NATS_ALLOW_PLAIN",
    "MAILBELL_NATS_CA",
    "MAILBELL_NATS_PASSWORD_FILE",
    "MAILBELL_NATS_SERVER_CERT",
    "MAILBELL_NATS_URL",
    "MAILBELL_NATS_USER",
    "MAILBELL_OPERATOR_TOKEN_FILE",
    "MAILBELL_OTLP_ENDPOINT",
    "MAILBELL_OTLP_SAMPLE",
    "MAILBELL_POLICY_FILE",
    "MAILBELL_PUSH_LISTEN",
    "MAILBELL_REPLICAS",
    "MAILBELL_SETUP_PASSWORD",
    "MAILBELL_SIGNING_KEY_FILE",
    "MAILBELL_TLS_CERT",
    "MAILBELL_TLS_KEY",
    "MAILBELL_WATCHER_PASSWORD",
    "POD_NAME",
];
/// Names of the volumes that the operator gives to pods.
pub(crate) const VOLUMES: [&str; 11] = [
    "admin-tokens",
    "config",
    "data",
    "imap-ca",
    "key-ring",
    "nats",
    "nats-ca",
    "operator-token",
    "policy",
    "signing-key",
    "tls",
];

/// With a bound of what is in it: the API server takes a rule on a list only if it knows how long that may be.
fn projected(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = of_kubernetes::<Option<ProjectedVolumeSource>>(generator);
    if let Some(sources) = schema.pointer_mut("/properties/sources") {
        sources["maxItems"] = 16.into();
    }
    schema
}

/// That a name is none of these.
fn none_of(names: &[&str]) -> String {
    format!("!(self in ['{}'])", names.join("', '"))
}

/// Where pods run, and with what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.volumeMounts) || self.volumeMounts.all(mount, has(self.volumes) && self.volumes.exists(it, it.name == mount.name))")
    .message("each of volumeMounts has the name of one of volumes"))]
pub struct Pods {
    /// CPU and memory of the container. Unset: requests and limits of Mailbell's own, which fit the default sizing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<ResourceRequirements>>")]
    pub resources: Option<ResourceRequirements>,
    /// Nodes on which the pods may run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods stand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "of_kubernetes::<Vec<Toleration>>")]
    pub tolerations: Vec<Toleration>,
    /// Rules of placement (as a pod's `spec.affinity`), beside the spread over nodes and zones that the operator always asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<Affinity>>")]
    pub affinity: Option<Affinity>,
    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Further annotations of the pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Further labels of the pods; those of the operator cannot be changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Further variables of the container. Those of flags that no field here stands for are in docs/reference.md.
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Further volumes of the pods.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Where the container has them.
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["mountPath"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
}

/// A variable, as a container has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.value) && has(self.valueFrom))").message("a variable has a value or valueFrom, not both"))]
pub struct EnvVar {
    /// Its name; none of those that the operator sets, nor `MAILBELL_MEMBER`.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$")
    )]
    #[x_kube(
        validation = Rule::new(none_of(&VARIABLES)).message("the operator sets this variable itself, as other fields of the Mailbell say"),
        validation = Rule::new("self != 'MAILBELL_MEMBER'").message("each watcher has the name of its pod: under one name each would end the others")
    )]
    pub name: String,
    /// Its value. `$(NAME)` is that of one before it.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// From where else it comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<EnvVarSource>>")]
    pub value_from: Option<EnvVarSource>,
}

/// A volume, of those kinds that pods need which keep nothing and have no right on their node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.configMap), has(self.secret), has(self.projected), has(self.csi), has(self.emptyDir)].filter(it, it).size() == 1")
        .message("a volume is one of configMap, secret, projected, csi and emptyDir"),
    // What a release of Kubernetes has beside these may be such a token in another form.
    validation = Rule::new("!has(self.projected) || !has(self.projected.sources) || self.projected.sources.all(it, \
        has(it.configMap) || has(it.secret) || has(it.downwardAPI) || has(it.clusterTrustBundle))")
        .message("of projected are configMap, secret, downwardAPI and clusterTrustBundle: pods are given no token of their service account")
)]
pub struct Volume {
    /// Its name; none of those that the operator gives.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    #[x_kube(validation = Rule::new(none_of(&VOLUMES)).message("a volume of the operator has this name"))]
    pub name: String,
    /// A ConfigMap of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<ConfigMapVolumeSource>>")]
    pub config_map: Option<ConfigMapVolumeSource>,
    /// A Secret of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<SecretVolumeSource>>")]
    pub secret: Option<SecretVolumeSource>,
    /// Several of them in one folder, but no token of the service account: that of the watchers may change the key ring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "projected")]
    pub projected: Option<ProjectedVolumeSource>,
    /// What a driver on the node brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<CSIVolumeSource>>")]
    pub csi: Option<CSIVolumeSource>,
    /// An empty folder, gone with the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "of_kubernetes::<Option<EmptyDirVolumeSource>>")]
    pub empty_dir: Option<EmptyDirVolumeSource>,
}

/// Where a container has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// Of which volume.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// In which folder.
    #[schemars(length(min = 2, max = 500), regex(pattern = "^(/[^:/]+)+$"))]
    #[x_kube(
        validation = Rule::new("self != '/run' && !['/run/mailbell/', '/run/nats/', '/data/'].exists(it, (self + '/').startsWith(it))")
            .message("/run itself, /run/mailbell, /run/nats and /data are the operator's: take another folder"),
        validation = Rule::new("!['/./', '/../'].exists(it, (self + '/').contains(it))")
            .message("write the folder without . and ..")
    )]
    pub mount_path: String,
    /// Which folder or file of the volume. Unset: all of it.
    #[schemars(length(min = 1, max = 500))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_path: Option<String>,
    /// Whether nothing can be written to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}
