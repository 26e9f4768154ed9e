//! What stands in front of a service outside of the cluster: a load balancer that passes connections on.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use rand::seq::SliceRandom as _;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

/// A node on which no pod of the service is does not answer at all.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
const START_LIMIT: Duration = Duration::from_secs(60);

/// Passes each connection on to one of several addresses, whichever answers. Dropped, it ends them all.
#[derive(Debug)]
pub(crate) struct Balancer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Balancer {
    /// Starts one, once it has somebody to pass a connection to: nodes learn of a service after it is there.
    pub(crate) async fn start(targets: Vec<(Ipv4Addr, u16)>) -> io::Result<Self> {
        let deadline = Instant::now() + START_LIMIT;
        while connect(&targets).await.is_none() {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            sleep(CONNECT_LIMIT).await;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                // Those that have ended are taken out as others come.
                while connections.try_join_next().is_some() {}
                if let Ok((connection, _)) = listener.accept().await {
                    connections.spawn(pass(connection, targets.clone()));
                }
            }
        });
        Ok(Self { address, task })
    }

    /// For a certificate of `localhost`.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: TcpStream, targets: Vec<(Ipv4Addr, u16)>) {
    if let Some(mut server) = connect(&targets).await {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn connect(targets: &[(Ipv4Addr, u16)]) -> Option<TcpStream> {
    let mut targets = targets.to_vec();
    targets.shuffle(&mut rand::rng());
    for target in targets {
        if let Ok(Ok(server)) = timeout(CONNECT_LIMIT, TcpStream::connect(target)).await {
            return Some(server);
        }
    }
    None
}
