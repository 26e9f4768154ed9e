//! `mailbell doctor --kube` on a real Kubernetes API server. There are no nodes: what they and the operator would say is said here.

mod helm_test;

use serde_json::{Value, json};

use crate::{
    cluster::{CHART, Cluster},
    machine::{Machine, text},
};

/// What the command says of each thing that it looks at.
struct Said {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Said {
    /// The finding that has this verdict and these words, and what it says to do.
    fn has(&self, name: &str, verdict: &str, words: &str) -> String {
        let field = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
        let found = self.findings.iter().find(|finding| {
            field(finding, "name") == name
                && field(finding, "verdict") == verdict
                && field(finding, "said").contains(words)
        });
        let found = found.unwrap_or_else(|| panic!("no {name} {verdict} {words}: {self:?}"));
        field(found, "advice")
    }

    /// The names of those that have this verdict.
    fn of(&self, verdict: &str) -> Vec<&str> {
        let found = self.findings.iter().filter(|it| it["verdict"] == verdict);
        found.map(|it| it["name"].as_str().unwrap()).collect()
    }
}

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?}: {:#}",
            self.code,
            Value::from(self.findings.clone())
        )
    }
}

fn doctor(machine: &Machine) -> Said {
    let output = machine.run(&["doctor", "--kube", "--namespace", "default", "--json"]);
    let said = text(&output.stdout);
    let report: Value = serde_json::from_str(&said)
        .unwrap_or_else(|error| panic!("{error}: {said}{}", text(&output.stderr)));
    Said {
        code: output.status.code(),
        findings: report.get("findings").unwrap().as_array().unwrap().clone(),
    }
}

fn certificate(days_from: i64, days_to: i64) -> String {
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
    let mut params = rcgen::CertificateParams::new(vec!["push.example.org".to_owned()]).unwrap();
    params.not_before = ymd(day(days_from));
    params.not_after = ymd(day(days_to));
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

impl Cluster {
    async fn certificate(&self, name: &str, pem: String) {
        let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
            "stringData": { "tls.crt": pem, "tls.key": "not looked at" } });
        self.apply(&secret.to_string()).await;
    }

    async fn status(&self, object: &str, status: Value) {
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

    async fn left_accounts(&self, ids: Value) {
        let status = json!({ "leftAccounts": ids });
        self.status("mailbell/main", status).await;
    }

    async fn ready(&self, status: &str, reason: &str, message: &str) {
        let ready = json!({ "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let status = json!({ "observedGeneration": 1, "conditions": [ready] });
        self.status("mailbell/main", status).await;
    }

    async fn lease(&self, holder: &str, age_s: i64) {
        let now = jiff::Timestamp::now();
        let renewed = jiff::Timestamp::from_second(now.as_second() - age_s).unwrap();
        let lease = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "name": "mailbell-operator" },
            "spec": { "holderIdentity": holder, "renewTime": format!("{renewed:.6}") } });
        self.apply(&lease.to_string()).await;
    }

    async fn pod(&self, name: &str, state: Value, last: Value) {
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

    async fn disk(&self, number: u32, phase: &str) {
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
    async fn mail_account(&self, name: &str, of: &str, [status, reason, message]: [&str; 3]) {
        let account = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "MailAccount", "metadata": { "name": name },
            "spec": { "mailbell": of, "server": { "host": "imap.example.org", "user": name } } });
        self.apply(&account.to_string()).await;
        let ready = json!({ "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let status = json!({ "conditions": [ready] });
        self.status(&format!("mailaccount/{name}"), status).await;
    }

    /// An operator that works and an installation that runs, as far as anybody says.
    async fn all_is_well(&self) {
        let (installed, said) = self.tool("helm", &["install", "mailbell", CHART]).await;
        assert!(installed, "{said}");
        let replicas = json!({ "observedGeneration": 1, "replicas": 2, "readyReplicas": 2, "availableReplicas": 2 });
        self.status("deployment/mailbell-operator", replicas).await;
        self.lease("mailbell-operator-1", 0).await;
        let mailbell = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell", "metadata": { "name": "main" },
            "spec": {
                "gateways": { "tls": { "secretName": "push-tls" } },
                "admin": { "tls": { "secretName": "admin-tls" } },
                "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } },
            } });
        self.apply(&mailbell.to_string()).await;
        self.ready("True", "Running", "Everything runs.").await;
        self.certificate("push-tls", certificate(-1, 90)).await;
        self.certificate("admin-tls", certificate(-1, 90)).await;
        self.certificate("main-nats-tls", certificate(-1, 3_650))
            .await;
        for number in 0..3 {
            self.disk(number, "Bound").await;
        }
        self.pod("main-watcher-0", json!({ "running": {} }), json!({}))
            .await;
    }
}

/// Before there is anything to look at.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_mailbell_is_told_apart_from_none() {
    let said = doctor(&Machine::new());
    assert_eq!(said.code, Some(69));
    let advice = said.has("cluster", "fail", "no way to a cluster");
    assert!(advice.contains("KUBECONFIG"), "{advice}");
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    let admin = Machine::on_cluster(cluster.server.kubeconfig());
    let said = doctor(&admin);
    assert_eq!(said.code, Some(69));
    let advice = said.has(
        "definitions",
        "fail",
        "does not know mailbells.mailbell.dev",
    );
    assert!(advice.contains("mailbell-crds"), "{advice}");
    cluster.definitions(&admin).await;
    let said = doctor(&admin);
    assert_eq!(said.code, Some(69));
    said.has("definitions", "ok", "of this release");
    let advice = said.has("operator", "fail", "there is none");
    assert!(advice.contains("install the chart mailbell"), "{advice}");
    said.has("installation", "warn", "none in the namespace default");
    // Of another release.
    let change = r#"[{ "op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/finishUpgrade" }]"#;
    let crd = "crd/mailbells.mailbell.dev";
    cluster
        .kubectl(&["patch", crd, "--type=json", "-p", change])
        .await;
    let said = doctor(&admin);
    let advice = said.has(
        "definitions",
        "warn",
        "another release than this command: mailbells.mailbell.dev",
    );
    assert!(
        advice.contains("upgrade the chart mailbell-crds"),
        "{advice}"
    );
    // Who may nothing is told what he may not, and what is skipped therefore.
    let nobody = Machine::on_cluster(cluster.server.kubeconfig_of_nobody());
    let said = doctor(&nobody);
    assert_eq!(said.code, Some(69));
    said.has("definitions", "skipped", "cannot get resource");
    said.has("operator", "skipped", "cannot list resource");
    said.has("installation", "fail", "cannot list resource");
    cluster.server.stop().await;
    let said = doctor(&admin);
    assert_eq!(said.code, Some(69));
    assert_eq!(said.of("fail"), ["cluster"], "{said:?}");
}

/// One thing after the other goes wrong, and is mended.
#[tokio::test(flavor = "multi_thread")]
async fn each_trouble_of_an_installation_is_named_with_what_to_do() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let admin = Machine::on_cluster(cluster.server.kubeconfig());
    cluster.definitions(&admin).await;
    cluster.all_is_well().await;
    let said = doctor(&admin);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.of("ok").len(), said.findings.len(), "{said:?}");
    said.has("operator", "ok", "mailbell-operator-1 in default works");
    said.has("installation main", "ok", "Everything runs.");
    said.has("secrets main", "ok", "are there");
    said.has("certificate push-tls", "ok", "days");
    said.has("disks main", "ok", "all 3");

    // With the operator's own rights, as `helm test` asks: what it may not see is skipped.
    let operator = cluster.machine_of("mailbell-operator").await;
    let said = doctor(&operator);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        said.of("ok"),
        ["cluster", "operator", "installation main", "accounts main"],
        "{said:?}"
    );
    said.has("secrets main", "skipped", "main-key-ring");
    said.has("disks main", "skipped", "cannot list resource");

    let wrong = |name: &'static str, words: &'static str, advice: &'static str| {
        let said = doctor(&admin);
        assert_eq!(said.code, Some(69), "{said:?}");
        assert_eq!(said.of("fail"), [name], "{said:?}");
        let told = said.has(name, "fail", words);
        assert!(told.contains(advice), "{told}");
    };
    cluster.ready("False", "Failed", "The watchers: no.").await;
    wrong(
        "installation main",
        "The watchers: no.",
        "see to what is named",
    );
    cluster
        .ready("False", "Starting", "The watchers: 0 of 2.")
        .await;
    wrong(
        "installation main",
        "The watchers: 0 of 2.",
        "wait a little",
    );
    cluster.ready("True", "Running", "Everything runs.").await;

    cluster.lease("mailbell-operator-1", 100).await;
    wrong(
        "operator",
        "has not renewed the lease",
        "logs deployment/mailbell-operator",
    );
    cluster.lease("", 0).await;
    wrong(
        "operator",
        "nobody has the lease",
        "logs deployment/mailbell-operator",
    );
    cluster.lease("mailbell-operator-1", 0).await;

    cluster.certificate("push-tls", certificate(-90, -1)).await;
    wrong("certificate push-tls", "has expired", "renew it");
    cluster.certificate("push-tls", "nothing".to_owned()).await;
    wrong(
        "certificate push-tls",
        "no certificate that can be read",
        "in PEM",
    );
    cluster.certificate("push-tls", certificate(-80, 7)).await;
    let said = doctor(&admin);
    assert_eq!(
        (said.code, said.of("warn")),
        (Some(0), vec!["certificate push-tls"])
    );
    cluster.certificate("push-tls", certificate(-1, 90)).await;

    let nats = "main-nats-tls";
    cluster.certificate(nats, certificate(-90, -1)).await;
    let finding = "certificate main-nats-tls";
    wrong(finding, "nobody reaches NATS", "start the servers anew");
    cluster.certificate(nats, certificate(-1, 3_650)).await;

    cluster
        .kubectl(&["delete", "secret", "main-key-ring"])
        .await;
    wrong(
        "secrets main",
        "not there: main-key-ring",
        "the chart mailbell",
    );
    cluster
        .apply(
            r#"{ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "main-key-ring" } }"#,
        )
        .await;

    cluster.disk(1, "Pending").await;
    wrong(
        "disks main",
        "data-main-nats-1 has no volume",
        "the storage class fast",
    );
    cluster.disk(1, "Bound").await;

    let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    let ended = json!({ "terminated": { "exitCode": 77, "reason": "Error" } });
    cluster.pod("main-watcher-0", waiting, ended).await;
    wrong(
        "pods main",
        "main-watcher-0 ends again and again (3 times so far): it lacks a right, or its password is wrong",
        "kubectl --namespace default logs main-watcher-0 --previous",
    );
    cluster
        .pod("main-watcher-0", json!({ "running": {} }), json!({}))
        .await;
    assert_eq!(doctor(&admin).code, Some(0));

    secrets_that_are_brought(&cluster, &admin).await;
    // All this takes time, in which an operator would have renewed it.
    cluster.lease("mailbell-operator-1", 0).await;

    mail_accounts(&cluster, &admin).await;
    let left = json!({ "count": 12, "ids": ["default.01", "default.02"] });
    cluster.left_accounts(left).await;
    let said = doctor(&admin);
    assert_eq!(
        (said.code, said.of("warn")),
        (Some(0), vec!["left in main"])
    );
    said.has(
        "left in main",
        "warn",
        "12 accounts are watched whose MailAccounts are gone: default.01, default.02",
    );
    cluster.left_accounts(Value::Null).await;

    // For people too.
    let output = admin.run(&["doctor", "--kube", "--namespace", "default"]);
    let said = text(&output.stdout);
    assert!(
        said.contains("ok    installation main  Everything runs."),
        "{said}"
    );
}

/// They are looked for under their own names, and what they stand for is missed no more.
async fn secrets_that_are_brought(cluster: &Cluster, admin: &Machine) {
    let named = |ring: Value, users: Value, tls: Value| {
        let managed = json!({ "usersSecret": users, "tls": tls });
        let pods = json!({
            "env": [{ "name": "HEADERS", "valueFrom": { "secretKeyRef": { "name": "own-headers", "key": "headers" } } }],
            "volumes": [
                { "name": "parts", "projected": { "sources": [{ "secret": { "name": "own-part" } }] } },
                { "name": "perhaps", "secret": { "secretName": "own-perhaps", "optional": true } },
            ],
        });
        let spec = json!({ "watchers": { "keyRingSecret": ring, "pods": if ring.is_null() { Value::Null } else { pods } },
            "nats": { "managed": managed } });
        json!({ "spec": spec }).to_string()
    };
    let tls = json!({ "secretName": "own-tls" });
    let patch = named("own-ring".into(), "own-users".into(), tls);
    let change = ["patch", "mailbell", "main", "--type=merge", "-p"];
    cluster.kubectl(&[&change[..], &[&patch]].concat()).await;
    let said = doctor(admin);
    let advice = said.has(
        "secrets main",
        "fail",
        "not there: own-headers, own-part, own-ring, own-tls, own-users",
    );
    assert!(advice.contains("make them"), "{advice}");
    for name in ["own-headers", "own-part", "own-ring", "own-users"] {
        cluster
            .kubectl(&["create", "secret", "generic", name])
            .await;
    }
    cluster.certificate("own-tls", certificate(-80, 7)).await;
    let said = doctor(admin);
    said.has("secrets main", "ok", "are there");
    said.has("certificate own-tls", "warn", "good for");
    assert!(!format!("{said:?}").contains("main-nats-tls"), "{said:?}");
    let patch = named(Value::Null, Value::Null, Value::Null);
    cluster.kubectl(&[&change[..], &[&patch]].concat()).await;
    // Of each change of a spec the operator says that it has seen it.
    let status = json!({ "observedGeneration": 3 });
    cluster.status("mailbell/main", status).await;
    assert_eq!(doctor(admin).code, Some(0));
}

/// One mailbox that is not watched is something to see to, and all of them a failure.
async fn mail_accounts(cluster: &Cluster, admin: &Machine) {
    doctor(admin).has("accounts main", "ok", "none is declared");
    let refused = ["False", "BadCredentials", "The password is refused."];
    cluster.mail_account("bob", "main", refused).await;
    cluster.mail_account("lost", "gone", refused).await;
    let said = doctor(admin);
    assert_eq!(said.of("fail"), ["accounts main", "accounts"], "{said:?}");
    said.has("accounts main", "fail", "1 declared: 0 watched");
    let advice = said.has("account bob", "warn", "BadCredentials: The password is");
    assert!(
        advice.contains("Secret mail-passwords, key bob"),
        "{advice}"
    );
    said.has("accounts", "fail", "1 name a Mailbell that is not there");
    said.has("account lost", "warn", "there is no Mailbell gone");
    cluster.kubectl(&["delete", "mailaccount", "lost"]).await;
    let watched = ["True", "Watching", "New mail is told at once."];
    // More than a page.
    let item = |n: usize| {
        json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "MailAccount", "metadata": { "name": format!("many-{n}") },
        "spec": { "mailbell": "main", "paused": true, "server": { "host": "imap.example.org", "user": "x" } } })
    };
    let items: Vec<Value> = (0..510).map(item).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    cluster.apply(&list.to_string()).await;
    cluster.mail_account("well", "main", watched).await;
    let said = doctor(admin);
    assert_eq!(
        (said.code, said.of("warn")),
        (Some(0), vec!["accounts main", "account bob"]),
        "{said:?}"
    );
    said.has(
        "accounts main",
        "warn",
        "512 declared: 1 watched, 510 paused or on their way, 1 with",
    );
    cluster.mail_account("bob", "main", watched).await;
    let said = doctor(admin);
    assert_eq!(said.of("ok").len(), said.findings.len(), "{said:?}");
    said.has("accounts main", "ok", "512 declared: 2 watched");
}
