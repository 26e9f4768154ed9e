//! A device's flaky network: a TCP relay whose connections can be cut.

use std::{io, net::SocketAddr};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::broadcast,
    task::JoinHandle,
};

/// Passes connections on to one address, until they are cut.
#[derive(Debug)]
pub(crate) struct Relay {
    addr: SocketAddr,
    cut: broadcast::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// Listens on a free port of loopback.
    pub(crate) async fn start(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let (cut, _) = broadcast::channel(1);
        let accepting = tokio::spawn(accept(listener, to, cut.clone()));
        Ok(Self {
            addr,
            cut,
            accepting,
        })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Drops every connection, and refuses new ones.
    pub(crate) fn cut(&self) {
        self.accepting.abort();
        let _ = self.cut.send(());
    }

    /// Takes connections again, on the same port.
    pub(crate) async fn heal(&mut self, to: SocketAddr) -> io::Result<()> {
        let listener = TcpListener::bind(self.addr).await?;
        self.accepting = tokio::spawn(accept(listener, to, self.cut.clone()));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, cut: broadcast::Sender<()>) {
    while let Ok((mut device, _)) = listener.accept().await {
        let mut cut = cut.subscribe();
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(to).await else {
                return;
            };
            tokio::select! {
                // Either end closing ends the copy; being cut drops both without a word.
                _ = tokio::io::copy_bidirectional(&mut device, &mut server) => {}
                _ = cut.recv() => {}
            }
        });
    }
}
