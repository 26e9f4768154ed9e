//! What an installation is made of: from what is wanted, every object, and nothing but that.
//!
//! Pure, so that a snapshot shows each object as the cluster gets it, and a change of one is a change of a file that somebody reads.
//! They come in [`Stage`]s: nothing of a stage is applied before the one before it is usable, so that the schema of what is stored is
//! checked before anything new starts (docs/upgrading.md). Releases that follow each other work together, so that the order of the roles
//! is free but for this: an admin API is ready only once a watcher has offered a key to seal passwords to.

mod nats;
mod network;
mod pod;
mod quantity;
mod roles;
mod secrets;

pub use nats::{MONITOR_PORT, nats_certificate};
pub(crate) use roles::{POLICY_FILE, policy_name};
pub use roles::{Sizes, gateway_pods, sizes};

use std::hash::Hasher;

use kube::{Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use crate::api::Mailbell;

pub(crate) use self::roles::ADMIN_PORT;

/// By whom objects are applied, and by which label they are found.
pub const MANAGER: &str = "mailbell-operator";

/// What is wanted, and what the operator adds to it.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The object of the user.
    pub mailbell: &'a Mailbell,
    /// The image of an installation that names none.
    pub image: &'a str,
    /// How many watchers the mailboxes need now.
    pub watchers: i32,
    /// How many gateways the devices need now.
    pub gateways: i32,
    /// What watchers are told of tenants and mail providers, as [`crate::policy`] makes it. `None`: what they were told stays.
    pub policy: Option<&'a str>,
    /// By which ports the API server is reached: of its service, and of the servers behind it.
    pub api_server_ports: &'a [u16],
}

/// The annotation of what has no pods while its installation is paused: how many there were before, and are to be again.
pub(crate) const REPLICAS: &str = "mailbell.dev/replicas";

/// On most clusters.
pub const API_SERVER_PORTS: [u16; 2] = [443, 6443];

/// The stage of what watchers go by.
pub(crate) const POLICY: &str = "the policy";

/// What must be done before what follows is begun.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// What it is about, for a sentence in the status.
    pub name: &'static str,
    /// In the order in which they are applied.
    pub objects: Vec<Value>,
}

/// Every object of an installation.
#[must_use]
pub fn desired(wanted: &Wanted<'_>) -> Vec<Stage> {
    let stage = |name, objects| Stage { name, objects };
    vec![
        // First, and of no other: what is said while something is wrong must count.
        stage(POLICY, roles::policy(wanted)),
        stage("the network", network::objects(wanted)),
        stage("the Secrets", secrets::objects(wanted)),
        stage("the NATS servers", nats::objects(wanted)),
        stage("the setup of what is stored", roles::setup(wanted)),
        stage("the gateways", roles::gateway(wanted)),
        stage("the watchers", roles::watcher(wanted)),
        stage("the admin API", roles::admin(wanted)),
        stage("the end of the upgrade", roles::finish(wanted)),
    ]
}

/// The parts of an installation, as labels and names have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Watcher,
    Gateway,
    Admin,
    Setup,
    Secrets,
    Nats,
}

impl Part {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Watcher => "watcher",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
            Self::Setup => "setup",
            Self::Secrets => "secrets",
            Self::Nats => "nats",
        }
    }
}

impl Wanted<'_> {
    fn installation(&self) -> String {
        self.mailbell.name_any()
    }

    /// The name of what there is one of for each part.
    fn name(&self, part: Part) -> String {
        format!("{}-{}", self.installation(), part.as_str())
    }

    fn image(&self) -> &str {
        let named = self.mailbell.spec.image.as_deref();
        named.unwrap_or(self.image)
    }

    /// By which the pods of a part are found. They never change: a StatefulSet keeps its first ones.
    fn selector(&self, part: Part) -> Value {
        json!({
            "app.kubernetes.io/name": "mailbell",
            "app.kubernetes.io/instance": self.installation(),
            "app.kubernetes.io/component": part.as_str(),
        })
    }

    fn labels(&self, part: Part) -> Value {
        let mut labels = self.selector(part);
        merge(
            &mut labels,
            json!({
                "app.kubernetes.io/part-of": "mailbell",
                "app.kubernetes.io/managed-by": MANAGER,
            }),
        );
        labels
    }

    /// An object of this installation, which goes with it.
    fn object(&self, api: &str, kind: &str, name: &str, part: Part, content: Value) -> Value {
        let mut object = json!({
            "apiVersion": api,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": self.mailbell.namespace(),
                "labels": self.labels(part),
                "ownerReferences": [self.mailbell.controller_owner_ref(&())],
            },
        });
        merge(&mut object, content);
        object
    }

    /// The least of the pods of a part that stay while nodes are drained: all but one.
    fn disruption_budget(&self, part: Part) -> Value {
        let unhealthy = match part {
            // Not ready for want of one another, or of NATS, all of them hold what would be lost: votes, and sessions.
            Part::Nats | Part::Watcher => "IfHealthyBudget",
            // One that is not ready serves nobody, and must not keep a node from being drained.
            Part::Gateway | Part::Admin | Part::Setup | Part::Secrets => "AlwaysAllow",
        };
        let content = json!({
            "spec": {
                "maxUnavailable": 1,
                "selector": { "matchLabels": self.selector(part) },
                "unhealthyPodEvictionPolicy": unhealthy,
            },
        });
        self.object(
            "policy/v1",
            "PodDisruptionBudget",
            &self.name(part),
            part,
            content,
        )
    }

    /// Pods get no token of it, but for those that say so: the others do not speak to the API server.
    fn service_account(&self, part: Part) -> Value {
        let content = json!({ "automountServiceAccountToken": false });
        self.object("v1", "ServiceAccount", &self.name(part), part, content)
    }
}

/// Puts the fields of one object into another, deeply; what is there already gives way.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                match into.get_mut(&name) {
                    Some(there) => merge(there, value),
                    None => {
                        into.insert(name, value);
                    }
                }
            }
        }
        (into, from) => *into = from,
    }
}

/// Ten letters of an object: another one, others.
pub(crate) fn digest(object: &Value) -> String {
    // Of the text, in which fields are sorted by name.
    let mut hasher = Fnv::default();
    hasher.write(object.to_string().as_bytes());
    format!("{:016x}", hasher.finish())
        .chars()
        .take(10)
        .collect()
}

/// FNV-1a, which is the same in each release of Rust and on each machine.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// A list without what is not there.
fn present<const N: usize>(all: [Option<Value>; N]) -> Vec<Value> {
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
