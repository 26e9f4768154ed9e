//! A real Kubernetes API server, what a person types there, and commands that act as somebody on it.

use mailbell_test_cluster::{ApiServer, Binaries, MISSING};

use crate::machine::{LIMIT, Machine, text};

pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell");

pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
}

impl Cluster {
    /// `None`, and a line on standard error: there is no Kubernetes here. With `CI` set that is a failure.
    pub(crate) async fn start() -> Option<Self> {
        let Some(binaries) = Binaries::find() else {
            eprintln!("left out: {MISSING}");
            return None;
        };
        let server = ApiServer::start(binaries).await.unwrap();
        Some(Self { server })
    }

    pub(crate) async fn tool(&self, name: &str, arguments: &[&str]) -> (bool, String) {
        self.told(name, arguments, "").await
    }

    /// The same, with this on its standard input.
    pub(crate) async fn told(&self, name: &str, arguments: &[&str], input: &str) -> (bool, String) {
        let output = self.server.tool(name).run(arguments, input).await.unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        (output.status.success(), said)
    }

    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> String {
        let (done, said) = self.tool("kubectl", arguments).await;
        assert!(done, "{arguments:?}: {said}");
        said
    }

    pub(crate) async fn apply(&self, manifest: &str) {
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        let (done, said) = self.told("kubectl", &apply, manifest).await;
        assert!(done, "{manifest}: {said}");
    }

    /// Those that the binary prints, once the server knows them.
    pub(crate) async fn definitions(&self, machine: &Machine) {
        self.apply(&text(&machine.run(&["crds"]).stdout)).await;
        self.known(&[
            "crd/mailbells.mailbell.dev",
            "crd/mailaccounts.mailbell.dev",
        ])
        .await;
    }

    /// Waits until the server knows these definitions.
    pub(crate) async fn known(&self, definitions: &[&str]) {
        let wait = ["wait", "--for=condition=Established", "--timeout=60s"];
        let wait = [&wait, definitions].concat();
        // It fails where no condition is there yet.
        let established = async { while !self.tool("kubectl", &wait).await.0 {} };
        tokio::time::timeout(LIMIT, established).await.unwrap();
    }

    /// A machine whose commands act as this service account, which is made.
    pub(crate) async fn account(&self, name: &str) -> Machine {
        self.kubectl(&["create", "serviceaccount", name]).await;
        self.machine_of(name).await
    }

    /// The same, of one that is there.
    pub(crate) async fn machine_of(&self, account: &str) -> Machine {
        let token = self.kubectl(&["create", "token", account]).await;
        let config = self.server.kubeconfig_with(account, token.trim()).unwrap();
        Machine::on_cluster(config)
    }
}
