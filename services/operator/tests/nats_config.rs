//! The configuration that the operator gives its NATS servers, on real ones.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use mailbell_bus::{
    Auth, Bus, BusError, BusOptions, Role, Secret, TlsOptions, patiently,
    server_certificate::{read_again, shown},
};
use mailbell_core::ids::Installation;
use mailbell_runtime::tls::certificates;
use mailbell_test_servers::{
    Certificate, NatsOptions, NatsServer, free_port,
    nats::nats_binary,
    process::{Process, with_log},
};
use rustix::process::Signal;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

/// How long servers may take to be ready.
const SOON: Duration = Duration::from_secs(60);

/// What a snapshot of `src/desired/golden` has of this kind and name.
fn object(snapshot: &str, kind: &str, name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/desired/golden");
    let text = fs::read_to_string(folder.join(snapshot)).unwrap();
    let documents = text.split("---\n").skip(1);
    let mut objects = documents.map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    let is_it = |object: &Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.find(is_it).unwrap()
}

/// What a Secret has under this key.
fn password(secret: &str, key: &str) -> String {
    format!("{key}-of_{secret}")
}

/// Servers with the configuration of a snapshot, on loopback: other ports, names and folders, and nothing else.
struct Servers {
    folder: TempDir,
    clients: Vec<u16>,
    monitors: Vec<u16>,
    processes: Vec<Process>,
}

impl Servers {
    /// Again on other ports, if somebody else has taken one meanwhile.
    async fn start(snapshot: &str) -> Self {
        let mut last = None;
        for _ in 0..3 {
            match Self::attempt(snapshot).await {
                Ok(servers) => return servers,
                Err(error) => last = Some(error),
            }
        }
        panic!("{last:?}");
    }

    async fn attempt(snapshot: &str) -> io::Result<Self> {
        let set = object(snapshot, "StatefulSet", "main-nats");
        let nodes = usize::try_from(set["spec"]["replicas"].as_u64().unwrap()).unwrap();
        let ports = || {
            (0..nodes)
                .map(|_| free_port())
                .collect::<io::Result<Vec<_>>>()
        };
        let (clients, monitors, routes) = (ports()?, ports()?, ports()?);
        let folder = TempDir::with_prefix("mailbell-nats-config-")?;
        let config = object(snapshot, "ConfigMap", "main-nats");
        let text = |name: &str| config["data"][name].as_str().unwrap().to_owned();
        fs::write(folder.path().join("users.conf"), text("users.conf"))?;
        let mut servers = Self {
            folder,
            clients,
            monitors,
            processes: Vec::new(),
        };
        let certificate = Certificate::localhost();
        servers.trust(&certificate.authority_pem)?;
        servers.show(&certificate)?;
        for node in 0..nodes {
            let mut own = text("nats.conf")
                .replace(
                    "0.0.0.0:4222",
                    &format!("127.0.0.1:{}", servers.clients[node]),
                )
                .replace(
                    "0.0.0.0:8222",
                    &format!("127.0.0.1:{}", servers.monitors[node]),
                )
                .replace("0.0.0.0:6222", &format!("127.0.0.1:{}", routes[node]))
                .replace("/run/nats/tls", &servers.path(""))
                .replace(
                    "\"/data\"",
                    &format!("\"{}\"", servers.path(&format!("data-{node}"))),
                );
            for (other, port) in routes.iter().enumerate() {
                let name = format!("main-nats-{other}.main-nats.mail.svc:6222");
                own = own.replace(&name, &format!("localhost:{port}"));
            }
            fs::write(servers.config(node), own)?;
            let process = servers.launch(node, &set)?;
            servers.processes.push(process);
        }
        servers.wait_ready(&set).await?;
        Ok(servers)
    }

    fn path(&self, name: &str) -> String {
        self.folder
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .trim_end_matches('/')
            .to_owned()
    }

    fn config(&self, node: usize) -> String {
        self.path(&format!("node-{node}.conf"))
    }

    /// What `ca.crt` of their Secret has.
    fn trust(&self, authorities: &str) -> io::Result<()> {
        fs::write(self.path("ca.crt"), authorities)
    }

    /// What the rest of their Secret has.
    fn show(&self, certificate: &Certificate) -> io::Result<()> {
        fs::write(self.path("tls.crt"), &certificate.certificate_pem)?;
        fs::write(self.path("tls.key"), &certificate.key_pem)
    }

    /// One after the other, each once the one before is ready, as their StatefulSet does.
    async fn start_anew(&mut self, set: &Value) -> io::Result<()> {
        for node in (0..self.processes.len()).rev() {
            self.processes[node].terminate(SOON).await;
            let begun = Instant::now();
            loop {
                self.processes[node] = self.launch(node, set)?;
                match self.wait_ready(set).await {
                    Ok(()) => break,
                    // Somebody else may have had one of its ports for a moment.
                    Err(_) if !self.processes[node].is_running() && begun.elapsed() < SOON => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// With the environment of the pod.
    fn launch(&self, node: usize, set: &Value) -> io::Result<Process> {
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let variables = container["env"].as_array().unwrap().iter().map(|variable| {
            let name = variable["name"].as_str().unwrap();
            let of = &variable["valueFrom"]["secretKeyRef"];
            match (name, variable["value"].as_str()) {
                ("POD_NAME", _) => format!("{name}=main-nats-{node}"),
                (_, Some(value)) => format!("{name}={value}"),
                ("GOMEMLIMIT", None) => format!("{name}=900MiB"),
                (_, None) => {
                    let text = |field: &str| of[field].as_str().unwrap();
                    // A Secret that is made of files has the ends of their lines.
                    format!("{name}={}\n", password(text("name"), text("key")))
                }
            }
        });
        let (binary, config) = (nats_binary(), self.config(node));
        let mut arguments: Vec<String> = variables.collect();
        arguments.extend([binary.to_str().unwrap(), "--config", &config].map(str::to_owned));
        let log = self.folder.path().join(format!("node-{node}.log"));
        Process::start(Path::new("env"), &arguments, &log)
    }

    /// As the kubelet sees it, by the probes of the pod. One that ends takes the others with it: they wait for it in vain.
    async fn wait_ready(&mut self, set: &Value) -> io::Result<()> {
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let probes = ["startupProbe", "readinessProbe", "livenessProbe"];
        let paths = probes.map(|probe| container[probe]["httpGet"]["path"].as_str().unwrap());
        let begun = Instant::now();
        loop {
            let mut is_ready = true;
            for (node, process) in self.processes.iter_mut().enumerate() {
                let log = self.folder.path().join(format!("node-{node}.log"));
                let ended = !process.is_running();
                if ended || begun.elapsed() > SOON {
                    let what = if ended {
                        "it ended"
                    } else {
                        "not ready in time"
                    };
                    return Err(with_log(&io::Error::other(what), &log));
                }
                for path in paths {
                    let answer = ask(self.monitors[node], path).await;
                    is_ready &= answer.is_ok_and(|answer| answer.starts_with("HTTP/1.0 200"));
                }
            }
            if is_ready {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn urls(&self) -> Vec<String> {
        let ports = self.clients.iter();
        ports
            .map(|port| format!("tls://localhost:{port}"))
            .collect()
    }

    async fn connect(&self, role: Role, password: &str, replicas: u8) -> Result<Bus, String> {
        Bus::connect(self.options(role, password, replicas))
            .await
            .map_err(|error| error.to_string())
    }

    /// Has each read its files, as the admin API does that has trusted these before.
    async fn read_again(
        &self,
        password: &str,
        before: &[CertificateDer<'static>],
    ) -> Result<(), BusError> {
        let options = self.options(Role::Admin, password, 1);
        for url in self.urls() {
            let server = shown(&url).await?.server_id;
            read_again(&options, &url, &server, before).await?;
        }
        Ok(())
    }

    /// The connections between them: of which server, to which other, and its number there.
    async fn routes(&self) -> BTreeSet<(u16, String, u64)> {
        let mut all = BTreeSet::new();
        for port in &self.monitors {
            let answer = ask(*port, "/routez").await.unwrap();
            let (_, page) = answer.split_once("\r\n\r\n").unwrap();
            let page: Value = serde_json::from_str(page).unwrap();
            for route in page["routes"].as_array().unwrap() {
                let other = route["remote_name"].as_str().unwrap().to_owned();
                all.insert((*port, other, route["rid"].as_u64().unwrap()));
            }
        }
        all
    }

    /// The same, once each has one to each other and none has changed for a moment.
    async fn settled_routes(&self) -> BTreeSet<(u16, String, u64)> {
        let nodes = self.monitors.len();
        let begun = Instant::now();
        let mut before = BTreeSet::new();
        loop {
            let routes = self.routes().await;
            let pairs = routes.iter().map(|(at, to, _)| (at, to));
            if pairs.collect::<BTreeSet<_>>().len() == nodes * (nodes - 1) && routes == before {
                return routes;
            }
            assert!(begun.elapsed() < SOON, "{routes:?}");
            before = routes;
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The certificate in their Secret.
    fn certificate(&self) -> Vec<u8> {
        certificates(Path::new(&self.path("tls.crt"))).unwrap()[0].to_vec()
    }

    /// Which of them show this.
    async fn showing(&self, certificate: &[u8]) -> Vec<bool> {
        let mut all = Vec::new();
        for url in self.urls() {
            all.push(shown(&url).await.unwrap().certificate.as_ref() == certificate);
        }
        all
    }

    fn options(&self, role: Role, password: &str, replicas: u8) -> BusOptions {
        let mut options = BusOptions::new(self.urls(), Installation::default(), role);
        options.auth = Auth::UserPassword {
            user: role.as_str().to_owned(),
            password: Secret::new(password),
        };
        options.tls = Some(TlsOptions {
            ca: Some(self.folder.path().join("ca.crt")),
            ..TlsOptions::default()
        });
        options.replicas = replicas;
        options
    }
}

async fn ask(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// One node, with users and a certificate that are brought, and three that keep everything three times.
#[tokio::test]
async fn a_server_takes_its_configuration_and_mailbell_finds_all_it_needs() {
    for (snapshot, replicas, users, certificate) in [
        ("full.yaml", 1, "own-users", "own-nats-tls"),
        ("usual.yaml", 3, "main-nats-users", "main-nats-tls"),
    ] {
        let set = object(snapshot, "StatefulSet", "main-nats");
        let volumes = set["spec"]["template"]["spec"]["volumes"]
            .as_array()
            .unwrap();
        let tls = volumes.iter().find(|volume| volume["name"] == "tls");
        assert_eq!(tls.unwrap()["secret"]["secretName"], certificate);
        let servers = Servers::start(snapshot).await;
        assert_eq!(servers.clients.len(), usize::from(replicas));
        let connect = |role: Role| {
            let password = password(users, role.as_str());
            let servers = &servers;
            async move { servers.connect(role, &password, replicas).await }
        };
        let setup = connect(Role::Setup).await.unwrap();
        // Three that have just met have no leader yet; the job is started again then.
        let report = patiently(|| setup.setup()).await.unwrap();
        assert!(report.created.len() > 60, "{snapshot}");
        let verified = patiently(|| setup.verify()).await.unwrap();
        assert_eq!(verified.drift, []);
        for role in Role::ALL {
            connect(role).await.unwrap();
        }
        let refused = servers.connect(Role::Watcher, "wrong", replicas).await;
        assert!(refused.is_err(), "{snapshot}");
    }
}

/// No server is started anew, and nobody who is connected notices.
#[tokio::test]
async fn a_certificate_is_renewed_while_servers_run() {
    let servers = Servers::start("usual.yaml").await;
    let password = |role| password("main-nats-users", role);
    let (admin, watcher) = (password("admin"), password("watcher"));
    let watcher = servers.connect(Role::Watcher, &watcher, 3).await.unwrap();
    let before = *watcher.link().borrow();
    let routes = servers.settled_routes().await;
    let old = servers.certificate();
    assert_eq!(servers.showing(&old).await, [true; 3]);
    // By another authority, so that a client that connects anew tells whom it has met.
    let new = Certificate::localhost();
    let both = fs::read_to_string(servers.path("ca.crt")).unwrap() + &new.authority_pem;
    servers.trust(&both).unwrap();
    servers.show(&new).unwrap();
    let new = servers.certificate();
    assert_eq!(servers.showing(&old).await, [true; 3]);
    servers.read_again(&admin, &[]).await.unwrap();
    assert_eq!(servers.showing(&new).await, [true; 3]);
    servers.connect(Role::Admin, &admin, 3).await.unwrap();

    // Half of a pair is of no use, and changes nothing.
    fs::write(servers.path("tls.key"), &Certificate::localhost().key_pem).unwrap();
    let refused = servers.read_again(&admin, &[]).await.unwrap_err();
    assert!(
        matches!(&refused, BusError::Reload(why) if why.contains("private key")),
        "{refused}"
    );
    assert_eq!(servers.showing(&new).await, [true; 3]);
    let refused = servers.read_again("wrong", &[]).await.unwrap_err();
    assert_eq!(refused, BusError::Authentication);
    assert_eq!(*watcher.link().borrow(), before);
    // Some are made and given up again just after the start; no two servers have lost all that they had.
    let stayed = servers.routes().await;
    let stayed = stayed.intersection(&routes).map(|(at, to, _)| (at, to));
    assert_eq!(stayed.collect::<BTreeSet<_>>().len(), 6);
}

/// As docs/operating.md says it: the servers and whoever is connected find each other all along, though none that trusts the old authority
/// alone could speak to one that shows the new certificate. Then a Secret can be named that has the new authority alone.
#[tokio::test]
async fn a_certificate_of_another_authority_is_taken_over_in_two_steps() {
    let set = object("usual.yaml", "StatefulSet", "main-nats");
    let mut servers = Servers::start("usual.yaml").await;
    let (role, password) = (Role::Setup, |role| password("main-nats-users", role));
    let (setup, admin) = (password("setup"), password("admin"));
    let connected = servers.connect(role, &setup, 3).await.unwrap();
    patiently(|| connected.setup()).await.unwrap();
    let before = *connected.link().borrow();
    let old = fs::read_to_string(servers.path("ca.crt")).unwrap();
    let new = Certificate::localhost();
    let both = format!("{old}{}", new.authority_pem);
    servers.trust(&both).unwrap();
    servers.read_again(&admin, &[]).await.unwrap();
    servers.show(&new).unwrap();
    servers.read_again(&admin, &[]).await.unwrap();
    // Who was there before is there still.
    let verified = patiently(|| connected.verify()).await.unwrap();
    assert_eq!(verified.drift, []);
    assert_eq!(*connected.link().borrow(), before);
    servers.trust(&old).unwrap();
    let refused = servers.connect(role, &setup, 3).await;
    assert!(refused.is_err());
    servers.trust(&new.authority_pem).unwrap();
    servers.connect(role, &setup, 3).await.unwrap();
    // Each meets two that have read it while they ran, or started with it.
    servers.start_anew(&set).await.unwrap();
    servers.connect(role, &setup, 3).await.unwrap();
}

/// As cert-manager does it with an authority that it has renewed with another key.
#[tokio::test]
async fn servers_take_a_certificate_whose_authority_comes_with_it() {
    let servers = Servers::start("usual.yaml").await;
    let (role, password) = (Role::Setup, |role| password("main-nats-users", role));
    let (setup, admin) = (password("setup"), password("admin"));
    let connected = servers.connect(role, &setup, 3).await.unwrap();
    patiently(|| connected.setup()).await.unwrap();
    let link = *connected.link().borrow();
    let before = certificates(Path::new(&servers.path("ca.crt"))).unwrap();
    let new = Certificate::localhost();
    servers.trust(&new.authority_pem).unwrap();
    servers.show(&new).unwrap();
    // Whoever trusts the new one alone is led in by none of them.
    let lost = servers.read_again(&admin, &[]).await.unwrap_err();
    assert!(matches!(lost, BusError::Tls(_)), "{lost}");
    servers.read_again(&admin, &before).await.unwrap();
    assert_eq!(servers.showing(&servers.certificate()).await, [true; 3]);
    servers.connect(role, &setup, 3).await.unwrap();
    // Who was there before is there still.
    let verified = patiently(|| connected.verify()).await.unwrap();
    assert_eq!(verified.drift, []);
    assert_eq!(*connected.link().borrow(), link);
}

/// Until then they pass it questions of others, which nobody answers.
#[tokio::test]
async fn a_server_that_falls_silent_is_given_up_by_the_others() {
    let mut servers = Servers::start("usual.yaml").await;
    let is_known = async |servers: &Servers, to: usize| {
        let routes = ask(servers.monitors[to], "/routez").await.unwrap();
        routes.contains("\"main-nats-2\"")
    };
    // Ready is one that has met a leader, not all others.
    let begun = Instant::now();
    for to in 0..2 {
        while !is_known(&servers, to).await {
            assert!(begun.elapsed() < SOON, "main-nats-{to} has no route to it");
            sleep(Duration::from_millis(100)).await;
        }
    }
    servers.processes[2].signal(Signal::STOP);
    let begun = Instant::now();
    for to in 0..2 {
        while is_known(&servers, to).await {
            assert!(begun.elapsed() < SOON, "main-nats-{to} has a route to it");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The smallest disk that the API server takes has room for what is set aside.
#[tokio::test]
async fn the_smallest_disk_is_large_enough() {
    let config = object("usual.yaml", "ConfigMap", "main-nats");
    let config = config["data"]["nats.conf"].as_str().unwrap();
    let of = |gibibytes: u64| format!("max_file_store: {}", (gibibytes << 30) - (512 << 20));
    assert!(config.contains(&of(20)), "{config}");
    let server = NatsServer::start(NatsOptions {
        max_file_store: Some((8 << 30) - (512 << 20)),
        ..NatsOptions::default()
    });
    let server = server.await.unwrap();
    let options = BusOptions::new(vec![server.url()], Installation::default(), Role::Setup);
    let bus = Bus::connect(options).await.unwrap();
    bus.setup().await.unwrap();
}
