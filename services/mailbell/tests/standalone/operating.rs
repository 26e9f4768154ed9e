//! The commands of `docs/operating.md`, as a person copies them, on a real Kubernetes API server.

use std::process::Command;

use clap::Parser as _;
use mailbell::cli::Cli;
use mailbell_test_cluster::guide::{Block, Needs, blocks, prepare};
use mailbell_test_servers::Authority;

use crate::{cluster::Cluster, machine::text};

/// What only `make e2e` runs, or nobody, is read by the shell, and by the command, at least.
#[test]
fn commands_that_need_nodes_are_such_as_the_shell_and_the_binary_take() {
    let blocks = blocks().unwrap();
    let mut seen = 0;
    let others = blocks.iter().filter(|block| block.needs != Needs::Server);
    for block in others {
        let read = Command::new("bash")
            .args(["-n", "-c", &block.script])
            .output()
            .unwrap();
        assert!(
            read.status.success(),
            "{}: {}",
            block.script,
            text(&read.stderr)
        );
        for line in block.script.lines() {
            let line = line.trim_start_matches("(umask 077; ");
            let line = line.split(" > ").next().unwrap_or(line);
            if line.starts_with("mailbell ") {
                let taken = Cli::try_parse_from(line.split_whitespace());
                assert!(taken.is_ok(), "{line}: {:?}", taken.err());
                seen += 1;
            }
        }
    }
    assert!(seen >= 6, "{seen}");
}

/// In the order of the page, each in the same folder.
#[tokio::test(flavor = "multi_thread")]
async fn each_command_that_needs_no_nodes_works_in_the_order_of_the_page() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path(), &Authority::new()).unwrap();
    let [kubernetes, helm] = cluster.server.programs();
    let path = format!("{}:{}:/usr/bin:/bin", kubernetes.display(), helm.display());
    let blocks = blocks().unwrap();
    let run = blocks.iter().filter(|block| block.needs == Needs::Server);
    let run: Vec<&Block> = run.collect();
    assert!(run.len() > 10, "{}", run.len());
    for block in run {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", &block.script])
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", &path)
            .env("HOME", folder.path())
            .env("KUBECONFIG", cluster.server.kubeconfig())
            .output()
            .unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", block.script);
    }
    // Everything is gone but what somebody else may need.
    let left = cluster.kubectl(&[
        "get",
        "crds,clusterroles,secrets,deployments",
        "--namespace",
        "mail",
    ]);
    let left = left.await;
    assert!(!left.contains("mailbell"), "{left}");
}
