//! Fans the logs out to device streams: the way of one event through this crate is
//!
//! 1. `follower`: one ordered consumer a log, and what it says about holes;
//! 2. `dispatcher`: the task that owns [`mailbell_core::delivery::Hub`] and decides who gets what;
//! 3. `entry`, `frame`: encoded once for each content level;
//! 4. `queue`: bounded, one a device;
//! 5. `body`: handed to the device's connection (`server`).
//!
//! Beside it: `service` and `attach` (how a device joins), `authority` (whether its token is good), `replays` (reads for devices
//! behind), `listing` (what lies in a folder), `others` (health and reflection). [`source`] is all that it needs of the bus.

mod attach;
mod authority;
mod bell;
mod body;
mod clock;
mod device;
mod dispatcher;
mod entry;
mod error;
mod follower;
mod frame;
mod gateway;
mod listing;
pub mod metrics;
mod narrow;
mod options;
mod others;
mod outbox;
mod page_token;
mod queue;
mod records;
mod replays;
mod server;
mod service;
mod shared;
pub mod source;
mod tails;

pub use dispatcher::CHECK;
pub use error::Error;
pub use gateway::{Gateway, Handle, Parts};
pub use metrics::Metrics;
pub use options::Options;
pub use queue::QueueLimits;
