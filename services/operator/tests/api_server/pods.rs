//! What users add to pods: what the API server takes of it, and refuses.

use serde_json::{Value, json};

use crate::{
    definitions::refused,
    world::{World, mailbell, with},
};

const PARTS: [&str; 4] = [
    "/spec/watchers/pods",
    "/spec/gateways/pods",
    "/spec/admin/pods",
    "/spec/nats/managed/pods",
];

#[tokio::test]
async fn what_pods_are_given_beside_is_taken_unless_it_is_the_operators() {
    let Some(world) = World::new().await else {
        return;
    };
    let env = |name: &str| json!({ "env": [{ "name": name, "value": "one" }] });
    let volume = |volume: Value| json!({ "volumes": [volume] });
    let projected =
        |source: Value| volume(json!({ "name": "own", "projected": { "sources": [source] } }));
    let mount = |path: &str| json!({ "volumes": [{ "name": "own", "emptyDir": {} }], "volumeMounts": [{ "name": "own", "mountPath": path }] });
    for part in PARTS {
        for good in [
            env("MAILBELL_EGRESS"),
            // The way out where the key ring is lost (docs/operating.md).
            env("MAILBELL_REPLACE_KEY_RING"),
            volume(json!({ "name": "own", "secret": { "secretName": "own" } })),
            projected(json!({ "configMap": { "name": "own" } })),
            mount("/tmp"),
            mount("/run/mailbells"),
            mount("/etc/.own/..data"),
        ] {
            let said = refused(&world, &with(&mailbell(), part, good.clone())).await;
            assert_eq!(said, None, "{part}: {good}");
        }
        for (bad, sentence) in [
            (env("MAILBELL_NATS_URL"), "env[0].name: Invalid value"),
            (
                env("MAILBELL_WATCHER_PASSWORD"),
                "the operator sets this variable itself",
            ),
            (env("POD_NAME"), "as other fields of the Mailbell say"),
            (
                env("MAILBELL_MEMBER"),
                "each watcher has the name of its pod",
            ),
            (env("A=B"), "should match"),
            (
                json!({ "env": [{ "name": "A" }, { "name": "A" }] }),
                "Duplicate value",
            ),
            (
                json!({ "env": [{ "name": "A", "value": "a", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }] }),
                "a value or valueFrom, not both",
            ),
            (
                volume(json!({ "name": "tls", "emptyDir": {} })),
                "a volume of the operator has this name",
            ),
            (
                volume(json!({ "name": "own", "emptyDir": {}, "secret": { "secretName": "own" } })),
                "one of configMap, secret, projected, csi and emptyDir",
            ),
            // Of a kind that is not offered nothing is left.
            (
                volume(json!({ "name": "own", "hostPath": { "path": "/" } })),
                "one of configMap, secret, projected, csi and emptyDir",
            ),
            // A token of the watchers' account could read the key ring, and change it.
            (
                projected(json!({ "serviceAccountToken": { "path": "token" } })),
                "pods are given no token of their service account",
            ),
            (mount("/run"), "take another folder"),
            (mount("/run/mailbell"), "take another folder"),
            (mount("/run//mailbell/tls"), "should match"),
            (mount("/run/./mailbell"), "without . and .."),
            (mount("/tmp/../data"), "without . and .."),
            (mount("/tmp/.."), "without . and .."),
            (mount("/run/nats/tls"), "take another folder"),
            (mount("/data"), "take another folder"),
            (mount("/"), "should be at least 2 chars"),
            (mount("etc"), "should match"),
            (
                json!({ "volumeMounts": [{ "name": "policy", "mountPath": "/tmp" }] }),
                "the name of one of volumes",
            ),
        ] {
            let said = refused(&world, &with(&mailbell(), part, bad.clone())).await;
            let said = said.unwrap_or_else(|| panic!("taken, though: {part}: {bad}"));
            assert!(said.contains(sentence), "{said}\n  instead of: {sentence}");
        }
    }
}
