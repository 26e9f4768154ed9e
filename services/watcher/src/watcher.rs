//! The watcher as a component: it starts, keeps what it owns, and gives everything away when it drains.

use std::sync::Arc;

use mailbell_bus::Bus;
use mailbell_core::{ids::Partition, seal::KeyRing};
use mailbell_runtime::{drain::DrainHandle, health::Health};
use tokio::sync::watch;

use crate::{
    Error, Metrics, Options,
    policy::{Policy, PolicyFile},
    registry::Registry,
    running::{CHECK, Running},
};

/// Watches the mailboxes of the partitions that it owns.
pub struct Watcher {
    pub(crate) options: Options,
    pub(crate) bus: Bus,
    pub(crate) imap: mailbell_imap::Settings,
    pub(crate) ring: KeyRing,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
    pub(crate) registry: Arc<Registry>,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
}

/// A look at a running watcher. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    registry: Arc<Registry>,
    ready: watch::Receiver<bool>,
}

/// How far a watcher is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Partitions that are owned and whose sessions have begun.
    pub partitions: usize,
    /// Sessions.
    pub sessions: usize,
    /// Those of them that watch.
    pub watching: usize,
}

impl Handle {
    /// Waits until the watcher has its place among the others and answers requests for what it owns; `false`: it ended before
    /// that.
    pub async fn ready(&mut self) -> bool {
        self.ready.wait_for(|ready| *ready).await.is_ok()
    }

    /// Whether the sessions of this partition run here.
    #[must_use]
    pub fn serves(&self, partition: Partition) -> bool {
        self.registry.serves(partition)
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (sessions, watching, _) = self.registry.count();
        Progress {
            partitions: self.registry.partitions().len(),
            sessions,
            watching,
        }
    }
}

impl Watcher {
    /// A watcher that does nothing yet. Names its health check.
    ///
    /// # Errors
    /// [`Error::NoKey`].
    pub fn new(
        options: Options,
        bus: Bus,
        imap: mailbell_imap::Settings,
        ring: KeyRing,
        metrics: Metrics,
        health: Health,
    ) -> Result<(Self, Handle), Error> {
        if ring.newest().is_none() {
            return Err(Error::NoKey);
        }
        health.set(CHECK, Err("starting"));
        let registry = Arc::new(Registry::default());
        let (ready, is_ready) = watch::channel(false);
        let handle = Handle {
            registry: Arc::clone(&registry),
            ready: is_ready,
        };
        let watcher = Self {
            options,
            bus,
            imap,
            ring,
            metrics,
            health,
            registry,
            ready,
            policy: watch::Sender::default().subscribe(),
        };
        Ok((watcher, handle))
    }

    /// Goes by what this file says of tenants and mail providers, also when that changes.
    #[must_use]
    pub fn with_policy(mut self, file: &PolicyFile) -> Self {
        self.policy = file.current();
        self
    }

    /// Takes what there is to take and watches it until `drain` begins; then hands over.
    ///
    /// # Errors
    /// What does not pass by itself: [`Error`].
    pub async fn run(self, mut drain: DrainHandle) -> Result<(), Error> {
        let mut running = tokio::select! {
            // No arm holds anything that the other would lose: what was claimed ages out, or is ours again at the next start.
            biased;
            _ = drain.signaled() => return Ok(()),
            running = Running::start(self) => running?,
        };
        match running.keep(&mut drain).await {
            Ok(draining) => {
                running.leave(draining).await;
                Ok(())
            }
            Err(error) => {
                // Whatever runs is not ours to finish.
                running.abort().await;
                Err(error)
            }
        }
    }
}
