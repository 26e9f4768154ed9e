//! `mailbell standalone` as a person runs it, and each role alone: the real binary, with a real nats-server.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at the first surprise, and says what it leaves out"
)]

mod alerts;
mod canary;
mod cluster;
mod commands;
mod installation;
mod kube;
mod lives;
mod machine;
mod mail_accounts;
mod operating;
mod operator;
mod pods;
mod policy;
mod rights;
mod roles;
mod secrets;
