//! Which partitions this process owns: drives [`Sharding`] on the LIVE bucket.
//!
//! What decides is in `core`; here records are read, written and watched, and time passes.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mailbell_core::{
    ids::{LogId, OwnerEpoch, Partition, Position},
    schema,
    sharding::{Config, Effect, Input, Lost, Pace, Sharding, WEIGHT},
};
use mailbell_proto::bus::v1::{Member, MemberLoad};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::DropGuard;

use self::io::{Done, Told};
use crate::{
    Bus, BusError, Link,
    membership::{Membership, News},
    names::{Bucket, Names},
    wire::Wire,
};

mod io;

/// The schema of [`Member`] that this release writes.
const MEMBER_SCHEMA: u32 = 1;
/// Reads and writes of claims that are on their way at once.
const AT_ONCE: usize = 256;
/// How often what is due is looked for.
const TICK: Duration = Duration::from_millis(200);
/// Claims that were told and wait to be seen. Behind it the server waits.
const WAITING: usize = 256;

pub use mailbell_core::sharding::Before;

/// Who a watcher is among the others.
#[derive(Debug, Clone, PartialEq)]
pub struct ShareOptions {
    /// A pod, or a locked state directory: letters, digits, `-` and `_`.
    pub member: String,
    /// Random a start.
    pub incarnation: String,
    /// Its share, relative to the others'.
    pub weight: u32,
    /// The most partitions that it takes, until [`Shards::limit`] says otherwise; 0: no limit.
    pub most_partitions: u32,
    /// The release, for people.
    pub release: String,
    /// The newest schema that it reads and writes.
    pub writes: u32,
    /// Members with the same name here share one address towards mail servers.
    pub egress: String,
    /// How fast partitions are given away.
    pub pace: Pace,
}

impl ShareOptions {
    /// The defaults for this member.
    #[must_use]
    pub fn new(member: impl Into<String>, incarnation: impl Into<String>) -> Self {
        Self {
            member: member.into(),
            incarnation: incarnation.into(),
            weight: WEIGHT,
            most_partitions: 0,
            release: String::new(),
            writes: schema::NEWEST,
            egress: String::new(),
            pace: Pace::default(),
        }
    }
}

/// What is to be done about a partition, or with this process.
#[derive(Debug, Clone, PartialEq)]
pub enum Share {
    /// It is ours: load what is known, fold in the log after `before`, begin the sessions, tell [`Shards::serving`].
    Load {
        /// Which.
        partition: Partition,
        /// By which ownership; higher than any before, also if the bucket was lost.
        epoch: OwnerEpoch,
        /// What the owner before left. `None`: nothing is known, so the checkpoints' own positions count.
        before: Option<Before>,
    },
    /// It is ours by another claim, and nobody had it in between: what runs goes on.
    Renewed {
        /// Which.
        partition: Partition,
        /// By which ownership from now on.
        epoch: OwnerEpoch,
    },
    /// It is given away: end its sessions in order, store what they know, tell [`Shards::flushed`] and [`Shards::finished`].
    Finish {
        /// Which.
        partition: Partition,
        /// Of which ownership.
        epoch: OwnerEpoch,
    },
    /// It is somebody else's: its sessions must stop at once, and nothing may be appended for it.
    Stop {
        /// Which.
        partition: Partition,
        /// Of which ownership.
        epoch: OwnerEpoch,
    },
    /// It was given away.
    Released {
        /// Which.
        partition: Partition,
    },
    /// Another process runs under this member's name.
    Replaced,
}

/// This process' part in sharing the partitions. Works only while [`Shards::next`] is awaited.
#[derive(Debug)]
pub struct Shards {
    /// A handle to the bus too.
    _bus: Bus,
    wire: Arc<Wire>,
    names: Names,
    machine: Sharding,
    started: Instant,
    membership: Membership,
    claims: mpsc::Receiver<Told>,
    link: watch::Receiver<Link>,
    io: JoinSet<Done>,
    /// Effects that wait for one of [`AT_ONCE`].
    queued: VecDeque<Effect>,
    ready: VecDeque<Share>,
    tick: Interval,
    _end: DropGuard,
}

impl Bus {
    /// Joins those who share the partitions.
    ///
    /// # Errors
    /// [`BusError::Options`] for a name that cannot be one, or when there is no thread to be had.
    pub fn share(&self, options: ShareOptions) -> Result<Shards, BusError> {
        let usable = |name: &str| {
            !name.is_empty()
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        if !usable(&options.member) || !usable(&options.incarnation) {
            return Err(BusError::Options(
                "a member's name has letters, digits, - and _ only".to_owned(),
            ));
        }
        let started = Instant::now();
        let record = Member {
            schema: MEMBER_SCHEMA,
            id: options.member.clone(),
            incarnation: options.incarnation.clone(),
            weight: options.weight,
            most_partitions: options.most_partitions,
            writes: options.writes,
            release: options.release.clone(),
            egress: options.egress.clone(),
            started_ms: i64::try_from(unix_now().as_millis()).unwrap_or(i64::MAX),
            ..Member::default()
        };
        let membership = Membership::start(self, record)?;
        let mut config = Config::new(&options.member, &options.incarnation, *self.timing());
        config.pace = options.pace;
        let end = self.wire().closed().child_token();
        let (tx, claims) = mpsc::channel(WAITING);
        tokio::spawn(io::watch(
            Arc::clone(&self.inner.wire),
            self.names().clone(),
            tx,
            end.clone(),
        ));
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Shards {
            _bus: self.clone(),
            wire: Arc::clone(&self.inner.wire),
            names: self.names().clone(),
            machine: Sharding::new(config),
            started,
            membership,
            claims,
            link: self.wire().link(),
            io: JoinSet::new(),
            queued: VecDeque::new(),
            ready: VecDeque::new(),
            tick,
            _end: end.drop_guard(),
        })
    }
}

fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

impl Shards {
    /// What is to be done next; `None` once the bus is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Share> {
        loop {
            if let Some(share) = self.ready.pop_front() {
                return Some(share);
            }
            tokio::select! {
                // In order of urgency: what was lost ends what runs; answers free what waits for them; time comes last. All are
                // cancel-safe.
                biased;
                () = self.wire.closed().cancelled() => return None,
                told = self.claims.recv() => {
                    let told = told?;
                    self.on_told(told);
                }
                changed = self.link.changed() => {
                    changed.ok()?;
                    if self.link.borrow_and_update().is_up() {
                        self.give(Input::Linked);
                    }
                }
                Some(done) = self.io.join_next() => self.on_done(done.ok()),
                news = self.membership.next() => self.on_news(news),
                _ = self.tick.tick() => {
                    if self.link.borrow().is_up() {
                        self.membership.beat();
                    }
                    self.tell_stages();
                    self.give(Input::Tick);
                }
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn give(&mut self, input: Input) {
        let effects = self.machine.handle(self.now(), unix_now().as_secs(), input);
        for effect in effects {
            match effect {
                Effect::Write { .. } | Effect::Read { .. } => self.queued.push_back(effect),
                Effect::Load {
                    partition,
                    epoch,
                    before,
                } => self.ready.push_back(Share::Load {
                    partition,
                    epoch,
                    before,
                }),
                Effect::Renewed { partition, epoch } => {
                    self.ready.push_back(Share::Renewed { partition, epoch });
                }
                Effect::Finish { partition, epoch } => {
                    self.ready.push_back(Share::Finish { partition, epoch });
                }
                Effect::Stop {
                    partition,
                    epoch,
                    lost,
                } => {
                    self.wire.metrics().claims_lost.inc();
                    match lost {
                        Lost::Taken(member) => {
                            tracing::warn!(%partition, epoch, %member, "a partition was lost");
                        }
                        Lost::Expired => {
                            tracing::warn!(%partition, epoch, "a claim aged out: others may have had the partition");
                        }
                    }
                    self.ready.push_back(Share::Stop { partition, epoch });
                }
                Effect::Released { partition } => {
                    self.ready.push_back(Share::Released { partition });
                }
            }
        }
        self.begin();
    }

    /// Begins what waits, as much as may run at once.
    fn begin(&mut self) {
        while self.io.len() < AT_ONCE
            && let Some(effect) = self.queued.pop_front()
        {
            let wire = Arc::clone(&self.wire);
            match effect {
                Effect::Write {
                    partition,
                    claim,
                    revision,
                } => {
                    let subject = self.names.key_subject(Bucket::Live, &io::key(partition));
                    self.io
                        .spawn(io::write(wire, subject, partition, claim, revision));
                }
                Effect::Read { partition } => {
                    let subject = self.names.key_subject(Bucket::Live, &io::key(partition));
                    let stream = self.names.bucket_stream(Bucket::Live);
                    self.io.spawn(io::read(wire, stream, subject, partition));
                }
                _ => {}
            }
        }
    }

    fn on_done(&mut self, done: Option<Done>) {
        match done {
            Some(Done::Wrote {
                partition,
                claim,
                written,
            }) => self.give(Input::Wrote {
                partition,
                claim,
                written,
            }),
            Some(Done::Read { partition, found }) => self.give(Input::Read { partition, found }),
            // Cancelled: the process ends.
            None => self.begin(),
        }
    }

    fn on_told(&mut self, told: Told) {
        match told {
            Told::Restarted => self.give(Input::ClaimsRestarted),
            Told::Loaded => self.give(Input::ClaimsLoaded),
            Told::Claim(message) => {
                let Some(partition) = io::partition_of(&self.names, &message.subject) else {
                    return;
                };
                match io::decode(&message) {
                    Ok(claim) => self.give(Input::Claim {
                        partition,
                        revision: message.sequence,
                        claim,
                    }),
                    Err(()) => tracing::warn!(%partition, "a claim cannot be read"),
                }
            }
        }
    }

    fn on_news(&mut self, news: News) {
        match news {
            News::Renewed { at } => {
                tracing::trace!(late = ?at.elapsed(), "renewed");
                self.give(Input::Renewed);
            }
            News::Failed => self.give(Input::RenewalFailed),
            News::Members { asked, members } => {
                let asked = asked.saturating_duration_since(self.started);
                self.give(Input::Members { asked, members });
            }
            News::Drain(drain) => {
                tracing::info!(drain, "asked to give partitions away, or no longer to");
                self.drain(drain);
            }
            News::Replaced => self.ready.push_back(Share::Replaced),
        }
    }

    fn tell_stages(&self) {
        let (serving, loading, handing_over) = self.machine.stages();
        let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
        let draining = self.machine.is_draining();
        self.membership.change(|member| {
            member.draining = draining;
            let load = member.load.get_or_insert_default();
            load.serving = count(serving);
            load.loading = count(loading);
            load.handing_over = count(handing_over);
        });
    }

    /// The sessions of a partition, of so many accounts, have begun.
    pub fn serving(&mut self, partition: Partition, epoch: OwnerEpoch, accounts: u32) {
        self.give(Input::Serving {
            partition,
            epoch,
            accounts,
        });
    }

    /// Every checkpoint of a partition covers the log up to `position`; it has so many accounts. Call it after the
    /// checkpoints' acknowledgements. Written with the next renewal or the release.
    pub fn flushed(
        &mut self,
        partition: Partition,
        log_id: LogId,
        position: Position,
        accounts: u32,
    ) {
        self.give(Input::Flushed {
            partition,
            log_id,
            position,
            accounts,
        });
    }

    /// The sessions of a partition that was to be finished have ended, and what they know is stored or given up.
    pub fn finished(&mut self, partition: Partition, epoch: OwnerEpoch) {
        self.give(Input::Finished { partition, epoch });
    }

    /// Gives everything away to others and takes nothing, or no longer so.
    pub fn drain(&mut self, drain: bool) {
        self.give(Input::Drain(drain));
        self.tell_stages();
        self.membership.renew_now();
    }

    /// Gives everything away within this time, also to nobody.
    pub fn leave(&mut self, within: Duration) {
        self.give(Input::Leave(within));
        self.tell_stages();
        self.membership.renew_now();
    }

    /// Says that the member has ended. Nobody then waits for its death.
    pub async fn left(&self) {
        self.membership.leave().await;
    }

    /// What this member has to do. What is counted here as serving, loading and handing over is not taken from it.
    pub fn report(&self, load: MemberLoad) {
        self.membership.change(|member| {
            let old = member.load.unwrap_or_default();
            member.load = Some(MemberLoad {
                serving: old.serving,
                loading: old.loading,
                handing_over: old.handing_over,
                ..load
            });
        });
    }

    /// The most partitions that it takes from now on; 0: no limit.
    pub fn limit(&self, most_partitions: u32) {
        self.membership
            .change(|member| member.most_partitions = most_partitions);
        self.membership.renew_now();
    }

    /// How many accounts a partition of ours has now: it is given away at the pace of these. Written with the next renewal.
    pub fn count_accounts(&mut self, partition: Partition, accounts: u32) {
        self.machine.count_accounts(partition, accounts);
    }

    /// How many of the accounts here could log in a second if all members took part: see [`Sharding::set_logins`].
    pub fn set_logins(&mut self, a_second: f64) {
        self.machine.set_logins(a_second);
    }

    /// The machine, for what is to be shown.
    #[must_use]
    pub fn sharding(&self) -> &Sharding {
        &self.machine
    }

    /// Whether this member has its place among the others, and has taken all that it may take now.
    #[must_use]
    pub fn has_settled(&self) -> bool {
        self.queued.is_empty() && self.machine.has_settled(self.now())
    }

    /// How many partitions are ours, in whatever stage.
    #[must_use]
    pub fn held(&self) -> usize {
        self.machine.claims().held()
    }
}
