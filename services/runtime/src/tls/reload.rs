//! A certificate that is replaced while the server runs.

use std::{
    hash::{BuildHasher as _, RandomState},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject as _};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};

use super::{parse_certificates, provider, read_bounded};
use crate::{Error, drain::DrainHandle, secretfile};

/// A certificate chain and its key in two PEM files. Every handshake takes the pair in force; a pair that is broken, or half
/// replaced (the chain is new, the key still old), leaves the former one in force.
///
/// The content is compared, not the time of the files: Kubernetes replaces a mounted Secret by turning a link, and the
/// times of what lies behind it say nothing.
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
    /// The error of that look, so that it is logged once and not at every look.
    problem: Option<String>,
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
            problem: None,
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

    /// Looks at the files every `period` and on SIGHUP, until the drain begins.
    pub async fn watch(self: Arc<Self>, period: Duration, mut drain: DrainHandle) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Without it the period still holds, so it is no reason to fail.
        let mut hangup = signal(SignalKind::hangup()).ok();
        loop {
            tokio::select! {
                biased;
                // First: a drain makes no new handshakes, and somebody waits for this handle.
                _ = drain.signaled() => return,
                () = next(&mut hangup) => {}
                _ = ticks.tick() => {}
            }
            let this = Arc::clone(&self);
            // Not cancelled by anything: a reload is two small reads.
            let _ = tokio::task::spawn_blocking(move || this.reload_and_tell()).await;
        }
    }

    fn reload_and_tell(&self) {
        let problem = match self.reload() {
            Ok(true) => {
                tracing::info!(file = %self.cert_path.display(), "the certificate was replaced");
                None
            }
            Ok(false) => None,
            Err(error) => Some(error.to_string()),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.problem != problem {
            if let Some(problem) = &problem {
                tracing::warn!(
                    problem,
                    "a new certificate cannot be used, the former one stays in force"
                );
            }
            seen.problem = problem;
        }
    }
}

async fn next(hangup: &mut Option<tokio::signal::unix::Signal>) {
    if let Some(signal) = hangup
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

impl ResolvesServerCert for ReloadingCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.current.read().unwrap_or_else(PoisonError::into_inner),
        ))
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
