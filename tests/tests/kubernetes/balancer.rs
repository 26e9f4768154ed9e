//! What stands in front of a service outside of the cluster: a load balancer that passes connections on.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

/// A node on which no pod of the service is does not answer at all.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);
const START_LIMIT: Duration = Duration::from_secs(60);

/// Where a service is reached: an address and a port of each node.
type Target = (Ipv4Addr, u16);

/// Passes each connection on to one of several addresses that answer, to one after the other. Dropped, it ends them all.
#[derive(Debug)]
pub(crate) struct Balancer {
    address: SocketAddr,
    routes: Arc<Mutex<Routes>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Routes {
    /// The next connection goes to the first that answers.
    targets: Vec<Target>,
    open: BTreeMap<Ipv4Addr, usize>,
}

impl Balancer {
    /// Starts one that listens there, once it has somebody to pass a connection to: nodes learn of a service after it is there.
    pub(crate) async fn start(listen: SocketAddr, targets: Vec<Target>) -> io::Result<Self> {
        wait_answered(&targets).await?;
        let routes = Arc::new(Mutex::new(Routes {
            targets,
            open: BTreeMap::new(),
        }));
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let known = routes.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                // Those that have ended are taken out as others come.
                while connections.try_join_next().is_some() {}
                if let Ok((connection, _)) = listener.accept().await {
                    connections.spawn(pass(connection, known.clone()));
                }
            }
        });
        Ok(Self {
            address,
            routes,
            task,
        })
    }

    /// Passes connections on to others from now on, once one of them answers. Those that are open stay.
    pub(crate) async fn turn_to(&self, targets: Vec<Target>) -> io::Result<()> {
        wait_answered(&targets).await?;
        self.routes.lock().unwrap().targets = targets;
        Ok(())
    }

    /// For a certificate of `localhost`.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// The nodes that would take a connection.
    pub(crate) async fn nodes_that_answer(&self) -> BTreeSet<Ipv4Addr> {
        let targets = self.routes.lock().unwrap().targets.clone();
        let mut answer = BTreeSet::new();
        for target in targets {
            answer.extend(connect(&[target]).await.map(|(_, node)| node));
        }
        answer
    }

    /// To how many nodes connections are open.
    pub(crate) fn nodes_in_use(&self) -> usize {
        let routes = self.routes.lock().unwrap();
        routes.open.values().filter(|open| **open > 0).count()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A connection that is counted until it is dropped.
struct Open {
    node: Ipv4Addr,
    routes: Arc<Mutex<Routes>>,
}

impl Open {
    fn new(node: Ipv4Addr, routes: Arc<Mutex<Routes>>) -> Self {
        *routes.lock().unwrap().open.entry(node).or_default() += 1;
        Self { node, routes }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(open) = self.routes.lock().unwrap().open.get_mut(&self.node) {
            *open -= 1;
        }
    }
}

async fn pass(mut client: TcpStream, routes: Arc<Mutex<Routes>>) {
    let targets = {
        let mut routes = routes.lock().unwrap();
        let targets = routes.targets.clone();
        routes.targets.rotate_left(1);
        targets
    };
    if let Some((mut server, node)) = connect(&targets).await {
        let _open = Open::new(node, routes);
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn wait_answered(targets: &[Target]) -> io::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    while connect(targets).await.is_none() {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sleep(CONNECT_LIMIT).await;
    }
    Ok(())
}

async fn connect(targets: &[Target]) -> Option<(TcpStream, Ipv4Addr)> {
    for target in targets {
        if let Ok(Ok(server)) = timeout(CONNECT_LIMIT, TcpStream::connect(target)).await {
            return Some((server, target.0));
        }
    }
    None
}
