//! One API server with its etcd.

use std::{io, path::PathBuf, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use mailbell_test_servers::{
    Certificate, free_port,
    process::{Process, wait_until, with_log},
};
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::{binaries::Binaries, tool::Tool};

/// How long it may take to be ready. Generous: tests share two cores.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The token of the user who may everything.
const ADMIN: &str = "admin-of-the-tests";
/// Of one who may nothing.
const NOBODY: &str = "nobody-of-the-tests";

/// An API server that nothing but tests reaches. What it stores outlives [`ApiServer::stop`] and goes with the value.
#[derive(Debug)]
pub struct ApiServer {
    directory: TempDir,
    binaries: Binaries,
    port: u16,
    etcd_port: u16,
    processes: Option<Running>,
}

#[derive(Debug)]
struct Running {
    server: Process,
    // Ends after the server.
    etcd: Process,
}

impl ApiServer {
    /// Starts one with a store of its own.
    ///
    /// # Errors
    /// When it does not start; the text has the end of its log.
    pub async fn start(binaries: Binaries) -> io::Result<Self> {
        let mut last = io::Error::other("not tried");
        // Somebody may take a port meanwhile.
        for _ in 0..3 {
            let mut server = Self::prepare(binaries.clone())?;
            match server.restart().await {
                Ok(()) => return Ok(server),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn prepare(binaries: Binaries) -> io::Result<Self> {
        let server = Self {
            directory: TempDir::with_prefix("mailbell-kube-")?,
            binaries,
            port: free_port()?,
            etcd_port: free_port()?,
            processes: None,
        };
        let certificate = Certificate::for_names(&["localhost", "127.0.0.1", "kubernetes"]);
        let accounts = KeyPair::generate().map_err(io::Error::other)?;
        let write = |name: &str, text: &str| std::fs::write(server.path(name), text);
        write("ca.crt", &certificate.authority_pem)?;
        write("tls.crt", &certificate.certificate_pem)?;
        write("tls.key", &certificate.key_pem)?;
        write("accounts.key", &accounts.serialize_pem())?;
        write("accounts.pub", &accounts.public_key_pem())?;
        let tokens = format!("{ADMIN},admin,admin,system:masters\n{NOBODY},nobody,nobody\n");
        write("tokens.csv", &tokens)?;
        write("kubeconfig", &server.config_of(ADMIN))?;
        write("kubeconfig-nobody", &server.config_of(NOBODY))?;
        Ok(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config_of(&self, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: tests\n\
             clusters: [{{name: tests, cluster: {{server: \"https://127.0.0.1:{}\", certificate-authority: \"{}\"}}}}]\n\
             users: [{{name: one, user: {{token: {token}}}}}]\n\
             contexts: [{{name: tests, context: {{cluster: tests, user: one}}}}]\n",
            self.port,
            self.path("ca.crt").display(),
        )
    }

    /// Starts it again on the same ports and store, or stops and starts it when it runs.
    ///
    /// # Errors
    /// When it does not start; the text has the end of its log.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.stop().await;
        let mut etcd = self.launch_etcd()?;
        let etcd_port = self.etcd_port;
        let listens = || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", etcd_port))
                .await
                .is_ok()
        };
        let ready = wait_until(&mut etcd, START_LIMIT, listens).await;
        ready.map_err(|error| with_log(&error, &self.path("etcd.log")))?;
        let mut server = self.launch_server()?;
        let client = self.client().await?;
        let is_ready = || {
            let client = client.clone();
            async move { is_ready(&client).await }
        };
        let ready = wait_until(&mut server, START_LIMIT, is_ready).await;
        ready.map_err(|error| with_log(&error, &self.path("server.log")))?;
        self.processes = Some(Running { server, etcd });
        Ok(())
    }

    fn launch_etcd(&self) -> io::Result<Process> {
        let client = format!("http://127.0.0.1:{}", self.etcd_port);
        let arguments = [
            format!("--data-dir={}", self.path("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            "--listen-peer-urls=http://127.0.0.1:0".to_owned(),
            // What is stored need not outlive a power cut.
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let log = self.path("etcd.log");
        Process::start(&self.binaries.path("etcd"), &arguments, &log)
    }

    fn launch_server(&self) -> io::Result<Process> {
        let file = |flag: &str, name: &str| format!("--{flag}={}", self.path(name).display());
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={}", self.port),
            file("tls-cert-file", "tls.crt"),
            file("tls-private-key-file", "tls.key"),
            file("token-auth-file", "tokens.csv"),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            file("service-account-key-file", "accounts.pub"),
            file("service-account-signing-key-file", "accounts.key"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            // Nobody makes the accounts' default here, and no endpoint of the server is looked for.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--event-ttl=1h".to_owned(),
            "--profiling=false".to_owned(),
        ];
        let log = self.path("server.log");
        Process::start(&self.binaries.path("kube-apiserver"), &arguments, &log)
    }

    /// Stops it; clients find nobody then.
    pub async fn stop(&mut self) {
        if let Some(Running {
            mut server,
            mut etcd,
        }) = self.processes.take()
        {
            server.terminate(STOP_LIMIT).await;
            etcd.terminate(STOP_LIMIT).await;
        }
    }

    /// A client of the user who may everything.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub async fn client(&self) -> io::Result<Client> {
        client(self.config().await?)
    }

    /// A client of somebody else, such as `system:serviceaccount:<namespace>:<name>`: what he may is what roles say.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub async fn client_of(&self, user: &str) -> io::Result<Client> {
        let mut config = self.config().await?;
        config.auth_info.impersonate = Some(user.to_owned());
        client(config)
    }

    async fn config(&self) -> io::Result<Config> {
        let read = Kubeconfig::read_from(self.path("kubeconfig")).map_err(io::Error::other)?;
        Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
            .await
            .map_err(io::Error::other)
    }

    /// For another program: how it reaches this server as the user who may everything.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// The same, as one who may nothing.
    #[must_use]
    pub fn kubeconfig_of_nobody(&self) -> PathBuf {
        self.path("kubeconfig-nobody")
    }

    /// The same, as whoever has this token, such as a service account.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig_with(&self, name: &str, token: &str) -> io::Result<PathBuf> {
        let path = self.path(&format!("kubeconfig-{name}"));
        std::fs::write(&path, self.config_of(token))?;
        Ok(path)
    }

    /// What a person types, as the user who may everything: `kubectl` or `helm`.
    #[must_use]
    pub fn tool(&self, name: &str) -> Tool {
        let home = self.directory.path().to_owned();
        Tool::new(self.binaries.path(name), self.path("kubeconfig"), home)
    }
}

fn client(config: Config) -> io::Result<Client> {
    Client::try_from(config).map_err(io::Error::other)
}

async fn is_ready(client: &Client) -> bool {
    // Not the version: it is answered before what the server needs is there.
    let Ok(request) = http_get("/readyz") else {
        return false;
    };
    let asked = tokio::time::timeout(Duration::from_secs(5), client.request_text(request));
    matches!(asked.await, Ok(Ok(text)) if text == "ok")
}

fn http_get(path: &str) -> io::Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .map_err(io::Error::other)
}
