//! Real connections to a bounded listener.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first surprise"
)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mailbell_runtime::{
    drain::{Drain, DrainHandle},
    incoming::{Bounds, Connection, Incoming, IncomingMetrics, incoming},
    listen,
    metrics::Metrics,
    secretfile,
    tls::{self, ReloadingCert, Roots},
};
use rustls::{ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected as _;

/// Only ends a test that has failed.
const LIMIT: Duration = Duration::from_secs(20);

struct Server {
    metrics: Metrics,
    addr: SocketAddr,
    incoming: Incoming,
}

fn serve(tls: Option<Arc<ServerConfig>>, bounds: Bounds, drain: DrainHandle) -> Server {
    let mut metrics = Metrics::new("test");
    let counters = IncomingMetrics::register(metrics.registry());
    let bound = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--listen").unwrap();
    let addr = bound.addr();
    let incoming = incoming(bound, "device", tls, bounds, &counters, drain).unwrap();
    Server {
        metrics,
        addr,
        incoming,
    }
}

impl Server {
    async fn take(&mut self) -> Connection {
        self.incoming.next().await.expect("a connection").unwrap()
    }

    fn value(&self, name: &str) -> i64 {
        let text = self.metrics.encode().unwrap();
        let line = format!("mailbell_{name}{{listener=\"device\"}} ");
        text.lines()
            .find_map(|l| l.strip_prefix(line.as_str()))
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Until the counter stands there; the test's own time limit ends a wait that is in vain.
    async fn until(&self, name: &str, value: i64) {
        let reached = async {
            while self.value(name) != value {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LIMIT, reached)
            .await
            .expect("the counter in time");
    }
}

#[tokio::test]
async fn plain_connections_are_counted_and_end_with_the_drain() {
    let (drain, handle) = Drain::new();
    let mut server = serve(
        None,
        Bounds {
            send_buffer: Some(16 * 1024),
            ..Bounds::default()
        },
        handle,
    );
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    let mut connection = server.take().await;
    assert!(!connection.is_tls());
    assert_eq!(
        connection.connect_info().remote_addr(),
        Some(client.local_addr().unwrap())
    );
    assert_eq!(server.value("connections"), 1);
    drain.drain_with_timeout(LIMIT).await.unwrap();
    assert!(server.incoming.next().await.is_none());
    assert!(
        TcpStream::connect(server.addr).await.is_err(),
        "the listener is closed"
    );
    connection.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");
    drop(connection);
    assert_eq!(server.value("connections"), 0);
}

#[tokio::test]
async fn more_than_allowed_wait_for_a_slot() {
    let (_drain, handle) = Drain::new();
    let mut server = serve(
        None,
        Bounds {
            connections: 1,
            ..Bounds::default()
        },
        handle,
    );
    let _first_client = TcpStream::connect(server.addr).await.unwrap();
    let first = server.take().await;
    let second_client = TcpStream::connect(server.addr).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), server.incoming.next()).await;
    assert!(early.is_err(), "the only slot is taken");
    drop(first);
    let second = server.take().await;
    assert_eq!(
        second.connect_info().remote_addr(),
        Some(second_client.local_addr().unwrap())
    );
}

struct Tls {
    server: Arc<ServerConfig>,
    client: TlsConnector,
    _dir: tempfile::TempDir,
}

fn tls() -> Tls {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    secretfile::write(&key, made.signing_key.serialize_pem().as_bytes()).unwrap();
    let server = tls::server_config(ReloadingCert::load(&cert, key).unwrap(), &[]).unwrap();
    let client = TlsConnector::from(tls::client_config(Roots::File(&cert), &[]).unwrap());
    Tls {
        server,
        client,
        _dir: dir,
    }
}

#[tokio::test]
async fn a_slow_or_wrong_handshake_holds_up_nobody_for_long() {
    let tls = tls();
    let (_drain, handle) = Drain::new();
    // One handshake at a time: the silent one is in the way of the others until its time is over.
    let bounds = Bounds {
        handshakes: 1,
        handshake_time: Duration::from_millis(200),
        ..Bounds::default()
    };
    let mut server = serve(Some(Arc::clone(&tls.server)), bounds, handle);
    let _silent = TcpStream::connect(server.addr).await.unwrap();
    let mut wrong = TcpStream::connect(server.addr).await.unwrap();
    wrong.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    server.until("handshakes_failed_total", 2).await;
    server.until("connections", 0).await;

    // Tried again where a busy machine lets its time run out, too: what is shown is that the way is free.
    let handshake = async {
        loop {
            let right = TcpStream::connect(server.addr).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            if let Ok(client) = tls.client.connect(name, right).await {
                return client;
            }
        }
    };
    let mut client = tokio::time::timeout(LIMIT, handshake).await.unwrap();
    let mut connection = server.take().await;
    assert!(connection.is_tls());
    client.write_all(b"hello").await.unwrap();
    client.flush().await.unwrap();
    let mut got = [0; 5];
    connection.read_exact(&mut got).await.unwrap();
    assert_eq!((&got, server.value("connections")), (b"hello", 1));
}
