//! A state directory, and the process on it.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use mailbell_test_servers::{free_port, nats::nats_binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::interval;

/// Generous: tests share two cores.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A state directory of its own; the process on it is killed when this goes.
pub(crate) struct Machine {
    directory: TempDir,
    kubeconfig: PathBuf,
    child: Option<Child>,
}

/// The binary, with no setting of the environment but the directory and the server.
fn mailbell(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailbell"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MAILBELL_") {
            command.env_remove(name);
        }
    }
    command
        .env("MAILBELL_STATE_DIR", state)
        .env("MAILBELL_NATS_SERVER", nats_binary())
        .stdin(Stdio::null());
    command
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            directory: TempDir::with_prefix("mailbell-standalone-").unwrap(),
            // Never that of whoever runs the tests.
            kubeconfig: PathBuf::from("/nonexistent"),
            child: None,
        }
    }

    /// One whose commands reach this cluster.
    pub(crate) fn on_cluster(kubeconfig: PathBuf) -> Self {
        let mut machine = Self::new();
        machine.kubeconfig = kubeconfig;
        machine
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.state().join(name)
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// A command on this directory.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = mailbell(&self.state());
        command.env("KUBECONFIG", &self.kubeconfig).args(args);
        command
    }

    /// A file beside the state directory that nobody else reads.
    pub(crate) fn beside(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
        file.write_all(content.as_bytes()).unwrap();
        path.display().to_string()
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn standalone(&self) -> Command {
        let any = "127.0.0.1:0";
        self.command(&[
            "standalone",
            "--push-listen",
            any,
            "--admin-listen",
            any,
            "--http-listen",
            any,
            "--allow-plaintext-imap",
        ])
    }

    /// Starts it and waits until it is ready.
    pub(crate) async fn start(&mut self) {
        self.start_with(&[]).await;
    }

    pub(crate) async fn start_with(&mut self, args: &[&str]) {
        let mut command = self.standalone();
        command.args(args);
        self.spawn(command);
        self.until("ready", |machine| machine.is_ready()).await;
    }

    /// Starts one role and waits until it is ready. Answers where it serves its health.
    pub(crate) async fn start_role(&mut self, args: &[&str]) -> String {
        let http = format!("127.0.0.1:{}", free_port().unwrap());
        let setting = ("MAILBELL_HTTP_LISTEN".to_owned(), http.clone());
        self.start_told(args, vec![setting], &http).await;
        http
    }

    /// The same, by variables only, which make it serve its health there.
    pub(crate) async fn start_told(
        &mut self,
        args: &[&str],
        environment: Vec<(String, String)>,
        http: &str,
    ) {
        let mut command = self.command(args);
        command.envs(environment);
        self.spawn(command);
        self.until("ready", |machine| {
            machine.must_run();
            ready(http).unwrap_or(false)
        })
        .await;
    }

    fn spawn(&mut self, mut command: Command) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())
            .unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts something else than standalone.
    pub(crate) fn launch(&mut self, args: &[&str]) {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
    }

    /// Starts something that waits for a NATS server which accepts and says nothing. Answers what it says at `http` of its
    /// readiness and of its life. It gives up after a while, and is started anew then.
    pub(crate) async fn launch_waiting(&mut self, args: &[&str], http: &str) -> [String; 2] {
        self.launch(args);
        let mut pages = Default::default();
        self.until("answered", |machine| {
            let child = machine.child.as_mut().expect("it was started");
            if child.try_wait().unwrap().is_some() {
                machine.launch(args);
            }
            let both = ["/readyz", "/healthz"].map(|path| get(http, path).unwrap_or_default());
            let answered = both.iter().all(|page| !page.is_empty());
            pages = both;
            answered
        })
        .await;
        pages
    }

    /// Tries to start a second one, which must not work.
    pub(crate) fn start_another(&self) -> Output {
        self.start_in_vain(&[])
    }

    /// Tries to start it, which must not work.
    pub(crate) fn start_in_vain(&self, args: &[&str]) -> Output {
        self.standalone().args(args).output().unwrap()
    }

    fn must_run(&mut self) {
        let child = self.child.as_mut().expect("it was started");
        if let Ok(Some(status)) = child.try_wait() {
            panic!("it ended with {status}\n{}", self.said());
        }
    }

    pub(crate) fn is_ready(&mut self) -> bool {
        self.must_run();
        self.addresses().is_some_and(|addresses| {
            ready(addresses.get("http").and_then(Value::as_str).unwrap()).unwrap_or(false)
        })
    }

    pub(crate) fn addresses(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.file("addresses.json")).ok()?).ok()
    }

    /// Waits for another process to do something, in real time.
    pub(crate) async fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        let mut tick = interval(Duration::from_millis(20));
        while !done(self) {
            assert!(begin.elapsed() < LIMIT, "not {what}\n{}", self.said());
            tick.tick().await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub(crate) fn nats_pid(&self) -> Option<u32> {
        fs::read_to_string(self.file("nats.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.take().expect("it runs").wait().unwrap();
    }

    /// Registers the mailbox of alice on a private mail server; its id.
    pub(crate) fn add_alice(&self, port: u16) -> String {
        let url = format!("imap+plaintext://alice@127.0.0.1:{port}");
        let password = self.beside("password", "secret\n");
        let file = ["--password-file", &password, "--json"];
        let added = self.run(&[&["account", "add", &url][..], &file].concat());
        assert!(added.status.success(), "{}", text(&added.stderr));
        let added: Value = serde_json::from_slice(&added.stdout).unwrap();
        added.get("id").unwrap().as_str().unwrap().to_owned()
    }

    /// SIGTERM, and the end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut status = None;
        self.until("ended", |machine| {
            status = machine.child.as_mut().expect("it runs").try_wait().unwrap();
            status.is_some()
        })
        .await;
        self.child = None;
        status.expect("it ended")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Whether there is a process with this number that has not ended.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn ready(http: &str) -> std::io::Result<bool> {
    Ok(get(http, "/readyz")?.contains(" 200 "))
}

pub(crate) fn get(http: &str, path: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(http)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
