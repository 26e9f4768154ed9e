//! Following a log with one ordered consumer.

use std::{sync::Arc, time::Duration};

use mailbell_core::ids::{Group, LogId, Position};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    Bus, BusError, Entry, LogIds, LogTail,
    api::StreamMessage,
    consumer::{Delivery, Ordered, Start},
    logs::Opener,
    wire::Wire,
};

/// What may wait for [`Follower::next`]. Behind it the server waits.
const WAITING: usize = 256;
/// How fast a question to the leader that failed is asked again, with full jitter.
const RETRY: Duration = Duration::from_millis(500);

/// What a follower sees, in order.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "almost all of them are entries; a box would be one allocation an event"
)]
pub enum Followed {
    /// The consumer was made, or made anew after a broken connection, a restarted server or a missed message. What comes next is
    /// at `next` or above. Whoever keeps a position compares the log id with the one it knew, and `tail` with its position:
    /// `tail.first <= next` and `next <= tail.last + 1`, or something is missing.
    Made {
        /// The leader's answer, asked after the consumer was made.
        tail: LogTail,
        /// The history's id, checked against `tail`.
        log_id: LogId,
        /// The next position that is delivered, if it is still there.
        next: Position,
    },
    /// The log ends below where the consumer was to begin: it was cut or made anew, and the consumer would be mute until it
    /// had grown there. The log id has changed. The follower goes on at `next`, which is `tail.last + 1`.
    Cut {
        /// As it is now.
        tail: LogTail,
        /// The new history's id.
        log_id: LogId,
        /// Where it goes on.
        next: Position,
    },
    /// The consumer is gone or mute, or its server cannot be reached: whatever is appended now shows only after the next
    /// [`Followed::Made`].
    Lost {
        /// When it was last heard.
        since: Instant,
    },
    /// The positions from `from` to `to` are not in the log. If `tail.first <= from` they are those of purged accounts; else they
    /// have aged out before they were read.
    Jump {
        /// The first one that is missing.
        from: Position,
        /// The last one that is missing.
        to: Position,
        /// The leader's answer.
        tail: LogTail,
    },
    /// An entry.
    Entry(Entry),
}

/// One ordered consumer of a log. Reads only as fast as [`Follower::next`] is called: the server waits.
#[derive(Debug)]
pub struct Follower {
    /// A follower is a handle to the bus too.
    _bus: Bus,
    rx: mpsc::Receiver<Followed>,
}

impl Follower {
    pub(crate) fn start(bus: &Bus, ids: &LogIds, group: Group, from: Position) -> Self {
        let (tx, rx) = mpsc::channel(WAITING);
        let stream = bus.names().log_stream(group);
        let wire = Arc::clone(&bus.inner.wire);
        let next = from.max(1);
        let following = Following {
            consumer: Ordered::new(Arc::clone(&wire), stream.clone(), None, Start::From(next)),
            opener: Opener::new(bus),
            ids: ids.clone(),
            log_id: ids.get(group),
            wire,
            stream,
            group,
            next,
        };
        tokio::spawn(following.run(tx));
        Self {
            _bus: bus.clone(),
            rx,
        }
    }

    /// What comes next; `None` once the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Followed> {
        self.rx.recv().await
    }
}

/// The task behind a follower.
struct Following {
    consumer: Ordered,
    opener: Opener,
    ids: LogIds,
    wire: Arc<Wire>,
    stream: String,
    group: Group,
    log_id: LogId,
    /// The position that comes next, if nothing is missing.
    next: Position,
}

impl Following {
    async fn run(mut self, tx: mpsc::Sender<Followed>) {
        let gone = tx.clone();
        tokio::select! {
            biased;
            () = gone.closed() => {}
            _ = self.deliver(tx) => {}
        }
    }

    /// Ends when the bus or the reader has gone.
    async fn deliver(&mut self, tx: mpsc::Sender<Followed>) -> Option<()> {
        loop {
            match self.consumer.next().await? {
                Delivery::Made { .. } => {
                    let (log_id, tail) = self.check().await?;
                    self.log_id = log_id;
                    if tail.last + 1 < self.next {
                        self.next = tail.last + 1;
                        self.consumer.restart(Start::From(self.next));
                        tx.send(Followed::Cut {
                            tail,
                            log_id,
                            next: self.next,
                        })
                        .await
                        .ok()?;
                    } else {
                        tx.send(Followed::Made {
                            tail,
                            log_id,
                            next: self.next,
                        })
                        .await
                        .ok()?;
                    }
                }
                Delivery::Lost { since } => tx.send(Followed::Lost { since }).await.ok()?,
                Delivery::Message { message, .. } => self.on_message(message, &tx).await?,
            }
        }
    }

    async fn on_message(
        &mut self,
        message: StreamMessage,
        tx: &mpsc::Sender<Followed>,
    ) -> Option<()> {
        let position = message.sequence;
        if position > self.next {
            let tail = self.tail().await?;
            tx.send(Followed::Jump {
                from: self.next,
                to: position - 1,
                tail,
            })
            .await
            .ok()?;
        }
        self.next = position + 1;
        self.ids.note_seen(self.group, self.log_id, position);
        if let Some(entry) = self.opener.open(message) {
            tx.send(Followed::Entry(entry)).await.ok()?;
        }
        Some(())
    }

    /// Asks until it is answered: nothing can be told before.
    async fn check(&self) -> Option<(LogId, LogTail)> {
        loop {
            match self.ids.check(self.group).await {
                Ok(answer) => return Some(answer),
                Err(BusError::Closed) => return None,
                Err(error) => self.pause(&error).await?,
            }
        }
    }

    async fn tail(&self) -> Option<LogTail> {
        loop {
            match self.wire.log_tail(&self.stream).await {
                Ok(tail) => return Some(tail),
                Err(BusError::Closed) => return None,
                Err(error) => self.pause(&error).await?,
            }
        }
    }

    async fn pause(&self, error: &BusError) -> Option<()> {
        tracing::debug!(stream = %self.stream, %error, "the leader did not answer");
        tokio::select! {
            () = self.wire.closed().cancelled() => None,
            () = tokio::time::sleep(RETRY.mul_f64(rand::random::<f64>())) => Some(()),
        }
    }
}
