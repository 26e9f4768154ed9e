//! The commands of `docs/operating.md`, as a person copies them, on a real Kubernetes API server.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use clap::Parser as _;
use mailbell::cli::Cli;
use mailbell_test_servers::Certificate;

use crate::{cluster::Cluster, machine::text};

/// One block of commands.
struct Block {
    script: String,
    /// It waits for what only nodes and controllers do.
    needs_nodes: bool,
}

fn blocks() -> Vec<Block> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating.md");
    let guide = fs::read_to_string(guide).unwrap();
    let fenced = guide.split("\n```").skip(1).step_by(2);
    let block = |text: &str| {
        let (info, script) = text.split_once('\n').unwrap();
        assert!(
            ["sh", "sh nodes"].contains(&info),
            "a block of {info}: {script}"
        );
        Block {
            script: script.to_owned(),
            needs_nodes: info == "sh nodes",
        }
    };
    fenced.map(block).collect()
}

/// What no test runs is read by the shell, and by the command, at least.
#[test]
fn commands_that_need_nodes_are_such_as_the_shell_and_the_binary_take() {
    let blocks = blocks();
    let mut seen = 0;
    for block in blocks.iter().filter(|block| block.needs_nodes) {
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
        for line in block
            .script
            .lines()
            .filter(|line| line.starts_with("mailbell "))
        {
            let taken = Cli::try_parse_from(line.split_whitespace());
            assert!(taken.is_ok(), "{line}: {:?}", taken.err());
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen}");
}

/// In the order of the page, each in the same folder.
#[tokio::test(flavor = "multi_thread")]
async fn each_command_that_needs_no_nodes_works_in_the_order_of_the_page() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let charts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts");
    symlink(
        fs::canonicalize(charts).unwrap(),
        folder.path().join("charts"),
    )
    .unwrap();
    let certificate = Certificate::for_names(&["push.example.org"]);
    for name in ["push", "admin"] {
        let write =
            |end: &str, text: &str| fs::write(folder.path().join(format!("{name}.{end}")), text);
        write("crt", &certificate.certificate_pem).unwrap();
        write("key", &certificate.key_pem).unwrap();
    }
    fs::write(
        folder.path().join("admin-ca.crt"),
        &certificate.authority_pem,
    )
    .unwrap();
    let [kubernetes, helm] = cluster.server.programs();
    let path = format!("{}:{}:/usr/bin:/bin", kubernetes.display(), helm.display());
    let blocks = blocks();
    let run: Vec<&Block> = blocks.iter().filter(|block| !block.needs_nodes).collect();
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
