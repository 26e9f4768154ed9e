//! NATS servers with JetStream as one cluster, whose leaders are found and whose routes are cut.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use crate::proxy::{Mode, Proxy};
use crate::{NatsOptions, NatsServer, free_port};

/// How long nodes may take to meet. Generous: tests share two cores.
const WHOLE_LIMIT: Duration = Duration::from_secs(30);

/// Several servers with JetStream as one cluster.
#[derive(Debug)]
pub struct NatsCluster {
    /// The nodes; each may be killed and restarted.
    pub nodes: Vec<NatsServer>,
    /// From which node to which, if routes can be cut.
    routes: BTreeMap<(usize, usize), Proxy>,
}

impl NatsCluster {
    /// Starts `count` nodes and waits until all are ready.
    ///
    /// # Errors
    /// When a node doesn't start.
    pub async fn start(count: usize) -> io::Result<Self> {
        Self::start_with(count, NatsOptions::default()).await
    }

    /// Starts `count` nodes, each with these options, and waits until all are ready.
    ///
    /// # Errors
    /// When a node doesn't start.
    pub async fn start_with(count: usize, options: NatsOptions) -> io::Result<Self> {
        Self::start_as(count, options, false).await
    }

    /// Starts `count` nodes whose routes to one another can be cut ([`NatsCluster::route`]). They tell nobody of one another:
    /// clients know the nodes of their own URL alone.
    ///
    /// # Errors
    /// When a node doesn't start.
    pub async fn start_cuttable(count: usize, options: NatsOptions) -> io::Result<Self> {
        Self::start_as(count, options, true).await
    }

    async fn start_as(count: usize, options: NatsOptions, cuttable: bool) -> io::Result<Self> {
        let mut last = io::Error::other("no node");
        for _ in 0..3 {
            match Self::try_start(count, &options, cuttable).await {
                Ok(cluster) => return Ok(cluster),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn try_start(count: usize, options: &NatsOptions, cuttable: bool) -> io::Result<Self> {
        let ports = (0..count)
            .map(|_| free_port())
            .collect::<io::Result<Vec<_>>>()?;
        let mut routes = BTreeMap::new();
        let mut nodes = Vec::new();
        for (from, port) in ports.iter().enumerate() {
            let mut urls = Vec::new();
            for (to, target) in ports.iter().enumerate() {
                let address = ([127, 0, 0, 1], *target).into();
                if !cuttable {
                    urls.push(address);
                } else if to != from {
                    let proxy = Proxy::start(address).await?;
                    urls.push(proxy.address());
                    routes.insert((from, to), proxy);
                }
            }
            let urls: Vec<_> = urls
                .iter()
                .map(|address| format!("\"nats://{address}\""))
                .collect();
            // Nodes pass on where the others are, and would find a way around the proxies: this address leads nowhere.
            let secret = if cuttable {
                ", advertise: \"127.0.0.1:1\", no_advertise: true"
            } else {
                ""
            };
            let cluster = format!(
                "cluster {{ name: test, listen: \"127.0.0.1:{port}\", routes: [{}]{secret} }}",
                urls.join(", ")
            );
            let mut node = NatsServer::prepare(&name(from), options, &cluster)?;
            node.launch()?;
            nodes.push(node);
        }
        for node in &mut nodes {
            node.wait_ready().await?;
        }
        let cluster = Self { nodes, routes };
        cluster.wait_whole().await?;
        Ok(cluster)
    }

    /// Each node may say that it is ready before the leader has heard of all others, and it places no replica with the others.
    async fn wait_whole(&self) -> io::Result<()> {
        let deadline = Instant::now() + WHOLE_LIMIT;
        while !self.is_whole().await {
            if Instant::now() > deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the nodes have not all met in time",
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn is_whole(&self) -> bool {
        let Some(leader) = self.meta_leader().await else {
            return false;
        };
        let Some(leader) = self.nodes.get(leader) else {
            return false;
        };
        let Ok(page) = leader.monitor("/jsz").await else {
            return false;
        };
        let replicas = page
            .get("meta_cluster")
            .and_then(|meta| meta.get("replicas")?.as_array());
        let is = |replica: &serde_json::Value, field| {
            let value = replica.get(field).and_then(serde_json::Value::as_bool);
            value.unwrap_or(false)
        };
        let met = replicas
            .into_iter()
            .flatten()
            .filter(|replica| is(replica, "current") && !is(replica, "offline"));
        met.count() + 1 == self.nodes.len()
    }

    /// Where clients connect, all nodes separated by commas.
    #[must_use]
    pub fn url(&self) -> String {
        self.nodes
            .iter()
            .map(NatsServer::url)
            .collect::<Vec<_>>()
            .join(",")
    }

    /// What happens from now on between two nodes; `a` is the client of the mode, `b` the server.
    ///
    /// # Errors
    /// When there is no such route, or routes can't be cut.
    pub fn route(&self, a: usize, b: usize, mode: Mode) -> io::Result<()> {
        let of = |from, to| {
            let proxy: Option<&Proxy> = self.routes.get(&(from, to));
            proxy.ok_or_else(|| io::Error::other("there is no route that can be cut"))
        };
        // Either of them may have opened the connection that is in use.
        of(a, b)?.set(mode);
        of(b, a)?.set(mode.reversed());
        Ok(())
    }

    /// What happens from now on between a node and all others; the node is the client of the mode.
    ///
    /// # Errors
    /// When there is no such node, or routes can't be cut.
    pub fn routes_of(&self, node: usize, mode: Mode) -> io::Result<()> {
        (0..self.nodes.len())
            .filter(|other| *other != node)
            .try_for_each(|other| self.route(node, other, mode))
    }

    /// The node that says of itself that it leads the cluster's metadata; `None` during an election.
    pub async fn meta_leader(&self) -> Option<usize> {
        for (number, node) in self.nodes.iter().enumerate() {
            if let Ok(page) = node.monitor("/jsz").await
                && leads(page.get("meta_cluster"), number)
            {
                return Some(number);
            }
        }
        None
    }

    /// The node that says of itself that it leads a stream; `None` during an election.
    pub async fn stream_leader(&self, stream: &str) -> Option<usize> {
        for (number, node) in self.nodes.iter().enumerate() {
            let Ok(page) = node.monitor("/jsz?streams=true").await else {
                continue;
            };
            let array = |value: &serde_json::Value, field| {
                let array = value.get(field).and_then(serde_json::Value::as_array);
                array.cloned().unwrap_or_default()
            };
            let leads = array(&page, "account_details")
                .iter()
                .flat_map(|account| array(account, "stream_detail"))
                .any(|detail| {
                    let named = detail.get("name").and_then(serde_json::Value::as_str);
                    named == Some(stream) && leads(detail.get("cluster"), number)
                });
            if leads {
                return Some(number);
            }
        }
        None
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn leads(cluster: Option<&serde_json::Value>, node: usize) -> bool {
    let leader = cluster.and_then(|cluster| cluster.get("leader")?.as_str());
    leader == Some(&name(node))
}
