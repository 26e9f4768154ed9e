//! The certificates of the NATS servers, which read a renewed one when they are told to.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use mailbell_bus::{BusOptions, server_certificate};
use mailbell_runtime::{Error, drain::DrainHandle, reload::Looks, tls};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use rustls::pki_types::CertificateDer;
use tokio::{sync::watch, time::Instant};

use super::{process::Process, tls::RELOAD_EVERY};
use crate::{certificate::validity, failure::Failure};

/// `nats_server_reloads_total{outcome}`: how often a NATS server was told to read its files, since it shows another certificate than the one
/// in its Secret, or since whom it is to trust has changed: `done`, or `failed`. It may be done and change nothing: the file comes to each
/// node at a time of its own.
pub const RELOADS: &str = "nats_server_reloads";

/// By then each node has what is in a Secret, after the first one has: the kubelet looks every minute, at what may be a minute old.
const BROUGHT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Looks at what NATS servers show, and has them show what they are to.
#[derive(Debug)]
pub struct ServerCertificates {
    file: PathBuf,
    options: BusOptions,
    /// Until when the one that ends first is good.
    until: watch::Sender<Option<i64>>,
    /// The same by server, as it was seen last.
    ends: BTreeMap<String, i64>,
    roots: Roots,
    reloads: Family<Outcome, Counter>,
}

/// What is in their Secret.
struct Wanted {
    certificate: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
}

impl ServerCertificates {
    /// Those of the servers of `options` are to show what is in `file`, which is read again at each look, and to trust what is in the `ca` of
    /// their TLS.
    ///
    /// # Errors
    /// When one of the files cannot be used.
    pub fn new(
        file: PathBuf,
        options: &BusOptions,
        process: &mut Process,
    ) -> Result<Self, Failure> {
        let reloads = Family::default();
        process.metrics.registry().register(
            RELOADS,
            "NATS servers told to read another certificate",
            reloads.clone(),
        );
        let this = Self {
            file,
            options: options.clone(),
            until: process.certificates.add_told("nats"),
            ends: BTreeMap::new(),
            roots: Roots::default(),
            reloads,
        };
        read(&this.options, &this.file)?;
        Ok(this)
    }

    /// Until the process drains.
    pub async fn keep(mut self, mut drain: DrainHandle) {
        let mut looks = Looks::every(RELOAD_EVERY);
        while looks.next(&mut drain).await {
            tokio::select! {
                biased;
                // First: somebody waits for this handle.
                _ = drain.signaled() => return,
                () = self.look() => {}
            }
        }
    }

    async fn look(&mut self) {
        let (options, file) = (self.options.clone(), self.file.clone());
        let wanted = tokio::task::spawn_blocking(move || read(&options, &file)).await;
        let wanted = match wanted {
            Ok(Ok(wanted)) => Some(wanted),
            Ok(Err(error)) => {
                tracing::warn!(%error, "what the NATS servers are to show cannot be read");
                None
            }
            // The process ends.
            Err(_) => return,
        };
        let is_new = wanted
            .as_ref()
            .is_some_and(|it| self.roots.are_new(&it.roots));
        for url in self.options.urls.clone() {
            let shown = match server_certificate::shown(&url).await {
                Ok(shown) => shown,
                // Whether there are servers enough is told elsewhere.
                Err(error) => {
                    tracing::debug!(url, %error, "cannot see a NATS server's certificate");
                    continue;
                }
            };
            match validity(&shown.certificate) {
                Some((_, until)) => self.ends.insert(url.clone(), until),
                None => self.ends.remove(&url),
            };
            self.until.send_replace(self.ends.values().min().copied());
            let is_another = |it: &Wanted| it.certificate != shown.certificate;
            if is_new || wanted.as_ref().is_some_and(is_another) {
                self.tell(&url, &shown.server_id).await;
            }
        }
    }

    async fn tell(&self, url: &str, server_id: &str) {
        let done = server_certificate::read_again(&self.options, url, server_id).await;
        let outcome = match done {
            Ok(()) => {
                tracing::info!(url, "told a NATS server to read its certificate again");
                "done"
            }
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(url, %error, %file, "a NATS server could not be told to read its certificate again");
                "failed"
            }
        };
        self.reloads.get_or_create(&Outcome { outcome }).inc();
    }
}

/// Whom servers are to trust, and since when that is known here. Whom they do trust nobody sees.
#[derive(Debug, Default)]
struct Roots(Option<(Vec<CertificateDer<'static>>, Instant)>);

impl Roots {
    /// Whether a server may not have got these yet.
    fn are_new(&mut self, roots: &[CertificateDer<'static>]) -> bool {
        match &self.0 {
            Some((known, since)) if known == roots => since.elapsed() < BROUGHT,
            _ => {
                self.0 = Some((roots.to_vec(), Instant::now()));
                true
            }
        }
    }
}

fn read(options: &BusOptions, file: &Path) -> Result<Wanted, Error> {
    let ca = options.tls.as_ref().and_then(|tls| tls.ca.as_deref());
    Ok(Wanted {
        certificate: tls::end_entity(file)?,
        roots: ca.map(tls::certificates).transpose()?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn roots_are_new_until_each_node_has_them() {
        let [one, two] = [b"one", b"two"].map(|der| vec![CertificateDer::from_slice(der)]);
        let mut roots = Roots::default();
        for now in [&one, &two, &one] {
            assert!(roots.are_new(now));
            advance(BROUGHT / 2).await;
            assert!(roots.are_new(now));
            advance(BROUGHT / 2).await;
            assert!(!roots.are_new(now));
        }
    }
}
