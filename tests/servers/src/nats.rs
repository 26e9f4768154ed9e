//! A NATS server with JetStream.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::process::{Process, wait_until, with_log};
use crate::{Certificate, free_port};

/// How long a server may take to be ready. Generous: tests share two cores.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long the monitoring endpoint may take: it waits for locks of a server that hangs.
const MONITOR_LIMIT: Duration = Duration::from_secs(5);
/// No page of it is larger.
const PAGE_LIMIT: u64 = 4 << 20;

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct NatsOptions {
    /// Most bytes JetStream may store, for tests of a full disk.
    pub max_file_store: Option<u64>,
    /// Leave `sync_interval` at the server's default. The product runs with `always`, so that is the default here.
    pub lazy_sync: bool,
    /// Serve clients over TLS.
    pub tls: Option<Certificate>,
    /// More text for the configuration file: users, permissions, accounts.
    pub config: String,
}

/// Where the `nats-server` binary is: `MAILBELL_NATS_SERVER`, else `.tools/bin` of the workspace, else on the `PATH`.
#[must_use]
pub fn nats_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MAILBELL_NATS_SERVER") {
        return path.into();
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/bin/nats-server");
    if own.exists() {
        own
    } else {
        "nats-server".into()
    }
}

/// One NATS server. Its store outlives [`NatsServer::kill`] and goes with the value.
#[derive(Debug)]
pub struct NatsServer {
    directory: TempDir,
    port: u16,
    monitor: u16,
    tls: bool,
    process: Option<Process>,
}

impl NatsServer {
    /// Starts a server of its own.
    ///
    /// # Errors
    /// When it doesn't start; the text has the end of its log.
    pub async fn start(options: NatsOptions) -> io::Result<Self> {
        let mut server = Self::prepare("single", &options, "")?;
        for _ in 0..3 {
            match server.restart().await {
                Ok(()) => return Ok(server),
                // Somebody may have taken the port meanwhile.
                Err(_) => server = Self::prepare("single", &options, "")?,
            }
        }
        server.restart().await?;
        Ok(server)
    }

    pub(crate) fn prepare(name: &str, options: &NatsOptions, cluster: &str) -> io::Result<Self> {
        let directory = TempDir::with_prefix("mailbell-nats-")?;
        let (port, monitor) = (free_port()?, free_port()?);
        let path = directory.path().display();
        let mut config = format!(
            "server_name: {name}\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\npid_file: \"{path}/pid\"\n\
             jetstream {{\n  store_dir: \"{path}/store\"\n",
        );
        if !options.lazy_sync {
            config.push_str("  sync_interval: always\n");
        }
        if let Some(bytes) = options.max_file_store {
            let _ = writeln!(config, "  max_file_store: {bytes}");
        }
        config.push_str("}\n");
        if let Some(tls) = &options.tls {
            std::fs::write(directory.path().join("cert.pem"), &tls.certificate_pem)?;
            std::fs::write(directory.path().join("key.pem"), &tls.key_pem)?;
            let _ = writeln!(
                config,
                "tls {{ cert_file: \"{path}/cert.pem\", key_file: \"{path}/key.pem\" }}"
            );
        }
        config.push_str(cluster);
        config.push('\n');
        config.push_str(&options.config);
        std::fs::write(directory.path().join("nats.conf"), config)?;
        Ok(Self {
            directory,
            port,
            monitor,
            tls: options.tls.is_some(),
            process: None,
        })
    }

    /// Starts the server again on the same port and store, or stops and starts it when it runs.
    ///
    /// # Errors
    /// When it doesn't start; the text has the end of its log.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.stop().await;
        self.launch()?;
        self.wait_ready().await
    }

    pub(crate) fn launch(&mut self) -> io::Result<()> {
        let config = self.directory.path().join("nats.conf");
        let process = Process::start(
            &nats_binary(),
            &[Path::new("-c"), &config],
            &self.log_file(),
        )?;
        self.process = Some(process);
        Ok(())
    }

    pub(crate) async fn wait_ready(&mut self) -> io::Result<()> {
        let (monitor, log) = (self.monitor, self.log_file());
        let Some(process) = &mut self.process else {
            return Err(io::Error::other("not started"));
        };
        let ready = wait_until(process, START_LIMIT, || async move {
            healthy(monitor).await.unwrap_or(false)
        })
        .await;
        if let Err(error) = ready {
            self.process = None;
            return Err(with_log(&error, &log));
        }
        Ok(())
    }

    /// Ends the server as a crash does: `SIGKILL`, the store stays as it is.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends the server in order.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(10)).await;
        }
    }

    /// Where clients connect: `nats://` or `tls://`.
    #[must_use]
    pub fn url(&self) -> String {
        if self.tls {
            format!("tls://localhost:{}", self.port)
        } else {
            format!("nats://127.0.0.1:{}", self.port)
        }
    }

    /// The port of clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of the HTTP monitoring endpoints (`/healthz`, `/jsz`, ...).
    #[must_use]
    pub fn monitor_port(&self) -> u16 {
        self.monitor
    }

    /// A page of the monitoring endpoint, such as `/jsz?streams=1`.
    ///
    /// # Errors
    /// When the server doesn't answer, or not with JSON.
    pub async fn monitor(&self, path: &str) -> io::Result<serde_json::Value> {
        let limit = tokio::time::timeout(MONITOR_LIMIT, monitor(self.monitor, path));
        let (_, body) = limit.await??;
        Ok(serde_json::from_str(&body)?)
    }

    /// The connections in this state (`open`, `closed`) of clients with such a word in their name, as `/connz` describes them.
    ///
    /// # Errors
    /// As [`NatsServer::monitor`]; also when the page does not list connections.
    pub async fn connections(
        &self,
        state: &str,
        is: impl Fn(&str) -> bool,
    ) -> io::Result<Vec<serde_json::Value>> {
        let page = self.monitor(&format!("/connz?state={state}")).await?;
        let connections = page.get("connections").and_then(|found| found.as_array());
        let connections =
            connections.ok_or_else(|| io::Error::other("no connections are listed"))?;
        let wanted = connections.iter().filter(|connection| {
            let name = connection.get("name").and_then(|name| name.as_str());
            name.is_some_and(|name| name.split(' ').any(&is))
        });
        Ok(wanted.cloned().collect())
    }

    /// The directory of the store, the configuration (`nats.conf`) and the log.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The id of the server's process, when it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref()?;
        std::fs::read_to_string(self.directory.path().join("pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    /// The process, for signals such as `STOP` and `CONT`.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// What the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }
}

/// Whether `/healthz` says that the server serves and JetStream is current.
async fn healthy(port: u16) -> io::Result<bool> {
    let (ok, _) = monitor(port, "/healthz").await?;
    Ok(ok)
}

/// A page of the monitoring endpoint: whether its status is 200, and its text.
async fn monitor(port: u16, path: &str) -> io::Result<(bool, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(PAGE_LIMIT).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    Ok((status.ends_with("200 OK"), body.to_owned()))
}
