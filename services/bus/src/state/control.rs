//! Records of an installation as a whole: external ids, tokens, issuers, sealing keys, revocations.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mailbell_core::ids::{AccountId, Group, Tenant};
use mailbell_proto::bus::v1::{Issuer, SealingKey, TokenRecord};
use sha2::{Digest as _, Sha256};

use super::{Cas, Page, PageToken, Versioned, Watch, records::decode, watch::Watched};
use crate::{Bus, BusError, names::Bucket};

/// What has no groups is told as of this one.
fn no_group() -> impl Iterator<Item = Group> {
    Group::all().take(1)
}

impl Bus {
    /// The callers' own ids of accounts.
    #[must_use]
    pub fn external_ids(&self) -> ExternalIds {
        ExternalIds { bus: self.clone() }
    }

    /// Token records.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        Tokens { bus: self.clone() }
    }

    /// Who may sign device tokens.
    #[must_use]
    pub fn issuers(&self) -> Issuers {
        Issuers { bus: self.clone() }
    }

    /// The public halves of the watchers' keys.
    #[must_use]
    pub fn sealing_keys(&self) -> SealingKeys {
        SealingKeys { bus: self.clone() }
    }

    /// Revoked tokens.
    #[must_use]
    pub fn revocations(&self) -> Revocations {
        Revocations { bus: self.clone() }
    }
}

/// External ids (`CTL external.<tenant>.<hash>`).
#[derive(Debug, Clone)]
pub struct ExternalIds {
    bus: Bus,
}

impl ExternalIds {
    /// Gives the id to this account, unless another has it; returns the one that has it. Call it before anything else of a
    /// new account is written, so that two admin processes can't make two accounts of one external id.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn claim(
        &self,
        tenant: &Tenant,
        external_id: &str,
        account: &AccountId,
    ) -> Result<AccountId, BusError> {
        let key = external_key(tenant, external_id);
        let value: Bytes = account.to_string().into();
        match self.bus.kv_create(Bucket::Control, &key, value).await? {
            Cas::Stored(_) => Ok(account.clone()),
            Cas::Conflict => {
                // Freed in between, it can be claimed again by another call.
                self.get(tenant, external_id)
                    .await?
                    .ok_or(BusError::Record(key))
            }
        }
    }

    /// The account that has it.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn get(
        &self,
        tenant: &Tenant,
        external_id: &str,
    ) -> Result<Option<AccountId>, BusError> {
        let found = self.find(&external_key(tenant, external_id)).await?;
        Ok(found.map(|found| found.value))
    }

    async fn find(&self, key: &str) -> Result<Option<Versioned<AccountId>>, BusError> {
        let Some(message) = self.bus.kv_get(Bucket::Control, key).await? else {
            return Ok(None);
        };
        let account = std::str::from_utf8(&message.payload)
            .ok()
            .and_then(|text| text.parse().ok());
        let value = account.ok_or_else(|| BusError::Record(key.to_owned()))?;
        Ok(Some(Versioned {
            value,
            revision: message.sequence,
        }))
    }

    /// Frees it if this account has it: another one that has got it meanwhile keeps it.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn free(
        &self,
        tenant: &Tenant,
        external_id: &str,
        account: &AccountId,
    ) -> Result<(), BusError> {
        let key = external_key(tenant, external_id);
        match self.find(&key).await? {
            // A conflict: somebody else has freed it, and maybe another has it already.
            Some(found) if found.value == *account => self
                .bus
                .kv_delete_at(Bucket::Control, &key, found.revision)
                .await
                .map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// Token records (`CTL token.<tenant>.<id>`). They hold no token.
#[derive(Debug, Clone)]
pub struct Tokens {
    bus: Bus,
}

impl Tokens {
    /// Writes the record of a token, under its own tenant and id (`[a-zA-Z0-9-]`).
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn put(&self, record: &TokenRecord) -> Result<u64, BusError> {
        let tenant: Tenant = record
            .tenant
            .parse()
            .map_err(|_| BusError::Options("a token without a tenant".to_owned()))?;
        let key = token_key(&tenant, &record.id)?;
        self.bus.put_record(Bucket::Control, &key, record).await
    }

    /// The record, from the leader.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn get(
        &self,
        tenant: &Tenant,
        id: &str,
    ) -> Result<Option<Versioned<TokenRecord>>, BusError> {
        self.bus
            .record(Bucket::Control, &token_key(tenant, id)?)
            .await
    }

    /// Forgets the record. The token itself is ended by [`Revocations::revoke`].
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, tenant: &Tenant, id: &str) -> Result<(), BusError> {
        self.bus
            .kv_delete(Bucket::Control, &token_key(tenant, id)?)
            .await
    }

    /// A page of at most `limit` (1 to 1000) records, of one tenant or of all.
    ///
    /// # Errors
    /// Why NATS did not answer; [`BusError::Options`] for a token that is none.
    pub async fn list(
        &self,
        tenant: Option<&Tenant>,
        limit: usize,
        token: Option<&PageToken>,
    ) -> Result<Page<(Tenant, String), TokenRecord>, BusError> {
        let keys = match tenant {
            Some(tenant) => format!("token.{tenant}.*"),
            None => "token.*.*".to_owned(),
        };
        self.bus
            .page(
                &[Bucket::Control],
                &keys,
                |key| tenant_and_id(key.strip_prefix("token.")?),
                limit,
                token,
            )
            .await
    }
}

/// Issuers (`CTL issuer.<kid>`).
#[derive(Debug, Clone)]
pub struct Issuers {
    bus: Bus,
}

impl Issuers {
    /// Writes an issuer under its own key id (`[a-zA-Z0-9-]`).
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn put(&self, issuer: &Issuer) -> Result<u64, BusError> {
        self.bus
            .put_record(
                Bucket::Control,
                &format!("issuer.{}", word(&issuer.kid)?),
                issuer,
            )
            .await
    }

    /// Forgets an issuer: its tokens are refused from then on.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, kid: &str) -> Result<(), BusError> {
        self.bus
            .kv_delete(Bucket::Control, &format!("issuer.{}", word(kid)?))
            .await
    }

    /// Watches all issuers, by key id.
    #[must_use]
    pub fn watch(&self) -> Watch<String, Issuer> {
        let key = |key: &str| key.strip_prefix("issuer.").map(ToOwned::to_owned);
        Watched {
            keys: "issuer.*",
            key,
            value: decode,
            confirm: false,
        }
        .start(&self.bus, no_group().map(|group| (group, Bucket::Control)))
    }
}

/// Sealing keys (`CTL sealing.<key id>`).
#[derive(Debug, Clone)]
pub struct SealingKeys {
    bus: Bus,
}

impl SealingKeys {
    /// Offers a key under its own id (`[a-zA-Z0-9-]`).
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn put(&self, key: &SealingKey) -> Result<u64, BusError> {
        self.bus
            .put_record(
                Bucket::Control,
                &format!("sealing.{}", word(&key.key_id)?),
                key,
            )
            .await
    }

    /// Withdraws a key.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, key_id: &str) -> Result<(), BusError> {
        self.bus
            .kv_delete(Bucket::Control, &format!("sealing.{}", word(key_id)?))
            .await
    }

    /// Watches all keys, by key id.
    #[must_use]
    pub fn watch(&self) -> Watch<String, SealingKey> {
        let key = |key: &str| key.strip_prefix("sealing.").map(ToOwned::to_owned);
        Watched {
            keys: "sealing.*",
            key,
            value: decode,
            confirm: false,
        }
        .start(&self.bus, no_group().map(|group| (group, Bucket::Control)))
    }
}

/// That a token is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// When the token expires anyway, in milliseconds since the epoch; the record goes then.
    pub expires_at_ms: i64,
}

/// Revoked tokens (`REVOKED <tenant>.<id>`).
#[derive(Debug, Clone)]
pub struct Revocations {
    bus: Bus,
}

impl Revocations {
    /// Revokes a token until it expires anyway. A token that has expired needs none.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn revoke(
        &self,
        tenant: &Tenant,
        id: &str,
        expires_at_ms: i64,
    ) -> Result<(), BusError> {
        let left = Duration::from_millis(u64::try_from(expires_at_ms).unwrap_or(0)).saturating_sub(
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
        );
        if left.is_zero() {
            return Ok(());
        }
        // Longer than the token by the clock of whoever looks at it.
        let keep = left + CLOCKS;
        let value: Bytes = expires_at_ms.to_string().into();
        let key = format!("{tenant}.{}", word(id)?);
        self.bus
            .kv_put(Bucket::Revoked, &key, value, Some(keep))
            .await
            .map(|_| ())
    }

    /// Watches all revocations. Whoever judges tokens is ready only after [`super::Change::Loaded`].
    #[must_use]
    pub fn watch(&self) -> Watch<(Tenant, String), Revoked> {
        let value = |value: Bytes| {
            let expires_at_ms = std::str::from_utf8(&value).ok()?.parse().ok()?;
            Some(Revoked { expires_at_ms })
        };
        Watched {
            keys: ">",
            key: tenant_and_id,
            value,
            confirm: true,
        }
        .start(&self.bus, no_group().map(|group| (group, Bucket::Revoked)))
    }
}

/// How far apart the clocks of two machines may be.
const CLOCKS: Duration = Duration::from_secs(300);

/// A part of a key that came from outside.
fn word(text: &str) -> Result<&str, BusError> {
    let good = !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if good {
        Ok(text)
    } else {
        Err(BusError::Options(
            "an id is 1 to 64 characters of a-z, A-Z, 0-9, '-' and '_'".to_owned(),
        ))
    }
}

fn token_key(tenant: &Tenant, id: &str) -> Result<String, BusError> {
    Ok(format!("token.{tenant}.{}", word(id)?))
}

fn tenant_and_id(key: &str) -> Option<(Tenant, String)> {
    let (tenant, id) = key.split_once('.')?;
    Some((tenant.parse().ok()?, id.to_owned()))
}

/// The caller's id is any text, so its digest stands in the key: 128 bits, since a collision would join two accounts.
fn external_key(tenant: &Tenant, external_id: &str) -> String {
    use std::fmt::Write as _;
    let digest = Sha256::digest(external_id.as_bytes());
    let mut key = format!("external.{tenant}.");
    for byte in digest.iter().take(16) {
        let _ = write!(key, "{byte:02x}");
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_key_is_checked() {
        let tenant = Tenant::default();
        assert_eq!(token_key(&tenant, "a-Z_9").unwrap(), "token.default.a-Z_9");
        for bad in ["", "a.b", "*", ">", "a b", &"x".repeat(65)] {
            assert!(token_key(&tenant, bad).is_err(), "{bad:?}");
        }
        // Frozen: another digest would forget who has which id.
        assert_eq!(
            external_key(&tenant, "user@example"),
            "external.default.b3c8b5117be443e611151853a1c7f304"
        );
        assert_ne!(external_key(&tenant, "a"), external_key(&tenant, "b"));
    }
}
