//! What an operator has to be allowed. The chart gives it (`templates/rbac.yaml`), and a test compares both.

use crate::desired::MANAGER;

/// What may be done with objects of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// Their API group; empty: that of pods.
    pub group: &'static str,
    /// Their plural, with what of them it is about after a `/`.
    pub resource: &'static str,
    /// The one object; `None`: all.
    pub name: Option<&'static str>,
    /// What may be done with them.
    pub verbs: &'static [&'static str],
}

const fn all(group: &'static str, resource: &'static str, verbs: &'static [&'static str]) -> Right {
    Right {
        group,
        resource,
        name: None,
        verbs,
    }
}

const READ: &[&str] = &["get", "list", "watch"];
const STATUS: &[&str] = &["get", "patch"];
/// Of what it makes.
const OWN: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// In each namespace that it looks after.
pub const RIGHTS: [Right; 17] = [
    all("mailbell.dev", "mailbells", READ),
    all("mailbell.dev", "mailbells/status", STATUS),
    all("mailbell.dev", "mailbells/finalizers", &["update"]),
    all(
        "mailbell.dev",
        "mailaccounts",
        &["get", "list", "watch", "patch"],
    ),
    all("mailbell.dev", "mailaccounts/status", STATUS),
    all("mailbell.dev", "mailproviders", READ),
    all("mailbell.dev", "mailproviders/status", STATUS),
    all("apps", "deployments", OWN),
    all("apps", "statefulsets", OWN),
    all("batch", "jobs", OWN),
    all("", "configmaps", OWN),
    all("", "serviceaccounts", OWN),
    all("", "services", OWN),
    all("policy", "poddisruptionbudgets", OWN),
    all("networking.k8s.io", "networkpolicies", OWN),
    all("gateway.networking.k8s.io", "grpcroutes", OWN),
    all("events.k8s.io", "events", &["create", "patch"]),
];

/// Of each Secret that it reads, by name: the token of an installation, and passwords of MailAccounts.
pub const SECRETS: Right = all("", "secrets", &["get"]);

/// Of its lease, where the operator is.
pub const LEASE: [Right; 2] = [
    all("coordination.k8s.io", "leases", &["create"]),
    Right {
        group: "coordination.k8s.io",
        resource: "leases",
        name: Some(MANAGER),
        verbs: &["get", "update"],
    },
];
