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

/// `nats_server_reloads_total{why,outcome}`: how often a NATS server was told to read its files: since it shows another `certificate` than the
/// one in its Secret, or since the `roots` that it is to trust have changed; `done`, or `failed`. It may be done and change nothing: a file
/// comes to each node at a time of its own.
pub const RELOADS: &str = "nats_server_reloads";

/// By then each node has what is in a Secret, after the first one has: the kubelet looks every minute, at what may be a minute old.
const BROUGHT: Duration = Duration::from_secs(300);
/// For so long what a server has shown stands for it while it is away: it may come back with that.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// A server that was told so often, and still shows another certificate, has not got it.
const IN_VAIN: u32 = 5;

/// Why a server is told.
const CERTIFICATE: &str = "certificate";
const ROOTS: &str = "roots";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    why: &'static str,
    outcome: &'static str,
}

/// Looks at what NATS servers show, and has them show what they are to.
#[derive(Debug)]
pub struct ServerCertificates {
    file: PathBuf,
    options: BusOptions,
    /// Until when the one that ends first is good.
    until: watch::Sender<Option<i64>>,
    servers: BTreeMap<String, Server>,
    roots: Option<Roots>,
    /// Why what they are to show could not be read the last time, so that it is told once.
    problem: Option<String>,
    reloads: Family<Labels, Counter>,
}

/// A server, by its URL.
#[derive(Debug, Default)]
struct Server {
    /// Until when the certificate is good that it showed last, and when that was.
    seen: Option<(i64, Instant)>,
    /// How often in a row it showed another certificate, and was told.
    told: u32,
    /// It has read the roots, when each node had them.
    has_roots: bool,
}

/// Whom servers are to trust, and since when that is known here. Whom they do trust nobody sees.
#[derive(Debug)]
struct Roots {
    known: Vec<CertificateDer<'static>>,
    since: Instant,
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
        read(options, &file)?;
        let reloads = Family::default();
        process.metrics.registry().register(
            RELOADS,
            "NATS servers told to read their files again",
            reloads.clone(),
        );
        Ok(Self {
            file,
            options: options.clone(),
            until: process.certificates.add_told("nats"),
            servers: BTreeMap::new(),
            roots: None,
            problem: None,
            reloads,
        })
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
        let Ok(read) = tokio::task::spawn_blocking(move || read(&options, &file)).await else {
            // The process ends.
            return;
        };
        let wanted = self.wanted(read);
        for url in self.options.urls.clone() {
            let shown = match server_certificate::shown(&url).await {
                Ok(shown) => shown,
                // Whether there are servers enough is told elsewhere.
                Err(error) => {
                    tracing::debug!(url, %error, "cannot see a NATS server's certificate");
                    continue;
                }
            };
            let server = self.servers.entry(url.clone()).or_default();
            let end = validity(&shown.certificate).map(|(_, until)| (until, Instant::now()));
            server.seen = end;
            let why = wanted
                .as_ref()
                .and_then(|wanted| server.why(wanted, &shown.certificate));
            if let Some(why) = why {
                self.tell(&url, &shown.server_id, why).await;
            }
        }
        self.until.send_replace(self.first_end());
    }

    /// Until when the certificate is good that ends first, of those that servers show.
    fn first_end(&self) -> Option<i64> {
        let ends = self.servers.values().filter_map(|server| server.seen);
        let ends = ends.filter(|(_, at)| at.elapsed() < REMEMBERED);
        ends.map(|(until, _)| until).min()
    }

    /// Notes what was read.
    fn wanted(&mut self, read: Result<Wanted, Error>) -> Option<Wanted> {
        match read {
            Ok(wanted) => {
                self.problem = None;
                let known = self.roots.as_ref().map(|roots| &roots.known);
                if known != Some(&wanted.roots) {
                    self.roots = Some(Roots {
                        known: wanted.roots.clone(),
                        since: Instant::now(),
                    });
                    for server in self.servers.values_mut() {
                        server.has_roots = false;
                    }
                }
                Some(wanted)
            }
            Err(error) => {
                let problem = Some(error.to_string());
                if self.problem != problem {
                    tracing::warn!(%error, "what the NATS servers are to show cannot be read");
                    self.problem = problem;
                }
                self.count(CERTIFICATE, "failed");
                None
            }
        }
    }

    async fn tell(&mut self, url: &str, server_id: &str, why: &'static str) {
        let done = server_certificate::read_again(&self.options, url, server_id).await;
        let outcome = match done {
            Ok(()) => {
                if self.is_told(url) == IN_VAIN {
                    tracing::warn!(
                        url,
                        "a NATS server has read its files again and again, and shows another certificate than that in its Secret: its node has not got it"
                    );
                } else {
                    tracing::info!(url, why, "told a NATS server to read its files again");
                }
                "done"
            }
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(url, why, %error, %file, "a NATS server could not be told to read its files again");
                "failed"
            }
        };
        self.count(why, outcome);
    }

    /// Notes that it has read its files. How often it was told so for its certificate.
    fn is_told(&mut self, url: &str) -> u32 {
        let roots = self.roots.as_ref();
        let are_brought = roots.is_some_and(|roots| roots.since.elapsed() >= BROUGHT);
        self.servers.get_mut(url).map_or(0, |server| {
            server.has_roots = are_brought;
            server.told
        })
    }

    fn count(&self, why: &'static str, outcome: &'static str) {
        self.reloads.get_or_create(&Labels { why, outcome }).inc();
    }
}

impl Server {
    /// Why it has to read its files, if it has.
    fn why(&mut self, wanted: &Wanted, shown: &CertificateDer<'_>) -> Option<&'static str> {
        if wanted.certificate != *shown {
            self.told = self.told.saturating_add(1);
            return Some(CERTIFICATE);
        }
        self.told = 0;
        (!self.has_roots).then_some(ROOTS)
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
    use mailbell_bus::Role;
    use mailbell_core::ids::Installation;
    use tokio::time::advance;

    use super::*;

    const URL: &str = "tls://main-nats-0:4222";

    fn der(text: &str) -> CertificateDer<'static> {
        CertificateDer::from(text.as_bytes().to_vec())
    }

    fn secret(certificate: &str, roots: &str) -> Result<Wanted, Error> {
        Ok(Wanted {
            certificate: der(certificate),
            roots: vec![der(roots)],
        })
    }

    fn keeper() -> ServerCertificates {
        ServerCertificates {
            file: PathBuf::new(),
            options: BusOptions::new(Vec::new(), Installation::default(), Role::Admin),
            until: watch::channel(None).0,
            servers: BTreeMap::from([(URL.to_owned(), Server::default())]),
            roots: None,
            problem: None,
            reloads: Family::default(),
        }
    }

    /// What a server that shows this is told for, and whether it has read the roots after that.
    fn look(keeper: &mut ServerCertificates, wanted: &Wanted, shown: &str) -> Option<&'static str> {
        let why = keeper
            .servers
            .get_mut(URL)
            .unwrap()
            .why(wanted, &der(shown));
        if why.is_some() {
            keeper.is_told(URL);
        }
        why
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_told_until_it_shows_its_certificate_and_has_its_roots() {
        let mut keeper = keeper();
        let wanted = keeper.wanted(secret("new", "one")).unwrap();
        assert_eq!(look(&mut keeper, &wanted, "old"), Some(CERTIFICATE));
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        // Its node may not have had them when it read them.
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        advance(BROUGHT).await;
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        assert_eq!(look(&mut keeper, &wanted, "new"), None);
        let wanted = keeper.wanted(secret("new", "two")).unwrap();
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(ROOTS));
        advance(BROUGHT).await;
        // With a certificate it reads the roots too.
        let wanted = keeper.wanted(secret("newer", "two")).unwrap();
        assert_eq!(look(&mut keeper, &wanted, "new"), Some(CERTIFICATE));
        assert_eq!(look(&mut keeper, &wanted, "newer"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_is_spoken_for_by_what_it_showed_last_for_a_while() {
        let mut keeper = keeper();
        let server = keeper.servers.get_mut(URL).unwrap();
        server.seen = Some((7, Instant::now()));
        assert_eq!(keeper.first_end(), Some(7));
        advance(REMEMBERED).await;
        assert_eq!(keeper.first_end(), None);
    }
}
