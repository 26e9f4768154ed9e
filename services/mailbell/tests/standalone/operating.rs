//! The commands of `docs/operating.md`, as a person copies them, on a real Kubernetes API server.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use clap::Parser as _;
use mailbell::cli::Cli;
use mailbell_test_cluster::guide::{Block, Needs, blocks, prepare, spans};
use mailbell_test_servers::{Authority, Certificate};
use serde_json::json;

use crate::{cluster::Cluster, machine::text};

/// Spans with commands of kubectl that change nothing, where nobody answers what an editor would ask.
const LOOKS: [&str; 4] = ["get", "explain", "describe", "edit"];
/// Of these the object is made by the operator, which is not here: that the server looks for it is all there is to see.
const OF_THE_OPERATOR: [&str; 2] = [
    "kubectl --namespace mail get lease mailbell-operator",
    "kubectl --namespace mail get service main-gateway",
];
/// Not run: these name a kind of command, which blocks have as a whole, or one for a node, and there are none here.
const NOT_WHOLE: [&str; 2] = ["kubectl delete node", "kubectl patch"];

/// What only `make e2e` runs is read by the shell, and by the command, at least.
#[test]
fn commands_that_need_nodes_are_such_as_the_shell_and_the_binary_take() {
    let blocks = blocks().unwrap();
    let mut seen = 0;
    let others = blocks.iter().filter(|block| !without_nodes(block));
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

/// What the page names within a sentence or a table.
#[test]
fn commands_within_sentences_are_such_as_the_binary_takes() {
    let spans = spans().unwrap();
    let commands = spans.iter().filter(|span| span.starts_with("mailbell "));
    let mut seen = 0;
    for command in commands {
        let taken = Cli::try_parse_from(command.split(' '));
        assert!(taken.is_ok(), "{command}: {:?}", taken.err());
        seen += 1;
    }
    assert!(seen >= 5, "{seen}");
}

fn without_nodes(block: &Block) -> bool {
    matches!(
        block.needs,
        Needs::Server | Needs::NoCertificates | Needs::CertManager
    )
}

/// In the order of the page, each in the same folder. What there has to be before some of them, or comes of them, is made beside: nobody
/// is here who would.
#[tokio::test(flavor = "multi_thread")]
async fn each_command_that_needs_no_nodes_works_in_the_order_of_the_page() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path()).unwrap();
    define_certificates(&cluster).await;
    let blocks = blocks().unwrap();
    let run: Vec<&Block> = blocks.iter().filter(|block| without_nodes(block)).collect();
    assert!(run.len() > 10, "{}", run.len());
    let mut issued = None;
    let mut done = 0;
    for block in run {
        let has = |words: &str| block.script.contains(words);
        if has("\"finalizers\":null") {
            let held = r#"{"metadata":{"finalizers":["mailbell.dev/account"]}}"#;
            in_mail(&cluster, "patch mailaccount info --type=merge -p", &[held]).await;
            in_mail(&cluster, "delete mailaccount info --wait=false", &[]).await;
        }
        if has("helm uninstall mailbell ") {
            let test = ["test", "mailbell", "--namespace", "mail", "--timeout", "1s"];
            assert!(!cluster.tool("helm", &test).await.0, "no node runs it");
            within_sentences(&cluster, folder.path());
            done += 1;
        }
        let output = typed(&cluster, folder.path(), &block.script);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", block.script);
        // What a patch says of it, and drops.
        assert!(!said.contains("unknown field"), "{}: {said}", block.script);
        if has("kind: Certificate") {
            issued = Some(issue(&cluster).await);
            done += 1;
        }
        if has("certificate/own-nats-tls") {
            let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
            let issued = issued.as_ref().unwrap();
            assert_eq!(read("nats-ca.crt"), issued.authority_pem);
            assert_eq!(read("nats.crt"), issued.certificate_pem);
            assert_eq!(read("nats.key"), issued.key_pem);
            done += 1;
        }
        if has("\"finalizers\":null") {
            let left = in_mail(&cluster, "get mailaccounts --output=name", &[]).await;
            assert_eq!(left, "");
            done += 1;
        }
    }
    assert_eq!(done, 4);
    for (certificate, name) in [
        ("push.crt", "push.example.org"),
        ("admin.crt", "main-admin.mail.svc"),
        ("admin.crt", "localhost"),
    ] {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "sslserver"])
            .args(["-CAfile", "admin-ca.crt", "-verify_hostname", name])
            .arg(certificate)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    // Everything is gone but what somebody else may need.
    let left = cluster.kubectl(&[
        "get",
        "crds,clusterroles,secrets,deployments,pods",
        "--namespace",
        "mail",
    ]);
    let left = left.await;
    assert!(!left.contains("mailbell"), "{left}");
}

fn typed(cluster: &Cluster, folder: &Path, script: &str) -> Output {
    let [kubernetes, helm] = cluster.server.programs();
    let path = format!("{}:{}:/usr/bin:/bin", kubernetes.display(), helm.display());
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .env_clear()
        .env("PATH", path)
        .env("HOME", folder)
        .env("KUBECONFIG", cluster.server.kubeconfig())
        .env("EDITOR", "true")
        .output()
        .unwrap()
}

/// Those of kubectl, where all is there that the blocks have made.
fn within_sentences(cluster: &Cluster, folder: &Path) {
    let spans = spans().unwrap();
    for named in OF_THE_OPERATOR.iter().chain(&NOT_WHOLE) {
        assert!(spans.contains(*named), "the page has no `{named}`");
    }
    let mut seen = 0;
    let commands = spans.iter().filter(|span| span.starts_with("kubectl "));
    for command in commands.filter(|span| !NOT_WHOLE.contains(&span.as_str())) {
        let mut words = command.split(' ').skip(1);
        let mut verb = words.next().unwrap();
        if verb == "--namespace" {
            verb = words.nth(1).unwrap();
        }
        assert!(LOOKS.contains(&verb), "neither run nor named: {command}");
        let output = typed(cluster, folder, command);
        let said = text(&output.stdout) + &text(&output.stderr);
        if OF_THE_OPERATOR.contains(&command.as_str()) {
            assert!(said.contains("(NotFound)"), "{command}: {said}");
        } else {
            assert!(output.status.success(), "{command}: {said}");
        }
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
}

async fn in_mail(cluster: &Cluster, words: &str, more: &[&str]) -> String {
    let mut all = vec!["--namespace", "mail"];
    all.extend(words.split(' '));
    all.extend(more);
    cluster.kubectl(&all).await
}

async fn define_certificates(cluster: &Cluster) {
    let file = cluster
        .server
        .definitions()
        .join("cert-manager.io_certificates.yaml");
    cluster.apply(&fs::read_to_string(file).unwrap()).await;
    cluster.known(&["crd/certificates.cert-manager.io"]).await;
}

/// Does the part of cert-manager: what is wanted lies in the Secret, and the Certificate says so.
async fn issue(cluster: &Cluster) -> Certificate {
    let wanted = "jsonpath={.spec.secretName} {.spec.dnsNames[*]}";
    let wanted = in_mail(cluster, "get certificate own-nats-tls --output", &[wanted]).await;
    let (secret, names) = wanted.split_once(' ').unwrap();
    let names: Vec<&str> = names.split(' ').collect();
    let issued = Authority::new().certificate(&names);
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": secret, "namespace": "mail" },
        "type": "kubernetes.io/tls",
        "stringData": {
            "ca.crt": issued.authority_pem,
            "tls.crt": issued.certificate_pem,
            "tls.key": issued.key_pem,
        },
    });
    cluster.apply(&secret.to_string()).await;
    let ready = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    let patch = "patch certificate own-nats-tls --subresource=status --type=merge -p";
    in_mail(cluster, patch, &[ready]).await;
    issued
}
