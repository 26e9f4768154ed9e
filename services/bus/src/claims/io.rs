//! Claims as they are read, written and watched.

use std::sync::Arc;

use mailbell_core::{ids::Partition, sharding::Written};
use mailbell_proto::bus::v1::Claim;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Get, StreamMessage},
    consumer::{Delivery, Ordered, Start},
    kv,
    names::{Bucket, Names},
    state::Cas,
    wire::Wire,
};

/// One I/O that ended.
pub(super) enum Done {
    Wrote {
        partition: Partition,
        claim: Claim,
        written: Written,
    },
    Read {
        partition: Partition,
        found: Result<Option<(u64, Option<Claim>)>, ()>,
    },
}

/// What the watch of the claims sees.
#[derive(Debug)]
pub(super) enum Told {
    Restarted,
    Claim(StreamMessage),
    Loaded,
}

impl std::fmt::Debug for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Done")
    }
}

pub(super) fn key(partition: Partition) -> String {
    format!("claim.{partition}")
}

pub(super) fn partition_of(names: &Names, subject: &str) -> Option<Partition> {
    let key = names.key_of(Bucket::Live, subject)?;
    Partition::new(key.strip_prefix("claim.")?.parse().ok()?)
}

pub(super) fn decode(message: &StreamMessage) -> Result<Option<Claim>, ()> {
    if message.removes {
        return Ok(None);
    }
    Claim::decode(message.payload.clone())
        .map(Some)
        .map_err(|_| ())
}

pub(super) async fn write(
    wire: Arc<Wire>,
    subject: String,
    partition: Partition,
    claim: Claim,
    revision: u64,
) -> Done {
    let payload = claim.encode_to_vec().into();
    let written = match kv::put_expecting(&wire, &subject, payload, revision).await {
        Ok(Cas::Stored(revision)) => Written::Stored(revision),
        Ok(Cas::Conflict) => Written::Conflict,
        Err(error) => {
            tracing::debug!(%partition, %error, "a claim was not written");
            Written::Unknown
        }
    };
    Done::Wrote {
        partition,
        claim,
        written,
    }
}

pub(super) async fn read(
    wire: Arc<Wire>,
    stream: String,
    subject: String,
    partition: Partition,
) -> Done {
    let which = Get::Last {
        last_by_subj: &subject,
    };
    let found = match wire.leader_get(&stream, &which).await {
        Ok(None) => Ok(None),
        Ok(Some(message)) => decode(&message).map(|claim| Some((message.sequence, claim))),
        Err(error) => {
            tracing::debug!(%partition, %error, "a claim was not read");
            Err(())
        }
    };
    Done::Read { partition, found }
}

/// Follows all claims.
pub(super) async fn watch(
    wire: Arc<Wire>,
    names: Names,
    tx: mpsc::Sender<Told>,
    end: CancellationToken,
) {
    let stream = names.bucket_stream(Bucket::Live);
    let filter = names.key_subject(Bucket::Live, "claim.*");
    let mut consumer = Ordered::new(wire, stream, Some(filter), Start::LastPerSubject);
    let watching = async {
        let mut loading = true;
        while let Some(delivery) = consumer.next().await {
            match delivery {
                Delivery::Made {
                    start: Start::From(next),
                    info,
                    ..
                } if info.state.last_seq + 1 < next => {
                    // The bucket was made anew.
                    consumer.restart(Start::LastPerSubject);
                    loading = true;
                    tx.send(Told::Restarted).await.ok()?;
                }
                Delivery::Made { pending, .. } => {
                    if loading && pending == 0 {
                        loading = false;
                        tx.send(Told::Loaded).await.ok()?;
                    }
                }
                Delivery::Lost { .. } => {}
                Delivery::Message { message, pending } => {
                    tx.send(Told::Claim(message)).await.ok()?;
                    if loading && pending == 0 {
                        loading = false;
                        tx.send(Told::Loaded).await.ok()?;
                    }
                }
            }
        }
        Some(())
    };
    tokio::select! {
        // Nothing is held by either.
        biased;
        () = end.cancelled() => {}
        _ = watching => {}
    }
}
