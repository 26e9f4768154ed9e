//! Of which snapshots are made.

use serde_json::{Value, json};

/// Installations that have nothing in common: the shortest that there is, two on NATS of their own, of which one is in the clear, and one
/// in which everything is said, and which brings its Secrets.
pub(super) fn installations() -> [(&'static str, Value); 4] {
    let tls = json!({ "secretName": "push-tls" });
    let plain = json!({ "insecurePlaintext": true });
    let pods = json!({
        "resources": { "requests": { "cpu": "2" } },
        "nodeSelector": { "pool": "mail" },
        "tolerations": [{ "key": "mail", "operator": "Exists" }],
        "affinity": {
            "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "gpu", "operator": "DoesNotExist" }] }],
            } },
            "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 1,
                "podAffinityTerm": { "topologyKey": "rack", "labelSelector": { "matchLabels": { "app": "other" } } },
            }] },
        },
        "priorityClassName": "high",
        "annotations": { "note": "mail" },
        "labels": { "team": "mail", "app.kubernetes.io/component": "mine" },
        "env": [
            { "name": "TZ", "value": "Europe/Berlin" },
            { "name": "OTEL_EXPORTER_OTLP_HEADERS", "valueFrom": { "secretKeyRef": { "name": "own-headers", "key": "headers" } } },
        ],
        "volumes": [
            { "name": "own-roots", "configMap": { "name": "own-roots" } },
            { "name": "own-files", "secret": { "secretName": "own-files", "optional": true, "items": [{ "key": "a", "path": "b" }] } },
            { "name": "own-parts", "projected": { "sources": [{ "secret": { "name": "own-part" } }] } },
            { "name": "own-store", "csi": { "driver": "secrets-store.csi.k8s.io", "readOnly": true, "volumeAttributes": { "a": "b" } } },
            { "name": "tmp", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
        ],
        "volumeMounts": [
            { "name": "own-roots", "mountPath": "/etc/own/roots", "readOnly": true },
            { "name": "own-files", "mountPath": "/etc/own/files/b", "subPath": "b" },
            { "name": "own-parts", "mountPath": "/etc/own/parts" },
            { "name": "own-store", "mountPath": "/etc/own/store" },
            { "name": "tmp", "mountPath": "/tmp" },
        ],
    });
    let mut servers = pods.clone();
    servers["resources"] = Value::Null;
    [
        (
            "usual",
            json!({
                "gateways": { "tls": tls },
                "admin": { "tls": { "secretName": "admin-tls" } },
                "nats": { "managed": { "image": "nats:2.12", "storage": { "size": "20Gi" } } },
            }),
        ),
        (
            "external",
            json!({
                "paused": true,
                "generateSecrets": false,
                "gateways": { "tls": plain, "service": { "type": "NodePort" } },
                "admin": { "tls": plain, "tokenSecret": "tokens", "signingKeySecret": "signing" },
                "nats": { "external": {
                    "urls": ["tls://a.example.org:4222", "tls://b.example.org:4333"],
                    "usersSecret": "nats-users",
                    "caConfigMap": "nats-ca",
                    "replicas": 3,
                } },
            }),
        ),
        (
            "plain",
            json!({
                "gateways": { "tls": plain },
                "admin": { "tls": plain },
                "nats": { "external": {
                    "urls": ["nats://nats:4222"],
                    "usersSecret": "nats-users",
                    "allowPlaintext": true,
                } },
            }),
        ),
        (
            "full",
            json!({
                "image": "registry.example.org/mailbell:1.2.3",
                "imagePullSecrets": ["registry"],
                "finishUpgrade": true,
                "content": "headers",
                "watchers": {
                    "scale": { "min": 3, "max": 9 },
                    "mailboxesPerPod": 5,
                    "connectsPerHost": 20,
                    "loginsPerHost": 10,
                    "allowPrivateHosts": true,
                    "allowPlaintextImap": true,
                    "imapCaConfigMap": "imap-ca",
                    "keyRingSecret": "own-ring",
                    "pods": pods,
                },
                "gateways": {
                    "drainSeconds": 300,
                    "tls": plain,
                    "service": { "annotations": { "cloud": "internal" } },
                    "gatewayApi": { "parentRefs": [{ "name": "edge", "namespace": "infra" }], "hostnames": ["push.example.org"] },
                    "pods": pods,
                },
                "admin": {
                    "replicas": 3,
                    "tls": { "secretName": "admin-tls" },
                    "tokenSecret": "own-tokens",
                    "signingKeySecret": "own-signing",
                    "service": { "type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24"] },
                    "pods": pods,
                },
                "nats": { "managed": {
                    "nodes": 1,
                    "image": "nats:2.12",
                    "storage": { "size": "1Ti", "className": "fast" },
                    "usersSecret": "own-users",
                    "tls": { "secretName": "own-nats-tls" },
                    "resources": { "limits": { "memory": "4Gi" } },
                    "pods": servers,
                } },
                "telemetry": { "log": "debug", "otlpEndpoint": "http://collector:4317", "otlpSample": 0.25 },
            }),
        ),
    ]
}
