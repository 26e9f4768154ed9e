//! A member's sign of life: its record in the LIVE bucket, renewed from a thread and over a connection of its own.
//!
//! A storm of logins may keep every core and the main connection busy for longer than a member may stand still. That must not
//! read as death, so nothing of this waits for the rest of the process. The other way round, a process whose main part hangs
//! must not read as alive: the thread says so in the record ([`Beat`]).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use mailbell_core::{
    sharding::renewal::{Answer, Ask, Found, Renewal, Step},
    timing::Timing,
};
use mailbell_proto::bus::v1::{DrainRequest, Member};
use prost::Message as _;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Bus, BusError, BusOptions, kv, names::Bucket, patience, state::Cas};

/// News that wait for their reader. A reader that is so far behind is stalled, and judges nobody anyway.
const WAITING: usize = 16;
/// How long a last word may take.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What the thread tells.
#[derive(Debug)]
pub(crate) enum News {
    /// The record was written.
    Renewed { at: Instant },
    /// It was not, or what others wrote could not be read.
    Failed,
    /// All records, asked for at `asked`.
    Members {
        asked: Instant,
        members: Vec<(Member, u64)>,
    },
    /// Somebody asks this member to drain, or no longer to.
    Drain(bool),
    /// Another process runs under this name.
    Replaced,
}

/// The record, and when the main part of the process last answered.
#[derive(Debug)]
struct Shared {
    record: Mutex<Member>,
    started: Instant,
    /// Milliseconds since `started`.
    beat: AtomicU64,
    renew_now: Notify,
    leaving: AtomicBool,
    left: Notify,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Member> {
        // Nothing that holds the lock can leave it half changed.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running membership. It ends when dropped; its record then ages out.
#[derive(Debug)]
pub(crate) struct Membership {
    shared: Arc<Shared>,
    news: mpsc::Receiver<News>,
    _end: DropGuard,
}

impl Membership {
    /// Starts the thread.
    pub(crate) fn start(bus: &Bus, record: Member) -> Result<Self, BusError> {
        let shared = Arc::new(Shared {
            record: Mutex::new(record),
            started: Instant::now(),
            beat: AtomicU64::new(0),
            renew_now: Notify::new(),
            leaving: AtomicBool::new(false),
            left: Notify::new(),
        });
        let (tx, news) = mpsc::channel(WAITING);
        let end = CancellationToken::new();
        let mut options = bus.inner.options.clone();
        options.name = format!("{} membership", options.name);
        options.metrics = options.metrics.of_membership();
        let timing = *bus.timing();
        let thread = Thread {
            shared: Arc::clone(&shared),
            news: tx,
            options,
            timing,
        };
        let stop = end.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| {
                BusError::Options(format!("no runtime for the membership: {error}"))
            })?;
        std::thread::Builder::new()
            .name("membership".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        // The last word is waited for by who ends it.
                        biased;
                        () = stop.cancelled() => {}
                        () = thread.run() => {}
                    }
                });
            })
            .map_err(|error| BusError::Options(format!("no thread for the membership: {error}")))?;
        Ok(Self {
            shared,
            news,
            _end: end.drop_guard(),
        })
    }

    /// The next news; never, once the thread has ended. Cancel-safe.
    pub(crate) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    /// The main part of the process answers, and NATS answers it.
    pub(crate) fn beat(&self) {
        let millis = self.shared.started.elapsed().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.shared.beat.store(millis, Ordering::Relaxed);
    }

    /// Changes what the record says with its next renewal.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Member)) {
        change(&mut self.shared.record());
    }

    /// Renews it at once.
    pub(crate) fn renew_now(&self) {
        self.shared.renew_now.notify_one();
    }

    /// Says that the member has ended in order, and waits until that is written, or a little while.
    pub(crate) async fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Release);
        self.shared.renew_now.notify_one();
        let _ = timeout(LAST_WORD, self.shared.left.notified()).await;
    }
}

struct Thread {
    shared: Arc<Shared>,
    news: mpsc::Sender<News>,
    options: BusOptions,
    timing: Timing,
}

impl Thread {
    async fn run(self) {
        let bus = self.connect().await;
        bus.wire().is_light();
        let period = self.timing.member_renew;
        let mut renewal = Renewal::default();
        let mut asked_to_drain = None;
        loop {
            let begun = Instant::now();
            let leaving = self.shared.leaving.load(Ordering::Acquire);
            match timeout(period, self.renew(&bus, &mut renewal, leaving)).await {
                Ok(Ok(true)) => {
                    bus.wire().all_is_well();
                    self.tell(News::Renewed { at: begun });
                    if leaving {
                        self.shared.left.notify_one();
                        return;
                    }
                    self.look_around(&bus, &mut asked_to_drain).await;
                }
                Ok(Ok(false)) => {
                    self.tell(News::Replaced);
                    return;
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the membership was not renewed");
                    self.tell(News::Failed);
                    self.leave(&bus).await;
                }
                Err(_elapsed) => {
                    tracing::debug!("the membership was not renewed in time");
                    self.tell(News::Failed);
                    self.leave(&bus).await;
                }
            }
            tokio::select! {
                // Whichever is first; nothing is held by either.
                biased;
                () = self.shared.renew_now.notified() => {}
                () = sleep_until(begun + period) => {}
            }
        }
    }

    /// A renewal failed. The others take this member for dead soon, so another server is tried at once, and the next renewal has
    /// a connection.
    async fn leave(&self, bus: &Bus) {
        let elsewhere = async {
            bus.wire()
                .reconnect("the membership cannot be renewed")
                .await;
            bus.wire().wait_up().await
        };
        let _ = timeout(self.timing.member_renew, elsewhere).await;
    }

    async fn connect(&self) -> Bus {
        let mut backoff = patience();
        loop {
            match Bus::connect(self.options.clone()).await {
                Ok(bus) => return bus,
                Err(error) => {
                    tracing::warn!(%error, "the membership cannot be announced yet");
                    self.tell(News::Failed);
                }
            }
            let wait = backoff.next(&mut rand::rng());
            tokio::time::sleep(wait).await;
        }
    }

    fn tell(&self, news: News) {
        // A reader that does not keep up has been stalled; missing a renewal, it starts its count anew.
        let _ = self.news.try_send(news);
    }

    fn record(&self, leaving: bool) -> Member {
        let beat = Duration::from_millis(self.shared.beat.load(Ordering::Relaxed));
        let silent = self.shared.started.elapsed().saturating_sub(beat);
        let renewed = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let mut record = self.shared.record();
        let stalled = silent >= self.timing.member_dead && !leaving;
        if stalled && !record.stalled {
            tracing::error!(
                seconds = silent.as_secs(),
                "this watcher does not answer itself: it tells the others that it counts as dead"
            );
        }
        record.stalled = stalled;
        record.left = leaving;
        if leaving {
            // What it last counted is of before its end.
            record.load = None;
        }
        record.renewed_ms = i64::try_from(renewed.as_millis()).unwrap_or(i64::MAX);
        record.clone()
    }

    /// Writes the record over its last revision; `false`: another process runs under this name.
    async fn renew(
        &self,
        bus: &Bus,
        renewal: &mut Renewal,
        leaving: bool,
    ) -> Result<bool, BusError> {
        let record = self.record(leaving);
        let key = member_key(&record.id);
        let mut step = Step::Ask(renewal.begin());
        loop {
            let ask = match step {
                Step::Ask(ask) => ask,
                Step::Renewed => return Ok(true),
                Step::Replaced => return Ok(false),
            };
            step = renewal.on(ask_leader(bus, &key, &record, ask).await?);
        }
    }

    /// Reads what the others wrote, and whether somebody asks this member to drain.
    async fn look_around(&self, bus: &Bus, asked_to_drain: &mut Option<u64>) {
        let asked = Instant::now();
        let read = async {
            let members = bus.kv_all(Bucket::Live, "member.*").await?;
            let key = {
                let record = self.shared.record();
                drain_key(&record.id)
            };
            let request = bus.kv_get(Bucket::Live, &key).await?;
            Ok::<_, BusError>((members, request))
        };
        match timeout(self.timing.member_renew, read).await {
            Ok(Ok((found, request))) => {
                let mut members = Vec::new();
                for message in found {
                    match Member::decode(message.payload) {
                        Ok(member) => members.push((member, message.sequence)),
                        Err(_) => tracing::warn!("the record of a member cannot be read"),
                    }
                }
                self.tell(News::Members { asked, members });
                if let Some(request) = request
                    && *asked_to_drain != Some(request.sequence)
                {
                    *asked_to_drain = Some(request.sequence);
                    self.on_request(request.payload);
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "the members could not be read"),
            Err(_elapsed) => tracing::debug!("the members could not be read in time"),
        }
    }

    fn on_request(&self, payload: bytes::Bytes) {
        let Ok(request) = DrainRequest::decode(payload) else {
            return tracing::warn!("a request to drain cannot be read");
        };
        let ours = self.shared.record().incarnation.clone();
        if request.incarnation.is_empty() || request.incarnation == ours {
            self.tell(News::Drain(request.drain));
        }
    }
}

async fn ask_leader(bus: &Bus, key: &str, record: &Member, ask: Ask) -> Result<Answer, BusError> {
    match ask {
        Ask::Last => {
            let last = bus.kv_last(Bucket::Live, key).await?;
            Ok(Answer::Last(last.map(|last| last.sequence)))
        }
        Ask::Write { over } => {
            let subject = bus.names().key_subject(Bucket::Live, key);
            let payload = record.encode_to_vec().into();
            match kv::put_expecting(bus.wire(), &subject, payload, over).await? {
                Cas::Stored(revision) => Ok(Answer::Written(Some(revision))),
                Cas::Conflict => Ok(Answer::Written(None)),
            }
        }
        Ask::Value => {
            let there = bus.kv_get(Bucket::Live, key).await?;
            let found = there.map(|there| Found {
                revision: there.sequence,
                // One that cannot be read is no other process.
                ours: Member::decode(there.payload)
                    .map_or(true, |other| other.incarnation == record.incarnation),
            });
            Ok(Answer::Value(found))
        }
    }
}

fn member_key(member: &str) -> String {
    format!("member.{member}")
}

fn drain_key(member: &str) -> String {
    format!("drain.{member}")
}
