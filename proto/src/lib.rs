//! The wire contracts of Mailbell.
//!
//! [`push`] is what devices speak, [`admin`] what holds accounts and tokens, [`bus`] what Mailbell's own processes tell each
//! other. The rules (ordering, duplicates, resume, statuses) stand as comments in the `.proto` files, which are the contract.
//! The code below `generated` is written by `make proto` and checked for drift; a build needs no compiler for it.
//! Clients and servers of the services are there with the feature `services`; without it, the messages alone.
//! With the feature `gen`, which only the generator sets, this library is empty: so it can be made anew when it is broken.

#[cfg(not(feature = "gen"))]
mod secrets;

/// What devices and app back ends speak: `mailbell.push.v1`.
#[cfg(not(feature = "gen"))]
pub mod push {
    /// Version 1.
    #[expect(missing_docs, clippy::all, reason = "generated")]
    #[cfg_attr(
        feature = "services",
        expect(clippy::allow_attributes, unused_qualifications, reason = "generated")
    )]
    pub mod v1 {
        include!("generated/mailbell.push.v1.rs");
    }
}

/// Accounts and tokens: `mailbell.admin.v1`.
#[cfg(not(feature = "gen"))]
pub mod admin {
    /// Version 1.
    #[expect(missing_docs, clippy::all, reason = "generated")]
    #[cfg_attr(
        feature = "services",
        expect(clippy::allow_attributes, unused_qualifications, reason = "generated")
    )]
    pub mod v1 {
        include!("generated/mailbell.admin.v1.rs");
    }
}

/// Between Mailbell's own processes: `mailbell.bus.v1`.
#[cfg(not(feature = "gen"))]
pub mod bus {
    /// Version 1.
    #[expect(missing_docs, clippy::all, reason = "generated")]
    pub mod v1 {
        include!("generated/mailbell.bus.v1.rs");
    }
}

/// The descriptors of all three packages, for server reflection.
#[cfg(not(feature = "gen"))]
pub const DESCRIPTORS: &[u8] = include_bytes!("generated/descriptors.bin");
