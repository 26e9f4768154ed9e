//! `mailbell standalone` as a person runs it, and each role alone: the real binary, with a real nats-server.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod alerts;
mod commands;
mod lives;
mod machine;
mod operator;
mod pods;
mod roles;
mod secrets;
