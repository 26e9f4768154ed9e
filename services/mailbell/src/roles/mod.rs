//! One role a process, for a cluster.

pub mod admin;
pub mod content;
pub mod gateway;
pub mod key_ring;
pub mod nats;
pub mod operator;
pub mod process;
pub mod server_certificates;
pub mod setup;
pub mod tls;
pub mod watcher;
