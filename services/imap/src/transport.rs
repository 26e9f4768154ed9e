//! The way to the server: name, TCP, TLS.

use std::io;
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
    .map_err(|error| {
        if is_local_limit(&error) {
            Error::LocalLimit
        } else {
            Error::Dns
        }
    })?
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
            Ok(Err(error)) => last = failure(&error, address),
            Err(_) => last = Error::ConnectTimeout,
        }
    }
    Err(last)
}

/// Why there is no connection to an address.
fn failure(error: &io::Error, address: &SocketAddr) -> Error {
    // Where IPv6 is switched off, its addresses are told so too: that is no limit.
    let no_port = error.kind() == io::ErrorKind::AddrNotAvailable && address.is_ipv4();
    if no_port || is_local_limit(error) {
        Error::LocalLimit
    } else {
        Error::Refused(error.kind())
    }
}

/// Whether the process (EMFILE) or the system (ENFILE) has too many open files. `ErrorKind` has no word for it; the
/// numbers are those of every Unix.
fn is_local_limit(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    #[test]
    fn limits_of_this_machine_are_told_from_refusals() {
        const EADDRNOTAVAIL: i32 = if cfg!(target_os = "linux") { 99 } else { 49 };
        const ECONNREFUSED: i32 = if cfg!(target_os = "linux") { 111 } else { 61 };
        for (number, address, class) in [
            (24, "192.0.2.1:993", Class::LocalLimit),
            (23, "[2001:db8::1]:993", Class::LocalLimit),
            (EADDRNOTAVAIL, "192.0.2.1:993", Class::LocalLimit),
            (EADDRNOTAVAIL, "[::1]:993", Class::Refused),
            (ECONNREFUSED, "192.0.2.1:993", Class::Refused),
        ] {
            let error = failure(
                &io::Error::from_raw_os_error(number),
                &address.parse().unwrap(),
            );
            assert_eq!(error.class(), class, "{number} {address}");
            assert!(!error.is_permanent());
        }
    }
}
