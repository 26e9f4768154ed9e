//! Whether the cluster knows our kinds, and as this release has them.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionSpec,
};
use kube::{Api, Client, ResourceExt as _};
use mailbell_operator::crds;
use serde_json::Value;

use super::{
    access::{Seen, seen},
    some,
};
use crate::doctor::Report;

const NAME: &str = "definitions";
/// Without it there is nothing to look at.
const MAILBELLS: &str = "mailbells.mailbell.dev";
/// What to do where some are missing.
pub(super) const INSTALL: &str = "helm upgrade --install mailbell-crds charts/mailbell-crds; or `mailbell crds | kubectl apply --server-side -f -`";

/// Whether there is more to look at, as far as that can be seen.
pub(super) async fn examine(report: &mut Report, client: &Client) -> bool {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut all_same = true;
    for ours in crds::definitions() {
        let name = ours.name_any();
        match seen(api.get(&name).await) {
            Seen::There(theirs) => {
                if let Some(difference) = difference(&ours.spec, &theirs.spec) {
                    all_same = false;
                    difference.tell(report, &name);
                }
            }
            Seen::Missing => {
                all_same = false;
                unknown(report, &name);
                if name == MAILBELLS {
                    return false;
                }
            }
            Seen::Denied(why) => return served(report, client, &why).await,
            Seen::Failed(why) => {
                report.fail(NAME, why, "look again");
                return false;
            }
        }
    }
    if all_same {
        report.ok(NAME, "are there, and of this release");
    }
    true
}

fn unknown(report: &mut Report, name: &str) {
    report.fail(NAME, format!("the cluster does not know {name}"), INSTALL);
}

/// For who may not read them, and so not more than that they are there: which kinds it serves the API server tells everybody.
async fn served(report: &mut Report, client: &Client, denied: &str) -> bool {
    let mut missing = BTreeSet::new();
    for ours in crds::definitions() {
        for version in &ours.spec.versions {
            let group = format!("{}/{}", ours.spec.group, version.name);
            let known = match seen(client.list_api_group_resources(&group).await) {
                Seen::There(found) => {
                    let mut all = found.resources.iter();
                    all.any(|it| it.name == ours.spec.names.plural)
                }
                Seen::Missing => false,
                Seen::Denied(_) | Seen::Failed(_) => true,
            };
            if !known {
                missing.insert(ours.name_any());
            }
        }
    }
    for name in &missing {
        unknown(report, name);
    }
    report.skipped(NAME, format!("you may not read them: {denied}"));
    !missing.contains(MAILBELLS)
}

/// How those of the cluster differ from those of this command.
#[derive(Debug, PartialEq, Eq)]
enum Difference {
    /// They lack these fields.
    Older(Vec<String>),
    /// They have these fields beside.
    Newer(Vec<String>),
    /// The same fields with other bounds, or both of the above.
    Other,
}

impl Difference {
    fn tell(&self, report: &mut Report, name: &str) {
        let (said, advice) = match self {
            Self::Older(fields) => (
                format!(
                    "{name} is older than this command: it lacks {}",
                    some(fields)
                ),
                "if the operator is newer too, upgrade the chart mailbell-crds: the cluster drops fields that it does not know; else use the mailbell of the operator's release",
            ),
            Self::Newer(fields) => (
                format!(
                    "{name} is newer than this command, which does not know {}",
                    some(fields)
                ),
                "use the mailbell of the operator's release: what this one says of these fields is nothing",
            ),
            Self::Other => (
                format!("{name} is of another release than this command"),
                "if the operator is of this release, upgrade the chart mailbell-crds; else use the mailbell of the operator's release",
            ),
        };
        report.warn(NAME, said, advice);
    }
}

/// By what a user can say; what the server adds to a definition is no difference.
fn difference(
    ours: &CustomResourceDefinitionSpec,
    theirs: &CustomResourceDefinitionSpec,
) -> Option<Difference> {
    let schemas = |spec: &CustomResourceDefinitionSpec| -> Value {
        let versions = spec.versions.iter();
        let schemas = versions.map(|it| {
            let schema = serde_json::to_value(&it.schema).unwrap_or_default();
            (it.name.clone(), schema)
        });
        schemas.collect()
    };
    let (ours, theirs) = (schemas(ours), schemas(theirs));
    if ours == theirs {
        return None;
    }
    let all = |schemas: &Value| {
        let mut found = BTreeSet::new();
        for (version, schema) in schemas.as_object().into_iter().flatten() {
            fields(schema, version, &mut found);
        }
        found
    };
    let (ours, theirs) = (all(&ours), all(&theirs));
    let lacks: Vec<String> = ours.difference(&theirs).cloned().collect();
    let more: Vec<String> = theirs.difference(&ours).cloned().collect();
    Some(match (lacks.is_empty(), more.is_empty()) {
        (false, true) => Difference::Older(lacks),
        (true, false) => Difference::Newer(more),
        _ => Difference::Other,
    })
}

/// By their places, as `v1alpha1.spec.paused`.
fn fields(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(parts) => {
            for (key, part) in parts {
                match part.as_object().filter(|_| key == "properties") {
                    Some(properties) => {
                        for (name, schema) in properties {
                            let path = format!("{path}.{name}");
                            fields(schema, &path, found);
                            found.insert(path);
                        }
                    }
                    None => fields(part, path, found),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| fields(part, path, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(properties: Value, more: Value) -> CustomResourceDefinitionSpec {
        let mut schema = json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": properties } } });
        schema["x-kubernetes-validations"] = more;
        serde_json::from_value(json!({
            "group": "mailbell.dev", "names": { "kind": "Mailbell", "plural": "mailbells" }, "scope": "Namespaced",
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }],
        }))
        .unwrap()
    }

    #[test]
    fn what_one_lacks_says_which_is_older() {
        let text = json!({ "type": "string" });
        let two = definition(json!({ "a": text, "properties": text }), json!(null));
        let one = definition(json!({ "a": text }), json!(null));
        let another = definition(json!({ "b": text }), json!(null));
        let rule = json!([{ "rule": "true" }]);
        let stricter = definition(json!({ "a": text }), rule);
        assert_eq!(difference(&one, &one), None);
        let of = |name: &str| vec![format!("v1.spec.{name}")];
        let older = difference(&two, &one);
        assert_eq!(older, Some(Difference::Older(of("properties"))));
        let newer = difference(&one, &two);
        assert_eq!(newer, Some(Difference::Newer(of("properties"))));
        assert_eq!(difference(&one, &another), Some(Difference::Other));
        assert_eq!(difference(&one, &stricter), Some(Difference::Other));
    }

    #[test]
    fn a_few_fields_are_named_and_the_others_counted() {
        let all = ["a", "b", "c", "d", "e", "f", "g"].map(str::to_owned);
        assert_eq!(some(&all[..5]), "a, b, c, d, e");
        assert_eq!(some(&all), "a, b, c, d, e and 2 more");
        let mut report = Report::default();
        Difference::Older(all.to_vec()).tell(&mut report, "x");
        Difference::Newer(all.to_vec()).tell(&mut report, "x");
        Difference::Other.tell(&mut report, "x");
        let said: Vec<&str> = report.findings.iter().map(|it| it.said.as_str()).collect();
        assert_eq!(
            said,
            [
                "x is older than this command: it lacks a, b, c, d, e and 2 more",
                "x is newer than this command, which does not know a, b, c, d, e and 2 more",
                "x is of another release than this command",
            ]
        );
    }
}
