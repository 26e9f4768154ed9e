//! What a stranger on the metrics port can cost: so many connections, each for so long.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Sleep,
};

/// A kubelet, a few Prometheus replicas and a person need less than ten.
pub(super) const CONNECTIONS: usize = 64;

/// After this a connection reads its end: so whoever holds all of them and sends a byte now and then locks the probes out for
/// a minute at most. A client that keeps its connection connects again, as it does whenever a server closes an idle one.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);

/// Accepts only as many connections as are allowed; the kernel holds the others meanwhile.
#[derive(Debug)]
pub(super) struct BoundedListener {
    listener: TcpListener,
    slots: Arc<Semaphore>,
}

impl BoundedListener {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
        // axum's own accept: it waits a little when the process is out of descriptors.
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        (BoundedStream::new(stream, slot), addr)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends at its deadline, and gives its slot back when it is dropped.
#[derive(Debug)]
pub(super) struct BoundedStream<S> {
    stream: S,
    deadline: Pin<Box<Sleep>>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl<S> BoundedStream<S> {
    fn new(stream: S, slot: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            deadline: Box::pin(tokio::time::sleep(LIFETIME)),
            _slot: slot,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            // An end, not an error: an answer that is under way is still written.
            return Poll::Ready(Ok(()));
        }
        pin!(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Who does not read the answer is cut off by an error, as nothing else ends a blocked write.
        match pin!(&mut self.stream).poll_write(cx, buf) {
            Poll::Pending if self.deadline.as_mut().poll(cx).is_ready() => {
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            other => other,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::Instant,
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_reads_its_end_at_the_deadline() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = BoundedStream::new(near, None);
        let start = Instant::now();
        far.write_all(b"GET").await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        assert_eq!(
            (got.as_slice(), start.elapsed()),
            (b"GET".as_slice(), LIFETIME)
        );
        stream.write_all(b"the rest of an answer").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_does_not_read_is_cut_off() {
        let (near, _far) = tokio::io::duplex(64);
        let mut stream = BoundedStream::new(near, None);
        let start = Instant::now();
        let error = stream.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(
            (error.kind(), start.elapsed()),
            (io::ErrorKind::TimedOut, LIFETIME)
        );
    }

    #[tokio::test]
    async fn no_more_connections_than_slots() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut listener = BoundedListener::new(listener);
        listener.slots = Arc::new(Semaphore::new(1));
        let _clients = [
            TcpStream::connect(addr).await.unwrap(),
            TcpStream::connect(addr).await.unwrap(),
        ];
        let (first, _) = Listener::accept(&mut listener).await;
        assert_eq!(listener.slots.available_permits(), 0);
        let mut second = pin!(Listener::accept(&mut listener));
        let early =
            std::future::poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_ready())).await;
        assert!(!early, "the only slot is taken");
        drop(first);
        second.await;
    }
}
