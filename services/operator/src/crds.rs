//! What a cluster is told of the custom resources.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt as _;

use crate::api::{MailAccount, MailProvider, Mailbell};

/// Uninstalling the chart leaves what carries this: with a definition go all objects of its kind.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// The definitions of all custom resources.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![Mailbell::crd(), MailAccount::crd(), MailProvider::crd()];
    for definition in &mut all {
        let annotations = definition.metadata.annotations.get_or_insert_default();
        annotations.insert(KEEP.0.to_owned(), KEEP.1.to_owned());
        for version in &mut definition.spec.versions {
            let schema = version.schema.as_mut();
            if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
                without_null(schema);
            }
        }
    }
    all
}

/// What is null is dropped by the API server then, so that it means the same as what is not there, also in rules that ask
/// `has(...)`.
fn without_null(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    let properties = schema.properties.iter_mut().flatten();
    properties.for_each(|(_, schema)| without_null(schema));
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(schema)) => without_null(schema),
        Some(JSONSchemaPropsOrArray::Schemas(schemas)) => schemas.iter_mut().for_each(without_null),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(schema)) = &mut schema.additional_properties {
        without_null(schema);
    }
}

/// A definition could not be written as YAML.
#[derive(Debug, thiserror::Error)]
#[error("the definition of {name} cannot be written: {source}")]
pub struct Error {
    /// Of which.
    pub name: String,
    /// Why.
    pub source: serde_saphyr::ser::Error,
}

/// A definition as YAML.
///
/// # Errors
/// When a type cannot be written as YAML, which is a bug.
pub fn yaml(definition: &CustomResourceDefinition) -> Result<String, Error> {
    serde_saphyr::to_string(definition).map_err(|source| Error {
        name: definition.metadata.name.clone().unwrap_or_default(),
        source,
    })
}
