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

/// The stream has nothing more: what a server says that has given nothing, and what one before 2.12.2 says that has.
const NO_MESSAGES: [u16; 2] = [404, 408];
/// The batch is over: it is complete, or what comes next does not fit. (Or the consumer is gone, as the next batch then shows.)
const OVER: u16 = 409;

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
    whole: bool,
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
                whole: true,
            }),
            Err(error) => Err(wire.failed(error.into_bus(stream))),
        }
    }

    /// The next batch, and whether there is more behind it, as far as the server knows in which it lives. After a failure it is of no
    /// use, and after a batch that was cut off ([`Pull::is_whole`]).
    pub(crate) async fn next_batch(
        &mut self,
        most: usize,
        bytes: usize,
    ) -> Result<Batch, BusError> {
        let mut messages: Vec<StreamMessage> = Vec::new();
        if self.pending > 0 {
            let question = json!({ "batch": most, "max_bytes": bytes, "no_wait": true });
            let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.name);
            self.batches += 1;
            let reply = format!("{}.{}", self.deliver, self.batches);
            let wire = Arc::clone(&self.wire);
            let mut failures = wire.failures(&subject);
            wire.publish_with_reply(&subject, &reply, question.to_string().into())
                .await?;
            let heard = tokio::select! {
                // What came before a failure counts.
                biased;
                heard = self.hear(&reply, most, bytes, &mut messages) => heard.map_err(|error| wire.failed(error)),
                error = failures.next() => Err(error),
            };
            if let Err(error) = heard {
                // What came is good, and in order.
                if messages.is_empty() {
                    return Err(error);
                }
                self.whole = false;
            }
        }
        let more = self.pending > 0;
        Ok(Batch { messages, more })
    }

    /// Hears a batch until its end.
    async fn hear(
        &mut self,
        reply: &str,
        most: usize,
        bytes: usize,
        messages: &mut Vec<StreamMessage>,
    ) -> Result<(), BusError> {
        let patience = self.wire.patience();
        let mut room = bytes;
        // A server that gave what fills the bytes exactly says nothing more.
        while messages.len() < most && room > 0 && self.pending > 0 {
            let answer = match timeout(patience, self.deliveries.next()).await {
                Ok(answer) => answer.ok_or(BusError::Closed)?,
                Err(_elapsed) => return Err(BusError::Timeout(patience)),
            };
            match answer.status.map(|status| status.as_u16()) {
                None => {}
                // That an earlier batch is complete.
                Some(_) if *answer.subject != *reply => continue,
                // What it said was pending has been removed or overwritten.
                Some(code) if NO_MESSAGES.contains(&code) => {
                    self.pending = 0;
                    break;
                }
                Some(OVER) if !messages.is_empty() => break,
                Some(code) => {
                    return Err(BusError::Refused {
                        code,
                        err_code: 0,
                        description: answer.description.unwrap_or_default(),
                    });
                }
            }
            let place = answer.reply.as_deref().and_then(Place::parse);
            let place = place.filter(|place| place.consumer_sequence == self.given + 1);
            let place = place.ok_or(BusError::Garbled("a batch of a consumer"))?;
            (self.given, self.pending) = (place.consumer_sequence, place.pending);
            room = room.saturating_sub(answer.length);
            messages.push(stored_message(answer, &place));
        }
        Ok(())
    }

    /// Whether nothing was lost of what it gave, so that it may be asked for more.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }
}
