//! How a device joins.

use std::sync::Arc;

use mailbell_core::{
    cursor::Cursor,
    delivery::{self, LogState},
    ids::{Group, PerGroup},
};
use mailbell_proto::push::v1::ResyncReason;
use rand::RngExt as _;
use tokio::sync::oneshot;

use super::Dispatcher;
use crate::{
    authority::Refusal,
    device::{Device, Registration},
    metrics::Outcome,
    outbox::Seat,
};

/// From where.
#[derive(Debug, Clone)]
pub(crate) enum From {
    /// From now on.
    Now,
    /// After this cursor.
    Cursor(Box<Cursor>),
    /// From now on, after a listing of everything.
    Resync(ResyncReason),
}

/// A device that wants to join.
#[derive(Debug)]
pub(crate) struct AttachRequest {
    pub(crate) device: Arc<Device>,
    pub(crate) from: From,
    /// What the leaders said of the logs that were asked for.
    pub(crate) logs: Box<PerGroup<Option<LogState>>>,
    pub(crate) reply: oneshot::Sender<Attached>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Attached {
    /// It is attached until the registration is dropped.
    Yes(Registration),
    /// Ask the leaders of these logs, and come again.
    Unproven(Vec<Group>),
    /// A log that it concerns is not joined.
    Unjoined,
    /// This gateway is about to hear that a log is another: try again soon.
    Changing,
    /// The token is no longer good.
    Refused(Refusal),
    /// This gateway holds as many devices as it may.
    TooMany,
    /// This gateway is about to end.
    Draining,
}

impl Dispatcher {
    pub(super) fn on_attach(&mut self, request: AttachRequest) {
        let AttachRequest {
            device,
            from,
            logs,
            reply,
        } = request;
        if reply.is_closed() {
            return;
        }
        let answer = match self.judge(&device, from, logs) {
            Ok(from) => Attached::Yes(self.join(device, &from)),
            Err(answer) => answer,
        };
        // Nobody takes it: the registration is dropped with it, and the device leaves again.
        let _ = reply.send(answer);
    }

    fn judge(
        &self,
        device: &Device,
        from: From,
        logs: Box<PerGroup<Option<LogState>>>,
    ) -> Result<delivery::From, Attached> {
        if self.draining.is_some() {
            return Err(Attached::Draining);
        }
        if self.outbox.seats.len() >= self.parts.options.devices {
            return Err(Attached::TooMany);
        }
        let unjoined = |group: Group| !self.joined[group] && device.subscription.concerns(group);
        if Group::all().any(unjoined) {
            return Err(Attached::Unjoined);
        }
        // Again, in this task: a revocation that came since the token was verified has either been seen here, or this device
        // is among those that are looked at when it is.
        let standing = self.parts.authority.stands(&device.credential());
        standing.map_err(Attached::Refused)?;
        let cursor = match from {
            From::Now => return Ok(delivery::From::Now),
            From::Resync(reason) => return Ok(delivery::From::Resync(reason)),
            From::Cursor(cursor) => cursor,
        };
        let another = |(group, log): (Group, &Option<LogState>)| {
            log.is_some_and(|log| log.log_id != self.hub.place(group).log_id)
        };
        if logs.iter().any(another) {
            return Err(Attached::Changing);
        }
        let mut unproven = self.hub.unproven(&device.subscription, &cursor);
        unproven.retain(|group| logs[*group].is_none());
        if !unproven.is_empty() {
            return Err(Attached::Unproven(unproven));
        }
        Ok(delivery::From::Cursor(cursor, logs))
    }

    fn join(&mut self, device: Arc<Device>, from: &delivery::From) -> Registration {
        let id = self.hub.reserve();
        let subscription = device.subscription.clone();
        let old_at = self.parts.options.stream_age.map(|age| {
            // Between 90 and 100 %, so that streams that came together do not leave together.
            self.outbox.now + age.mul_f64(rand::rng().random_range(0.9..=1.0))
        });
        let seat = Seat {
            device,
            reading: false,
            old_at,
            leaves_at: None,
            cut_at: None,
        };
        self.outbox.seats.insert(id, seat);
        self.hub.attach(id, subscription, from, &mut self.outbox);
        let outcome = match from {
            delivery::From::Resync(_) => "resynced",
            _ if self.hub.is_live(id) => "live",
            _ => "replayed",
        };
        let attaches = &self.parts.metrics.attaches;
        attaches.get_or_create(&Outcome { outcome }).inc();
        // At once: a device that loses its connection a moment later has something to come back with.
        self.hub.offer_cursor(id, &mut self.outbox);
        self.want_read(id);
        Registration {
            id,
            bell: Arc::clone(&self.parts.bell),
        }
    }
}
