//! The Secrets that nobody has brought, made by jobs that may fill them and nothing else: the operator itself may read none of them.

use serde_json::Value;

use super::{
    Part, Wanted,
    pod::Pod,
    roles::{job, resources, wherever_watchers_run},
};

pub(super) fn objects(wanted: &Wanted<'_>) -> Vec<Value> {
    // Before the watchers themselves: the keys to passwords are made by their account, which alone may read them.
    let mut objects = vec![wanted.service_account(Part::Watcher)];
    let spec = &wanted.mailbell.spec;
    if !spec.generate_secrets {
        return objects;
    }
    objects.push(wanted.service_account(Part::Secrets));
    let mut needed = vec!["secrets", "operator-token"];
    if spec.nats.managed.is_some() {
        needed.extend(["nats-users", "nats-tls"]);
    }
    if spec.admin.token_secret.is_none() {
        needed.push("admin-token");
    }
    if spec.admin.signing_key_secret.is_none() {
        needed.push("signing-key");
    }
    objects.push(made_by(wanted, Part::Secrets, "secrets", needed));
    let keys = vec!["secrets", "key-ring"];
    objects.push(made_by(wanted, Part::Watcher, "key-ring", keys));
    objects
}

/// A job that has the rights of this part.
fn made_by(wanted: &Wanted<'_>, account: Part, name: &str, command: Vec<&'static str>) -> Value {
    let template = wanted.pod(Pod {
        part: Part::Secrets,
        acts_as: Some(account),
        command,
        settings: Vec::new(),
        files: Vec::new(),
        port: None,
        drain_seconds: None,
        pods: &wherever_watchers_run(wanted),
        resources: resources("50m", "64Mi"),
    });
    job(wanted, Part::Secrets, name, template)
}
