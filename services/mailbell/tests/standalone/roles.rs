//! Each role alone, on a NATS server with the users that `setup` prints.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use mailbell_test_servers::{NatsOptions, NatsServer};
use tempfile::TempDir;

use crate::machine::{Machine, text};

fn secret(directory: &Path, name: &str, content: &str) -> String {
    let path = directory.join(name);
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    writeln!(file, "{content}").unwrap();
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_users_serve_each_role() {
    let tool = Machine::new();
    let printed = tool.run(&["setup", "--print-permissions", "--installation", "test"]);
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let roles = ["watcher", "gateway", "admin", "setup"];
    let password = |role: &str| format!("password-of-{role}");
    let mut config = String::new();
    for role in roles {
        let (name, password) = (role.to_uppercase(), password(role));
        config.push_str(&format!("MAILBELL_{name}_PASSWORD: {password:?}\n"));
    }
    config.push_str(&text(&printed.stdout));
    let server = NatsServer::start(NatsOptions {
        // All that an installation sets aside.
        max_file_store: Some(8 << 30),
        config,
        ..NatsOptions::default()
    })
    .await
    .unwrap();
    let directory = TempDir::new().unwrap();
    let files = roles.map(|role| (role, secret(directory.path(), role, &password(role))));
    let url = server.url();
    let nats = |user: &str| {
        let (_, file) = files.iter().find(|(role, _)| *role == user).unwrap();
        [
            "--nats-url",
            &url,
            "--nats-user",
            user,
            "--nats-password-file",
            file,
            "--installation",
            "test",
        ]
        .map(ToOwned::to_owned)
    };
    let line = |role: &str, user: &str, more: &[&str]| -> Vec<String> {
        let more = more.iter().map(|&word| word.to_owned());
        [role.to_owned()]
            .into_iter()
            .chain(nats(user))
            .chain(more)
            .collect()
    };
    let words = line("setup", "setup", &[]);
    let done = tool.command(&[]).args(words).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));

    let ring = directory.path().join("key.ring").display().to_string();
    let signing = directory.path().join("signing.pem").display().to_string();
    let token = "mba_q83vEjRWeJC6mHZUMhD3LqYdlQyEP7cupiHZUMhD0AbCxYz1";
    let tokens = secret(directory.path(), "tokens", token);
    let any = "127.0.0.1:0";
    let lines = [
        line("watcher", "watcher", &["--key-ring-file", &ring]),
        line("gateway", "gateway", &["--push-listen", any]),
        line(
            "admin",
            "admin",
            &[
                "--admin-listen",
                any,
                "--admin-token-file",
                &tokens,
                "--signing-key-file",
                &signing,
            ],
        ),
    ];
    for line in lines {
        let mut machine = Machine::new();
        let args: Vec<&str> = line.iter().map(String::as_str).collect();
        machine.start_role(&args).await;
        let said = machine.said();
        assert!(
            !said.contains("NATS denies") && !said.contains("NATS refuses"),
            "{said}"
        );
        assert!(machine.stop().await.success());
    }
}
