//! The watcher as a component: it starts, keeps what it owns, and hands everything over when it drains.

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use mailbell_bus::{
    Bus, Claims, Lost, LostClaims, LostReason, OwnerService, ServeOptions,
    state::{Change, Watch},
};
use mailbell_core::{
    backoff::Backoff,
    ids::{AccountId, Group, OwnerEpoch, Partition},
    seal::KeyRing,
};
use mailbell_proto::bus::v1::AccountRecord;
use mailbell_runtime::{
    drain::{DrainHandle, Draining},
    health::Health,
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at},
};

use crate::{
    Error, Metrics, Options,
    accounts::Accounts,
    acquire::{Acquired, acquire},
    driver::{Context, Dial},
    flush::flush,
    gate::Gate,
    ledger::BusLedger,
    registry::Registry,
    requests::Answers,
};

/// The name of the health check.
const CHECK: &str = "partitions";
/// The loop beats at least this often, or the process is stuck.
const BEAT: Duration = Duration::from_secs(30);
/// Of the time that a drain has, this part is kept for the last writes, once sessions have ended or were given up.
const RELEASE_PART: u32 = 4;
/// How often a drain says how far it is.
const PROGRESS: Duration = Duration::from_secs(1);

/// Watches the mailboxes of the partitions that it owns.
pub struct Watcher {
    options: Options,
    bus: Bus,
    imap: mailbell_imap::Settings,
    ring: KeyRing,
    metrics: Metrics,
    health: Health,
    registry: Arc<Registry>,
    ready: watch::Sender<bool>,
}

/// A look at a running watcher. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    registry: Arc<Registry>,
    ready: watch::Receiver<bool>,
}

/// How far a watcher is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Partitions that are owned and whose sessions have begun.
    pub partitions: usize,
    /// Sessions.
    pub sessions: usize,
    /// Those of them that watch.
    pub watching: usize,
}

impl Handle {
    /// Waits until the watcher owns partitions and answers requests for them; `false`: it ended before that.
    pub async fn ready(&mut self) -> bool {
        self.ready.wait_for(|ready| *ready).await.is_ok()
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let (sessions, watching) = self.registry.count();
        Progress {
            partitions: self.registry.partitions().len(),
            sessions,
            watching,
        }
    }
}

impl Watcher {
    /// A watcher that does nothing yet. Names its health check.
    ///
    /// # Errors
    /// [`Error::NoKey`].
    pub fn new(
        options: Options,
        bus: Bus,
        imap: mailbell_imap::Settings,
        ring: KeyRing,
        metrics: Metrics,
        health: Health,
    ) -> Result<(Self, Handle), Error> {
        if ring.newest().is_none() {
            return Err(Error::NoKey);
        }
        health.set(CHECK, Err("starting"));
        let registry = Arc::new(Registry::default());
        let (ready, is_ready) = watch::channel(false);
        let handle = Handle {
            registry: Arc::clone(&registry),
            ready: is_ready,
        };
        let watcher = Self {
            options,
            bus,
            imap,
            ring,
            metrics,
            health,
            registry,
            ready,
        };
        Ok((watcher, handle))
    }

    /// Takes what there is to take and watches it until `drain` begins; then hands over.
    ///
    /// # Errors
    /// What does not pass by itself: [`Error`].
    pub async fn run(self, mut drain: DrainHandle) -> Result<(), Error> {
        let mut running = tokio::select! {
            // No arm holds anything that the other would lose: what was claimed ages out, or is ours again at the next start.
            biased;
            _ = drain.signaled() => return Ok(()),
            running = Running::start(self) => running?,
        };
        match running.keep(&mut drain).await {
            Ok(draining) => {
                running.hand_over(draining).await;
                Ok(())
            }
            Err(error) => {
                // Whatever runs is not ours to finish.
                running.registry.set_draining();
                running.accounts.abort().await;
                Err(error)
            }
        }
    }
}

/// A watcher at work: the one owner of everything that changes hands.
struct Running {
    options: Options,
    ledger: BusLedger,
    accounts: Accounts,
    registry: Arc<Registry>,
    claims: Claims,
    lost: LostClaims,
    service: Arc<OwnerService>,
    changes: Watch<AccountId, AccountRecord>,
    acquiring: Option<JoinHandle<Acquired>>,
    /// Claims of ours that aged out while NATS was away. Their sessions go on until somebody else has them.
    expired: HashMap<Partition, OwnerEpoch>,
    flushing: Option<JoinHandle<()>>,
    health: Health,
    ready: Arc<watch::Sender<bool>>,
}

impl Running {
    async fn start(watcher: Watcher) -> Result<Self, Error> {
        let Watcher {
            options,
            bus,
            imap,
            ring,
            metrics,
            health,
            registry,
            ready,
        } = watcher;
        let logs = patiently(|| bus.logs()).await?;
        if let Some(key) = ring.newest() {
            // Offered to whoever seals a new password.
            let (keys, record) = (bus.sealing_keys(), key.to_record());
            patiently(|| keys.put(&record)).await?;
        }
        let (claims, lost) =
            patiently(|| bus.claims(&options.member, &options.incarnation)).await?;
        let ledger = BusLedger {
            bus: bus.clone(),
            logs,
        };
        let context = Arc::new(Context {
            ledger: Box::new(ledger.clone()),
            connect: Box::new(Dial),
            imap,
            ring,
            gate: Gate::new(
                options.connects_per_second,
                options.connects_per_host,
                options.handshakes,
            ),
            limits: options.limits,
            timing: *bus.timing(),
            quiet: options.quiet,
            page_time: options.page_time,
            requests: options.requests,
            metrics,
            started: Instant::now(),
            #[cfg(test)]
            panics: std::sync::atomic::AtomicU32::new(0),
        });
        let answers = Answers {
            context: Arc::clone(&context),
            registry: Arc::clone(&registry),
            checks: Arc::new(Semaphore::new(options.checks.max(1))),
        };
        let service = bus.serve(ServeOptions::default(), move |account, request| {
            answers.clone().answer(account, request)
        });
        let mut running = Self {
            accounts: Accounts::new(context, Arc::clone(&registry)),
            changes: bus.accounts().watch(Group::all()),
            options,
            ledger,
            registry,
            claims,
            lost,
            service: Arc::new(service),
            acquiring: None,
            expired: HashMap::new(),
            flushing: None,
            health,
            ready: Arc::new(ready),
        };
        running.load_accounts().await?;
        Ok(running)
    }

    /// Reads every account record once. Sessions begin only when partitions are ours.
    async fn load_accounts(&mut self) -> Result<(), Error> {
        let mut missing: HashSet<Group> = Group::all().collect();
        while !missing.is_empty() {
            let change = self.changes.next().await.ok_or(Error::Closed)?;
            if let Change::Loaded { group } = &change {
                missing.remove(group);
            }
            self.on_change(change);
        }
        Ok(())
    }

    /// Keeps what it owns until the drain begins.
    async fn keep(&mut self, drain: &mut DrainHandle) -> Result<Draining, Error> {
        let heartbeat = self.health.heartbeat("watcher", BEAT);
        let mut retake = interval(self.options.retake);
        retake.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut flushes = interval(self.ledger.bus.timing().claim_refresh);
        flushes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let quarantine = self.accounts.quarantine_ends();
            tokio::select! {
                // In order of urgency: after a loss nothing may be appended; sessions that ended free memory before new ones
                // take it; the timers come last, since all they do can wait. All arms are cancel-safe: what they wait for
                // stays where it is.
                biased;
                draining = drain.signaled() => return Ok(draining),
                lost = self.lost.recv() => self.on_lost(lost.ok_or(Error::Closed)?).await?,
                acquired = finished(&mut self.acquiring) => self.on_acquired(acquired).await,
                ended = self.accounts.ended() => self.accounts.on_ended(ended),
                change = self.changes.next() => self.on_change(change.ok_or(Error::Closed)?),
                () = finished(&mut self.flushing) => {}
                _ = retake.tick() => {
                    heartbeat.beat();
                    self.take_what_is_missing();
                }
                _ = flushes.tick() => self.flush(),
                () = until(quarantine) => self.accounts.end_quarantines(),
            }
        }
    }

    fn on_change(&mut self, change: Change<AccountId, AccountRecord>) {
        match change {
            Change::Put { key, value, .. } => self.accounts.put(key, value),
            Change::Removed { key } => self.accounts.delete(&key),
            Change::Restarted { group } => self.accounts.restarted(group),
            Change::Loaded { group } => self.accounts.loaded(group),
        }
    }

    async fn on_lost(&mut self, lost: Lost) -> Result<(), Error> {
        let Lost {
            partition,
            epoch,
            reason,
        } = lost;
        if reason == LostReason::Expired && self.registry.serves(partition) {
            tracing::debug!(%partition, epoch, "a claim aged out; it is taken again");
            self.expired.insert(partition, epoch);
        } else {
            tracing::warn!(%partition, epoch, ?reason, "a partition was lost");
            self.lose(partition, epoch).await;
        }
        match reason {
            LostReason::Taken { member } if member == self.options.member => {
                Err(Error::Replaced(member))
            }
            _ => Ok(()),
        }
    }

    async fn lose(&mut self, partition: Partition, epoch: OwnerEpoch) {
        self.expired.remove(&partition);
        if self.accounts.lose(partition, epoch) {
            self.service.disown(&[partition]).await;
        }
    }

    fn take_what_is_missing(&mut self) {
        if self.acquiring.is_some() {
            return;
        }
        let missing: Vec<Partition> = Partition::all()
            .filter(|partition| {
                !self.registry.serves(*partition) || self.expired.contains_key(partition)
            })
            .collect();
        if !missing.is_empty() {
            let (ledger, claims) = (self.ledger.clone(), self.claims.clone());
            let expired = self.expired.keys().copied().collect();
            self.acquiring = Some(tokio::spawn(acquire(ledger, claims, missing, expired)));
        }
    }

    async fn on_acquired(&mut self, acquired: Acquired) {
        let Acquired {
            mut partitions,
            known,
            kept,
            foreign,
            failed,
        } = acquired;
        // Some may have been lost while they were loaded.
        partitions.retain(|(partition, epoch)| self.claims.epoch(*partition) == Some(*epoch));
        if !kept.is_empty() {
            tracing::info!(
                partitions = kept.len(),
                "claims that had aged out are ours again"
            );
        }
        for (partition, epoch) in kept {
            self.expired.remove(&partition);
            self.accounts.renew(partition, epoch);
        }
        // Somebody had these in between, or has them now.
        let taken = partitions.iter().map(|(partition, _)| partition);
        let others: Vec<(Partition, OwnerEpoch)> = taken
            .chain(&foreign)
            .filter_map(|partition| Some((*partition, *self.expired.get(partition)?)))
            .collect();
        for (partition, epoch) in others {
            self.lose(partition, epoch).await;
        }
        if !partitions.is_empty() {
            self.accounts.begin(&partitions, known);
            let progress = self.registry.count();
            tracing::info!(
                partitions = partitions.len(),
                sessions = progress.0,
                "partitions were taken"
            );
            tokio::spawn(own(
                Arc::clone(&self.service),
                self.claims.clone(),
                partitions,
                Arc::clone(&self.ready),
            ));
        }
        let state = match self.registry.partitions().len() {
            0 if !foreign.is_empty() => Err("all partitions are held by other watchers"),
            0 => Err("no partition could be claimed"),
            _ => Ok(()),
        };
        self.health.set(CHECK, state);
        if foreign.len() + failed > 0 {
            tracing::debug!(
                foreign = foreign.len(),
                failed,
                "partitions are not ours yet"
            );
        }
    }

    fn flush(&mut self) {
        if self.flushing.is_some() {
            return;
        }
        let (logs, claims) = (self.ledger.logs.clone(), self.claims.clone());
        let registry = Arc::clone(&self.registry);
        self.flushing = Some(tokio::spawn(async move {
            if let Err(error) = flush(&logs, &claims, &registry).await {
                tracing::debug!(%error, "claims could not move on");
            }
        }));
    }

    /// Ends all sessions in order, stores what they know, lets the partitions go.
    async fn hand_over(mut self, draining: Draining) {
        self.registry.set_draining();
        for task in [self.acquiring.take().map(|task| task.abort_handle())]
            .into_iter()
            .flatten()
        {
            task.abort();
        }
        let reserve = draining.window() / RELEASE_PART;
        let patience = draining
            .deadline
            .checked_sub(reserve)
            .unwrap_or(draining.deadline);
        let served = self.registry.partitions();
        // Whoever asks now finds nobody, and tries again.
        if timeout_at(patience, self.service.disown(&served))
            .await
            .is_err()
        {
            tracing::warn!("requests could not be turned away in time");
        }
        let all = self.accounts.running();
        tracing::info!(sessions = all, "handing over");
        self.accounts.hand_over();
        let mut progress = interval(PROGRESS);
        progress.reset();
        while self.accounts.running() > 0 {
            tokio::select! {
                // Whichever comes: no order matters, and nothing is held by an arm.
                ended = self.accounts.ended() => self.accounts.on_ended(ended),
                _ = progress.tick() => {
                    tracing::info!(left = self.accounts.running(), of = all, "handing over");
                }
                () = sleep_until(patience) => break,
            }
        }
        let left = self.accounts.running();
        if left > 0 {
            tracing::warn!(
                left,
                "sessions had not ended in time: whoever takes them reads what they did not store from the log"
            );
        }
        self.accounts.abort().await;
        let release = async {
            if let Err(error) = flush(&self.ledger.logs, &self.claims, &self.registry).await {
                tracing::warn!(%error, "claims could not move on");
            }
            let held: Vec<Partition> = self
                .claims
                .held()
                .into_iter()
                .map(|(partition, _)| partition)
                .collect();
            self.claims.release(&held).await.map(|()| held.len())
        };
        match timeout_at(draining.deadline, release).await {
            Ok(Ok(partitions)) => tracing::info!(partitions, "handed over"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "some claims could not be released; they age out");
            }
            Err(_) => tracing::warn!("claims could not be released in time; they age out"),
        }
    }
}

/// Answers requests for partitions from now on, and says so.
async fn own(
    service: Arc<OwnerService>,
    claims: Claims,
    partitions: Vec<(Partition, OwnerEpoch)>,
    ready: Arc<watch::Sender<bool>>,
) {
    let numbers: Vec<Partition> = partitions.iter().map(|(partition, _)| *partition).collect();
    let mut backoff = patience();
    while let Err(error) = service.own(&numbers).await {
        tracing::debug!(%error, "requests cannot be answered yet");
        let wait = backoff.next(&mut rand::rng());
        sleep(wait).await;
    }
    // What was lost meanwhile is another's to answer for.
    let lost: Vec<Partition> = partitions
        .iter()
        .filter(|(partition, epoch)| claims.epoch(*partition) != Some(*epoch))
        .map(|(partition, _)| *partition)
        .collect();
    if !lost.is_empty() {
        service.disown(&lost).await;
    }
    ready.send_replace(true);
}

fn patience() -> Backoff {
    Backoff::new(
        Duration::from_millis(50),
        Duration::from_millis(200),
        Duration::from_secs(5),
    )
}

/// Tries until it works, or until trying is of no use.
async fn patiently<T, F>(attempt: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, mailbell_bus::BusError>>,
{
    let mut backoff = patience();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "NATS is not ready; it is tried again");
                let wait = backoff.next(&mut rand::rng());
                sleep(wait).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What a task brought, once; never if there is none. Cancel-safe. A task that panicked brings nothing: it is begun anew.
async fn finished<T: Default>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else {
        return pending().await;
    };
    let output = running.await;
    *task = None;
    output.unwrap_or_else(|error| {
        tracing::error!(%error, "a task of the watcher ended by itself");
        T::default()
    })
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
