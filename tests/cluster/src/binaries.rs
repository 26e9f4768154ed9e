//! Where Kubernetes' programs are.

use std::path::{Path, PathBuf};

use crate::Tool;

/// What a developer is told who has not got them.
pub const MISSING: &str = "no kube-apiserver, etcd, kubectl and helm: `make kube` builds them, it needs Go (tests/cluster/README.md)";

/// Where `etcd`, `kube-apiserver`, `kubectl` and `helm` are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    kubernetes: PathBuf,
    helm: PathBuf,
}

impl Binaries {
    /// Those of Kubernetes in `KUBEBUILDER_ASSETS`, which other tools' tests know too, else in `.tools/kube` of the workspace; Helm in
    /// `.tools/helm`. `None`: one is missing.
    ///
    /// # Panics
    /// When one is missing and `CI` is set: tests that nobody runs must not pass.
    #[must_use]
    pub fn find() -> Option<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
        let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let all = Self {
            kubernetes: named.unwrap_or_else(|| own.join("kube")),
            helm: own.join("helm"),
        };
        let paths = ["etcd", "kube-apiserver", "kubectl", "helm"].map(|name| all.path(name));
        let found = paths.iter().all(|path| path.is_file()).then_some(all);
        assert!(
            found.is_some() || std::env::var_os("CI").is_none(),
            "{MISSING}"
        );
        found
    }

    /// Helm without a server, for what it does with files alone. What it keeps, it keeps in `home`.
    #[must_use]
    pub fn helm(&self, home: &Path) -> Tool {
        Tool::new(self.path("helm"), home.join("kubeconfig"), home.to_owned())
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
