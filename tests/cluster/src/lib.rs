//! A real Kubernetes for tests, gone with the test that started it.
//!
//! [`ApiServer`] is the API server with its etcd on loopback, and nothing else: objects are stored, checked and refused as on a cluster,
//! and nothing comes of them; [`Workloads`] says that something does. [`Cluster`] has controllers and nodes with pods as well. See
//! `README.md` beside this for where the binaries come from. [`guide`] is what a person does on either of them.

mod api_server;
mod binaries;
mod cluster;
pub mod guide;
mod tool;
mod workloads;

pub use api_server::ApiServer;
pub use binaries::{Binaries, MISSING};
pub use cluster::{Cluster, ClusterOptions, archive, in_private_network};
pub use tool::Tool;
pub use workloads::Workloads;
