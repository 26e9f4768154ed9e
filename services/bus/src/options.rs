//! What a connection needs to know.

use std::{fmt, path::PathBuf};

use mailbell_core::{
    ids::{GROUPS, Installation},
    timing::Timing,
};
use zeroize::Zeroizing;

use crate::metrics::Metrics;

/// A password or seed: wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How a process proves to NATS who it is.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Not at all: the server takes anybody.
    #[default]
    None,
    /// By a user and a password.
    UserPassword {
        /// The user.
        user: String,
        /// Its password.
        password: Secret,
    },
    /// By a credentials file (JWT and seed), read at start.
    Creds(PathBuf),
    /// By an nkey; the seed never leaves the process.
    NKey(Secret),
}

/// TLS to NATS. Without a `ca` the system's roots are trusted.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM file with the roots that are trusted instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file with a client certificate; needs `key`.
    pub cert: Option<PathBuf>,
    /// PEM file with the client certificate's key; needs `cert`.
    pub key: Option<PathBuf>,
}

/// What a process does on the bus. Each role has a NATS user of its own, see [`crate::permissions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Owns partitions, appends, reads credentials.
    Watcher,
    /// Follows logs, answers devices.
    Gateway,
    /// Writes accounts, credentials (sealed) and tokens.
    Admin,
    /// Creates and verifies streams and buckets, looks at everything.
    Setup,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Watcher, Self::Gateway, Self::Admin, Self::Setup];

    /// As it stands in subjects, user names and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Watcher => "watcher",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
            Self::Setup => "setup",
        }
    }
}

/// How much an installation may store, in bytes. A full log drops its oldest events (devices that were away for longer are told
/// to resync); a full bucket refuses writes. The server sets all of it aside when the streams are made, so its own limit
/// (`max_file_store`, by default a part of the free disk) must be at least [`StorageLimits::total`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageLimits {
    /// Per log (16 of them). Default 256 MiB: a quarter of a million events of the typical 1 KiB.
    pub log_bytes: u64,
    /// Per bucket of account records and states (16). Default 64 MiB.
    pub state_bytes: u64,
    /// Per bucket of checkpoints (16). Default 64 MiB.
    pub checkpoint_bytes: u64,
    /// Per bucket of sealed credentials (16). Default 32 MiB.
    pub credential_bytes: u64,
    /// Of the bucket of tokens, external ids and what is fixed. Default 128 MiB.
    pub control_bytes: u64,
    /// Of the bucket of claims. Default 32 MiB.
    pub live_bytes: u64,
    /// Of the bucket of revocations. Default 32 MiB.
    pub revoked_bytes: u64,
}

impl StorageLimits {
    /// What a server must be able to store.
    #[must_use]
    pub const fn total(&self) -> u64 {
        let per_group =
            self.log_bytes + self.state_bytes + self.checkpoint_bytes + self.credential_bytes;
        per_group * GROUPS as u64 + self.control_bytes + self.live_bytes + self.revoked_bytes
    }

    /// The defaults in the same proportion, so that they fit into `bytes`.
    #[must_use]
    pub fn fitting(bytes: u64) -> Self {
        let default = Self::default();
        let share = |part: u64| {
            let scaled = u128::from(part) * u128::from(bytes) / u128::from(default.total());
            u64::try_from(scaled).unwrap_or(u64::MAX)
        };
        Self {
            log_bytes: share(default.log_bytes),
            state_bytes: share(default.state_bytes),
            checkpoint_bytes: share(default.checkpoint_bytes),
            credential_bytes: share(default.credential_bytes),
            control_bytes: share(default.control_bytes),
            live_bytes: share(default.live_bytes),
            revoked_bytes: share(default.revoked_bytes),
        }
    }
}

impl Default for StorageLimits {
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            log_bytes: 256 * MIB,
            state_bytes: 64 * MIB,
            checkpoint_bytes: 64 * MIB,
            credential_bytes: 32 * MIB,
            control_bytes: 128 * MIB,
            live_bytes: 32 * MIB,
            revoked_bytes: 32 * MIB,
        }
    }
}

/// What [`crate::Bus::connect`] needs.
#[derive(Debug, Clone)]
pub struct BusOptions {
    /// `nats://host:port` or `tls://host:port`, without user or password.
    pub urls: Vec<String>,
    /// Who this process is.
    pub auth: Auth,
    /// TLS to the server; with it, no connection is made without. A `tls://` URL alone asks for it too.
    pub tls: Option<TlsOptions>,
    /// Allows a connection without TLS to a host that is not this one. For networks that encrypt by themselves.
    pub allow_plain: bool,
    /// Which Mailbell.
    pub installation: Installation,
    /// What this process does; also decides its inbox.
    pub role: Role,
    /// As NATS shows the connection, for example `watcher-3`. No secret.
    pub name: String,
    /// Replicas of each stream: 1 for one server, 3 in a cluster. Used by setup only.
    pub replicas: u8,
    /// The periods of the installation.
    pub timing: Timing,
    /// Used by setup only.
    pub storage: StorageLimits,
    /// How many reads run at once, of 15 at most; each holds at most one batch. Default 8.
    pub concurrent_reads: usize,
    /// Where this connection counts.
    pub metrics: Metrics,
}

impl BusOptions {
    /// The defaults: no authentication, one replica.
    #[must_use]
    pub fn new(urls: Vec<String>, installation: Installation, role: Role) -> Self {
        Self {
            urls,
            auth: Auth::None,
            tls: None,
            allow_plain: false,
            installation,
            role,
            name: role.as_str().to_owned(),
            replicas: 1,
            timing: Timing::default(),
            storage: StorageLimits::default(),
            concurrent_reads: 8,
            metrics: Metrics::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_into_what_there_is() {
        let default = StorageLimits::default();
        assert_eq!(StorageLimits::fitting(default.total()), default);
        for bytes in [1 << 20, 1 << 30, 1 << 40] {
            let limits = StorageLimits::fitting(bytes);
            assert!(limits.total() <= bytes && limits.total() > bytes - 1024);
        }
    }
}
