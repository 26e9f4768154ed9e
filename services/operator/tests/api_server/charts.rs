//! The charts on a cluster, by Helm. What they are as files is tested in `tests/charts`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use mailbell_operator::crds;
use serde_json::json;

use crate::{
    actors::{IMAGE, Operator},
    world::{World, mailbell, provider, with},
};

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
    let bind = async |role: &str| {
        let name = role.replace(':', "-");
        let role = format!("--clusterrole={role}");
        let bind = ["create", "rolebinding", &name, &role, "--user=jane"];
        let (bound, said) = world.kubectl(&bind, "").await;
        assert!(bound, "{said}");
    };
    for role in ["admin", "edit", "view"] {
        bind(&format!("system:aggregate-to-{role}")).await;
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
        bind(role.rsplit_once('/').unwrap().1).await;
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

/// The role is enough for all that an operator does, and for nothing that it need not.
#[tokio::test]
async fn an_operator_may_what_it_does_and_nothing_else() {
    let Some(world) = World::new().await else {
        return;
    };
    let (installed, said) = world.helm(&["install", "mailbell", MAILBELL]).await;
    assert!(
        installed
            && said.contains("kubectl explain mailbell.spec")
            && said.contains(&format!(
                "helm --namespace {} test mailbell",
                world.namespace
            )),
        "{said}"
    );
    let operator = Operator::start_as(&world, "one", Some("mailbell-operator"));
    world.create(&mailbell()).await;
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
    // What one of them may be trusted by is read too.
    let roots = [
        "create",
        "configmap",
        "example-roots",
        "--from-literal=ca.crt=none",
    ];
    let (made, said) = world.kubectl(&roots, "").await;
    assert!(made, "{said}");
    let trusting = with(&provider(), "/spec/caConfigMap", json!("example-roots"));
    world.has(&trusting).await;
    world
        .until_provider_says("example", "example-roots: no certificate in it")
        .await;
    let (listed, events) = world.kubectl(&["get", "events"], "").await;
    assert!(listed && events.contains("Running"), "{events}");
    operator.stop().await;
    let user = format!(
        "--as=system:serviceaccount:{}:mailbell-operator",
        world.namespace
    );
    let token = ["get", "secret", "main-operator-token", &user];
    let (read, said) = world.kubectl(&token, "").await;
    assert!(read, "{said}");
    let role = r#"{ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "more" },
        "rules": [{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"] }] }"#;
    let binding = [
        "create",
        "rolebinding",
        "more",
        "--clusterrole=admin",
        "--serviceaccount=default:default",
    ];
    let another = provider().to_string();
    for (arguments, input) in [
        (&["get", "secret", "main-key-ring"][..], ""),
        (&["get", "secret", "main-nats-users"], ""),
        (
            &[
                "get",
                "secrets",
                "--field-selector=metadata.name=mail-passwords",
            ],
            "",
        ),
        (&["patch", "secret", "main-operator-token", "-p", "{}"], ""),
        (&["create", "secret", "generic", "mine"], ""),
        (&["get", "secrets"], ""),
        (&["delete", "secret", "main-key-ring"], ""),
        (&["get", "pods"], ""),
        (&["run", "mine", "--image=mine"], ""),
        (&["create", "-f", "-"], role),
        (&binding, ""),
        (&["create", "token", "mailbell-operator"], ""),
        (&["get", "mailbells", "--all-namespaces"], ""),
        (&["get", "services", "--namespace=default"], ""),
        (&["delete", "mailbell", "main"], ""),
        (&["delete", "mailprovider", "example"], ""),
        (
            &[
                "patch",
                "mailprovider",
                "example",
                "--type=merge",
                "-p",
                "{}",
            ],
            "",
        ),
        (&["create", "-f", "-"], &another),
        (&["get", "nodes"], ""),
        (&["get", "crds"], ""),
    ] {
        let mut all = vec![user.as_str()];
        all.extend(arguments);
        let (allowed, said) = world.kubectl(&all, input).await;
        assert!(!allowed && said.contains("cannot"), "{arguments:?}: {said}");
    }
}
