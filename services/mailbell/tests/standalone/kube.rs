//! `mailbell doctor --kube` on a real Kubernetes API server, with an installation that is only said to be there (`installation.rs`).

mod helm_test;
mod outside;
mod unreadable;

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    installation::{ADMIN_HOST, NATS_HOSTS, certificate},
    machine::{Machine, text},
};

/// What the command says of each thing that it looks at.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    findings: Vec<Value>,
}

impl Said {
    /// The finding that has this verdict and these words, and what it says to do.
    pub(crate) fn has(&self, name: &str, verdict: &str, words: &str) -> String {
        let field = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
        let found = self.findings.iter().find(|finding| {
            field(finding, "name") == name
                && field(finding, "verdict") == verdict
                && field(finding, "said").contains(words)
        });
        let found = found.unwrap_or_else(|| panic!("no {name} {verdict} {words}: {self:?}"));
        field(found, "advice")
    }

    /// All but what needs pods that run.
    fn is_well(&self) {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.of("skipped"), ["NATS main"], "{self:?}");
        assert_eq!(self.of("ok").len() + 1, self.findings.len(), "{self:?}");
    }

    /// The names of those that have this verdict.
    pub(crate) fn of(&self, verdict: &str) -> Vec<&str> {
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

pub(crate) fn doctor(machine: &Machine) -> Said {
    doctor_in(machine, "default")
}

fn doctor_in(machine: &Machine, namespace: &str) -> Said {
    let output = machine.run(&["doctor", "--kube", "--namespace", namespace, "--json"]);
    let said = text(&output.stdout);
    let report: Value = serde_json::from_str(&said)
        .unwrap_or_else(|error| panic!("{error}: {said}{}", text(&output.stderr)));
    Said {
        code: output.status.code(),
        findings: report.get("findings").unwrap().as_array().unwrap().clone(),
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
    assert!(advice.contains("helm list"), "{advice}");
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
        "mailbells.mailbell.dev is older than this command: it lacks v1alpha1.spec.finishUpgrade",
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
    said.is_well();
    said.has("operator", "ok", "mailbell-operator-1 in default works");
    said.has("rights of mailbell-operator", "ok", "it has all 77");
    said.has("installation main", "ok", "Everything runs.");
    said.has("secrets main", "ok", "are there");
    said.has("certificate push-tls", "ok", "days, for push.example.org");
    said.has("certificate main-nats-tls", "ok", "*.main-nats.default.svc");
    said.has("NATS main", "ok", "3 of 3 servers are ready");
    // They run nowhere.
    said.has(
        "NATS main",
        "skipped",
        "no server was reached by the API server",
    );
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
    let review = "cannot create resource \"localsubjectaccessreviews\"";
    said.has("rights of mailbell-operator", "skipped", review);
    said.has("NATS main", "skipped", "get pods/proxy");
    said.has(
        "certificate main-nats-tls",
        "skipped",
        "you may not read it",
    );

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
    let unwatched =
        "The mailboxes: nobody watches 30 of 100: `mailbell shards` says what waits, and why.";
    cluster.ready("True", "Impaired", unwatched).await;
    let said = doctor(&admin);
    let name = "installation main";
    assert_eq!((said.code, said.of("warn")), (Some(0), vec![name]));
    let advice = said.has(name, "warn", unwatched);
    assert!(advice.contains("it serves"), "{advice}");
    cluster.ready("False", "Failed", unwatched).await;
    wrong(name, unwatched, "see to what is named");
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
    // Good for an hour: what follows takes a while.
    cluster.lease("mailbell-operator-1", -3600).await;
    cluster.looked(3600).await;
    wrong(
        name,
        "for 60 minutes; what was said then may hold no longer: Everything runs.",
        "see what is said of the operator",
    );
    cluster.looked(0).await;
    doctor(&admin).has(name, "ok", "Everything runs.");

    certificates(&cluster, &admin, &wrong).await;

    let nats = "main-nats-tls";
    let expired = certificate(&[NATS_HOSTS], -90, -1);
    cluster.certificate(nats, &expired).await;
    let finding = "certificate main-nats-tls";
    wrong(finding, "nobody reaches NATS", "renew it");
    cluster.nats_certificate().await;

    cluster
        .kubectl(&["delete", "secret", "main-key-ring"])
        .await;
    wrong(
        "secrets main",
        "not there: main-key-ring",
        "the chart mailbell",
    );
    let ring = "main-key-ring has the keys of all passwords: put it back from its backup";
    wrong("secrets main", "not there", ring);
    cluster
        .apply(
            r#"{ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "main-key-ring" } }"#,
        )
        .await;

    claims_and_pods(&cluster, &wrong).await;

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
    let soon = certificate(&[NATS_HOSTS], -80, 7);
    cluster.certificate("own-tls", &soon).await;
    let said = doctor(admin);
    said.has("secrets main", "ok", "are there");
    said.has("certificate own-tls", "warn", "good for");
    assert!(!format!("{said:?}").contains("main-nats-tls"), "{said:?}");
    let patch = named(Value::Null, Value::Null, Value::Null);
    cluster.kubectl(&[&change[..], &[&patch]].concat()).await;
    let replaces =
        |env: Value| json!({ "spec": { "watchers": { "pods": { "env": env } } } }).to_string();
    let env = json!([{ "name": "MAILBELL_REPLACE_KEY_RING", "value": "true" }]);
    cluster
        .kubectl(&[&change[..], &[&replaces(env)]].concat())
        .await;
    let said = "the next key ring that opens none";
    let advice = doctor(admin).has("secrets main", "warn", said);
    assert!(advice.contains("take it out"), "{advice}");
    cluster
        .kubectl(&[&change[..], &[&replaces(Value::Null)]].concat())
        .await;
    // Of each change of a spec the operator says that it has seen it.
    let status = json!({ "observedGeneration": 5 });
    cluster.status("mailbell/main", status).await;
    let said = doctor(admin);
    assert_eq!(said.code, Some(0), "{said:?}");
}

/// What is to be told of what is wrong: its name, words, and words of what to do.
type Wrong<'a> = dyn Fn(&'static str, &'static str, &'static str) + 'a;

async fn certificates(cluster: &Cluster, admin: &Machine, wrong: &Wrong<'_>) {
    let push = |from, to| certificate(&["push.example.org"], from, to);
    let name = "certificate push-tls";
    let good = push(-1, 90);
    let mut strange = good.clone();
    strange.key = push(-1, 90).key;
    let mut nothing = good.clone();
    nothing.pem = "nothing".to_owned();
    for (pair, words, advice) in [
        (push(-90, -1), "has expired", "renew it"),
        (nothing, "no certificate that can be read", "in PEM"),
        (strange, "that of another certificate", "private key"),
    ] {
        cluster.certificate("push-tls", &pair).await;
        wrong(name, words, advice);
    }
    cluster.certificate("push-tls", &push(-80, 7)).await;
    let said = doctor(admin);
    assert_eq!((said.code, said.of("warn")), (Some(0), vec![name]));
    cluster.certificate("push-tls", &good).await;
    cluster.certificate("admin-tls", &good).await;
    let said = doctor(admin);
    let admins = "certificate admin-tls";
    assert_eq!((said.code, said.of("warn")), (Some(0), vec![admins]));
    let advice = said.has(admins, "warn", "is not good for main-admin.default.svc");
    assert!(advice.contains("add that name"), "{advice}");
    let both = certificate(&["push.example.org", ADMIN_HOST], -1, 90);
    cluster.certificate("admin-tls", &both).await;
    // As the chart makes it, before its job has run.
    let empty = r#"{ "data": null, "stringData": null }"#;
    let nats = cluster
        .kubectl(&["get", "secret", "main-nats-tls", "-o", "json"])
        .await;
    cluster
        .kubectl(&["patch", "secret", "main-nats-tls", "-p", empty])
        .await;
    wrong("certificate main-nats-tls", "is empty", "generateSecrets");
    let mut nats: Value = serde_json::from_str(&nats).unwrap();
    let named = json!({ "name": "main-nats-tls" });
    nats.as_object_mut()
        .unwrap()
        .insert("metadata".to_owned(), named);
    cluster.apply(&nats.to_string()).await;
}

async fn claims_and_pods(cluster: &Cluster, wrong: &Wrong<'_>) {
    cluster.disk(1, "Pending").await;
    wrong(
        "disks main",
        "data-main-nats-1 has no volume yet: the storage class fast does not exist",
        "make that storage class",
    );
    let class = json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": "fast" }, "provisioner": "x" });
    cluster.apply(&class.to_string()).await;
    cluster
        .warned(
            "PersistentVolumeClaim",
            "data-main-nats-1",
            "no room for 20Gi",
        )
        .await;
    wrong("disks main", "no volume yet: no room for 20Gi", "by itself");
    cluster.disk(1, "Bound").await;

    cluster.nats_server(1, "False").await;
    cluster.nats_server(2, "False").await;
    wrong(
        "NATS main",
        "1 of 3 servers are ready, and nothing is stored",
        "their logs",
    );
    cluster.nats_server(1, "True").await;
    cluster.nats_server(2, "True").await;

    let labels =
        json!({ "app.kubernetes.io/name": "mailbell", "app.kubernetes.io/instance": "main" });
    let container = json!({ "name": "one", "image": "mailbell:1" });
    let set = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "main-watcher", "labels": labels },
        "spec": { "replicas": 2, "serviceName": "x", "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": { "containers": [container] } } } });
    cluster.apply(&set.to_string()).await;
    cluster
        .warned(
            "StatefulSet",
            "main-watcher",
            "create Pod main-watcher-1 failed: exceeded quota: small",
        )
        .await;
    wrong(
        "pods main",
        "main-watcher has 0 of 2 pods: create Pod main-watcher-1 failed",
        "describe resourcequota",
    );
    cluster
        .kubectl(&["delete", "statefulset", "main-watcher"])
        .await;
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
    said.is_well();
    said.has("accounts main", "ok", "512 declared: 2 watched");
}
