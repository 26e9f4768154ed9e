//! How a gateway is set up.

use std::time::Duration;

use mailbell_core::{delivery::WindowLimits, timing::Timing};
use mailbell_proto::push::v1::ContentLevel;
use mailbell_runtime::incoming::Bounds;

use crate::{Error, queue::QueueLimits};

/// The settings of a gateway. Memory is bounded by them: connections x (queue + send buffers) + 16 x window + replays x 1 MiB.
#[derive(Debug, Clone)]
pub struct Options {
    /// The periods of the installation.
    pub timing: Timing,
    /// Bounds of the listener. The kernel's send buffer is 32 KiB by default: what a dead reader may hide there.
    pub bounds: Bounds,
    /// Streams that one connection may carry. Default 100: an app back end multiplexes, a phone has one.
    pub streams_per_connection: u32,
    /// Streams of all connections together. Default 200,000; one more is refused with RESOURCE_EXHAUSTED.
    pub devices: usize,
    /// Bounds of one device's queue. Default 16 frames, 64 KiB.
    pub queue: QueueLimits,
    /// Bounds of the recent window of each of the 16 logs. Default 4096 entries, 4 MiB: a device that reconnects within it
    /// needs no read.
    pub window: WindowLimits,
    /// Reads for replays at the same time. Default 32; each holds at most one batch of 1 MiB.
    pub replays: usize,
    /// A device from whose queue nothing was taken for so long is closed. Default 2 minutes.
    pub slow_after: Duration,
    /// A stream of this age, less up to 10 %, is sent elsewhere, so that old streams don't stay pinned to old gateways.
    /// Default 12 hours; `None`: never.
    pub stream_age: Option<Duration>,
    /// HTTP/2 PING on a connection on which nothing came for so long. Default 60 s.
    pub keep_alive: Duration,
    /// A connection that does not answer a PING within this time is closed. Default 20 s.
    pub keep_alive_timeout: Duration,
    /// A connection that carries no device's stream for so long is closed, also under a health `Watch`. Default 2 minutes.
    pub idle: Duration,
    /// The most that any token allows here, also of what was stored before (all up to the preview). Never
    /// [`ContentLevel::Unspecified`].
    pub most_content: ContentLevel,
    /// ListMessages calls at the same time. Default 256.
    pub listings: usize,
    /// How long the owner of an account may take for a page. Default 20 s.
    pub list_timeout: Duration,
    /// The connection to NATS may be down, or most logs unheard, for so long before this gateway is not ready; so long it waits for
    /// all logs when it starts. Default 10 s.
    pub link_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            timing: Timing::default(),
            bounds: Bounds {
                send_buffer: Some(32 * 1024),
                ..Bounds::default()
            },
            streams_per_connection: 100,
            devices: 200_000,
            queue: QueueLimits {
                frames: 16,
                bytes: 64 * 1024,
            },
            window: WindowLimits {
                entries: 4096,
                bytes: 4 * MIB,
            },
            replays: 32,
            slow_after: Duration::from_secs(2 * 60),
            stream_age: Some(Duration::from_secs(12 * 3600)),
            keep_alive: Duration::from_secs(60),
            keep_alive_timeout: Duration::from_secs(20),
            idle: Duration::from_secs(2 * 60),
            most_content: ContentLevel::Preview,
            listings: 256,
            list_timeout: Duration::from_secs(20),
            link_grace: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// Refuses what would let nothing through.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.timing.check()?;
        let bounds = [
            (
                "streams per connection",
                self.streams_per_connection as usize,
            ),
            ("devices", self.devices),
            ("frames of a queue", self.queue.frames),
            ("replays", self.replays),
            ("listings", self.listings),
        ];
        match bounds.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::Zero(name)),
            None => Ok(()),
        }
    }
}
