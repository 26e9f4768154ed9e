//! Private Dovecot and NATS servers on loopback for tests, gone with the test that started them.
//!
//! Each server has free ports and a temporary directory of its own, so tests run in parallel. A server ends when its
//! value is dropped, and also when the test process dies of `SIGKILL`: see [`process`].

pub mod certificate;
pub mod cluster;
mod door;
pub mod dovecot;
pub mod nats;
pub mod process;
pub mod proxy;
pub mod raw_imap;
pub mod synthetic;

pub use certificate::{Authority, Certificate};
pub use cluster::NatsCluster;
pub use dovecot::{Dovecot, DovecotOptions, Storage};
pub use nats::{NatsOptions, NatsServer};
pub use proxy::Proxy;
pub use raw_imap::RawImap;
pub use synthetic::{SyntheticImap, SyntheticOptions};

use std::io;
use std::net::TcpListener;

/// A TCP port on loopback that was free a moment ago.
///
/// Somebody else may take it before the server binds it; the servers here therefore start again on other ports.
///
/// # Errors
/// When the system has no free port.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
