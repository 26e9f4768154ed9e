//! What each role may publish and subscribe to: least privilege, tested by what is refused.
//!
//! Subjects of JetStream's API name one stream in one token, so each log and bucket is listed by itself. Reading a stream as a
//! whole needs `STREAM.INFO` (where it stands), `STREAM.MSG.GET` (one message, from the leader), `DIRECT.GET` (batches) and
//! `CONSUMER.CREATE` (to follow it); reading all of it in one pass, `CONSUMER.MSG.NEXT` too. Where a role may read only some keys
//! of a bucket, it gets `DIRECT.GET` and `CONSUMER.CREATE` with these keys at the end of the subject, and nothing else.
//!
//! # What the lists do not bound
//! They bound mistakes. A stored password stays sealed whoever reads it, since nothing in NATS opens one. Against a user that is
//! misused on purpose they are weaker than they look:
//!
//! * NATS does not check whether the creator of a push consumer may publish to its `deliver_subject` (nats-server 2.15, issue
//!   8274). Who may follow a stream in which bytes of its own lie can have the server write them to any subject, of another
//!   role's bucket too.
//! * Setup may change streams, and a stream can be told to republish what it gets, or to take its messages from elsewhere.
//!
//! So the integrity of records, the keys to which new passwords are sealed among them, rests on trust in the processes that hold
//! these users.

use mailbell_core::ids::{Group, Installation};

use crate::{
    Role,
    names::{Bucket, Names},
};

/// Allow lists of one NATS user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects it may publish to.
    pub publish: Vec<String>,
    /// Subjects it may subscribe to.
    pub subscribe: Vec<String>,
}

/// Where answers to this role come. Each process has its own subject below it.
#[must_use]
pub fn inbox_prefix(role: Role, installation: &Installation) -> String {
    format!("mb.{installation}.inbox.{}", role.as_str())
}

/// The user by which an admin API has NATS servers read their files again: with its own password, in the account `$SYS`, of which it sees
/// nothing else.
pub const SYSTEM_USER: &str = "admin-system";

/// Where answers to [`SYSTEM_USER`] come.
#[must_use]
pub fn system_inbox_prefix(installation: &Installation) -> String {
    format!("mb.{installation}.inbox.system")
}

/// What [`SYSTEM_USER`] may do.
#[must_use]
pub fn system_permissions(installation: &Installation) -> Permissions {
    Permissions {
        publish: vec!["$SYS.REQ.SERVER.*.RELOAD".to_owned()],
        subscribe: vec![format!("{}.>", system_inbox_prefix(installation))],
    }
}

/// What a role of an installation may do.
#[must_use]
pub fn permissions(role: Role, installation: &Installation) -> Permissions {
    let mut lists = Lists {
        names: Names::new(installation.clone()),
        publish: Vec::new(),
        subscribe: vec![format!("{}.>", inbox_prefix(role, installation))],
    };
    match role {
        Role::Watcher => lists.watcher(),
        Role::Gateway => lists.gateway(),
        Role::Admin => lists.admin(),
        Role::Setup => lists.setup(),
    }
    Permissions {
        publish: lists.publish,
        subscribe: lists.subscribe,
    }
}

struct Lists {
    names: Names,
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Lists {
    fn allow(&mut self, subject: String) {
        self.publish.push(subject);
    }

    fn api(&mut self, call: &str, stream: &str) {
        self.allow(format!("$JS.API.{call}.{stream}"));
    }

    /// Where it stands; none of its messages.
    fn look_at(&mut self, stream: &str) {
        self.api("STREAM.INFO", stream);
    }

    /// All of a stream.
    fn read(&mut self, stream: &str) {
        self.look_at(stream);
        self.api("STREAM.MSG.GET", stream);
        self.api("DIRECT.GET", stream);
        self.allow(format!("$JS.API.CONSUMER.CREATE.{stream}.>"));
        self.allow(format!("$JS.FC.{stream}.>"));
    }

    fn read_bucket(&mut self, bucket: Bucket) {
        self.read(&self.names.bucket_stream(bucket));
    }

    /// All of a bucket, in one pass.
    fn pass_over(&mut self, bucket: Bucket) {
        let stream = self.names.bucket_stream(bucket);
        self.allow(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"));
    }

    /// Some keys of a bucket.
    fn read_keys(&mut self, bucket: Bucket, keys: &[&str]) {
        let stream = self.names.bucket_stream(bucket);
        self.look_at(&stream);
        self.allow(format!("$JS.FC.{stream}.>"));
        for keys in keys {
            let subject = self.names.key_subject(bucket, keys);
            self.allow(format!("$JS.API.DIRECT.GET.{stream}.{subject}"));
            self.allow(format!("$JS.API.CONSUMER.CREATE.{stream}.*.{subject}"));
        }
    }

    fn write_keys(&mut self, bucket: Bucket, keys: &[&str]) {
        for keys in keys {
            self.allow(self.names.key_subject(bucket, keys));
        }
    }

    fn ask_owners(&mut self) {
        self.allow(format!("mb.{}.req.*", self.names.installation()));
    }

    /// Appends, owns, holds the secrets.
    fn watcher(&mut self) {
        let installation = self.names.installation().clone();
        for group in Group::all() {
            let log = self.names.log_stream(group);
            self.read(&log);
            self.allow(self.names.log_subjects(group));
            self.api("STREAM.PURGE", &log);
            for bucket in [
                Bucket::State(group),
                Bucket::Checkpoints(group),
                Bucket::Credentials(group),
            ] {
                self.read_bucket(bucket);
            }
            self.pass_over(Bucket::State(group));
            self.pass_over(Bucket::Checkpoints(group));
            self.write_keys(Bucket::State(group), &["status.>"]);
            self.write_keys(Bucket::Checkpoints(group), &[">"]);
            self.write_keys(Bucket::Credentials(group), &[">"]);
        }
        self.read_keys(Bucket::Control, &["meta", "log.*", "sealing.*"]);
        self.write_keys(Bucket::Control, &["log.*", "sealing.*"]);
        self.read_bucket(Bucket::Live);
        self.write_keys(Bucket::Live, &["member.*", "claim.*"]);
        self.subscribe.push(format!("mb.{installation}.req.*"));
        // Answers to those who ask owners; its own, to see that subscriptions have reached the server.
        for asker in [Role::Watcher, Role::Gateway, Role::Admin] {
            self.allow(format!("{}.>", inbox_prefix(asker, &installation)));
        }
    }

    /// Reads logs and what it needs to judge devices; no secrets, no checkpoints, no tokens of others.
    fn gateway(&mut self) {
        for group in Group::all() {
            self.read(&self.names.log_stream(group));
            self.read_bucket(Bucket::State(group));
        }
        self.read_keys(Bucket::Control, &["meta", "log.*", "issuer.*"]);
        self.write_keys(Bucket::Control, &["log.*"]);
        self.read_bucket(Bucket::Revoked);
        self.ask_owners();
    }

    /// Writes accounts and tokens; writes credentials, but cannot read them. Looks on how watchers share the partitions, and may
    /// ask one to drain.
    fn admin(&mut self) {
        for group in Group::all() {
            let log = self.names.log_stream(group);
            self.look_at(&log);
            self.api("STREAM.PURGE", &log);
            self.read_bucket(Bucket::State(group));
            self.read_bucket(Bucket::Checkpoints(group));
            self.write_keys(Bucket::State(group), &[">"]);
            self.write_keys(Bucket::Checkpoints(group), &[">"]);
            self.write_keys(Bucket::Credentials(group), &[">"]);
        }
        for bucket in [Bucket::Control, Bucket::Revoked, Bucket::Live] {
            self.read_bucket(bucket);
        }
        self.write_keys(Bucket::Live, &["drain.*"]);
        // By its subject too, as every role reads `meta` and `log.*`.
        self.read_keys(Bucket::Control, &["meta", "log.*"]);
        self.write_keys(
            Bucket::Control,
            &["log.*", "token.>", "external.>", "issuer.*"],
        );
        self.write_keys(Bucket::Revoked, &[">"]);
        self.ask_owners();
    }

    /// Makes streams and looks at them; reads no messages but what names the installation, and who its watchers are.
    fn setup(&mut self) {
        let logs = Group::all().map(|group| self.names.log_stream(group));
        let buckets = Bucket::all().map(|bucket| self.names.bucket_stream(bucket));
        let streams: Vec<String> = logs.chain(buckets).collect();
        for stream in streams {
            self.look_at(&stream);
            self.api("STREAM.CREATE", &stream);
            self.api("STREAM.UPDATE", &stream);
        }
        self.read_keys(Bucket::Control, &["meta", "log.*", "sealing.*"]);
        self.write_keys(Bucket::Control, &["meta", "log.*"]);
        self.read_bucket(Bucket::Live);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(role: Role) -> Permissions {
        permissions(role, &Installation::default())
    }

    fn mentions(permissions: &Permissions, text: &str) -> bool {
        permissions
            .publish
            .iter()
            .chain(&permissions.subscribe)
            .any(|subject| subject.contains(text))
    }

    #[test]
    fn nobody_may_everything() {
        for role in Role::ALL {
            let Permissions { publish, subscribe } = of(role);
            for subject in publish.iter().chain(&subscribe) {
                assert!(
                    subject.contains("main"),
                    "{subject} is not of this installation"
                );
            }
        }
    }

    #[test]
    fn secrets_are_for_watchers() {
        assert!(!mentions(&of(Role::Gateway), "CRED"));
        let read = [
            "STREAM.MSG.GET",
            "DIRECT.GET",
            "CONSUMER.CREATE",
            "CONSUMER.MSG.NEXT",
        ];
        for role in [Role::Admin, Role::Setup] {
            let publish = of(role).publish;
            assert!(
                !publish
                    .iter()
                    .any(|s| s.contains("CRED") && read.iter().any(|read| s.contains(read))),
                "{role:?}"
            );
        }
        for text in ["token", "external", "REVOKED"] {
            assert!(!mentions(&of(Role::Watcher), text), "{text}");
        }
    }

    #[test]
    fn only_watchers_answer_for_accounts() {
        for role in [Role::Gateway, Role::Admin, Role::Setup] {
            assert!(
                !of(role)
                    .subscribe
                    .iter()
                    .any(|subject| subject.contains(".req.")),
                "{role:?}"
            );
        }
    }
}
