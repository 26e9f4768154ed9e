//! A gateway as a device meets it: over HTTP/2 on loopback, with the in-memory twin of the bus, and with a real NATS server.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod connect;
mod content;
mod drain;
mod listing;
mod logs;
mod nats;
mod replay;
mod slow;
mod storm;
mod streams;
mod support;
mod tls;
mod tokens;
