//! A cluster to play with: `make cluster` and `make cluster-down`.

use std::{
    env, fs,
    io::{self, Write as _},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use mailbell_test_cluster::{
    Cluster, ClusterOptions,
    guide::{MAIL_HOST, MailServer, PUSH_HOST, USERS, certify, prepare},
    in_private_network,
};
use mailbell_test_servers::Authority;
use rustix::process::{Pid, Signal, kill_process};

/// How long it may take to be there, and to be gone.
const LIMIT: Duration = Duration::from_secs(300);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A Kubernetes with nodes and pods on this machine
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
    /// Where it says how it is reached
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        default_value = "target/cluster"
    )]
    state: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Start one, and leave it running
    Up(Up),
    /// Run one until it is told to end
    Serve(Up),
    /// End it, with all that it has written
    Down,
}

#[derive(Debug, Clone, clap::Args)]
struct Up {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Archives of images that pods may have
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// The program `mailbell` of these images
    #[arg(long, value_name = "FILE")]
    mailbell: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let args = Args::parse();
    match args.what {
        What::Up(up) => start(&args.state, &up).await,
        What::Serve(up) => serve(args.state, up),
        What::Down => stop(&args.state).await,
    }
}

/// Starts this program again, which stays.
async fn start(state: &Path, up: &Up) -> io::Result<()> {
    if let Some(pid) = running(state) {
        let text = format!("it runs already, as process {pid}: `make cluster-down` ends it");
        return Err(io::Error::other(text));
    }
    let _ = fs::remove_dir_all(state);
    fs::create_dir_all(state)?;
    let log = state.join("log");
    let mut child = Command::new(env::current_exe()?)
        .args(["serve", "--nodes", &up.nodes.to_string(), "--state"])
        .arg(state)
        .arg("--mailbell")
        .arg(&up.mailbell)
        .args(
            up.images
                .iter()
                .flat_map(|image| [Path::new("--image"), image]),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        // The end of this terminal is not its end.
        .process_group(0)
        .spawn()?;
    fs::write(state.join("pid"), child.id().to_string())?;
    let deadline = Instant::now() + LIMIT;
    while !state.join("ready").exists() {
        if child.try_wait()?.is_some() || Instant::now() > deadline {
            let _ = child.kill();
            let said = fs::read_to_string(&log)?;
            return Err(io::Error::other(format!("it did not start: {said}")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let enter = state.join("enter").display().to_string();
    writeln!(
        io::stdout(),
        "A cluster of {} runs in a network of its own, without a way out.\n\n  \
         {enter} kubectl get nodes\n  \
         {enter} bash     a shell in its network, with kubectl, helm and mailbell\n\n\
         tests/cluster/README.md has the way from there to a message in docs/operating.md. Its logs: {}\n\
         `make cluster-down` ends it.",
        up.nodes,
        fs::read_to_string(state.join("ready"))?,
    )
}

fn serve(state: PathBuf, up: Up) -> io::Result<()> {
    let options = ClusterOptions {
        nodes: up.nodes,
        images: up.images,
        names: vec![MAIL_HOST.to_owned()],
    };
    in_private_network(move || async move {
        use tokio::signal::unix::{SignalKind, signal};
        let mut ends = signal(SignalKind::terminate())?;
        let cluster = Cluster::start(&options).await?;
        let authority = Authority::new();
        let mail = MailServer::start(&authority).await?;
        write_scripts(&fs::canonicalize(&state)?, &cluster, &mail, &up.mailbell)?;
        let guide = state.join("guide");
        fs::create_dir(&guide)?;
        prepare(&guide)?;
        certify(&guide, &authority)?;
        let ready = cluster.folder().display().to_string();
        fs::write(state.join("ready.new"), ready)?;
        fs::rename(state.join("ready.new"), state.join("ready"))?;
        ends.recv().await;
        Ok(())
    })?
}

/// What a person types: each is in the cluster's network, where names lead to what is beside the cluster. Devices come by a port that
/// kubectl forwards, since there is no load balancer.
fn write_scripts(
    state: &Path,
    cluster: &Cluster,
    mail: &MailServer,
    mailbell: &Path,
) -> io::Result<()> {
    let (hosts, folder) = (state.join("hosts"), state.display());
    let outside = Cluster::OUTSIDE;
    let text = format!("127.0.0.1 localhost {PUSH_HOST}\n{outside} outside.test {MAIL_HOST}\n");
    fs::write(&hosts, text)?;
    let enter = format!(
        "exec {} PATH={folder}:\"$PATH\" unshare --mount sh -c 'mount --bind {} /etc/hosts && exec \"$@\"' sh \"$@\"",
        cluster.enter(),
        hosts.display(),
    );
    write_script(&state.join("enter"), &enter)?;
    let programs = ["kubectl", "helm"].map(|name| (name, cluster.program(name)));
    let mailbell = ("mailbell", fs::canonicalize(mailbell)?);
    for (name, program) in programs.into_iter().chain([mailbell]) {
        let command = format!("exec {folder}/enter {} \"$@\"", program.display());
        write_script(&state.join(name), &command)?;
    }
    let [user, _] = USERS;
    let doveadm = format!(
        "doveadm -c {}/dovecot.conf save -u {user} <<'END'\n\
         From: Somebody <somebody@example.org>\nTo: {user}\nSubject: Hello\n\nIt works.\nEND",
        mail.dovecot.directory().display(),
    );
    write_script(&state.join("message"), &doveadm)
}

fn write_script(path: &Path, commands: &str) -> io::Result<()> {
    fs::write(path, format!("#!/bin/sh\n{commands}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

async fn stop(state: &Path) -> io::Result<()> {
    if let Some(pid) = running(state) {
        kill_process(pid, Signal::TERM)?;
        let deadline = Instant::now() + LIMIT;
        while running(state).is_some() {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("process {pid} does not end")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    match fs::remove_dir_all(state) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The process that serves, if it does: another one may have got its number.
fn running(state: &Path) -> Option<Pid> {
    let pid = fs::read_to_string(state.join("pid")).ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = words.split(|byte| *byte == 0);
    let ours = words.next()?.ends_with(b"cluster") && words.next()? == b"serve";
    ours.then(|| Pid::from_raw(pid.parse().ok()?)).flatten()
}
