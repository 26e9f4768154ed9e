//! The error of this crate.

use std::path::PathBuf;

use mailbell_bus::BusError;

/// Why a watcher cannot run. What passes by itself (NATS away, mail servers away) is no error here: it is waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The installation in NATS is not one that this watcher can serve.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The key ring holds no key: no credential could ever be opened.
    #[error("the key ring is empty: no stored password can be opened with it")]
    NoKey,
    /// Another process of the same member has taken over: this one is a leftover, and would only take the partitions back.
    #[error("another process runs as {0}: give each watcher a name of its own")]
    Replaced(String),
    /// A file that it needs cannot be read.
    #[error(transparent)]
    File(#[from] mailbell_runtime::Error),
    /// The policy file makes no sense.
    #[error("{path}: {reason}", path = path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The bus was closed under the watcher.
    #[error("the connection to NATS was closed")]
    Closed,
}
