//! A process of the binary under test: killed alone or with all its children, and gone with the test whatever happens.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How often a condition of another process is looked at. Real time: no clock of ours moves another process.
pub const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Which of two releases that work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Release {
    /// The one under test.
    #[default]
    This,
    /// The one before it: the same code, which knows one schema less.
    Before,
}

impl Release {
    /// The binary `mailbell` of this build, with its failpoints: beside the running program's own executable.
    ///
    /// # Errors
    /// When it hasn't been built; the text has the command.
    pub fn binary(self) -> anyhow::Result<PathBuf> {
        match self {
            Self::This => match std::env::var_os("MAILBELL_BIN") {
                Some(path) => Ok(path.into()),
                None => built("mailbell", "cargo build -p mailbell --features failpoints"),
            },
            Self::Before => built("mailbell-prev", "make prev"),
        }
    }
}

fn built(name: &str, how: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // <target>/<profile>/deps/<test>-<hash> or <target>/<profile>/<program>
    let profile = own
        .ancestors()
        .skip(1)
        .find(|directory| directory.file_name() != Some(OsStr::new("deps")))
        .context("this runs from no target directory")?;
    let path = profile.join(name);
    if !path.exists() {
        bail!("{} doesn't exist; build it first: {how}", path.display());
    }
    Ok(path)
}

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The arguments.
    pub args: Vec<OsString>,
    /// Further environment; no `MAILBELL_*` variable of the test's own environment is passed on.
    pub env: Vec<(String, String)>,
    /// What it sees in place of `/etc/hosts`: how one name leads each process another way.
    pub hosts: Option<PathBuf>,
    /// Where its output goes; appended to.
    pub log: PathBuf,
    /// Of which release.
    pub release: Release,
}

/// Gives the program that it becomes another `/etc/hosts`.
const WITH_HOSTS: &str = r#"mount --bind "$0" /etc/hosts && exec "$@""#;

/// Whether a process can be started with hosts of its own ([`Launch::hosts`]).
///
/// # Errors
/// With a sentence that says what the system has to permit.
pub fn may_have_own_hosts() -> anyhow::Result<()> {
    let launch = Launch {
        hosts: Some("/etc/hosts".into()),
        ..Launch::default()
    };
    let tried = launch.command(Path::new("true")).output();
    let said = match tried {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    bail!(
        "this test gives each process an /etc/hosts of its own, which takes a mount namespace, and the system permits none: run it \
         as root with CAP_SYS_ADMIN (in a container it has to be granted), or as a user for whom \
         `unshare --mount --map-root-user true` works ({said})"
    )
}

impl Launch {
    /// The program under test with its arguments. With hosts of its own, a mount namespace is made first, which root may do, and
    /// others where the system lets them be root in a namespace of their own. Its process id is the program's.
    fn command(&self, binary: &Path) -> Command {
        let Some(hosts) = &self.hosts else {
            return Command::new(binary);
        };
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command
            .args(["/bin/sh", "-c", WITH_HOSTS])
            .arg(hosts)
            .arg(binary);
        command
    }
}

/// A running process. Dropped, it and all its children are killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Leads the process group and kills it when its standard input closes, which it does when the test dies.
    watchdog: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the binary under test.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(launch: &Launch) -> anyhow::Result<Self> {
        let binary = launch.release.binary()?;
        let watchdog = Command::new("/bin/sh")
            .args(["-c", "read -r _; kill -9 0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("starting /bin/sh")?;
        let group = i32::try_from(watchdog.id())?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&launch.log)?;
        let mut command = launch.command(&binary);
        clean_environment(&mut command);
        let child = command
            .args(&launch.args)
            .envs(launch.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(group)
            .spawn()
            .with_context(|| format!("starting {}", binary.display()))?;
        Ok(Self {
            child,
            watchdog,
            log: launch.log.clone(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal to it alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none()
            && let Some(pid) = pid(self.child.id())
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it alone, as `kill -9` does; its children are left to themselves.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
    }

    /// Kills it and all its children at once, as a power cut does.
    pub fn kill_all(&mut self) {
        if let Some(group) = pid(self.watchdog.id()) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
        let _ = self.watchdog.wait();
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM);
        self.wait(limit).await
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("it still runs after {limit:?}\n{}", tail(&self.log));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Resident memory now, in bytes.
    #[must_use]
    pub fn resident(&self) -> u64 {
        resident(self.pid())
    }

    /// Everything that it has printed.
    #[must_use]
    pub fn printed(&self) -> String {
        read_lossy(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Kills a process of which only the number is known.
pub fn kill_pid(id: u32) {
    if let Some(pid) = pid(id) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// The child of a process that runs a program of this name.
#[must_use]
pub fn child_named(parent: u32, name: &str) -> Option<u32> {
    let children = fs::read_dir(format!("/proc/{parent}/task")).ok()?.flatten();
    children
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|line| {
            line.split_ascii_whitespace()
                .filter_map(|id| id.parse().ok())
                .collect::<Vec<u32>>()
        })
        .find(|id| {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// Takes every `MAILBELL_*` and `OTEL_*` variable away, so that a test depends on nothing of its environment.
pub fn clean_environment(command: &mut Command) {
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("MAILBELL_") || name.starts_with("OTEL_") {
            command.env_remove(&key);
        }
    }
}

/// CPU time that a process has used so far, user and system, in ticks of 10 ms; zero if it is gone.
#[must_use]
pub fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Duration::from_millis(ticks(&stat).unwrap_or_default() * 10)
}

/// `utime` and `stime` of `/proc/<pid>/stat`; the name before them may have any character.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Resident memory of a process, in bytes; 0 if it is gone.
#[must_use]
pub fn resident(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:").saturating_mul(1024)
}

/// The highest resident memory of a process so far, in bytes; 0 if it is gone.
#[must_use]
pub fn peak_resident(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:").saturating_mul(1024)
}

fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}

/// A file's text, or nothing if it doesn't exist.
#[must_use]
pub fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The end of a log, for the text of a failure.
#[must_use]
pub fn tail(path: &Path) -> String {
    let text = read_lossy(path);
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(40)..)
        .unwrap_or_default()
        .join("\n")
}

/// Looks until `ready` says yes.
///
/// # Errors
/// When it hasn't after `limit`; the text says what was waited for.
pub async fn until<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut ready: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !ready().await {
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("waited {limit:?} for {what}"),
            )
            .into());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_stands_behind_the_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 9 0 0 0 12 30 0 0 20 0 1 0 5 9 9";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a"), None);
    }
}
