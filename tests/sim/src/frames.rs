//! What the gateway makes of entries and frames on the wire, and the queue of a stream.

use std::{collections::BTreeMap, rc::Rc};

use bytes::Bytes;
use mailbell_core::{
    delivery::{Concerned, DeviceId, Entry, Frame, Full, Sink},
    event::Fact,
    ids::AccountId,
};
use mailbell_proto::push::v1::{
    self as push, AccountState, Arrived, Bulk, Changed, EventKind, Gone, Resync, ServerFrame,
    Times, event::Body, resync::Scope, server_frame::Frame as Wire,
};
use prost::Message as _;

use crate::{bus::Stored, gateway::Stream};

/// An entry as the hub holds it.
#[derive(Debug, Clone)]
pub(crate) struct Shared(pub(crate) Rc<Stored>);

impl Entry for Shared {
    fn account(&self) -> &AccountId {
        &self.0.event.account
    }

    fn kind(&self) -> EventKind {
        self.0.event.fact.kind()
    }

    fn bytes(&self) -> usize {
        self.0.bytes
    }
}

/// What lies in a stream's queue.
#[derive(Debug)]
pub(crate) enum Queued {
    Hello(Bytes),
    Frame(Frame<Shared>),
}

/// What the hub did with the queues, in order.
pub(crate) enum Done {
    Pushed(usize, Frame<Shared>),
    Full,
    Closed(usize),
}

/// The queues of one gateway's streams.
pub(crate) struct Queues<'a> {
    pub(crate) streams: &'a mut Vec<Stream>,
    pub(crate) by_id: &'a BTreeMap<DeviceId, usize>,
    pub(crate) most: usize,
    pub(crate) done: Vec<Done>,
}

impl Sink<Shared> for Queues<'_> {
    fn push(&mut self, device: DeviceId, frame: Frame<Shared>) -> Result<(), Full> {
        let Some(number) = self.by_id.get(&device) else {
            return Err(Full);
        };
        let stream = &mut self.streams[*number];
        if stream.queue.len() >= self.most {
            stream.full = true;
            self.done.push(Done::Full);
            return Err(Full);
        }
        stream.queue.push_back(Queued::Frame(frame.clone()));
        self.done.push(Done::Pushed(*number, frame));
        Ok(())
    }

    fn close(&mut self, device: DeviceId) {
        if let Some(number) = self.by_id.get(&device) {
            self.done.push(Done::Closed(*number));
        }
    }
}

/// A frame as it lies on the wire.
pub(crate) fn wire(frame: &Frame<Shared>) -> ServerFrame {
    let frame = match frame {
        Frame::Entry(entry) => entry_frame(&entry.0),
        Frame::Cursor(token) | Frame::OwnCursor(token) => Wire::Cursor(push::Cursor {
            token: token.clone(),
            log_silent_since_ms: 0,
        }),
        Frame::Live => Wire::Live(push::Live {}),
        Frame::Resync(concerned, reason) => {
            let scope = match concerned {
                Concerned::Everything => Scope {
                    everything: true,
                    ..Scope::default()
                },
                Concerned::Account(account) => Scope {
                    account: account.to_string(),
                    ..Scope::default()
                },
            };
            Wire::Resync(Resync {
                scope: Some(scope),
                reason: (*reason).into(),
                ..Resync::default()
            })
        }
    };
    ServerFrame { frame: Some(frame) }
}

fn entry_frame(stored: &Stored) -> Wire {
    let event = &stored.event;
    let content = event.content.clone();
    let body = match &event.fact {
        Fact::Arrived { .. } => Body::Arrived(Arrived {
            message: push::Message::decode(content).ok(),
        }),
        Fact::Changed { .. } => Body::Changed(Changed::decode(content).unwrap_or_default()),
        Fact::Gone { .. } => Body::Gone(Gone {}),
        Fact::Bulk { first, last, .. } => Body::Bulk(Bulk {
            first_uid: *first,
            last_uid: *last,
            count: 0,
        }),
        Fact::Resync {
            uid_next, reason, ..
        } => {
            return Wire::Resync(Resync {
                scope: Some(Scope {
                    account: event.account.to_string(),
                    folder: event.folder,
                    ..Scope::default()
                }),
                reason: (*reason).into(),
                generation: event.generation,
                uid_next: *uid_next,
                key: Some(event.key()),
                ..Resync::default()
            });
        }
        Fact::AccountState { health, .. } => {
            return Wire::AccountState(AccountState {
                account: event.account.to_string(),
                health: (*health).into(),
                key: Some(event.key()),
                ..AccountState::decode(content).unwrap_or_default()
            });
        }
    };
    Wire::Event(push::Event {
        key: Some(event.key()),
        folder_name: event.folder_name.clone(),
        alert: event.alert,
        priority: event.priority().into(),
        traceparent: event.traceparent.clone(),
        times: Some(Times::default()),
        body: Some(body),
    })
}
