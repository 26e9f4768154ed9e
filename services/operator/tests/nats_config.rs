//! The configuration that the operator gives its NATS servers, on real ones.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use mailbell_bus::{Auth, Bus, BusOptions, Role, Secret, TlsOptions, patiently};
use mailbell_core::ids::Installation;
use mailbell_test_servers::{
    Certificate, NatsOptions, NatsServer, free_port,
    nats::nats_binary,
    process::{Process, with_log},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

const PASSWORD: &str = "mb-for-tests-only";
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
        let certificate = Certificate::localhost();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text);
        write("ca.crt", &certificate.authority_pem)?;
        write("tls.crt", &certificate.certificate_pem)?;
        write("tls.key", &certificate.key_pem)?;
        let config = object(snapshot, "ConfigMap", "main-nats");
        let text = |name: &str| config["data"][name].as_str().unwrap().to_owned();
        write("users.conf", &text("users.conf"))?;
        let mut servers = Self {
            folder,
            clients,
            monitors,
            processes: Vec::new(),
        };
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
            let file = servers.path(&format!("node-{node}.conf"));
            fs::write(&file, own)?;
            servers.launch(node, &file, &set)?;
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

    /// With the environment of the pod.
    fn launch(&mut self, node: usize, config: &str, set: &Value) -> io::Result<()> {
        let container = &set["spec"]["template"]["spec"]["containers"][0];
        let variables = container["env"].as_array().unwrap().iter().map(|variable| {
            let name = variable["name"].as_str().unwrap();
            match name {
                "POD_NAME" => format!("{name}=main-nats-{node}"),
                "GOMEMLIMIT" => format!("{name}=900MiB"),
                _ => format!("{name}={PASSWORD}"),
            }
        });
        let binary = nats_binary();
        let mut arguments: Vec<String> = variables.collect();
        arguments.extend([binary.to_str().unwrap(), "--config", config].map(str::to_owned));
        let log = self.folder.path().join(format!("node-{node}.log"));
        self.processes
            .push(Process::start(Path::new("env"), &arguments, &log)?);
        Ok(())
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
                    is_ready &= is_good(self.monitors[node], path).await.unwrap_or(false);
                }
            }
            if is_ready {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn connect(&self, role: Role, password: &str, replicas: u8) -> Result<Bus, String> {
        let urls = self
            .clients
            .iter()
            .map(|port| format!("tls://localhost:{port}"))
            .collect();
        let mut options = BusOptions::new(urls, Installation::default(), role);
        options.auth = Auth::UserPassword {
            user: role.as_str().to_owned(),
            password: Secret::new(password),
        };
        options.tls = Some(TlsOptions {
            ca: Some(self.folder.path().join("ca.crt")),
            ..TlsOptions::default()
        });
        options.replicas = replicas;
        Bus::connect(options)
            .await
            .map_err(|error| error.to_string())
    }
}

async fn is_good(port: u16, path: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.starts_with("HTTP/1.0 200"))
}

/// One node, and three that keep everything three times.
#[tokio::test]
async fn a_server_takes_its_configuration_and_mailbell_finds_all_it_needs() {
    for (snapshot, replicas) in [("full.yaml", 1), ("usual.yaml", 3)] {
        let servers = Servers::start(snapshot).await;
        assert_eq!(servers.clients.len(), usize::from(replicas));
        let setup = servers
            .connect(Role::Setup, PASSWORD, replicas)
            .await
            .unwrap();
        // Three that have just met have no leader yet; the job is started again then.
        let report = patiently(|| setup.setup()).await.unwrap();
        assert!(report.created.len() > 60, "{snapshot}");
        assert_eq!(setup.verify().await.unwrap().drift, []);
        for role in Role::ALL {
            servers.connect(role, PASSWORD, replicas).await.unwrap();
        }
        let refused = servers.connect(Role::Watcher, "wrong", replicas).await;
        assert!(refused.is_err(), "{snapshot}");
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
