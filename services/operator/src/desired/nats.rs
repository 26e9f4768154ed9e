//! The NATS servers that the operator runs, if it does.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube::ResourceExt as _;
use mailbell_bus::{
    Role,
    server_config::{MAX_PAYLOAD, password_variable, system_config, user_name, users_config},
};
use mailbell_core::ids::Installation;
use serde_json::{Value, json};

use super::{
    Part, Wanted, digest, merge,
    pod::{container_security, pod_security, probe},
    quantity,
    roles::resources,
};
use crate::api::{Mailbell, ManagedNats, Nats};

/// Where clients connect.
pub(super) const CLIENT_PORT: i32 = 4222;
/// Where servers meet.
pub(super) const ROUTE_PORT: i32 = 6222;
/// Where a server says how it is.
pub const MONITOR_PORT: i32 = 8222;

/// Of its own disk: what is written when a server starts again, and what the file system keeps for itself.
const KEPT_BACK_MIB: u64 = 512;
/// A server ends within seconds; a long queue to its disk may take longer.
const GRACE_SECONDS: i64 = 60;

pub(super) fn objects(wanted: &Wanted<'_>) -> Vec<Value> {
    let Nats { managed, .. } = &wanted.mailbell.spec.nats;
    let Some(managed) = managed else {
        return Vec::new();
    };
    let name = wanted.name(Part::Nats);
    let ports = |all: &[(&str, i32)]| -> Vec<Value> {
        let port = |(name, number): &(&str, i32)| json!({ "name": name, "port": number, "targetPort": name });
        all.iter().map(port).collect()
    };
    let config = json!({
        "data": {
            "nats.conf": config(wanted, managed),
            "users.conf": users(wanted),
        },
    });
    let set = set(wanted, managed, &digest(&config));
    let servers = json!({
        "spec": {
            "clusterIP": "None",
            // One by one: they meet before they are ready, and a client must be able to leave one of them.
            "publishNotReadyAddresses": true,
            "selector": wanted.selector(Part::Nats),
            "ports": ports(&[("nats", CLIENT_PORT), ("routes", ROUTE_PORT), ("monitor", MONITOR_PORT)]),
        },
    });
    let part = Part::Nats;
    vec![
        wanted.service_account(part),
        wanted.disruption_budget(part),
        wanted.object("v1", "ConfigMap", &name, part, config),
        wanted.object("v1", "Service", &name, part, servers),
        wanted.object("apps/v1", "StatefulSet", &name, part, set),
    ]
}

impl Wanted<'_> {
    /// The names of the servers, by which clients and the others know them. All of them: a client must be able to leave one that has no
    /// way to a leader.
    fn nats_servers(&self) -> Vec<String> {
        let name = self.name(Part::Nats);
        let managed = self.mailbell.spec.nats.managed.as_ref();
        let nodes = managed.map_or(0, |managed| managed.nodes);
        let namespace = self.mailbell.metadata.namespace.as_deref();
        let namespace = namespace.unwrap_or_default();
        (0..nodes)
            .map(|node| format!("{name}-{node}.{name}.{namespace}.svc"))
            .collect()
    }

    pub(super) fn nats_url(&self) -> String {
        let servers = self.nats_servers();
        let urls: Vec<String> = servers
            .iter()
            .map(|server| format!("tls://{server}:{CLIENT_PORT}"))
            .collect();
        urls.join(",")
    }

    /// With the password of each role's user.
    pub(super) fn nats_users_secret(&self) -> String {
        let managed = self.mailbell.spec.nats.managed.as_ref();
        let named = managed.and_then(|managed| managed.users_secret.as_deref());
        self.secret(named, "nats-users")
    }

    pub(super) fn nats_tls_secret(&self) -> String {
        nats_certificate(self.mailbell).unwrap_or_default()
    }
}

/// The Secret with `tls.crt` and `tls.key` of the servers that the operator runs, and `ca.crt`, whom clients and the other servers trust. The
/// certificate has the name `*.<name>-nats.<namespace>.svc`, and is one of a server and of a client: the servers show it to one another.
#[must_use]
pub fn nats_certificate(mailbell: &Mailbell) -> Option<String> {
    let managed = mailbell.spec.nats.managed.as_ref()?;
    let made = || format!("{}-nats-tls", mailbell.name_any());
    Some(managed.tls_secret().map_or_else(made, str::to_owned))
}

fn users(wanted: &Wanted<'_>) -> String {
    // The API server takes no other name.
    let installation: Installation = wanted.installation().parse().unwrap_or_default();
    users_config(&installation) + &system_config(&installation)
}

fn config(wanted: &Wanted<'_>, managed: &ManagedNats) -> String {
    let name = wanted.name(Part::Nats);
    let tls = |verify: &str| {
        format!(
            "tls {{ cert_file: \"/run/nats/tls/tls.crt\", key_file: \"/run/nats/tls/tls.key\", \
             ca_file: \"/run/nats/tls/ca.crt\"{verify} }}"
        )
    };
    let size = quantity::whole(&managed.storage.size).unwrap_or_default();
    let store = size.saturating_sub(KEPT_BACK_MIB << 20);
    // To Go 0.0.0.0 is every address of both families.
    let mut text = format!(
        "server_name: $POD_NAME\n\
         listen: \"0.0.0.0:{CLIENT_PORT}\"\n\
         http: \"0.0.0.0:{MONITOR_PORT}\"\n\
         max_payload: {MAX_PAYLOAD}\n\
         {}\n\
         # An acknowledged event survives a power cut.\n\
         jetstream {{ store_dir: \"/data\", max_file_store: {store}, sync_interval: always }}\n",
        tls(""),
    );
    if managed.nodes > 1 {
        let routes: Vec<String> = wanted
            .nats_servers()
            .iter()
            .map(|server| format!("\"nats://{server}:{ROUTE_PORT}\""))
            .collect();
        let _ = writeln!(
            text,
            "cluster {{\n  name: \"{name}\"\n  listen: \"0.0.0.0:{ROUTE_PORT}\"\n  \
             # To one that falls silent the others pass questions until they give it up: for 12 s, which without this are up to 90.\n  \
             ping_interval: \"4s\"\n  ping_max: 2\n  \
             # Clients have the names of all servers; addresses of pods are in no certificate.\n  no_advertise: true\n  routes: [{}]\n  {}\n}}",
            routes.join(", "),
            tls(", verify: true"),
        );
    }
    text.push_str("include users.conf\n");
    text
}

fn own_resources(managed: &ManagedNats) -> Option<&ResourceRequirements> {
    let own = managed.resources.as_ref();
    own.or(managed.pods.resources.as_ref())
}

/// Go frees memory in time only if it knows how much there is. Its heap gets nine tenths: the rest is for what Go does not count. Without a
/// limit that is understood it is told what Kubernetes makes of it, which is the memory of the node where there is none.
fn memory_of_go(managed: &ManagedNats) -> Value {
    let name = "GOMEMLIMIT";
    let Some(own) = own_resources(managed) else {
        return json!({ "name": name, "value": "900MiB" });
    };
    let limit = own.limits.as_ref().and_then(|all| all.get("memory"));
    let limit = limit.and_then(|limit| quantity::whole(&limit.0));
    match limit.map(|bytes| (bytes / 10 * 9) >> 20) {
        Some(mib @ 1..) => json!({ "name": name, "value": format!("{mib}MiB") }),
        Some(0) | None => json!({
            "name": name,
            "valueFrom": { "resourceFieldRef": { "resource": "limits.memory" } },
        }),
    }
}

/// Servers are started anew, one after the other, when their configuration is another one: a new release may need other rights.
fn set(wanted: &Wanted<'_>, managed: &ManagedNats, config: &str) -> Value {
    let part = Part::Nats;
    let name = wanted.name(part);
    let mut environment = vec![json!({
        "name": "POD_NAME",
        "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } },
    })];
    environment.extend(Role::ALL.map(|role| {
        let key = json!({ "name": wanted.nats_users_secret(), "key": user_name(role) });
        json!({ "name": password_variable(role), "valueFrom": { "secretKeyRef": key } })
    }));
    environment.push(memory_of_go(managed));
    let healthy = |query: &str, period, failures| {
        probe("monitor", &format!("/healthz{query}"), period, failures)
    };
    let port = |(name, number): (&str, i32)| json!({ "name": name, "containerPort": number });
    let ports = [
        ("nats", CLIENT_PORT),
        ("routes", ROUTE_PORT),
        ("monitor", MONITOR_PORT),
    ];
    let container = json!({
        "name": "nats",
        "image": managed.image,
        // Of the official images with a shell and without.
        "args": ["--config", "/run/nats/config/nats.conf"],
        "env": environment,
        "ports": ports.map(port),
        "resources": own_resources(managed).map_or(resources("500m", "1Gi"), |own| json!(own)),
        "securityContext": container_security(),
        // It reads what is on its disk, and takes over what it missed, before the next server may be stopped in a rolling restart.
        "startupProbe": healthy("", 5, 360),
        // A server that waits for the others is not ready, and must not be killed for it.
        "livenessProbe": healthy("?js-enabled-only=true", 20, 9),
        "readinessProbe": healthy("?js-server-only=true", 5, 3),
        "volumeMounts": [
            { "name": "config", "mountPath": "/run/nats/config", "readOnly": true },
            { "name": "tls", "mountPath": "/run/nats/tls", "readOnly": true },
            { "name": "data", "mountPath": "/data" },
        ],
    });
    let mut spec = json!({
        "serviceAccountName": name,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [
            { "name": "config", "configMap": { "name": name } },
            { "name": "tls", "secret": { "secretName": wanted.nats_tls_secret(), "defaultMode": 0o440 } },
        ],
    });
    wanted.place(&mut spec, part, &managed.pods);
    let mut template = wanted.template(part, &managed.pods, spec);
    merge(
        &mut template,
        json!({ "metadata": { "annotations": { "mailbell.dev/config": config } } }),
    );
    let mut claim = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": managed.storage.size } },
    });
    if let Some(class) = &managed.storage.class_name {
        merge(&mut claim, json!({ "storageClassName": class }));
    }
    json!({
        "spec": {
            "replicas": managed.nodes,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": wanted.selector(part) },
            "template": template,
            "volumeClaimTemplates": [{
                "metadata": { "name": "data", "labels": wanted.selector(part) },
                "spec": claim,
            }],
            // Accounts and their passwords are on them.
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
        },
    })
}
