//! Which partitions this process owns.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use mailbell_core::ids::{LogId, OwnerEpoch, Partition, Position};
use mailbell_proto::bus::v1::Claim;
use prost::Message as _;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Bus, BusError,
    api::{Get, StreamMessage},
    consumer::{Delivery, Ordered, Start},
    kv,
    names::{Bucket, Names},
    state::Cas,
    wire::Wire,
};

/// The schema of [`Claim`] that this release writes.
const SCHEMA: u32 = 1;
/// Writes that are on their way at once.
const AT_ONCE: usize = 256;
/// How often others may change a claim between our reading and writing it before we give up.
const TRIES: u32 = 4;
/// Losses that wait for their reader: each partition once, and some.
const WAITING: usize = 2048;

/// What became of taking a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Take {
    /// It is ours.
    Taken(Taken),
    /// Another member holds it. A holder that is gone stops renewing, and its claim ages out of the bucket.
    Foreign {
        /// Who.
        member: String,
    },
}

/// A partition that is ours now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The number of this ownership; higher than any before, also if the bucket was lost.
    pub epoch: OwnerEpoch,
    /// What the owner before us left. `None`: nothing is known, so the checkpoints' own positions count.
    pub before: Option<Before>,
}

/// What an owner left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// The history in which `flushed` is a position.
    pub log_id: LogId,
    /// Every checkpoint of the partition covers the log up to there.
    pub flushed: Position,
    /// Whether it let go in order; else it was a crash of ours.
    pub released: bool,
}

/// A partition that is ours no longer: its sessions must stop at once, and nothing may be appended for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Which.
    pub partition: Partition,
    /// Of which ownership.
    pub epoch: OwnerEpoch,
    /// Why.
    pub reason: LostReason,
}

/// Why a partition was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostReason {
    /// Another claim stands there.
    Taken {
        /// Whose.
        member: String,
    },
    /// Our claim aged out, since we could not renew it in time: anybody may have had it meanwhile. It may be taken again.
    Expired,
}

/// The claims of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Claims {
    bus: Bus,
    shared: Arc<Shared>,
    /// Ends the renewals with the last handle.
    _alive: Arc<tokio_util::sync::DropGuard>,
}

/// Where losses are told.
#[derive(Debug)]
pub struct LostClaims {
    rx: mpsc::Receiver<Lost>,
}

impl LostClaims {
    /// The next loss; `None` once the bus is closed or the claims are dropped. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Lost> {
        self.rx.recv().await
    }
}

#[derive(Debug)]
struct Shared {
    wire: Arc<Wire>,
    names: Names,
    member: String,
    incarnation: String,
    held: Mutex<BTreeMap<Partition, Held>>,
    /// One bulk write at a time: two would be each other's newer claim.
    writing: tokio::sync::Mutex<()>,
    lost: mpsc::Sender<Lost>,
    claims_lost: prometheus_client::metrics::counter::Counter,
}

/// A partition that is ours.
#[derive(Debug, Clone, Copy)]
struct Held {
    epoch: OwnerEpoch,
    log_id: LogId,
    flushed: Position,
    revision: u64,
    /// What is noted differs from what is written.
    dirty: bool,
}

impl Bus {
    /// The claims of this process as `member` (a pod, or a locked state directory) in this `incarnation` (random a start).
    /// They are renewed for as long as a handle lives.
    ///
    /// # Errors
    /// [`BusError::Options`] for an empty name.
    pub async fn claims(
        &self,
        member: &str,
        incarnation: &str,
    ) -> Result<(Claims, LostClaims), BusError> {
        if member.is_empty() || incarnation.is_empty() {
            return Err(BusError::Options(
                "a member and its incarnation must have names".to_owned(),
            ));
        }
        let (lost, rx) = mpsc::channel(WAITING);
        let shared = Arc::new(Shared {
            wire: Arc::clone(&self.inner.wire),
            names: self.names().clone(),
            member: member.to_owned(),
            incarnation: incarnation.to_owned(),
            held: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            lost,
            claims_lost: self.wire().metrics().claims_lost.clone(),
        });
        let end = self.wire().closed().child_token();
        tokio::spawn(renew(
            Arc::clone(&shared),
            self.timing().claim_refresh,
            end.clone(),
        ));
        tokio::spawn(watch(Arc::clone(&shared), end.clone()));
        Ok((
            Claims {
                bus: self.clone(),
                shared,
                _alive: Arc::new(end.drop_guard()),
            },
            LostClaims { rx },
        ))
    }
}

impl Claims {
    /// Takes partitions that nobody holds, that were released, or that an earlier incarnation of this member held. All at once:
    /// 1024 of them are well under a second.
    pub async fn take(&self, partitions: &[Partition]) -> Vec<(Partition, Result<Take, BusError>)> {
        let shared = &self.shared;
        let _alone = shared.writing.lock().await;
        let mut known = match self.read_all(partitions.len()).await {
            Ok(known) => known,
            Err(error) => {
                return partitions
                    .iter()
                    .map(|&partition| (partition, Err(error.clone())))
                    .collect();
            }
        };
        // Gathered first: a future that holds the closure over borrowed partitions could not be spawned.
        let takes: Vec<_> = partitions
            .iter()
            .map(|&partition| {
                let found = known.as_mut().map(|known| known.remove(&partition));
                async move { (partition, shared.take(partition, found).await) }
            })
            .collect();
        stream::iter(takes).buffered(AT_ONCE).collect().await
    }

    /// All claims, unless only one is wanted: then it is not worth it. Old ones do no harm: taking compares.
    async fn read_all(
        &self,
        wanted: usize,
    ) -> Result<Option<HashMap<Partition, StreamMessage>>, BusError> {
        if wanted <= 1 {
            return Ok(None);
        }
        let claims = self.bus.kv_all(Bucket::Live, "claim.*").await?;
        let claims = claims
            .into_iter()
            .filter_map(|claim| Some((self.shared.partition_of(&claim.subject)?, claim)));
        Ok(Some(claims.collect()))
    }

    /// Notes that every checkpoint of the partition covers the log up to `position`; call it after their acknowledgements.
    /// Written with the next renewal or [`Claims::write`].
    pub fn flushed(&self, partition: Partition, log_id: LogId, position: Position) {
        if let Some(held) = self.shared.held().get_mut(&partition)
            && (held.log_id != log_id || held.flushed < position)
        {
            (held.log_id, held.flushed, held.dirty) = (log_id, position, true);
        }
    }

    /// Writes the claims that changed since they were last written.
    ///
    /// # Errors
    /// The first failure; the others are tried all the same.
    pub async fn write(&self) -> Result<(), BusError> {
        self.shared.write(|held| held.dirty).await
    }

    /// Lets go of partitions, with what was last noted by [`Claims::flushed`].
    ///
    /// # Errors
    /// The first failure; the others are tried all the same. What could not be written ages out.
    pub async fn release(&self, partitions: &[Partition]) -> Result<(), BusError> {
        let shared = &self.shared;
        let _alone = shared.writing.lock().await;
        let releases = partitions.iter().filter_map(|partition| {
            let held = shared.held().remove(partition)?;
            Some(shared.put(*partition, held, true))
        });
        let mut failed = None;
        let mut done = stream::iter(releases.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        while let Some(result) = done.next().await {
            // A conflict: it was lost before, so there is nothing to let go.
            failed = failed.or(result.err());
        }
        failed.map_or(Ok(()), Err)
    }

    /// What is ours.
    #[must_use]
    pub fn held(&self) -> Vec<(Partition, OwnerEpoch)> {
        self.shared
            .held()
            .iter()
            .map(|(partition, held)| (*partition, held.epoch))
            .collect()
    }

    /// The number of our ownership of this partition, if it is ours.
    #[must_use]
    pub fn epoch(&self, partition: Partition) -> Option<OwnerEpoch> {
        self.shared.held().get(&partition).map(|held| held.epoch)
    }
}

fn key(partition: Partition) -> String {
    format!("claim.{partition}")
}

/// The number of an ownership that follows `last`. Not below the seconds since 1970, so that it also grows if the bucket, or
/// this claim in it, was lost.
fn next_epoch(last: OwnerEpoch) -> OwnerEpoch {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    now.max(last + 1)
}

/// What is known of what lies before an ownership: nothing, as long as nobody has flushed anything.
fn known_before(log_id: LogId, flushed: Position, released: bool) -> Option<Before> {
    (log_id != LogId::default()).then_some(Before {
        log_id,
        flushed,
        released,
    })
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Partition, Held>> {
        // Nothing that holds the lock can leave it half changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_ours(&self, claim: &Claim) -> bool {
        claim.member == self.member && claim.incarnation == self.incarnation
    }

    fn partition_of(&self, subject: &str) -> Option<Partition> {
        let key = self.names.key_of(Bucket::Live, subject)?;
        Partition::new(key.strip_prefix("claim.")?.parse().ok()?)
    }

    async fn read(&self, partition: Partition) -> Result<Option<StreamMessage>, BusError> {
        let subject = self.names.key_subject(Bucket::Live, &key(partition));
        let which = Get::Last {
            last_by_subj: &subject,
        };
        self.wire
            .leader_get(&self.names.bucket_stream(Bucket::Live), &which)
            .await
    }

    async fn take(
        &self,
        partition: Partition,
        mut found: Option<Option<StreamMessage>>,
    ) -> Result<Take, BusError> {
        if let Some(held) = self.held().get(&partition) {
            let before = known_before(held.log_id, held.flushed, false);
            let epoch = held.epoch;
            return Ok(Take::Taken(Taken { epoch, before }));
        }
        for _ in 0..TRIES {
            let found = match found.take() {
                Some(found) => found,
                // Not read yet, or it was an old one.
                None => self.read(partition).await?,
            };
            let (claim, revision) = match &found {
                None => (None, 0),
                Some(message) if message.removes => (None, message.sequence),
                Some(message) => {
                    let claim = Claim::decode(message.payload.clone())
                        .map_err(|_| BusError::Record(key(partition)))?;
                    (Some(claim), message.sequence)
                }
            };
            if let Some(claim) = &claim {
                if claim.schema > SCHEMA {
                    return Err(BusError::NewerRecord(key(partition)));
                }
                if !claim.released && claim.member != self.member {
                    return Ok(Take::Foreign {
                        member: claim.member.clone(),
                    });
                }
            }
            let before = claim.as_ref().and_then(|claim| {
                let log_id = LogId::from_slice(&claim.log_id)?;
                known_before(log_id, claim.flushed, claim.released)
            });
            let epoch = next_epoch(claim.as_ref().map_or(0, |claim| claim.owner_epoch));
            let held = Held {
                epoch,
                log_id: before.map_or_else(LogId::default, |before| before.log_id),
                flushed: before.map_or(0, |before| before.flushed),
                revision,
                dirty: false,
            };
            if let Cas::Stored(revision) = self.put(partition, held, false).await? {
                self.held().insert(partition, Held { revision, ..held });
                return Ok(Take::Taken(Taken { epoch, before }));
            }
        }
        Err(BusError::Garbled("a claim that others keep changing"))
    }

    /// Writes one claim. What a conflict means is for the caller to judge.
    async fn put(&self, partition: Partition, held: Held, released: bool) -> Result<Cas, BusError> {
        let claim = Claim {
            schema: SCHEMA,
            member: self.member.clone(),
            incarnation: self.incarnation.clone(),
            owner_epoch: held.epoch,
            log_id: Bytes::copy_from_slice(&held.log_id.0),
            flushed: held.flushed,
            released,
        };
        let subject = self.names.key_subject(Bucket::Live, &key(partition));
        kv::put_expecting(
            &self.wire,
            &subject,
            claim.encode_to_vec().into(),
            held.revision,
        )
        .await
    }

    /// Renews the claims that are chosen.
    async fn write(&self, chosen: impl Fn(&Held) -> bool) -> Result<(), BusError> {
        let _alone = self.writing.lock().await;
        let writes: Vec<(Partition, Held)> = self
            .held()
            .iter()
            .filter(|(_, held)| chosen(held))
            .map(|(partition, held)| (*partition, *held))
            .collect();
        let mut writes =
            stream::iter(writes)
                .map(|(partition, held)| async move {
                    (partition, held, self.renew(partition, held).await)
                })
                .buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some((partition, written, result)) = writes.next().await {
            match result {
                Ok(Renewed::Stored(revision)) => {
                    if let Some(held) = self.held().get_mut(&partition) {
                        held.revision = revision;
                        held.dirty =
                            (held.log_id, held.flushed) != (written.log_id, written.flushed);
                    }
                }
                Ok(Renewed::Lost(reason)) => self.lose(partition, reason).await,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn renew(&self, partition: Partition, held: Held) -> Result<Renewed, BusError> {
        if let Cas::Stored(revision) = self.put(partition, held, false).await? {
            return Ok(Renewed::Stored(revision));
        }
        let Some(message) = self
            .read(partition)
            .await?
            .filter(|message| !message.removes)
        else {
            return Ok(Renewed::Lost(LostReason::Expired));
        };
        let claim = Claim::decode(message.payload).map_err(|_| BusError::Record(key(partition)))?;
        if !self.is_ours(&claim) || claim.owner_epoch != held.epoch {
            return Ok(Renewed::Lost(LostReason::Taken {
                member: claim.member,
            }));
        }
        // An earlier write of ours whose acknowledgement was lost.
        match self
            .put(
                partition,
                Held {
                    revision: message.sequence,
                    ..held
                },
                false,
            )
            .await?
        {
            Cas::Stored(revision) => Ok(Renewed::Stored(revision)),
            Cas::Conflict => Err(BusError::Garbled("a claim that others keep changing")),
        }
    }

    async fn lose(&self, partition: Partition, reason: LostReason) {
        let Some(held) = self.held().remove(&partition) else {
            return;
        };
        self.claims_lost.inc();
        tracing::warn!(%partition, epoch = held.epoch, ?reason, "lost a partition");
        // Nobody listens: the process ends.
        let _ = self
            .lost
            .send(Lost {
                partition,
                epoch: held.epoch,
                reason,
            })
            .await;
    }

    /// A claim was written by somebody.
    async fn see(&self, message: StreamMessage) {
        let Some(partition) = self.partition_of(&message.subject) else {
            return;
        };
        let Some(held) = self.held().get(&partition).copied() else {
            return;
        };
        // What was there before ours; or ours.
        if message.removes || message.sequence <= held.revision {
            return;
        }
        match Claim::decode(message.payload) {
            Ok(claim) if !self.is_ours(&claim) => {
                self.lose(
                    partition,
                    LostReason::Taken {
                        member: claim.member,
                    },
                )
                .await;
            }
            Ok(_) => {}
            Err(_) => tracing::warn!(%partition, "a claim cannot be read"),
        }
    }
}

enum Renewed {
    Stored(u64),
    Lost(LostReason),
}

async fn renew(shared: Arc<Shared>, period: Duration, end: CancellationToken) {
    let mut link = shared.wire.link();
    let mut next = Instant::now() + period;
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            () = sleep_until(next) => {}
            // After an outage at once: they have aged meanwhile.
            changed = link.changed() => match changed {
                Ok(()) if link.borrow_and_update().is_up() => {}
                Ok(()) => continue,
                Err(_gone) => return,
            },
        }
        let wait = match shared.write(|_| true).await {
            Ok(()) => period,
            Err(error) => {
                tracing::warn!(%error, "claims were not renewed");
                period / 4
            }
        };
        next = Instant::now() + wait;
    }
}

async fn watch(shared: Arc<Shared>, end: CancellationToken) {
    let stream = shared.names.bucket_stream(Bucket::Live);
    let filter = shared.names.key_subject(Bucket::Live, "claim.*");
    let mut consumer = Ordered::new(
        Arc::clone(&shared.wire),
        stream,
        Some(filter),
        Start::LastPerSubject,
    );
    let watching = async {
        while let Some(delivery) = consumer.next().await {
            match delivery {
                Delivery::Made {
                    start: Start::From(next),
                    info,
                    ..
                } if info.state.last_seq + 1 < next => {
                    // The bucket was made anew; the next renewal finds out what that means for us.
                    consumer.restart(Start::LastPerSubject);
                }
                Delivery::Made { .. } | Delivery::Lost { .. } => {}
                Delivery::Message { message, .. } => shared.see(message).await,
            }
        }
    };
    tokio::select! {
        () = end.cancelled() => {}
        () = watching => {}
    }
}
