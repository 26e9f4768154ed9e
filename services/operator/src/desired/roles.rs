//! The processes of Mailbell: the setup of what is stored, gateways, admin API and watchers.

use std::collections::BTreeMap;

use mailbell_core::content::word;
use serde_json::{Value, json};

use super::{
    Part, REPLICAS, Wanted, digest, merge,
    pod::{HTTP_PORT, Mount, Pod, Source, as_it_is, tls},
    present,
};
use kube::ResourceExt as _;

use crate::{
    api::{Content, Mailbell, MailbellSpec, Pods, Service, ServiceType},
    sizing::Bounds,
};

/// Where devices connect.
pub(super) const PUSH_PORT: i32 = 7443;
/// Where the admin API is served.
pub(crate) const ADMIN_PORT: i32 = 7444;

/// Mailboxes of a pod where the user says nothing: with them, and a tenth more, a watcher stays below its memory.
const MAILBOXES_PER_POD: i32 = 10_000;
/// Devices of a pod where the user says nothing: with twice as many, at some 60 KB each, and all that it may hold of mail, a gateway stays
/// below its memory.
const DEVICES_PER_POD: i32 = 5_000;
/// Seconds over which a gateway's devices are sent elsewhere where the user says nothing.
const DRAIN_SECONDS: i32 = 60;
/// What a watcher needs to give its partitions away: a few at a time, each within a second.
const HAND_OVER_SECONDS: i64 = 120;
/// What the admin API needs: its calls are short.
const ADMIN_DRAIN_SECONDS: i64 = 25;
/// Replicas of the admin API where the user says nothing.
const ADMINS: i32 = 2;

/// Verifies what is stored, and makes what is missing, before anything that reads or writes it starts.
pub(super) fn setup(wanted: &Wanted<'_>) -> Vec<Value> {
    vec![
        wanted.service_account(Part::Setup),
        setup_job(wanted, "setup", false),
    ]
}

/// Lets what only the new release knows be stored, if that is wanted, once every process is of it. It refuses while an older one runs.
pub(super) fn finish(wanted: &Wanted<'_>) -> Vec<Value> {
    let wants = wanted.mailbell.spec.finish_upgrade;
    let job = wants.then(|| setup_job(wanted, "finish", true));
    job.into_iter().collect()
}

fn setup_job(wanted: &Wanted<'_>, name: &str, finishes: bool) -> Value {
    let spec = &wanted.mailbell.spec;
    let replicas = match (&spec.nats.external, &spec.nats.managed) {
        (Some(external), _) => external.replicas,
        (None, Some(managed)) => managed.nodes,
        (None, None) => 1,
    };
    let settings = vec![("MAILBELL_REPLICAS", replicas.to_string())];
    let mut command = vec!["setup"];
    command.extend(finishes.then_some("--finish-upgrade"));
    let template = wanted.pod(Pod {
        part: Part::Setup,
        acts_as: None,
        command,
        settings,
        files: Vec::new(),
        port: None,
        drain_seconds: None,
        pods: &wherever_watchers_run(wanted),
        resources: resources("50m", "128Mi"),
    });
    job(wanted, Part::Setup, name, template)
}

/// For jobs, which are small.
pub(super) fn wherever_watchers_run(wanted: &Wanted<'_>) -> Pods {
    Pods {
        resources: None,
        annotations: BTreeMap::new(),
        labels: BTreeMap::new(),
        env: Vec::new(),
        volumes: Vec::new(),
        volume_mounts: Vec::new(),
        ..wanted.mailbell.spec.watchers.pods.clone()
    }
}

/// A job cannot be changed, so each image and each setting makes another one; those before are removed at the end.
pub(super) fn job(wanted: &Wanted<'_>, part: Part, name: &str, mut template: Value) -> Value {
    if let Some(spec) = template.pointer_mut("/spec") {
        // Each attempt is a pod of its own, whose log stays: of one that is started again only the last word would.
        merge(spec, json!({ "restartPolicy": "Never" }));
    }
    let name = format!("{}-{name}-{}", wanted.installation(), digest(&template));
    let content = json!({
        "spec": {
            // Some two hours: what it needs may be away for a while.
            "backoffLimit": 30,
            "template": template,
        },
    });
    wanted.object("batch/v1", "Job", &name, part, content)
}

pub(super) fn gateway(wanted: &Wanted<'_>) -> Vec<Value> {
    let part = Part::Gateway;
    let gateways = &wanted.mailbell.spec.gateways;
    let (certificate, mut settings) = tls(&gateways.tls);
    settings.push(("MAILBELL_PUSH_LISTEN", format!("[::]:{PUSH_PORT}")));
    // Those of a neighbour that has died come too. Beyond that they are told to try again, and the pod stays alive to say how many it has.
    let most = devices_per_pod(&wanted.mailbell.spec).saturating_mul(2);
    settings.push(("MAILBELL_MOST_DEVICES", most.to_string()));
    settings.extend(most_content(&wanted.mailbell.spec));
    let drain = gateways.drain_seconds.unwrap_or(DRAIN_SECONDS);
    let template = wanted.pod(Pod {
        part,
        acts_as: None,
        command: vec!["gateway"],
        settings,
        files: certificate.into_iter().collect(),
        port: Some(("push", PUSH_PORT)),
        drain_seconds: Some(drain.into()),
        pods: &gateways.pods,
        resources: resources("250m", "1Gi"),
    });
    let service = gateways.service.clone().unwrap_or_default();
    let ports = ("push", PUSH_PORT);
    let mut objects = vec![
        wanted.service_account(part),
        wanted.disruption_budget(part),
        service_of(wanted, part, &service, ports),
        // By which the operator finds them all.
        headless(wanted, part, &format!("{}-pods", wanted.name(part)), false),
        deployment(wanted, part, wanted.gateways, template),
    ];
    objects.extend(route(wanted));
    objects
}

/// How many pods of each kind there may be, and what each is meant for.
#[must_use]
pub fn sizes(spec: &MailbellSpec) -> Sizes {
    let bounds = |scale, per_pod: i32| Bounds {
        scale,
        per_pod: per_pod.unsigned_abs(),
    };
    Sizes {
        watchers: bounds(spec.watchers.scale, mailboxes_per_pod(spec)),
        gateways: bounds(spec.gateways.scale, devices_per_pod(spec)),
    }
}

/// See [`sizes`].
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// By mailboxes.
    pub watchers: Bounds,
    /// By devices.
    pub gateways: Bounds,
}

/// Said only where there is a policy: else no pod would have to be made anew for it.
fn most_content(spec: &MailbellSpec) -> Option<(&'static str, String)> {
    let limits = spec.content != Content::Preview;
    limits.then(|| {
        (
            "MAILBELL_MOST_CONTENT",
            word(spec.content.into()).to_owned(),
        )
    })
}

fn devices_per_pod(spec: &MailbellSpec) -> i32 {
    spec.gateways.devices_per_pod.unwrap_or(DEVICES_PER_POD)
}

fn mailboxes_per_pod(spec: &MailbellSpec) -> i32 {
    spec.watchers.mailboxes_per_pod.unwrap_or(MAILBOXES_PER_POD)
}

/// Under which name every gateway is found, and where each says how it is.
#[must_use]
pub fn gateway_pods(mailbell: &Mailbell) -> (String, u16) {
    let (name, namespace) = (mailbell.name_any(), mailbell.namespace());
    let host = format!("{name}-gateway-pods.{}.svc", namespace.unwrap_or_default());
    (
        host,
        HTTP_PORT.unsigned_abs().try_into().unwrap_or(u16::MAX),
    )
}

/// Without an address of its own: its name has those of all its pods.
fn headless(wanted: &Wanted<'_>, part: Part, name: &str, unready_too: bool) -> Value {
    let content = json!({
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": unready_too,
            "selector": wanted.selector(part),
            "ports": [{ "name": "http", "port": HTTP_PORT, "targetPort": "http" }],
        },
    });
    wanted.object("v1", "Service", name, part, content)
}

/// Of the Gateway API. Streams last for hours, so nothing on the way may count their time. A GRPCRoute has no field for that (an HTTPRoute
/// has): what a Gateway does by itself is for its own settings to say.
fn route(wanted: &Wanted<'_>) -> Option<Value> {
    let gateways = &wanted.mailbell.spec.gateways;
    let api = gateways.gateway_api.as_ref()?;
    let name = wanted.name(Part::Gateway);
    let mut spec = json!({
        "parentRefs": api.parent_refs,
        "rules": [{
            "backendRefs": [{ "name": name, "port": PUSH_PORT }],
        }],
    });
    if !api.hostnames.is_empty() {
        merge(&mut spec, json!({ "hostnames": api.hostnames }));
    }
    let content = json!({ "spec": spec });
    let api = "gateway.networking.k8s.io/v1";
    Some(wanted.object(api, "GRPCRoute", &name, Part::Gateway, content))
}

pub(super) fn admin(wanted: &Wanted<'_>) -> Vec<Value> {
    let part = Part::Admin;
    let admin = &wanted.mailbell.spec.admin;
    let secret =
        |named: &Option<String>, made| Source::Secret(wanted.secret(named.as_deref(), made));
    let tokens = Mount {
        name: "admin-tokens",
        source: secret(&admin.token_secret, "admin-token"),
        items: vec![as_it_is("tokens")],
    };
    let operator = Mount {
        name: "operator-token",
        source: secret(&None, "operator-token"),
        items: vec![as_it_is("token")],
    };
    let signing = Mount {
        name: "signing-key",
        source: secret(&admin.signing_key_secret, "signing-key"),
        items: vec![as_it_is("signing.pem")],
    };
    let (certificate, mut settings) = tls(&admin.tls);
    settings.extend([
        ("MAILBELL_ADMIN_LISTEN", format!("[::]:{ADMIN_PORT}")),
        ("MAILBELL_ADMIN_TOKEN_FILE", tokens.path("tokens")),
        ("MAILBELL_OPERATOR_TOKEN_FILE", operator.path("token")),
        ("MAILBELL_SIGNING_KEY_FILE", signing.path("signing.pem")),
    ]);
    let watchers = &wanted.mailbell.spec.watchers;
    for (name, allowed) in [
        ("MAILBELL_ALLOW_PRIVATE_HOSTS", watchers.allow_private_hosts),
        (
            "MAILBELL_ALLOW_PLAINTEXT_IMAP",
            watchers.allow_plaintext_imap,
        ),
    ] {
        if allowed {
            settings.push((name, true.to_string()));
        }
    }
    let template = wanted.pod(Pod {
        part,
        acts_as: None,
        command: vec!["admin"],
        settings,
        files: certificate
            .into_iter()
            .chain([tokens, operator, signing])
            .collect(),
        port: Some(("admin", ADMIN_PORT)),
        drain_seconds: Some(ADMIN_DRAIN_SECONDS),
        pods: &admin.pods,
        resources: resources("100m", "512Mi"),
    });
    let service = admin.service.clone().unwrap_or_default();
    let replicas = admin.replicas.unwrap_or(ADMINS);
    vec![
        wanted.service_account(part),
        wanted.disruption_budget(part),
        service_of(wanted, part, &service, ("admin", ADMIN_PORT)),
        deployment(wanted, part, replicas, template),
    ]
}

/// The key of the ConfigMap, and the name of the file.
pub(crate) const POLICY_FILE: &str = "policy.json";

/// What watchers go by while they run. It is always there, so that the first word needs no other pods.
pub(super) fn policy(wanted: &Wanted<'_>) -> Vec<Value> {
    let Some(text) = wanted.policy else {
        return Vec::new();
    };
    let content = json!({ "data": { POLICY_FILE: text } });
    let name = policy_name(&wanted.installation());
    vec![wanted.object("v1", "ConfigMap", &name, Part::Watcher, content)]
}

/// The ConfigMap of what the watchers of this installation go by.
pub(crate) fn policy_name(installation: &str) -> String {
    format!("{installation}-policy")
}

/// A StatefulSet, since a watcher that comes back under its name takes at once what it had.
pub(super) fn watcher(wanted: &Wanted<'_>) -> Vec<Value> {
    let part = Part::Watcher;
    let watchers = &wanted.mailbell.spec.watchers;
    let ring = Mount {
        name: "key-ring",
        source: Source::Secret(wanted.secret(watchers.key_ring_secret.as_deref(), "key-ring")),
        items: vec![as_it_is("key.ring")],
    };
    // A folder, which the kubelet brings up to date in pods that run.
    let policy = Mount {
        name: "policy",
        source: Source::ConfigMap(policy_name(&wanted.installation())),
        items: vec![as_it_is(POLICY_FILE)],
    };
    let mut settings = vec![
        ("MAILBELL_KEY_RING_FILE", ring.path("key.ring")),
        ("MAILBELL_POLICY_FILE", policy.path(POLICY_FILE)),
    ];
    let mut files = vec![ring, policy];
    let mailboxes = mailboxes_per_pod(&wanted.mailbell.spec);
    let most = mailboxes.saturating_add((mailboxes / 10).max(1));
    settings.push(("MAILBELL_MOST_ACCOUNTS", most.to_string()));
    settings.extend(most_content(&wanted.mailbell.spec));
    let paces = [
        ("MAILBELL_CONNECTS_PER_HOST", watchers.connects_per_host),
        ("MAILBELL_LOGINS_PER_HOST", watchers.logins_per_host),
    ];
    for (name, pace) in paces {
        settings.extend(pace.map(|pace| (name, pace.to_string())));
    }
    if watchers.allow_plaintext_imap {
        settings.push(("MAILBELL_ALLOW_PLAINTEXT_IMAP", true.to_string()));
    }
    if let Some(name) = &watchers.imap_ca_config_map {
        let roots = Mount {
            name: "imap-ca",
            source: Source::ConfigMap(name.clone()),
            items: vec![as_it_is("ca.crt")],
        };
        settings.push(("MAILBELL_IMAP_CA", roots.path("ca.crt")));
        files.push(roots);
    }
    let template = wanted.pod(Pod {
        part,
        acts_as: None,
        command: vec!["watcher"],
        settings,
        files,
        port: None,
        drain_seconds: Some(HAND_OVER_SECONDS),
        pods: &watchers.pods,
        resources: resources("250m", "1Gi"),
    });
    let name = wanted.name(part);
    let mut set = json!({
        "spec": {
            "serviceName": name,
            // They share the mailboxes among themselves, and need not wait for one another to start.
            "podManagementPolicy": "Parallel",
            "selector": { "matchLabels": wanted.selector(part) },
            "template": template,
        },
    });
    merge(&mut set, wanted.scale(wanted.watchers));
    vec![
        wanted.disruption_budget(part),
        headless(wanted, part, &name, true),
        wanted.object("apps/v1", "StatefulSet", &name, part, set),
    ]
}

impl Wanted<'_> {
    /// So many pods; while nothing is to run none, with a note of how many there are to be again.
    fn scale(&self, replicas: i32) -> Value {
        if self.mailbell.spec.paused {
            let note = json!({ REPLICAS: replicas.to_string() });
            json!({ "metadata": { "annotations": note }, "spec": { "replicas": 0 } })
        } else {
            json!({ "spec": { "replicas": replicas } })
        }
    }
}

fn deployment(wanted: &Wanted<'_>, part: Part, replicas: i32, template: Value) -> Value {
    let mut content = json!({
        "spec": {
            "selector": { "matchLabels": wanted.selector(part) },
            // One more first: whoever is sent elsewhere finds somebody.
            "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": template,
        },
    });
    merge(&mut content, wanted.scale(replicas));
    wanted.object("apps/v1", "Deployment", &wanted.name(part), part, content)
}

fn service_of(wanted: &Wanted<'_>, part: Part, service: &Service, port: (&str, i32)) -> Value {
    let (name, number) = port;
    let tls = match part {
        Part::Gateway => &wanted.mailbell.spec.gateways.tls,
        _ => &wanted.mailbell.spec.admin.tls,
    };
    // What it says is in the clear; with TLS whatever is in front sees a stream of bytes.
    let protocol = if tls.secret_name.is_some() {
        "tls"
    } else {
        "grpc"
    };
    let kind = service.type_.unwrap_or(ServiceType::ClusterIp);
    let mut spec = json!({
        "type": kind,
        "selector": wanted.selector(part),
        "ports": [{ "name": name, "port": number, "targetPort": name, "appProtocol": protocol }],
    });
    let ranges = &service.load_balancer_source_ranges;
    let extra = present([
        (!ranges.is_empty()).then(|| json!({ "loadBalancerSourceRanges": ranges })),
        // Devices' addresses are worth knowing, and a hop less is a fault less.
        (kind != ServiceType::ClusterIp).then(|| json!({ "externalTrafficPolicy": "Local" })),
    ]);
    for more in extra {
        merge(&mut spec, more);
    }
    let content = json!({ "metadata": { "annotations": service.annotations }, "spec": spec });
    wanted.object("v1", "Service", &wanted.name(part), part, content)
}

/// No limit of CPU: a burst of logins or of devices that come back may use what is free.
pub(super) fn resources(cpu: &str, memory: &str) -> Value {
    json!({
        "requests": { "cpu": cpu, "memory": memory },
        "limits": { "memory": memory },
    })
}
