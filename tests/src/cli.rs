//! Commands, as a person types them.

use std::{ffi::OsStr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, bail};
use tokio::process::Command;

use crate::process::{Release, clean_environment};

/// No command of a test takes longer, unless it is asked to.
const LIMIT: Duration = Duration::from_secs(60);

/// What a command said, and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// What it printed, if it went well.
    ///
    /// # Errors
    /// With all that it said, if it ended with another code than 0.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.code == Some(0) {
            Ok(self.out)
        } else {
            bail!("exit code {:?}\n{}{}", self.code, self.out, self.err)
        }
    }

    /// Everything that a person saw.
    #[must_use]
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// A command that is about to run, with the state directory that it is about and no other setting of the environment.
///
/// # Errors
/// When the binary hasn't been built.
pub fn command<A: AsRef<OsStr>>(
    state_dir: &Path,
    args: impl IntoIterator<Item = A>,
) -> anyhow::Result<Command> {
    command_of(Release::This, state_dir, args)
}

/// [`command`] of a release.
///
/// # Errors
/// When the binary hasn't been built.
pub fn command_of<A: AsRef<OsStr>>(
    release: Release,
    state_dir: &Path,
    args: impl IntoIterator<Item = A>,
) -> anyhow::Result<Command> {
    let mut command = std::process::Command::new(release.binary()?);
    clean_environment(&mut command);
    command
        .args(args)
        .env("MAILBELL_STATE_DIR", state_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = Command::from(command);
    command.kill_on_drop(true);
    Ok(command)
}

/// Runs a command to its end.
///
/// # Errors
/// When it can't be started or takes too long.
pub async fn run<A: AsRef<OsStr>>(
    state_dir: &Path,
    args: impl IntoIterator<Item = A>,
) -> anyhow::Result<Said> {
    finish(command(state_dir, args)?).await
}

/// Runs a prepared command to its end.
///
/// # Errors
/// When it can't be started or takes too long.
pub async fn finish(mut command: Command) -> anyhow::Result<Said> {
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .context("the command takes too long")??;
    Ok(Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
