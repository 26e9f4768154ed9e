//! Child processes that never outlive their test.

use std::io::{self, PipeReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Runs the server in the background and watches standard input, whose other end the test holds: when that closes,
/// the test is gone, however it died, and the whole process group goes with it. `TERM` is for the server, not for
/// the shell. The server holds the other end of a pipe for as long as it lives, as descriptor 4.
const WATCHDOG: &str = r#"
exec 3<&0
trap : TERM
"$@" </dev/null 4>&1 >&2 3<&- &
server=$!
(trap '' TERM; read -r _ <&3; kill -9 0) >/dev/null 2>&1 &
while kill -0 "$server" 2>/dev/null; do wait "$server"; done
kill -9 0
"#;

/// A server process with all its children, in a process group of its own.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Ends when the last process of the group is gone; nothing is ever written to it.
    alive: PipeReader,
}

impl Process {
    /// Starts `program` with `arguments`; its output goes to `log`.
    ///
    /// # Errors
    /// When the log can't be opened or there is no shell.
    pub fn start<A: AsRef<std::ffi::OsStr>>(
        program: &Path,
        arguments: &[A],
        log: &Path,
    ) -> io::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)?;
        let (alive, held) = io::pipe()?;
        let child = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(held)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        Ok(Self { child, alive })
    }

    /// Whether the server still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the server and all its children at once, as a crash or a power cut would.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        // The shell is gone first; the ports are free when the server is gone too.
        let _ = io::copy(&mut self.alive, &mut io::sink());
    }

    /// Asks the server to end and waits for that; kills it after `limit`.
    pub async fn terminate(&mut self, limit: Duration) {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() > deadline {
                self.kill();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a signal to the whole process group, for example `STOP` and `CONT` for a server that hangs.
    pub fn signal(&mut self, signal: Signal) {
        // After a wait the number may belong to somebody else.
        if self.is_running()
            && let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls `ready` until it says yes. Real time, since it waits for another process, also on a paused clock.
///
/// # Errors
/// When the process ends or `limit` passes first.
pub async fn wait_until<F: Future<Output = bool>>(
    process: &mut Process,
    limit: Duration,
    mut ready: impl FnMut() -> F,
) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    while !ready().await {
        if !process.is_running() {
            return Err(io::Error::other("the server ended at its start"));
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the server is not ready in time",
            ));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// An error with the end of the server's log, since that says why it did not start.
pub fn with_log(error: &io::Error, log: &Path) -> io::Error {
    let text = std::fs::read(log).unwrap_or_default();
    let tail = text
        .get(text.len().saturating_sub(2000)..)
        .unwrap_or_default();
    io::Error::new(
        error.kind(),
        format!("{error}\n{}", String::from_utf8_lossy(tail)),
    )
}
