//! The configuration of a `nats-server` of our own, as a child process on loopback.

use std::path::PathBuf;

use mailbell_core::ids::Installation;

use crate::{BusError, Role, Secret};

/// How a user of the server proves who it is.
#[derive(Debug, Clone)]
pub enum Login {
    /// By its role's name and this password.
    Password(Secret),
    /// By this public nkey (`U...`).
    NKey(String),
}

/// What the server is to be.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Which Mailbell.
    pub installation: Installation,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    /// Where its monitoring listens, on 127.0.0.1; off if `None`.
    pub monitor_port: Option<u16>,
    /// Where it stores.
    pub store_dir: PathBuf,
    /// The most it stores, in bytes.
    pub max_file_store: u64,
    /// The file into which it writes its process id, if any.
    pub pid_file: Option<PathBuf>,
    /// One user a role; a role without one cannot connect.
    pub users: Vec<(Role, Login)>,
}

/// The name of a role's user.
#[must_use]
pub const fn user_name(role: Role) -> &'static str {
    role.as_str()
}

/// The configuration file's text. It holds the passwords: write it with mode 0600.
///
/// # Errors
/// [`BusError::Options`] for a value that cannot stand in the file.
pub fn server_config(config: &ServerConfig) -> Result<Secret, BusError> {
    let _ = config;
    todo!()
}
