//! One node: its configuration, and the process whose end ends all of it.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use mailbell_test_servers::process::Process;
use serde_json::{Value, json};

use super::network::{self, BRIDGE, GATEWAY, PODS};
use crate::{api_server::ApiServer, binaries::NodeBinaries};

const SCRIPT: &str = include_str!("node.sh");

/// What the image of a pod's own process is called: see `tools/pod`.
pub(crate) const PAUSE_IMAGE: &str = "mailbell.dev/tests/pod:1";
/// How many directories a node has for volumes: the guide loses disks twice, and none comes back.
pub(crate) const VOLUMES: usize = 3;

/// What a node is made of, prepared once and started as often as wanted.
#[derive(Debug)]
pub(crate) struct Node {
    number: u8,
    folder: PathBuf,
    arguments: Vec<String>,
    process: Option<Process>,
}

/// What is the same for all nodes of a cluster.
#[derive(Debug)]
pub(crate) struct Common<'a> {
    pub(crate) programs: &'a NodeBinaries,
    pub(crate) server: &'a ApiServer,
    pub(crate) folder: &'a Path,
    pub(crate) group: &'a str,
    pub(crate) images: &'a [PathBuf],
    /// How many there are.
    pub(crate) nodes: u8,
}

/// What a node is called.
pub(crate) fn name(number: u8) -> String {
    format!("node-{number}")
}

/// By which its kubelet is known to the API server.
pub(crate) fn user(number: u8) -> String {
    format!("system:node:{}", name(number))
}

/// By which kube-proxy is known.
pub(crate) const PROXY: &str = "system:kube-proxy";

impl Node {
    /// Writes the configuration of one.
    pub(crate) fn prepare(number: u8, common: &Common<'_>) -> io::Result<Self> {
        let name = name(number);
        let folder = common.folder.join(&name);
        let address = network::node_address(number);
        fs::create_dir_all(folder.join("cni"))?;
        for volume in 0..VOLUMES {
            fs::create_dir_all(volume_path(&folder, volume))?;
        }
        let write = |file: &str, text: &str| fs::write(folder.join(file), text);
        let serving = common
            .server
            .authority()
            .certificate(&[&name, &address.to_string()]);
        write("tls.crt", &serving.certificate_pem)?;
        write("tls.key", &serving.key_pem)?;
        write("kubeconfig", &common.server.config_of(&user(number)))?;
        write("kubeconfig-proxy", &common.server.config_of(PROXY))?;
        write("resolv.conf", &format!("nameserver {GATEWAY}\n"))?;
        write("containerd.toml", &containerd(&folder))?;
        write("cni/pods.conflist", &cni(number).to_string())?;
        let authority = common.server.path("ca.crt");
        write(
            "kubelet.yaml",
            &kubelet(&folder, address, &authority).to_string(),
        )?;
        write("kube-proxy.yaml", &proxy(&folder, &name).to_string())?;
        write("node.sh", SCRIPT)?;
        let others = (1..=common.nodes).filter(|other| *other != number);
        let routes: Vec<String> = others
            .map(|other| {
                let (pods, address) = (network::node_pods(other), network::node_address(other));
                format!("{pods} {address}")
            })
            .collect();
        let images: Vec<String> = common
            .images
            .iter()
            .map(|image| image.display().to_string())
            .collect();
        let arguments = vec![
            format!("PATH={}", common.programs.search_path()),
            format!("NODE={name}"),
            format!("ADDRESS={address}"),
            format!("GATEWAY={GATEWAY}"),
            format!("BRIDGE={BRIDGE}"),
            format!("ROUTES={}", routes.join(" ")),
            format!("FOLDER={}", folder.display()),
            format!("GROUP={}.{name}", common.group),
            format!("IMAGES={}", images.join(" ")),
            "bash".to_owned(),
            folder.join("node.sh").display().to_string(),
        ];
        Ok(Self {
            number,
            folder,
            arguments,
            process: None,
        })
    }

    /// Starts it, if it does not run. What was written before is there again.
    pub(crate) fn start(&mut self) -> io::Result<()> {
        if self.process.is_none() {
            let started = Process::start(Path::new("env"), &self.arguments, &self.log());
            self.process = Some(started?);
        }
        Ok(())
    }

    /// Ends all of it at once, as a power cut would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn number(&self) -> u8 {
        self.number
    }

    /// Its own folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What its script says; what its programs say lies beside it.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log.txt")
    }

    pub(crate) fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }
}

/// Where a node keeps a volume.
pub(crate) fn volume_path(folder: &Path, volume: usize) -> PathBuf {
    folder.join(format!("volumes/{volume}"))
}

/// For containerd 1.6. Without CAP_SYS_RESOURCE nobody may lower the score by which the kernel picks whom to kill.
fn containerd(folder: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{}/cni"
"#,
        folder.display()
    )
}

/// A link to each pod, and plain routes: no address is another one on the way.
fn cni(number: u8) -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": network::node_pods(number) }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

fn kubelet(folder: &Path, address: Ipv4Addr, authority: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": authority },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": folder.join("tls.crt"),
        "tlsPrivateKeyFile": folder.join("tls.key"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "clusterDNS": [GATEWAY],
        "clusterDomain": "cluster.local",
        "resolvConf": folder.join("resolv.conf"),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "oomScoreAdj": 0,
        "maxOpenFiles": 20_000,
        // The disk is that of the whole machine, and nobody brings an image back.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "memory.available": "50Mi" },
        "nodeStatusUpdateFrequency": "4s",
    })
}

fn proxy(folder: &Path, name: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": folder.join("kubeconfig-proxy") },
        "hostnameOverride": name,
        "mode": "nftables",
        "clusterCIDR": PODS,
        "detectLocalMode": "ClusterCIDR",
        "oomScoreAdj": 0,
        // These limits are the whole machine's: they stay as they are.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    })
}
