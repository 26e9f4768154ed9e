//! Processes whose clock is wrong, by libfaketime: the calendar is moved, the steady clock isn't.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};

/// The environment of a process whose clock is so many seconds ahead, or behind.
///
/// # Errors
/// When the library isn't there, or does nothing.
pub fn set_off(seconds: i64) -> anyhow::Result<Vec<(String, String)>> {
    let library = library().context(
        "this test moves the clock of a process by libfaketime, which isn't installed: tests/tools/install.sh faketime",
    )?;
    let variable = |name: &str, value: String| (name.to_owned(), value);
    let env = vec![
        variable("LD_PRELOAD", library.display().to_string()),
        variable("FAKETIME", format!("{seconds:+}")),
        variable("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        // The name of it in older releases.
        variable("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let said = Command::new("date").arg("+%s").envs(env.clone()).output()?;
    let told: i64 = String::from_utf8_lossy(&said.stdout).trim().parse()?;
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let off = told - now - seconds;
    ensure!(off.abs() < 60, "libfaketime moves no clock: {off} s off");
    Ok(env)
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
