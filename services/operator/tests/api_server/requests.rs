//! What an operator asks of the API server, counted, and cut off after so many.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::sync::Notify;
use tower::{BoxError, buffer::BufferLayer, filter::AsyncFilterLayer};

use crate::world::World;

/// How many requests there were, and how many there may be.
#[derive(Debug)]
pub(crate) struct Requests {
    made: AtomicUsize,
    limit: usize,
    reached: Notify,
}

impl Requests {
    /// The one after so many is never sent, nor any after it.
    pub(crate) fn limited(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            made: AtomicUsize::new(0),
            limit,
            reached: Notify::new(),
        })
    }

    /// Waits for the one that is not sent.
    pub(crate) async fn are_over(&self) {
        self.reached.notified().await;
    }

    async fn pass(&self) {
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
    let layer = AsyncFilterLayer::new(move |request| {
        let requests = Arc::clone(&requests);
        async move {
            requests.pass().await;
            Ok::<_, BoxError>(request)
        }
    });
    let builder = ClientBuilder::try_from(config).unwrap();
    // The filter asks for a service that can be cloned.
    let buffer = BufferLayer::new(64);
    builder.with_layer(&buffer).with_layer(&layer).build()
}
