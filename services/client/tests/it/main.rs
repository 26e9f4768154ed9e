//! The client against a gateway that does what a test says, over connections in memory and on a paused clock.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod connecting;
mod gateway;
mod listing;
mod state;
mod tls;
mod tokens;
