//! The watcher between a real Dovecot and a real nats-server.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod arrivals;
mod content;
mod crowd;
mod hand_over;
mod mailboxes;
mod obstacles;
mod policy;
mod requests;
mod world;
