//! Processes whose clock is wrong, by libfaketime: the calendar is moved, the steady clock isn't.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use tempfile::NamedTempFile;
use tokio::time::sleep;

/// How often a process looks how far its clock is to be off, if that may change.
const LOOKED: Duration = Duration::from_secs(1);

/// The environment of a process whose clock is so many seconds ahead, or behind.
///
/// # Errors
/// When the library isn't there, or does nothing.
pub fn set_off(seconds: i64) -> anyhow::Result<Vec<(String, String)>> {
    let env = environment([("FAKETIME", offset(seconds))])?;
    check(&env, seconds)?;
    Ok(env)
}

/// A clock that is right at first, and stepped under the processes that go by it.
#[derive(Debug)]
pub struct Stepped {
    file: NamedTempFile,
}

impl Stepped {
    /// A right one.
    ///
    /// # Errors
    /// When there is no room for its file.
    pub fn new() -> anyhow::Result<Self> {
        let file = NamedTempFile::new()?;
        fs::write(&file, offset(0))?;
        Ok(Self { file })
    }

    /// The environment of a process that goes by it.
    ///
    /// # Errors
    /// When the library isn't there.
    pub fn env(&self) -> anyhow::Result<Vec<(String, String)>> {
        environment([
            (
                "FAKETIME_TIMESTAMP_FILE",
                self.file.path().display().to_string(),
            ),
            ("FAKETIME_CACHE_DURATION", LOOKED.as_secs().to_string()),
        ])
    }

    /// So many seconds ahead of the right one from now on, or behind it. Returns once all processes go by that.
    ///
    /// # Errors
    /// When the library does nothing.
    pub async fn step(&self, seconds: i64) -> anyhow::Result<()> {
        fs::write(&self.file, offset(seconds))?;
        check(&self.env()?, seconds)?;
        sleep(LOOKED).await;
        Ok(())
    }
}

/// As the library reads it.
fn offset(seconds: i64) -> String {
    format!("{seconds:+}")
}

fn environment<const N: usize>(how: [(&str, String); N]) -> anyhow::Result<Vec<(String, String)>> {
    let library = library().context(
        "this test moves the clock of a process by libfaketime, which isn't installed: tests/tools/install.sh faketime",
    )?;
    let fixed = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        // The name of it in older releases.
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let variables = fixed.into_iter().chain(how);
    Ok(variables
        .map(|(name, value)| (name.to_owned(), value))
        .collect())
}

/// Whether the clock of a process is off by so much.
fn check(env: &[(String, String)], seconds: i64) -> anyhow::Result<()> {
    let said = Command::new("date")
        .arg("+%s")
        .envs(env.iter().cloned())
        .output()?;
    let told: i64 = String::from_utf8_lossy(&said.stdout).trim().parse()?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let off = told - now - seconds;
    ensure!(off.abs() < 60, "libfaketime moves no clock: {off} s off");
    Ok(())
}

/// Where Debian and others put it.
fn library() -> anyhow::Result<PathBuf> {
    for directory in ["/usr/lib", "/usr/lib64"] {
        let architectures = fs::read_dir(directory).into_iter().flatten().flatten();
        for place in [PathBuf::from(directory)]
            .into_iter()
            .chain(architectures.map(|entry| entry.path()))
        {
            let library = place.join("faketime/libfaketimeMT.so.1");
            if library.exists() {
                return Ok(library);
            }
        }
    }
    bail!("there is no libfaketimeMT.so.1")
}
