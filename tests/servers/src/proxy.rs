//! A TCP proxy that a test cuts and heals, whole or in one direction.
//!
//! The network between two hosts fails in two ways that look different. It refuses or resets ([`Mode::Cut`]), and both ends know at
//! once. Or it loses packets: then nothing is said, and what TCP has not delivered yet comes as soon as the network is back
//! ([`Flow::Hold`]). [`Flow::Swallow`] is for what a network doesn't do but a host does: it dies with what it had taken already.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::door::Door;

/// Most bytes that are on their way in one direction of one connection.
const CHUNK: usize = 16 * 1024;

/// What happens to the bytes of one direction, and to the end of the connection that is announced in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Passed on.
    Pass,
    /// Kept, with all that comes behind, until they may pass.
    Hold,
    /// Lost.
    Swallow,
}

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Takes connections.
    Open {
        /// What becomes of what the client says.
        to_server: Flow,
        /// What becomes of what the server says.
        to_client: Flow,
    },
    /// Resets every connection and refuses new ones.
    Cut,
}

impl Mode {
    /// Everything is passed on.
    pub const PASS: Self = Self::open(Flow::Pass, Flow::Pass);
    /// The client hears nothing more: what the server says is lost.
    pub const DEAF: Self = Self::open(Flow::Pass, Flow::Swallow);
    /// The server hears nothing more: what the client says is lost.
    pub const MUTE: Self = Self::open(Flow::Swallow, Flow::Pass);
    /// All is lost, and the connections stay.
    pub const BLACK_HOLE: Self = Self::open(Flow::Swallow, Flow::Swallow);
    /// No packet passes; what was sent arrives when the network heals, if both ends are still there.
    pub const STALLED: Self = Self::open(Flow::Hold, Flow::Hold);
    /// As [`Mode::STALLED`], of what the client says only.
    pub const STALLED_TO_SERVER: Self = Self::open(Flow::Hold, Flow::Pass);
    /// As [`Mode::STALLED`], of what the server says only.
    pub const STALLED_TO_CLIENT: Self = Self::open(Flow::Pass, Flow::Hold);

    const fn open(to_server: Flow, to_client: Flow) -> Self {
        Self::Open {
            to_server,
            to_client,
        }
    }

    /// The same for who sits at the other end: what the client says is treated as what the server said.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::Open {
                to_server,
                to_client,
            } => Self::open(to_client, to_server),
            Self::Cut => Self::Cut,
        }
    }

    fn to_server(self) -> Flow {
        match self {
            Self::Open { to_server, .. } => to_server,
            Self::Cut => Flow::Hold,
        }
    }

    fn to_client(self) -> Flow {
        match self {
            Self::Open { to_client, .. } => to_client,
            Self::Cut => Flow::Hold,
        }
    }
}

#[derive(Debug)]
struct Shared {
    mode: watch::Sender<Mode>,
    swallowed: watch::Sender<usize>,
    connections: watch::Sender<usize>,
}

/// Between clients and one server. Dropped, it resets nothing but ends all.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        Ok(Self::behind(Door::anywhere().await?, server))
    }

    /// Listens at this address.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn start_at(address: SocketAddr, server: SocketAddr) -> io::Result<Self> {
        Ok(Self::behind(Door::open(address).await?, server))
    }

    fn behind(door: Door, server: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            mode: watch::Sender::new(Mode::PASS),
            swallowed: watch::Sender::new(0),
            connections: watch::Sender::new(0),
        });
        Self {
            address: door.address(),
            task: tokio::spawn(serve(door, server, Arc::clone(&shared))),
            shared,
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it does from now on, also with the connections that it has.
    pub fn set(&self, mode: Mode) {
        self.shared.swallowed.send_replace(0);
        self.shared.mode.send_replace(mode);
    }

    /// What it does.
    #[must_use]
    pub fn mode(&self) -> Mode {
        *self.shared.mode.borrow()
    }

    /// Waits until something was swallowed since the mode was set.
    pub async fn swallowed(&self) {
        // The sender lives as long as the proxy.
        let _ = self
            .shared
            .swallowed
            .subscribe()
            .wait_for(|bytes| *bytes > 0)
            .await;
    }

    /// Waits until it has as many connections as are wanted, for example none after a cut.
    pub async fn connections(&self, wanted: impl FnMut(&usize) -> bool) {
        let _ = self.shared.connections.subscribe().wait_for(wanted).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut door: Door, server: SocketAddr, shared: Arc<Shared>) {
    let mut modes = shared.mode.subscribe();
    // Dropped with this task, and they with it.
    let mut connections = JoinSet::new();
    loop {
        let cut = *modes.borrow_and_update() == Mode::Cut;
        if cut {
            door.shut();
        }
        tokio::select! {
            // The mode first: who connects after it was set is treated by it.
            biased;
            changed = modes.changed() => if changed.is_err() { return },
            Some(_) = connections.join_next() => {}
            client = door.accept(), if !cut => {
                connections.spawn(connection(client, server, Arc::clone(&shared)));
            }
        }
    }
}

/// Counts a connection for as long as it lives.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.send_modify(|count| *count -= 1);
    }
}

async fn connection(mut client: TcpStream, server: SocketAddr, shared: Arc<Shared>) {
    shared.connections.send_modify(|count| *count += 1);
    let counted = Counted(Arc::clone(&shared));
    let mut modes = shared.mode.subscribe();
    let Ok(mut server) = TcpStream::connect(server).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = server.set_nodelay(true);
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = pump(from_client, to_server, Mode::to_server, &shared);
        let down = pump(from_server, to_client, Mode::to_client, &shared);
        tokio::select! {
            biased;
            cut = modes.wait_for(|mode| *mode == Mode::Cut) => cut.is_ok(),
            _ = async { tokio::try_join!(up, down) } => false,
        }
    };
    if cut {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
    drop((client, server));
    drop(counted);
}

/// Passes on one direction up to its end, or to an error of either side.
async fn pump(
    from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    flow: fn(Mode) -> Flow,
    shared: &Shared,
) -> io::Result<()> {
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut modes = shared.mode.subscribe();
    loop {
        let held = |mode: &Mode| flow(*mode) == Flow::Hold;
        modes.wait_for(|mode| !held(mode)).await.map_err(gone)?;
        tokio::select! {
            // The mode first, so that what comes after it was set is treated by it.
            biased;
            changed = modes.changed() => {
                changed.map_err(gone)?;
                continue;
            }
            ready = from.readable() => ready?,
        }
        let Some(bytes) = take(&from)? else { continue };
        if bytes.is_empty() {
            // The end of a connection is lost as its bytes are.
            modes
                .wait_for(|mode| flow(*mode) == Flow::Pass)
                .await
                .map_err(gone)?;
            return to.shutdown().await;
        }
        if flow(*modes.borrow()) == Flow::Swallow {
            shared.swallowed.send_modify(|count| *count += bytes.len());
        } else {
            to.write_all(&bytes).await?;
        }
    }
}

/// What has come; nothing at the end; `None` if it was a false alarm. The buffer is on the stack of this call, so that a quiet
/// connection has none.
fn take(from: &ReadHalf<'_>) -> io::Result<Option<Vec<u8>>> {
    let mut chunk = [0; CHUNK];
    match from.try_read(&mut chunk) {
        Ok(count) => Ok(Some(chunk.get(..count).unwrap_or_default().to_vec())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
