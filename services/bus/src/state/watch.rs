//! Watching records.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use mailbell_core::ids::Group;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    Bus, BusError,
    api::{Get, StreamInfo, StreamMessage},
    consumer::{Delivery, Ordered, Start},
    names::{Bucket, Names},
    wire::Wire,
};

/// What may wait for [`Watch::next`]. Behind it the server waits.
const WAITING: usize = 256;
/// How fast a question to the leader that failed is asked again, with full jitter.
const RETRY: Duration = Duration::from_millis(500);

/// What a watch sees. For one key the order is that of its writes.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<K, V> {
    /// It was written.
    Put {
        /// Which.
        key: K,
        /// As it is now.
        value: V,
        /// Its revision.
        revision: u64,
    },
    /// It was deleted.
    Removed {
        /// Which.
        key: K,
    },
    /// Everything that the leader had when the watch (or this group's restart) began has been told. One for each group.
    Loaded {
        /// Of which group; group 0 for what has no groups.
        group: Group,
    },
    /// The bucket was lost or made anew, or this process was away for too long: forget everything of this group, it is told
    /// again.
    Restarted {
        /// Of which group; group 0 for what has no groups.
        group: Group,
    },
}

/// A watch over records. Reads only as fast as it is asked.
#[derive(Debug)]
pub struct Watch<K, V> {
    /// A watch is a handle to the bus too.
    _bus: Bus,
    rx: mpsc::Receiver<Change<K, V>>,
}

impl<K, V> Watch<K, V> {
    /// The next change; `None` once the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Change<K, V>> {
        self.rx.recv().await
    }
}

/// Reads a key.
pub(super) type ReadKey<K> = fn(&str) -> Option<K>;
/// Reads a value.
pub(super) type ReadValue<V> = fn(Bytes) -> Option<V>;

/// What is watched, and how it is read.
pub(super) struct Watched<K, V> {
    /// Keys, with wildcards.
    pub(super) keys: &'static str,
    pub(super) key: ReadKey<K>,
    pub(super) value: ReadValue<V>,
    /// Whether this role may ask the leader for messages of the bucket. If not, a replica that lags may make [`Change::Loaded`]
    /// come before its last records: only for what needs no more than to learn of changes at some time.
    pub(super) confirm: bool,
}

impl<K: Send + 'static, V: Send + 'static> Watched<K, V> {
    /// Watches these buckets, one consumer each.
    pub(super) fn start(
        self,
        bus: &Bus,
        buckets: impl IntoIterator<Item = (Group, Bucket)>,
    ) -> Watch<K, V> {
        let (tx, rx) = mpsc::channel(WAITING);
        for (group, bucket) in buckets {
            let stream = bus.names().bucket_stream(bucket);
            let filter = bus.names().key_subject(bucket, self.keys);
            let wire = Arc::clone(&bus.inner.wire);
            let watching = Watching {
                consumer: Ordered::new(
                    Arc::clone(&wire),
                    stream.clone(),
                    Some(filter.clone()),
                    Start::LastPerSubject,
                ),
                names: bus.names().clone(),
                wire,
                stream,
                filter,
                group,
                bucket,
                key: self.key,
                value: self.value,
                confirm: self.confirm,
                created: None,
                at: 0,
                target: None,
                // A mark of a removal stays for longer than this.
                away_limit: bus.timing().log_age,
                last_heard: Instant::now(),
            };
            tokio::spawn(watching.run(tx.clone()));
        }
        Watch {
            _bus: bus.clone(),
            rx,
        }
    }
}

/// The task behind one bucket of a watch.
struct Watching<K, V> {
    consumer: Ordered,
    wire: Arc<Wire>,
    names: Names,
    stream: String,
    filter: String,
    group: Group,
    bucket: Bucket,
    key: ReadKey<K>,
    value: ReadValue<V>,
    confirm: bool,
    /// When the bucket's stream was created.
    created: Option<String>,
    /// The last sequence that was told.
    at: u64,
    /// What must be told before the bucket is loaded; `None`: it is.
    target: Option<u64>,
    away_limit: Duration,
    last_heard: Instant,
}

impl<K: Send + 'static, V: Send + 'static> Watching<K, V> {
    async fn run(mut self, tx: mpsc::Sender<Change<K, V>>) {
        let gone = tx.clone();
        tokio::select! {
            biased;
            () = gone.closed() => {}
            _ = self.tell(tx) => {}
        }
    }

    /// Ends when the bus or the reader has gone.
    async fn tell(&mut self, tx: mpsc::Sender<Change<K, V>>) -> Option<()> {
        loop {
            match self.consumer.next().await? {
                Delivery::Made {
                    start,
                    info,
                    pending,
                } => self.on_made(start, &info, pending, &tx).await?,
                // Made anew, it says what was missed.
                Delivery::Lost { .. } => continue,
                Delivery::Message { message, pending } => {
                    self.at = message.sequence;
                    if let Some(change) = self.read(message) {
                        tx.send(change).await.ok()?;
                    }
                    self.see_whether_loaded(pending, &tx).await?;
                }
            }
            self.last_heard = Instant::now();
        }
    }

    async fn on_made(
        &mut self,
        start: Start,
        info: &StreamInfo,
        pending: u64,
        tx: &mpsc::Sender<Change<K, V>>,
    ) -> Option<()> {
        let other = self
            .created
            .as_ref()
            .is_some_and(|created| *created != info.created);
        let cut = matches!(start, Start::From(next) if info.state.last_seq + 1 < next);
        let away = matches!(start, Start::From(_)) && self.last_heard.elapsed() > self.away_limit;
        if other || cut || away {
            self.created = None;
            self.consumer.restart(Start::LastPerSubject);
            return tx.send(Change::Restarted { group: self.group }).await.ok();
        }
        self.created = Some(info.created.clone());
        if start == Start::LastPerSubject {
            self.at = 0;
            self.target = Some(info.state.last_seq);
        }
        self.see_whether_loaded(pending, tx).await
    }

    fn read(&self, message: StreamMessage) -> Option<Change<K, V>> {
        let key = self
            .names
            .key_of(self.bucket, &message.subject)
            .and_then(self.key);
        let Some(key) = key else {
            tracing::debug!(stream = %self.stream, "a key that says nothing to this release");
            return None;
        };
        if message.removes {
            return Some(Change::Removed { key });
        }
        match (self.value)(message.payload) {
            Some(value) => Some(Change::Put {
                key,
                value,
                revision: message.sequence,
            }),
            None => {
                tracing::warn!(stream = %self.stream, revision = message.sequence, "a record cannot be read");
                None
            }
        }
    }

    /// Loaded: the target was reached, or the leader has nothing more up to it.
    async fn see_whether_loaded(
        &mut self,
        pending: u64,
        tx: &mpsc::Sender<Change<K, V>>,
    ) -> Option<()> {
        let Some(target) = self.target else {
            return Some(());
        };
        if self.at < target {
            if pending > 0 {
                return Some(());
            }
            // What serves the consumer has no more, but it may lag.
            if self.confirm
                && let Some(next) = self.leader_next().await?
                && next <= target
            {
                return Some(());
            }
        }
        self.target = None;
        tx.send(Change::Loaded { group: self.group }).await.ok()
    }

    /// What the leader has after what was told. Asked until it is answered.
    async fn leader_next(&self) -> Option<Option<u64>> {
        loop {
            let which = Get::Next {
                seq: self.at + 1,
                next_by_subj: &self.filter,
            };
            match self.wire.leader_get(&self.stream, &which).await {
                Ok(found) => return Some(found.map(|message| message.sequence)),
                Err(BusError::Closed) => return None,
                Err(error) => {
                    tracing::debug!(stream = %self.stream, %error, "the leader did not answer");
                    tokio::select! {
                        () = self.wire.closed().cancelled() => return None,
                        () = tokio::time::sleep(RETRY.mul_f64(rand::random::<f64>())) => {}
                    }
                }
            }
        }
    }
}
