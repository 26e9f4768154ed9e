//! The `mailbell` binary, run as a person would run it.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions, Permissions},
    io::{Read as _, Seek as _, SeekFrom},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
};

use crate::stop::Stop;

/// Its log in the state directory.
const LOG: &str = "mailbell.log";
/// How far one's own mailbox was listened to, beside it.
const CURSOR: &str = "run.cursor";
/// The settings of the environment that are meant for whatever runs here. All others are somebody's for an installation of their
/// own, which must be neither set up nor given a password by this.
const KEPT: [&str; 3] = ["MAILBELL_NATS_SERVER", "MAILBELL_IMAP_CA", "MAILBELL_LOG"];

/// The binary on this state directory; killed if nobody waits for its end.
fn mailbell(binary: &Path, state_dir: &Path) -> Command {
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MAILBELL_") && !KEPT.contains(&&*text) {
            command.env_remove(name);
        }
    }
    command
        .env("MAILBELL_STATE_DIR", state_dir)
        .kill_on_drop(true);
    command
}

/// A running `mailbell standalone`.
#[derive(Debug)]
pub(crate) struct Standalone {
    binary: PathBuf,
    state_dir: PathBuf,
    /// Where what it says begins in its log, which it shares with those that ran before.
    said_from: u64,
    process: Child,
    push: SocketAddr,
}

impl Standalone {
    /// Starts it on free ports and waits until it can be used.
    pub(crate) async fn start(
        binary: &Path,
        state_dir: &Path,
        imap_ca: Option<&Path>,
    ) -> Result<Self> {
        let mut standalone = Self::spawn(binary, state_dir, imap_ca)?;
        standalone.ready().await?;
        Ok(standalone)
    }

    fn spawn(binary: &Path, state_dir: &Path, imap_ca: Option<&Path>) -> Result<Self> {
        // As standalone would make it: it refuses a directory with something in it that others can look into.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)?;
        // Before the log is in it: an empty one that is ours is made private by standalone, too.
        let is_ours = std::fs::metadata(state_dir)?.uid() == rustix::process::geteuid().as_raw();
        if is_ours && std::fs::read_dir(state_dir)?.next().is_none() {
            std::fs::set_permissions(state_dir, Permissions::from_mode(0o700))?;
        }
        // It may be the log of one that runs: whether the directory is in use is found out by what is started.
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(state_dir.join(LOG))?;
        let said_from = log.metadata()?.len();
        let mut command = mailbell(binary, state_dir);
        command.arg("standalone");
        for flag in ["--push-listen", "--admin-listen", "--http-listen"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        if let Some(ca) = imap_ca {
            command.arg("--imap-ca").arg(ca);
        }
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo, which stops it in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        Ok(Self {
            binary: binary.to_owned(),
            state_dir: state_dir.to_owned(),
            said_from,
            process,
            push: SocketAddr::from(([127, 0, 0, 1], 0)),
        })
    }

    async fn ready(&mut self) -> Result<()> {
        let started = tokio::time::timeout(Duration::from_secs(60), self.addresses()).await;
        match started {
            Ok(Ok(push)) => self.push = push,
            Ok(Err(error)) => {
                let said = self.said().unwrap_or_default();
                return Err(error.context(format!("mailbell standalone did not start:\n{said}")));
            }
            Err(_) => bail!(
                "mailbell standalone is not ready after a minute: see {}",
                self.state_dir.join(LOG).display()
            ),
        }
        Ok(())
    }

    /// What it has logged.
    fn said(&self) -> std::io::Result<String> {
        let mut log = File::open(self.state_dir.join(LOG))?;
        log.seek(SeekFrom::Start(self.said_from))?;
        let mut said = Vec::new();
        log.read_to_end(&mut said)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Where devices connect, from the file that it writes when it listens.
    async fn addresses(&mut self) -> Result<SocketAddr> {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if let Some(status) = self.process.try_wait()? {
                bail!("it ended with {status}");
            }
            let Ok(text) = std::fs::read_to_string(self.state_dir.join("addresses.json")) else {
                continue;
            };
            let addresses: Value = serde_json::from_str(&text)?;
            if addresses.get("pid").and_then(Value::as_u64) != self.process.id().map(u64::from) {
                continue;
            }
            let address = |name| addresses.get(name).and_then(Value::as_str);
            let push = address("push").context("no address for devices")?;
            let http = address("http").context("no address for health")?;
            if is_ready(http.parse()?).await {
                return Ok(push.parse()?);
            }
        }
    }

    /// Where devices connect.
    pub(crate) fn gateway(&self) -> SocketAddr {
        self.push
    }

    /// A command of this installation.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = mailbell(&self.binary, &self.state_dir);
        command.args(arguments);
        command
    }

    /// Adds an account and answers its id.
    pub(crate) async fn add_account(&self, url: &str, password_file: &Path) -> Result<String> {
        let output = self
            .command(["account", "add", url, "--json", "--password-file"])
            .arg(password_file)
            .output()
            .await?;
        if !output.status.success() {
            bail!(
                "the account was not added: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let account: Value = serde_json::from_slice(&output.stdout)?;
        let id = account.get("id").and_then(Value::as_str);
        Ok(id.context("an account without id")?.to_owned())
    }

    /// Stops it as a service manager would.
    pub(crate) async fn stop(mut self) -> Result<()> {
        crate::device::terminate(&mut self.process).await?;
        Ok(())
    }
}

/// Whether `/readyz` says yes.
async fn is_ready(http: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(http).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}

/// Watches the reader's own mailbox until it is to stop. The account stays in the usual state directory.
pub(crate) async fn run_own(binary: &Path, url: &str, stop: &mut Stop) -> Result<()> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state_dir = std::env::var_os("MAILBELL_STATE_DIR")
        .map(PathBuf::from)
        .or_else(|| {
            let base = std::env::var_os("XDG_STATE_HOME")
                .map(PathBuf::from)
                .or(home)?;
            Some(base.join("mailbell"))
        })
        .context("HOME is not set: name a directory with MAILBELL_STATE_DIR")?;
    let mut mailbell = Standalone::spawn(binary, &state_dir, None)?;
    let watched = tokio::select! {
        watched = watch_own(&mut mailbell, url) => watched,
        // What runs in the foreground has a signal of the terminal too and ends cleanly; dropping it makes sure.
        () = stop.asked() => Ok(()),
    };
    watched.and(mailbell.stop().await)
}

async fn watch_own(mailbell: &mut Standalone, url: &str) -> Result<()> {
    mailbell.ready().await?;
    let list = mailbell
        .command(["account", "list", "--json"])
        .stdin(Stdio::null())
        .output()
        .await?;
    let known = String::from_utf8_lossy(&list.stdout)
        .contains(&serde_json::to_string(url).unwrap_or_default());
    let added = known
        || mailbell
            .command(["account", "add", url, "--external-id", url])
            .status()
            .await?
            .success();
    if !added {
        bail!("the account was not added");
    }
    // The next run tells first what came meanwhile.
    let cursor = mailbell.state_dir.join(CURSOR);
    let listen = ["listen", "--cursor-file"].map(OsStr::new);
    mailbell
        .command(listen.into_iter().chain([cursor.as_os_str()]))
        .status()
        .await?;
    Ok(())
}
