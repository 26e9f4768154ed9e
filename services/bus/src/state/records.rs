//! Reading and writing records of a bucket.

use bytes::Bytes;
use mailbell_core::schema::may_rewrite;
use prost::Message;

use super::{Cas, Page, PageToken, Versioned};
use crate::{Bus, BusError, api::StreamMessage, names::Bucket};

/// The most records of one page.
const PAGE: usize = 1000;

/// A record with a schema of its own.
pub(super) trait Record: Message + Default {
    /// The schema it was written with.
    fn schema(&self) -> u32;
}

macro_rules! records {
    ($($name:ident),*) => {
        $(impl Record for mailbell_proto::bus::v1::$name {
            fn schema(&self) -> u32 {
                self.schema
            }
        })*
    };
}

records!(
    AccountRecord,
    SealedCredential,
    StatusRecord,
    Checkpoint,
    Issuer,
    TokenRecord,
    SealingKey
);

/// Reads a record; one that is newer than this release is read as far as it is known.
pub(super) fn decode<R: Record>(bytes: Bytes) -> Option<R> {
    R::decode(bytes).ok()
}

pub(super) fn versioned<R: Record>(
    key: &str,
    message: StreamMessage,
) -> Result<Versioned<R>, BusError> {
    let revision = message.sequence;
    let value = decode(message.payload).ok_or_else(|| BusError::Record(key.to_owned()))?;
    Ok(Versioned { value, revision })
}

/// Refuses what this release must not rewrite.
pub(super) fn ours<R: Record>(key: &str, record: Versioned<R>) -> Result<Versioned<R>, BusError> {
    if !may_rewrite(record.value.schema()) {
        Err(BusError::NewerRecord(key.to_owned()))
    } else {
        Ok(record)
    }
}

impl Bus {
    pub(super) async fn record<R: Record>(
        &self,
        bucket: Bucket,
        key: &str,
    ) -> Result<Option<Versioned<R>>, BusError> {
        self.kv_get(bucket, key)
            .await?
            .map(|message| versioned(key, message))
            .transpose()
    }

    pub(super) async fn put_record<R: Record>(
        &self,
        bucket: Bucket,
        key: &str,
        record: &R,
    ) -> Result<u64, BusError> {
        self.kv_put(bucket, key, record.encode_to_vec().into(), None)
            .await
    }

    pub(super) async fn replace_record<R: Record>(
        &self,
        bucket: Bucket,
        key: &str,
        record: &R,
        revision: u64,
    ) -> Result<Cas, BusError> {
        // The caller read the revision it replaces together with the record, so it knows the schema.
        if !may_rewrite(record.schema()) {
            return Err(BusError::NewerRecord(key.to_owned()));
        }
        self.kv_replace(bucket, key, record.encode_to_vec().into(), revision)
            .await
    }

    /// A page of the records whose keys match, in buckets that are listed one after the other.
    pub(super) async fn page<K, R: Record>(
        &self,
        buckets: &[Bucket],
        keys: &str,
        read_key: fn(&str) -> Option<K>,
        limit: usize,
        token: Option<&PageToken>,
    ) -> Result<Page<K, R>, BusError> {
        let limit = limit.clamp(1, PAGE);
        let (mut index, mut after) = match token {
            None => (0, 0),
            Some(token) => token
                .read()
                .filter(|(index, _)| *index < buckets.len())
                .ok_or_else(|| BusError::Options("this page token is none of ours".to_owned()))?,
        };
        let mut records = Vec::new();
        while let Some(&bucket) = buckets.get(index) {
            let mut range = self.kv_range(bucket, keys, after);
            while let Some(messages) = range.next_batch().await? {
                for message in messages {
                    after = message.sequence;
                    if message.removes {
                        continue;
                    }
                    let key = self
                        .names()
                        .key_of(bucket, &message.subject)
                        .and_then(read_key);
                    let Some(key) = key else { continue };
                    let subject = message.subject.clone();
                    match versioned(&subject, message) {
                        Ok(record) => records.push((key, record)),
                        // It must not keep all others from being listed. Who asks for it by its key is told.
                        Err(error) => {
                            tracing::warn!(stream = %self.names().bucket_stream(bucket), revision = after, %error, "left out of a listing");
                            continue;
                        }
                    }
                    if records.len() == limit {
                        return Ok(Page {
                            records,
                            next: Some(PageToken::at(index, after)),
                        });
                    }
                }
            }
            index += 1;
            after = 0;
        }
        Ok(Page {
            records,
            next: None,
        })
    }
}
