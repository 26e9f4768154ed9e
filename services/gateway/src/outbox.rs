//! The queues of all attached devices, as the hub fills them.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use mailbell_core::delivery::{DeviceId, Frame, Full, Sink};
use mailbell_proto::push::v1::ResyncReason;
use rand::RngExt as _;
use tokio::time::Instant;

use crate::{
    clock::now_us,
    device::Device,
    entry::SharedEntry,
    frame,
    metrics::{Metrics, observe},
    queue::Item,
};

/// A log that is lost makes every device list at once: they are spread so that so many come in a second, within a minute.
const LISTINGS_PER_S: usize = 200;
const MOST_SPREAD_MS: usize = 60_000;

/// What the dispatcher knows of one attached device.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) device: Arc<Device>,
    /// A read for it waits or runs.
    pub(crate) reading: bool,
    /// When the stream has its age.
    pub(crate) old_at: Option<Instant>,
    /// When a drain closes it.
    pub(crate) leaves_at: Option<Instant>,
    /// It was ended: from here on its connection is closed if the stream is still there.
    pub(crate) cut_at: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) seats: HashMap<DeviceId, Seat>,
    /// Devices that could not be told of a resync, to be closed.
    pub(crate) untold: Vec<DeviceId>,
    /// Since when the log is silent, in milliseconds since the epoch; 0: it is not.
    pub(crate) silent_since_ms: i64,
    /// Now, taken once for each turn of the dispatcher.
    pub(crate) now: Instant,
    pub(crate) now_us: i64,
    pub(crate) metrics: Metrics,
    /// The cursor that live devices share, as it was encoded last: token, silence, frame.
    cursor: Option<(Bytes, i64, Bytes)>,
    live: Bytes,
}

impl Outbox {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self {
            seats: HashMap::new(),
            untold: Vec::new(),
            silent_since_ms: 0,
            now: Instant::now(),
            now_us: now_us(),
            metrics,
            cursor: None,
            live: frame::live(),
        }
    }

    /// Looks at the clocks.
    pub(crate) fn tick(&mut self) {
        self.now = Instant::now();
        self.now_us = now_us();
    }

    /// How long a device waits before it lists: only what concerns all at once needs to be spread.
    fn listing_wait_ms(&self, reason: ResyncReason) -> u32 {
        if reason != ResyncReason::LogChanged {
            return 0;
        }
        let spread = (self.seats.len() * 1000 / LISTINGS_PER_S).min(MOST_SPREAD_MS);
        let spread = u32::try_from(spread).unwrap_or_default();
        rand::rng().random_range(0..=spread)
    }

    /// The frame of the cursor that live devices share; encoded once for all that get the same token.
    fn shared_cursor(&mut self, token: Bytes) -> Bytes {
        let silent = self.silent_since_ms;
        if let Some((last, since, frame)) = &self.cursor
            && *since == silent
            // The token of one round is one buffer: its address says it is the same.
            && last.as_ptr() == token.as_ptr()
            && last.len() == token.len()
        {
            return frame.clone();
        }
        let frame = frame::cursor(token.clone(), silent);
        self.cursor = Some((token, silent, frame.clone()));
        frame
    }
}

impl Sink<SharedEntry> for Outbox {
    fn push(&mut self, id: DeviceId, frame: Frame<SharedEntry>) -> Result<(), Full> {
        let cursor = match &frame {
            Frame::Cursor(token) => Some(self.shared_cursor(token.clone())),
            Frame::OwnCursor(token) => Some(frame::cursor(token.clone(), self.silent_since_ms)),
            _ => None,
        };
        let Some(Seat { device, .. }) = self.seats.get(&id) else {
            // Its stream is gone, and the hub is about to hear of it.
            return Ok(());
        };
        let (metrics, now) = (&self.metrics, self.now);
        match frame {
            Frame::Entry(entry) => {
                let bytes = entry.frame(device.level, &metrics.damaged);
                let received_us = entry.received_us();
                let resync = entry.resync();
                device
                    .queue
                    .push(Item::fact(bytes, entry, self.now_us), now)?;
                metrics.queued.inc();
                if let Some(reason) = resync {
                    metrics.count_resync(reason);
                }
                observe(&metrics.received_queued, received_us, self.now_us);
                Ok(())
            }
            Frame::Cursor(_) | Frame::OwnCursor(_) => match cursor {
                Some(bytes) => device.queue.push(Item::cursor(bytes), now),
                None => Ok(()),
            },
            Frame::Live => device.queue.push(Item::control(self.live.clone()), now),
            Frame::Resync(concerned, reason) => {
                let bytes = frame::resync(&concerned, reason, self.listing_wait_ms(reason));
                device.queue.push(Item::control(bytes), now)?;
                metrics.count_resync(reason);
                Ok(())
            }
        }
    }

    fn close(&mut self, id: DeviceId) {
        self.untold.push(id);
    }
}
