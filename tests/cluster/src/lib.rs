//! A real Kubernetes API server with its etcd on loopback, gone with the test that started it.
//!
//! No nodes and no controllers: objects are stored, checked and refused as on a cluster, and nothing comes of them. See `README.md`
//! beside this for where the binaries come from.

mod api_server;
mod binaries;
mod tool;

pub use api_server::ApiServer;
pub use binaries::{Binaries, MISSING};
pub use tool::Tool;
