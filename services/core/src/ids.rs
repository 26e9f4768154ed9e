//! Names of things: tenants, accounts, partitions, groups, folders, logs.

use std::{fmt, str::FromStr, sync::Arc};

use ulid::Ulid;
use xxhash_rust::xxh3::xxh3_64;

/// How many partitions an installation has. Fixed for its life (the `meta` record is checked at each start).
pub const PARTITIONS: u16 = 1024;
/// How many groups, each with one log, an installation has. Fixed for its life.
pub const GROUPS: u8 = 16;

/// What is wrong with a name that came from outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not `[a-z0-9-]{1,63}`.
    #[error("a tenant is 1 to 63 characters of a-z, 0-9 and '-'")]
    Tenant,
    /// Not `<tenant>.<ulid>`.
    #[error("an account id looks like default.01JD3Z0V3N8Q4T5R6S7W8X9Y0Z")]
    Account,
    /// Not `[a-z0-9-]{1,32}`.
    #[error("an installation's name is 1 to 32 characters of a-z, 0-9 and '-'")]
    Installation,
    /// Not `[A-Za-z0-9_-]{1,128}`.
    #[error(
        "a watcher's name is 1 to 128 characters of A-Z, a-z, 0-9, '_' and '-'; write what has dots, such as a host's full name, with '-'"
    )]
    Member,
}

fn is_label(text: &str, most: usize) -> bool {
    !text.is_empty()
        && text.len() <= most
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// One Mailbell. Its name prefixes every subject, stream and bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Installation(String);

impl Installation {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Installation {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl FromStr for Installation {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        is_label(text, 32)
            .then(|| Self(text.to_owned()))
            .ok_or(IdError::Installation)
    }
}

impl fmt::Display for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a watcher: a pod's, or a locked state directory's.
///
/// It is one token of a NATS key, so nothing in it may end a token or match others. Names with dots are refused rather than
/// escaped: what a person types, what stands in the bucket, and what is hashed to share out partitions are then the same text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(Box<str>);

impl MemberId {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MemberId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let good = (1..=128).contains(&text.len()) && text.bytes().all(allowed);
        good.then(|| Self(text.into())).ok_or(IdError::Member)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who owns accounts. Clones share the text: a process holds an id many times.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Tenant {
    fn default() -> Self {
        Self("default".into())
    }
}

impl FromStr for Tenant {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        is_label(text, 63)
            .then(|| Self(text.into()))
            .ok_or(IdError::Tenant)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One mailbox login, `<tenant>.<ulid>`; never used again for another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId {
    tenant: Tenant,
    ulid: Ulid,
}

impl AccountId {
    /// The account `ulid` of `tenant`.
    #[must_use]
    pub fn new(tenant: Tenant, ulid: Ulid) -> Self {
        Self { tenant, ulid }
    }

    /// Who owns it.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The unit of ownership that it belongs to: xxh3-64 of the id's text, modulo [`PARTITIONS`]. Frozen by test vectors.
    #[must_use]
    pub fn partition(&self) -> Partition {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder below 1024")]
        let number = (xxh3_64(self.to_string().as_bytes()) % u64::from(PARTITIONS)) as u16;
        Partition(number)
    }

    /// The unit of storage that it belongs to.
    #[must_use]
    pub fn group(&self) -> Group {
        self.partition().group()
    }
}

impl FromStr for AccountId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (tenant, ulid) = text.split_once('.').ok_or(IdError::Account)?;
        let tenant = tenant.parse().map_err(|_| IdError::Account)?;
        let parsed = Ulid::from_string(ulid).map_err(|_| IdError::Account)?;
        // One spelling only: the text is hashed and is part of subjects and keys.
        if parsed.to_string() != ulid {
            return Err(IdError::Account);
        }
        Ok(Self {
            tenant,
            ulid: parsed,
        })
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.tenant, self.ulid)
    }
}

/// The unit of ownership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(u16);

impl Partition {
    /// Partition `number`, if there is one.
    #[must_use]
    pub fn new(number: u16) -> Option<Self> {
        (number < PARTITIONS).then_some(Self(number))
    }

    /// Its number, below [`PARTITIONS`].
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// Every partition, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self)
    }

    /// Where it is stored.
    #[must_use]
    pub fn group(self) -> Group {
        #[expect(clippy::cast_possible_truncation, reason = "a remainder below 16")]
        Group((self.0 % u16::from(GROUPS)) as u8)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The unit of storage: one log and its buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group(u8);

impl Group {
    /// Group `number`, if there is one.
    #[must_use]
    pub fn new(number: u8) -> Option<Self> {
        (number < GROUPS).then_some(Self(number))
    }

    /// Its number, below [`GROUPS`].
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }

    /// Its number as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Every group, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..GROUPS).map(Self)
    }

    /// The partitions that it stores.
    pub fn partitions(self) -> impl Iterator<Item = Partition> {
        (0..PARTITIONS / u16::from(GROUPS))
            .map(move |n| Partition(n * u16::from(GROUPS) + u16::from(self.0)))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One value for each group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PerGroup<T>([T; GROUPS as usize]);

impl<T> PerGroup<T> {
    /// The value that `make` gives for each group.
    pub fn from_fn(mut make: impl FnMut(Group) -> T) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "an index below 16")]
        Self(std::array::from_fn(|index| make(Group(index as u8))))
    }

    /// Group and value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Group, &T)> {
        Group::all().zip(self.0.iter())
    }

    /// Group and value to change, in order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Group, &mut T)> {
        Group::all().zip(self.0.iter_mut())
    }
}

impl<T> std::ops::Index<Group> for PerGroup<T> {
    type Output = T;
    #[expect(
        clippy::indexing_slicing,
        reason = "a group's number is below 16 by construction"
    )]
    fn index(&self, group: Group) -> &T {
        &self.0[group.index()]
    }
}

impl<T> std::ops::IndexMut<Group> for PerGroup<T> {
    #[expect(
        clippy::indexing_slicing,
        reason = "a group's number is below 16 by construction"
    )]
    fn index_mut(&mut self, group: Group) -> &mut T {
        &mut self.0[group.index()]
    }
}

/// The random identity of one log's history. A log that was lost, cut or made anew has another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    /// From the bytes of a record.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A stream sequence up to which everything is known. 0: nothing is.
pub type Position = u64;
/// Counts the owners of a partition.
pub type OwnerEpoch = u64;
/// A small number of ours per account and folder; it stays over renames.
pub type FolderId = u32;
/// The folder that every account has.
pub const INBOX: FolderId = 1;
/// A folder's UIDVALIDITY (RFC 9051, 2.3.1.1).
pub type Generation = u32;
/// A message's UID within one generation.
pub type Uid = u32;

#[cfg(test)]
mod tests {
    use super::*;

    /// Frozen: a change here would move every account of every installation to another partition.
    #[test]
    fn partitions_are_frozen() {
        for (id, partition) in [
            ("default.00000000000000000000000000", 193),
            ("default.01ARZ3NDEKTSV4RRFFQ69G5FAV", 208),
            ("acme-1.7ZZZZZZZZZZZZZZZZZZZZZZZZZ", 1006),
        ] {
            let id: AccountId = id.parse().unwrap();
            assert_eq!(id.partition().number(), partition, "{id}");
            assert_eq!(u16::from(id.group().number()), partition % 16);
        }
    }

    #[test]
    fn ids_have_one_spelling() {
        for bad in [
            "",
            "default",
            "default.",
            ".01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "default.01arz3ndektsv4rrffq69g5fav",
            "default.01ARZ3NDEKTSV4RRFFQ69G5FA",
            "default.8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "De.01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "a.b.01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "a*.01ARZ3NDEKTSV4RRFFQ69G5FAV",
        ] {
            assert_eq!(bad.parse::<AccountId>(), Err(IdError::Account), "{bad:?}");
        }
        assert!("a".repeat(64).parse::<Tenant>().is_err());
        assert!("a".repeat(63).parse::<Tenant>().is_ok());
    }

    #[test]
    fn a_member_is_one_token_of_a_key() {
        for good in ["a", "mailbell-watcher-0", "Host_1", &"a".repeat(128)] {
            assert_eq!(good.parse::<MemberId>().unwrap().as_str(), good);
        }
        for bad in ["", "a.b", "*", ">", "a b", "a/b", "ä", &"a".repeat(129)] {
            assert_eq!(bad.parse::<MemberId>(), Err(IdError::Member), "{bad:?}");
        }
    }

    #[test]
    fn groups_share_out_the_partitions() {
        let mut seen: Vec<_> = Group::all().flat_map(Group::partitions).collect();
        seen.sort();
        assert_eq!(seen, Partition::all().collect::<Vec<_>>());
        for group in Group::all() {
            assert!(
                group
                    .partitions()
                    .all(|partition| partition.group() == group)
            );
        }
        assert_eq!(Partition::new(PARTITIONS), None);
        assert_eq!(Group::new(GROUPS), None);
    }
}
