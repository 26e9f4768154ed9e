//! Subjects, streams, buckets and keys of an installation.

use mailbell_core::ids::{AccountId, Group, Installation, Partition, Tenant};

/// Every name that starts with the installation's.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    installation: Installation,
}

/// A bucket, which is a stream with one value a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Bucket {
    State(Group),
    Checkpoints(Group),
    Credentials(Group),
    Control,
    Live,
    Revoked,
}

impl Bucket {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Group::all()
            .map(Self::State)
            .chain(Group::all().map(Self::Checkpoints))
            .chain(Group::all().map(Self::Credentials))
            .chain([Self::Control, Self::Live, Self::Revoked])
    }
}

impl Names {
    pub(crate) fn new(installation: Installation) -> Self {
        Self { installation }
    }

    pub(crate) fn installation(&self) -> &Installation {
        &self.installation
    }

    pub(crate) fn log_stream(&self, group: Group) -> String {
        format!("MB_{}_LOG_{group}", self.installation)
    }

    pub(crate) fn log_subjects(&self, group: Group) -> String {
        format!("mb.{}.log.{group}.>", self.installation)
    }

    pub(crate) fn log_partition_subjects(&self, partition: Partition) -> String {
        format!(
            "mb.{}.log.{}.{partition}.>",
            self.installation,
            partition.group()
        )
    }

    /// Those of a tenant's accounts in a group's log.
    pub(crate) fn log_tenant_subjects(&self, group: Group, tenant: &Tenant) -> String {
        format!("mb.{}.log.{group}.*.{tenant}.*", self.installation)
    }

    pub(crate) fn log_subject(&self, account: &AccountId) -> String {
        let partition = account.partition();
        format!(
            "mb.{}.log.{}.{partition}.{account}",
            self.installation,
            partition.group()
        )
    }

    /// The account whose event has this subject.
    pub(crate) fn account_of(&self, subject: &str) -> Option<AccountId> {
        let rest = subject
            .strip_prefix("mb.")?
            .strip_prefix(self.installation.as_str())?
            .strip_prefix(".log.")?;
        let mut parts = rest.splitn(3, '.');
        let (group, partition, account) = (parts.next()?, parts.next()?, parts.next()?);
        let account: AccountId = account.parse().ok()?;
        let belongs = account.partition();
        (partition == belongs.to_string() && group == belongs.group().to_string())
            .then_some(account)
    }

    pub(crate) fn request_subject(&self, partition: Partition) -> String {
        format!("mb.{}.req.{partition}", self.installation)
    }

    pub(crate) fn bucket(&self, bucket: Bucket) -> String {
        let installation = &self.installation;
        match bucket {
            Bucket::State(group) => format!("MB_{installation}_STATE_{group}"),
            Bucket::Checkpoints(group) => format!("MB_{installation}_CKPT_{group}"),
            Bucket::Credentials(group) => format!("MB_{installation}_CRED_{group}"),
            Bucket::Control => format!("MB_{installation}_CTL"),
            Bucket::Live => format!("MB_{installation}_LIVE"),
            Bucket::Revoked => format!("MB_{installation}_REVOKED"),
        }
    }

    pub(crate) fn bucket_stream(&self, bucket: Bucket) -> String {
        format!("KV_{}", self.bucket(bucket))
    }

    /// The subject of a key, or of several with wildcards.
    pub(crate) fn key_subject(&self, bucket: Bucket, key: &str) -> String {
        format!("$KV.{}.{key}", self.bucket(bucket))
    }

    /// The key of a subject of a bucket.
    pub(crate) fn key_of<'a>(&self, bucket: Bucket, subject: &'a str) -> Option<&'a str> {
        subject
            .strip_prefix("$KV.")?
            .strip_prefix(&self.bucket(bucket))?
            .strip_prefix('.')
    }
}

/// `<p>.<tenant>.<ulid>`, the end of each key of an account.
pub(crate) fn account_key(account: &AccountId) -> String {
    format!("{}.{account}", account.partition())
}

/// The account of a key that ends in `<p>.<tenant>.<ulid>`.
pub(crate) fn account_of_key(key: &str) -> Option<AccountId> {
    let (partition, account) = key.split_once('.')?;
    let account: AccountId = account.parse().ok()?;
    (partition == account.partition().to_string()).then_some(account)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_name_their_account() {
        let names = Names::new("one".parse().unwrap());
        let account: AccountId = "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let subject = names.log_subject(&account);
        assert_eq!(
            subject,
            "mb.one.log.0.208.default.01ARZ3NDEKTSV4RRFFQ69G5FAV"
        );
        assert_eq!(names.account_of(&subject), Some(account.clone()));
        for wrong in [
            "mb.two.log.0.208.default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "mb.one.log.1.208.default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "mb.one.log.0.209.default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "mb.one.log.0.208.default",
        ] {
            assert_eq!(names.account_of(wrong), None, "{wrong}");
        }
        assert_eq!(account_of_key(&account_key(&account)), Some(account));
        assert_eq!(
            account_of_key("209.default.01ARZ3NDEKTSV4RRFFQ69G5FAV"),
            None
        );
    }

    #[test]
    fn an_installation_has_51_buckets() {
        let names = Names::new("one".parse().unwrap());
        let mut all: Vec<_> = Bucket::all().map(|bucket| names.bucket(bucket)).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 51);
    }
}
