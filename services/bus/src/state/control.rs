//! Records of an installation as a whole: external ids, tokens, issuers, sealing keys, revocations.

use mailbell_core::ids::{AccountId, Tenant};
use mailbell_proto::bus::v1::{Issuer, SealingKey, TokenRecord};

use super::{Page, PageToken, Versioned, Watch};
use crate::{Bus, BusError};

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
        let _ = (tenant, external_id, account, &self.bus);
        todo!()
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
        let _ = (tenant, external_id);
        todo!()
    }

    /// Frees it.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, tenant: &Tenant, external_id: &str) -> Result<(), BusError> {
        let _ = (tenant, external_id);
        todo!()
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
        let _ = (record, &self.bus);
        todo!()
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
        let _ = (tenant, id);
        todo!()
    }

    /// Forgets the record. The token itself is ended by [`Revocations::revoke`].
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, tenant: &Tenant, id: &str) -> Result<(), BusError> {
        let _ = (tenant, id);
        todo!()
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
        let _ = (tenant, limit, token);
        todo!()
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
        let _ = (issuer, &self.bus);
        todo!()
    }

    /// Forgets an issuer: its tokens are refused from then on.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, kid: &str) -> Result<(), BusError> {
        let _ = kid;
        todo!()
    }

    /// Watches all issuers, by key id.
    #[must_use]
    pub fn watch(&self) -> Watch<String, Issuer> {
        todo!()
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
        let _ = (key, &self.bus);
        todo!()
    }

    /// Withdraws a key.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn delete(&self, key_id: &str) -> Result<(), BusError> {
        let _ = key_id;
        todo!()
    }

    /// Watches all keys, by key id.
    #[must_use]
    pub fn watch(&self) -> Watch<String, SealingKey> {
        todo!()
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
        let _ = (tenant, id, expires_at_ms, &self.bus);
        todo!()
    }

    /// Watches all revocations. Whoever judges tokens is ready only after [`super::Change::Loaded`].
    #[must_use]
    pub fn watch(&self) -> Watch<(Tenant, String), Revoked> {
        todo!()
    }
}
