//! Against a real Dovecot: every way to connect, looks, pages, previews, IDLE.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod canary;
mod common;
mod connect;
mod folders;
mod idle;
mod messages;

use mailbell_test_servers::{Dovecot, DovecotOptions};

/// A server with the mailbox of alice.
async fn dovecot() -> Dovecot {
    Dovecot::start(DovecotOptions::default()).await.unwrap()
}
