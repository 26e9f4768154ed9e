//! One ordered consumer of a stream: every message once and in order, over broken connections, restarted servers and lost
//! deliveries. It lives in the server's memory and is made anew, from the last message that was seen, whenever in doubt.

use std::{sync::Arc, time::Duration};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    BusError, Link,
    api::{StreamInfo, StreamMessage, number, removes},
    wire::Wire,
};

/// How fast a consumer that cannot be made is tried again: full jitter, doubled up to the other.
const RETRY_BASE: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);
/// The server forgets a consumer that nobody listens to.
pub(crate) const INACTIVE: Duration = Duration::from_secs(10);
/// The server takes no shorter heartbeat.
const HEARTBEAT_LEAST: Duration = Duration::from_millis(100);

/// Where a consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the last message of each subject.
    LastPerSubject,
    /// With the message of this sequence.
    From(u64),
}

/// What an ordered consumer gives.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// It was made, to begin at `start`. The stream's state was asked from its leader afterwards (for
    /// [`Start::LastPerSubject`]: before).
    Made {
        start: Start,
        info: StreamInfo,
        pending: u64,
    },
    /// It is gone or mute, and nothing comes before it was made anew. It was last heard then.
    Lost { since: Instant },
    /// A message, and how many more were there for this consumer when it was sent.
    Message {
        message: StreamMessage,
        pending: u64,
    },
}

#[derive(Deserialize)]
struct Created {
    #[serde(default)]
    num_pending: u64,
}

/// A consumer that was made.
#[derive(Debug)]
struct Live {
    deliveries: Subscriber,
    link: Instant,
    /// The number of the last delivery.
    delivered: u64,
    heard: Instant,
}

/// Drives one consumer. Not cancel-safe: for a task of its own.
#[derive(Debug)]
pub(crate) struct Ordered {
    wire: Arc<Wire>,
    stream: String,
    /// A subject, maybe with wildcards; `None`: all of the stream.
    filter: Option<String>,
    start: Start,
    live: Option<Live>,
    /// It was lost, which is not told yet.
    lost: Option<Instant>,
    link: watch::Receiver<Link>,
    failures: u32,
    heartbeat: Duration,
}

/// What happened to a consumer's subscription.
enum Received {
    Message(Message),
    Silence,
    LinkChanged,
    Closed,
}

impl Ordered {
    pub(crate) fn new(
        wire: Arc<Wire>,
        stream: String,
        filter: Option<String>,
        start: Start,
    ) -> Self {
        let heartbeat = (wire.patience() * 2 / 5).max(HEARTBEAT_LEAST);
        let link = wire.link();
        Self {
            wire,
            stream,
            filter,
            start,
            live: None,
            lost: None,
            link,
            failures: 0,
            heartbeat,
        }
    }

    /// Makes it anew, from there.
    pub(crate) fn restart(&mut self, start: Start) {
        self.start = start;
        self.live = None;
    }

    fn lose(&mut self) {
        self.lost = self.live.take().map(|live| live.heard);
    }

    /// What comes next; `None` once the bus is closed.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Some(since) = self.lost.take() {
                return Some(Delivery::Lost { since });
            }
            let Some(live) = &mut self.live else {
                if !self.wire.wait_up().await {
                    return None;
                }
                match self.make().await {
                    Ok(made) => {
                        self.failures = 0;
                        self.wire.metrics().consumers_made.inc();
                        return Some(made);
                    }
                    Err(BusError::Closed) => return None,
                    Err(error) => {
                        self.back_off(&error).await?;
                        continue;
                    }
                }
            };
            live.heard = Instant::now();
            // Two heartbeats may be missed.
            let deadline = live.heard + self.heartbeat * 5 / 2;
            let received = tokio::select! {
                biased;
                () = self.wire.closed().cancelled() => Received::Closed,
                // Before what was received: on another connection the numbers may have gone on without us.
                changed = self.link.changed() => if changed.is_ok() { Received::LinkChanged } else { Received::Closed },
                message = timeout_at(deadline, live.deliveries.next()) => match message {
                    Ok(Some(message)) => Received::Message(message),
                    Ok(None) | Err(_) => Received::Silence,
                },
            };
            match received {
                Received::Closed => return None,
                Received::LinkChanged => {
                    if !matches!(*self.link.borrow_and_update(), Link::Up { since, .. } if since == live.link)
                    {
                        self.lose();
                    }
                }
                Received::Silence => {
                    tracing::debug!(stream = %self.stream, "a consumer is silent");
                    self.lose();
                }
                Received::Message(message) => {
                    if let Some(delivery) = self.on_message(message).await {
                        return Some(delivery);
                    }
                }
            }
        }
    }

    async fn back_off(&mut self, error: &BusError) -> Option<()> {
        self.failures = self.failures.saturating_add(1);
        if self.failures.is_power_of_two() {
            tracing::warn!(stream = %self.stream, %error, failures = self.failures, "cannot make a consumer");
        }
        let most = RETRY_BASE
            .saturating_mul(1 << self.failures.min(10))
            .min(RETRY_MOST);
        tokio::select! {
            () = self.wire.closed().cancelled() => None,
            () = sleep(most.mul_f64(rand::random::<f64>())) => Some(()),
        }
    }

    async fn make(&mut self) -> Result<Delivery, BusError> {
        let Link::Up { since, .. } = *self.link.borrow_and_update() else {
            return Err(BusError::Disconnected);
        };
        let before = match self.start {
            Start::LastPerSubject => Some(self.info().await?),
            Start::From(_) => None,
        };
        let deliver = self.wire.new_subject();
        let deliveries = self.wire.subscribe(deliver.clone()).await?;
        let pending = self.create(&deliver).await?;
        let info = match before {
            Some(info) => info,
            None => self.info().await?,
        };
        self.live = Some(Live {
            deliveries,
            link: since,
            delivered: 0,
            heard: Instant::now(),
        });
        Ok(Delivery::Made {
            start: self.start,
            info,
            pending,
        })
    }

    async fn info(&self) -> Result<StreamInfo, BusError> {
        let info = self.wire.stream_info(&self.stream).await?;
        info.ok_or_else(|| BusError::NoStream(self.stream.clone()))
    }

    async fn create(&self, deliver: &str) -> Result<u64, BusError> {
        let name = format!("mb-{:016x}", rand::random::<u64>());
        let (policy, first) = match self.start {
            Start::LastPerSubject => ("last_per_subject", None),
            Start::From(sequence) => ("by_start_sequence", Some(sequence.max(1))),
        };
        let mut subject = format!("$JS.API.CONSUMER.CREATE.{}.{name}", self.stream);
        if let Some(filter) = &self.filter {
            // Also in the subject, so that a user's permissions can tell filters apart.
            subject = format!("{subject}.{filter}");
        }
        let config = json!({
            "name": name,
            "deliver_subject": deliver,
            "deliver_policy": policy,
            "opt_start_seq": first,
            "filter_subject": self.filter,
            "ack_policy": "none",
            "max_deliver": 1,
            "flow_control": true,
            "idle_heartbeat": nanos(self.heartbeat),
            "inactive_threshold": nanos(INACTIVE),
            "num_replicas": 1,
            "mem_storage": true,
        });
        let question = json!({ "stream_name": self.stream, "config": config, "action": "create" });
        match self
            .wire
            .ask_api::<Created>(&subject, &question, self.wire.patience())
            .await?
        {
            Ok(created) => Ok(created.num_pending),
            Err(error) => Err(self.wire.failed(error.into_bus(&self.stream))),
        }
    }

    async fn on_message(&mut self, message: Message) -> Option<Delivery> {
        let live = self.live.as_mut()?;
        if let Some(status) = message.status {
            if status.as_u16() != 100 {
                // Deleted, or its leader has gone.
                self.lose();
                return None;
            }
            let missed = number(message.headers.as_ref(), "Nats-Last-Consumer")
                .is_some_and(|last| last > live.delivered);
            let stalled = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get("Nats-Consumer-Stalled"));
            let answer = stalled
                .map(ToString::to_string)
                .or_else(|| message.reply.as_ref().map(ToString::to_string));
            if missed {
                self.lose();
            } else if let Some(subject) = answer {
                // The server waits for this before it sends more. Lost, it is asked for again with the next heartbeat.
                let _ = self.wire.publish(&subject, None, Bytes::new()).await;
            }
            return None;
        }
        let Some(place) = message.reply.as_deref().and_then(Place::parse) else {
            self.lose();
            return None;
        };
        if place.consumer_sequence != live.delivered + 1 {
            tracing::debug!(stream = %self.stream, "a delivery was missed");
            self.lose();
            return None;
        }
        live.delivered = place.consumer_sequence;
        self.start = Start::From(place.sequence + 1);
        Some(Delivery::Message {
            message: stored_message(message, &place),
            pending: place.pending,
        })
    }
}

/// What a delivery's reply subject says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    sequence: u64,
    /// How many the consumer has sent, with this one.
    pub(crate) consumer_sequence: u64,
    time_us: i64,
    /// So many more there were for the consumer when it was sent.
    pub(crate) pending: u64,
}

/// A message that a consumer gave, which lay there.
pub(crate) fn stored_message(message: Message, place: &Place) -> StreamMessage {
    StreamMessage {
        subject: message.subject.to_string(),
        sequence: place.sequence,
        time_us: place.time_us,
        removes: removes(message.headers.as_ref()),
        payload: message.payload,
    }
}

impl Place {
    /// `$JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<consumer sequence>.<time>.<pending>`, or with
    /// `<domain>.<account>` after `ACK` and maybe one more token at the end.
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        let tokens: Vec<&str> = rest.split('.').collect();
        let numbers = match tokens.len() {
            7 => tokens.get(3..7)?,
            9.. => tokens.get(5..9)?,
            _ => return None,
        };
        let [sequence, consumer_sequence, time, pending] = numbers else {
            return None;
        };
        Some(Self {
            sequence: sequence.parse().ok()?,
            consumer_sequence: consumer_sequence.parse().ok()?,
            time_us: time.parse::<i64>().ok()? / 1000,
            pending: pending.parse().ok()?,
        })
    }
}

/// As JetStream writes durations.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_place_are_read() {
        let place = Place {
            sequence: 17,
            consumer_sequence: 3,
            time_us: 1_700_000_000_000_001,
            pending: 4,
        };
        for reply in [
            "$JS.ACK.MB_main_LOG_1.mb-1.1.17.3.1700000000000001999.4",
            "$JS.ACK._.acc.MB_main_LOG_1.mb-1.1.17.3.1700000000000001999.4",
            "$JS.ACK._.acc.MB_main_LOG_1.mb-1.1.17.3.1700000000000001999.4.rnd",
        ] {
            assert_eq!(Place::parse(reply).as_ref(), Some(&place), "{reply}");
        }
        for reply in ["", "$JS.ACK.a.b.c", "$JS.ACK.s.c.1.x.3.4.5", "_INBOX.a"] {
            assert_eq!(Place::parse(reply), None, "{reply}");
        }
    }
}
