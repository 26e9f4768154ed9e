//! What the chart `mailbell` makes of its values, as files. `api_server` gives them to a real server.

use std::{collections::BTreeSet, path::Path};

use mailbell_operator::{
    api::Mailbell,
    desired::{API_SERVER_PORTS, Wanted, desired},
    rights::{LEASE, RIGHTS, Right, SECRETS},
};
use serde_json::{Value, json};

use crate::{
    Helm, chart,
    values::{documented, file, parsed},
};

/// Each way to install it, with its values.
fn modes() -> [(&'static str, Value); 8] {
    let installation = json!({
        "gateways": { "tls": { "secretName": "push-tls" } },
        "admin": { "tls": { "secretName": "admin-tls" } },
        "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } },
    });
    let mut bringing = installation.clone();
    bringing["generateSecrets"] = false.into();
    let mut other = installation.clone();
    other["watchers"] = json!({ "keyRingSecret": "own-ring" });
    other["admin"]["signingKeySecret"] = "own-signing".into();
    other["nats"]["managed"]["usersSecret"] = "own-users".into();
    other["nats"]["managed"]["tls"] = json!({ "secretName": "own-nats-tls" });
    [
        ("default", json!({})),
        ("no-installations", json!({ "installations": [] })),
        (
            "bringing",
            json!({ "mailbell": { "create": true, "spec": bringing } }),
        ),
        (
            "monitored",
            json!({
                "networkPolicy": { "create": true },
                "podMonitor": { "create": true },
                "prometheusRule": { "create": true },
            }),
        ),
        ("all-namespaces", json!({ "watchAllNamespaces": true })),
        (
            "installation",
            json!({ "mailbell": { "create": true, "spec": installation } }),
        ),
        ("ha", parsed(&file("values-ha.yaml"))),
        (
            "everything",
            json!({
                "image": {
                    "repository": "registry.example.org/mailbell",
                    "tag": "1.2.3",
                    "pullPolicy": "Always",
                    "pullSecrets": ["registry"],
                },
                "replicas": 1,
                "watchAllNamespaces": true,
                "installations": ["other", "mail/two"],
                "mailAccounts": { "passwordSecrets": [] },
                "scaleDownAfter": "10m",
                "log": "info,mailbell_operator=debug",
                "serviceAccount": { "name": "keeper", "annotations": { "cloud": "role" } },
                "resources": { "requests": { "cpu": "1" }, "limits": { "memory": "1Gi" } },
                "nodeSelector": { "pool": "mail" },
                "tolerations": [{ "key": "mail", "operator": "Exists" }],
                "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "gpu", "operator": "DoesNotExist" }] }],
                } } },
                "priorityClassName": "high",
                "podLabels": { "team": "mail" },
                "podAnnotations": { "note": "mail" },
                "extraEnv": [{ "name": "TZ", "value": "Europe/Berlin" }],
                "extraVolumes": [{ "name": "roots", "configMap": { "name": "roots" } }],
                "extraVolumeMounts": [{ "name": "roots", "mountPath": "/etc/ssl/certs", "readOnly": true }],
                "networkPolicy": {
                    "create": true,
                    "apiServerPorts": [16443],
                    "apiServerNetworks": ["192.0.2.0/24", "2001:db8::/32"],
                },
                "podMonitor": { "create": true, "interval": "1m", "labels": { "release": "prometheus" } },
                "prometheusRule": { "create": true, "labels": { "release": "prometheus" } },
                "mailbell": { "create": true, "name": "other", "spec": other },
            }),
        ),
    ]
}

/// What a change of the chart changes on a cluster is seen here. `MAILBELL_UPDATE_GOLDEN=1` writes them anew.
#[tokio::test]
async fn every_mode_is_rendered_as_it_was() {
    let Some(helm) = Helm::find() else {
        return;
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, values) in modes() {
        let (rendered, text) = helm.render(&values).await;
        assert!(rendered, "{name}: {text}");
        let file = folder.join(format!("{name}.yaml"));
        if std::env::var_os("MAILBELL_UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let stored = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            stored == text,
            "{} is not what the chart makes of it: look at the difference, then write it with MAILBELL_UPDATE_GOLDEN=1",
            file.display()
        );
    }
    let modes = modes().map(|(name, _)| format!("{name}.yaml"));
    for file in std::fs::read_dir(&folder).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(modes.contains(&name), "no mode makes {name}: remove it");
    }
}

/// So that what a value does is in one of the files at least.
#[test]
fn the_mode_everything_says_each_value_and_another_than_the_usual_one() {
    let modes = modes();
    let (_, everything) = modes
        .iter()
        .find(|(name, _)| *name == "everything")
        .unwrap();
    for value in documented(&file("values.yaml")) {
        let said = everything.pointer(&format!("/{}", value.path.join("/")));
        assert!(
            said.is_some_and(|said| *said != value.default),
            "the mode `everything` says nothing of {}",
            value.name()
        );
    }
}

/// The operator finds three NATS servers asked for, and their rule of placement finds them: a label that none of them has would keep
/// none from another's node.
#[test]
fn the_values_for_high_availability_keep_nats_servers_on_nodes_of_their_own() {
    let values = parsed(&file("values-ha.yaml"));
    let mailbell = json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "Mailbell",
        "metadata": { "name": values["mailbell"]["name"], "namespace": "mail" },
        "spec": values["mailbell"]["spec"],
    });
    let mailbell: Mailbell = serde_json::from_value(mailbell).unwrap();
    let wanted = Wanted {
        mailbell: &mailbell,
        image: "mailbell.dev/mailbell:0.1.0",
        watchers: mailbell.spec.watchers.scale.min,
        gateways: mailbell.spec.gateways.scale.min,
        policy: Some(""),
        api_server_ports: &API_SERVER_PORTS,
    };
    let objects: Vec<Value> = desired(&wanted)
        .into_iter()
        .flat_map(|stage| stage.objects)
        .collect();
    let of = |kind: &str, name: &str| {
        let found = objects
            .iter()
            .find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    };
    for (kind, name, replicas) in [
        ("StatefulSet", "main-nats", 3),
        ("StatefulSet", "main-watcher", 3),
        ("Deployment", "main-gateway", 3),
        ("Deployment", "main-admin", 2),
    ] {
        assert_eq!(of(kind, name)["spec"]["replicas"], replicas, "{name}");
        of("PodDisruptionBudget", name);
    }
    let template = &of("StatefulSet", "main-nats")["spec"]["template"];
    let rules = "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let rules = template.pointer(rules).and_then(Value::as_array).unwrap();
    let [rule] = rules.as_slice() else {
        panic!("{rules:?}");
    };
    assert_eq!(rule["topologyKey"], "kubernetes.io/hostname");
    for (name, value) in rule["labelSelector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(template["metadata"]["labels"][name], *value, "{name}");
    }
}

/// `mailbell doctor` asks for these rights, and an operator has what the chart gives.
#[test]
fn the_rights_of_an_operator_are_those_of_its_roles() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let rendered = std::fs::read_to_string(folder.join("default.yaml")).unwrap();
    let objects: Vec<Value> = rendered.split("\n---\n").map(parsed).collect();
    let given = |name: &str| -> BTreeSet<String> {
        let mut found = objects.iter();
        let role = found.find(|it| it["kind"] == "Role" && it["metadata"]["name"] == name);
        let rules = role.unwrap()["rules"].as_array().unwrap();
        let words = |value: &Value| -> Vec<String> {
            let words = value.as_array().into_iter().flatten();
            words.map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        let mut all = BTreeSet::new();
        for rule in rules {
            let group = &words(&rule["apiGroups"])[0];
            let of = words(&rule["resourceNames"]).join(",");
            for resource in words(&rule["resources"]) {
                for verb in words(&rule["verbs"]) {
                    all.insert(format!("{verb} {resource}.{group} {of}"));
                }
            }
        }
        all
    };
    let asked = |rights: &[Right]| -> BTreeSet<String> {
        let all = rights.iter().flat_map(|right| {
            let one = |verb: &&str| {
                let of = right.name.unwrap_or_default();
                format!("{verb} {}.{} {of}", right.resource, right.group)
            };
            right.verbs.iter().map(one)
        });
        all.collect()
    };
    assert_eq!(given("mailbell-operator"), asked(&RIGHTS));
    assert_eq!(given("mailbell-operator-lease"), asked(&LEASE));
    let secrets = ["main-operator-token", "mail-passwords"];
    let secrets = secrets.map(|name| Right {
        name: Some(name),
        ..SECRETS
    });
    assert_eq!(given("mailbell-operator-main"), asked(&secrets));
}

#[tokio::test]
async fn both_charts_are_without_fault_for_helm() {
    let Some(helm) = Helm::find() else {
        return;
    };
    for name in ["mailbell-crds", "mailbell"] {
        let chart = chart(name);
        let lint = ["lint", "--strict", chart.to_str().unwrap()];
        let (linted, said) = helm.run(&lint, "").await;
        assert!(linted && !said.contains("WARNING"), "{said}");
    }
}
