//! A private Dovecot, 2.3 or 2.4, with IMAP (plain, STARTTLS and TLS) and LMTP. Runs as root and without.

mod config;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;

use crate::process::{Process, wait_until, with_log};
use crate::{Certificate, RawImap, free_port};
use config::{Ports, Version};

/// How long the server may take to be ready. Generous: tests share two cores.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Who owns the mail when root runs the server: `nobody`, since Dovecot gives no mail to root.
const MAIL_ID: u32 = 65534;

/// How Dovecot stores mail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// One file a message, the usual format on small servers.
    #[default]
    Maildir,
    /// Dovecot's own format; faster with many messages.
    Sdbox,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Self::Maildir => "maildir",
            Self::Sdbox => "sdbox",
        }
    }
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct DovecotOptions {
    /// User names and passwords. Without any there is `alice` with the password `secret`.
    pub users: Vec<(String, String)>,
    /// How mail is stored.
    pub storage: Storage,
    /// Replaces what the server announces after login (`imap_capability`), for example to leave out IDLE.
    pub capability: Option<String>,
    /// Another certificate than one for `localhost`.
    pub certificate: Option<Certificate>,
    /// More text for the configuration file. It is the same for every version of Dovecot.
    pub config: String,
}

/// A running Dovecot. It and its mail go with the value.
#[derive(Debug)]
pub struct Dovecot {
    directory: TempDir,
    options: DovecotOptions,
    certificate: Certificate,
    passwords: BTreeMap<String, String>,
    revision: usize,
    ports: Ports,
    process: Option<Process>,
}

impl Dovecot {
    /// Starts a server.
    ///
    /// # Errors
    /// When Dovecot isn't installed, is of a version that this can't configure, or doesn't start; the text has the end of its log.
    pub async fn start(mut options: DovecotOptions) -> io::Result<Self> {
        let version = Version::of(&dovecot_binary())?;
        if options.users.is_empty() {
            options.users.push(("alice".into(), "secret".into()));
        }
        let mut server = Self::prepare(version, options.clone())?;
        for _ in 0..3 {
            match server.restart().await {
                Ok(()) => return Ok(server),
                // Somebody may have taken a port meanwhile.
                Err(_) => server = Self::prepare(version, options.clone())?,
            }
        }
        server.restart().await?;
        Ok(server)
    }

    fn prepare(version: Version, options: DovecotOptions) -> io::Result<Self> {
        let directory = TempDir::with_prefix("mailbell-dovecot-")?;
        // The mail processes run as another user.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let mail = directory.path().join("mail");
        std::fs::create_dir(&mail)?;
        if is_root() {
            chown(&mail, Some(MAIL_ID), Some(MAIL_ID))?;
        }
        let mut server = Self {
            directory,
            certificate: options
                .certificate
                .clone()
                .unwrap_or_else(Certificate::localhost),
            passwords: options.users.iter().cloned().collect(),
            revision: 0,
            ports: Ports {
                imap: free_port()?,
                imaps: free_port()?,
                lmtp: free_port()?,
            },
            options,
            process: None,
        };
        server.write_passwords()?;
        std::fs::write(server.path("cert.pem"), &server.certificate.certificate_pem)?;
        std::fs::write(server.path("key.pem"), &server.certificate.key_pem)?;
        let config = config::text(
            version,
            &server.options,
            server.directory.path(),
            &server.ports,
        );
        std::fs::write(server.path("dovecot.conf"), config)?;
        Ok(server)
    }

    fn write_passwords(&mut self) -> io::Result<()> {
        // Dovecot sees a change by size or by whole seconds: a first line that grows makes every change visible.
        self.revision += 1;
        let mut text = format!("#{}\n", "x".repeat(self.revision * 64));
        for (user, password) in &self.passwords {
            let _ = writeln!(text, "{user}:{{PLAIN}}{password}");
        }
        let new = self.path("passwd.new");
        std::fs::write(&new, text)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o644))?;
        std::fs::rename(new, self.path("passwd"))
    }

    /// Adds a user or changes a password, also while the server runs: then it returns once the server knows it.
    ///
    /// # Errors
    /// When the password file can't be written or the server doesn't take it.
    pub async fn set_password(&mut self, user: &str, password: &str) -> io::Result<()> {
        self.passwords.insert(user.to_owned(), password.to_owned());
        self.write_passwords()?;
        let imap = self.ports.imap;
        // Dovecot looks at the file at most once a second.
        let known = || async move { RawImap::login(imap, user, password).await.is_ok() };
        match &mut self.process {
            Some(process) => wait_until(process, START_LIMIT, known).await,
            None => Ok(()),
        }
    }

    /// The password of a user, or an empty one.
    #[must_use]
    pub fn password(&self, user: &str) -> &str {
        self.passwords.get(user).map_or("", String::as_str)
    }

    /// Stops the server if it runs and starts it on the same ports with the same mail.
    ///
    /// # Errors
    /// When it doesn't start; the text has the end of its log.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.stop().await;
        // A master that was killed leaves a pid file that names nobody, or somebody else.
        let _ = std::fs::remove_file(self.path("run/master.pid"));
        let (imap, log) = (self.ports.imap, self.path("log"));
        let config = self.path("dovecot.conf");
        let arguments = [Path::new("-F"), Path::new("-c"), &config];
        let mut process = Process::start(&dovecot_binary(), &arguments, &self.path("start.log"))?;
        let ready = wait_until(&mut process, START_LIMIT, || async move {
            greets(imap).await.unwrap_or(false)
        })
        .await;
        ready.map_err(|error| with_log(&with_log(&error, &self.path("start.log")), &log))?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends the server in order. Connections are closed, mail stays.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.terminate(Duration::from_secs(10)).await;
        }
    }

    /// Ends the server and all its sessions at once.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// The process, for signals such as `STOP` and `CONT`.
    pub fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Port for plain IMAP and STARTTLS.
    #[must_use]
    pub fn imap_port(&self) -> u16 {
        self.ports.imap
    }

    /// Port for IMAP over TLS.
    #[must_use]
    pub fn imaps_port(&self) -> u16 {
        self.ports.imaps
    }

    /// Port for LMTP.
    #[must_use]
    pub fn lmtp_port(&self) -> u16 {
        self.ports.lmtp
    }

    /// The server's certificate and who gave it.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Where the server keeps everything; `mail/<user>` has the mail.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("log")).unwrap_or_default()).into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A plain connection for `user`, to look at the mailbox and to change it.
    ///
    /// # Errors
    /// When the login fails.
    pub async fn imap(&self, user: &str) -> io::Result<RawImap> {
        RawImap::login(self.ports.imap, user, self.password(user)).await
    }

    /// Appends a message to a folder by IMAP.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn append(&self, user: &str, folder: &str, message: &[u8]) -> io::Result<String> {
        self.imap(user).await?.append(folder, "", message).await
    }

    /// Delivers one message by LMTP, as a mail server would.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn deliver_lmtp(&self, user: &str, message: &[u8]) -> io::Result<()> {
        self.deliver_many(user, std::iter::once(message)).await
    }

    /// Delivers messages one after the other over one LMTP connection, each confirmed before the next.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn deliver_many<'a>(
        &self,
        user: &str,
        messages: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let mut stream = BufStream::new(TcpStream::connect(("127.0.0.1", self.ports.lmtp)).await?);
        answer(&mut stream, "220").await?;
        say(&mut stream, "LHLO test\r\n", "250").await?;
        for message in messages {
            say(&mut stream, "MAIL FROM:<sender@example.org>\r\n", "250").await?;
            say(&mut stream, &format!("RCPT TO:<{user}>\r\n"), "250").await?;
            say(&mut stream, "DATA\r\n", "354").await?;
            for line in message.split_inclusive(|b| *b == b'\n') {
                if line.starts_with(b".") {
                    stream.write_all(b".").await?;
                }
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                stream
                    .write_all(line.strip_suffix(b"\r").unwrap_or(line))
                    .await?;
                stream.write_all(b"\r\n").await?;
            }
            say(&mut stream, ".\r\n", "250").await?;
        }
        say(&mut stream, "QUIT\r\n", "221").await
    }
}

async fn say(stream: &mut BufStream<TcpStream>, text: &str, code: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await?;
    answer(stream, code).await
}

/// Reads one answer of possibly several lines.
async fn answer(stream: &mut BufStream<TcpStream>, code: &str) -> io::Result<()> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !line.starts_with(code) {
            return Err(io::Error::other(line));
        }
        if line.as_bytes().get(3) != Some(&b'-') {
            return Ok(());
        }
    }
}

async fn greets(port: u16) -> io::Result<bool> {
    let mut stream = BufStream::new(TcpStream::connect(("127.0.0.1", port)).await?);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    Ok(line.starts_with("* OK"))
}

fn dovecot_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MAILBELL_DOVECOT") {
        return path.into();
    }
    let usual = Path::new("/usr/sbin/dovecot");
    if usual.exists() {
        usual.into()
    } else {
        "dovecot".into()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
