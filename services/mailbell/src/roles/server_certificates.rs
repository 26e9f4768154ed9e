//! The certificates of the NATS servers, which read a renewed one when they are told to.

use std::path::PathBuf;

use mailbell_bus::{
    BusOptions,
    server_certificate::{self, Shown},
};
use mailbell_runtime::{drain::DrainHandle, reload::Looks, tls};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio::sync::watch;

use super::{process::Process, tls::RELOAD_EVERY};
use crate::{certificate::validity, failure::Failure};

/// `nats_server_reloads_total{outcome}`: how often a NATS server that shows another certificate than the one in its Secret was told to read
/// it: `done`, or `failed`. It may be done and change nothing: the file comes to each node at a time of its own.
pub const RELOADS: &str = "nats_server_reloads";

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
    reloads: Family<Outcome, Counter>,
}

impl ServerCertificates {
    /// Those of the servers of `options` are to show what is in `file`, which is read again at each look.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn new(
        file: PathBuf,
        options: &BusOptions,
        process: &mut Process,
    ) -> Result<Self, Failure> {
        tls::end_entity(&file)?;
        let reloads = Family::default();
        process.metrics.registry().register(
            RELOADS,
            "NATS servers told to read another certificate",
            reloads.clone(),
        );
        Ok(Self {
            file,
            options: options.clone(),
            until: process.certificates.add_told("nats"),
            reloads,
        })
    }

    /// Until the process drains.
    pub async fn keep(self, mut drain: DrainHandle) {
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

    async fn look(&self) {
        let mut seen = Vec::new();
        for url in &self.options.urls {
            match server_certificate::shown(url).await {
                Ok(shown) => seen.push((url, shown)),
                // Whether there are servers enough is told elsewhere.
                Err(error) => {
                    tracing::debug!(url, %error, "cannot see a NATS server's certificate")
                }
            }
        }
        let ends = seen
            .iter()
            .filter_map(|(_, shown)| Some(validity(&shown.certificate)?.1));
        self.until.send_replace(ends.min());
        let file = self.file.clone();
        let wanted = tokio::task::spawn_blocking(move || tls::end_entity(&file)).await;
        let wanted = match wanted {
            Ok(Ok(wanted)) => wanted,
            Ok(Err(error)) => return tracing::warn!(%error, "the certificate of the NATS servers"),
            // The process ends.
            Err(_) => return,
        };
        for (url, shown) in seen {
            if shown.certificate != wanted {
                self.tell(url, &shown).await;
            }
        }
    }

    async fn tell(&self, url: &str, shown: &Shown) {
        let done = server_certificate::read_again(&self.options, &shown.server_id).await;
        let outcome = match done {
            Ok(()) => {
                tracing::info!(url, "told a NATS server to read its certificate again");
                "done"
            }
            Err(error) => {
                let file = self.file.display();
                tracing::warn!(url, %error, %file, "a NATS server shows another certificate than this, and could not be told to read it");
                "failed"
            }
        };
        self.reloads.get_or_create(&Outcome { outcome }).inc();
    }
}
