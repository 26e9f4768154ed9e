//! A `nats-server` that an earlier process left behind.
//!
//! The guard (see [`super::nats_child`]) asks the kernel to end it with its parent, but that takes the server a moment, and a kernel
//! or a container may not do it at all. Two servers on one store would ruin it.

use std::{fs, path::Path, time::Duration};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::time::{interval, timeout};

use crate::failure::Failure;

/// How long it may take to write its last blocks.
const PATIENCE: Duration = Duration::from_secs(10);
/// The handle of a process that is no child can only be waited for with code that is not safe.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Ends the process that the file names, if it is a server with this configuration, and waits until it is gone.
///
/// # Errors
/// When it does not go.
pub(super) async fn end(pid_file: &Path, config: &Path) -> Result<(), Failure> {
    let pid = fs::read_to_string(pid_file)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    // From here on the handle is this process and no other, whatever becomes of the number.
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(()),
        // Two servers on one store would ruin it: who cannot tell must not start the second.
        Err(_) if !runs_with(pid, config) => return Ok(()),
        Err(error) => {
            return Err(Failure::unavailable(format!(
                "a nats-server of an earlier process still runs as process {pid} and cannot be ended from here ({error}): end it by hand",
                pid = pid.as_raw_nonzero()
            )));
        }
    };
    if !runs_with(pid, config) {
        return Ok(());
    }
    tracing::info!("ending a nats-server that an earlier process left behind");
    for signal in [Signal::TERM, Signal::KILL] {
        // "No such process" is what is wanted; anything else shows as a process that stays.
        let _ = pidfd_send_signal(&handle, signal);
        let gone = async {
            let mut tick = interval(LOOK_EVERY);
            while runs_with(pid, config) {
                tick.tick().await;
            }
        };
        if timeout(PATIENCE, gone).await.is_ok() {
            return Ok(());
        }
    }
    Err(Failure::unavailable(format!(
        "a nats-server of an earlier start (process {}) does not end",
        pid.as_raw_nonzero()
    )))
}

/// Its arguments name the configuration, which lies in our own directory: nobody else's server does that.
fn runs_with(pid: Pid, config: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let arguments = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    arguments
        .split(|byte| *byte == 0)
        .any(|argument| argument == config.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Killed with the test.
    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper(argument: &Path) -> Sleeper {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "read _ ; :", "x"]).arg(argument);
        let sleeper = Sleeper(command.stdin(Stdio::piped()).spawn().unwrap());
        // The kernel lets the parent go on a moment before the child's arguments can be read.
        let pid = Pid::from_child(&sleeper.0);
        while !runs_with(pid, argument) {
            std::thread::yield_now();
        }
        sleeper
    }

    #[tokio::test]
    async fn only_ours_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let (pid_file, config) = (
            directory.path().join("pid"),
            directory.path().join("nats.conf"),
        );
        end(&pid_file, &config).await.unwrap();
        let mut other = sleeper(Path::new("/elsewhere/nats.conf"));
        fs::write(&pid_file, other.0.id().to_string()).unwrap();
        end(&pid_file, &config).await.unwrap();
        assert!(other.0.try_wait().unwrap().is_none());
        let mut ours = sleeper(&config);
        fs::write(&pid_file, format!("{}\n", ours.0.id())).unwrap();
        end(&pid_file, &config).await.unwrap();
        assert!(ours.0.wait().is_ok_and(|status| !status.success()));
        // Gone already.
        end(&pid_file, &config).await.unwrap();
    }
}
