//! Where Kubernetes' programs are.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use crate::Tool;

/// What a developer is told who has not got them.
pub const MISSING: &str = "not all of kube-apiserver, etcd, kubectl, helm and definitions of others are here: `make kube` gets them, it \
     needs Go (tests/cluster/README.md)";

/// Where `etcd`, `kube-apiserver`, `kubectl` and `helm` are, and definitions of others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    kubernetes: PathBuf,
    helm: PathBuf,
    definitions: PathBuf,
}

impl Binaries {
    /// Those of Kubernetes in `KUBEBUILDER_ASSETS`, which other tools' tests know too, else in `.tools/kube` of the workspace; Helm in
    /// `.tools/helm`, definitions of others in `.tools/definitions`. `None`: one is missing.
    ///
    /// # Panics
    /// When one is missing and `CI` is set: tests that nobody runs must not pass.
    #[must_use]
    pub fn find() -> Option<Self> {
        let own = tools();
        let named = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let all = Self {
            kubernetes: named.unwrap_or_else(|| own.join("kube")),
            helm: own.join("helm"),
            definitions: own.join("definitions"),
        };
        let paths = ["etcd", "kube-apiserver", "kubectl", "helm"].map(|name| all.path(name));
        let found = paths.iter().all(|path| path.is_file()) && all.definitions.is_dir();
        let found = found.then_some(all);
        assert!(found.is_some() || env::var_os("CI").is_none(), "{MISSING}");
        found
    }

    /// Helm without a server, for what it does with files alone. What it keeps, it keeps in `home`.
    #[must_use]
    pub fn helm(&self, home: &Path) -> Tool {
        Tool::new(self.path("helm"), home.join("kubeconfig"), home)
    }

    pub(crate) fn definitions(&self) -> &Path {
        &self.definitions
    }

    pub(crate) fn folders(&self) -> [PathBuf; 2] {
        [self.kubernetes.clone(), self.helm.clone()]
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let folder = if name == "helm" {
            &self.helm
        } else {
            &self.kubernetes
        };
        folder.join(name)
    }
}

/// What of other controllers and of nodes is built from Go modules.
const OF_NODES: [&str; 5] = [
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
];
/// What of a node is a package of the system.
const OF_SYSTEM: [&str; 6] = ["containerd", "ctr", "runc", "nft", "conntrack", "ip"];

/// Where the programs are that a cluster with nodes needs more.
#[derive(Debug, Clone)]
pub(crate) struct NodeBinaries {
    folder: PathBuf,
}

impl NodeBinaries {
    /// Those in `.tools/nodes` of the workspace, and the system's.
    ///
    /// # Errors
    /// When one is missing; the text says how to get it.
    pub(crate) fn find() -> io::Result<Self> {
        let all = Self {
            folder: tools().join("nodes"),
        };
        let missing = |name: &&str| {
            let folders = env::split_paths(&all.search_path()).collect::<Vec<_>>();
            !folders.iter().any(|folder| folder.join(name).is_file())
        };
        let mut needed = OF_NODES.iter().chain(&OF_SYSTEM);
        match needed.find(|name| missing(name)) {
            None => Ok(all),
            Some(name) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "no {name}: `make nodes` installs what nodes of a cluster need (tests/cluster/README.md)"
                ),
            )),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// For `PATH`: the system's programs lie where not every user looks.
    pub(crate) fn search_path(&self) -> String {
        let folder = self.folder.display();
        format!("{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    }
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools")
}
