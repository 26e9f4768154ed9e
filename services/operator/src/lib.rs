//! Mailbell on Kubernetes.
//!
//! [`api`] has the custom resources as Rust types; what a cluster is told of them is generated from there ([`crds`]).

pub mod api;
pub mod crds;
