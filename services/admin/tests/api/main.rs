//! The admin API on a real store, with an owner that answers as it is told.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod accounts;
mod content;
mod managed;
mod shards;
mod start;
mod tokens;
mod world;
