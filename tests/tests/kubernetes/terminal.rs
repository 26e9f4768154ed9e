//! The terminal of a person who reads the guide: one shell, in which stays what is exported and what runs behind.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use mailbell_test_cluster::Cluster;
use mailbell_test_servers::process::{Process, wait_until};
use mailbell_tests::{
    process::{Release, read_lossy, until},
    world::SETTLE_LIMIT,
};
use tempfile::TempDir;

/// No block of commands takes longer.
const LIMIT: Duration = Duration::from_secs(900);
/// Names lead where a file of the folder says, and commands come by a pipe in it.
const SHELL: &str =
    r#"cd "$0" && mount --bind hosts /etc/hosts && exec bash -euo pipefail -s <commands"#;

/// One shell, in a folder of its own. Dropped, it ends with all that runs behind.
#[derive(Debug)]
pub(crate) struct Terminal {
    shell: Process,
    commands: File,
    folder: TempDir,
    blocks: usize,
}

impl Terminal {
    /// Opens one with `kubectl`, `helm` and `mailbell` on its PATH, and with these lines as its hosts.
    pub(crate) fn open(cluster: &Cluster, hosts: &str) -> Self {
        let folder = TempDir::with_prefix("mailbell-test-").unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("bin")).unwrap();
        let link = |name: &str, program: PathBuf| symlink(program, path("bin").join(name)).unwrap();
        link("kubectl", cluster.program("kubectl"));
        link("helm", cluster.program("helm"));
        link("mailbell", Release::This.binary().unwrap());
        fs::write(path("hosts"), hosts).unwrap();
        let made = Command::new("mkfifo").arg(path("commands")).status();
        assert!(made.unwrap().success());
        // For both ways: to open it waits for nobody, and its other end is not at its end before this is dropped.
        let mut both = File::options();
        let commands = both.read(true).write(true).open(path("commands")).unwrap();
        let here = folder.path().display();
        let arguments = [
            "-i".to_owned(),
            format!("PATH={here}/bin:/usr/bin:/bin"),
            format!("HOME={here}"),
            format!("KUBECONFIG={}", cluster.kubeconfig().display()),
            "unshare".to_owned(),
            "--mount".to_owned(),
            "sh".to_owned(),
            "-c".to_owned(),
            SHELL.to_owned(),
            here.to_string(),
        ];
        let shell = Process::start(Path::new("env"), &arguments, &path("log")).unwrap();
        Self {
            shell,
            commands,
            folder,
            blocks: 0,
        }
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What the last block has said so far, and what of it runs behind.
    pub(crate) fn said(&self) -> String {
        read_lossy(&self.file("said"))
    }

    fn file(&self, what: &str) -> PathBuf {
        self.folder().join(format!("{what}-{}", self.blocks))
    }

    /// Has a block begin.
    pub(crate) fn begin(&mut self, script: &str) {
        self.blocks += 1;
        fs::write(self.file("block"), script).unwrap();
        let n = self.blocks;
        let line = format!(". ./block-{n} </dev/null >said-{n} 2>&1\ntouch done-{n}\n");
        self.commands.write_all(line.as_bytes()).unwrap();
    }

    /// Waits for the end of the block: every command of it must go well. What it said.
    pub(crate) async fn end(&mut self) -> String {
        let done = self.file("done");
        let ended = || {
            let done = done.is_file();
            async move { done }
        };
        let went_well = wait_until(&mut self.shell, LIMIT, ended).await;
        let said = self.said();
        if let Err(error) = went_well {
            let log = read_lossy(&self.folder().join("log"));
            panic!("{error}\n{}\n{said}{log}", read_lossy(&self.file("block")));
        }
        said
    }

    /// Waits until the block that has begun says this.
    pub(crate) async fn says(&self, words: &str) {
        let waited = until(SETTLE_LIMIT, words, || async {
            self.said().contains(words)
        });
        let waited = waited.await;
        assert!(waited.is_ok(), "{waited:?}: {}", self.said());
    }

    /// Runs a block.
    pub(crate) async fn run(&mut self, script: &str) -> String {
        self.begin(script);
        self.end().await
    }
}
