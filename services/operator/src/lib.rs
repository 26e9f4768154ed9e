//! Mailbell on Kubernetes.
//!
//! [`api`] has the custom resources as Rust types; what a cluster is told of them is generated from there ([`crds`]). [`desired`] says
//! which objects an installation is made of.

pub mod api;
pub mod crds;
pub mod desired;
