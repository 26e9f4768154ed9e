//! Where to connect, as whom, and how long to wait.

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::message::PREVIEW_CHARS;
use crate::tls::TlsSettings;

/// How the connection is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsMode {
    /// TLS from the first byte, usually port 993.
    #[default]
    Implicit,
    /// Plain text up to STARTTLS, usually port 143. Never goes on without TLS.
    StartTls,
    /// No TLS at all. Needs [`Settings::allow_plaintext`].
    Plain,
}

/// A mail server.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host name or address. With TLS the certificate must be for it.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: TlsMode,
}

/// Leaves out the host: logs name accounts by their id.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("port", &self.port)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Who logs in. The secret is wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// The password; bytes, since old ones need not be UTF-8.
    pub secret: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login { .. }")
    }
}

/// How long each step may take. Every wait of this crate ends by one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Resolving the name, and then connecting to any of its addresses (20 s).
    pub connect: Duration,
    /// The TLS handshake (20 s).
    pub tls: Duration,
    /// The server's first line (30 s). A server that expects TLS says nothing.
    pub greeting: Duration,
    /// Greeting, STARTTLS, login, capabilities together (60 s: some providers delay logins by half a minute).
    pub login: Duration,
    /// A command and its whole answer (60 s).
    pub command: Duration,
    /// A whole [`crate::Connection::look`], [`crate::Connection::fetch`] or [`crate::Connection::list`], however many
    /// commands it takes (120 s).
    pub request: Duration,
    /// From DONE to the end of IDLE (15 s): a link that doesn't answer by then is dead.
    pub done: Duration,
    /// LOGOUT, and closing (3 s): nobody waits for it longer.
    pub logout: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            tls: Duration::from_secs(20),
            greeting: Duration::from_secs(30),
            login: Duration::from_secs(60),
            command: Duration::from_secs(60),
            request: Duration::from_secs(120),
            done: Duration::from_secs(15),
            logout: Duration::from_secs(3),
        }
    }
}

/// What all connections of a process have in common. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whom to trust.
    pub tls: TlsSettings,
    /// Allows [`TlsMode::Plain`], for servers on loopback or in tests.
    pub allow_plaintext: bool,
    /// Allows IDLE. Without it a connection waits as if the server had none: some announce it, and it does not work there.
    pub idle: bool,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// Most characters of a preview (256).
    pub preview_chars: usize,
    /// Name and version for the ID command; none is sent without.
    pub identity: Option<(&'static str, &'static str)>,
}

impl Settings {
    /// The defaults with this trust.
    #[must_use]
    pub fn new(tls: TlsSettings) -> Self {
        Self {
            tls,
            allow_plaintext: false,
            idle: true,
            timeouts: Timeouts::default(),
            preview_chars: PREVIEW_CHARS,
            identity: Some(("Mailbell", env!("CARGO_PKG_VERSION"))),
        }
    }
}
