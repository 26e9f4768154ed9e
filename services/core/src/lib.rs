//! The rules of Mailbell, without any I/O: no socket, no clock, no await.
//!
//! What decides is here, so that a simulation can drive it through every interleaving; what carries the decisions out
//! (`bus`, `imap`, `watcher`, `gateway`) is thin.

pub mod backoff;
pub mod checkpoint;
pub mod content;
pub mod cursor;
pub mod dedupe;
pub mod delivery;
pub mod event;
pub mod history;
pub mod host;
pub mod ids;
pub mod ownership;
pub mod pace;
pub mod plant;
pub mod policy;
pub mod read;
pub mod records;
pub mod schema;
pub mod seal;
pub mod session;
pub mod sharding;
pub mod timing;
pub mod token;
