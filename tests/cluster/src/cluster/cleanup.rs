//! What goes when its owner goes, however that dies: by a process of its own.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const SCRIPT: &str = include_str!("cleanup.sh");

/// The folder of a cluster, and the names of its control groups. Dropped, both are gone.
#[derive(Debug)]
pub(crate) struct Belongings {
    folder: PathBuf,
    cleaner: Child,
}

impl Belongings {
    /// Makes the folder.
    pub(crate) fn new() -> io::Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let folder = tempfile::Builder::new()
            .prefix("mailbell-cluster-")
            .tempdir()?;
        let cleaner = Command::new("bash")
            .args(["-c", SCRIPT, "cleanup"])
            .args([folder.path(), Path::new(group(folder.path()))])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // What ends the others of the terminal's group must not end it.
            .process_group(0)
            .spawn()?;
        Ok(Self {
            folder: folder.keep(),
            cleaner,
        })
    }

    /// Everything in it goes.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A process that lives as long as the cluster, in its network.
    pub(crate) fn process(&self) -> u32 {
        self.cleaner.id()
    }

    /// How the names of its control groups begin.
    pub(crate) fn group(&self) -> &str {
        group(&self.folder)
    }
}

fn group(folder: &Path) -> &str {
    let name = folder.file_name().and_then(|name| name.to_str());
    name.unwrap_or("mailbell-cluster")
}

impl Drop for Belongings {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}
