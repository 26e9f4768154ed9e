//! A listener that can be shut and opened again on the same address.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

/// Where a door is if nobody says where: no client has this address as its source, so no port of a client is in the way when the
/// door opens again. Other systems than Linux have one address of loopback.
const HOUSE: Ipv4Addr = if cfg!(target_os = "linux") {
    Ipv4Addr::new(127, 0, 0, 2)
} else {
    Ipv4Addr::LOCALHOST
};

/// How long to wait before a port or a descriptor is asked for again.
const AGAIN: Duration = Duration::from_millis(10);

/// The listener, unless it is shut.
#[derive(Debug)]
pub(crate) struct Door {
    address: SocketAddr,
    listener: Option<TcpListener>,
}

impl Door {
    /// Opens a door on a free port.
    pub(crate) async fn anywhere() -> io::Result<Self> {
        Self::open((HOUSE, 0).into()).await
    }

    /// Opens a door here.
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            address: listener.local_addr()?,
            listener: Some(listener),
        })
    }

    /// Where it is, also while it is shut.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on who connects is refused by the system. Who has connected and was not let in is reset.
    pub(crate) fn shut(&mut self) {
        self.listener = None;
    }

    /// Lets the next one in; opens the door first if it is shut. Safe to cancel.
    pub(crate) async fn accept(&mut self) -> TcpStream {
        loop {
            let listener = match &self.listener {
                Some(listener) => listener,
                None => match TcpListener::bind(self.address).await {
                    Ok(listener) => self.listener.insert(listener),
                    // Somebody has the port for a moment.
                    Err(_) => {
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                },
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    // What goes through here is small and waited for.
                    let _ = stream.set_nodelay(true);
                    return stream;
                }
                // No descriptor left, or the client has gone already.
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}
