//! Watches mailboxes: takes partitions, drives one account session for each account in them, answers requests for them.
//!
//! The way through this crate:
//!
//! * [`Watcher`] (`watcher.rs`; at work: `running.rs`) owns everything that changes hands: it loads the partitions that are its
//!   own (`acquire.rs`, `proofs.rs`; again, if changes may have been missed: `rereads.rs`), starts and ends the sessions of their
//!   accounts (`accounts.rs`, `reload.rs`), lets claims move on (`flush.rs`), says how many it has room for (`room.rs`), and gives
//!   partitions away (`handing.rs`). What sessions take for the time (`clock.rs`) is the same for all watchers.
//! * A session's task (`driver/`) carries out what the state machine of `mailbell_core::session` asks for: on the mail
//!   connection (`driver/mail.rs`), and on NATS (`ledger.rs`).
//! * Requests of other processes (`requests/`) check a login on a connection of their own, or list a folder over the session's.
//! * What the operator says of tenants and mail providers (`policy.rs`) changes while it runs: sessions and the gate (`gate.rs`) are told.
//! * `failure.rs` is the one table of what can go wrong and how it is said.

mod accounts;
mod acquire;
mod clock;
mod driver;
mod error;
mod failure;
mod flush;
mod gate;
mod handing;
#[cfg(test)]
mod installation;
mod ledger;
mod message;
pub mod metrics;
mod options;
mod policy;
mod proofs;
mod quarantine;
mod registry;
mod reload;
mod removal;
mod requests;
mod rereads;
mod room;
mod running;
mod slot;
mod wait;
mod watcher;

pub use error::Error;
pub use failure::CODES;
pub use metrics::Metrics;
pub use options::Options;
pub use policy::PolicyFile;
pub use watcher::{Handle, Progress, Watcher};
