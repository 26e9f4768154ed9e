//! One API server with its etcd.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::{authentication::v1::TokenRequest, core::v1::ServiceAccount};
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use mailbell_test_servers::{
    Authority, free_port,
    process::{Process, wait_until, with_log},
};
use rcgen::KeyPair;
use tempfile::TempDir;

use crate::{binaries::Binaries, tool::Tool};

/// How long it may take to be ready. Generous: tests share two cores.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The network of services.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// The server's own.
const FIRST_SERVICE: &str = "10.96.0.1";

/// The user who may everything.
const ADMIN: &str = "admin";
/// One who may nothing.
const NOBODY: &str = "nobody";

/// What differs between a server by itself, and that of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// In which folder its own is made.
    pub(crate) folder: PathBuf,
    /// Where it listens.
    pub(crate) address: Ipv4Addr,
    /// Who is known beside [`ADMIN`] and [`NOBODY`]: a name and a group.
    pub(crate) users: Vec<(String, &'static str)>,
    /// Of a cluster, with controllers and kubelets.
    pub(crate) cluster: bool,
}

/// An API server that nothing but tests reaches. What it stores outlives [`ApiServer::stop`] and goes with the value.
#[derive(Debug)]
pub struct ApiServer {
    directory: TempDir,
    binaries: Binaries,
    place: Place,
    authority: Authority,
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
        let alone = Place {
            folder: std::env::temp_dir(),
            address: Ipv4Addr::LOCALHOST,
            users: Vec::new(),
            cluster: false,
        };
        Self::start_at(binaries, alone).await
    }

    pub(crate) async fn start_at(binaries: Binaries, place: Place) -> io::Result<Self> {
        let mut last = io::Error::other("not tried");
        // Somebody may take a port meanwhile.
        for _ in 0..3 {
            let mut server = Self::prepare(binaries.clone(), place.clone())?;
            match server.restart().await {
                Ok(()) => return Ok(server),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn prepare(binaries: Binaries, place: Place) -> io::Result<Self> {
        let server = Self {
            directory: TempDir::with_prefix_in("mailbell-kube-", &place.folder)?,
            binaries,
            place,
            authority: Authority::new(),
            port: free_port()?,
            etcd_port: free_port()?,
            processes: None,
        };
        let address = server.place.address.to_string();
        let names = [
            "localhost",
            "127.0.0.1",
            "kubernetes",
            "kubernetes.default.svc",
            FIRST_SERVICE,
            &address,
        ];
        let certificate = server.authority.certificate(&names);
        // By which kubelets know it.
        let client = server.authority.client(ADMIN, "system:masters");
        let accounts = KeyPair::generate().map_err(io::Error::other)?;
        let write = |name: &str, text: &str| std::fs::write(server.path(name), text);
        write("ca.crt", &certificate.authority_pem)?;
        write("tls.crt", &certificate.certificate_pem)?;
        write("tls.key", &certificate.key_pem)?;
        write("client.crt", &client.certificate_pem)?;
        write("client.key", &client.key_pem)?;
        write("accounts.key", &accounts.serialize_pem())?;
        write("accounts.pub", &accounts.public_key_pem())?;
        let mut tokens = format!(
            "{},{ADMIN},{ADMIN},system:masters\n{},{NOBODY},{NOBODY}\n",
            token(ADMIN),
            token(NOBODY),
        );
        for (user, group) in &server.place.users {
            tokens.push_str(&format!("{},{user},{user},{group}\n", token(user)));
        }
        write("tokens.csv", &tokens)?;
        write("kubeconfig", &server.config_of(ADMIN))?;
        write("kubeconfig-nobody", &server.config_of(NOBODY))?;
        Ok(server)
    }

    /// One of its files: `ca.crt`, whom it trusts and who gave it its certificate, and `accounts.key`, which signs tokens of service
    /// accounts.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Whom it trusts.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What a client of this user reads.
    pub(crate) fn config_of(&self, user: &str) -> String {
        self.config_with(&token(user))
    }

    fn config_with(&self, token: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: tests\n\
             clusters: [{{name: tests, cluster: {{server: \"https://{}:{}\", certificate-authority: \"{}\"}}}}]\n\
             users: [{{name: one, user: {{token: \"{}\"}}}}]\n\
             contexts: [{{name: tests, context: {{cluster: tests, user: one}}}}]\n",
            self.place.address,
            self.port,
            self.path("ca.crt").display(),
            token,
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
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--bind-address={}", self.place.address),
            format!("--secure-port={}", self.port),
            file("tls-cert-file", "tls.crt"),
            file("tls-private-key-file", "tls.key"),
            file("token-auth-file", "tokens.csv"),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            file("service-account-key-file", "accounts.pub"),
            file("service-account-signing-key-file", "accounts.key"),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--event-ttl=1h".to_owned(),
            "--profiling=false".to_owned(),
        ];
        if self.place.cluster {
            arguments.extend([
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--allow-privileged=true".to_owned(),
                file("kubelet-certificate-authority", "ca.crt"),
                file("kubelet-client-certificate", "client.crt"),
                file("kubelet-client-key", "client.key"),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                // How long pods may be on a node that is not there: five minutes else.
                "--default-not-ready-toleration-seconds=30".to_owned(),
                "--default-unreachable-toleration-seconds=30".to_owned(),
            ]);
        } else {
            arguments.extend([
                "--authorization-mode=RBAC".to_owned(),
                // Nobody makes the accounts' default here, and no endpoint of the server is looked for.
                "--disable-admission-plugins=ServiceAccount".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
            ]);
        }
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

    /// A client of a service account, with a token of its own: what it may is what roles say.
    ///
    /// # Errors
    /// When there is no such account.
    pub async fn client_of(&self, namespace: &str, account: &str) -> io::Result<Client> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let (params, request) = (PostParams::default(), TokenRequest::default());
        let asked = accounts.create_token_request(account, &params, &request);
        let token = asked.await.map_err(io::Error::other)?.status;
        let mut config = self.config().await?;
        config.auth_info = AuthInfo {
            token: token.map(|token| token.token.into()),
            ..AuthInfo::default()
        };
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
        std::fs::write(&path, self.config_with(token))?;
        Ok(path)
    }

    /// The folder with definitions of others' custom resources, one a file of YAML: of the Gateway API, of the Prometheus
    /// operator and of cert-manager.
    #[must_use]
    pub fn definitions(&self) -> &Path {
        self.binaries.definitions()
    }

    /// Where a program is.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.binaries.path(name)
    }

    /// Where `kubectl` and `helm` are, for the `PATH` of a script.
    #[must_use]
    pub fn programs(&self) -> [PathBuf; 2] {
        self.binaries.folders()
    }

    /// What a person types, as the user who may everything: `kubectl` or `helm`.
    #[must_use]
    pub fn tool(&self, name: &str) -> Tool {
        Tool::new(
            self.binaries.path(name),
            self.kubeconfig(),
            self.directory.path(),
        )
    }
}

/// By which this user is known. No secret: nothing but tests reaches the server.
fn token(user: &str) -> String {
    format!("token-of-{user}")
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
