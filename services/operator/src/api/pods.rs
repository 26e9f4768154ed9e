//! What every kind of pod can be told.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
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

/// Where pods run, and with what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
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
}
