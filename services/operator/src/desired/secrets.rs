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
    let mut unless = |named: Option<&str>, made| {
        if named.is_none() {
            needed.push(made);
        }
    };
    if let Some(managed) = &spec.nats.managed {
        unless(managed.users_secret.as_deref(), "nats-users");
        unless(managed.tls_secret(), "nats-tls");
    }
    unless(spec.admin.token_secret.as_deref(), "admin-token");
    unless(spec.admin.signing_key_secret.as_deref(), "signing-key");
    objects.push(made_by(wanted, Part::Secrets, "secrets", needed));
    if spec.watchers.key_ring_secret.is_none() {
        let keys = vec!["secrets", "key-ring"];
        objects.push(made_by(wanted, Part::Watcher, "key-ring", keys));
    }
    objects
}

impl Wanted<'_> {
    /// The Secret that the user names, or else the one that is made.
    pub(super) fn secret(&self, named: Option<&str>, made: &str) -> String {
        named.map_or_else(|| format!("{}-{made}", self.installation()), str::to_owned)
    }
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
