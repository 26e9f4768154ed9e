//! A certificate that is replaced while the server runs.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};

use super::{parse_certificates, provider, read_bounded};
use crate::{Error, drain::DrainHandle, reload, secretfile};

/// A certificate chain and its key in two PEM files. Every handshake takes the pair in force; a pair that is broken, or half
/// replaced (the chain is new, the key still old), leaves the former one in force.
#[derive(Debug)]
pub struct ReloadingCert {
    cert_path: PathBuf,
    key_path: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
    /// Held during a reload, so that two do not overtake each other.
    seen: Mutex<Seen>,
}

/// What the files held when they were last looked at, good or bad.
#[derive(Debug)]
struct Seen {
    hasher: RandomState,
    digest: Option<u64>,
}

impl ReloadingCert {
    /// Loads the first pair.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::SecretExposed`] for a key that others can read, [`Error::Certificate`] for a pair that does not fit.
    pub fn load(
        cert_path: impl Into<PathBuf>,
        key_path: impl Into<PathBuf>,
    ) -> Result<Arc<Self>, Error> {
        let (cert_path, key_path) = (cert_path.into(), key_path.into());
        let mut seen = Seen {
            hasher: RandomState::new(),
            digest: None,
        };
        let files = Files::read(&cert_path, &key_path)?;
        seen.digest = Some(files.digest(&seen.hasher));
        let current = files.parse(&cert_path, &key_path)?;
        Ok(Arc::new(Self {
            cert_path,
            key_path,
            current: RwLock::new(Arc::new(current)),
            seen: Mutex::new(seen),
        }))
    }

    /// Looks at the files now: `Ok(true)` when another pair is in force than before.
    ///
    /// # Errors
    /// As [`ReloadingCert::load`]; the former pair stays in force.
    pub fn reload(&self) -> Result<bool, Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let files = Files::read(&self.cert_path, &self.key_path)?;
        let digest = files.digest(&seen.hasher);
        if seen.digest == Some(digest) {
            return Ok(false);
        }
        let pair = Arc::new(files.parse(&self.cert_path, &self.key_path)?);
        // Only a good pair counts as seen: a bad one is looked at again, and its error told again.
        seen.digest = Some(digest);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = pair;
        Ok(true)
    }

    /// `host:port` under which a client on this machine reaches `addr` and finds the certificate in force good: the address itself,
    /// `localhost` where that is the same, else the first name in the certificate. `None`: it has no name to connect to.
    #[must_use]
    pub fn authority(&self, addr: SocketAddr) -> Option<String> {
        let current = self.current();
        let cert = webpki::EndEntityCert::try_from(current.end_entity_cert().ok()?).ok()?;
        let covers = |name: ServerName<'_>| cert.verify_is_valid_for_subject_name(&name).is_ok();
        if covers(addr.ip().into()) {
            return Some(addr.to_string());
        }
        let local = addr.ip().is_loopback();
        let name = if local && ServerName::try_from("localhost").is_ok_and(covers) {
            "localhost"
        } else {
            cert.valid_dns_names().find(|name| !name.starts_with('*'))?
        };
        Some(format!("{name}:{}", addr.port()))
    }

    /// The server's own certificate in force.
    #[must_use]
    pub fn end_entity(&self) -> Option<CertificateDer<'static>> {
        let current = self.current();
        current
            .end_entity_cert()
            .ok()
            .cloned()
            .map(CertificateDer::into_owned)
    }

    fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files every `period` and on SIGHUP, until the drain begins.
    pub async fn watch(self: Arc<Self>, period: Duration, drain: DrainHandle) {
        let look = move || self.reload();
        reload::watch("certificate", period, drain, look).await;
    }
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

struct Files {
    cert: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

impl Files {
    fn read(cert: &Path, key: &Path) -> Result<Self, Error> {
        Ok(Self {
            cert: read_bounded(cert)?,
            key: secretfile::read(key)?,
        })
    }

    fn digest(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one((&self.cert, self.key.as_slice()))
    }

    fn parse(&self, cert_path: &Path, key_path: &Path) -> Result<CertifiedKey, Error> {
        let bad_key = |reason: String| Error::Certificate {
            path: key_path.to_owned(),
            reason,
        };
        let chain = parse_certificates(cert_path, &self.cert)?;
        // The parser's own error could quote the file; this one only names it.
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| bad_key("no private key in it".to_owned()))?;
        CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => bad_key(format!(
                "the key does not belong to {}",
                cert_path.display()
            )),
            other => bad_key(other.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_client_is_sent_to_what_the_certificate_covers() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let authority = |names: &[&str], addr: &str| {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            fs::write(&cert, made.cert.pem()).unwrap();
            secretfile::write(&key, made.signing_key.serialize_pem().as_bytes()).unwrap();
            let loaded = ReloadingCert::load(&cert, &key).unwrap();
            loaded.authority(addr.parse().unwrap())
        };
        for (names, addr, expected) in [
            (&["127.0.0.1"][..], "127.0.0.1:1", Some("127.0.0.1:1")),
            (&["a.test", "localhost"], "127.0.0.1:1", Some("localhost:1")),
            (&["a.test", "localhost"], "192.0.2.1:1", Some("a.test:1")),
            (&["*.b.test", "a.test"], "[::1]:1", Some("a.test:1")),
            (&["*.b.test"], "127.0.0.1:1", None),
        ] {
            assert_eq!(authority(names, addr).as_deref(), expected, "{names:?}");
        }
    }
}
