//! What `mailbell doctor --kube` says of what an installation needs from others: its nodes, load balancers, and who asks in the right place.

use serde_json::{Value, json};

use super::{doctor, doctor_in};
use crate::{cluster::Cluster, installation::certificate, machine::Machine};

/// Minutes ago.
fn ago(minutes: i64) -> String {
    let now_s = jiff::Timestamp::now().as_second();
    let then = jiff::Timestamp::from_second(now_s - 60 * minutes).unwrap();
    then.to_string()
}

/// One thing after the other, and all is well again after each.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_installation_lacks_of_others_is_named_with_what_to_do() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let admin = Machine::on_cluster(cluster.server.kubeconfig());
    // Who may not read definitions is told all the same that there are none.
    let nobody = Machine::on_cluster(cluster.server.kubeconfig_of_nobody());
    let said = doctor(&nobody);
    assert_eq!(said.of("fail").first(), Some(&"definitions"), "{said:?}");
    let advice = said.has(
        "definitions",
        "fail",
        "does not know mailbells.mailbell.dev",
    );
    assert!(advice.contains("helm upgrade --install"), "{advice}");
    cluster.definitions(&admin).await;
    cluster.all_is_well().await;

    let said = doctor_in(&admin, "kube-system");
    let words = "none in the namespace kube-system; there are some in default";
    let advice = said.has("installation", "warn", words);
    assert!(advice.contains("--namespace default"), "{advice}");
    let advice = said.has("operator", "fail", "none looks after kube-system");
    assert!(!advice.contains("install the chart"), "{advice}");

    trusted_by_the_operator(&cluster, &admin).await;
    a_load_balancer(&cluster, &admin).await;
    pods_and_jobs(&cluster, &admin).await;
    let said = doctor(&admin);
    assert_eq!(said.code, Some(0), "{said:?}");
}

async fn trusted_by_the_operator(cluster: &Cluster, admin: &Machine) {
    let name = "certificate admin-tls";
    let spec = |roots: Value| json!({ "spec": { "admin": { "caConfigMap": roots } } });
    cluster.change(&spec("admin-ca".into())).await;
    let advice = doctor(admin).has(name, "warn", "there is no ConfigMap admin-ca");
    assert!(advice.contains("create configmap admin-ca"), "{advice}");
    let roots = async |pem: &str| {
        let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "admin-ca" },
            "data": { "ca.crt": pem } });
        cluster.apply(&config.to_string()).await;
    };
    roots(&certificate(&["another"], -1, 90).pem).await;
    doctor(admin).has(name, "warn", "not trusted by admin.caConfigMap");
    let own = [
        "get",
        "secret",
        "admin-tls",
        r"--output=jsonpath={.data.ca\.crt}",
    ];
    let own = cluster.kubectl(&own).await;
    let pem = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, own.trim()).unwrap();
    roots(&String::from_utf8(pem).unwrap()).await;
    doctor(admin).has(name, "ok", "good for");
    cluster.change(&spec(Value::Null)).await;
}

async fn a_load_balancer(cluster: &Cluster, admin: &Machine) {
    let spec = |kind: Value| json!({ "spec": { "gateways": { "service": { "type": kind } } } });
    cluster.change(&spec("LoadBalancer".into())).await;
    let name = "service main-gateway";
    // The operator has not made it yet.
    assert!(!format!("{:?}", doctor(admin)).contains(name));
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "main-gateway" },
        "spec": { "type": "LoadBalancer", "ports": [{ "port": 7443 }] } });
    cluster.apply(&service.to_string()).await;
    cluster
        .warned("Service", "main-gateway", "no address is free")
        .await;
    let advice = doctor(admin).has(name, "warn", "no device gets in by it: no address is free");
    assert!(advice.contains("describe service main-gateway"), "{advice}");
    let made = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] } });
    cluster.status("service/main-gateway", made).await;
    doctor(admin).has(name, "ok", "192.0.2.1");
    cluster.change(&spec("ClusterIP".into())).await;
}

async fn pods_and_jobs(cluster: &Cluster, admin: &Machine) {
    let name = "pods main";
    let pod = "main-watcher-0";
    let waits = |phase: &str, minutes: i64| {
        let placed =
            json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": ago(minutes) });
        let container = json!({ "name": "one", "image": "mailbell:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "waiting": { "reason": "ContainerCreating" } } });
        json!({ "phase": phase, "conditions": [placed], "containerStatuses": [container] })
    };
    cluster
        .status("pod/main-watcher-0", waits("Pending", 2))
        .await;
    // Nobody warns of anything: its image may be large.
    doctor(admin).has(name, "ok", "nothing is wrong");
    cluster
        .warned("Pod", pod, "secret \"main-key-ring\" has no key.ring")
        .await;
    let words = "main-watcher-0 cannot be started: secret \"main-key-ring\" has no key.ring";
    let advice = doctor(admin).has(name, "fail", words);
    assert!(advice.contains("describe pod main-watcher-0"), "{advice}");
    cluster
        .status("pod/main-watcher-0", waits("Running", 2))
        .await;

    let labels =
        json!({ "app.kubernetes.io/name": "mailbell", "app.kubernetes.io/instance": "main" });
    let container = json!({ "name": "one", "image": "mailbell:1" });
    let template = json!({ "spec": { "restartPolicy": "Never", "containers": [container] } });
    for (job, failed) in [("main-secrets-a1", 0), ("main-setup-b2", 2)] {
        let object = json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": job, "labels": labels },
            "spec": { "template": template } });
        cluster.apply(&object.to_string()).await;
        let status = json!({ "active": 1, "failed": failed, "startTime": ago(1) });
        cluster.status(&format!("job/{job}"), status).await;
    }
    let advice = doctor(admin).has(name, "warn", "main-setup-b2 has failed 2 times");
    assert!(advice.contains("logs job/main-setup-b2"), "{advice}");
    // By its name it is told how a Secret is filled again that is gone.
    cluster
        .kubectl(&["delete", "secret", "main-admin-token"])
        .await;
    let advice = doctor(admin).has("secrets main", "fail", "main-admin-token");
    assert!(advice.contains("delete job main-secrets-a1"), "{advice}");
    cluster
        .kubectl(&["create", "secret", "generic", "main-admin-token"])
        .await;
    cluster.kubectl(&["delete", "job", "main-setup-b2"]).await;
}
