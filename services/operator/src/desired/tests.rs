//! Snapshots of all objects, and rules that hold for each of them.

mod network;

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use super::*;
use crate::api::{VARIABLES, VOLUMES};

mod installations;

use installations::installations;

fn mailbell(spec: &Value) -> Mailbell {
    let object = json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "Mailbell",
        "metadata": { "name": "main", "namespace": "mail", "uid": "0b8f5f5e-0000-4000-8000-000000000000" },
        "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn wanted(mailbell: &Mailbell) -> Wanted<'_> {
    Wanted {
        mailbell,
        image: "mailbell.dev/mailbell:0.1.0",
        watchers: 2,
        gateways: 2,
        policy: Some(r#"{"pausedTenants":["acme"],"providers":[]}"#),
        api_server_ports: &API_SERVER_PORTS,
    }
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

fn jobs(spec: &Value) -> Vec<Value> {
    let all = objects(spec).into_iter();
    all.filter(|object| object["kind"] == "Job").collect()
}

fn objects(spec: &Value) -> Vec<Value> {
    let stages = desired(&wanted(&mailbell(spec)));
    stages.into_iter().flat_map(|stage| stage.objects).collect()
}

/// The templates of pods, with what they are of.
fn templates(spec: &Value) -> Vec<(String, Value)> {
    let of = |object: &Value| {
        let template = object.pointer("/spec/template")?.clone();
        Some((object["metadata"]["name"].as_str()?.to_owned(), template))
    };
    objects(spec).iter().filter_map(of).collect()
}

/// What a change of the code changes on a cluster is seen here. `MAILBELL_UPDATE_GOLDEN=1` writes them anew.
#[test]
fn every_object_is_as_it_was() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/desired/golden");
    for (name, spec) in installations() {
        let mut text = String::new();
        for stage in desired(&wanted(&mailbell(&spec))) {
            text += &format!("# {}\n", stage.name);
            for object in &stage.objects {
                text += "---\n";
                text += &serde_saphyr::to_string(object).unwrap();
            }
        }
        let file = folder.join(format!("{name}.yaml"));
        if std::env::var_os("MAILBELL_UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&file, &text).unwrap();
        }
        let stored = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            stored == text,
            "{} is not what the code makes of it: look at the difference, then write it with MAILBELL_UPDATE_GOLDEN=1",
            file.display()
        );
    }
}

#[test]
fn everything_goes_with_its_installation_and_is_found_by_it() {
    for (_, spec) in installations() {
        let mut names = BTreeSet::new();
        for object in objects(&spec) {
            let metadata = &object["metadata"];
            let name = metadata["name"].as_str().unwrap();
            assert!(name.starts_with("main-"), "{name}");
            assert!(
                names.insert((object["kind"].to_string(), name.to_owned())),
                "{name} is there twice"
            );
            assert_eq!(metadata["namespace"], "mail");
            assert_eq!(metadata["ownerReferences"][0]["kind"], "Mailbell");
            assert_eq!(metadata["ownerReferences"][0]["controller"], true);
            assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], MANAGER);
        }
    }
}

/// A selector that misses its pods would leave them without service, budget and policy.
#[test]
fn what_selects_pods_selects_those_of_its_part_whatever_labels_a_user_adds() {
    for (_, spec) in installations() {
        let all = objects(&spec);
        let templates = templates(&spec);
        for object in &all {
            let selector = [
                "/spec/selector/matchLabels",
                "/spec/podSelector/matchLabels",
            ]
            .iter()
            .find_map(|place| object.pointer(place))
            .or_else(|| {
                object
                    .pointer("/spec/selector")
                    .filter(|_| object["kind"] == "Service")
            });
            let Some(selector) = selector.and_then(Value::as_object) else {
                continue;
            };
            let selected =
                |labels: &Value| selector.iter().all(|(name, value)| labels[name] == *value);
            let part = |labels: &Value| labels["app.kubernetes.io/component"].clone();
            let own = part(&object["metadata"]["labels"]);
            let mut of = 0;
            for (name, template) in &templates {
                let labels = &template["metadata"]["labels"];
                // All pods of the object's part, and no others.
                let is_own = part(labels) == own;
                assert_eq!(selected(labels), is_own, "{} {own}: {name}", object["kind"]);
                of += usize::from(is_own);
            }
            assert!(of > 0, "{} {own} selects nothing", object["kind"]);
        }
    }
}

#[test]
fn a_pod_may_nothing_that_it_need_not() {
    for (_, spec) in installations() {
        for account in objects(&spec) {
            let is_account = account["kind"] == "ServiceAccount";
            assert!(
                !is_account || account["automountServiceAccountToken"] == false,
                "{account}"
            );
        }
        for (name, template) in templates(&spec) {
            let spec = &template["spec"];
            // But for what makes Secrets.
            let speaks = name.starts_with("main-secrets-") || name.starts_with("main-key-ring-");
            assert_eq!(spec["automountServiceAccountToken"], speaks, "{name}");
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(
                spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
                "{name}"
            );
            for container in spec["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
                assert!(!container["resources"].is_null(), "{name}");
                // No password is in what everybody may read who may see a pod.
                for variable in container["env"].as_array().unwrap() {
                    let named = variable["name"].as_str().unwrap().ends_with("_PASSWORD");
                    assert!(!named || variable["value"].is_null(), "{name}: {variable}");
                }
            }
        }
    }
}

/// Whoever is killed in the middle of a drain drops its devices.
#[test]
fn a_pod_has_the_time_that_its_drain_takes() {
    for (installation, spec) in installations() {
        for (name, template) in templates(&spec) {
            let spec = &template["spec"];
            let environment = spec["containers"][0]["env"].as_array().unwrap();
            let drain = environment.iter().find(|it| it["name"] == "MAILBELL_DRAIN");
            let Some(drain) = drain else {
                continue;
            };
            let drain = drain["value"].as_str().unwrap().trim_end_matches('s');
            let drain: i64 = drain.parse().unwrap();
            let before = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"].as_i64();
            let grace = spec["terminationGracePeriodSeconds"].as_i64().unwrap();
            assert!(grace >= drain + before.unwrap() + 5, "{name}: {grace}");
            if (installation, name.as_str()) == ("full", "main-gateway") {
                assert_eq!(drain, 300);
            }
        }
    }
}

#[test]
fn what_is_paused_has_no_pods_and_keeps_its_store() {
    let (_, spec) = &installations()[1];
    for object in objects(spec) {
        if let Some(replicas) = object.pointer("/spec/replicas") {
            assert_eq!(*replicas, 0, "{}", object["metadata"]["name"]);
        }
    }
    let (_, mut spec) = installations()[0].clone();
    spec["paused"] = true.into();
    let nats = objects(&spec).into_iter().find(|object| {
        object["kind"] == "StatefulSet" && object["metadata"]["name"] == "main-nats"
    });
    assert_eq!(nats.unwrap()["spec"]["replicas"], 3);
}

/// It is there first, in a folder that changes in pods that run, and no pod is another one for it.
#[test]
fn what_watchers_are_told_makes_no_other_pods() {
    for (_, spec) in installations() {
        let mailbell = mailbell(&spec);
        let said = wanted(&mailbell);
        let other = Wanted {
            policy: Some("{}"),
            ..said
        };
        let (before, after) = (desired(&said), desired(&other));
        let config = &before[0].objects[0];
        assert_eq!(name(config), "main-policy");
        assert_eq!(config["data"]["policy.json"], said.policy.unwrap());
        assert_ne!(before[0], after[0]);
        assert_eq!(before[1..], after[1..]);
        let (_, watcher) = templates(&spec)
            .into_iter()
            .find(|(name, _)| name == "main-watcher")
            .unwrap();
        let container = &watcher["spec"]["containers"][0];
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|it| it["name"] == "policy").unwrap();
        // A single file of a volume stays as it was when the pod began.
        assert!(mount["subPath"].is_null(), "{mount}");
        let file = format!("{}/policy.json", mount["mountPath"].as_str().unwrap());
        let variables = container["env"].as_array().unwrap();
        let told = json!({ "name": "MAILBELL_POLICY_FILE", "value": file });
        assert!(variables.contains(&told), "{variables:?}");
    }
}

/// A job cannot be changed: the same must be the same one, and another another one.
#[test]
fn a_setup_is_run_for_each_image_and_only_then() {
    let job = |spec: &Value| {
        let mut names = jobs(spec).into_iter().map(|job| name(&job));
        names.find(|name| name.starts_with("main-setup-")).unwrap()
    };
    let (_, spec) = installations()[0].clone();
    let first = job(&spec);
    let mut grown = spec.clone();
    grown["watchers"] = json!({ "mailboxesPerPod": 7 });
    assert_eq!(job(&grown), first);
    let mut newer = spec.clone();
    newer["image"] = "mailbell.dev/mailbell:0.2.0".into();
    assert_ne!(job(&newer), first);
    // The end of an upgrade is a job of its own, after everything else.
    let mut finished = spec;
    finished["finishUpgrade"] = true.into();
    assert_eq!(job(&finished), first);
    let stages = desired(&wanted(&mailbell(&finished)));
    let last = stages.last().unwrap();
    assert!(
        last.objects[0]["metadata"]["name"]
            .as_str()
            .unwrap()
            .starts_with("main-finish-")
    );
}

/// What somebody has brought is not asked for, the keys to passwords are the watchers' alone, and no such job reaches anything else.
#[test]
fn secrets_that_are_missing_are_made_by_those_who_may() {
    let made = |spec: &Value| -> Vec<(String, Vec<String>)> {
        let of = |job: &Value| {
            let pod = job.pointer("/spec/template/spec")?;
            let arguments = pod.pointer("/containers/0/args")?.as_array()?;
            let mut words = arguments
                .iter()
                .map(|word| word.as_str().unwrap().to_owned());
            if words.next()? != "secrets" {
                return None;
            }
            assert_eq!(pod["volumes"], json!([]));
            Some((
                pod["serviceAccountName"].as_str()?.to_owned(),
                words.collect(),
            ))
        };
        jobs(spec).iter().filter_map(of).collect()
    };
    let [(_, mut usual), (_, external), _, (_, full)] = installations();
    let ring = || ("main-watcher".to_owned(), vec!["key-ring".to_owned()]);
    let all = [
        "operator-token",
        "nats-users",
        "nats-tls",
        "admin-token",
        "signing-key",
    ];
    let others = |names: &[&str]| {
        let names = names.iter().map(|name| (*name).to_owned());
        ("main-secrets".to_owned(), names.collect())
    };
    assert_eq!(made(&usual), [others(&all), ring()]);
    usual["admin"]["tokenSecret"] = "mine".into();
    usual["admin"]["signingKeySecret"] = "mine".into();
    usual["nats"] = external["nats"].clone();
    assert_eq!(made(&usual), [others(&["operator-token"]), ring()]);
    assert_eq!(made(&external), []);
    assert_eq!(made(&full), [others(&["operator-token"])]);
}

/// Where nothing is brought, pods read what jobs make; and of what is brought under another name they read that alone.
#[test]
fn pods_read_the_secrets_that_are_named_and_no_others() {
    fn named(value: &Value, found: &mut BTreeSet<String>) {
        for place in ["/secret/secretName", "/secretKeyRef/name"] {
            let name = value.pointer(place).and_then(Value::as_str);
            found.extend(name.map(str::to_owned));
        }
        match value {
            Value::Object(parts) => parts.values().for_each(|part| named(part, found)),
            Value::Array(parts) => parts.iter().for_each(|part| named(part, found)),
            _ => {}
        }
    }
    let [(_, usual), _, _, (_, full)] = installations();
    for (spec, expected) in [
        (
            usual,
            &[
                "admin-tls",
                "main-admin-token",
                "main-key-ring",
                "main-nats-tls",
                "main-nats-users",
                "main-operator-token",
                "main-signing-key",
                "push-tls",
            ][..],
        ),
        (
            full,
            &[
                "admin-tls",
                "main-operator-token",
                "own-files",
                "own-headers",
                "own-nats-tls",
                "own-ring",
                "own-signing",
                "own-tokens",
                "own-users",
            ],
        ),
    ] {
        let mut found = BTreeSet::new();
        for (_, template) in templates(&spec) {
            named(&template, &mut found);
        }
        assert_eq!(Vec::from_iter(&found), expected);
    }
}

/// At 60 KB a device (docs/performance.md) and 5 KB of its socket, and what it needs with none, for its windows and for replays; beyond that
/// it is killed with all of them.
#[test]
fn a_gateway_with_all_devices_that_it_may_have_stays_below_its_memory() {
    let (_, spec) = &installations()[0];
    let all = templates(spec);
    let (_, gateway) = all.iter().find(|(it, _)| it == "main-gateway").unwrap();
    let container = &gateway["spec"]["containers"][0];
    let env = container["env"].as_array().unwrap();
    let most = env.iter().find(|it| it["name"] == "MAILBELL_MOST_DEVICES");
    let most: u64 = most.unwrap()["value"].as_str().unwrap().parse().unwrap();
    let limit = container["resources"]["limits"]["memory"].as_str().unwrap();
    let limit = quantity::whole(limit).unwrap();
    assert!(
        most * 65_000 + ((28 + 64 + 32) << 20) <= limit,
        "{most}: {limit}"
    );
}

/// Its cgroup counts more than Go does: threads, what is mapped, what the kernel keeps for it.
#[test]
fn a_nats_server_leaves_a_part_of_its_memory_to_what_go_does_not_count() {
    let (_, full) = &installations()[3];
    for (place, resources, expected) in [
        (
            "resources",
            json!({ "limits": { "memory": "4Gi" } }),
            Some("3686MiB"),
        ),
        (
            "resources",
            json!({ "limits": { "memory": "2G" } }),
            Some("1716MiB"),
        ),
        ("resources", json!({ "limits": { "cpu": "1" } }), None),
        (
            "resources",
            json!({ "requests": { "memory": "1Gi" } }),
            None,
        ),
        ("resources", json!({ "limits": { "memory": "400m" } }), None),
        ("resources", Value::Null, Some("900MiB")),
        (
            "pods",
            json!({ "resources": { "limits": { "memory": "1.5Gi" } } }),
            Some("1382MiB"),
        ),
    ] {
        let mut spec = full.clone();
        let managed = &mut spec["nats"]["managed"];
        managed["resources"] = Value::Null;
        managed[place] = resources.clone();
        let all = templates(&spec);
        let (_, nats) = all.iter().find(|(it, _)| it == "main-nats").unwrap();
        let env = nats["spec"]["containers"][0]["env"].as_array().unwrap();
        let limit = env.iter().find(|it| it["name"] == "GOMEMLIMIT").unwrap();
        assert_eq!(limit["value"].as_str(), expected, "{resources}");
        let field = &limit["valueFrom"]["resourceFieldRef"]["resource"];
        assert_eq!(field == "limits.memory", expected.is_none(), "{resources}");
    }
}

/// What the operator sets is what the API server takes of no user.
#[test]
fn each_name_that_the_operator_uses_is_refused_to_users_and_no_other() {
    let (mut variables, mut volumes) = (BTreeSet::new(), BTreeSet::new());
    for (_, mut spec) in installations() {
        for part in ["/watchers", "/gateways", "/admin", "/nats/managed"] {
            if let Some(part) = spec.pointer_mut(part).and_then(Value::as_object_mut) {
                part.remove("pods");
            }
        }
        // Its disk is a volume too.
        volumes.extend(spec.pointer("/nats/managed").map(|_| "data".to_owned()));
        for (_, template) in templates(&spec) {
            let names = |place: &str| {
                let all = template.pointer(place).and_then(Value::as_array).unwrap();
                let name = |it: &Value| it["name"].as_str().unwrap().to_owned();
                all.iter().map(name).collect::<Vec<_>>()
            };
            variables.extend(names("/spec/containers/0/env"));
            volumes.extend(names("/spec/volumes"));
        }
    }
    assert_eq!(Vec::from_iter(variables), VARIABLES);
    assert_eq!(Vec::from_iter(volumes), VOLUMES);
}

/// Two of a name would be refused by the API server, with all that waits for the pod.
#[test]
fn what_users_add_is_there_once_and_stands_behind_what_the_operator_sets() {
    let (_, mut spec) = installations()[0].clone();
    let env = json!([{ "name": "MAILBELL_LOG", "value": "trace" }, { "name": "MAILBELL_EGRESS", "value": "one" }]);
    let volumes = json!([{ "name": "tls", "emptyDir": {} }, { "name": "tmp", "emptyDir": {} }]);
    let mounts = json!([{ "name": "tmp", "mountPath": "/run/mailbell/tls" }, { "name": "tmp", "mountPath": "/tmp" }]);
    spec["gateways"]["pods"] = json!({ "env": env, "volumes": volumes, "volumeMounts": mounts });
    let all = templates(&spec);
    let of = |name: &str| &all.iter().find(|(it, _)| it == name).unwrap().1["spec"];
    let gateway = of("main-gateway");
    let named = |place: &str, key: &str, name: &str| -> Vec<Value> {
        let list = gateway.pointer(place).and_then(Value::as_array).unwrap();
        let found = list.iter().filter(|it| it[key] == name);
        found.cloned().collect()
    };
    let env = "/containers/0/env";
    let log = json!([{ "name": "MAILBELL_LOG", "value": "info,async_nats=warn" }]);
    assert_eq!(json!(named(env, "name", "MAILBELL_LOG")), log);
    assert_eq!(named(env, "name", "MAILBELL_EGRESS").len(), 1);
    let tls = named("/volumes", "name", "tls");
    assert!(tls.len() == 1 && tls[0]["emptyDir"].is_null(), "{tls:?}");
    assert_eq!(named("/volumes", "name", "tmp").len(), 1);
    let mounts = "/containers/0/volumeMounts";
    let tls = named(mounts, "mountPath", "/run/mailbell/tls");
    assert!(tls.len() == 1 && tls[0]["name"] == "tls", "{tls:?}");
    assert_eq!(named(mounts, "mountPath", "/tmp").len(), 1);
    // They are this part's alone, and no job's.
    for (name, template) in &all {
        let has = template.to_string().contains("MAILBELL_EGRESS");
        assert_eq!(has, name == "main-gateway", "{name}");
    }
}
