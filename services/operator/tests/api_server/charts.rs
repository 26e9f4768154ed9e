//! The charts on a cluster, by Helm. What they are as files is tested in `tests/charts`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use mailbell_operator::crds;
use serde_json::{Value, json};

use crate::world::World;

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell-crds");
pub(crate) const MAILBELL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell");

/// Their objects are the users' accounts.
#[tokio::test]
async fn the_definitions_stay_when_their_chart_is_uninstalled() {
    // Its own: definitions are the whole server's.
    let Some(world) = World::alone().await else {
        return;
    };
    let (installed, said) = world.helm(&["install", "crds", CRDS]).await;
    assert!(installed, "{said}");
    let api: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let stored = async || api.list(&Default::default()).await.unwrap().items;
    let names = |all: Vec<CustomResourceDefinition>| -> Vec<Option<String>> {
        let mut names: Vec<_> = all.into_iter().map(|it| it.metadata.name).collect();
        names.sort();
        names
    };
    let expected = names(crds::definitions());
    assert_eq!(names(stored().await), expected);
    let (upgraded, said) = world.helm(&["upgrade", "crds", CRDS]).await;
    assert!(upgraded, "{said}");
    let (uninstalled, said) = world.helm(&["uninstall", "crds"]).await;
    assert!(uninstalled && said.contains("kept"), "{said}");
    assert_eq!(names(stored().await), expected);
}

/// With the definitions come the rights that whoever administers a namespace lacks, and nobody else has to be asked.
#[tokio::test]
async fn whoever_administers_a_namespace_installs_mailbell_in_it() {
    let Some(world) = World::alone().await else {
        return;
    };
    let jane = ["--kube-as-user", "jane"];
    let install = ["install", "mailbell", MAILBELL, jane[0], jane[1]];
    // What the controllers of a cluster put together to its role admin, which are not here.
    let bind = async |role: &str, user: &str| {
        let name = format!("{user}-{}", role.replace(':', "-"));
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        let bind = ["create", "rolebinding", &name, &role, &user];
        let (bound, said) = world.kubectl(&bind, "").await;
        assert!(bound, "{said}");
    };
    for role in ["admin", "edit", "view"] {
        bind(&format!("system:aggregate-to-{role}"), "jane").await;
    }
    let (installed, said) = world.helm(&install).await;
    assert!(!installed && said.contains("forbidden"), "{said}");
    let (installed, said) = world.helm(&["install", "crds", CRDS]).await;
    assert!(installed, "{said}");
    let roles = [
        "get",
        "clusterroles",
        "-l",
        "app.kubernetes.io/part-of=mailbell",
        "-o",
        "name",
    ];
    let (_, roles) = world.kubectl(&roles, "").await;
    let roles: Vec<&str> = roles.lines().collect();
    assert_eq!(roles.len(), 3, "{roles:?}");
    for role in roles {
        bind(role.rsplit_once('/').unwrap().1, "jane").await;
    }
    for role in ["mailbell-edit", "mailbell-view"] {
        bind(role, "joe").await;
    }
    for resource in ["mailbells", "mailaccounts", "mailproviders"] {
        // What the operator alone says, an editor only reads.
        for (verb, sub, expected) in [
            ("patch", "", true),
            ("get", "--subresource=status", true),
            ("patch", "--subresource=status", false),
            ("update", "--subresource=finalizers", false),
        ] {
            let mut asked = vec!["auth", "can-i", verb, resource, "--as=joe"];
            asked.extend((!sub.is_empty()).then_some(sub));
            let (may, said) = world.kubectl(&asked, "").await;
            assert_eq!(may, expected, "{verb} {resource} {sub}: {said}");
        }
    }
    // With edit and view come our objects.
    for verb in ["get", "create", "delete"] {
        let asked = ["auth", "can-i", verb, "mailproviders", "--as=jane"];
        let (may, said) = world.kubectl(&asked, "").await;
        assert!(may, "{verb}: {said}");
    }
    let (installed, said) = world
        .helm(&["uninstall", "--ignore-not-found", "mailbell"])
        .await;
    assert!(installed, "{said}");
    let (installed, said) = world.helm(&install).await;
    assert!(installed, "{said}");
}

/// docs/operating.md: what the values say is changed there, and what they do not say by whoever likes.
#[tokio::test]
async fn what_the_values_say_of_an_installation_is_changed_by_them_alone() {
    let Some(world) = World::new().await else {
        return;
    };
    let spec = json!({
        "watchers": { "scale": { "min": 1, "max": 10 } },
        "gateways": { "tls": { "insecurePlaintext": true } },
        "admin": { "tls": { "insecurePlaintext": true } },
        "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "8Gi" } } },
    });
    let spec = format!("mailbell.spec={spec}");
    let make = ["--set", "mailbell.create=true", "--set-json", &spec];
    let install = [&["install", "mailbell", MAILBELL][..], &make].concat();
    let (installed, said) = world.helm(&install).await;
    assert!(installed, "{said}");
    let patch = async |patch: Value| {
        let patch = patch.to_string();
        let arguments = ["patch", "mailbell", "main", "--type=merge", "-p", &patch];
        let (patched, said) = world.kubectl(&arguments, "").await;
        assert!(patched, "{said}");
    };
    let upgrade = async |more: &[&str]| {
        let upgrade = ["upgrade", "mailbell", MAILBELL, "--reset-then-reuse-values"];
        world.helm(&[&upgrade, more].concat()).await
    };
    patch(json!({ "spec": { "finishUpgrade": true } })).await;
    let (upgraded, said) = upgrade(&[]).await;
    assert!(upgraded, "{said}");
    patch(json!({ "spec": { "watchers": { "scale": { "max": 20 } } } })).await;
    let (upgraded, said) = upgrade(&[]).await;
    let sentence = "conflict with \"kubectl-patch\"";
    assert!(!upgraded && said.contains(sentence), "{said}");
    let (upgraded, said) = upgrade(&["--set", "mailbell.spec.watchers.scale.max=20"]).await;
    assert!(upgraded, "{said}");
    let main = world.mailbells().get("main").await.unwrap();
    assert!(main.spec.finish_upgrade);
    assert_eq!(main.spec.watchers.scale.max, 20);
}
