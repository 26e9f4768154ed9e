//! The way to the server: name, TCP, TLS.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::error::Error;
use crate::settings::{Endpoint, Settings, TlsMode};

/// A byte stream in both directions.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// The bare stream, whatever is below. All that a parked connection holds.
pub type Stream = Box<dyn Transport>;

/// Most addresses of a name that are tried, one after the other.
const ADDRESS_LIMIT: usize = 4;

/// Connects, with TLS when the endpoint has it from the start.
pub(crate) async fn dial(endpoint: &Endpoint, settings: &Settings) -> Result<Stream, Error> {
    if endpoint.tls == TlsMode::Plain && !settings.allow_plaintext {
        return Err(Error::PlaintextNotAllowed);
    }
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let addresses = timeout(
        settings.timeouts.connect,
        tokio::net::lookup_host((host, endpoint.port)),
    )
    .await
    .map_err(|_| Error::Dns)?
    .map_err(|_| Error::Dns)?
    .take(ADDRESS_LIMIT)
    .collect::<Vec<_>>();
    let stream: Stream = Box::new(connect(&addresses, settings).await?);
    match endpoint.tls {
        TlsMode::Implicit => secure(stream, endpoint, settings).await,
        TlsMode::StartTls | TlsMode::Plain => Ok(stream),
    }
}

async fn connect(addresses: &[SocketAddr], settings: &Settings) -> Result<TcpStream, Error> {
    let mut last = Error::Dns;
    // One address that swallows packets must not use up the time of the others.
    let share = settings.timeouts.connect / u32::try_from(addresses.len().max(1)).unwrap_or(1);
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Commands are small and each waits for its answer.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) => last = Error::Refused(error.kind()),
            Err(_) => last = Error::ConnectTimeout,
        }
    }
    Err(last)
}

/// Does the TLS handshake.
pub(crate) async fn secure(
    stream: Stream,
    endpoint: &Endpoint,
    settings: &Settings,
) -> Result<Stream, Error> {
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    timeout(settings.timeouts.tls, settings.tls.connect(host, stream))
        .await
        .map_err(|_| Error::Timeout("TLS handshake"))?
}
