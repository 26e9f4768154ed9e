//! All of docs/operating.md, as a person types it: each block, in its order, in one terminal.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _};

use mailbell_test_cluster::{guide::blocks, in_private_network};
use mailbell_tests::leaks::SUBJECT;

use crate::{
    install::kept,
    pods::{NATS_SERVERS, Pod},
    reader::Reader,
    world::{NEXT_TAG, TAG},
};

/// What the page has, and what is typed in its place, since this cluster has it otherwise. The chart of the next release is this one's,
/// with another image.
const STAND_INS: [[&str; 2]; 4] = [
    // The mail server has an address of the cluster's own network, and a certificate of the authority that admin-tls is of.
    [
        "spec:\n  gateways:",
        "spec:\n  watchers: { allowPrivateHosts: true, imapCaConfigMap: admin-ca }\n  gateways:",
    ],
    // Nothing is pulled: nodes have the images that `make e2e-images` makes.
    ["image: nats:2.12", "image: mailbell.dev/tests/nats:1"],
    [
        r#""image":"nats:2.12""#,
        r#""image":"mailbell.dev/tests/nats:next""#,
    ],
    // Nobody is there to be asked.
    [
        "imaps://you@example.org@imap.example.org",
        "imaps://you@example.org@imap.example.org --password-file mailbox.password",
    ],
];
/// In place of the page's account stands the one that is meant.
const ACCOUNT: &str = "default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z";

#[test]
fn the_guide_is_followed_to_its_end() {
    in_private_network(async || {
        let mut reader = Reader::start(&STAND_INS).await;
        reader.install().await;
        reader.first_mailboxes().await;
        reader.change().await;
        reader.upgrade().await;
        reader.stop_for_a_while().await;
        reader.tell_of_a_provider().await;
        reader.bring_secrets().await;
        reader.look().await;
        reader.lose_disks().await;
        reader.put_key_ring_back().await;
        reader.remove_what_was_left().await;
        reader.uninstall().await;
        reader.assert_read();
    })
    .unwrap();
}

impl Reader {
    async fn install(&mut self) {
        self.through("kubectl apply -f mailbell.yaml").await;
        let said = self.through("mailbell doctor --kube").await;
        for words in [
            "condition met",
            "Phase:          Succeeded",
            "ok    NATS main",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        // It serves by then, and the last pod may take a moment more.
        self.until_everything_runs().await;
        self.open_gateway().await;
    }

    async fn first_mailboxes(&mut self) {
        self.through("get secret main-admin-token").await;
        self.forward().await;
        let said = self.through("account add").await;
        let account = said.split_whitespace().next().unwrap().to_owned();
        assert!(said.contains(&format!("{account}  added")), "{said}");
        self.stand_in(ACCOUNT, &account);
        self.connect_device(&account).await;
        self.begin("mailbell listen").await;
        self.terminal.says("listening").await;
        self.deliver().await;
        let said = self.terminal.end().await;
        assert!(said.contains(SUBJECT), "{said}");

        self.through("get secret main-key-ring").await;
        let backup = fs::metadata(self.terminal.folder().join("key.ring")).unwrap();
        let mode = backup.permissions().mode();
        assert!(mode & 0o77 == 0 && backup.len() > 0, "{mode:o}");

        let said = self
            .through("wait --for=condition=Ready mailaccount/info")
            .await;
        assert!(said.contains("condition met"), "{said}");
        self.assert_told().await;
    }

    async fn change(&mut self) {
        self.through(r#""scale":{"min":3"#).await;
        self.until("there are three watchers", async || {
            let watchers = self.pods_of("watcher").await;
            watchers.len() == 3 && watchers.iter().all(Pod::is_ready)
        })
        .await;
        self.through(r#""content":"headers""#).await;
        self.runs(TAG).await;
        self.assert_told().await;
    }

    async fn upgrade(&mut self) {
        self.take_next_charts(NEXT_TAG);
        self.through("helm upgrade mailbell charts/mailbell").await;
        self.runs(NEXT_TAG).await;
        self.assert_told().await;
        self.through("helm rollback").await;
        self.runs(TAG).await;
        self.through(r#""finishUpgrade":true"#).await;
        self.runs(TAG).await;
        self.assert_told().await;
        self.through(r#""nats":{"managed":{"image""#).await;
        self.until("all NATS servers have the new image", async || {
            let servers = self.pods_of("nats").await;
            let new = |pod: &Pod| pod.is_ready() && pod.image().ends_with(":next");
            servers.len() == NATS_SERVERS && servers.iter().all(new)
        })
        .await;
        self.runs(TAG).await;
        self.assert_told().await;
    }

    async fn stop_for_a_while(&mut self) {
        self.through(r#""paused":true"#).await;
        self.until("it says that it is paused, and nobody works", async || {
            let said = self.kubectl("get mailbells").await;
            let pods = [self.pods_of("watcher").await, self.pods_of("gateway").await];
            said.contains("Paused: nothing is watched") && pods.concat().is_empty()
        })
        .await;
        self.through(r#""paused":false"#).await;
        self.runs(TAG).await;
        self.assert_told().await;

        self.through("kubectl drain").await;
        for part in ["watcher", "gateway", "admin", "nats"] {
            let pods = self.pods_of(part).await;
            assert!(pods.iter().all(|pod| pod.node() != "node-1"), "{pods:?}");
        }
        self.assert_told().await;
        self.through("kubectl uncordon").await;
        self.runs(TAG).await;
        self.assert_told().await;
    }

    async fn tell_of_a_provider(&mut self) {
        self.through("get mailproviders").await;
        self.until("it is in force", async || {
            self.reason("mailprovider example")
                .await
                .starts_with("True")
        })
        .await;
        self.through(r#""paused":true"#).await;
        self.until_rests("ProviderPaused").await;
        self.through(r#""paused":false"#).await;
        self.until_watched().await;
        self.assert_told().await;
        self.through(r#""pausedTenants":["default"]"#).await;
        self.until_rests("TenantPaused").await;
        self.through(r#""pausedTenants":[]"#).await;
        self.until_watched().await;
        self.assert_told().await;
    }

    async fn until_rests(&self, why: &str) {
        let said = format!("False {why}");
        self.until("the mailbox rests", async || {
            self.reason("mailaccount info").await == said
        })
        .await;
    }

    async fn until_watched(&self) {
        self.until("the mailbox is watched", async || {
            self.reason("mailaccount info").await.starts_with("True")
        })
        .await;
    }

    /// What the object says of whether it is ready.
    async fn reason(&self, object: &str) -> String {
        let ready = ".status.conditions[?(@.type==\"Ready\")]";
        let words = format!("get {object} -o jsonpath={{{ready}.status}}/{{{ready}.reason}}");
        self.kubectl(&words).await.replace('/', " ")
    }

    async fn until_everything_runs(&self) {
        self.until("everything runs", async || {
            self.reason("mailbell main").await == "True Running"
        })
        .await;
    }

    async fn lives_of_servers(&self) -> Vec<(String, u64)> {
        let servers = self.pods_of("nats").await;
        servers.iter().map(Pod::life).collect()
    }

    async fn bring_secrets(&mut self) {
        self.through(r#""usersSecret":"own-nats-users""#).await;
        self.until("all have the passwords that were brought", async || {
            let mut pods = Vec::new();
            for part in ["nats", "watcher", "gateway", "admin"] {
                pods.extend(self.pods_of(part).await);
            }
            pods.iter().all(|pod| pod.names("own-nats-users"))
        })
        .await;
        self.runs(TAG).await;
        self.assert_told().await;
        let servers = self.lives_of_servers().await;
        let patched = "secret/main-nats-tls patched\n";
        let said = self.through("ca.crt=both.crt").await;
        assert!(said.contains(patched), "{said}");
        self.assert_told().await;
        let said = self.through("tls.crt=nats.crt").await;
        assert!(said.contains(patched), "{said}");
        assert!(said.contains("ok    NATS main"), "{said}");
        // Nobody was started anew for it.
        assert_eq!(self.lives_of_servers().await, servers);
        self.assert_told().await;

        // As if that had expired: the next one is of an authority that nobody trusts yet.
        let blocks = blocks().unwrap();
        let by_hand = |script: &&str| script.contains("-CA nats-ca.crt");
        let mut scripts = blocks.iter().map(|block| block.script.as_str());
        self.terminal.run(scripts.find(by_hand).unwrap()).await;
        let said = self.through("tls.crt=nats.crt").await;
        assert!(said.contains(patched), "{said}");
        self.through("delete pod --selector").await;
        // Until the kubelets have brought the file nobody meets the servers, and pods are not ready for that after a while only.
        self.assert_told().await;
        self.runs(TAG).await;
        self.until_everything_runs().await;
    }

    async fn look(&mut self) {
        let said = self.through("get mailbells --all-namespaces").await;
        assert!(said.contains("Everything runs."), "{said}");
        // Its pod was replaced.
        self.forward_again().await;
        let said = self.through("--canary").await;
        let mut lines = said.lines();
        let canary = lines.find(|line| line.starts_with("ok    canary"));
        assert!(canary.is_some(), "{said}");
        // The device was told of the canary, which lies in the mailbox no more: from here on by another one.
        self.connect_again().await;
    }

    /// Of one server, and then of all.
    async fn lose_disks(&mut self) {
        let disk = "get pvc data-main-nats-1 -o jsonpath={.spec.volumeName}";
        let lost = self.kubectl(disk).await;
        self.through("delete pvc data-main-nats-1").await;
        self.runs(TAG).await;
        assert_ne!(self.kubectl(disk).await, lost);
        self.assert_told().await;

        let account = "get mailaccount info -o jsonpath={.status.account}";
        let lost = self.kubectl(account).await;
        // Its account and its token are among what is gone.
        self.device = None;
        let key = "get secret main-signing-key -o jsonpath={.data}";
        let old_key = self.kubectl(key).await;
        self.through("kubectl apply -f mailbell-now.json").await;
        self.runs(TAG).await;
        let new_key = self.kubectl(key).await;
        assert!(!new_key.is_empty() && new_key != old_key);
        // As it was, and not as on the page's first day.
        let content = self.kubectl("get mailbell main -o jsonpath={.spec.content}");
        assert_eq!(content.await, "headers");
        self.until("what is declared is registered again", async || {
            self.kubectl(account).await != lost
        })
        .await;
        self.until_watched().await;
        // Its pod is another one.
        self.forward_again().await;
    }

    /// What is in the backup must be all that was in the Secret.
    async fn put_key_ring_back(&mut self) {
        let ring = "get secret main-key-ring -o jsonpath={.data}";
        let whole = self.kubectl(ring).await;
        let empty = r#"patch secret main-key-ring --type=merge -p {"data":null}"#;
        self.kubectl(empty).await;
        self.through("--from-file=key.ring").await;
        assert_eq!(self.kubectl(ring).await, whole);
        // What would fill an empty one leaves it.
        self.through("delete job").await;
        let jobs = "get jobs --selector app.kubernetes.io/component=secrets -o jsonpath={.items[*].status.succeeded}";
        self.until("both jobs have run anew", async || {
            self.kubectl(jobs).await == "1 1"
        })
        .await;
        assert_eq!(self.kubectl(ring).await, whole);
        self.through("MAILBELL_REPLACE_KEY_RING").await;
        let watchers = "get pods --selector app.kubernetes.io/component=watcher -o yaml";
        self.until("watchers are told to", async || {
            let watchers = self.kubectl(watchers).await;
            watchers.contains("MAILBELL_REPLACE_KEY_RING")
        })
        .await;
        self.runs(TAG).await;
        self.through(r#""env":[]"#).await;
        self.runs(TAG).await;
        assert_eq!(self.kubectl(ring).await, whole);
    }

    async fn remove_what_was_left(&mut self) {
        let id = self
            .kubectl("get mailaccount info -o jsonpath={.status.account}")
            .await;
        // Somebody takes its finalizer off, while nobody is there to delete what it stands for.
        self.kubectl("scale deployment mailbell-operator --replicas=0")
            .await;
        self.until("no operator is there", async || {
            !self.kubectl("get pods -o name").await.contains("operator")
        })
        .await;
        self.kubectl("delete mailaccount info --wait=false").await;
        self.through(r#""finalizers":null"#).await;
        self.kubectl("scale deployment mailbell-operator --replicas=2")
            .await;
        let left = "get mailbell main -o jsonpath={.status.leftAccounts.ids}";
        self.until("it is named", async || {
            self.kubectl(left).await.contains(&id)
        })
        .await;
        self.stand_in(ACCOUNT, &id);
        self.through("account remove").await;
        self.until("none is named", async || {
            self.kubectl(left).await.is_empty()
        })
        .await;
    }

    async fn uninstall(&mut self) {
        self.device = None;
        self.through("helm uninstall mailbell --namespace mail")
            .await;
        self.until("all pods are gone", async || {
            self.kubectl("get pods -o name").await.is_empty()
        })
        .await;
        let kinds = "deployments,statefulsets,jobs,services,serviceaccounts,roles,rolebindings,networkpolicies,\
                     poddisruptionbudgets,secrets,configmaps,leases,persistentvolumeclaims";
        let own = [
            "secret/push-tls",
            "secret/admin-tls",
            "secret/mail-passwords",
            "secret/own-nats-users",
            "configmap/admin-ca",
            "configmap/collector-roots",
            "configmap/example-roots",
            "configmap/kube-root-ca.crt",
            "serviceaccount/default",
            // Of the operator, and of no use to anybody else.
            "lease.coordination.k8s.io/mailbell-operator",
        ];
        let own: BTreeSet<String> = own.map(ToOwned::to_owned).into();
        let left = self.names(kinds).await;
        assert_eq!(left, &own | &kept());
        let provider = "mailprovider.mailbell.dev/example";
        assert_eq!(
            self.names("mailproviders").await,
            [provider.to_owned()].into()
        );
        self.through("kubectl delete crd").await;
        assert_eq!(self.names(kinds).await, own);
        self.through("kubectl delete namespace mail").await;
        let left = self
            .names("namespaces,crds,clusterroles,clusterrolebindings")
            .await;
        let of_ours = |name: &&String| name.contains("mailbell") || name.ends_with("/mail");
        assert_eq!(left.iter().find(of_ours), None);
    }
}
