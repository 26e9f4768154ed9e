//! A pod of Mailbell's own image, as all of them are: without root, rights, or anything to write to.

use k8s_openapi::api::core::v1::Affinity;
use serde_json::{Value, json};

use super::{Part, Wanted, merge, present};
use crate::api::{ListenerTls, Nats, Pods};

/// The user of the image. Its group is that of mounted Secrets, which are then readable by it and by no other.
const USER: i64 = 65532;
/// Of `/metrics`, `/healthz` and `/readyz`.
pub(super) const HTTP_PORT: i32 = 7445;
/// From being told to end until the load balancers of most clusters know it: so long a pod goes on taking connections.
pub(super) const LEAVE_SECONDS: i64 = 5;
/// Beyond the drain: last checkpoints, last spans.
const SPARE_SECONDS: i64 = 10;

/// What differs from part to part.
pub(super) struct Pod<'a> {
    pub(super) part: Part,
    /// It speaks to the API server, with the rights of this part, and to nothing else. `None`: it speaks to NATS, and has no rights.
    pub(super) acts_as: Option<Part>,
    /// The subcommand, and what it has no variable for.
    pub(super) command: Vec<&'static str>,
    /// Beyond what all parts have: name and value.
    pub(super) settings: Vec<(&'static str, String)>,
    /// Secrets and ConfigMaps that it reads.
    pub(super) files: Vec<Mount>,
    /// Name and number of what it serves, beside health.
    pub(super) port: Option<(&'static str, i32)>,
    /// How long it may take to end; none for what ends by itself.
    pub(super) drain_seconds: Option<i64>,
    pub(super) pods: &'a Pods,
    /// Used where the user says nothing.
    pub(super) resources: Value,
}

/// A Secret or ConfigMap of the namespace, or some keys of it.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    /// Of the volume, and below `/run/mailbell`.
    pub(super) name: &'static str,
    pub(super) source: Source,
    /// Key and file name.
    pub(super) items: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub(super) enum Source {
    Secret(String),
    ConfigMap(String),
}

impl Mount {
    /// Where a file of it is in the pod.
    pub(super) fn path(&self, file: &str) -> String {
        format!("/run/mailbell/{}/{file}", self.name)
    }

    fn volume(&self) -> Value {
        let items: Vec<Value> = self
            .items
            .iter()
            .map(|(key, path)| json!({ "key": key, "path": path }))
            .collect();
        let mut content = match &self.source {
            // Readable by the pod's group, and by nobody else.
            Source::Secret(name) => json!({ "secretName": name, "defaultMode": 0o440 }),
            Source::ConfigMap(name) => json!({ "name": name, "defaultMode": 0o444 }),
        };
        merge(&mut content, json!({ "items": items }));
        let kind = match self.source {
            Source::Secret(_) => "secret",
            Source::ConfigMap(_) => "configMap",
        };
        json!({ "name": self.name, kind: content })
    }

    fn mount(&self) -> Value {
        json!({ "name": self.name, "mountPath": self.path("").trim_end_matches('/'), "readOnly": true })
    }
}

/// A certificate, and the settings that name it.
pub(super) fn tls(tls: &ListenerTls) -> (Option<Mount>, Vec<(&'static str, String)>) {
    let Some(secret) = &tls.secret_name else {
        return (
            None,
            vec![("MAILBELL_INSECURE_PLAINTEXT", true.to_string())],
        );
    };
    let mount = Mount {
        name: "tls",
        source: Source::Secret(secret.clone()),
        items: ["tls.crt", "tls.key"].map(as_it_is).into(),
    };
    let settings = vec![
        ("MAILBELL_TLS_CERT", mount.path("tls.crt")),
        ("MAILBELL_TLS_KEY", mount.path("tls.key")),
    ];
    (Some(mount), settings)
}

/// Of each pod, those of NATS servers too: official images of theirs have no user of their own, and need none.
pub(super) fn pod_security() -> Value {
    json!({
        "runAsNonRoot": true,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

pub(super) fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
    })
}

/// What the kubelet asks of a port with a name, how often, and after how many failures it acts.
pub(super) fn probe(port: &str, path: &str, period: i32, failures: i32) -> Value {
    json!({
        "httpGet": { "path": path, "port": port },
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    })
}

/// A key whose file has its name.
pub(super) fn as_it_is(key: &str) -> (String, String) {
    (key.to_owned(), key.to_owned())
}

impl Wanted<'_> {
    /// How a part reaches NATS, and the files that it needs for that.
    fn nats_login(&self, part: Part) -> (Vec<Mount>, Vec<(&'static str, String)>) {
        let role = part.as_str();
        let Nats { external, .. } = &self.mailbell.spec.nats;
        let (urls, users, ca) = match external {
            Some(external) => {
                let ca = external.ca_config_map.clone().map(Source::ConfigMap);
                (external.urls.join(","), external.users_secret.clone(), ca)
            }
            None => {
                let ca = Source::Secret(self.nats_tls_secret());
                (self.nats_url(), self.nats_users_secret(), Some(ca))
            }
        };
        let password = Mount {
            name: "nats",
            source: Source::Secret(users),
            items: vec![(role.to_owned(), "password".to_owned())],
        };
        let mut settings = vec![
            ("MAILBELL_NATS_URL", urls),
            ("MAILBELL_NATS_USER", role.to_owned()),
            ("MAILBELL_NATS_PASSWORD_FILE", password.path("password")),
        ];
        let mut mounts = vec![password];
        if let Some(source) = ca {
            let mut ca = Mount {
                name: "nats-ca",
                source,
                items: vec![as_it_is("ca.crt")],
            };
            settings.push(("MAILBELL_NATS_CA", ca.path("ca.crt")));
            // Servers of one's own are told to read a renewed certificate by whoever renews it.
            if part == Part::Admin && external.is_none() {
                ca.items.push(as_it_is("tls.crt"));
                settings.push(("MAILBELL_NATS_SERVER_CERT", ca.path("tls.crt")));
            }
            mounts.push(ca);
        }
        if external.as_ref().is_some_and(|nats| nats.allow_plaintext) {
            settings.push(("MAILBELL_NATS_ALLOW_PLAIN", true.to_string()));
        }
        (mounts, settings)
    }

    /// What ends by itself sends no traces.
    fn telemetry(&self, serves: bool) -> Vec<(&'static str, String)> {
        let telemetry = &self.mailbell.spec.telemetry;
        let log = telemetry.log.clone();
        let log = log.unwrap_or_else(|| "info,async_nats=warn".to_owned());
        let mut settings = vec![
            ("MAILBELL_LOG", log),
            ("MAILBELL_LOG_FORMAT", "json".to_owned()),
        ];
        if !serves {
            return settings;
        }
        let endpoint = telemetry.otlp_endpoint.clone();
        settings.extend(endpoint.map(|endpoint| ("MAILBELL_OTLP_ENDPOINT", endpoint)));
        let sample = telemetry.otlp_sample;
        settings.extend(sample.map(|sample| ("MAILBELL_OTLP_SAMPLE", sample.to_string())));
        settings
    }

    /// The template of a part's pods.
    pub(super) fn pod(&self, pod: Pod<'_>) -> Value {
        let Pod {
            part,
            acts_as,
            command,
            settings,
            files,
            port,
            drain_seconds,
            pods,
            resources,
        } = pod;
        let (mut mounts, login) = match acts_as {
            Some(_) => (Vec::new(), Vec::new()),
            None => self.nats_login(part),
        };
        mounts.extend(files);
        let serves = drain_seconds.is_some();
        let mut all = vec![("MAILBELL_INSTALLATION", self.installation())];
        all.extend(login);
        all.extend(self.telemetry(serves));
        if let Some(drain) = drain_seconds {
            all.push(("MAILBELL_HTTP_LISTEN", format!("[::]:{HTTP_PORT}")));
            all.push(("MAILBELL_DRAIN", format!("{drain}s")));
        }
        all.extend(settings);
        let environment: Vec<Value> = all
            .into_iter()
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect();
        let port = port.map(|(name, number)| json!({ "name": name, "containerPort": number }));
        let http = serves.then(|| json!({ "name": "http", "containerPort": HTTP_PORT }));
        let mut container = json!({
            "name": part.as_str(),
            "image": self.image(),
            "args": command,
            "env": environment,
            "resources": pods.resources.as_ref().map_or(resources, |own| json!(own)),
            "securityContext": container_security(),
            "volumeMounts": mounts.iter().map(Mount::mount).collect::<Vec<_>>(),
        });
        if serves {
            merge(
                &mut container,
                json!({
                    "ports": present([port, http]),
                    // Three minutes: a process that hangs is started anew, and one that is busy is not.
                    "livenessProbe": probe("http", "/healthz", 20, 9),
                    "readinessProbe": probe("http", "/readyz", 5, 3),
                    "lifecycle": { "preStop": { "sleep": { "seconds": LEAVE_SECONDS } } },
                }),
            );
        }
        let mut spec = json!({
            "serviceAccountName": self.name(acts_as.unwrap_or(part)),
            "automountServiceAccountToken": acts_as.is_some(),
            "enableServiceLinks": false,
            "securityContext": pod_security(),
            "containers": [container],
            "volumes": mounts.iter().map(Mount::volume).collect::<Vec<_>>(),
        });
        if let Some(drain) = drain_seconds {
            let grace = LEAVE_SECONDS + drain + SPARE_SECONDS;
            merge(&mut spec, json!({ "terminationGracePeriodSeconds": grace }));
        }
        self.place(&mut spec, part, pods);
        self.template(part, pods, spec)
    }

    /// Where pods run, and by which Secrets their image is pulled: over nodes and zones, as far as there are any, and where the user wants.
    pub(super) fn place(&self, spec: &mut Value, part: Part, pods: &Pods) {
        // Each release of a Deployment by itself: else the pods of the one before weigh in, and both new ones may end on one node.
        let hash = match part {
            Part::Gateway | Part::Admin => vec!["pod-template-hash"],
            Part::Watcher | Part::Setup | Part::Secrets | Part::Nats => Vec::new(),
        };
        let spread = json!([{
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": self.selector(part) },
            "matchLabelKeys": hash,
        }]);
        merge(spec, json!({ "topologySpreadConstraints": spread }));
        // Not spread in the same way: where nodes name no zone, the scheduler would pass over both constraints (kube-scheduler 1.35).
        let apart = json!({
            "weight": 100,
            "podAffinityTerm": {
                "topologyKey": "topology.kubernetes.io/zone",
                "labelSelector": { "matchLabels": self.selector(part) },
                "matchLabelKeys": hash,
            },
        });
        merge(
            spec,
            json!({ "affinity": beside(apart, pods.affinity.as_ref()) }),
        );
        let secrets = &self.mailbell.spec.image_pull_secrets;
        if !secrets.is_empty() {
            let secrets: Vec<Value> = secrets.iter().map(|name| json!({ "name": name })).collect();
            merge(spec, json!({ "imagePullSecrets": secrets }));
        }
        if !pods.node_selector.is_empty() {
            merge(spec, json!({ "nodeSelector": pods.node_selector }));
        }
        if !pods.tolerations.is_empty() {
            merge(spec, json!({ "tolerations": pods.tolerations }));
        }
        if let Some(class) = &pods.priority_class_name {
            merge(spec, json!({ "priorityClassName": class }));
        }
    }

    pub(super) fn template(&self, part: Part, pods: &Pods, mut spec: Value) -> Value {
        add(&mut spec, pods);
        let mut labels = json!(pods.labels);
        merge(&mut labels, self.labels(part));
        json!({
            "metadata": { "labels": labels, "annotations": pods.annotations },
            "spec": spec,
        })
    }
}

/// Variables and volumes of the user, behind those of the operator. The API server refuses new ones with a name that the operator uses, but
/// keeps those that were there before a release uses it; it would take no pod with both.
fn add(spec: &mut Value, pods: &Pods) {
    let mounts = "/containers/0/volumeMounts";
    for (place, more, key) in [
        ("/containers/0/env", json!(pods.env), "name"),
        ("/volumes", json!(pods.volumes), "name"),
        (mounts, json!(pods.volume_mounts), "mountPath"),
    ] {
        if let (Some(Value::Array(all)), Value::Array(more)) = (spec.pointer_mut(place), more) {
            for one in more {
                if all.iter().all(|other| other.get(key) != one.get(key)) {
                    all.push(one);
                }
            }
        }
    }
}

/// What the user wants of placement, and this preference of other nodes than those with certain pods.
fn beside(preference: Value, wanted: Option<&Affinity>) -> Value {
    let mut affinity = json!(wanted);
    let path = "/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution";
    let mut preferences = match affinity.pointer(path) {
        Some(Value::Array(wanted)) => wanted.clone(),
        _ => Vec::new(),
    };
    preferences.push(preference);
    let preferences = json!({ "preferredDuringSchedulingIgnoredDuringExecution": preferences });
    merge(&mut affinity, json!({ "podAntiAffinity": preferences }));
    affinity
}
