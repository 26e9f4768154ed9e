//! Shows Mailbell at work.
//!
//! Without an account: a private mail server on loopback, a standalone Mailbell, two devices, a message to both, and one device that
//! loses its connection and resumes; everything is gone afterwards (`make demo`). With one: the same for your own mailbox, and it stays up
//! (`make run`).

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that speaks to a person at a terminal"
)]

mod device;
mod mailbell;
mod stop;

use std::{
    fs::OpenOptions,
    io::{IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;
use mailbell_test_servers::{
    Dovecot, DovecotOptions,
    proxy::{Mode, Proxy},
};

use crate::{
    device::{Alert, Device},
    mailbell::Standalone,
    stop::Stop,
};

/// Shows Mailbell at work: on a private mail server, or on your own mailbox.
#[derive(Debug, Parser)]
struct Arguments {
    /// The mailbell binary.
    #[arg(long)]
    mailbell: PathBuf,
    /// Your own mailbox, such as imaps://you@example.org@imap.example.org; the password is asked for.
    #[arg(long)]
    account: Option<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match shown(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes in one line; a back-trace would help nobody here.
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn shown(arguments: Arguments) -> Result<()> {
    // Before anything is started: what runs in a process group of its own learns of no signal but by us.
    let mut stop = Stop::install()?;
    match arguments.account {
        Some(account) => mailbell::run_own(&arguments.mailbell, &account, &mut stop).await,
        None => tokio::select! {
            // Either is right. Whatever was started ends when its value is dropped.
            shown = demo(arguments.mailbell) => shown,
            () = stop.asked() => Err(anyhow!("stopped")),
        },
    }
}

/// How long a step may take that takes a second: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn step(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

async fn demo(binary: PathBuf) -> Result<()> {
    let begin = Instant::now();
    let directory = tempfile::tempdir()?;

    step("1. A mail server: a private Dovecot on loopback, with the mailbox of alice");
    let dovecot = Dovecot::start(DovecotOptions::default()).await?;
    println!("   imaps://alice@localhost:{}", dovecot.imaps_port());

    step("2. Mailbell: watcher, gateway and admin in one process, a NATS server beside it");
    let ca = directory.path().join("mail-server-ca.pem");
    std::fs::write(&ca, &dovecot.certificate().authority_pem)?;
    let mailbell = Standalone::start(&binary, &directory.path().join("state"), Some(&ca)).await?;
    println!("   devices connect to {}", mailbell.gateway());

    step(
        "3. An account: the login is tried, the password is sealed, the mailbox is watched from now on",
    );
    let password = directory.path().join("password");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&password)?
        .write_all(dovecot.password("alice").as_bytes())?;
    let url = format!("imaps://alice@localhost:{}", dovecot.imaps_port());
    let account = mailbell.add_account(&url, &password).await?;
    println!("   {account}");

    step("4. Two devices of alice open their streams");
    let network = Proxy::start(mailbell.gateway()).await?;
    let mut phone = Device::start(&mailbell, "phone", &account, mailbell.gateway())?;
    let mut laptop = Device::start(&mailbell, "laptop", &account, network.address())?;
    phone.live(PATIENCE).await?;
    laptop.live(PATIENCE).await?;
    println!("   phone and laptop are live");

    step("5. A message arrives");
    deliver(
        &dovecot,
        "Bob Example",
        "Lunch?",
        "There is a new place by the river. Tomorrow at noon?",
    )
    .await?;
    show(&[phone.alert(PATIENCE).await?, laptop.alert(PATIENCE).await?]);
    println!(
        "   (Dovecot holds its own notice back for half a second; the latency counts from there.)"
    );

    step("6. The laptop's connection breaks, and two more messages arrive");
    network.set(Mode::Cut);
    laptop.disconnected(PATIENCE).await?;
    println!("   the laptop has lost its connection");
    deliver(
        &dovecot,
        "Carol Example",
        "Minutes of Monday",
        "Attached. Please look at item 3 before Friday.",
    )
    .await?;
    show(&[phone.alert(PATIENCE).await?]);
    deliver(&dovecot, "Dan Example", "Re: Lunch?", "Count me in.").await?;
    show(&[phone.alert(PATIENCE).await?]);
    network.set(Mode::PASS);
    println!("   the laptop is back, and resumes where it was:");
    show(&[laptop.alert(PATIENCE).await?, laptop.alert(PATIENCE).await?]);
    phone.nothing_twice()?;
    laptop.nothing_twice()?;

    step("7. Good-bye: everything that was started is stopped and removed");
    phone.stop().await?;
    laptop.stop().await?;
    mailbell.stop().await?;
    drop(dovecot);
    println!("   it took {:.1} s", begin.elapsed().as_secs_f64());

    step("Try next");
    println!("   make run ACCOUNT=imaps://you@example.org@imap.example.org   # your own mailbox");
    println!("   {} --help", binary.display());
    println!("   docs/protocol.md                                            # write an app");
    Ok(())
}

async fn deliver(dovecot: &Dovecot, from: &str, subject: &str, text: &str) -> Result<()> {
    let message = format!(
        "From: {from} <sender@example.org>\nTo: Alice <alice@example.org>\nSubject: {subject}\n\
         Message-ID: <{:x}@example.org>\nContent-Type: text/plain; charset=utf-8\n\n{text}\n",
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)?
            .as_nanos()
    );
    dovecot
        .deliver_lmtp("alice", message.as_bytes())
        .await
        .context("the message could not be delivered")?;
    println!("   delivered by LMTP: {subject:?}");
    Ok(())
}

fn show(alerts: &[Alert]) {
    for alert in alerts {
        println!(
            "   {:>6} | {} | {} | {}\n          {:.1} ms after the mail server's notice",
            alert.device, alert.from, alert.subject, alert.preview, alert.latency_ms
        );
    }
}
