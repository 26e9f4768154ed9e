//! `mailbell secrets` on a real Kubernetes API server, with the rights that the chart gives.

use std::{collections::BTreeMap, process::Output};

use serde_json::Value;

use crate::{
    cluster::{CHART, Cluster},
    machine::{Machine, text},
};

/// What the installation's own account makes.
const MADE: [&str; 5] = [
    "nats-users",
    "nats-tls",
    "admin-token",
    "operator-token",
    "signing-key",
];

/// Every key of the installation's Secrets.
async fn filled(cluster: &Cluster) -> BTreeMap<String, String> {
    // Not those in which Helm keeps its releases.
    let list = [
        "get",
        "secrets",
        "--field-selector=type=Opaque",
        "-o",
        "json",
    ];
    let list = cluster.kubectl(&list).await;
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut all = BTreeMap::new();
    for secret in list.get("items").unwrap().as_array().unwrap() {
        let name = secret.pointer("/metadata/name").unwrap().as_str().unwrap();
        let data = secret.get("data").and_then(Value::as_object);
        for (key, value) in data.into_iter().flatten() {
            all.insert(format!("{name}/{key}"), value.as_str().unwrap().to_owned());
        }
    }
    all
}

fn fill(machine: &Machine, what: &[&str]) -> (Option<i32>, String) {
    let mut arguments = vec!["secrets"];
    arguments.extend(what);
    let Output {
        status,
        stdout,
        stderr,
    } = machine.run(&arguments);
    (status.code(), text(&stdout) + &text(&stderr))
}

/// Each account fills what is its own, once, and gets at nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn each_job_fills_what_is_missing_with_no_more_rights_than_it_needs() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let (secrets, watcher) = (
        cluster.account("main-secrets").await,
        cluster.account("main-watcher").await,
    );
    // Before the chart is there, and for an installation that it does not know.
    let (code, said) = fill(&secrets, &MADE);
    assert!(
        code == Some(77) && said.contains("add main to the installations of the chart"),
        "{code:?}: {said}"
    );
    let install = ["install", "mailbell", CHART];
    let (installed, said) = cluster.tool("helm", &install).await;
    assert!(installed, "{said}");
    assert_eq!(filled(&cluster).await, BTreeMap::new());
    let mine = [
        "patch",
        "secret",
        "main-nats-users",
        "-p",
        r#"{ "stringData": { "setup": "mine" } }"#,
    ];
    cluster.kubectl(&mine).await;
    let (code, said) = fill(&secrets, &MADE);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("made   main-nats-users: watcher, gateway, admin\n"),
        "{said}"
    );
    let (code, said) = fill(&watcher, &["key-ring"]);
    assert_eq!(
        (code, said.as_str()),
        (Some(0), "made   main-key-ring: key.ring\n")
    );
    let first = filled(&cluster).await;
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "main-admin-token/token",
            "main-admin-token/tokens",
            "main-key-ring/key.ring",
            "main-nats-tls/ca.crt",
            "main-nats-tls/tls.crt",
            "main-nats-tls/tls.key",
            "main-nats-users/admin",
            "main-nats-users/gateway",
            "main-nats-users/setup",
            "main-nats-users/watcher",
            "main-operator-token/token",
            "main-signing-key/signing.pem",
        ]
    );
    // The value that was there: base64 of "mine".
    assert_eq!(first["main-nats-users/setup"], "bWluZQ==");
    // Nothing of a secret is said.
    assert!(!said.contains("mba_"), "{said}");
    // Run again, with an upgrade of the chart between, nothing changes.
    let (upgraded, said) = cluster.tool("helm", &["upgrade", "mailbell", CHART]).await;
    assert!(upgraded, "{said}");
    assert_eq!(filled(&cluster).await, first);
    for (machine, what) in [(&secrets, &MADE[..]), (&watcher, &["key-ring"])] {
        let (code, said) = fill(machine, what);
        assert!(
            code == Some(0) && !said.contains("made"),
            "{code:?}: {said}"
        );
    }
    assert_eq!(filled(&cluster).await, first);
    // Each other's.
    for (machine, what) in [(&secrets, "key-ring"), (&watcher, "admin-token")] {
        let (code, said) = fill(machine, &[what]);
        assert!(
            code == Some(77) && said.contains("may not be filled") && said.contains("cannot get"),
            "{code:?}: {said}"
        );
    }
    for account in ["main-secrets", "main-watcher", "mailbell-operator"] {
        let user = format!("--as=system:serviceaccount:default:{account}");
        for refused in [
            &["get", "secrets"][..],
            &["create", "secret", "generic", "mine"],
            &["delete", "secret", "main-key-ring"],
            &["get", "pods"],
            &["create", "token", account],
        ] {
            let mut arguments = vec![user.as_str()];
            arguments.extend(refused);
            let (allowed, said) = cluster.tool("kubectl", &arguments).await;
            assert!(
                !allowed && said.contains("cannot"),
                "{account} {refused:?}: {said}"
            );
        }
    }
    // They outlive the release.
    let (uninstalled, said) = cluster.tool("helm", &["uninstall", "mailbell"]).await;
    assert!(uninstalled, "{said}");
    assert_eq!(filled(&cluster).await, first);
    // And are taken up by the next of its name.
    let (installed, said) = cluster.tool("helm", &install).await;
    assert!(installed, "{said}");
    assert_eq!(filled(&cluster).await, first);
}

/// Two at once agree, and a person with the right to make Secrets needs no chart.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_makes_them_without_the_chart_and_of_two_at_once_nothing_is_lost() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let person = Machine::on_cluster(cluster.server.kubeconfig());
    let start = || {
        let mut arguments = vec!["secrets", "key-ring"];
        arguments.extend(MADE);
        let mut command = person.command(&arguments);
        command.stdout(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let all: Vec<_> = (0..4).map(|_| start()).collect();
    let mut made = 0;
    for child in all {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        made += text(&output.stdout).matches("made").count();
    }
    // Each by one of them.
    assert_eq!(made, 6);
    assert_eq!(filled(&cluster).await.len(), 12);
    // A chart that comes later leaves alone what it has not made.
    let all = filled(&cluster).await;
    for _ in 0..2 {
        let install = ["upgrade", "--install", "mailbell", CHART];
        let (installed, said) = cluster.tool("helm", &install).await;
        assert!(installed, "{said}");
        assert_eq!(filled(&cluster).await, all);
    }
    let half = [
        "patch",
        "secret",
        "main-nats-tls",
        "-p",
        r#"{ "data": { "ca.crt": null } }"#,
    ];
    cluster.kubectl(&half).await;
    let (code, said) = fill(&person, &["nats-tls"]);
    assert!(
        code == Some(65) && said.contains("all of them, or none"),
        "{code:?}: {said}"
    );
}
