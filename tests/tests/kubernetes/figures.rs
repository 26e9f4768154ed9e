//! What an operator costs whose installation does not change.

use std::time::Duration;

use mailbell_tests::http::{get, metric};

use crate::{
    install::{NAMESPACE, apply},
    pods::{METRICS_PORT, OPERATOR},
    world::World,
};
use mailbell_test_cluster::Cluster;
use serde_json::{Value, json};

/// Until what has just been installed is told: counts of devices are, within a minute.
const SETTLED: Duration = Duration::from_secs(90);
/// For how long is counted: each installation is looked at once in that time.
const WINDOW: Duration = Duration::from_secs(300);

/// Lets the API server count the operator's requests apart from others, by its name.
pub(crate) async fn count_requests(cluster: &Cluster) {
    let rule: Value = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1",
        "kind": "FlowSchema",
        "metadata": { "name": OPERATOR },
        "spec": {
            "matchingPrecedence": 100,
            "priorityLevelConfiguration": { "name": "workload-high" },
            "rules": [{
                "subjects": [{
                    "kind": "ServiceAccount",
                    "serviceAccount": { "namespace": NAMESPACE, "name": OPERATOR },
                }],
                "resourceRules": [{
                    "verbs": ["*"],
                    "apiGroups": ["*"],
                    "resources": ["*"],
                    "namespaces": ["*"],
                    "clusterScope": true,
                }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            }],
        },
    });
    apply(cluster, vec![rule]).await;
}

/// Prints its requests a minute while nothing changes, those of both replicas together, and the memory of each.
pub(crate) async fn print_operator(world: &World) {
    // Not waited for: it is what is measured.
    tokio::time::sleep(SETTLED).await;
    let before = requests(world).await;
    tokio::time::sleep(WINDOW).await;
    let made = requests(world).await - before;
    let a_minute = made * 60.0 / WINDOW.as_secs_f64();
    let mut memory = Vec::new();
    for pod in world.operators().await {
        let page = get(pod.at(METRICS_PORT), "/metrics").await.unwrap();
        let bytes = metric(&page.body, "process_resident_memory_bytes", &[]);
        memory.push(format!("{:.1} MiB", bytes.unwrap() / f64::from(1 << 20)));
    }
    println!(
        "the operator, idle: {a_minute:.0} requests a minute to the API server over {WINDOW:?}, resident {}",
        memory.join(" and ")
    );
}

async fn requests(world: &World) -> f64 {
    let page = world.kubectl("get --raw /metrics").await;
    let flow = format!("flow_schema=\"{OPERATOR}\"");
    let counted = "apiserver_flowcontrol_dispatched_requests_total";
    let made = metric(&page, counted, &[&flow]);
    made.expect("the operator has asked for something")
}
