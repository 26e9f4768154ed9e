//! What `mailbell doctor --kube` says where objects cannot be read, for instance since a newer release has written them.

use serde_json::{Value, json};

use super::{Said, doctor, doctor_in};
use crate::{cluster::Cluster, machine::Machine};

/// A time for the API server, and for nobody else.
const TIME: &str = "2024-01-01T00:00:00+99:00";

/// Of each it is said, and all others are looked at as before.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_hides_nothing_else() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let admin = Machine::on_cluster(cluster.server.kubeconfig());
    cluster.definitions(&admin).await;
    cluster.all_is_well().await;
    let watched = ["True", "Watching", "New mail is told at once."];
    cluster.mail_account("alice", "main", watched).await;
    let other = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "Mailbell", "metadata": { "name": "other" },
        "spec": {
            "gateways": { "tls": { "insecurePlaintext": true } },
            "admin": { "tls": { "insecurePlaintext": true } },
            "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } },
        } });
    cluster.apply(&other.to_string()).await;
    cluster.mail_account("bob", "other", watched).await;
    let looked = |at: Value| json!({ "lookedAt": at });
    cluster.status("mailbell/other", looked(TIME.into())).await;
    let said = doctor(&admin);
    assert_eq!(said.code, Some(69), "{said:?}");
    // The chart was not told of it.
    let rights = "rights of mailbell-operator";
    assert_eq!(said.of("fail"), ["installation other", rights], "{said:?}");
    is_told(&said, "installation other", "fail");
    said.has(rights, "fail", "get secrets/other-operator-token");
    // That its MailAccounts name one that is not there is not said.
    said.has("accounts other", "ok", "1 declared: 1 watched");
    let main_is_well = |said: &Said| {
        said.has("installation main", "ok", "Everything runs.");
        said.has("secrets main", "ok", "are there");
        said.has("disks main", "ok", "all 3");
        said.has("accounts main", "ok", "1 watched");
    };
    main_is_well(&said);
    // An operator of another release may read it.
    let of_release = async |release: &str| {
        let label = format!("app.kubernetes.io/version={release}");
        let label = [
            "label",
            "deployment",
            "mailbell-operator",
            "--overwrite",
            &label,
        ];
        cluster.kubectl(&label).await;
    };
    of_release("99.0.0").await;
    let said = doctor(&admin);
    let advice = said.has("installation other", "warn", "it cannot be read");
    let words = "the operator is of release 99.0.0; this command is of ";
    assert!(advice.contains(words), "{advice}");
    of_release(env!("CARGO_PKG_VERSION")).await;
    // It is one of those that are elsewhere, too.
    let said = doctor_in(&admin, "kube-system");
    said.has("installation", "warn", "there are some in default");

    // Of its pods it is told what is wrong with them.
    cluster.status("mailbell/main", looked(TIME.into())).await;
    let waiting = json!({ "waiting": { "reason": "ImagePullBackOff" } });
    cluster.pod("main-watcher-0", waiting, json!({})).await;
    let said = doctor(&admin);
    let failed = [
        "installation main",
        "pods main",
        "installation other",
        rights,
    ];
    assert_eq!(said.of("fail"), failed, "{said:?}");
    said.has("pods main", "fail", "main-watcher-0");
    said.has("installation main", "skipped", "only its pods");
    cluster
        .pod("main-watcher-0", json!({ "running": {} }), json!({}))
        .await;
    cluster.status("mailbell/main", looked(Value::Null)).await;
    cluster.kubectl(&["delete", "mailbell", "other"]).await;
    cluster.kubectl(&["delete", "mailaccount", "bob"]).await;

    // A MailAccount: the first ones are named.
    let arrival = |at: Value| json!({ "lastArrival": at });
    for name in ["c1", "c2", "c3", "c4", "c5", "c6"] {
        cluster.mail_account(name, "main", watched).await;
        let object = format!("mailaccount/{name}");
        cluster.status(&object, arrival(TIME.into())).await;
    }
    let said = doctor(&admin);
    assert_eq!(said.code, Some(0), "{said:?}");
    main_is_well(&said);
    let told = [
        "accounts",
        "account c1",
        "account c2",
        "account c3",
        "account c4",
        "account c5",
    ];
    assert_eq!(said.of("warn"), told, "{said:?}");
    let advice = said.has("accounts", "warn", "6 of 7 cannot be read");
    assert!(advice.contains("the operator's log"), "{advice}");
    is_told(&said, "account c1", "warn");
    // If none can, something is wrong.
    cluster
        .status("mailaccount/alice", arrival(TIME.into()))
        .await;
    let said = doctor(&admin);
    assert_eq!(said.of("fail"), ["accounts"], "{said:?}");
    said.has("accounts", "fail", "7 of 7 cannot be read");
    let words = "none is declared, of those that can be read";
    said.has("accounts main", "ok", words);
    // Those that cannot be may be watched.
    let refused = ["False", "BadCredentials", "The password is refused."];
    cluster.mail_account("dave", "main", refused).await;
    let said = doctor(&admin);
    assert_eq!((said.code, said.of("fail")), (Some(0), vec![]), "{said:?}");
    let words = "1 declared, of those that can be read: 0 watched";
    said.has("accounts main", "warn", words);
    cluster.kubectl(&["delete", "mailaccounts", "--all"]).await;

    // The same of a MailProvider.
    let ready = json!({ "type": "Ready", "status": "True", "reason": "InForce", "message": "",
        "lastTransitionTime": TIME });
    for name in ["p1", "p2", "p3", "p4", "p5", "p6", "p7"] {
        let provider = json!({ "apiVersion": "mailbell.dev/v1alpha1", "kind": "MailProvider", "metadata": { "name": name },
            "spec": { "mailbell": "main", "hosts": [format!("{name}.test")] } });
        cluster.apply(&provider.to_string()).await;
        if name != "p7" {
            let status = json!({ "conditions": [ready] });
            let object = format!("mailprovider/{name}");
            cluster.status(&object, status).await;
        }
    }
    let said = doctor(&admin);
    assert_eq!((said.code, said.of("fail")), (Some(0), vec![]), "{said:?}");
    let told = [
        "provider p1",
        "provider p2",
        "provider p3",
        "provider p4",
        "provider p5",
        "providers",
    ];
    assert_eq!(said.of("warn"), told, "{said:?}");
    is_told(&said, "provider p1", "warn");
    said.has("providers", "warn", "1 more cannot be read: p6");
}

fn is_told(said: &Said, name: &str, verdict: &str) {
    let why = "it cannot be read: failed to parse hours in UTC numeric offset";
    let advice = said.has(name, verdict, why);
    assert!(advice.contains("leaves it alone"), "{advice}");
}
