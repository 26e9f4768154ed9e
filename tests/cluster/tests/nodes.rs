//! The cluster itself: nodes, pods, services and names, and that nothing is left of it.

#![cfg(test)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mailbell_test_cluster::{Cluster, ClusterOptions, in_private_network};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Generous: what is waited for takes seconds, and a lost node half a minute.
const LIMIT: Duration = Duration::from_secs(120);

const IMAGE: &str = "mailbell.dev/tests/pod:1";

fn options(nodes: u8) -> ClusterOptions {
    ClusterOptions {
        nodes,
        images: Vec::new(),
        names: Vec::new(),
    }
}

async fn kubectl(cluster: &Cluster, words: &str) -> String {
    let words: Vec<&str> = words.split(' ').collect();
    cluster.tool("kubectl").done(&words, "").await.unwrap()
}

async fn apply(cluster: &Cluster, objects: Vec<Value>) {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    let tool = cluster.tool("kubectl");
    let applied = tool.done(&["apply", "-f", "-"], &list.to_string()).await;
    applied.unwrap();
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two pods that answer with their names, one a node, and a service in front of them.
fn servers() -> Vec<Value> {
    let labels = json!({ "app": "servers" });
    let spread = json!({
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": labels },
        "matchLabelKeys": ["pod-template-hash"],
    });
    let container = json!({
        "name": "server",
        "image": IMAGE,
        "args": ["serve", "8080"],
        "readinessProbe": { "httpGet": { "path": "/", "port": 8080 }, "periodSeconds": 1 },
    });
    vec![
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": { "name": "servers" },
            "spec": {
                "replicas": 2,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "topologySpreadConstraints": [spread], "containers": [container] },
                },
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "servers" },
            "spec": { "type": "NodePort", "selector": labels, "ports": [{ "port": 80, "targetPort": 8080, "nodePort": 30080 }] },
        }),
    ]
}

/// The control groups of a cluster.
fn groups(cluster: &Path) -> Vec<String> {
    let name = cluster.file_name().unwrap().to_str().unwrap();
    fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flat_map(|controller| find(&controller.unwrap().path(), name))
        .collect()
}

fn find(folder: &Path, part: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .flat_map(|folder| {
            let path = folder.path();
            let name = path.display().to_string();
            let own = name.contains(part).then_some(name);
            own.into_iter().chain(find(&path, part)).collect::<Vec<_>>()
        })
        .collect()
}

fn settings() -> Vec<String> {
    [
        "vm/overcommit_memory",
        "kernel/panic",
        "kernel/panic_on_oops",
    ]
    .map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap())
    .to_vec()
}

#[test]
fn pods_run_on_two_nodes_and_nothing_is_left() {
    let before = settings();
    let folder = in_private_network(async || {
        let mut cluster = Cluster::start(&options(2)).await.unwrap();
        apply(&cluster, servers()).await;
        kubectl(&cluster, "rollout status deployment/servers --timeout=60s").await;
        let on = "get pods -l app=servers -o jsonpath={.items[*].spec.nodeName}";
        let on = kubectl(&cluster, on).await;
        let mut on: Vec<&str> = on.split(' ').collect();
        on.sort_unstable();
        assert_eq!(on, ["node-1", "node-2"]);
        let names = "get pods -l app=servers -o jsonpath={.items[*].metadata.name}";
        let names = kubectl(&cluster, names).await;
        // By its name, from a pod on each node, whoever of the two answers.
        for from in names.split(' ') {
            for to in names.split(' ') {
                until("a pod answers by the name of the service", async || {
                    let words = ["exec", from, "--", "/usr/bin/pod", "get", "http://servers"];
                    // A node learns of a service after its pods.
                    let said = cluster.tool("kubectl").run(&words, "").await.unwrap();
                    said.stdout.trim_ascii() == to.as_bytes()
                })
                .await;
            }
        }
        // From outside, at each node.
        for number in 1..=2 {
            let at = (cluster.node_address(number), 30080);
            until("a pod is reached by the port of a node", async || {
                tokio::net::TcpStream::connect(at).await.is_ok()
            })
            .await;
        }
        assert!(
            kubectl(&cluster, "logs deployment/servers")
                .await
                .is_empty()
        );

        cluster.kill_node(2).unwrap();
        until("a node that was killed is not ready", async || {
            !cluster.is_ready(2).await.unwrap()
        })
        .await;
        assert!(cluster.is_ready(1).await.unwrap());
        cluster.start_node(2).unwrap();
        cluster.wait_ready(2).await.unwrap();

        let folder = cluster.folder().to_owned();
        assert!(!groups(&folder).is_empty());
        folder
    })
    .unwrap();
    assert_gone(&folder);
    assert_eq!(settings(), before);
}

fn assert_gone(folder: &Path) {
    assert!(!folder.exists());
    let groups = groups(folder);
    assert!(groups.is_empty(), "{groups:?}");
}

/// As a developer has one: told to end, and killed.
#[tokio::test]
async fn nothing_is_left_of_a_cluster_that_is_ended_or_killed() {
    let state = TempDir::with_prefix("mailbell-test-").unwrap();
    let state = state.path().join("cluster");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluster"));
        let said = command
            .args(arguments)
            .arg("--state")
            .arg(&state)
            .output()
            .unwrap();
        assert!(said.status.success(), "{said:?}");
    };
    let up = || {
        // What is no concern of this one, but has to be there.
        run(&[
            "up",
            "--nodes",
            "1",
            "--mailbell",
            env!("CARGO_BIN_EXE_cluster"),
        ]);
        PathBuf::from(fs::read_to_string(state.join("ready")).unwrap())
    };
    let folder = up();
    let kubectl = Command::new(state.join("kubectl"))
        .args(["get", "nodes", "-o", "name"])
        .output();
    assert_eq!(kubectl.unwrap().stdout, b"node/node-1\n");
    assert!(!groups(&folder).is_empty());
    run(&["down"]);
    assert_gone(&folder);
    assert!(!state.exists());

    let folder = up();
    let pid = fs::read_to_string(state.join("pid")).unwrap();
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    until("its folder is gone", async || !folder.exists()).await;
    assert_gone(&folder);
    run(&["down"]);
}
