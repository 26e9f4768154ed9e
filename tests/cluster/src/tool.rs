//! What a person types.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tokio::io::AsyncWriteExt as _;

/// `kubectl` or `helm`, for one cluster: see [`crate::ApiServer::tool`].
#[derive(Debug, Clone)]
pub struct Tool {
    binary: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Tool {
    pub(crate) fn new(binary: PathBuf, kubeconfig: PathBuf, home: &Path) -> Self {
        Self {
            binary,
            kubeconfig,
            home: home.to_owned(),
        }
    }

    /// Runs it with this on its standard input.
    ///
    /// # Errors
    /// When it cannot be started. That it failed stands in the output.
    pub async fn run(&self, arguments: &[&str], input: &str) -> io::Result<Output> {
        let mut child = tokio::process::Command::new(&self.binary)
            .args(arguments)
            .env_clear()
            .env("HOME", &self.home)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    }

    /// The same, of which only success is good: what it printed.
    ///
    /// # Errors
    /// When it cannot be started, or failed; the text has what it said.
    pub async fn done(&self, arguments: &[&str], input: &str) -> io::Result<String> {
        let output = self.run(arguments, input).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let words = arguments.join(" ");
        Err(io::Error::other(format!("{words}: {}", said.trim())))
    }
}
