//! `make bench`: starts a private mail server, NATS and an installation beside it, and runs `mailbell bench latency` on them.
//!
//! The first argument is `standalone` or `roles` (one process each, so that CPU is told apart), then `--lazy-sync` if the NATS server
//! shall not wait for its disk, which tells the disk's part; what follows goes to `mailbell bench latency`. Run it from a release build of both, on a machine that does nothing else.

use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, bail};
use mailbell_test_servers::{DovecotOptions, NatsOptions, NatsServer};
use mailbell_tests::{
    cli,
    installation::{Layout, Options, imap_url, write_secret},
    world::{World, WorldOptions},
};

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args().skip(1).peekable();
    let layout = match args.next().as_deref() {
        Some("standalone") => Layout::Standalone,
        Some("roles") => Layout::Roles,
        _ => bail!(
            "usage: bench standalone|roles [--lazy-sync] [what `mailbell bench latency` takes]"
        ),
    };
    let nats = NatsServer::start(NatsOptions {
        lazy_sync: args.next_if_eq("--lazy-sync").is_some(),
        ..NatsOptions::default()
    })
    .await?;
    let mut world = World::start(WorldOptions {
        installation: Options {
            layout,
            nats_url: Some(nats.url()),
            ..Options::default()
        },
        // What the two clients wait for is then the server's notice, not one another's turn at its disk.
        dovecot: DovecotOptions {
            config: "mail_fsync = never".to_owned(),
            ..DovecotOptions::default()
        },
        ..WorldOptions::default()
    })
    .await?;
    let account = world.accounts.first().context("no account")?.clone();
    let state = world.installation.state_dir().to_owned();
    let token = state.join("device-token");
    write_secret(&token, &world.token(&[0]).await?)?;
    let password = world
        .installation
        .password_file("bench", world.dovecot.password(&account.user))?;
    let mut command = cli::command(&state, ["bench", "latency"])?;
    command
        .arg("--imap-url")
        .arg(imap_url(&account.user, world.dovecot.imap_port()))
        .arg("--password-file")
        .arg(password)
        .arg("--lmtp")
        .arg(format!("127.0.0.1:{}", world.dovecot.lmtp_port()))
        .arg("--push-url")
        .arg(world.installation.push_url()?)
        .arg("--token-file")
        .arg(token)
        .args(["--account", &account.id]);
    for part in world.installation.options().parts() {
        let pid = world.installation.pid(part);
        command.arg("--pid").arg(format!("{}={pid}", part.name()));
    }
    let pid = nats.pid().context("no nats-server")?;
    command.arg("--pid").arg(format!("nats-server={pid}"));
    let status = command
        .args(args)
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit())
        .status()
        .await?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
