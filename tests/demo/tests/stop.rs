//! `make run` leaves nothing behind, however early it is ended.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first surprise"
)]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{interval, timeout};

/// In place of `mailbell`: never ready, and it says as which process and with which settings it runs.
const NEVER_READY: &str = r#"#!/bin/sh
env > "$MAILBELL_STATE_DIR/env"
echo $$ > "$MAILBELL_STATE_DIR/new" && mv "$MAILBELL_STATE_DIR/new" "$MAILBELL_STATE_DIR/pid"
exec tail -f /dev/null
"#;
const LIMIT: Duration = Duration::from_secs(60);

/// Killed with the test.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn until<T>(mut done: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        let mut tick = interval(Duration::from_millis(5));
        loop {
            tick.tick().await;
            if let Some(value) = done() {
                return value;
            }
        }
    };
    timeout(LIMIT, wait).await.expect("it happens in time")
}

fn start(directory: &Path) -> Demo {
    let fake = directory.join("mailbell");
    fs::write(&fake, NEVER_READY).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_mailbell-demo"))
        .arg("--mailbell")
        .arg(&fake)
        .args(["--account", "imaps://alice@localhost"])
        .env("MAILBELL_STATE_DIR", directory.join("state"))
        .env("MAILBELL_NATS_URL", "nats://of.another.installation")
        .env("MAILBELL_NATS_SERVER", "/a/server")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Demo(child)
}

#[tokio::test]
async fn an_empty_directory_is_made_private_before_anything_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    let mut demo = start(directory.path());
    let pid = state.join("pid");
    until(|| pid.exists().then_some(())).await;
    let mode = fs::metadata(&state).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    kill_process(Pid::from_child(&demo.0), Signal::TERM).unwrap();
    until(|| demo.0.try_wait().unwrap()).await;
}

#[tokio::test]
async fn a_signal_while_it_starts_ends_what_was_started() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let directory = tempfile::tempdir().unwrap();
        let mut demo = start(directory.path());
        let file = directory.path().join("state/pid");
        let pid: u32 = until(|| fs::read_to_string(&file).ok()?.trim().parse().ok()).await;
        kill_process(Pid::from_child(&demo.0), signal).unwrap();
        until(|| demo.0.try_wait().unwrap()).await;
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "{signal:?} left process {pid}"
        );
        // An exported setting is no reason to touch another installation.
        let settings = fs::read_to_string(directory.path().join("state/env")).unwrap();
        assert!(!settings.contains("MAILBELL_NATS_URL"), "{settings}");
        assert!(settings.contains("MAILBELL_NATS_SERVER=/a/server"));
    }
}
