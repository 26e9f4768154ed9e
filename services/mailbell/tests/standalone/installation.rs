//! An installation on a Kubernetes API server without nodes: what they, and the operator, would make and say is made and said here.

use mailbell_test_servers::Certificate;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

use crate::cluster::{CHART, Cluster};

/// A certificate, and its key.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) pem: String,
    pub(crate) key: String,
}

/// Good from so many days before today to so many after it.
pub(crate) fn certificate(names: &[&str], days_from: i64, days_to: i64) -> Pair {
    let day = |day: i64| {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let at = i64::try_from(since.as_secs()).unwrap() + day * 86_400;
        jiff::Timestamp::from_second(at)
            .unwrap()
            .to_zoned(jiff::tz::TimeZone::UTC)
    };
    let ymd = |at: jiff::Zoned| {
        let (month, day) = (
            u8::try_from(at.month()).unwrap(),
            u8::try_from(at.day()).unwrap(),
        );
        rcgen::date_time_ymd(at.year().into(), month, day)
    };
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = ymd(day(days_from));
    params.not_after = ymd(day(days_to));
    let key = KeyPair::generate().unwrap();
    Pair {
        pem: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

/// For whatever connects to its NATS servers.
pub(crate) const NATS_HOSTS: &str = "*.main-nats.default.svc";

/// By which the operator calls the admin API.
pub(crate) const ADMIN_HOST: &str = "main-admin.default.svc";

impl Cluster {
    /// Its own authority.
    pub(crate) async fn certificate(&self, name: &str, pair: &Pair) {
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
            "stringData": { "ca.crt": pair.pem, "tls.crt": pair.pem, "tls.key": pair.key } });
        self.apply(&secret.to_string()).await;
    }

    /// As its job fills it.
    pub(crate) async fn nats_certificate(&self) {
        let servers = Certificate::for_names(&[NATS_HOSTS]);
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "main-nats-tls" },
            "stringData": { "ca.crt": servers.authority_pem, "tls.crt": servers.certificate_pem, "tls.key": servers.key_pem } });
        self.apply(&secret.to_string()).await;
    }

    pub(crate) async fn status(&self, object: &str, status: Value) {
        let patch = json!({ "status": status }).to_string();
        self.kubectl(&[
            "patch",
            object,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])
        .await;
    }

    /// Something else is wanted, and its operator says that it has seen it.
    pub(crate) async fn change(&self, patch: &Value) {
        let patch = patch.to_string();
        let change = ["patch", "mailbell", "main", "--type=merge", "-p", &patch];
        self.kubectl(&change).await;
        let seen = [
            "get",
            "mailbell",
            "main",
            "--output=jsonpath={.metadata.generation}",
        ];
        let seen: i64 = self.kubectl(&seen).await.trim().parse().unwrap();
        let status = json!({ "observedGeneration": seen });
        self.status("mailbell/main", status).await;
    }

    pub(crate) async fn left_accounts(&self, ids: Value) {
        let status = json!({ "leftAccounts": ids });
        self.status("mailbell/main", status).await;
    }

    /// So long ago an operator has looked.
    pub(crate) async fn looked(&self, age_s: i64) {
        let then = jiff::Timestamp::now().as_second() - age_s;
        let then = jiff::Timestamp::from_second(then).unwrap();
        let status = json!({ "lookedAt": then.to_string() });
        self.status("mailbell/main", status).await;
    }

    pub(crate) async fn ready(&self, status: &str, reason: &str, message: &str) {
        let ready = json!({ "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let status = json!({ "observedGeneration": 1, "conditions": [ready] });
        self.status("mailbell/main", status).await;
    }

    pub(crate) async fn lease(&self, holder: &str, age_s: i64) {
        let now = jiff::Timestamp::now();
        let renewed = jiff::Timestamp::from_second(now.as_second() - age_s).unwrap();
        let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": "mailbell-operator" },
            "spec": { "holderIdentity": holder, "renewTime": format!("{renewed:.6}") } });
        self.apply(&lease.to_string()).await;
    }

    pub(crate) async fn pod(&self, name: &str, state: Value, last: Value) {
        let labels =
            json!({ "app.kubernetes.io/name": "mailbell", "app.kubernetes.io/instance": "main" });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": labels },
            "spec": { "containers": [{ "name": "one", "image": "mailbell:1" }] } });
        self.apply(&pod.to_string()).await;
        let container = json!({ "name": "one", "image": "mailbell:1", "imageID": "", "ready": false,
            "restartCount": 3, "state": state, "lastState": last });
        let status = json!({ "phase": "Running", "containerStatuses": [container] });
        self.status(&format!("pod/{name}"), status).await;
    }

    pub(crate) async fn nats_server(&self, number: u32, is_ready: &str) {
        let name = format!("main-nats-{number}");
        self.pod(&name, json!({ "running": {} }), json!({})).await;
        let ready = json!({ "conditions": [{ "type": "Ready", "status": is_ready }] });
        self.status(&format!("pod/{name}"), ready).await;
    }

    /// A part of the cluster warns of this object.
    pub(crate) async fn warned(&self, kind: &str, name: &str, message: &str) {
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap();
        let uid = ["get", kind, name, "--output=jsonpath={.metadata.uid}"];
        let uid = self.kubectl(&uid).await;
        let event = json!({ "apiVersion": "v1", "kind": "Event", "metadata": { "generateName": "x-", "namespace": "default" },
            "involvedObject": { "kind": kind, "name": name, "namespace": "default", "uid": uid.trim() },
            "type": "Warning", "reason": "Failed", "message": message, "lastTimestamp": now.to_string() });
        let (made, said) = self
            .told("kubectl", &["create", "-f", "-"], &event.to_string())
            .await;
        assert!(made, "{said}");
    }

    pub(crate) async fn disk(&self, number: u32, phase: &str) {
        let labels =
            json!({ "app.kubernetes.io/name": "mailbell", "app.kubernetes.io/instance": "main" });
        let name = format!("data-main-nats-{number}");
        let claim = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": { "name": name, "labels": labels },
            "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "resources": { "requests": { "storage": "20Gi" } } } });
        self.apply(&claim.to_string()).await;
        self.status(&format!("pvc/{name}"), json!({ "phase": phase }))
            .await;
    }

    /// A MailAccount of this installation, of which this is said.
    pub(crate) async fn mail_account(
        &self,
        name: &str,
        of: &str,
        [status, reason, message]: [&str; 3],
    ) {
        let account = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "MailAccount", "metadata": { "name": name },
            "spec": { "mailbell": of, "server": { "host": "imap.example.org", "user": name } } });
        self.apply(&account.to_string()).await;
        let ready = json!({ "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let status = json!({ "conditions": [ready] });
        self.status(&format!("mailaccount/{name}"), status).await;
    }

    /// An operator that works and an installation that runs, as far as anybody says.
    pub(crate) async fn all_is_well(&self) {
        let (installed, said) = self.tool("helm", &["install", "mailbell", CHART]).await;
        assert!(installed, "{said}");
        let replicas = json!({ "observedGeneration": 1, "replicas": 2, "readyReplicas": 2, "availableReplicas": 2 });
        self.status("deployment/mailbell-operator", replicas).await;
        // Good for an hour: what follows takes a while.
        self.lease("mailbell-operator-1", -3600).await;
        let mailbell = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell", "metadata": { "name": "main" },
            "spec": {
                "gateways": { "tls": { "secretName": "push-tls" } },
                "admin": { "tls": { "secretName": "admin-tls" } },
                "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } },
            } });
        self.apply(&mailbell.to_string()).await;
        self.ready("True", "Running", "Everything runs.").await;
        let pair = certificate(&["push.example.org", ADMIN_HOST], -1, 90);
        self.certificate("push-tls", &pair).await;
        self.certificate("admin-tls", &pair).await;
        self.nats_certificate().await;
        for number in 0..3 {
            self.disk(number, "Bound").await;
            self.nats_server(number, "True").await;
        }
        self.pod("main-watcher-0", json!({ "running": {} }), json!({}))
            .await;
    }
}
