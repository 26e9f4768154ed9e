//! The key that signs device tokens.

use std::fmt;

use ed25519_dalek::{
    SigningKey as Ed25519,
    pkcs8::{
        DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes, spki::der::pem::LineEnding,
    },
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use mailbell_core::token::Claims;
use mailbell_proto::bus::v1::Issuer;
use rand::CryptoRng;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::Error;

/// The schema of [`Issuer`] that this release writes.
const SCHEMA: u32 = 1;

/// An Ed25519 key and what is derived from it. The file (PKCS#8, PEM) is the caller's, mode 0600.
pub struct SigningKey {
    kid: String,
    public: [u8; 32],
    pem: Zeroizing<String>,
    encoding: EncodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A new key.
    ///
    /// # Errors
    /// [`Error::Internal`], which does not happen.
    pub fn generate(rng: &mut impl CryptoRng) -> Result<Self, Error> {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Self::of(&Ed25519::from_bytes(&seed))
    }

    /// Reads what [`SigningKey::to_pem`] gave, or `openssl genpkey -algorithm ed25519`.
    ///
    /// # Errors
    /// [`Error::Setup`]; the text says nothing of the key.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let key = Ed25519::from_pkcs8_pem(pem).map_err(|_| {
            Error::Setup("the signing key is not an Ed25519 key in PKCS#8 PEM form".to_owned())
        })?;
        Self::of(&key)
    }

    fn of(key: &Ed25519) -> Result<Self, Error> {
        let public = key.verifying_key().to_bytes();
        // Without the public half: version 1 of the form, which everybody reads.
        let pair = KeypairBytes {
            secret_key: key.to_bytes(),
            public_key: None,
        };
        let pem = pair.to_pkcs8_pem(LineEnding::LF).map_err(Error::internal)?;
        let encoding = EncodingKey::from_ed_pem(pem.as_bytes()).map_err(Error::internal)?;
        let digest = Sha256::digest(public);
        Ok(Self {
            kid: digest
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            public,
            pem,
            encoding,
        })
    }

    /// For the key's file.
    #[must_use]
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The key's id: the beginning of the public half's SHA-256.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What gateways verify with: for every tenant of this installation.
    #[must_use]
    pub fn issuer(&self) -> Issuer {
        Issuer {
            schema: SCHEMA,
            kid: self.kid.clone(),
            tenant: String::new(),
            ed25519_public_key: self.public.to_vec().into(),
        }
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, Error> {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(Error::internal)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use mailbell_core::token::AUDIENCE;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn claims() -> Claims {
        Claims {
            jti: "1".to_owned(),
            aud: AUDIENCE.to_owned(),
            iss: "main".to_owned(),
            tenant: "default".to_owned(),
            accounts: Vec::new(),
            whole_tenant: true,
            content: "preview".to_owned(),
            iat: 1,
            exp: 4_000_000_000,
        }
    }

    #[test]
    fn what_it_signs_is_verified_by_the_published_half() {
        let key = SigningKey::generate(&mut StdRng::seed_from_u64(1)).unwrap();
        let token = key.sign(&claims()).unwrap();
        let header = jsonwebtoken::decode_header(&token).unwrap();
        assert_eq!(header.kid.as_deref(), Some(key.kid()));
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        let verify = |issuer: &Issuer| {
            let key = DecodingKey::from_ed_der(&issuer.ed25519_public_key);
            jsonwebtoken::decode::<Claims>(&token, &key, &validation)
        };
        assert_eq!(verify(&key.issuer()).unwrap().claims, claims());
        let other = SigningKey::generate(&mut StdRng::seed_from_u64(2)).unwrap();
        assert_ne!(other.kid(), key.kid());
        assert!(verify(&other.issuer()).is_err());
    }

    #[test]
    fn the_file_gives_the_same_key() {
        let key = SigningKey::generate(&mut StdRng::seed_from_u64(1)).unwrap();
        assert!(key.to_pem().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        let read = SigningKey::from_pem(key.to_pem()).unwrap();
        assert_eq!((read.kid(), read.issuer()), (key.kid(), key.issuer()));
        for wrong in [
            "",
            "hello",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(matches!(SigningKey::from_pem(wrong), Err(Error::Setup(_))));
        }
        let body = key.to_pem().lines().nth(1).unwrap();
        assert!(!format!("{key:?}").contains(body));
    }
}
