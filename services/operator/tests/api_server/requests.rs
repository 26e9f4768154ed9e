//! What an operator asks of the API server: counted, cut off after so many, or held back for a while.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::Request;
use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::sync::{Notify, Semaphore};
use tower::{BoxError, buffer::BufferLayer, filter::AsyncFilterLayer};

use crate::world::World;

/// How many requests there were, and how many there may be.
#[derive(Debug)]
pub(crate) struct Requests {
    made: AtomicUsize,
    /// Of these, statuses of MailAccounts that were written.
    statuses: AtomicUsize,
    /// And tokens of the operator that were read.
    tokens: AtomicUsize,
    limit: usize,
    reached: Notify,
    /// Those whose path and query have all of these in them wait until there are permits.
    held: Option<(&'static [&'static str], Semaphore)>,
}

impl Requests {
    /// The one after so many is never sent, nor any after it.
    pub(crate) fn limited(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            made: AtomicUsize::new(0),
            statuses: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            limit,
            reached: Notify::new(),
            held: None,
        })
    }

    /// Those whose path and query have all of these in them are sent once they are let go.
    pub(crate) fn holding(parts: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self {
            made: AtomicUsize::new(0),
            statuses: AtomicUsize::new(0),
            tokens: AtomicUsize::new(0),
            limit: usize::MAX,
            reached: Notify::new(),
            held: Some((parts, Semaphore::new(0))),
        })
    }

    pub(crate) fn let_go(&self) {
        let (_, permits) = self.held.as_ref().unwrap();
        permits.close();
    }

    /// How many there were, with those that are held.
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// How often the status of a MailAccount was written.
    pub(crate) fn statuses(&self) -> usize {
        self.statuses.load(Ordering::Relaxed)
    }

    /// How often the token was read by which an admin API knows the operator: anew for each call after one that nobody answered.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Waits for the first one that is not sent, or held.
    pub(crate) async fn are_over(&self) {
        self.reached.notified().await;
    }

    async fn pass(&self, path: &str) {
        if let Some((parts, permits)) = &self.held
            && parts.iter().all(|part| path.contains(part))
        {
            self.reached.notify_one();
            // Closed, it lets all go.
            assert!(permits.acquire().await.is_err());
        }
        if self.made.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A client of the user who may everything, all of whose requests are counted.
pub(crate) async fn client(world: &World, requests: Arc<Requests>) -> Client {
    let read = Kubeconfig::read_from(world.server.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(read, &options)
        .await
        .unwrap();
    let layer = AsyncFilterLayer::new(move |request: Request<Body>| {
        let requests = Arc::clone(&requests);
        async move {
            let uri = request.uri();
            if uri.path().contains("/mailaccounts/") && uri.path().ends_with("/status") {
                requests.statuses.fetch_add(1, Ordering::Relaxed);
            }
            if uri.path().ends_with("-operator-token") {
                requests.tokens.fetch_add(1, Ordering::Relaxed);
            }
            requests.pass(&uri.to_string()).await;
            Ok::<_, BoxError>(request)
        }
    });
    let builder = ClientBuilder::try_from(config).unwrap();
    // The filter asks for a service that can be cloned.
    let buffer = BufferLayer::new(64);
    builder.with_layer(&buffer).with_layer(&layer).build()
}
