//! Values that make no sense are refused before anything is installed.

use serde_json::{Value, json};

use crate::{
    Helm,
    values::{documented, file, names, only, parsed},
};

/// What may have any names in it, since somebody else says which: Kubernetes, clouds, or the definition of a `Mailbell`.
const OPEN: [&str; 12] = [
    "affinity",
    "mailbell.spec",
    "nodeSelector",
    "podAnnotations",
    "podLabels",
    "podMonitor.labels",
    "prometheusRule.labels",
    "resources.limits",
    "resources.requests",
    "serviceAccount.annotations",
    "global",
    "tolerations",
];

/// With a sentence that says what to do.
#[tokio::test]
async fn values_that_contradict_each_other_are_refused_with_a_sentence() {
    let Some(helm) = Helm::find() else {
        return;
    };
    for (values, sentence) in [
        (
            json!({ "mailbell": { "create": true } }),
            "mailbell.create needs mailbell.spec: what is wanted of the installation",
        ),
        (
            json!({ "mailbell": { "spec": { "paused": true } } }),
            "mailbell.spec is of use only with mailbell.create: true",
        ),
        (
            json!({ "mailbell": { "name": "other" } }),
            "mailbell.name is of use only with mailbell.create: true",
        ),
        (
            json!({ "networkPolicy": { "apiServerNetworks": ["192.0.2.0/24"] } }),
            "networkPolicy.apiServerNetworks are of use only with networkPolicy.create: true",
        ),
        (
            json!({ "podMonitor": { "labels": { "a": "b" } } }),
            "podMonitor.labels are of use only with podMonitor.create: true",
        ),
        (
            json!({ "podMonitor": { "interval": "1m" } }),
            "podMonitor.interval is of use only with podMonitor.create: true",
        ),
        (
            json!({ "prometheusRule": { "labels": { "a": "b" } } }),
            "prometheusRule.labels are of use only with prometheusRule.create: true",
        ),
        (
            json!({
                "extraVolumes": [{ "name": "roots", "configMap": { "name": "roots" } }],
                "extraVolumeMounts": [
                    { "name": "roots", "mountPath": "/etc/roots" },
                    { "name": "root", "mountPath": "/etc/root" },
                ],
            }),
            "extraVolumeMounts: root is none of extraVolumes: add a volume of this name there",
        ),
        (
            json!({ "mailbell": { "create": true, "name": "other", "spec": { "generateSecrets": false } } }),
            "mailbell.name: add other to installations: its operator may not read its own token else",
        ),
        (
            json!({ "installations": ["else/main"] }),
            "installations: else/main is in another namespace than the operator, which needs watchAllNamespaces: true",
        ),
        (
            json!({ "watchAllNamespaces": true, "installations": ["main", "mail/main"] }),
            "installations: mail/main is named twice",
        ),
        (
            json!({ "installations": ["main", "mail/main"] }),
            "installations: mail/main is named twice",
        ),
        (
            json!({ "installations": ["lease"] }),
            "installations: the role mailbell-operator-lease is that of the operator's lease",
        ),
        (
            json!({ "serviceAccount": { "name": "main-watcher" } }),
            "serviceAccount.name: main-watcher is the account of pods of main",
        ),
        (
            json!({ "mailAccounts": { "passwordSecrets": ["main-key-ring"] } }),
            "mailAccounts.passwordSecrets: the operator must not read main-key-ring",
        ),
        (
            json!({
                "mailAccounts": { "passwordSecrets": ["own-ring"] },
                "mailbell": { "create": true, "spec": { "watchers": { "keyRingSecret": "own-ring" } } },
            }),
            "mailAccounts.passwordSecrets: the operator must not read own-ring",
        ),
        // The ring that was made stays when another one is named.
        (
            json!({
                "mailAccounts": { "passwordSecrets": ["main-key-ring"] },
                "mailbell": { "create": true, "spec": { "watchers": { "keyRingSecret": "own-ring" } } },
            }),
            "mailAccounts.passwordSecrets: the operator must not read main-key-ring",
        ),
        (
            json!({
                "mailAccounts": { "passwordSecrets": ["push-tls"] },
                "mailbell": { "create": true, "spec": { "gateways": { "tls": { "secretName": "push-tls" } } } },
            }),
            "mailAccounts.passwordSecrets: the operator must not read push-tls",
        ),
        (
            json!({
                "mailAccounts": { "passwordSecrets": ["admin-tls"] },
                "mailbell": { "create": true, "spec": { "admin": { "tls": { "secretName": "admin-tls" } } } },
            }),
            "mailAccounts.passwordSecrets: the operator must not read admin-tls",
        ),
        (
            json!({
                "mailAccounts": { "passwordSecrets": ["own-users"] },
                "mailbell": { "create": true, "spec": { "nats": { "external": { "usersSecret": "own-users" } } } },
            }),
            "mailAccounts.passwordSecrets: the operator must not read own-users",
        ),
    ] {
        let (rendered, said) = helm.render(&values).await;
        assert!(!rendered && said.contains(sentence), "{values}: {said}");
    }
}

/// It is the same one.
#[tokio::test]
async fn an_installation_may_be_named_with_the_namespace_of_the_release() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let usual = helm.render(&json!({})).await;
    assert!(usual.0, "{}", usual.1);
    let values = json!({ "installations": ["mail/main"] });
    assert_eq!(helm.render(&values).await, usual);
}

/// A field that is left empty in YAML. The API server takes it as one that is left out.
#[tokio::test]
async fn what_is_null_in_the_spec_is_as_good_as_left_out() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let mut spec = json!({
        "watchers": {},
        "gateways": { "tls": {} },
        "admin": { "tls": {} },
        "nats": { "managed": { "tls": {} } },
    });
    let secrets = async |spec: &Value| {
        let values = json!({ "mailbell": { "create": true, "spec": spec } });
        let (rendered, text) = helm.render(&values).await;
        assert!(rendered, "{values}: {text}");
        let (secrets, _) = text.split_once("kind: Mailbell\n").unwrap();
        secrets.to_owned()
    };
    let left_out = secrets(&spec).await;
    assert_eq!(left_out.matches("kind: Secret\n").count(), 6);
    for place in [
        "/nats/managed/tls",
        "/nats/managed",
        "/nats",
        "/gateways/tls",
        "/gateways",
        "/admin/tls",
        "/admin",
        "/watchers",
    ] {
        *spec.pointer_mut(place).unwrap() = Value::Null;
        assert_eq!(secrets(&spec).await, left_out, "{place}");
    }
    for field in ["external", "managed"] {
        spec["nats"] = json!({ field: null });
        assert_eq!(secrets(&spec).await, left_out, "{field}");
    }
    spec["generateSecrets"] = Value::Null;
    assert_eq!(secrets(&spec).await, left_out);
}

#[tokio::test]
async fn values_out_of_their_bounds_are_refused() {
    let Some(helm) = Helm::find() else {
        return;
    };
    for (values, sentence) in [
        (json!({ "replicas": 0 }), "minimum"),
        (json!({ "replicas": 6 }), "maximum"),
        (json!({ "log": "" }), "minLength"),
        (json!({ "scaleDownAfter": "59s" }), "does not match pattern"),
        (json!({ "image": { "repository": "" } }), "minLength"),
        (
            json!({ "image": { "pullPolicy": "Sometimes" } }),
            "value must be one of",
        ),
        (
            json!({ "mailbell": { "name": "A.B" } }),
            "does not match pattern",
        ),
        (
            json!({ "installations": ["a", "A"] }),
            "does not match pattern",
        ),
        (
            json!({ "networkPolicy": { "apiServerPorts": [] } }),
            "minItems",
        ),
        (
            json!({ "networkPolicy": { "apiServerNetworks": ["everywhere"] } }),
            "does not match pattern",
        ),
        (
            json!({ "podMonitor": { "interval": "often" } }),
            "does not match pattern",
        ),
        (json!({ "tolerations": [1] }), "want object"),
        (json!({ "podLabels": { "a": 1 } }), "want string"),
        (
            json!({ "extraEnv": [{ "value": "a" }] }),
            "missing property 'name'",
        ),
        (
            json!({ "extraEnv": [{ "name": "TZ", "value": 1 }] }),
            "want string",
        ),
    ] {
        let (rendered, said) = helm.render(&values).await;
        assert!(!rendered && said.contains(sentence), "{values}: {said}");
    }
}

/// A container with two of a name is refused by some ways of applying it, and has either of them by others.
#[tokio::test]
async fn a_variable_that_the_chart_sets_is_refused() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let (rendered, text) = helm.render(&json!({})).await;
    assert!(rendered, "{text}");
    let documents = text
        .split("---\n")
        .filter_map(|it| serde_saphyr::from_str(it).ok());
    let mut found = documents.filter(|it: &Value| it["kind"] == "Deployment");
    let container = found.next().unwrap()["spec"]["template"]["spec"]["containers"][0].take();
    let names = container["env"].as_array().unwrap().iter();
    let names: Vec<&str> = names.map(|it| it["name"].as_str().unwrap()).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        let values = json!({ "extraEnv": [{ "name": "TZ" }, { "name": name, "value": "mine" }] });
        let (rendered, said) = helm.render(&values).await;
        let sentence = format!("extraEnv: {name} is set by the chart itself");
        assert!(!rendered && said.contains(&sentence), "{values}: {said}");
    }
}

/// One letter more, and another type, for every value that there is.
#[tokio::test]
async fn every_value_that_is_misspelled_or_of_another_type_is_refused() {
    let Some(helm) = Helm::find() else {
        return;
    };
    for value in documented(&file("values.yaml")) {
        for depth in 0..value.path.len() {
            let mut misspelled = value.path.clone();
            misspelled[depth].push('x');
            let (name, values) = (&misspelled[depth], only(&misspelled, value.default.clone()));
            let (rendered, said) = helm.render(&values).await;
            let sentence = format!("additional properties '{name}' not allowed");
            assert!(!rendered && said.contains(&sentence), "{values}: {said}");
        }
        // Nothing takes a list of lists.
        let values = only(&value.path, json!([[]]));
        let (rendered, said) = helm.render(&values).await;
        let place = format!("at '/{}", value.path.join("/"));
        assert!(!rendered && said.contains(&place), "{values}: {said}");
    }
}

/// A value that is in one of both only is refused, or has no effect.
#[test]
fn the_schema_and_the_values_know_the_same_names() {
    let schema: Value = serde_json::from_str(&file("values.schema.json")).unwrap();
    same_names("", &schema, &parsed(&file("values.yaml")));
}

fn same_names(place: &str, schema: &Value, values: &Value) {
    let name = |name: &str| format!("{place}.{name}").trim_start_matches('.').to_owned();
    if OPEN.contains(&place) {
        return;
    }
    let Some(values) = values.as_object() else {
        return;
    };
    assert_eq!(
        schema["additionalProperties"], false,
        "{place}: the schema lets names pass that nobody knows"
    );
    let known = schema["properties"].as_object().unwrap();
    for one in names(values) {
        assert!(
            known.contains_key(one),
            "{} is not in the schema",
            name(one)
        );
        same_names(&name(one), &known[one], &values[one]);
    }
    for one in names(known) {
        // Those that are open need not be there.
        assert!(
            values.contains_key(one) || OPEN.contains(&name(one).as_str()),
            "{} is in the schema only",
            name(one)
        );
    }
}
