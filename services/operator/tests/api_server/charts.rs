//! The charts, by Helm.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use mailbell_operator::crds;

use crate::{
    actors::{IMAGE, Operator},
    world::{World, mailbell},
};

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell-crds");
const MAILBELL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell");

/// Their objects are the users' accounts.
#[tokio::test]
async fn the_definitions_stay_when_their_chart_is_uninstalled() {
    // Its own: definitions are the whole server's.
    let Some(world) = World::alone().await else {
        return;
    };
    let (linted, said) = world.helm(&["lint", "--strict", CRDS]).await;
    assert!(linted, "{said}");
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

/// The role is enough for all that an operator does, and for nothing that it need not.
#[tokio::test]
async fn an_operator_may_what_it_does_and_nothing_else() {
    let Some(world) = World::new().await else {
        return;
    };
    let (linted, said) = world.helm(&["lint", "--strict", MAILBELL]).await;
    assert!(linted, "{said}");
    let (installed, said) = world.helm(&["install", "mailbell", MAILBELL]).await;
    assert!(
        installed && said.contains("kubectl explain mailbell.spec"),
        "{said}"
    );
    let operator = Operator::start_as(&world, "one", Some("mailbell-operator"));
    world.create(&mailbell()).await;
    world.is_installed(IMAGE).await;
    world.until_ready_says("True Running").await;
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
    for (arguments, input) in [
        (&["get", "secret", "main-key-ring"][..], ""),
        (&["get", "secret", "main-nats-users"], ""),
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
        (&["get", "nodes"], ""),
        (&["get", "crds"], ""),
    ] {
        let mut all = vec![user.as_str()];
        all.extend(arguments);
        let (allowed, said) = world.kubectl(&all, input).await;
        assert!(!allowed && said.contains("cannot"), "{arguments:?}: {said}");
    }
}

/// A contradiction, and a misspelled value, are refused before anything is installed.
#[tokio::test]
async fn values_that_make_no_sense_are_refused_with_a_sentence() {
    let Some(world) = World::new().await else {
        return;
    };
    for (values, sentence) in [
        (
            "mailbell.create=true",
            "mailbell.create needs mailbell.spec",
        ),
        (
            "mailbell.spec.paused=true",
            "of use only with mailbell.create",
        ),
        (
            "mailbel.create=true",
            "additional properties 'mailbel' not allowed",
        ),
        ("replicas=0", "minimum"),
        ("mailbell.name=A.B", "does not match pattern"),
        (
            "installations={mail/main}",
            "needs watchAllNamespaces: true",
        ),
        (
            "mailAccounts.passwordSecrets={main-key-ring}",
            "must not read main-key-ring",
        ),
        ("installations={a,A}", "does not match pattern"),
        (
            "mailbell.create=true,mailbell.spec.paused=true,mailbell.name=other",
            "add other to installations",
        ),
    ] {
        let (rendered, said) = world
            .helm(&["template", "mailbell", MAILBELL, "--set", values])
            .await;
        assert!(!rendered && said.contains(sentence), "{values}: {said}");
    }
}

/// In every mode: no field that the server does not know, and no pod that may more than the strictest level allows.
#[tokio::test]
async fn what_the_chart_makes_is_taken_by_the_server() {
    let Some(world) = World::new().await else {
        return;
    };
    let level = "pod-security.kubernetes.io/warn=restricted";
    let (labelled, said) = world
        .kubectl(&["label", "namespace", &world.namespace, level], "")
        .await;
    assert!(labelled, "{said}");
    let spec = format!("mailbell.spec={}", mailbell()["spec"]);
    let named = format!("{}/one", world.namespace);
    let everywhere = format!("watchAllNamespaces=true,installations={{{named},two}}");
    for values in [
        &["--set", "replicas=1"][..],
        &["--set", "watchAllNamespaces=true"],
        &[
            "--set",
            &everywhere,
            "--set-json",
            "mailAccounts.passwordSecrets=[]",
        ],
        &["--set", "mailbell.create=true", "--set-json", &spec],
        &[
            "--set",
            "image.pullSecrets={a}",
            "--set",
            "podLabels.a=b",
            "--set",
            "podAnnotations.a=b",
            "--set",
            "nodeSelector.a=b",
            "--set",
            "priorityClassName=high",
            "--set",
            "serviceAccount.annotations.a=b",
            "--set-json",
            r#"tolerations=[{"key":"a","operator":"Exists"}]"#,
            "--set-json",
            r#"affinity={"podAntiAffinity":{}}"#,
        ],
    ] {
        let mut template = vec!["template", "mailbell", MAILBELL];
        template.extend(values);
        let (rendered, objects) = world.helm(&template).await;
        assert!(rendered, "{objects}");
        let apply = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
        ];
        let (applied, said) = world.kubectl(&apply, &objects).await;
        assert!(applied && !said.contains("Warning"), "{values:?}: {said}");
    }
}
