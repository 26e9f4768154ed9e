//! A real installation: processes of the binary under test, started, killed and started again on the same state.

mod options;

use std::{
    collections::BTreeMap,
    fs::Permissions,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use mailbell_test_servers::{Dovecot, free_port, nats::nats_binary};
use rustix::process::Signal;
use serde::Deserialize;
use tempfile::TempDir;

pub use self::options::{Layout, Options, Part, WatcherOptions};

use crate::{
    cli::{self, Said},
    http,
    process::{self, Launch, Process, until},
};

/// How long a process may take to be ready. Generous: tests share two cores, and logs are recovered after a crash.
pub const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a process may take to end in order; devices are asked away over a window first.
pub const STOP_LIMIT: Duration = Duration::from_secs(60);

/// How often a start is tried when another process took a port in between.
const STARTS: usize = 3;

/// Where an installation listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Addresses {
    push: SocketAddr,
    admin: SocketAddr,
}

/// What a standalone process says in `addresses.json`.
#[derive(Debug, Clone, Copy, Deserialize)]
struct AddressFile {
    pid: u32,
    push: SocketAddr,
    admin: SocketAddr,
    http: SocketAddr,
}

/// The processes and their state. Dropped, they are killed and the state goes.
#[derive(Debug)]
pub struct Installation {
    directory: TempDir,
    options: Options,
    processes: BTreeMap<Part, Process>,
    addresses: Option<Addresses>,
    http: BTreeMap<Part, SocketAddr>,
}

impl Installation {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// When it doesn't become ready; the text has the end of its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..STARTS {
            match Self::try_start(options.clone()).await {
                Ok(installation) => return Ok(installation),
                // Only a port that somebody took meanwhile is worth another try.
                Err(error) if format!("{error:#}").contains("in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.context("not started")?)
    }

    async fn try_start(options: Options) -> anyhow::Result<Self> {
        let mut installation = Self {
            directory: tempfile::Builder::new()
                .prefix("mailbell-state-")
                // The log of the test lies in it, and no other directory with something in it is used.
                .permissions(Permissions::from_mode(0o700))
                .tempdir()?,
            options,
            processes: BTreeMap::new(),
            addresses: None,
            http: BTreeMap::new(),
        };
        if installation.options.layout == Layout::Roles {
            installation.prepare_roles().await?;
        }
        installation.start_all().await?;
        Ok(installation)
    }

    /// Streams, keys and ports of roles that run apart.
    async fn prepare_roles(&mut self) -> anyhow::Result<()> {
        self.setup(&[]).await?.ok()?;
        write_secret(
            &self.state_dir().join("admin.token"),
            "mba_a-token-of-the-test-that-is-long-enough-0123456789\n",
        )?;
        let free = || -> anyhow::Result<SocketAddr> { Ok(([127, 0, 0, 1], free_port()?).into()) };
        self.addresses = Some(Addresses {
            push: free()?,
            admin: free()?,
        });
        for part in self.options.parts() {
            self.http.insert(part, free()?);
        }
        Ok(())
    }

    /// `mailbell setup` of the release that is launched now, with further arguments.
    ///
    /// # Errors
    /// When it can't be started, takes too long, or there is no NATS server of the test.
    pub async fn setup(&self, args: &[&str]) -> anyhow::Result<Said> {
        let replicas = self.options.replicas.to_string();
        let nats = self.nats_url()?;
        let mut setup = vec!["setup", "--nats-url", nats, "--replicas", &replicas];
        setup.extend(args);
        cli::finish(cli::command_of(
            self.options.release,
            self.state_dir(),
            setup,
        )?)
        .await
    }

    /// Starts every process that doesn't run and waits until all are ready.
    ///
    /// # Errors
    /// When one doesn't become ready; the text has the end of its log.
    pub async fn start_all(&mut self) -> anyhow::Result<()> {
        for part in self.options.parts() {
            if !self.runs(part) {
                self.launch(part)?;
            }
        }
        self.ready().await
    }

    /// Starts a process, on the same ports if it ran before, and doesn't wait for it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn launch(&mut self, part: Part) -> anyhow::Result<()> {
        let mut args = vec![part.name().to_owned()];
        args.extend(self.arguments(part)?);
        args.extend(self.options.args.clone());
        let mut env = self.options.env.clone();
        let mut hosts = None;
        if let Part::Watcher(n) = part {
            let own = self.options.watcher(n)?;
            args.extend(own.args.clone());
            env.extend(own.env.clone());
            if !own.hosts.is_empty() {
                let file = self.state_dir().join(format!("{part}.hosts"));
                std::fs::write(&file, own.hosts_file())?;
                hosts = Some(file);
            }
        }
        let process = Process::start(&Launch {
            args: args.into_iter().map(Into::into).collect(),
            env,
            hosts,
            log: self.log_file(),
            release: self.options.release,
        })?;
        self.processes.insert(part, process);
        Ok(())
    }

    fn arguments(&self, part: Part) -> anyhow::Result<Vec<String>> {
        let mut args: Vec<String> = Vec::new();
        let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        let any = || "127.0.0.1:0".to_owned();
        let push = self.addresses.map_or_else(any, |all| all.push.to_string());
        let admin = self.addresses.map_or_else(any, |all| all.admin.to_string());
        let http = self.http.get(&part).map_or_else(any, SocketAddr::to_string);
        add("--http-listen", http);
        let file = |name: &str| self.state_dir().join(name).display().to_string();
        match part {
            Part::Standalone => {
                add("--state-dir", self.state_dir().display().to_string());
                add("--push-listen", push);
                add("--admin-listen", admin);
            }
            Part::Watcher(_) => {
                add("--key-ring-file", file("key.ring"));
                // Unique within the installation, which has a NATS server of its own.
                add("--member", part.to_string());
            }
            Part::Gateway => add("--push-listen", push),
            Part::Admin => {
                add("--admin-listen", admin);
                add("--admin-token-file", file("admin.token"));
                add("--signing-key-file", file("signing.pem"));
            }
        }
        let nats_url = match part {
            Part::Watcher(n) => self.options.watcher(n)?.nats_url.as_ref(),
            _ => None,
        };
        match nats_url.or(self.options.nats_url.as_ref()) {
            Some(url) => add("--nats-url", url.clone()),
            // Its own: the one that the tests use too, unless only the PATH knows it.
            None if nats_binary().is_absolute() => {
                add("--nats-server", nats_binary().display().to_string());
            }
            None => {}
        }
        if part == Part::Admin {
            args.push("--allow-private-hosts".to_owned());
        }
        if self.options.plaintext_imap && part != Part::Gateway {
            args.push("--allow-plaintext-imap".to_owned());
        }
        Ok(args)
    }

    fn nats_url(&self) -> anyhow::Result<&str> {
        self.options
            .nats_url
            .as_deref()
            .context("roles need a NATS server")
    }

    /// Waits until every process is ready.
    ///
    /// # Errors
    /// When one ends or takes too long; the text has the end of its log.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + READY_LIMIT;
        loop {
            self.read_addresses();
            for (part, process) in &mut self.processes {
                if let Some(status) = process.ended() {
                    let tail = process::tail(&self.directory.path().join(LOG));
                    bail!("{part} ended with {status}\n{tail}");
                }
            }
            if self.is_ready().await {
                return Ok(());
            }
            if tokio::time::Instant::now() > deadline {
                bail!("it isn't ready\n{}", process::tail(&self.log_file()));
            }
            tokio::time::sleep(process::LOOK_EVERY).await;
        }
    }

    /// Learns where a standalone process listens, once it says so; the file of the process before doesn't count.
    fn read_addresses(&mut self) {
        let Some(process) = self.processes.get(&Part::Standalone) else {
            return;
        };
        let text = process::read_lossy(&self.state_dir().join("addresses.json"));
        if let Ok(file) = serde_json::from_str::<AddressFile>(&text)
            && file.pid == process.pid()
        {
            self.addresses = Some(Addresses {
                push: file.push,
                admin: file.admin,
            });
            self.http.insert(Part::Standalone, file.http);
        }
    }

    /// Changes what processes are started with next time.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Whether the `/readyz` of every process says yes that was launched and neither killed nor terminated since.
    pub async fn is_ready(&self) -> bool {
        for part in self.processes.keys() {
            let ready = match self.page_of(*part, "/readyz").await {
                Ok(page) => page.status == 200,
                Err(_) => false,
            };
            if !ready {
                return false;
            }
        }
        !self.processes.is_empty()
    }

    /// Starts one more watcher, with the same key ring, and doesn't wait for it.
    ///
    /// # Errors
    /// When it can't be started, or the layout has no watchers of its own.
    pub fn add_watcher(&mut self, options: WatcherOptions) -> anyhow::Result<Part> {
        ensure!(
            self.options.layout == Layout::Roles,
            "only roles have watchers"
        );
        let part = Part::Watcher(u16::try_from(self.options.watchers.len())?);
        self.options.watchers.push(options);
        self.http
            .insert(part, ([127, 0, 0, 1], free_port()?).into());
        self.launch(part)?;
        Ok(part)
    }

    /// The watchers that were launched and neither killed nor terminated since.
    #[must_use]
    pub fn watchers(&self) -> Vec<Part> {
        let parts = self.processes.keys().copied();
        parts
            .filter(|part| matches!(part, Part::Watcher(_)))
            .collect()
    }

    /// A page of a process.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn page_of(&self, part: Part, path: &str) -> anyhow::Result<http::Page> {
        ensure!(self.processes.contains_key(&part), "{part} doesn't run");
        let addr = self
            .http
            .get(&part)
            .context("it hasn't said where it listens")?;
        Ok(http::get(*addr, path).await?)
    }

    /// The metrics of all processes that answer.
    pub async fn metrics(&self) -> String {
        let mut text = String::new();
        for part in self.processes.keys() {
            if let Ok(page) = self.page_of(*part, "/metrics").await {
                text.push_str(&page.body);
            }
        }
        text
    }

    /// The sum of a metric's series with these labels over all processes.
    ///
    /// # Errors
    /// When there is no such series: a name that nobody counts under would be 0 for ever.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        http::metric(&self.metrics().await, name, labels)
            .with_context(|| format!("nobody counts {name} with {labels:?}"))
    }

    /// Kills a process alone, as `kill -9` does. A NATS server of its own is left to itself.
    pub fn kill(&mut self, part: Part) {
        if let Some(mut process) = self.processes.remove(&part) {
            process.kill();
        }
    }

    /// Asks a process to end in order, and waits; it is missed no more. [`Installation::launch`] starts it again.
    ///
    /// # Errors
    /// When it doesn't run, doesn't end, or ends with another code than 0.
    pub async fn terminate(&mut self, part: Part) -> anyhow::Result<()> {
        let status = self.process_mut(part)?.terminate(STOP_LIMIT).await?;
        self.processes.remove(&part);
        if !status.success() {
            let tail = process::tail(&self.log_file());
            bail!("{part} ended with {status}\n{tail}");
        }
        Ok(())
    }

    /// Sends a signal to a process alone, for example `STOP` and `CONT`.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn signal(&mut self, part: Part, signal: Signal) -> anyhow::Result<()> {
        self.process_mut(part)?.signal(signal);
        Ok(())
    }

    /// Kills the standalone process and its NATS server in one moment, as a power cut does.
    pub fn power_cut(&mut self) {
        let nats = self.nats_pid();
        self.kill(Part::Standalone);
        if let Some(nats) = nats {
            process::kill_pid(nats);
        }
    }

    /// Kills the NATS server of a standalone process.
    ///
    /// # Errors
    /// When it has none.
    pub fn kill_nats(&self) -> anyhow::Result<()> {
        process::kill_pid(self.nats_pid().context("no nats-server runs")?);
        Ok(())
    }

    /// The process id of a standalone process' own NATS server.
    #[must_use]
    pub fn nats_pid(&self) -> Option<u32> {
        let standalone = self.processes.get(&Part::Standalone)?;
        process::child_named(standalone.pid(), "nats-server")
    }

    /// Waits until a standalone process' own NATS server runs (again).
    ///
    /// # Errors
    /// When it doesn't.
    pub async fn nats_runs(&self) -> anyhow::Result<()> {
        until(READY_LIMIT, "the NATS server", || async {
            self.nats_pid().is_some()
        })
        .await
    }

    /// Asks all processes to end, and waits.
    ///
    /// # Errors
    /// When one doesn't, or ends with another code than 0.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let parts: Vec<Part> = self.processes.keys().copied().collect();
        for part in parts {
            self.terminate(part).await?;
        }
        Ok(())
    }

    /// Waits until a process ends by itself; it is missed no more.
    ///
    /// # Errors
    /// When it still runs after `limit`, or a signal ended it.
    pub async fn ends(&mut self, part: Part, limit: Duration) -> anyhow::Result<i32> {
        let status = self.process_mut(part)?.wait(limit).await?;
        self.processes.remove(&part);
        status.code().context("a signal ended it")
    }

    /// Waits until a process has died at its failpoint.
    ///
    /// # Errors
    /// When it still runs after `limit`, or has ended in another way.
    pub async fn died_at_failpoint(&mut self, part: Part, limit: Duration) -> anyhow::Result<()> {
        let status = self.process_mut(part)?.wait(limit).await?;
        self.processes.remove(&part);
        if status.signal() != Some(Signal::ABORT.as_raw()) {
            let tail = process::tail(&self.log_file());
            bail!("{part} ended with {status}\n{tail}");
        }
        Ok(())
    }

    /// Whether a process runs.
    pub fn runs(&mut self, part: Part) -> bool {
        self.processes
            .get_mut(&part)
            .is_some_and(|process| process.ended().is_none())
    }

    /// A running process.
    ///
    /// # Errors
    /// When it doesn't run.
    pub fn process_mut(&mut self, part: Part) -> anyhow::Result<&mut Process> {
        let process = self.processes.get_mut(&part);
        process.with_context(|| format!("{part} doesn't run"))
    }

    /// The id of a process; 0 if it doesn't run.
    #[must_use]
    pub fn pid(&self, part: Part) -> u32 {
        self.processes.get(&part).map_or(0, Process::pid)
    }

    /// Its directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        self.directory.path()
    }

    /// Everything that its processes have printed in all their lives.
    #[must_use]
    pub fn log(&self) -> String {
        process::read_lossy(&self.log_file())
    }

    /// Where what they print goes.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.state_dir().join(LOG)
    }

    /// Where devices connect.
    ///
    /// # Errors
    /// When it hasn't said so yet.
    pub fn push_url(&self) -> anyhow::Result<String> {
        let addresses = self.addresses.context("it hasn't said where it listens")?;
        Ok(format!("http://{}", addresses.push))
    }

    /// Copies its state to where `MAILBELL_TESTS_KEEP` says, if it says so: for whoever wants to know why a test failed.
    pub fn keep(&self) {
        if let Some(directory) = std::env::var_os("MAILBELL_TESTS_KEEP") {
            let _ = std::process::Command::new("cp")
                .arg("-a")
                .arg(self.state_dir())
                .arg(directory)
                .status();
        }
    }

    /// The URL of its admin API, and the token that it takes.
    ///
    /// # Errors
    /// When it hasn't said so yet.
    pub fn admin(&self) -> anyhow::Result<(String, String)> {
        let addresses = self.addresses.context("it hasn't said where it listens")?;
        let token = std::fs::read_to_string(self.state_dir().join("admin.token"))?;
        Ok((
            format!("http://{}", addresses.admin),
            token.trim().to_owned(),
        ))
    }

    /// Runs a command against it.
    ///
    /// # Errors
    /// When it can't be started or takes too long.
    pub async fn cli(&self, args: &[&str]) -> anyhow::Result<Said> {
        cli::finish(self.command(args)?).await
    }

    /// A command against it that is about to run.
    ///
    /// # Errors
    /// When the binary hasn't been built.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<tokio::process::Command> {
        let mut command = cli::command(self.state_dir(), args)?;
        if self.options.layout == Layout::Roles {
            let addresses = self.addresses.context("it hasn't said where it listens")?;
            command.env("MAILBELL_ADMIN_URL", format!("http://{}", addresses.admin));
        }
        Ok(command)
    }

    /// Writes a password file, for its owner only.
    ///
    /// # Errors
    /// What the system says.
    pub fn password_file(&self, name: &str, password: &str) -> anyhow::Result<PathBuf> {
        let path = self.state_dir().join(format!("password-{name}"));
        write_secret(&path, password)?;
        Ok(path)
    }

    /// Adds the mailbox of a user of the test server; answers the account's id.
    ///
    /// # Errors
    /// With all that the command said.
    pub async fn add_account(&self, dovecot: &Dovecot, user: &str) -> anyhow::Result<String> {
        let password = self.password_file(user, dovecot.password(user))?;
        let url = imap_url(user, dovecot.imap_port());
        let password = password.display().to_string();
        let args = [
            "account",
            "add",
            &url,
            "--password-file",
            &password,
            "--json",
        ];
        text_field(&self.cli(&args).await?.ok()?, "id")
    }

    /// Mints a device token for accounts.
    ///
    /// # Errors
    /// With all that the command said.
    pub async fn mint(&self, accounts: &[&str]) -> anyhow::Result<String> {
        let mut args = vec!["token", "mint", "--json"];
        for account in accounts {
            args.extend(["--account", account]);
        }
        text_field(&self.cli(&args).await?.ok()?, "token")
    }
}

/// The file in the state directory into which all processes print.
const LOG: &str = "test.log";

/// A mailbox of the test server, without TLS.
#[must_use]
pub fn imap_url(user: &str, port: u16) -> String {
    format!("imap+plaintext://{user}@127.0.0.1:{port}")
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// What the system says.
pub fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// A field of the JSON object that a command printed.
///
/// # Errors
/// When it isn't there.
pub fn text_field(json: &str, field: &str) -> anyhow::Result<String> {
    let value: serde_json::Value =
        serde_json::from_str(json).with_context(|| format!("this is no JSON: {json}"))?;
    value
        .get(field)
        .and_then(|value| value.as_str())
        .map(str::to_owned)
        .with_context(|| format!("no text {field} in {json}"))
}
