//! Mailbell on Kubernetes.
//!
//! [`api`] has the custom resources as Rust types; what a cluster is told of them is generated from there ([`crds`]). [`desired`] says
//! which objects an installation is made of, [`progress`] how far they are, and [`controller`] keeps them so.

pub mod api;
pub mod controller;
pub mod crds;
pub mod desired;
pub mod progress;
pub mod sizing;
