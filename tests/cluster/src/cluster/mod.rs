//! A control plane with nodes on which pods run, in a network without a way out.

mod cleanup;
mod network;
mod node;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Node as NodeObject, PersistentVolume},
    storage::v1::StorageClass,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use mailbell_test_servers::process::{Process, wait_until, with_log};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::sleep;

use self::{
    cleanup::Belongings,
    network::GATEWAY,
    node::{Common, Node},
};
use crate::{
    api_server::{ApiServer, Place},
    binaries::{Binaries, MISSING, NodeBinaries},
    tool::Tool,
};

pub use self::network::in_private_network;

/// How long nodes may take to be ready. Generous: they share two cores, and images are unpacked first.
const START_LIMIT: Duration = Duration::from_secs(180);
/// After a control plane did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Of how much a volume is. Nobody measures it.
const VOLUME_SIZE: &str = "20Gi";
/// The port of the name server.
const DNS_PORT: u16 = 53;

/// What to start.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How many nodes, of at most nine.
    pub nodes: u8,
    /// Archives of the images that pods may have, beside that of `tests/cluster/tools/pod`.
    pub images: Vec<PathBuf>,
    /// Names by which pods find what listens beside the cluster, at [`Cluster::OUTSIDE`].
    pub names: Vec<String>,
}

/// A cluster. Dropped, it ends with all that it has written.
#[derive(Debug)]
pub struct Cluster {
    // In this order they end.
    nodes: Vec<Node>,
    control: Vec<Process>,
    server: ApiServer,
    belongings: Belongings,
}

impl Cluster {
    /// The address of what is beside the cluster: pods and nodes reach it there.
    pub const OUTSIDE: IpAddr = IpAddr::V4(GATEWAY);

    /// Starts one, and waits until its nodes are ready and names are answered. Call it in [`in_private_network`].
    ///
    /// # Errors
    /// When a program is missing, or something does not start; the text has the end of its log.
    pub async fn start(options: &ClusterOptions) -> io::Result<Self> {
        let Some(binaries) = Binaries::find() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, MISSING));
        };
        let programs = NodeBinaries::find()?;
        check_groups()?;
        let count = options.nodes.clamp(1, 9);
        network::make_bridge(count)?;
        let belongings = Belongings::new()?;
        let mut users = vec![(node::PROXY.to_owned(), node::PROXY)];
        users.extend((1..=count).map(|number| (node::user(number), "system:nodes")));
        let place = Place {
            folder: belongings.folder().to_owned(),
            address: GATEWAY,
            users,
            cluster: true,
        };
        let mut cluster = Self {
            nodes: Vec::new(),
            control: Vec::new(),
            server: ApiServer::start_at(binaries, place).await?,
            belongings,
        };
        cluster.start_controllers(&programs)?;
        cluster.start_dns(&programs, &options.names).await?;
        let mut images = vec![archive("pod")?];
        images.extend(options.images.iter().cloned());
        for number in 1..=count {
            let common = Common {
                programs: &programs,
                server: &cluster.server,
                folder: cluster.belongings.folder(),
                group: cluster.belongings.group(),
                images: &images,
                nodes: count,
            };
            let mut node = Node::prepare(number, &common)?;
            node.start()?;
            cluster.nodes.push(node);
        }
        cluster.make_volumes().await?;
        for number in 1..=count {
            cluster.wait_ready(number).await?;
        }
        Ok(cluster)
    }

    fn start_controllers(&mut self, programs: &NodeBinaries) -> io::Result<()> {
        let kubeconfig = format!("--kubeconfig={}", self.server.kubeconfig().display());
        let file =
            |flag: &str, name: &str| format!("--{flag}={}", self.server.path(name).display());
        let common = ["--leader-elect=false", "--secure-port=0"].map(ToOwned::to_owned);
        let mut controllers = vec![
            kubeconfig.clone(),
            file("service-account-private-key-file", "accounts.key"),
            file("root-ca-file", "ca.crt"),
            "--use-service-account-credentials=true".to_owned(),
            // A node that says nothing is soon seen.
            "--node-monitor-period=2s".to_owned(),
            "--node-monitor-grace-period=16s".to_owned(),
        ];
        controllers.extend(common.clone());
        let mut scheduler = vec![kubeconfig];
        scheduler.extend(common);
        for (name, arguments) in [
            ("kube-controller-manager", controllers),
            ("kube-scheduler", scheduler),
        ] {
            let log = self.belongings.folder().join(format!("{name}.log"));
            let started = Process::start(&programs.path(name), &arguments, &log)?;
            self.control.push(started);
        }
        Ok(())
    }

    /// Beside the nodes, so that the loss of none takes it away.
    async fn start_dns(&mut self, programs: &NodeBinaries, names: &[String]) -> io::Result<()> {
        let folder = self.belongings.folder();
        let (config, log) = (folder.join("Corefile"), folder.join("coredns.log"));
        // CoreDNS orders what is in one block by itself, so each has its own.
        let text = format!(
            "cluster.local:{DNS_PORT} {{\n  bind {GATEWAY}\n  errors\n  kubernetes cluster.local {{\n    kubeconfig {}\n    ttl 1\n  }}\n}}\n\
             .:{DNS_PORT} {{\n  bind {GATEWAY}\n  errors\n  hosts {{\n    {GATEWAY} outside.test {}\n    no_reverse\n  }}\n}}\n",
            self.server.kubeconfig().display(),
            names.join(" "),
        );
        fs::write(&config, text)?;
        let arguments = [Path::new("-conf"), &config];
        let mut server = Process::start(&programs.path("coredns"), &arguments, &log)?;
        let answers = || async {
            let at = (GATEWAY, DNS_PORT);
            tokio::net::TcpStream::connect(at).await.is_ok()
        };
        let ready = wait_until(&mut server, START_LIMIT, answers).await;
        self.control.push(server);
        ready.map_err(|error| with_log(&error, &log))
    }

    /// Directories of nodes, as volumes; each goes to who asks first.
    async fn make_volumes(&self) -> io::Result<()> {
        let client = self.client().await?;
        let class = json!({
            "metadata": {
                "name": "local",
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
            },
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        });
        let classes: Api<StorageClass> = Api::all(client.clone());
        create(&classes, class).await?;
        let volumes: Api<PersistentVolume> = Api::all(client);
        for node in &self.nodes {
            let name = node::name(node.number());
            for volume in 0..node::VOLUMES {
                let path = node::volume_path(node.folder(), volume);
                let on = json!({
                    "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": [name] }],
                });
                let volume = json!({
                    "metadata": { "name": format!("{name}-{volume}") },
                    "spec": {
                        "capacity": { "storage": VOLUME_SIZE },
                        "accessModes": ["ReadWriteOnce"],
                        "persistentVolumeReclaimPolicy": "Retain",
                        "storageClassName": "local",
                        "local": { "path": path },
                        "nodeAffinity": { "required": { "nodeSelectorTerms": [on] } },
                    },
                });
                create(&volumes, volume).await?;
            }
        }
        Ok(())
    }

    /// Waits until a node is ready for pods.
    ///
    /// # Errors
    /// When it is not, in time; the text has what it says.
    pub async fn wait_ready(&mut self, number: u8) -> io::Result<()> {
        let nodes: Api<NodeObject> = Api::all(self.client().await?);
        let Some(node) = self.nodes.iter_mut().find(|node| node.number() == number) else {
            return Err(no_such(number));
        };
        let logs = ["kubelet.log", "containerd.log"].map(|name| node.folder().join(name));
        let own = node.log();
        let Some(process) = node.process() else {
            return Err(io::Error::other(format!("node {number} does not run")));
        };
        let ready = || {
            let nodes = nodes.clone();
            async move { matches!(is_ready(&nodes, number).await, Ok(true)) }
        };
        let waited = wait_until(process, START_LIMIT, ready).await;
        waited.map_err(|error| {
            let error = logs.iter().fold(error, |error, log| with_log(&error, log));
            with_log(&error, &own)
        })
    }

    /// Whether the control plane takes this node for ready.
    ///
    /// # Errors
    /// When the configuration cannot be read, or the control plane does not answer for long.
    pub async fn is_ready(&self, number: u8) -> io::Result<bool> {
        let nodes: Api<NodeObject> = Api::all(self.client().await?);
        let begun = Instant::now();
        loop {
            match is_ready(&nodes, number).await {
                Err(_) if begun.elapsed() < START_LIMIT => sleep(ASK_AGAIN).await,
                answer => return answer,
            }
        }
    }

    /// What a node is called.
    #[must_use]
    pub fn node_name(&self, number: u8) -> String {
        node::name(number)
    }

    /// Where services of the type `NodePort` are reached.
    #[must_use]
    pub fn node_address(&self, number: u8) -> Ipv4Addr {
        network::node_address(number)
    }

    /// Ends a node with all its pods at once, as a power cut would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_node(&mut self, number: u8) -> io::Result<()> {
        self.node(number)?.kill();
        Ok(())
    }

    /// Starts a node that was killed, with what was on its disk.
    ///
    /// # Errors
    /// When there is none, or it cannot be started.
    pub fn start_node(&mut self, number: u8) -> io::Result<()> {
        self.node(number)?.start()
    }

    /// Cuts a node off from all else; its pods go on. `false`: connects it again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn cut_off(&self, number: u8, cut: bool) -> io::Result<()> {
        let state = if cut { "down" } else { "up" };
        network::ip(&format!("link set {} {state}", node::name(number)))
    }

    /// Kills the process of a container at once, as a crash would: nobody is told. Whether there was one.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill_container(&self, id: &str) -> io::Result<bool> {
        let mut killed = false;
        for process in fs::read_dir("/proc")? {
            let folder = process?.path();
            let number = folder
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok());
            // Its control group has its name, on whatever node it is. What has ended meanwhile has none.
            let is_of = |groups: String| groups.lines().any(|group| group.ends_with(id));
            if let Some(process) = number.and_then(Pid::from_raw)
                && fs::read_to_string(folder.join("cgroup")).is_ok_and(is_of)
            {
                kill_process(process, Signal::KILL)?;
                killed = true;
            }
        }
        Ok(killed)
    }

    fn node(&mut self, number: u8) -> io::Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.number() == number);
        found.ok_or_else(|| no_such(number))
    }

    /// A client of the user who may everything.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub async fn client(&self) -> io::Result<Client> {
        self.server.client().await
    }

    /// `kubectl` or `helm`, as the user who may everything.
    #[must_use]
    pub fn tool(&self, name: &str) -> Tool {
        self.server.tool(name)
    }

    /// Where that program is.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.server.program(name)
    }

    /// For another program: how it reaches the cluster as that user.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.server.kubeconfig()
    }

    /// What a command of the shell begins with that runs in the cluster's network, as that user.
    #[must_use]
    pub fn enter(&self) -> String {
        format!(
            "nsenter --net=/proc/{}/ns/net env KUBECONFIG={}",
            self.belongings.process(),
            self.server.kubeconfig().display()
        )
    }

    /// All that it has written, among it the logs of its programs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.belongings.folder()
    }
}

/// The archive of an image that `make cluster-images` or `make image` has written, beside this program.
///
/// # Errors
/// When it is not there; the text has the command.
pub fn archive(name: &str) -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // <target>/<profile>/deps/<test> or <target>/<profile>/<program>
    let mut places = own.ancestors().skip(2).take(2);
    let found = places
        .by_ref()
        .map(|folder| folder.join(format!("{name}.oci.tar")))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no {name}.oci.tar in the target directory: `make cluster-images` makes it"),
        )
    })
}

/// Only these were tried.
fn check_groups() -> io::Result<()> {
    if Path::new("/sys/fs/cgroup/memory").is_dir() {
        return Ok(());
    }
    Err(io::Error::other(
        "nodes need the control groups of version 1, which this machine does not have (tests/cluster/README.md)",
    ))
}

fn no_such(number: u8) -> io::Error {
    io::Error::other(format!("there is no node {number}"))
}

async fn is_ready(nodes: &Api<NodeObject>, number: u8) -> io::Result<bool> {
    // What is asked of an API server that is not there ends by itself.
    let all = ListParams::default();
    let listed = tokio::time::timeout(Duration::from_secs(5), nodes.list(&all));
    let listed = listed.await?.map_err(io::Error::other)?;
    let name = node::name(number);
    let mut nodes = listed.items.into_iter();
    let found = nodes.find(|node| node.metadata.name.as_ref() == Some(&name));
    let conditions = found.and_then(|node| node.status?.conditions);
    let mut conditions = conditions.into_iter().flatten();
    Ok(conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

async fn create<K>(api: &Api<K>, object: Value) -> io::Result<()>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object)?;
    let created = api.create(&PostParams::default(), &object).await;
    created.map(|_| ()).map_err(io::Error::other)
}
