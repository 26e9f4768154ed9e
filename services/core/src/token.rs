//! What a device token says.

use mailbell_proto::push::v1::ContentLevel;
use serde::{Deserialize, Serialize};

use crate::{
    content,
    cursor::Subject,
    ids::{AccountId, Tenant},
};

/// The `aud` of every device token.
pub const AUDIENCE: &str = "mailbell-push";
/// A token names at most this many accounts; an app back end with more uses its tenant's token.
pub const MAX_ACCOUNTS: usize = 256;

/// The claims of a device token (a JWT, RFC 7519).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The token's id, by which it is revoked.
    pub jti: String,
    /// [`AUDIENCE`].
    pub aud: String,
    /// The installation.
    pub iss: String,
    /// The tenant.
    pub tenant: String,
    /// The accounts; empty with `whole_tenant`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    /// Every account of the tenant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_tenant: bool,
    /// The most content: `key`, `headers` or `preview`.
    pub content: String,
    /// When it was minted, in seconds since the epoch.
    pub iat: i64,
    /// When it ends, in seconds since the epoch.
    pub exp: i64,
}

/// What a verified token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// By which it is revoked.
    pub token_id: String,
    /// Whose.
    pub tenant: Tenant,
    /// Which accounts.
    pub subject: Subject,
    /// The most content.
    pub content: ContentLevel,
    /// When it ends, in seconds since the epoch.
    pub expires: i64,
}

/// The claims of a token whose signature is right make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token's claims are not those of a device token")]
pub struct ClaimsError;

impl Claims {
    /// What the claims allow. Signature, audience and times are the verifier's.
    ///
    /// # Errors
    /// Whatever does not parse, accounts of another tenant, or no account at all.
    pub fn grant(&self) -> Result<Grant, ClaimsError> {
        let tenant: Tenant = self.tenant.parse().map_err(|_| ClaimsError)?;
        let content = content::level(&self.content).ok_or(ClaimsError)?;
        let subject = if self.whole_tenant && self.accounts.is_empty() {
            Subject::Tenant(tenant.clone())
        } else if !self.whole_tenant
            && !self.accounts.is_empty()
            && self.accounts.len() <= MAX_ACCOUNTS
        {
            let accounts: Vec<AccountId> = self
                .accounts
                .iter()
                .map(|account| account.parse().map_err(|_| ClaimsError))
                .collect::<Result<_, _>>()?;
            if accounts.iter().any(|account| *account.tenant() != tenant) {
                return Err(ClaimsError);
            }
            Subject::accounts(accounts)
        } else {
            return Err(ClaimsError);
        };
        Ok(Grant {
            token_id: self.jti.clone(),
            tenant,
            subject,
            content,
            expires: self.exp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            jti: "1".to_owned(),
            aud: AUDIENCE.to_owned(),
            iss: "main".to_owned(),
            tenant: "a".to_owned(),
            accounts: vec!["a.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()],
            whole_tenant: false,
            content: "preview".to_owned(),
            iat: 1,
            exp: 2,
        }
    }

    #[test]
    fn claims_allow_what_they_say_and_no_more() {
        assert!(claims().grant().is_ok());
        let wrong: [fn(&mut Claims); 6] = [
            |claims| claims.tenant = "b".to_owned(),
            |claims| claims.accounts.clear(),
            |claims| claims.whole_tenant = true,
            |claims| claims.content = "all".to_owned(),
            |claims| claims.accounts = vec!["a.x".to_owned()],
            |claims| claims.accounts = vec!["a.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned(); 257],
        ];
        for spoil in wrong {
            let mut claims = claims();
            spoil(&mut claims);
            assert_eq!(claims.grant(), Err(ClaimsError));
        }
        let whole = Claims {
            accounts: Vec::new(),
            whole_tenant: true,
            ..claims()
        };
        let grant = whole.grant().unwrap();
        assert_eq!(grant.subject, Subject::Tenant("a".parse().unwrap()));
    }
}
