//! The service `Shards`, and what the whole process knows of how partitions are shared.
//!
//! Members are read as often as they renew their records, since who reads more seldom may judge nobody; claims, of which there
//! are a thousand, every fifth time, and both whenever somebody asks.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mailbell_bus::{Bus, BusError};
use mailbell_core::{
    ids::{AccountId, MemberId},
    sharding::{
        Boards,
        board::{Board, MemberState, Row},
    },
};
use mailbell_proto::admin::v1::{self as api, shards_server};
use mailbell_runtime::drain::DrainHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Request, Response, Status};

use crate::{Error, convert, gauges::ShardGauges, metrics::Metrics, mirror::Mirror};

/// With members every 3 s: claims, and with them the gauges, every 15 s.
const CLAIMS_EVERY: u32 = 5;

/// How partitions are shared, as this process knows. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Lookout {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bus: Bus,
    mirror: Mirror,
    gauges: ShardGauges,
    start: Instant,
    boards: Mutex<Boards>,
    /// One reads at a time, so that what was read first is told first. When everything was last asked for.
    reading: tokio::sync::Mutex<Option<Instant>>,
}

impl Lookout {
    pub(crate) fn new(bus: Bus, mirror: Mirror, gauges: ShardGauges) -> Self {
        let boards = Mutex::new(Boards::new(bus.timing()));
        Self {
            inner: Arc::new(Inner {
                bus,
                mirror,
                gauges,
                start: Instant::now(),
                boards,
                reading: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Reads until the drain begins.
    pub(crate) async fn run(&self, mut drain: DrainHandle) {
        let mut tick = tokio::time::interval(self.inner.bus.timing().member_renew);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut round, mut failing) = (0, false);
        loop {
            tokio::select! {
                biased;
                // First: nobody reads the gauges any more.
                _ = drain.signaled() => return,
                _ = tick.tick() => {}
            }
            let whole = round % CLAIMS_EVERY == 0;
            let read = async {
                let mut reading = self.inner.reading.lock().await;
                match whole {
                    true => self.read_all(&mut reading).await,
                    false => self.read_members().await,
                }
            };
            let result = tokio::select! {
                biased;
                // First: a read is not worth waiting for.
                _ = drain.signaled() => return,
                result = read => result,
            };
            let steady = self.boards().is_steady(self.now());
            self.inner.gauges.show_steady(steady);
            match result {
                Ok(()) => {
                    round += 1;
                    failing = false;
                    // Before that nobody would be missed.
                    if whole && self.inner.mirror.is_loaded() {
                        self.inner.gauges.show(&self.board());
                    }
                }
                Err(error) if !failing => {
                    tracing::warn!(%error, "cannot read how partitions are shared; it is tried again");
                    failing = true;
                }
                Err(_) => {}
            }
        }
    }

    fn boards(&self) -> MutexGuard<'_, Boards> {
        // Nothing that holds the lock can leave it half changed.
        let boards = self.inner.boards.lock();
        boards.unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.inner.start.elapsed()
    }

    async fn read_members(&self) -> Result<(), BusError> {
        let asked = self.now();
        let members = match self.inner.bus.live().members().await {
            Ok(members) => members,
            Err(error) => {
                self.boards().read_failed();
                return Err(error);
            }
        };
        let members = members
            .into_iter()
            .map(|member| (member.value, member.revision));
        self.boards()
            .read_members(asked, self.now(), members.collect());
        Ok(())
    }

    async fn read_all(&self, reading: &mut Option<Instant>) -> Result<(), BusError> {
        let asked = Instant::now();
        self.read_members().await?;
        let claims = match self.inner.bus.live().claims().await {
            Ok(claims) => claims,
            Err(error) => {
                self.boards().read_failed();
                return Err(error);
            }
        };
        let claims = claims
            .into_iter()
            .map(|(partition, claim)| (partition, claim.value, claim.revision));
        self.boards().read_claims(self.now(), claims.collect());
        *reading = Some(asked);
        Ok(())
    }

    /// Reads everything, unless somebody has just done so since this was called.
    async fn look(&self) -> Result<Board, BusError> {
        let called = Instant::now();
        let mut reading = self.inner.reading.lock().await;
        if reading.is_none_or(|asked| asked < called) {
            self.read_all(&mut reading).await?;
        }
        Ok(self.board())
    }

    fn board(&self) -> Board {
        let accounts = self.inner.mirror.per_partition();
        self.boards().board(self.now(), &accounts)
    }

    /// For how long nobody has watched this account, once that is for sure: less may be a hand-over.
    pub(crate) fn unwatched_for(&self, account: &AccountId) -> Option<Duration> {
        let unowned = self.boards().unowned_for(account.partition());
        unowned.filter(|unowned| *unowned >= self.inner.bus.timing().member_dead)
    }
}

pub(crate) struct Shards {
    lookout: Lookout,
    metrics: Metrics,
}

impl Shards {
    pub(crate) fn new(lookout: Lookout, metrics: Metrics) -> Self {
        Self { lookout, metrics }
    }

    async fn get(&self) -> Result<api::GetShardsResponse, Error> {
        if !self.lookout.inner.mirror.is_loaded() {
            return Err(Error::Unavailable(
                "the accounts are still being read; try again".to_owned(),
            ));
        }
        Ok(convert::board(self.lookout.look().await?))
    }

    async fn drain(
        &self,
        request: api::DrainMemberRequest,
    ) -> Result<api::DrainMemberResponse, Error> {
        let id: MemberId = request
            .member
            .parse()
            .map_err(|error| Error::Invalid(format!("member: {error}.")))?;
        let board = self.lookout.look().await?;
        let row = board
            .members
            .iter()
            .find(|row| row.record.id == id.as_str() && takes_requests(row))
            .ok_or_else(|| Error::NotFound(no_such(&id, &board.members)))?;
        let drain = !request.undo;
        let changed = row.record.draining != drain;
        let incarnation = &row.record.incarnation;
        // Also where nothing changes: what was asked for last may be on its way still.
        let live = self.lookout.inner.bus.live();
        live.request_drain(&id, incarnation, drain).await?;
        tracing::info!(member = %id, drain, "a watcher was asked to drain, or no longer to");
        Ok(api::DrainMemberResponse {
            incarnation: incarnation.clone(),
            changed,
            owned: convert::count(row.owned),
        })
    }
}

/// One that has announced itself and has not ended. One that is stalled may come back.
fn takes_requests(row: &Row) -> bool {
    !matches!(
        row.state,
        MemberState::Dead | MemberState::Left | MemberState::Unannounced
    )
}

fn no_such(id: &MemberId, members: &[Row]) -> String {
    let live: Vec<&str> = members
        .iter()
        .filter(|row| takes_requests(row))
        .map(|row| row.record.id.as_str())
        .collect();
    let known = members.iter().find(|row| row.record.id == id.as_str());
    let what = match known.map(|row| row.state) {
        Some(MemberState::Left) => format!("the watcher {id} has ended"),
        Some(MemberState::Dead) => format!("the watcher {id} is dead"),
        Some(_) => format!("the watcher {id} has not announced itself"),
        None => format!("there is no watcher {id}"),
    };
    match live.is_empty() {
        true => format!("{what}; no watcher has announced itself"),
        false => format!("{what}; those that live: {}", live.join(", ")),
    }
}

#[tonic::async_trait]
impl shards_server::Shards for Shards {
    async fn get_shards(
        &self,
        _request: Request<api::GetShardsRequest>,
    ) -> Result<Response<api::GetShardsResponse>, Status> {
        self.metrics.call("GetShards", self.get()).await
    }

    async fn drain_member(
        &self,
        request: Request<api::DrainMemberRequest>,
    ) -> Result<Response<api::DrainMemberResponse>, Status> {
        let work = self.drain(request.into_inner());
        self.metrics.call("DrainMember", work).await
    }
}
