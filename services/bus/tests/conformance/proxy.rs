//! A TCP proxy that can lose what the server says.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Passes everything on.
    Pass,
    /// Swallows what comes from the server.
    Deaf,
    /// Ends every connection and takes no new one.
    Cut,
}

/// Between a client and one server.
pub(crate) struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Bytes from the server that were swallowed.
    swallowed: Arc<watch::Sender<usize>>,
    task: JoinHandle<()>,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let swallowed = Arc::new(watch::channel(0).0);
        let connections = Arc::<Mutex<Vec<JoinHandle<()>>>>::default();
        let (counted, kept) = (Arc::clone(&swallowed), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let connection =
                    tokio::spawn(pass(client, server, modes.clone(), Arc::clone(&counted)));
                kept.lock().unwrap().push(connection);
            }
        });
        Self {
            address,
            mode,
            swallowed,
            task,
            connections,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.swallowed.send_replace(0);
        self.mode.send_replace(mode);
    }

    /// Waits until the server has said something that was swallowed.
    pub(crate) async fn swallowed(&self) {
        self.swallowed
            .subscribe()
            .wait_for(|bytes| *bytes > 0)
            .await
            .unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

async fn pass(
    mut client: TcpStream,
    server: u16,
    modes: watch::Receiver<Mode>,
    swallowed: Arc<watch::Sender<usize>>,
) {
    let mut ending = modes.clone();
    if *modes.borrow() == Mode::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            biased;
            () = async { let _ = ending.wait_for(|mode| *mode == Mode::Cut).await; } => return,
            read = client.read(&mut up) => match read {
                Ok(n) if n > 0 => {
                    if server.write_all(&up[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(n) if n > 0 => {
                    if *modes.borrow() == Mode::Deaf {
                        swallowed.send_modify(|bytes| *bytes += n);
                    } else if client.write_all(&down[..n]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}
