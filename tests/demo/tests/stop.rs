//! `make run` adds the mailbox once, listens until it is ended, and leaves nothing behind, however early that is.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first surprise"
)]

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
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
/// In place of `mailbell`: ready at once, its health served by the test. It notes which commands were run, and accounts.
const READY: &str = r#"#!/bin/sh
cd "$MAILBELL_STATE_DIR" && echo "$@" >> ran
case "$1 $2" in
standalone*)
    echo $$ > standalone
    echo "{ \"pid\": $$, \"push\": \"$HEALTH\", \"http\": \"$HEALTH\" }" > new && mv new addresses.json
    trap 'kill $!; exit 0' TERM
    tail -f /dev/null & wait ;;
"account list") cat accounts ;;
"account add") echo "{\"external_id\":\"$5\"}" > accounts ;;
listen*) echo $$ > new && mv new listens && exec tail -f /dev/null ;;
esac
"#;
/// In place of `mailbell`: somebody else has the directory.
const IN_USE: &str = r#"#!/bin/sh
echo "mailbell: in use by process 7" >&2
exit 69
"#;
const ACCOUNT: &str = "imaps://alice@localhost";
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

fn demo(directory: &Path, script: &str) -> Command {
    let fake = directory.join("mailbell");
    fs::write(&fake, script).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_mailbell-demo"));
    demo.arg("--mailbell")
        .arg(&fake)
        .args(["--account", ACCOUNT])
        .env("MAILBELL_STATE_DIR", directory.join("state"))
        .env("MAILBELL_NATS_URL", "nats://of.another.installation")
        .env("MAILBELL_NATS_SERVER", "/a/server")
        .stdin(Stdio::null());
    demo
}

fn start(mut demo: Command) -> Demo {
    let child = demo.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Demo(child.unwrap())
}

/// Whoever asks there is told that all is well.
fn health() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
        }
    });
    address
}

/// The process whose number is in a file, as soon as it is.
async fn process(file: &Path) -> u32 {
    until(|| fs::read_to_string(file).ok()?.trim().parse().ok()).await
}

/// Whether it has ended, even if nobody has asked how.
fn ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}

#[tokio::test]
async fn an_empty_directory_is_made_private_before_anything_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).unwrap();
    let mut demo = start(demo(directory.path(), NEVER_READY));
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
        let mut demo = start(demo(directory.path(), NEVER_READY));
        let pid = process(&directory.path().join("state/pid")).await;
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

#[tokio::test]
async fn a_mailbox_is_added_once_and_listened_to_until_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let health = health().to_string();
    let add = format!("account add {ACCOUNT} --external-id {ACCOUNT}");
    let cursor = state.join("run.cursor");
    let listen = format!("listen --cursor-file {}", cursor.display());
    for commands in [
        &["account list --json", &add, &listen][..],
        // It is known by now.
        &["account list --json", &listen],
    ] {
        let mut command = demo(directory.path(), READY);
        command.env("HEALTH", &health);
        let mut demo = start(command);
        let listens = process(&state.join("listens")).await;
        let standalone = process(&state.join("standalone")).await;
        let ran = fs::read_to_string(state.join("ran")).unwrap();
        let ran: Vec<&str> = ran.lines().collect();
        assert!(ran[0].starts_with("standalone --push-listen"), "{ran:?}");
        assert_eq!(&ran[1..], commands);
        // It stays up.
        assert!(demo.0.try_wait().unwrap().is_none() && !ended(listens));
        kill_process(Pid::from_child(&demo.0), Signal::TERM).unwrap();
        let status = until(|| demo.0.try_wait().unwrap()).await;
        assert!(status.success(), "{status}");
        assert!(ended(standalone));
        until(|| ended(listens).then_some(())).await;
        for file in ["ran", "listens", "standalone"] {
            fs::remove_file(state.join(file)).unwrap();
        }
    }
}

#[tokio::test]
async fn the_log_of_one_that_runs_on_the_directory_stays() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let log = state.join("mailbell.log");
    fs::write(&log, "of the first\n").unwrap();
    let output = demo(directory.path(), IN_USE).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("in use by process 7") && !said.contains("of the first"),
        "{said}"
    );
    let kept = fs::read_to_string(&log).unwrap();
    assert_eq!(kept, "of the first\nmailbell: in use by process 7\n");
}
