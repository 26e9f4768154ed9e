//! What the tests on a real server have in common.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use mailbell_imap::{Connection, Endpoint, Login, Patience, Settings, TlsMode, TlsSettings};
use mailbell_test_servers::Dovecot;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub(crate) fn endpoint(server: &Dovecot, tls: TlsMode) -> Endpoint {
    let port = if tls == TlsMode::Implicit {
        server.imaps_port()
    } else {
        server.imap_port()
    };
    Endpoint {
        host: "localhost".into(),
        port,
        tls,
    }
}

pub(crate) fn settings(server: &Dovecot) -> Settings {
    let tls = TlsSettings::only([server.certificate().authority_pem.as_bytes()]).unwrap();
    let mut settings = Settings::new(tls);
    settings.allow_plaintext = true;
    settings
}

pub(crate) fn login(password: &str) -> Login {
    Login {
        user: "alice".into(),
        secret: password.as_bytes().to_vec().into(),
    }
}

pub(crate) async fn open(server: &Dovecot) -> Connection {
    let login = login(server.password("alice"));
    Connection::open(
        &endpoint(server, TlsMode::Implicit),
        &login,
        &settings(server),
    )
    .await
    .unwrap()
}

pub(crate) fn patience(seconds: u64) -> Patience {
    let duration = Duration::from_secs(seconds);
    Patience {
        until: Instant::now() + duration,
        quiet: duration,
    }
}

/// Counts what is read.
pub(crate) struct CountingStream {
    pub(crate) inner: TcpStream,
    pub(crate) read: Arc<AtomicU64>,
}

impl AsyncRead for CountingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.read
            .fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for CountingStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
