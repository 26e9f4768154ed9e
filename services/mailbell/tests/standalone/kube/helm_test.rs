//! `helm test`, which runs the command in a pod.

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    machine::{LIMIT, Machine, text},
};

/// What `helm test` says, with this machine as the node: the pod's command is run with the pod's rights, and its end is told.
async fn helm_test(cluster: &Cluster) -> (bool, String) {
    let pod = "mailbell-operator-test";
    let test = cluster.tool("helm", &["test", "mailbell", "--timeout", "60s"]);
    let node = async {
        let get = ["get", "pod", pod, "-o", "json"];
        let shown = loop {
            let (there, shown) = cluster.tool("kubectl", &get).await;
            let shown: Value = serde_json::from_str(&shown).unwrap_or_default();
            // One that has ended is that of the test before.
            if there && shown.pointer("/status/phase") == Some(&json!("Pending")) {
                break shown;
            }
        };
        let text_at = |place: &str| shown.pointer(place).unwrap().as_str().unwrap().to_owned();
        let arguments = shown.pointer("/spec/containers/0/args").unwrap();
        let arguments: Vec<&str> = arguments
            .as_array()
            .unwrap()
            .iter()
            .map(|argument| argument.as_str().unwrap())
            .collect();
        let account = text_at("/spec/serviceAccountName");
        let output = cluster.machine_of(&account).await.run(&arguments);
        let phase = if output.status.success() {
            "Succeeded"
        } else {
            "Failed"
        };
        cluster
            .status(&format!("pod/{pod}"), json!({ "phase": phase }))
            .await;
        text(&output.stdout)
    };
    let both = async { tokio::join!(test, node) };
    let ((passed, said), doctor) = tokio::time::timeout(LIMIT * 2, both).await.unwrap();
    (passed, format!("{said}{doctor}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn helm_test_passes_while_all_is_well_and_fails_else() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let admin = Machine::on_cluster(cluster.server.kubeconfig());
    cluster.definitions(&admin).await;
    cluster.all_is_well().await;
    let (passed, said) = helm_test(&cluster).await;
    assert!(
        passed && said.contains("mailbell-operator-1 in default works"),
        "{said}"
    );
    cluster.ready("False", "Failed", "The watchers: no.").await;
    let (passed, said) = helm_test(&cluster).await;
    assert!(
        !passed && said.contains("FAIL  installation main"),
        "{said}"
    );
    // Also after one that has failed.
    cluster.ready("True", "Running", "Everything runs.").await;
    let (passed, said) = helm_test(&cluster).await;
    assert!(passed, "{said}");
}
