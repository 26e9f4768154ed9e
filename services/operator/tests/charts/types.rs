//! That what is rendered has the types which the API server takes, whatever things are called.

use serde_json::{Value, json};

use crate::{
    Helm,
    values::{documented, file, only, parsed},
};

/// All that is no text in what the chart renders, but for `spec` of a Mailbell, which is the user's, and for alerts.
const NO_TEXT: [&str; 19] = [
    "activeDeadlineSeconds",
    "allowPrivilegeEscalation",
    "any",
    "automountServiceAccountToken",
    "containerPort",
    "enableServiceLinks",
    "maxSkew",
    "maxUnavailable",
    "minAvailable",
    "periodSeconds",
    "port",
    "readOnly",
    "readOnlyRootFilesystem",
    "replicas",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "terminationGracePeriodSeconds",
    "timeoutSeconds",
];

/// Where something stands that ought to be text and is not.
fn no_text(place: &str, name: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(all) => {
            for (name, inner) in all {
                no_text(&format!("{place}.{name}"), name, inner, found);
            }
        }
        Value::Array(all) => {
            for (index, inner) in all.iter().enumerate() {
                no_text(&format!("{place}[{index}]"), name, inner, found);
            }
        }
        Value::String(_) => {}
        // The probes say `http`, a policy has numbers.
        _ if NO_TEXT.contains(&name) && !value.is_null() => {}
        _ => found.push(format!("{place}: {value}")),
    }
}

/// In all objects.
fn all_without_text(rendered: &str) -> Vec<String> {
    let mut found = Vec::new();
    for text in rendered.split("\n---\n") {
        let mut object = parsed(text);
        let kind = object["kind"].as_str().unwrap().to_owned();
        if ["Mailbell", "PrometheusRule"].contains(&kind.as_str()) {
            object["spec"].take();
            object.as_object_mut().unwrap().remove("spec");
        }
        no_text(&kind, "", &object, &mut found);
    }
    found
}

/// To YAML `1` is a number, `true` says yes, and `null` is nothing; all are good names.
#[tokio::test]
async fn names_that_look_like_something_else_are_text() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let spec = json!({ "gateways": {}, "nats": {} });
    let named = json!({
        "image": { "repository": "1", "tag": "1", "pullSecrets": ["1"] },
        "watchAllNamespaces": true,
        "installations": ["true", "456/null", "123/no"],
        "mailAccounts": { "passwordSecrets": ["1"] },
        "log": "1",
        "serviceAccount": { "name": "7", "annotations": { "1": "1" } },
        "nodeSelector": { "1": "1" },
        "priorityClassName": "1",
        "podLabels": { "1": "1" },
        "podAnnotations": { "1": "true" },
        "extraEnv": [{ "name": "TZ", "value": "1" }],
        "networkPolicy": { "create": true, "apiServerNetworks": ["192.0.2.0/24"] },
        "podMonitor": { "create": true, "labels": { "1": "1" } },
        "prometheusRule": { "create": true, "labels": { "1": "1" } },
        "mailbell": { "create": true, "name": "true", "spec": spec },
    });
    for values in [json!({}), named] {
        let (rendered, text) = helm.render_as("1", "123", &values).await;
        assert!(rendered, "{values}: {text}");
        let found = all_without_text(&text);
        assert!(found.is_empty(), "{values}:\n{}", found.join("\n"));
    }
}

/// With `null` a value has no default any more: there is nothing of it, or a sentence that names it.
#[tokio::test]
async fn a_value_that_is_null_is_left_out_or_refused_by_its_name() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let mut bad = Vec::new();
    for value in documented(&file("values.yaml")) {
        for depth in 1..=value.path.len() {
            let (outer, name) = (&value.path[..depth - 1], &value.path[depth - 1]);
            let values = only(&value.path[..depth], Value::Null);
            let (rendered, said) = helm.render(&values).await;
            let place: String = outer.iter().map(|it| format!("/{it}")).collect();
            let sentence = format!("at '{place}': missing property '{name}'");
            if rendered {
                bad.extend(all_without_text(&said));
            } else if !said.contains(&sentence) {
                bad.push(format!("{values}: {said}"));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
