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

/// A server's words with some of them changed to others of the same length, for a client that then logs in by LOGIN.
pub(crate) struct EditedStream {
    pub(crate) inner: TcpStream,
    pub(crate) edits: &'static [(&'static str, &'static str)],
}

impl AsyncRead for EditedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let read = buf.filled_mut().get_mut(before..).unwrap();
        for (from, to) in self.edits {
            assert_eq!(from.len(), to.len());
            while let Some(at) = read
                .windows(from.len())
                .position(|window| window == from.as_bytes())
            {
                let place = read.get_mut(at..at + to.len()).unwrap();
                place.copy_from_slice(to.as_bytes());
            }
        }
        result
    }
}

impl AsyncWrite for EditedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        assert!(!String::from_utf8_lossy(buf).contains("AUTHENTICATE"));
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
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
