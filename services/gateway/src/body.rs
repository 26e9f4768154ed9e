//! The bodies of our answers: a device's stream, or one message.
//!
//! Not tonic's encoder: a frame is encoded once for all devices, so a stream only passes bytes on, and an idle one costs no
//! buffer of its own.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream as _;
use http::HeaderMap;
use http_body::{Body, Frame};
use mailbell_core::ids::AccountId;
use mailbell_proto::push::v1::{Ack, ClientFrame, Reauthenticate, client_frame};
use tokio::time::Instant;
use tonic::{Status, Streaming};

use crate::{
    clock::{now_s, now_us},
    device::{Device, Registration, covers},
    entry::SharedEntry,
    metrics::observe,
    queue::Taken,
    shared::Shared,
};

/// Keys in one acknowledgement.
const MAX_ACK: usize = 512;
/// Frames of the client that are looked at before it is the turn of others.
const BUDGET: usize = 16;

/// The stream of one device. Lives in its connection's task; nothing else runs for the device.
#[derive(Debug)]
pub(crate) struct DeviceBody {
    shared: Arc<Shared>,
    device: Arc<Device>,
    registration: Registration,
    /// The way back of `Connect`.
    inbound: Option<Streaming<ClientFrame>>,
    /// What was taken out last, until the connection asks for more: then it has been written.
    writing: Option<Writing>,
    done: bool,
}

#[derive(Debug)]
struct Writing {
    entry: SharedEntry,
    queued_us: i64,
    taken_us: i64,
}

impl DeviceBody {
    pub(crate) fn new(
        shared: Arc<Shared>,
        device: Arc<Device>,
        registration: Registration,
        inbound: Option<Streaming<ClientFrame>>,
    ) -> Self {
        Self {
            shared,
            device,
            registration,
            inbound,
            writing: None,
            done: false,
        }
    }

    /// The connection asks for more: it has room, so what it got last has been handed to it for good.
    fn written(&mut self) {
        let Some(writing) = self.writing.take() else {
            return;
        };
        let Writing {
            entry,
            queued_us,
            taken_us,
        } = writing;
        let written_us = now_us();
        let metrics = &self.shared.metrics;
        metrics.written.inc();
        observe(&metrics.queued_written, queued_us, written_us);
        let detected_us = entry.event().detected_us;
        observe(&metrics.detected_written, detected_us, written_us);
        entry.trace_written(queued_us, taken_us, written_us);
    }

    /// Takes in what the client says. `Some`: it ends the stream.
    fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Option<Status> {
        for _ in 0..BUDGET {
            let inbound = self.inbound.as_mut()?;
            let frame = match Pin::new(inbound).poll_next(cx) {
                Poll::Pending => return None,
                Poll::Ready(None) => return Some(Status::ok("")),
                Poll::Ready(Some(Err(status))) => return Some(status),
                Poll::Ready(Some(Ok(frame))) => frame.frame,
            };
            let taken = match frame {
                Some(client_frame::Frame::Ack(ack)) => self.on_ack(&ack),
                Some(client_frame::Frame::Reauthenticate(new)) => self.on_token(&new),
                Some(client_frame::Frame::Subscribe(_)) => Err(Status::invalid_argument(
                    "`subscribe` is the first frame, and only the first",
                )),
                // A kind of a newer client: not for us.
                None => Ok(()),
            };
            if let Err(status) = taken {
                return Some(status);
            }
        }
        // There may be more.
        cx.waker().wake_by_ref();
        None
    }

    fn on_ack(&self, ack: &Ack) -> Result<(), Status> {
        if ack.keys.len() > MAX_ACK {
            return Err(Status::invalid_argument("at most 512 keys a frame"));
        }
        let subject = &self.device.subscription.subject;
        let granted = |account: &str| {
            let account = account.parse::<AccountId>();
            account.is_ok_and(|account| subject.covers(&account))
        };
        let acked = ack.keys.iter().filter(|key| granted(&key.account)).count();
        self.shared.metrics.acked.inc_by(acked as u64);
        Ok(())
    }

    fn on_token(&self, new: &Reauthenticate) -> Result<(), Status> {
        let authority = &self.shared.authority;
        let refuse = |refusal| self.shared.refuse(refusal);
        let credential = authority.verify(&new.token, now_s()).map_err(refuse)?;
        let subject = &self.device.subscription.subject;
        let grant = &credential.grant;
        if !covers(&grant.subject, subject) || grant.content < self.device.level {
            return Err(Status::permission_denied(
                "the new token does not allow what this stream shows",
            ));
        }
        *self.device.credential() = credential.clone();
        // Again: a revocation that came in between has looked at the old one.
        authority.stands(&credential).map_err(refuse)
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.done = true;
        self.inbound = None;
        trailers(status)
    }
}

impl Body for DeviceBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.done {
            return Poll::Ready(None);
        }
        self.written();
        if let Some(status) = self.poll_inbound(cx) {
            return Poll::Ready(Some(Ok(self.end(&status))));
        }
        let taken = match self.device.queue.poll_take(cx, Instant::now()) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(taken) => taken,
        };
        let frame = match taken {
            Taken::End(status) => self.end(&status),
            Taken::Frame { item, room } => {
                if room {
                    self.registration.room();
                }
                self.writing = item.entry.map(|entry| Writing {
                    entry,
                    queued_us: item.queued_us,
                    taken_us: now_us(),
                });
                Frame::data(item.frame)
            }
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Drop for DeviceBody {
    fn drop(&mut self) {
        self.device.queue.abandon();
    }
}

/// The trailers that end a gRPC answer.
fn trailers(status: &Status) -> Frame<Bytes> {
    let mut headers = HeaderMap::new();
    if status.add_header(&mut headers).is_err() {
        // Only a message that is no header text could fail; ours are.
        headers.insert("grpc-status", http::HeaderValue::from_static("13"));
    }
    Frame::trailers(headers)
}

/// One message, and the end.
#[derive(Debug)]
pub(crate) struct OneMessage {
    message: Option<Bytes>,
    done: bool,
}

impl OneMessage {
    pub(crate) fn new(message: Bytes) -> Self {
        Self {
            message: Some(message),
            done: false,
        }
    }
}

impl Body for OneMessage {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        let end = (!self.done).then(|| Ok(trailers(&Status::ok(""))));
        self.done = true;
        Poll::Ready(end)
    }
}
