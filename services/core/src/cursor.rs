//! The resume point of a device: which log, and up to where, for every group. Opaque to clients.

use bytes::{BufMut as _, Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::ids::{AccountId, GROUPS, LogId, PerGroup, Position, Tenant};

/// The version that this release writes, and the only one that it reads: another one means Resync.
const VERSION: u8 = 1;
const ENTRY: usize = 16 + 8;
/// How long an encoded cursor is: version, an entry a group, checksum.
pub const ENCODED_LEN: usize = 1 + GROUPS as usize * ENTRY + 8;

/// Where a device stands in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Which history.
    pub log_id: LogId,
    /// Everything that was due to the device up to here came before.
    pub position: Position,
}

/// Where a device stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor(pub PerGroup<Place>);

/// The bytes are no cursor of this release: damaged, cut, or of another version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this release")]
pub struct CursorError;

impl Cursor {
    /// The bytes that a device gets.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(ENCODED_LEN);
        bytes.put_u8(VERSION);
        for (_, place) in self.0.iter() {
            bytes.put_slice(&place.log_id.0);
            bytes.put_u64(place.position);
        }
        let sum = xxh3_64(&bytes);
        bytes.put_u64(sum);
        bytes.freeze()
    }

    /// Reads what a device presents.
    ///
    /// # Errors
    /// Whatever is not exactly what [`Cursor::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CursorError> {
        if bytes.len() != ENCODED_LEN {
            return Err(CursorError);
        }
        let (body, sum) = bytes.split_at(ENCODED_LEN - 8);
        let sum = sum.try_into().map_err(|_| CursorError)?;
        if xxh3_64(body) != u64::from_be_bytes(sum) {
            return Err(CursorError);
        }
        let (version, entries) = body.split_first().ok_or(CursorError)?;
        if *version != VERSION {
            return Err(CursorError);
        }
        let mut entries = entries.chunks_exact(ENTRY).map(|entry| {
            let (log_id, position) = entry.split_at(16);
            Some(Place {
                log_id: LogId::from_slice(log_id)?,
                position: u64::from_be_bytes(position.try_into().ok()?),
            })
        });
        let mut whole = true;
        let groups = PerGroup::from_fn(|_| {
            entries.next().flatten().unwrap_or_else(|| {
                whole = false;
                Place::default()
            })
        });
        whole.then_some(Self(groups)).ok_or(CursorError)
    }
}

/// What a stream is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// These accounts; sorted, each once.
    Accounts(Vec<AccountId>),
    /// Every account of a tenant, also those that come later.
    Tenant(Tenant),
}

impl Subject {
    /// These accounts, sorted, each once.
    #[must_use]
    pub fn accounts(accounts: impl IntoIterator<Item = AccountId>) -> Self {
        let mut accounts: Vec<_> = accounts.into_iter().collect();
        accounts.sort();
        accounts.dedup();
        Self::Accounts(accounts)
    }

    /// Whether an account is part of it.
    #[must_use]
    pub fn covers(&self, account: &AccountId) -> bool {
        match self {
            Self::Accounts(accounts) => accounts.binary_search(account).is_ok(),
            Self::Tenant(tenant) => account.tenant() == tenant,
        }
    }
}

/// The digest of what is subscribed, which a client presents beside its cursor: a cursor proves nothing about an account or a
/// kind that its stream was not about. `kinds` is a bit set by number of the kind.
#[must_use]
pub fn digest(subject: &Subject, kinds: u32) -> Bytes {
    let mut hash = Xxh3::new();
    hash.update(&[VERSION]);
    hash.update(&kinds.to_le_bytes());
    match subject {
        Subject::Accounts(accounts) => {
            for account in accounts {
                hash.update(account.to_string().as_bytes());
                hash.update(b"\n");
            }
        }
        Subject::Tenant(tenant) => {
            hash.update(b"tenant ");
            hash.update(tenant.as_str().as_bytes());
        }
    }
    Bytes::copy_from_slice(&hash.digest128().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cursor(seed: u64) -> Cursor {
        Cursor(PerGroup::from_fn(|group| Place {
            log_id: LogId([group.number(); 16]),
            position: seed ^ u64::from(group.number()),
        }))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(seed in any::<u64>()) {
            let bytes = cursor(seed).encode();
            prop_assert_eq!(bytes.len(), ENCODED_LEN);
            prop_assert_eq!(Cursor::decode(&bytes), Ok(cursor(seed)));
        }

        #[test]
        fn damage_is_noticed(seed in any::<u64>(), at in 0..ENCODED_LEN, flip in 1u8..) {
            let mut bytes = cursor(seed).encode().to_vec();
            bytes[at] ^= flip;
            prop_assert_eq!(Cursor::decode(&bytes), Err(CursorError));
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..2 * ENCODED_LEN)) {
            prop_assert!(Cursor::decode(&bytes).is_err());
        }
    }

    #[test]
    fn digests_tell_subscriptions_apart() {
        let one: AccountId = "a.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let two: AccountId = "a.01ARZ3NDEKTSV4RRFFQ69G5FAW".parse().unwrap();
        let both = Subject::accounts([two.clone(), one.clone(), two.clone()]);
        assert_eq!(
            digest(&both, 1),
            digest(&Subject::accounts([one.clone(), two.clone()]), 1)
        );
        assert_ne!(digest(&both, 1), digest(&both, 2));
        assert_ne!(
            digest(&both, 1),
            digest(&Subject::accounts([one.clone()]), 1)
        );
        let tenant = Subject::Tenant("a".parse().unwrap());
        assert_ne!(digest(&both, 1), digest(&tenant, 1));
        assert!(both.covers(&one) && tenant.covers(&two));
        assert!(!Subject::accounts([one]).covers(&two));
    }
}
