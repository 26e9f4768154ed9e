//! What `mailbell doctor --kube` says of operators: their rights, and which of them look after a namespace.

use serde_json::json;

use crate::{cluster::Cluster, kube::doctor, machine::Machine};

/// Its role is of a release before, another one looks after the same namespace, or none does.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_lacks_rights_or_has_a_rival_or_is_somewhere_else() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let admin = Machine::on_cluster(cluster.server.kubeconfig());
    cluster.definitions(&admin).await;
    cluster.all_is_well().await;
    // Who administers the namespace may ask for the rights of others in it, and may not look for operators in others.
    let owner = cluster.account("owner").await;
    // No controller puts these together as the role `admin` here.
    let roles = ["admin", "edit", "view"].map(|role| format!("system:aggregate-to-{role}"));
    let sees = [
        "create",
        "clusterrole",
        "sees",
        "--verb=get,list",
        "--resource=mailbells.mailbell.dev,mailaccounts.mailbell.dev",
    ];
    cluster.kubectl(&sees).await;
    for role in roles.iter().map(String::as_str).chain(["sees"]) {
        let of = format!("--clusterrole={role}");
        let bind = [
            "create",
            "rolebinding",
            &role.replace(':', "-"),
            &of,
            "--serviceaccount=default:owner",
        ];
        cluster.kubectl(&bind).await;
    }
    let said = doctor(&owner);
    assert_eq!(said.code, Some(0), "{said:?}");
    said.has("rights of mailbell-operator", "ok", "it has all 77");
    said.has("operator", "skipped", "whether another one elsewhere");
    said.has("NATS main", "skipped", "no server was reached");

    // Of the pods, the least: the page on which NATS servers tell of themselves.
    let asker = cluster.account("asker").await;
    let names = [0, 1, 2].map(|node| format!("main-nats-{node}:8222"));
    let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "ask-nats" },
        "rules": [{ "apiGroups": [""], "resources": ["pods/proxy"], "resourceNames": names, "verbs": ["get"] }] });
    cluster.apply(&role.to_string()).await;
    for of in ["--clusterrole=sees", "--role=ask-nats"] {
        let bind = [
            "create",
            "rolebinding",
            &of.replace(['-', '='], ""),
            of,
            "--serviceaccount=default:asker",
        ];
        cluster.kubectl(&bind).await;
    }
    let said = doctor(&asker);
    said.has("pods main", "skipped", "cannot list resource");
    said.has("NATS main", "skipped", "no server was reached");

    let lacks = r#"[{ "op": "replace", "path": "/rules/7/verbs", "value": ["get", "list", "watch", "create"] }]"#;
    cluster
        .kubectl(&[
            "patch",
            "role",
            "mailbell-operator",
            "--type=json",
            "-p",
            lacks,
        ])
        .await;
    let said = doctor(&admin);
    assert_eq!(said.of("fail"), ["rights of mailbell-operator"], "{said:?}");
    let advice = said.has(
        "rights of mailbell-operator",
        "fail",
        "it may not: patch deployments.apps; delete deployments.apps; patch statefulsets.apps; delete statefulsets.apps",
    );
    assert!(advice.contains("upgrade the chart mailbell"), "{advice}");

    cluster.kubectl(&["create", "namespace", "other"]).await;
    let labels = json!({ "app.kubernetes.io/name": "mailbell-operator" });
    let container = json!({ "name": "operator", "image": "mailbell:1" });
    let rival = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "rival", "namespace": "other", "labels": labels },
        "spec": { "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels }, "spec": { "containers": [container] } } } });
    cluster.apply(&rival.to_string()).await;
    let said = doctor(&admin);
    let both = "mailbell-operator in default and rival in other look after this namespace";
    let advice = said.has("operator", "fail", both);
    assert!(advice.contains("keep one"), "{advice}");
    let elsewhere = r#"[{ "op": "add", "path": "/spec/template/spec/containers/0/env", "value": [{ "name": "MAILBELL_NAMESPACE", "value": "other" }] }]"#;
    cluster
        .kubectl(&[
            "patch",
            "deployment",
            "rival",
            "--namespace=other",
            "--type=json",
            "-p",
            elsewhere,
        ])
        .await;
    assert_eq!(doctor(&admin).of("fail"), ["rights of mailbell-operator"]);
    cluster
        .kubectl(&["delete", "deployment", "mailbell-operator"])
        .await;
    let said = doctor(&admin);
    let none = "none looks after default: what runs goes on, and nothing is made, repaired or upgraded; rival in other";
    let advice = said.has("operator", "fail", none);
    assert!(
        advice.contains("install the chart mailbell in this namespace"),
        "{advice}"
    );
}
