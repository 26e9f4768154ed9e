//! What a person types.

use std::{io, path::PathBuf, process::Output};

use tokio::io::AsyncWriteExt as _;

/// See [`crate::ApiServer::tool`].
#[derive(Debug, Clone)]
pub struct Tool {
    binary: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
}

impl Tool {
    pub(crate) fn new(binary: PathBuf, kubeconfig: PathBuf, home: PathBuf) -> Self {
        Self {
            binary,
            kubeconfig,
            home,
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
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    }
}
