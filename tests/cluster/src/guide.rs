//! `docs/operating.md` as something to do: its commands, and what it takes for granted.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use mailbell_test_servers::{Authority, Certificate, Dovecot, DovecotOptions, Proxy};

use crate::Cluster;

/// By which devices come in.
pub const PUSH_HOST: &str = "push.example.org";
/// The mail server.
pub const MAIL_HOST: &str = "imap.example.org";
/// Its users: one is registered by a command, the other one by an object.
pub const USERS: [&str; 2] = ["you@example.org", "info@example.org"];
/// The password of each.
pub const PASSWORD: &str = "secret";
/// Files that have it, as the page names them.
const PASSWORD_FILES: [&str; 2] = ["mailbox.password", "info.password"];
/// The port of IMAP over TLS.
const IMAPS: u16 = 993;

/// Between which a block stands.
const FENCE: &str = "\n```";

/// One block of commands.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its lines, for bash.
    pub script: String,
    /// What there has to be beside.
    pub needs: Needs,
}

/// What a block waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// An API server.
    Server,
    /// What nodes and controllers do.
    Nodes,
    /// That nobody has the certificates yet.
    NoCertificates,
    /// What cert-manager does, which no cluster here has: a test does its part.
    CertManager,
    /// A registry.
    Registry,
}

/// All blocks, in the order of the page.
///
/// # Errors
/// When the page cannot be read, or has a block that is marked otherwise than `sh`, or `sh` and one of the above.
pub fn blocks() -> io::Result<Vec<Block>> {
    let page = page()?;
    let fenced = page.split(FENCE).skip(1).step_by(2);
    let block = |text: &str| {
        let (script, needs) = match text.split_once('\n') {
            Some(("sh", script)) => (script, Needs::Server),
            Some(("sh nodes", script)) => (script, Needs::Nodes),
            Some(("sh no-certificates", script)) => (script, Needs::NoCertificates),
            Some(("sh cert-manager", script)) => (script, Needs::CertManager),
            Some(("sh registry", script)) => (script, Needs::Registry),
            _ => return Err(io::Error::other(format!("a block of: {text}"))),
        };
        Ok(Block {
            script: script.to_owned(),
            needs,
        })
    };
    fenced.map(block).collect()
}

/// What is written as code within sentences and tables, each once, as one line.
///
/// # Errors
/// When the page cannot be read.
pub fn spans() -> io::Result<BTreeSet<String>> {
    let one_line = |span: &str| span.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = page()?;
    let prose = page.split(FENCE).step_by(2);
    let spans = prose.flat_map(|text| text.split('`').skip(1).step_by(2));
    Ok(spans.map(one_line).collect())
}

fn page() -> io::Result<String> {
    fs::read_to_string(root().join("docs/operating.md"))
}

/// Puts into the folder what the page has there: the charts, and passwords.
///
/// # Errors
/// What the system says.
pub fn prepare(folder: &Path) -> io::Result<()> {
    let charts = root().join("charts");
    let copied = Command::new("cp")
        .arg("-r")
        .args([&charts, folder])
        .status()?;
    if !copied.success() {
        return Err(io::Error::other("the charts cannot be copied"));
    }
    for name in PASSWORD_FILES {
        write_secret(&folder.join(name), &format!("{PASSWORD}\n"))?;
    }
    Ok(())
}

/// The certificates of the page too, of the authority that the mail server's is of.
///
/// # Errors
/// What the system says.
pub fn certify(folder: &Path, authority: &Authority) -> io::Result<()> {
    let keep = |name: &str, certificate: &Certificate| {
        let key = folder.join(format!("{name}.key"));
        let certificate_file = folder.join(format!("{name}.crt"));
        fs::write(certificate_file, &certificate.certificate_pem)?;
        write_secret(&key, &certificate.key_pem)
    };
    // A device of a test may know it by its address too.
    let push = [PUSH_HOST, &Cluster::OUTSIDE.to_string()];
    keep("push", &authority.certificate(&push))?;
    let admin = authority.certificate(&["main-admin.mail.svc", "localhost"]);
    keep("admin", &admin)?;
    fs::write(folder.join("admin-ca.crt"), &admin.authority_pem)
}

/// The mail server of the page, beside a cluster: pods find it if they are told its name.
#[derive(Debug)]
pub struct MailServer {
    // In this order it ends.
    _door: Proxy,
    /// The server itself.
    pub dovecot: Dovecot,
}

impl MailServer {
    /// Starts it, beside a cluster that is there.
    ///
    /// # Errors
    /// When it does not start, or its port is taken.
    pub async fn start(authority: &Authority) -> io::Result<Self> {
        let user = |user: &str| (user.to_owned(), PASSWORD.to_owned());
        let options = DovecotOptions {
            users: USERS.map(user).into(),
            certificate: Some(authority.certificate(&[MAIL_HOST])),
            ..DovecotOptions::default()
        };
        let dovecot = Dovecot::start(options).await?;
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, dovecot.imaps_port()));
        let door = Proxy::start_at((Cluster::OUTSIDE, IMAPS).into(), server).await?;
        Ok(Self {
            _door: door,
            dovecot,
        })
    }
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
