//! The write version of an installation: kept up with by every process, raised by a person.
//!
//! See [`mailbell_core::schema`] for what it is good for.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
};

use mailbell_core::schema::{self, WriteVersion};
use mailbell_proto::bus::v1::{Member, Meta};
use prost::Message as _;
use tokio::time::sleep;

use crate::{
    Bus, BusError, kv,
    names::Bucket,
    setup::{META, check_layout},
    state::Cas,
};

/// How often `meta` may change between our reading and writing it before we give up.
const TRIES: u32 = 8;

/// What this process knows of the write version. It only grows.
#[derive(Debug)]
pub(crate) struct Known(AtomicU32);

impl Default for Known {
    fn default() -> Self {
        Self(AtomicU32::new(WriteVersion::FIRST.number()))
    }
}

impl Known {
    fn get(&self) -> WriteVersion {
        // Nothing above our own is ever noted.
        WriteVersion::from_number(self.0.load(Ordering::Relaxed)).unwrap_or(WriteVersion::NEWEST)
    }
}

/// What the end of an upgrade found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// From now on the newest schema is written.
    Finished {
        /// What was written until now.
        before: WriteVersion,
    },
    /// It was finished before.
    Nothing,
    /// Watchers live that do not know the newest schema: nothing was changed.
    OlderMembers(Vec<String>),
}

impl Bus {
    /// The newest schema that may be written, as far as this process knows.
    #[must_use]
    pub fn write_version(&self) -> WriteVersion {
        self.inner.write_version.get()
    }

    /// Takes in what `meta` says, or what a record proves: what is stored in a schema was allowed to be.
    pub(crate) fn note_written(&self, written: u32) -> Result<WriteVersion, BusError> {
        let version = WriteVersion::from_number(written)?;
        let known = &self.inner.write_version.0;
        known.fetch_max(version.number(), Ordering::Relaxed);
        Ok(version)
    }

    /// Waits until this release must no longer run here, and says why. Looks about every 12 s (`Timing::member_dead`): until a
    /// process has seen that the write version was raised, it writes what all releases read. Cancel-safe.
    pub async fn outdated(&self) -> BusError {
        loop {
            let period = self.timing().member_dead;
            // Processes that start together would ask together.
            sleep(period.mul_f64(1.0 + rand::random::<f64>() / 4.0)).await;
            match self.check_meta().await {
                Err(error @ (BusError::TooOld(_) | BusError::Layout { .. })) => return error,
                // Whoever needs NATS, or what lies there, finds out and says so.
                Err(error) => tracing::debug!(%error, "the write version cannot be read"),
                Ok(()) => {}
            }
        }
    }

    /// Lets the newest schema be written, unless a watcher lives that does not know it. There is no way back: older releases do
    /// not start from then on. Gateways and admins keep no record, so that they are new too is for a person to know; one that
    /// is not ends with a sentence within seconds.
    ///
    /// Takes as long as a dead member's record may stand still, if there is one of an older release.
    ///
    /// # Errors
    /// [`BusError::TooOld`], [`BusError::NotSetUp`], [`BusError::Layout`]; why NATS did not do it.
    pub async fn finish_upgrade(&self) -> Result<Upgrade, BusError> {
        self.check_meta().await?;
        let older = self.older_members_alive().await?;
        if !older.is_empty() {
            return Ok(Upgrade::OlderMembers(older));
        }
        let stream = self.names().bucket_stream(Bucket::Control);
        let subject = self.names().key_subject(Bucket::Control, META);
        for _ in 0..TRIES {
            // A replica may lag; then the write finds that out.
            let found = self.wire().direct_last(&stream, &subject).await?;
            let found = found.ok_or_else(|| self.not_set_up())?;
            let meta =
                Meta::decode(found.payload).map_err(|_| BusError::Record(META.to_owned()))?;
            check_layout(&meta)?;
            if !schema::may_rewrite(meta.schema) {
                return Err(BusError::NewerRecord(META.to_owned()));
            }
            let before = self.note_written(meta.write_version)?;
            if before == WriteVersion::NEWEST {
                return Ok(Upgrade::Nothing);
            }
            let raised = Meta {
                write_version: WriteVersion::NEWEST.number(),
                ..meta
            };
            let bytes = raised.encode_to_vec().into();
            let written = kv::put_expecting(self.wire(), &subject, bytes, found.sequence).await?;
            if let Cas::Stored(_) = written {
                self.note_written(raised.write_version)?;
                return Ok(Upgrade::Finished { before });
            }
            sleep(self.wire().patience() / 20).await;
        }
        Err(BusError::Garbled("a record that others keep changing"))
    }

    /// The watchers that know less than this release and whose records are renewed. A record that stands still for as long as a
    /// member may is a dead one's.
    async fn older_members_alive(&self) -> Result<Vec<String>, BusError> {
        let before = self.older_members().await?;
        if before.is_empty() {
            return Ok(Vec::new());
        }
        sleep(self.timing().member_dead).await;
        let now = self.older_members().await?;
        let alive = now
            .into_iter()
            .filter(|(id, revision)| before.get(id) != Some(revision));
        Ok(alive.map(|(id, _)| id).collect())
    }

    /// By name, with the revision of the record.
    async fn older_members(&self) -> Result<BTreeMap<String, u64>, BusError> {
        let mut older = BTreeMap::new();
        for message in self.kv_all(Bucket::Live, "member.*").await? {
            match Member::decode(message.payload) {
                Ok(member) if member.left || member.writes >= schema::NEWEST => {
                    older.remove(&member.id);
                }
                Ok(member) => {
                    older.insert(member.id, message.sequence);
                }
                Err(_) => return Err(BusError::Record("member".to_owned())),
            }
        }
        Ok(older)
    }
}
