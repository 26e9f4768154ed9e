//! Servers played from a script over a pipe, on a paused clock: odd ones and hostile ones.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod ahead;
mod hostile;
mod odd;
mod oversize;
mod script;
mod waits;
