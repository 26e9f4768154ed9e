//! Account secrets: sealed where they enter, opened in a watcher only.
//!
//! HPKE (RFC 9180) in base mode with X25519, HKDF-SHA256 and ChaCha20-Poly1305, to the public half of a key of the watchers'
//! ring. What is sealed is bound to where it may be used ([`Binding`]): whoever can write records but has no key cannot point
//! a sealed password to another host, weaken its TLS, or move it to another account.

use std::fmt;

use hpke::{
    Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _, aead::ChaCha20Poly1305,
    kdf::HkdfSha256, kem::X25519HkdfSha256, single_shot_open, single_shot_seal_with_rng,
};
use mailbell_proto::bus::v1 as bus;
use rand::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::ids::AccountId;

/// The schema of [`bus::SealedCredential`] and [`bus::SealingKey`] that this release writes.
pub const SCHEMA: u32 = 1;
/// The longest secret. A password has tens of bytes, an OAuth refresh token up to some 2 KB.
pub const MAX_SECRET: usize = 4096;

/// What the key schedule is about, so that a ciphertext of another use of these keys never opens.
const INFO: &[u8] = b"mailbell credential";
/// The version of the associated data's encoding.
const BINDING_VERSION: u8 = 1;
/// What is sealed is filled up to a multiple of this, so that a record does not tell how long the password is.
const BLOCK: usize = 64;
/// Of the secret, before it.
const LENGTH: usize = 2;
const TAG: usize = 16;
const KEY: usize = 32;
/// The first line of a key ring's file.
const RING_HEADER: &str = "mailbell-key-ring 1";
/// Key ids that are offered, and keys that a ring holds.
const MAX_KEYS: usize = 64;

type Kem = X25519HkdfSha256;

/// What can go wrong with a sealed secret. None of it is for the mail server to answer for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The ring has no such key.
    #[error(
        "the key {0} that opens this credential is not in the key ring; restore the key ring's file, or set the password anew"
    )]
    MissingKey(String),
    /// It was sealed for other settings, or was changed since. The two cannot be told apart, on purpose.
    #[error(
        "the stored password does not belong to these settings; set it anew with `mailbell account update`"
    )]
    NotTheseSettings,
    /// The record is not what this release writes.
    #[error(
        "the stored password is of another version of Mailbell (schema {0}); upgrade this process"
    )]
    Schema(u32),
    /// Longer than [`MAX_SECRET`], or empty.
    #[error("a password has 1 to {MAX_SECRET} bytes")]
    Length,
    /// A public key that is none.
    #[error("the sealing key {0} is not a usable public key")]
    BadKey(String),
    /// The ring's file is not understood. Names the line, never its content.
    #[error("line {0} of the key ring's file is not understood")]
    BadRing(usize),
}

/// Where a secret may be used. Changing any of it needs the secret anew.
#[derive(Clone, Copy)]
pub struct Binding<'a> {
    /// Of which account.
    pub account: &'a AccountId,
    /// At which host, as it is stored.
    pub host: &'a str,
    /// At which port.
    pub port: u32,
    /// With which TLS mode (`mailbell.admin.v1.TlsMode`).
    pub tls: i32,
    /// As which user.
    pub user: &'a str,
}

impl fmt::Debug for Binding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

impl<'a> Binding<'a> {
    /// What an account's record says.
    #[must_use]
    pub fn of(account: &'a AccountId, record: &'a bus::AccountRecord) -> Self {
        Self {
            account,
            host: &record.host,
            port: record.port,
            tls: record.tls,
            user: &record.user,
        }
    }

    /// Each field with its length before it, so that no two bindings give the same bytes.
    fn encode(&self) -> Vec<u8> {
        let account = self.account.to_string();
        let port = self.port.to_be_bytes();
        let tls = self.tls.to_be_bytes();
        let mut out = vec![BINDING_VERSION];
        for field in [
            account.as_bytes(),
            self.host.as_bytes(),
            &port,
            &tls,
            self.user.as_bytes(),
        ] {
            out.extend_from_slice(&(field.len() as u64).to_be_bytes());
            out.extend_from_slice(field);
        }
        out
    }
}

/// What secrets are sealed to. Not secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    id: String,
    key: [u8; KEY],
}

impl PublicKey {
    /// The key's id: the beginning of its SHA-256, so that an id never names two keys.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn new(key: [u8; KEY]) -> Self {
        let digest = Sha256::digest(key);
        let id = digest
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self { id, key }
    }

    /// As a record of bucket CTL, `sealing.<key id>`.
    #[must_use]
    pub fn to_record(&self) -> bus::SealingKey {
        bus::SealingKey {
            schema: SCHEMA,
            key_id: self.id.clone(),
            public_key: self.key.to_vec().into(),
        }
    }

    /// From such a record.
    ///
    /// # Errors
    /// [`SealError::Schema`], or [`SealError::BadKey`] for a key whose id is not its own.
    pub fn from_record(record: &bus::SealingKey) -> Result<Self, SealError> {
        if record.schema != SCHEMA {
            return Err(SealError::Schema(record.schema));
        }
        record
            .public_key
            .as_ref()
            .try_into()
            .ok()
            .map(Self::new)
            .filter(|key| key.id == record.key_id)
            .ok_or_else(|| SealError::BadKey(record.key_id.clone()))
    }
}

struct Key {
    public: PublicKey,
    private: Zeroizing<[u8; KEY]>,
    created_ms: i64,
}

impl Key {
    fn of(private: Zeroizing<[u8; KEY]>, created_ms: i64) -> Option<Self> {
        let secret = <Kem as hpke::Kem>::PrivateKey::from_bytes(private.as_slice()).ok()?;
        let mut public = [0; KEY];
        Kem::sk_to_pk(&secret).write_exact(&mut public);
        Some(Self {
            public: PublicKey::new(public),
            private,
            created_ms,
        })
    }
}

/// The private keys of an installation's watchers. The newest is the one that is offered; old ones stay as long as a record
/// needs them.
#[derive(Default)]
pub struct KeyRing {
    /// Oldest first.
    keys: Vec<Key>,
}

/// Ids only.
impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|key| key.public.id()))
            .finish()
    }
}

impl KeyRing {
    /// Makes a key, which is from now on the one that is offered, and answers its public half.
    pub fn add(&mut self, now_ms: i64, rng: &mut impl CryptoRng) -> Option<PublicKey> {
        if self.keys.len() >= MAX_KEYS {
            return None;
        }
        let (secret, _) = Kem::gen_keypair_with_rng(rng);
        let mut private = Zeroizing::new([0; KEY]);
        secret.write_exact(private.as_mut_slice());
        let key = Key::of(private, now_ms)?;
        let public = key.public.clone();
        self.keys.push(key);
        Some(public)
    }

    /// What new secrets are sealed to.
    #[must_use]
    pub fn newest(&self) -> Option<&PublicKey> {
        self.keys.last().map(|key| &key.public)
    }

    /// The public halves, oldest first.
    pub fn public_keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.iter().map(|key| &key.public)
    }

    fn private(&self, id: &str) -> Option<<Kem as hpke::Kem>::PrivateKey> {
        let key = self.keys.iter().find(|key| key.public.id == id)?;
        <Kem as hpke::Kem>::PrivateKey::from_bytes(key.private.as_slice()).ok()
    }

    /// The text of the ring's file: a header, then a line a key, oldest first. To be kept with mode 0600.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        // Room for all of it from the start: a text that grows leaves unwiped copies behind.
        let mut text = Zeroizing::new(String::with_capacity(128 * (self.keys.len() + 1)));
        text.push_str(RING_HEADER);
        text.push('\n');
        for key in &self.keys {
            let mut hex = Zeroizing::new([0u8; 2 * KEY]);
            for (pair, byte) in hex.chunks_exact_mut(2).zip(key.private.iter()) {
                for (digit, value) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                    *digit = if value < 10 {
                        b'0' + value
                    } else {
                        b'a' + value - 10
                    };
                }
            }
            text.push_str(&key.public.id);
            text.push(' ');
            text.push_str(&key.created_ms.to_string());
            text.push(' ');
            text.push_str(std::str::from_utf8(hex.as_slice()).unwrap_or_default());
            text.push('\n');
        }
        text
    }

    /// Reads the text of the ring's file.
    ///
    /// # Errors
    /// [`SealError::BadRing`] with the number of the line.
    pub fn from_text(text: &str) -> Result<Self, SealError> {
        let mut ring = Self::default();
        let mut lines = text.lines().zip(1..);
        if lines.next().map(|(line, _)| line.trim_end()) != Some(RING_HEADER) {
            return Err(SealError::BadRing(1));
        }
        for (line, number) in lines {
            if line.trim().is_empty() {
                continue;
            }
            let key = parse_key(line)
                .filter(|_| ring.keys.len() < MAX_KEYS)
                .ok_or(SealError::BadRing(number))?;
            ring.keys.push(key);
        }
        Ok(ring)
    }
}

fn parse_key(line: &str) -> Option<Key> {
    let mut words = line.split_ascii_whitespace();
    let (id, created, hex) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    if words.next().is_some() || hex.len() != 2 * KEY {
        return None;
    }
    let mut private = Zeroizing::new([0; KEY]);
    for (byte, pair) in private.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Key::of(private, created).filter(|key| key.public.id == id)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

/// Seals `secret` to `public`, for use where `binding` says.
///
/// # Errors
/// [`SealError::Length`], or [`SealError::BadKey`] for a public key that is a trap.
pub fn seal(
    public: &PublicKey,
    binding: &Binding<'_>,
    secret: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<bus::SealedCredential, SealError> {
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(SealError::Length);
    }
    let length = u16::try_from(secret.len()).map_err(|_| SealError::Length)?;
    let room = (LENGTH + secret.len()).next_multiple_of(BLOCK);
    let mut plain = Zeroizing::new(Vec::with_capacity(room));
    plain.extend_from_slice(&length.to_be_bytes());
    plain.extend_from_slice(secret);
    plain.resize(room, 0);
    let bad_key = || SealError::BadKey(public.id.clone());
    let recipient =
        <Kem as hpke::Kem>::PublicKey::from_bytes(&public.key).map_err(|_| bad_key())?;
    let (encapsulated, ciphertext) =
        single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeS::Base,
            &recipient,
            INFO,
            &plain,
            &binding.encode(),
            rng,
        )
        .map_err(|_| bad_key())?;
    Ok(bus::SealedCredential {
        schema: SCHEMA,
        key_id: public.id.clone(),
        encapsulated_key: encapsulated.to_bytes().to_vec().into(),
        ciphertext: ciphertext.into(),
    })
}

/// Opens what [`seal`] made for the same binding.
///
/// # Errors
/// [`SealError::MissingKey`], [`SealError::NotTheseSettings`] or [`SealError::Schema`].
pub fn open(
    ring: &KeyRing,
    binding: &Binding<'_>,
    sealed: &bus::SealedCredential,
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    if sealed.schema != SCHEMA {
        return Err(SealError::Schema(sealed.schema));
    }
    let private = ring
        .private(&sealed.key_id)
        .ok_or_else(|| SealError::MissingKey(shown(&sealed.key_id)))?;
    if sealed.ciphertext.len() > (LENGTH + MAX_SECRET).next_multiple_of(BLOCK) + TAG {
        return Err(SealError::NotTheseSettings);
    }
    let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(&sealed.encapsulated_key)
        .map_err(|_| SealError::NotTheseSettings)?;
    let mut plain = single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
        &OpModeR::Base,
        &private,
        &encapsulated,
        INFO,
        &sealed.ciphertext,
        &binding.encode(),
    )
    .map(Zeroizing::new)
    .map_err(|_| SealError::NotTheseSettings)?;
    let length = match plain.first_chunk::<LENGTH>() {
        Some(length) => usize::from(u16::from_be_bytes(*length)),
        None => return Err(SealError::NotTheseSettings),
    };
    if length == 0 || LENGTH + length > plain.len() {
        return Err(SealError::NotTheseSettings);
    }
    // In place: a copy would leave the original to be wiped as well.
    plain.copy_within(LENGTH..LENGTH + length, 0);
    if let Some(rest) = plain.get_mut(length..) {
        rest.zeroize();
    }
    plain.truncate(length);
    Ok(plain)
}

/// A key id comes from a record: it is shown only if it looks like one.
fn shown(id: &str) -> String {
    if id.len() <= 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        id.to_owned()
    } else {
        "?".to_owned()
    }
}

#[cfg(test)]
mod tests;
