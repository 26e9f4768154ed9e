//! Mailbell on Kubernetes.
//!
//! [`api`] has the custom resources as Rust types; what a cluster is told of them is generated from there ([`crds`]). [`desired`] says
//! which objects an installation is made of, [`policy`] what its watchers are told of mail providers, [`progress`] how far the objects are,
//! [`rights`] what an operator may do, [`watched`] whether all mailboxes are, and [`controller`] keeps them so.

pub mod api;
pub mod controller;
pub mod crds;
pub mod desired;
pub mod policy;
pub mod progress;
pub mod rights;
pub mod sizing;
pub mod watched;
