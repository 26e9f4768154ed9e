//! Binding of listeners, before any other work, with an error that says what to do.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::Error;

/// Connections that the kernel holds until they are accepted. A reconnect storm fills it first; the kernel cuts it to `net.core.somaxconn` (4096).
const BACKLOG: i32 = 4096;

/// A bound listener, not yet accepted from.
#[derive(Debug)]
pub struct Bound {
    listener: std::net::TcpListener,
    addr: SocketAddr,
}

impl Bound {
    /// The address in use; its port is the real one where 0 was asked for.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The listener itself, non-blocking.
    #[must_use]
    pub fn into_std(self) -> std::net::TcpListener {
        self.listener
    }

    /// The listener on the current tokio runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    ///
    /// # Panics
    /// Outside a tokio runtime, as all of tokio's sockets.
    pub fn into_tokio(self) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(self.listener)
    }
}

/// Binds `addr`. `flag` is what the error tells the person to change, for example `--http-listen`.
///
/// # Errors
/// [`Error::AddressInUse`] or [`Error::Listen`].
pub fn bind(addr: SocketAddr, flag: &'static str) -> Result<Bound, Error> {
    open(addr).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse { addr, flag },
        _ => Error::Listen { addr, flag, source },
    })
}

/// `[::]` is every address of both families; where the kernel was begun without IPv6, every one that there is.
fn open(addr: SocketAddr) -> io::Result<Bound> {
    let any_family = addr.is_ipv6() && addr.ip().is_unspecified();
    match open_one(addr) {
        Err(error) if any_family && is_without_family(&error) => {
            open_one((Ipv4Addr::UNSPECIFIED, addr.port()).into())
        }
        done => done,
    }
}

fn is_without_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn open_one(addr: SocketAddr) -> io::Result<Bound> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the old process' connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        // `[::]` means every address, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    let listener: std::net::TcpListener = socket.into();
    let addr = listener.local_addr()?;
    Ok(Bound { listener, addr })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExitCode;

    fn any() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn the_bound_address_has_the_real_port() {
        let bound = bind(any(), "--listen").unwrap();
        assert_ne!(bound.addr().port(), 0);
        let addr = bound.addr();
        assert_eq!(bound.into_std().local_addr().unwrap(), addr);
    }

    #[test]
    fn a_taken_address_names_the_flag() {
        let first = bind(any(), "--listen").unwrap();
        let error = bind(first.addr(), "--http-listen").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "cannot listen on {}: address already in use, choose another with --http-listen",
                first.addr()
            ),
        );
        assert_eq!(error.exit_code(), ExitCode::Unavailable);
    }

    #[test]
    fn an_address_of_another_machine_is_a_usage_error() {
        // 192.0.2.0/24 is reserved for documentation, so no machine has it.
        let error = bind(SocketAddr::from(([192, 0, 2, 1], 0)), "--listen").unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert!(error.to_string().contains("--listen"));
    }

    /// That IPv6 is missing is said by the socket, before an address counts; a machine without it is not to be had here.
    #[test]
    fn every_address_is_of_both_families() {
        let bound = bind("[::]:0".parse().unwrap(), "--listen").unwrap();
        assert!(bound.addr().is_ipv6());
        let ipv4 = SocketAddr::from(([127, 0, 0, 1], bound.addr().port()));
        std::net::TcpStream::connect(ipv4).unwrap();
        let unknown = Socket::new(Domain::from(0x7fff), Type::STREAM, None).unwrap_err();
        assert!(is_without_family(&unknown));
        let taken = open_one(bound.addr()).unwrap_err();
        assert!(!is_without_family(&taken));
    }

    #[tokio::test]
    async fn tokio_accepts_from_it() {
        let bound = bind(any(), "--listen").unwrap();
        let addr = bound.addr();
        let listener = bound.into_tokio().unwrap();
        let (client, server) =
            tokio::join!(tokio::net::TcpStream::connect(addr), listener.accept());
        assert_eq!(client.unwrap().local_addr().unwrap(), server.unwrap().1);
    }
}
