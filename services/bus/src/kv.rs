//! Buckets: one value a key, replaced by revision.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;

use crate::{
    Bus, BusError,
    api::{Get, Published, StreamMessage},
    names::Bucket,
    read::{BATCH_OF_BUCKET, EVERYTHING, RangeReader},
    state::Cas,
    wire::Wire,
};

const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const TTL: &str = "Nats-TTL";

fn ttl_text(ttl: Duration) -> String {
    // The server takes whole seconds, at least one.
    format!("{}s", ttl.as_secs().max(1))
}

fn cas(wire: &Wire, published: Published, subject: &str) -> Result<Cas, BusError> {
    match published {
        Ok(ack) => Ok(Cas::Stored(ack.seq)),
        Err(error) if error.is_conflict() => Ok(Cas::Conflict),
        Err(error) => Err(wire.failed(error.into_bus(subject))),
    }
}

/// Writes if the key's last revision is this one (0: the key was never written, or all of it has aged out).
pub(crate) async fn put_expecting(
    wire: &Wire,
    subject: &str,
    value: Bytes,
    revision: u64,
) -> Result<Cas, BusError> {
    let mut headers = HeaderMap::new();
    headers.insert(EXPECTED, revision.to_string());
    cas(
        wire,
        wire.store(subject, Some(headers), value).await?,
        subject,
    )
}

impl Bus {
    /// What lies under a key, a mark of its removal included, from the leader.
    pub(crate) async fn kv_last(
        &self,
        bucket: Bucket,
        key: &str,
    ) -> Result<Option<StreamMessage>, BusError> {
        let subject = self.names().key_subject(bucket, key);
        let which = Get::Last {
            last_by_subj: &subject,
        };
        self.wire()
            .leader_get(&self.names().bucket_stream(bucket), &which)
            .await
    }

    /// The value of a key, from the leader.
    pub(crate) async fn kv_get(
        &self,
        bucket: Bucket,
        key: &str,
    ) -> Result<Option<StreamMessage>, BusError> {
        Ok(self
            .kv_last(bucket, key)
            .await?
            .filter(|message| !message.removes))
    }

    pub(crate) async fn kv_put(
        &self,
        bucket: Bucket,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
    ) -> Result<u64, BusError> {
        let subject = self.names().key_subject(bucket, key);
        let headers = ttl.map(|ttl| {
            let mut headers = HeaderMap::new();
            headers.insert(TTL, ttl_text(ttl));
            headers
        });
        match self.wire().store(&subject, headers, value).await? {
            Ok(ack) => Ok(ack.seq),
            Err(error) => Err(self.wire().failed(error.into_bus(&subject))),
        }
    }

    /// Writes a key that has no value.
    pub(crate) async fn kv_create(
        &self,
        bucket: Bucket,
        key: &str,
        value: Bytes,
    ) -> Result<Cas, BusError> {
        self.kv_replace(bucket, key, value, 0).await
    }

    /// Replaces the value that has this revision; 0: there is none, or it was removed. A repeated call with the same bytes
    /// succeeds again, so that one whose acknowledgement was lost can be repeated.
    pub(crate) async fn kv_replace(
        &self,
        bucket: Bucket,
        key: &str,
        value: Bytes,
        revision: u64,
    ) -> Result<Cas, BusError> {
        let subject = self.names().key_subject(bucket, key);
        if let Cas::Stored(stored) =
            put_expecting(self.wire(), &subject, value.clone(), revision).await?
        {
            return Ok(Cas::Stored(stored));
        }
        match self.kv_last(bucket, key).await? {
            Some(last) if !last.removes && last.payload == value && last.sequence > revision => {
                Ok(Cas::Stored(last.sequence))
            }
            // The mark of a removal has a revision too.
            Some(last) if last.removes && revision == 0 => {
                put_expecting(self.wire(), &subject, value, last.sequence).await
            }
            _ => Ok(Cas::Conflict),
        }
    }

    /// Removes a key: a mark stays for a while, so that those who watch learn of it.
    pub(crate) async fn kv_delete(&self, bucket: Bucket, key: &str) -> Result<(), BusError> {
        let subject = self.names().key_subject(bucket, key);
        let headers = self.removal();
        match self
            .wire()
            .store(&subject, Some(headers), Bytes::new())
            .await?
        {
            Ok(_) => Ok(()),
            Err(error) => Err(self.wire().failed(error.into_bus(&subject))),
        }
    }

    /// Removes the value that has this revision, and no newer one.
    pub(crate) async fn kv_delete_at(
        &self,
        bucket: Bucket,
        key: &str,
        revision: u64,
    ) -> Result<Cas, BusError> {
        let subject = self.names().key_subject(bucket, key);
        let mut headers = self.removal();
        headers.insert(EXPECTED, revision.to_string());
        let stored = self.wire().store(&subject, Some(headers), Bytes::new());
        cas(self.wire(), stored.await?, &subject)
    }

    /// The headers of a mark of a removal.
    fn removal(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "PURGE");
        headers.insert("Nats-Rollup", "sub");
        headers.insert(TTL, ttl_text(self.timing().tombstone_age));
        headers
    }

    /// Reads what lies under the keys that match, marks of removals included, as of now.
    pub(crate) fn kv_range(&self, bucket: Bucket, keys: &str, after: u64) -> KvRange {
        let stream = self.names().bucket_stream(bucket);
        let filter = self.names().key_subject(bucket, keys);
        self.kv_filtered(stream, filter, after)
    }

    /// Reads all of a bucket, as of now, by a consumer if it is large. Only without a filter the server need not look through the
    /// subjects of a whole block for each message. A batch that is asked for would cost it ten times as much, and more while others
    /// write: it looks through all keys then, to say how many are left.
    pub(crate) fn kv_whole(&self, bucket: Bucket) -> KvRange {
        let stream = self.names().bucket_stream(bucket);
        let mut whole = self.kv_filtered(stream, EVERYTHING.to_owned(), 0);
        whole.by_consumer = true;
        whole
    }

    fn kv_filtered(&self, stream: String, filter: String, after: u64) -> KvRange {
        KvRange {
            bus: self.clone(),
            stream,
            filter,
            by_consumer: false,
            at: after,
            range: None,
            rounds: 0,
            found: 0,
            complete: false,
            created: None,
        }
    }

    /// All values whose keys match. One that is written meanwhile may come twice, the later one last.
    pub(crate) async fn kv_all(
        &self,
        bucket: Bucket,
        keys: &str,
    ) -> Result<Vec<StreamMessage>, BusError> {
        let mut range = self.kv_range(bucket, keys, 0);
        let mut all = Vec::new();
        while let Some(messages) = range.next_batch().await? {
            all.extend(messages.into_iter().filter(|message| !message.removes));
        }
        Ok(all)
    }
}

/// How often what was written meanwhile is read too. Each round is as short as the one before took.
const ROUNDS: u32 = 16;

/// Reads a bucket by batches. A key that is written meanwhile moves to the end, behind what the leader named at first: so it
/// goes on until the leader has nothing new that matches, or nothing was overwritten between two of the leader's ends.
#[derive(Debug)]
pub(crate) struct KvRange {
    bus: Bus,
    stream: String,
    filter: String,
    by_consumer: bool,
    at: u64,
    range: Option<RangeReader>,
    rounds: u32,
    /// Messages of this round.
    found: u64,
    /// Nothing that matches can have been missed.
    complete: bool,
    /// When the bucket's stream was created.
    created: Option<String>,
}

impl KvRange {
    pub(crate) async fn next_batch(&mut self) -> Result<Option<Vec<StreamMessage>>, BusError> {
        loop {
            if let Some(range) = &mut self.range {
                if let Some(messages) = range.next_batch().await? {
                    self.found += u64::try_from(messages.len()).unwrap_or(u64::MAX);
                    return Ok(Some(messages));
                }
                let before = std::mem::replace(&mut self.at, range.position());
                // Every single message of the round was seen, or there was none after it.
                self.complete = self.found == self.at - before || range.is_exhausted();
                self.range = None;
            }
            let info = self.bus.wire().stream_info(&self.stream).await?;
            let info = info.ok_or_else(|| BusError::NoStream(self.stream.clone()))?;
            let last = info.state.last_seq;
            if *self.created.get_or_insert_with(|| info.created.clone()) != info.created {
                // Made anew in the middle: what was read is of another bucket.
                return Err(BusError::NoStream(self.stream.clone()));
            }
            if last <= self.at || self.complete || self.rounds == ROUNDS {
                return Ok(None);
            }
            self.rounds += 1;
            self.found = 0;
            let (stream, filter) = (self.stream.clone(), self.filter.clone());
            let range = RangeReader::new(&self.bus, stream, filter, self.at, last).of_bucket();
            // One batch of direct gets is cheaper than making a consumer.
            let most = info.state.messages.min(last - self.at);
            let large = most > BATCH_OF_BUCKET as u64;
            self.range = Some(if self.by_consumer && large {
                range.by_consumer()
            } else {
                range
            });
        }
    }

    /// Up to where everything was read.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// When the stream that was read was created; nothing before the first batch.
    pub(crate) fn created(&self) -> &str {
        self.created.as_deref().unwrap_or_default()
    }
}
