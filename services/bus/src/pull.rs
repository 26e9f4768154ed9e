//! A pass over all of a stream, by a consumer that gives a batch whenever it is asked for one.
//!
//! Making it is work for the cluster's leader, but then a message costs the server a tenth of what it does in a batch of direct gets,
//! for each of which it counts how many messages are left. It gives no more than was asked for, so that nothing is lost on the way to a
//! process that is busy; and the server forgets it once it is asked for nothing more.

use std::sync::Arc;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    BusError,
    api::StreamMessage,
    consumer::{INACTIVE, Place, nanos, stored_message},
    read::Batch,
    wire::Wire,
};

/// What the server says when it has no more for now, or nothing more that still fits in the batch.
const NO_MESSAGES: u16 = 404;
const CONFLICT: u16 = 409;

#[derive(Deserialize)]
struct Created {
    #[serde(default)]
    num_pending: u64,
}

/// A consumer of a pass.
#[derive(Debug)]
pub(crate) struct Pull {
    wire: Arc<Wire>,
    stream: String,
    name: String,
    /// Where batches are sent, each with its number at the end.
    deliver: String,
    batches: u64,
    deliveries: Subscriber,
    /// Messages that were given.
    given: u64,
    /// Messages that it still has.
    pending: u64,
}

impl Pull {
    /// Makes one that begins after this sequence.
    pub(crate) async fn after(
        wire: &Arc<Wire>,
        stream: &str,
        after: u64,
    ) -> Result<Self, BusError> {
        let deliver = wire.new_subject();
        let deliveries = wire.subscribe(format!("{deliver}.*")).await?;
        let name = format!("mb-{:016x}", rand::random::<u64>());
        let config = json!({
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "max_deliver": 1,
            "inactive_threshold": nanos(INACTIVE),
            "num_replicas": 1,
            "mem_storage": true,
        });
        let question = json!({ "stream_name": stream, "config": config, "action": "create" });
        let subject = format!("$JS.API.CONSUMER.CREATE.{stream}.{name}");
        let created = wire.ask_api::<Created>(&subject, &question, wire.patience());
        match created.await? {
            Ok(created) => Ok(Self {
                wire: Arc::clone(wire),
                stream: stream.to_owned(),
                name,
                deliver,
                batches: 0,
                deliveries,
                given: 0,
                pending: created.num_pending,
            }),
            Err(error) => Err(wire.failed(error.into_bus(stream))),
        }
    }

    /// The next batch. Whether it has more behind it, as far as the server that it lives in knows. After a failure it is of no use.
    pub(crate) async fn next_batch(
        &mut self,
        most: usize,
        bytes: usize,
    ) -> Result<Batch, BusError> {
        let mut messages: Vec<StreamMessage> = Vec::new();
        if self.pending == 0 {
            return Ok(Batch {
                messages,
                more: false,
            });
        }
        let question = json!({ "batch": most, "max_bytes": bytes, "no_wait": true }).to_string();
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.name);
        self.batches += 1;
        let reply = format!("{}.{}", self.deliver, self.batches);
        self.wire
            .publish_with_reply(&subject, &reply, question.into())
            .await?;
        let patience = self.wire.patience();
        while messages.len() < most && self.pending > 0 {
            let answer = match timeout(patience, self.deliveries.next()).await {
                Ok(answer) => answer.ok_or(BusError::Closed)?,
                Err(_elapsed) => return Err(self.wire.failed(BusError::Timeout(patience))),
            };
            match answer.status.map(|status| status.as_u16()) {
                None => {}
                // That an earlier batch is complete.
                Some(_) if *answer.subject != *reply => continue,
                // Nothing that would have to be said comes without a message before it.
                Some(NO_MESSAGES | CONFLICT) if !messages.is_empty() => break,
                Some(code) => {
                    let description = answer.description.unwrap_or_default();
                    return Err(self.wire.failed(BusError::Refused {
                        code,
                        err_code: 0,
                        description,
                    }));
                }
            }
            let place = answer.reply.as_deref().and_then(Place::parse);
            let Some(place) = place.filter(|place| place.consumer_sequence == self.given + 1)
            else {
                return Err(self.wire.failed(BusError::Garbled("a batch of a consumer")));
            };
            (self.given, self.pending) = (place.consumer_sequence, place.pending);
            messages.push(stored_message(answer, &place));
        }
        Ok(Batch {
            messages,
            more: self.pending > 0,
        })
    }
}
