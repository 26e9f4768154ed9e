//! Who may sign device tokens, which tokens are revoked, and so whether a token is good.
//!
//! Everything is kept in memory, so that a token is judged without a question to anybody: one signature to verify (some 60 us).
//!
//! A key that is not known here may only not have been heard of yet: what follows the issuers reads from whatever replica serves
//! it, and that may lag. Whoever has a good token must not be told for good that it is not, so for [`SETTLING`] after the
//! issuers were told (anew) or the connection was made, and while there is none, the answer is to try again.

use std::{
    collections::HashMap,
    fmt,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use mailbell_bus::{Link, state::Change};
use mailbell_core::{
    ids::Tenant,
    token::{AUDIENCE, Claims, Grant},
};
use mailbell_proto::bus::v1::Issuer;
use tokio::{sync::watch, time::Instant};

use crate::source::Changes;

/// A token of the most accounts has some 12 KB, and some 32 KB if its tenant's name is of the longest.
const MAX_TOKEN: usize = 36 * 1024;
/// A key id of ours is 16 characters; a record of an issuer takes at most 64.
const MAX_KEY_ID: usize = 128;
/// So long a key may be known elsewhere and not here: a replica that lags more than this is as good as away.
const SETTLING: Duration = Duration::from_secs(30);

/// Why a token is refused. The word is a label of metrics; what the client reads says no more than it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    Missing,
    Malformed,
    UnknownKey,
    /// Not known here, and maybe only not yet.
    KeyNotYetKnown,
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
            Self::KeyNotYetKnown => "key-not-yet-known",
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
            Self::KeyNotYetKnown => {
                "the token was signed with a key that is not known here yet: try again"
            }
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
    link: watch::Receiver<Link>,
    state: RwLock<State>,
    /// Grows with each change that may end a token.
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    issuers: HashMap<String, Signer>,
    /// They were told as a whole once.
    issuers_loaded: bool,
    /// When they were last told as a whole; `None`: they are being told.
    issuers_told: Option<Instant>,
    /// Counts how often they were told anew.
    telling: u64,
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
    /// In which telling it was last heard of.
    telling: u64,
}

impl Authority {
    pub(crate) fn new(installation: String, link: watch::Receiver<Link>) -> Self {
        Self {
            installation,
            link,
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
        let key_id = header
            .kid
            .filter(|key_id| key_id.len() <= MAX_KEY_ID)
            .ok_or(Refusal::UnknownKey)?;
        let state = self.read();
        let Some(signer) = state.issuers.get(&key_id) else {
            return Err(self.unknown(&state));
        };
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

    /// What to say of a key that is not known.
    fn unknown(&self, state: &State) -> Refusal {
        let linked = match *self.link.borrow() {
            Link::Up { since, .. } => Some(since),
            Link::Down { .. } => None,
        };
        let settled =
            |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= SETTLING);
        if settled(state.issuers_told) && settled(linked) {
            Refusal::UnknownKey
        } else {
            Refusal::KeyNotYetKnown
        }
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
        let telling = state.telling;
        // A key that was replaced or withdrawn ends what it signed.
        let mut tell = true;
        match change {
            Change::Put { key, value, .. } => match signer(&value, telling) {
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
            Change::Loaded { .. } => {
                state.issuers_loaded = true;
                state.issuers_told = Some(Instant::now());
            }
            // Who is known stays so until all were told anew and have had the time to be: see `forget_untold`.
            Change::Restarted { .. } => {
                state.issuers_told = None;
                state.telling += 1;
                tell = false;
            }
        }
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

    /// Forgets what time has made void: keys that were withdrawn while nobody could say so, and revocations of tokens that have
    /// expired anyway; one without a time stays.
    pub(crate) fn sweep(&self, now_ms: i64) {
        self.forget_untold();
        // A minute later, so that a clock that is a little behind refuses them too.
        let over = now_ms.saturating_sub(60_000);
        self.write()
            .revoked
            .retain(|_, expires| *expires <= 0 || *expires > over);
    }

    /// Forgets the keys that were not told of when all were told anew. If none was told of, the records are lost rather than
    /// withdrawn: then every device would be sent away for good, though its token is good again once the admin API has started
    /// anew. So they stay.
    fn forget_untold(&self) {
        let untold = |state: &State| {
            let told = |signer: &Signer| signer.telling == state.telling;
            let settled = state
                .issuers_told
                .is_some_and(|since| since.elapsed() >= SETTLING);
            settled && state.issuers.values().any(told) && !state.issuers.values().all(told)
        };
        // Looked at each second, and nearly always in vain.
        if !untold(&self.read()) {
            return;
        }
        let mut state = self.write();
        // Again: they may have begun to be told anew in between.
        if !untold(&state) {
            return;
        }
        let telling = state.telling;
        state.issuers.retain(|_, signer| signer.telling == telling);
        drop(state);
        self.changed();
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

fn signer(issuer: &Issuer, telling: u64) -> Option<Signer> {
    let tenant = match issuer.tenant.as_str() {
        "" => None,
        tenant => Some(tenant.parse().ok()?),
    };
    let key: &[u8; 32] = issuer.ed25519_public_key.as_ref().try_into().ok()?;
    Some(Signer {
        tenant,
        key: DecodingKey::from_ed_der(key),
        telling,
    })
}

#[cfg(test)]
mod tests;
