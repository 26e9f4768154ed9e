//! Connections for a gRPC server: accepted, bounded, and through their TLS handshake before the server sees them.
//!
//! A reconnect storm is the normal case. What bounds it, from outside to inside: the kernel's backlog, the number of
//! connections, the number of handshakes at the same time, the time of one handshake. A connection that waits costs the
//! kernel some memory and us nothing; so whoever is too much waits, and nobody is refused who would come back at once.

mod connection;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

pub use self::connection::Connection;
use crate::{Error, drain::DrainHandle, listen::Bound};

/// `mailbell_connections{listener}`: open connections.
pub const CONNECTIONS: &str = "connections";
/// `mailbell_handshakes_failed_total{listener}`: connections that ended before they were of use.
pub const HANDSHAKES_FAILED: &str = "handshakes_failed";

/// Finished connections that wait for the server to take them; it takes one as soon as it runs.
const WAITING: usize = 64;

/// How long to wait when the process is out of descriptors: long enough that some may have been closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds of one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections at the same time; more wait in the kernel.
    pub connections: usize,
    /// Handshakes at the same time. One costs some 0.3 ms of CPU and 30 KB meanwhile.
    pub handshakes: usize,
    /// Time of one handshake, and of being taken by the server after it.
    pub handshake_time: Duration,
    /// The kernel's send buffer of a connection in bytes: a reader that has died can hide that much and no more.
    pub send_buffer: Option<usize>,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: 100_000,
            handshakes: 256,
            handshake_time: Duration::from_secs(10),
            send_buffer: None,
        }
    }
}

/// The metrics of all listeners of a process.
#[derive(Debug, Clone, Default)]
pub struct IncomingMetrics {
    connections: Family<Labels, Gauge>,
    failed: Family<Labels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    listener: &'static str,
}

impl IncomingMetrics {
    /// Registers both metrics.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(CONNECTIONS, "Open connections", metrics.connections.clone());
        registry.register(
            HANDSHAKES_FAILED,
            "Connections that ended before they were of use",
            metrics.failed.clone(),
        );
        metrics
    }
}

/// What `tonic`'s `serve_with_incoming` takes.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// Accepts from a bound listener, with TLS if a configuration is given. The stream ends when the drain begins, and the listener is
/// closed; open connections live on.
///
/// # Errors
/// When the runtime cannot watch the listener.
pub fn incoming(
    bound: Bound,
    listener: &'static str,
    tls: Option<Arc<ServerConfig>>,
    bounds: Bounds,
    metrics: &IncomingMetrics,
    drain: DrainHandle,
) -> Result<Incoming, Error> {
    let addr = bound.addr();
    let socket = bound.into_tokio().map_err(|source| Error::Listen {
        addr,
        flag: listener,
        source,
    })?;
    let labels = Labels { listener };
    let acceptor = Acceptor {
        socket,
        tls: tls.map(TlsAcceptor::from),
        bounds,
        slots: Arc::new(Semaphore::new(
            bounds.connections.clamp(1, Semaphore::MAX_PERMITS),
        )),
        handshakes: Arc::new(Semaphore::new(
            bounds.handshakes.clamp(1, Semaphore::MAX_PERMITS),
        )),
        open: metrics.connections.get_or_create_owned(&labels),
        failed: metrics.failed.get_or_create_owned(&labels),
    };
    let (tx, rx) = mpsc::channel(WAITING);
    tokio::spawn(acceptor.run(tx, drain));
    Ok(ReceiverStream::new(rx))
}

type Sender = mpsc::Sender<io::Result<Connection>>;

struct Acceptor {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    bounds: Bounds,
    slots: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    open: Gauge,
    failed: Counter,
}

/// A connection with the room that it has been given.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    slot: OwnedSemaphorePermit,
    handshake: OwnedSemaphorePermit,
}

impl Acceptor {
    async fn run(self, tx: Sender, mut drain: DrainHandle) {
        loop {
            tokio::select! {
                biased;
                // First: nothing new once the drain has begun. The listener closes with `self`, so a client meets a closed port and tries elsewhere.
                _ = drain.signaled() => return,
                // The server is gone without a drain: nobody would take a connection.
                () = tx.closed() => return,
                // Cancelled, it gives its room back, and loses no connection: tokio's accept does not.
                accepted = self.next() => self.finish(accepted, tx.clone()),
            }
        }
    }

    /// Room first, then the connection: it waits in the kernel, where it costs least.
    async fn next(&self) -> Accepted {
        let slot = room(&self.slots).await;
        let handshake = room(&self.handshakes).await;
        loop {
            match self.socket.accept().await {
                Ok((stream, peer)) => {
                    return Accepted {
                        stream,
                        peer,
                        slot,
                        handshake,
                    };
                }
                // The peer has given up in the backlog.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn finish(&self, accepted: Accepted, tx: Sender) {
        let Accepted {
            stream,
            peer,
            slot,
            handshake,
        } = accepted;
        let (tls, bounds, failed) = (self.tls.clone(), self.bounds, self.failed.clone());
        let open = connection::Open::new(self.open.clone(), slot);
        // Bounded by the permits that it holds and by its time, so nobody has to wait for it.
        tokio::spawn(async move {
            let work = async {
                prepare(&stream, bounds.send_buffer)?;
                let connection = Connection::establish(stream, peer, tls, open).await?;
                drop(handshake);
                tx.send(Ok(connection))
                    .await
                    .map_err(|_| io::Error::from(io::ErrorKind::NotConnected))
            };
            let error = match timeout(bounds.handshake_time, work).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_elapsed) => io::ErrorKind::TimedOut.into(),
            };
            failed.inc();
            // A scanner makes thousands of them, so the counter tells the person and this the developer.
            tracing::debug!(%error, "a connection ended in its handshake");
        });
    }
}

async fn room(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    match Arc::clone(semaphore).acquire_owned().await {
        Ok(permit) => permit,
        // Nobody closes these semaphores.
        Err(_closed) => std::future::pending().await,
    }
}

fn prepare(stream: &TcpStream, send_buffer: Option<usize>) -> io::Result<()> {
    // Events are small and must not wait for each other.
    stream.set_nodelay(true)?;
    if let Some(bytes) = send_buffer {
        socket2::SockRef::from(stream).set_send_buffer_size(bytes)?;
    }
    Ok(())
}
