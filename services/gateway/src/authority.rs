//! Who may sign device tokens, which tokens are revoked, and so whether a token is good.
//!
//! Everything is kept in memory, so that a token is judged without a question to anybody: one signature to verify (some 60 us).

use std::{
    collections::HashMap,
    fmt,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use mailbell_bus::state::Change;
use mailbell_core::{
    ids::Tenant,
    token::{AUDIENCE, Claims, Grant},
};
use mailbell_proto::bus::v1::Issuer;
use tokio::sync::watch;

use crate::source::Changes;

/// A token of the most accounts has some 12 KB.
const MAX_TOKEN: usize = 20 * 1024;
/// A key id of ours is 26 characters.
const MAX_KEY_ID: usize = 128;

/// Why a token is refused. The word is a label of metrics; what the client reads says no more than it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Missing,
    Malformed,
    UnknownKey,
    Signature,
    Claims,
    Expired,
    Revoked,
}

impl Refusal {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }

    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Missing => "no device token: send `authorization: Bearer <token>`",
            Self::Malformed => "this is no device token",
            Self::UnknownKey => "the token was signed with a key that is not known here",
            Self::Signature => "the token's signature is wrong",
            Self::Claims => "the token is not for this installation's device stream",
            Self::Expired => "the token has expired: get a new one",
            Self::Revoked => "the token was revoked",
        }
    }
}

/// A verified token, without the token.
#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) grant: Grant,
    key_id: Box<str>,
}

#[cfg(test)]
impl Credential {
    pub(crate) fn for_test(grant: Grant) -> Self {
        Self {
            grant,
            key_id: "k1".into(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Authority {
    installation: String,
    state: RwLock<State>,
    /// Grows with each change that may end a token.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    issuers: HashMap<String, Signer>,
    issuers_loaded: bool,
    revoked: HashMap<(Tenant, String), i64>,
    revocations_loaded: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("issuers", &self.issuers.len())
            .field("revoked", &self.revoked.len())
            .finish_non_exhaustive()
    }
}

struct Signer {
    /// `None`: for every tenant.
    tenant: Option<Tenant>,
    key: DecodingKey,
}

impl Authority {
    pub(crate) fn new(installation: String) -> Self {
        Self {
            installation,
            state: RwLock::default(),
            version: watch::Sender::new(0),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why tokens cannot be judged yet, if so.
    pub(crate) fn missing(&self) -> Option<&'static str> {
        let state = self.read();
        if !state.issuers_loaded {
            Some("the keys that sign tokens are not loaded yet")
        } else if !state.revocations_loaded {
            Some("the revoked tokens are not loaded yet")
        } else {
            None
        }
    }

    /// Grows with each change that may end a token.
    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Judges a token at this time, in seconds since the epoch.
    pub(crate) fn verify(&self, token: &str, now_s: i64) -> Result<Credential, Refusal> {
        if token.len() > MAX_TOKEN {
            return Err(Refusal::Malformed);
        }
        let header = decode_header(token).map_err(|_| Refusal::Malformed)?;
        if header.alg != Algorithm::EdDSA {
            return Err(Refusal::Signature);
        }
        let key_id = header.kid.ok_or(Refusal::UnknownKey)?;
        let state = self.read();
        let signer = state
            .issuers
            .get(&key_id)
            .filter(|_| key_id.len() <= MAX_KEY_ID)
            .ok_or(Refusal::UnknownKey)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[&self.installation]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        // The time is our caller's.
        validation.validate_exp = false;
        let claims = decode::<Claims>(token, &signer.key, &validation)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature => Refusal::Signature,
                _ => Refusal::Claims,
            })?
            .claims;
        let grant = claims.grant().map_err(|_| Refusal::Claims)?;
        if signer
            .tenant
            .as_ref()
            .is_some_and(|only| *only != grant.tenant)
        {
            return Err(Refusal::Claims);
        }
        if grant.expires <= now_s {
            return Err(Refusal::Expired);
        }
        let credential = Credential {
            grant,
            key_id: key_id.into(),
        };
        state.stands(&credential).map(|()| credential)
    }

    /// Whether a token that was good when it was verified still is, but for its time.
    pub(crate) fn stands(&self, credential: &Credential) -> Result<(), Refusal> {
        self.read().stands(credential)
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// Takes in the issuers until the source is closed.
    pub(crate) async fn keep_issuers(&self, mut changes: Box<dyn Changes<String, Issuer>>) {
        while let Some(change) = changes.next().await {
            self.on_issuer(change);
        }
    }

    fn on_issuer(&self, change: Change<String, Issuer>) {
        let mut state = self.write();
        match change {
            Change::Put { key, value, .. } => match signer(&value) {
                Some(signer) => {
                    state.issuers.insert(key, signer);
                }
                None => {
                    tracing::warn!("a record of a key that signs tokens cannot be read");
                    state.issuers.remove(&key);
                }
            },
            Change::Removed { key } => {
                state.issuers.remove(&key);
            }
            Change::Loaded { .. } => state.issuers_loaded = true,
            Change::Restarted { .. } => {
                state.issuers.clear();
                state.issuers_loaded = false;
            }
        }
        // A key that was replaced or withdrawn ends what it signed; not while they are only being told anew.
        let tell = state.issuers_loaded;
        drop(state);
        if tell {
            self.changed();
        }
    }

    /// Takes in the revocations until the source is closed.
    pub(crate) async fn keep_revocations(
        &self,
        mut changes: Box<dyn Changes<(Tenant, String), i64>>,
    ) {
        while let Some(change) = changes.next().await {
            self.on_revocation(change);
        }
    }

    fn on_revocation(&self, change: Change<(Tenant, String), i64>) {
        let mut state = self.write();
        let tell = match change {
            Change::Put { key, value, .. } => {
                state.revoked.insert(key, value);
                true
            }
            Change::Removed { key } => {
                state.revoked.remove(&key);
                false
            }
            Change::Loaded { .. } => {
                state.revocations_loaded = true;
                true
            }
            // What was revoked stays so until the list is told anew: a lost bucket must not bring tokens back to life.
            Change::Restarted { .. } => {
                state.revocations_loaded = false;
                false
            }
        };
        drop(state);
        if tell {
            self.changed();
        }
    }

    /// Forgets revocations of tokens that have expired anyway; one without a time stays.
    pub(crate) fn sweep(&self, now_ms: i64) {
        // A minute later, so that a clock that is a little behind refuses them too.
        let over = now_ms.saturating_sub(60_000);
        self.write()
            .revoked
            .retain(|_, expires| *expires <= 0 || *expires > over);
    }
}

impl State {
    fn stands(&self, credential: &Credential) -> Result<(), Refusal> {
        let grant = &credential.grant;
        // The key is owned by the map's type; one short allocation, and only at an attach or after a change.
        let key = (grant.tenant.clone(), grant.token_id.clone());
        if self.revoked.contains_key(&key) {
            return Err(Refusal::Revoked);
        }
        if self.issuers_loaded && !self.issuers.contains_key(&*credential.key_id) {
            return Err(Refusal::UnknownKey);
        }
        Ok(())
    }
}

fn signer(issuer: &Issuer) -> Option<Signer> {
    let tenant = match issuer.tenant.as_str() {
        "" => None,
        tenant => Some(tenant.parse().ok()?),
    };
    let key: &[u8; 32] = issuer.ed25519_public_key.as_ref().try_into().ok()?;
    Some(Signer {
        tenant,
        key: DecodingKey::from_ed_der(key),
    })
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
    use jsonwebtoken::{EncodingKey, Header, encode};
    use mailbell_core::ids::Group;

    use super::*;

    const NOW: i64 = 1_700_000_000;

    struct Minter {
        key: SigningKey,
        kid: &'static str,
    }

    impl Minter {
        fn new(kid: &'static str) -> Self {
            let key = SigningKey::from_bytes(&rand::random());
            Self { key, kid }
        }

        fn issuer(&self, tenant: &str) -> Change<String, Issuer> {
            Change::Put {
                key: self.kid.to_owned(),
                value: Issuer {
                    schema: 1,
                    kid: self.kid.to_owned(),
                    tenant: tenant.to_owned(),
                    ed25519_public_key: self.key.verifying_key().to_bytes().to_vec().into(),
                },
                revision: 1,
            }
        }

        fn token(&self, claims: &Claims) -> String {
            let der = self.key.to_pkcs8_der().unwrap();
            let header = Header {
                kid: Some(self.kid.to_owned()),
                ..Header::new(Algorithm::EdDSA)
            };
            encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap()
        }
    }

    fn claims() -> Claims {
        Claims {
            jti: "t1".to_owned(),
            aud: AUDIENCE.to_owned(),
            iss: "main".to_owned(),
            tenant: "a".to_owned(),
            accounts: vec!["a.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()],
            whole_tenant: false,
            content: "preview".to_owned(),
            iat: NOW - 10,
            exp: NOW + 10,
        }
    }

    fn loaded<K, V>() -> Change<K, V> {
        let group = Group::new(0).unwrap();
        Change::Loaded { group }
    }

    fn authority(minter: &Minter) -> Authority {
        let authority = Authority::new("main".to_owned());
        authority.on_issuer(minter.issuer(""));
        assert!(authority.missing().is_some());
        authority.on_issuer(loaded());
        assert!(authority.missing().is_some());
        authority.on_revocation(loaded());
        assert_eq!(authority.missing(), None);
        authority
    }

    #[test]
    fn what_a_token_must_be() {
        let minter = Minter::new("k1");
        let authority = authority(&minter);
        let judge = |token: &str| authority.verify(token, NOW).map(|good| good.grant.token_id);
        assert_eq!(judge(&minter.token(&claims())), Ok("t1".to_owned()));

        let spoiled = |spoil: fn(&mut Claims)| {
            let mut claims = claims();
            spoil(&mut claims);
            judge(&minter.token(&claims)).unwrap_err()
        };
        assert_eq!(spoiled(|claims| claims.exp = NOW), Refusal::Expired);
        assert_eq!(spoiled(|claims| claims.exp = NOW - 99), Refusal::Expired);
        assert_eq!(
            spoiled(|claims| claims.aud = "other".to_owned()),
            Refusal::Claims
        );
        assert_eq!(
            spoiled(|claims| claims.iss = "other".to_owned()),
            Refusal::Claims
        );
        assert_eq!(
            spoiled(|claims| claims.tenant = "b".to_owned()),
            Refusal::Claims
        );
        assert_eq!(spoiled(|claims| claims.accounts.clear()), Refusal::Claims);

        // Another key under the known name, and a key that is not known.
        let forger = Minter::new("k1");
        assert_eq!(judge(&forger.token(&claims())), Err(Refusal::Signature));
        let stranger = Minter::new("k2");
        assert_eq!(judge(&stranger.token(&claims())), Err(Refusal::UnknownKey));

        // The same bytes with another payload, and algorithms that need no private key.
        let good = minter.token(&claims());
        let mut richer = claims();
        richer.exp = NOW + 1_000_000;
        let other = minter.token(&richer);
        let parts: Vec<_> = good.split('.').collect();
        let payload = other.split('.').nth(1).unwrap();
        let mixed = format!("{}.{payload}.{}", parts[0], parts[2]);
        assert_eq!(judge(&mixed), Err(Refusal::Signature));
        let public = minter.key.verifying_key().to_bytes();
        let header = Header {
            kid: Some("k1".to_owned()),
            ..Header::new(Algorithm::HS256)
        };
        let hmac = encode(&header, &claims(), &EncodingKey::from_secret(&public)).unwrap();
        assert_eq!(judge(&hmac), Err(Refusal::Signature));

        for nonsense in [
            "",
            "a.b.c",
            "eyJhbGciOiJub25lIn0.e30.",
            &"x".repeat(MAX_TOKEN + 1),
        ] {
            assert_eq!(judge(nonsense), Err(Refusal::Malformed), "{nonsense:.20}");
        }
    }

    #[test]
    fn a_tenants_key_signs_for_that_tenant_only() {
        let ours = Minter::new("ours");
        let authority = authority(&ours);
        let theirs = Minter::new("theirs");
        authority.on_issuer(theirs.issuer("b"));
        let token = theirs.token(&claims());
        assert_eq!(authority.verify(&token, NOW).unwrap_err(), Refusal::Claims);
        let own = Claims {
            tenant: "b".to_owned(),
            accounts: vec!["b.01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned()],
            ..claims()
        };
        assert!(authority.verify(&theirs.token(&own), NOW).is_ok());
    }

    #[test]
    fn a_revoked_token_stays_revoked_until_it_has_expired() {
        let minter = Minter::new("k1");
        let authority = authority(&minter);
        let token = minter.token(&claims());
        let credential = authority.verify(&token, NOW).unwrap();
        let mut version = authority.version();
        version.borrow_and_update();
        let revoke = |id: &str| Change::Put {
            key: ("a".parse().unwrap(), id.to_owned()),
            value: (NOW + 10) * 1000,
            revision: 1,
        };
        authority.on_revocation(revoke("another"));
        assert!(authority.stands(&credential).is_ok());
        authority.on_revocation(revoke("t1"));
        assert!(version.has_changed().unwrap());
        assert_eq!(authority.stands(&credential), Err(Refusal::Revoked));
        assert_eq!(authority.verify(&token, NOW).unwrap_err(), Refusal::Revoked);
        // The bucket is lost: nothing comes back to life, and nobody is judged until it is told anew.
        let group = Group::new(0).unwrap();
        authority.on_revocation(Change::Restarted { group });
        assert!(authority.missing().is_some());
        assert_eq!(authority.stands(&credential), Err(Refusal::Revoked));
        authority.sweep((NOW + 10) * 1000);
        assert_eq!(authority.stands(&credential), Err(Refusal::Revoked));
        authority.sweep((NOW + 71) * 1000);
        assert!(authority.stands(&credential).is_ok());
        // By then it has expired.
        assert_eq!(
            authority.verify(&token, NOW + 71).unwrap_err(),
            Refusal::Expired
        );
    }

    #[test]
    fn a_withdrawn_key_ends_what_it_signed() {
        let minter = Minter::new("k1");
        let authority = authority(&minter);
        let credential = authority.verify(&minter.token(&claims()), NOW).unwrap();
        let key = "k1".to_owned();
        authority.on_issuer(Change::Removed { key });
        assert_eq!(authority.stands(&credential), Err(Refusal::UnknownKey));
        let damaged = Change::Put {
            key: "k1".to_owned(),
            value: Issuer::default(),
            revision: 2,
        };
        authority.on_issuer(damaged);
        assert_eq!(authority.stands(&credential), Err(Refusal::UnknownKey));
        authority.on_issuer(minter.issuer(""));
        assert!(authority.stands(&credential).is_ok());
    }
}
