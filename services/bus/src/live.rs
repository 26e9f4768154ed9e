//! Who lives and who owns what, for who looks on; and what an operator asks of a member.
//!
//! Members and claims are written by the watchers alone.

use std::collections::BTreeMap;

use mailbell_core::ids::{MemberId, Partition};
use mailbell_proto::bus::v1::{Claim, DrainRequest, Member};
use prost::Message;

use crate::{Bus, BusError, api::StreamMessage, names::Bucket, state::Versioned};

/// The schema of [`DrainRequest`] that this release writes.
const DRAIN_SCHEMA: u32 = 1;

impl Bus {
    /// The records of the LIVE bucket.
    #[must_use]
    pub fn live(&self) -> Live {
        Live { bus: self.clone() }
    }
}

/// Records that age out unless they are rewritten (`LIVE`).
#[derive(Debug, Clone)]
pub struct Live {
    bus: Bus,
}

impl Live {
    /// All members, as of now, in the order of their names.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn members(&self) -> Result<Vec<Versioned<Member>>, BusError> {
        let members = self.all("member.", |key, member: &Member| {
            (key == member.id).then(|| member.id.clone())
        });
        Ok(members.await?.into_values().collect())
    }

    /// All claims, as of now, those that were released included.
    ///
    /// # Errors
    /// Why NATS did not answer.
    pub async fn claims(&self) -> Result<BTreeMap<Partition, Versioned<Claim>>, BusError> {
        self.all("claim.", |key, _| Partition::new(key.parse().ok()?))
            .await
    }

    /// Asks a member to give its partitions away, or to take some again. Only this incarnation is meant; empty: whichever runs.
    /// The request ages out with the bucket's keys; the member remembers.
    ///
    /// # Errors
    /// Why NATS did not do it.
    pub async fn request_drain(
        &self,
        member: &MemberId,
        incarnation: &str,
        drain: bool,
    ) -> Result<u64, BusError> {
        let request = DrainRequest {
            schema: DRAIN_SCHEMA,
            drain,
            incarnation: incarnation.to_owned(),
        };
        let key = drain_key(member);
        let value = request.encode_to_vec().into();
        self.bus.kv_put(Bucket::Live, &key, value, None).await
    }

    /// What was last asked of a member, as long as it has not aged out.
    ///
    /// # Errors
    /// Why NATS did not answer, or [`BusError::Record`].
    pub async fn drain_request(
        &self,
        member: &MemberId,
    ) -> Result<Option<Versioned<DrainRequest>>, BusError> {
        let key = drain_key(member);
        let Some(message) = self.bus.kv_get(Bucket::Live, &key).await? else {
            return Ok(None);
        };
        let revision = message.sequence;
        let value = DrainRequest::decode(message.payload).map_err(|_| BusError::Record(key))?;
        Ok(Some(Versioned { value, revision }))
    }

    /// What lies under keys with this beginning. `name` tells by the rest of a key and the record whose it is.
    async fn all<K: Ord, R: Message + Default>(
        &self,
        prefix: &str,
        name: impl Fn(&str, &R) -> Option<K>,
    ) -> Result<BTreeMap<K, Versioned<R>>, BusError> {
        let mut records = BTreeMap::new();
        let read = |message: StreamMessage| {
            let subject = &message.subject;
            let key = self.bus.names().key_of(Bucket::Live, subject)?;
            let value = R::decode(message.payload).ok()?;
            let name = name(key.strip_prefix(prefix)?, &value)?;
            let revision = message.sequence;
            Some((name, Versioned { value, revision }))
        };
        let keys = format!("{prefix}*");
        // One that is written meanwhile comes twice, the later one last.
        for message in self.bus.kv_all(Bucket::Live, &keys).await? {
            let revision = message.sequence;
            match read(message) {
                Some((name, record)) => {
                    records.insert(name, record);
                }
                // It must not hide all others.
                None => tracing::warn!(%keys, revision, "a record of LIVE cannot be read"),
            }
        }
        Ok(records)
    }
}

fn drain_key(member: &MemberId) -> String {
    format!("drain.{member}")
}
