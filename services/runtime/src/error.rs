//! The error of this crate.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::ExitCode;

/// What can go wrong while a process is set up. Each text is one line for the person who started it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address to listen on is taken.
    #[error("cannot listen on {addr}: address already in use, choose another with {flag}")]
    AddressInUse {
        /// The address asked for.
        addr: SocketAddr,
        /// The flag that names it.
        flag: &'static str,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {addr} ({flag}): {source}")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// The flag that names it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A secret can be read by others.
    #[error("{path} holds a secret but its mode is {mode:04o}: others can read it; run `chmod 600 {path}`", path = path.display())]
    SecretExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is larger than anything that belongs there.
    #[error("{path} is larger than {limit} bytes", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
    },
    /// A certificate, key or bundle of roots cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, never its content.
        reason: String,
    },
    /// The system has no root certificates.
    #[error(
        "no root certificates were found on this system; install ca-certificates or name a file of roots"
    )]
    NoRoots,
    /// TLS could not be configured.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The log filter is not understood.
    #[error("log filter {filter:?} is not understood: {reason}")]
    LogFilter {
        /// The text given.
        filter: String,
        /// Why it was refused.
        reason: String,
    },
    /// Telemetry was set up before.
    #[error("telemetry is already set up in this process")]
    TelemetryTwice,
    /// The OTLP exporter could not be built.
    #[error("OTLP endpoint cannot be used: {0}")]
    Otlp(String),
    /// Signal handlers could not be installed.
    #[error("cannot handle signals: {0}")]
    Signals(#[source] io::Error),
    /// A limit of the system could not be read or changed.
    #[error("cannot read or change the limit of open files: {0}")]
    Limits(#[source] io::Error),
}

impl Error {
    /// What a process that fails with this ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::AddressInUse { .. } => ExitCode::Unavailable,
            Self::Listen { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => ExitCode::Permission,
                io::ErrorKind::AddrNotAvailable => ExitCode::Usage,
                _ => ExitCode::Unavailable,
            },
            Self::Read { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => ExitCode::Permission,
                _ => ExitCode::NoInput,
            },
            Self::Write { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => ExitCode::Permission,
                _ => ExitCode::CannotCreate,
            },
            Self::SecretExposed { .. } => ExitCode::Permission,
            Self::TooLarge { .. } | Self::Certificate { .. } => ExitCode::Data,
            Self::LogFilter { .. } | Self::Otlp(_) | Self::NoRoots => ExitCode::Usage,
            Self::Tls(_) | Self::TelemetryTwice | Self::Signals(_) | Self::Limits(_) => {
                ExitCode::Internal
            }
        }
    }
}
