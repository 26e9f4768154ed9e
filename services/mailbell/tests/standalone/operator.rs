//! `mailbell operator` as a process, on a real Kubernetes API server. What it does there is tested in `services/operator`.

use std::process::Output;

use mailbell_test_cluster::{ApiServer, Binaries, MISSING};
use mailbell_test_servers::free_port;

use crate::{
    alerts,
    machine::{LIMIT, Machine, get, text},
};

const OPERATOR: [&str; 5] = [
    "operator",
    "--image",
    "mailbell.dev/mailbell:0.1.0",
    "--lease-namespace",
    "default",
];

async fn kubectl(server: &ApiServer, arguments: &[&str], input: &str) -> String {
    let output: Output = server.tool("kubectl").run(arguments, input).await.unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

fn refused(machine: &Machine) -> (Option<i32>, String) {
    let mut arguments = OPERATOR.to_vec();
    arguments.extend(["--http-listen", "127.0.0.1:0"]);
    let output = machine.run(&arguments);
    (output.status.code(), text(&output.stderr))
}

/// Each by its exit code, and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_cannot_work_says_why_and_one_that_can_ends_in_order() {
    let (code, said) = refused(&Machine::new());
    assert!(
        code == Some(64) && said.contains("KUBECONFIG"),
        "{code:?}: {said}"
    );
    let Some(binaries) = Binaries::find() else {
        eprintln!("left out: {MISSING}");
        return;
    };
    let mut server = ApiServer::start(binaries).await.unwrap();
    let mut machine = Machine::on_cluster(server.kubeconfig());
    let (code, said) = refused(&machine);
    assert!(
        code == Some(64) && said.contains("install the chart mailbell-crds"),
        "{code:?}: {said}"
    );
    let crds = machine.run(&["crds"]);
    kubectl(
        &server,
        &["apply", "--server-side", "-f", "-"],
        &text(&crds.stdout),
    )
    .await;
    let wait = [
        "wait",
        "--for=condition=Established",
        "crd/mailbells.mailbell.dev",
        "--timeout=60s",
    ];
    let kubectl_tool = server.tool("kubectl");
    let waited = || kubectl_tool.run(&wait, "");
    // It fails where no condition is there yet.
    let established = async { while !waited().await.unwrap().status.success() {} };
    tokio::time::timeout(LIMIT, established).await.unwrap();
    let (code, said) = refused(&Machine::on_cluster(server.kubeconfig_of_nobody()));
    assert!(
        code == Some(77) && said.contains("cannot list resource"),
        "{code:?}: {said}"
    );
    let http = format!("127.0.0.1:{}", free_port().unwrap());
    let listen = ("MAILBELL_HTTP_LISTEN".to_owned(), http.clone());
    machine.start_told(&OPERATOR, vec![listen], &http).await;
    let manifest = r#"{
        "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell", "metadata": { "name": "main" },
        "spec": {
            "gateways": { "tls": { "secretName": "push-tls" } },
            "admin": { "tls": { "secretName": "admin-tls" } },
            "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } }
        }
    }"#;
    kubectl(&server, &["apply", "-f", "-"], manifest).await;
    let wait = [
        "wait",
        "--for=jsonpath={.status.conditions[0].reason}=Starting",
        "mailbell/main",
        "--timeout=60s",
    ];
    kubectl(&server, &wait, "").await;
    let shown = kubectl(&server, &["get", "mailbells"], "").await;
    assert!(shown.contains("The Secrets: the job main-"), "{shown}");
    let holder = [
        "get",
        "lease",
        "mailbell-operator",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ];
    assert!(!kubectl(&server, &holder, "").await.is_empty());
    let starting = "\nmailbell_operator_installations{state=\"starting\"} 1\n";
    let metrics = || get(&http, "/metrics").unwrap_or_default();
    machine
        .until("counted", |_| metrics().contains(starting))
        .await;
    let metrics = metrics();
    assert!(
        metrics.contains("\nmailbell_operator_leading 1\n"),
        "{metrics}"
    );
    alerts::are_about(&metrics, |name| name.starts_with("mailbell_operator_"));
    // The states that they speak of.
    for state in ["starting", "failed", "unknown", "impaired"] {
        let state = format!("\nmailbell_operator_installations{{state=\"{state}\"}} ");
        assert!(metrics.contains(&state), "{metrics}");
    }
    assert_eq!(machine.stop().await.code(), Some(0));
    // Given away, so that the next one need not wait for it to age.
    assert_eq!(kubectl(&server, &holder, "").await, "");
    server.stop().await;
    let (code, said) = refused(&machine);
    assert!(
        code == Some(69) && said.contains("does not answer"),
        "{code:?}: {said}"
    );
}
