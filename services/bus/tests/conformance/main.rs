//! What the bus promises, against real servers: one node, and where it matters three.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod accounts;
mod append;
mod auth;
mod cluster;
mod fake;
mod follow;
mod live;
mod log_ids;
mod permissions;
mod read;
mod requests;
mod send;
mod setup;
mod sharing;
mod state;
mod system_user;
mod upgrade;
mod world;
