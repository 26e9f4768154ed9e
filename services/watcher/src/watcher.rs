//! The watcher as a component: it starts, keeps what it owns, and hands everything over when it drains.

use std::{collections::HashMap, sync::Arc, time::Duration};

use mailbell_bus::{
    Bus, Claims, Lost, LostClaims, LostReason, OwnerService, ServeOptions, patience, patiently,
    state::{AccountChange, AccountChanges, AccountReader, PartitionRecords},
};
use mailbell_core::{
    ids::{Group, OwnerEpoch, Partition},
    seal::KeyRing,
};
use mailbell_runtime::{
    drain::{DrainHandle, Draining},
    health::Health,
};
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at},
};

use crate::{
    Error, Metrics, Options,
    accounts::{Accounts, Reread},
    acquire::{Claimed, Loaded, Loads, claim, reread},
    driver::{Context, Dial},
    flush::flush,
    gate::Gate,
    ledger::BusLedger,
    registry::Registry,
    requests::Answers,
    wait::{finished, until},
};

/// The name of the health check.
const CHECK: &str = "partitions";
/// The loop beats at least this often, or the process is stuck.
const BEAT: Duration = Duration::from_secs(30);
/// Of the time that a drain has, this part is kept for the last writes, once sessions have ended or were given up.
const RELEASE_PART: u32 = 4;
/// At the start all groups are waited for so long; whichever does not answer by then joins when it does.
const SETTLE: Duration = Duration::from_secs(10);
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
    changes: AccountChanges,
    reader: AccountReader,
    /// Records of partitions of ours that are read anew.
    rereads: JoinSet<Vec<(Reread, PartitionRecords)>>,
    claiming: Option<JoinHandle<Claimed>>,
    loads: Loads,
    /// Tasks that begin to answer requests for partitions.
    owning: JoinSet<()>,
    /// Claims of ours that aged out while NATS was away. Their sessions go on until somebody else has them.
    expired: HashMap<Partition, OwnerEpoch>,
    flushing: Option<JoinHandle<()>>,
    health: Health,
    ready: watch::Sender<bool>,
    /// From then on it is ready with what it has; `None`: it is.
    settle: Option<Instant>,
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
        let logs = patiently(|| bus.logs_that_answer()).await?;
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
        let (changes, reader) = bus.accounts().follow();
        Ok(Self {
            accounts: Accounts::new(context, Arc::clone(&registry)),
            changes,
            loads: Loads::new(reader.clone()),
            reader,
            rereads: JoinSet::new(),
            options,
            ledger,
            registry,
            claims,
            lost,
            service: Arc::new(service),
            claiming: None,
            owning: JoinSet::new(),
            expired: HashMap::new(),
            flushing: None,
            health,
            ready,
            settle: Some(Instant::now() + SETTLE),
        })
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
                claimed = finished(&mut self.claiming) => self.on_claimed(claimed).await,
                loaded = self.loads.next() => self.on_loaded(loaded),
                Some(_) = self.owning.join_next() => self.see_whether_ready(),
                ended = self.accounts.ended() => self.accounts.on_ended(ended),
                change = self.changes.next() => self.on_change(change.ok_or(Error::Closed)?),
                Some(Ok(read)) = self.rereads.join_next() => {
                    for (wanted, records) in read {
                        self.accounts.reread(wanted, records);
                    }
                    self.read_anew();
                }
                () = finished(&mut self.flushing) => {}
                _ = retake.tick() => {
                    heartbeat.beat();
                    self.take_what_is_missing();
                }
                _ = flushes.tick() => self.flush(),
                () = until(quarantine) => self.accounts.end_quarantines(),
                () = until(self.settle) => self.see_whether_ready(),
            }
        }
    }

    fn on_change(&mut self, change: AccountChange) {
        match change {
            AccountChange::Put {
                account,
                record,
                version,
            } => self.accounts.put(account, version, record),
            AccountChange::Removed { account, version } => self.accounts.delete(account, version),
            AccountChange::Restarted { group, history } => {
                tracing::warn!(%group, "changes of accounts may have been missed; they are read anew");
                self.accounts.restarted(group, history);
                self.read_anew();
            }
        }
    }

    /// Begins to read the records of partitions whose changes may have been missed.
    fn read_anew(&mut self) {
        let mut groups: HashMap<Group, Vec<Reread>> = HashMap::new();
        for wanted in self.accounts.rereads() {
            let group = groups.entry(wanted.partition.group()).or_default();
            group.push(wanted);
        }
        for (group, rereads) in groups {
            self.rereads
                .spawn(reread(self.reader.clone(), group, rereads));
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
        if self.claiming.is_some() {
            return;
        }
        let missing: Vec<Partition> = Partition::all()
            .filter(|partition| {
                !self.registry.serves(*partition) || self.expired.contains_key(partition)
            })
            .filter(|partition| !self.loads.has(*partition))
            .collect();
        if !missing.is_empty() {
            let claims = self.claims.clone();
            let expired = self.expired.keys().copied().collect();
            self.claiming = Some(tokio::spawn(claim(claims, missing, expired)));
        }
    }

    async fn on_claimed(&mut self, claimed: Claimed) {
        let Claimed {
            taken,
            kept,
            foreign,
            failed,
        } = claimed;
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
        let others: Vec<(Partition, OwnerEpoch)> = taken
            .iter()
            .map(|(partition, _)| partition)
            .chain(&foreign)
            .filter_map(|partition| Some((*partition, *self.expired.get(partition)?)))
            .collect();
        for (partition, epoch) in others {
            self.lose(partition, epoch).await;
        }
        let state = match self.registry.partitions().len() {
            0 if !taken.is_empty() || !self.loads.is_empty() => {
                Err("what is known of the accounts is being loaded")
            }
            0 if !foreign.is_empty() => Err("all partitions are held by other watchers"),
            0 => Err("no partition could be claimed"),
            _ => Ok(()),
        };
        self.health.set(CHECK, state);
        let claims = taken
            .iter()
            .map(|(partition, taken)| (*partition, taken.epoch));
        self.accounts.expect(claims);
        self.loads.begin(&self.ledger, taken);
        if foreign.len() + failed > 0 {
            tracing::debug!(
                foreign = foreign.len(),
                failed,
                "partitions are not ours yet"
            );
        }
    }

    fn on_loaded(&mut self, loaded: Loaded) {
        let Loaded {
            mut partitions,
            found,
        } = loaded;
        // Some may have been lost while they were loaded.
        partitions.retain(|(partition, epoch)| self.claims.epoch(*partition) == Some(*epoch));
        if partitions.is_empty() {
            return;
        }
        let numbers = partitions.iter().map(|(partition, _)| *partition).collect();
        self.accounts.begin(&partitions, found);
        // One that was loaded when its bucket was made anew.
        self.read_anew();
        tracing::info!(
            partitions = partitions.len(),
            sessions = self.registry.sessions(),
            "partitions were taken"
        );
        self.owning.spawn(own(
            Arc::clone(&self.service),
            Arc::clone(&self.registry),
            numbers,
        ));
        self.health.set::<&str>(CHECK, Ok(()));
    }

    /// Ready: everything that could be taken answers, or at least something does and the rest was waited for.
    fn see_whether_ready(&mut self) {
        let whole = self.loads.is_empty() && self.claiming.is_none();
        let over = self.settle.is_some_and(|settle| settle <= Instant::now());
        if over {
            self.settle = None;
        }
        let enough = whole || self.settle.is_none();
        if enough && self.owning.is_empty() && !self.registry.partitions().is_empty() {
            self.settle = None;
            self.ready.send_replace(true);
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
        if let Some(claiming) = self.claiming.take() {
            claiming.abort();
        }
        self.loads.abort();
        self.owning.abort_all();
        let reserve = draining.window() / RELEASE_PART;
        let patience = draining
            .deadline
            .checked_sub(reserve)
            .unwrap_or(draining.deadline);
        // Both at once: while NATS is away nobody can be turned away, and that must not take the time in which sessions log out.
        tokio::join!(
            turn_away(&self.service, &self.registry, patience),
            end_sessions(&mut self.accounts, patience),
        );
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

/// Whoever asks from now on finds nobody, and tries again.
async fn turn_away(service: &OwnerService, registry: &Registry, patience: Instant) {
    let served = registry.partitions();
    let disowned = timeout_at(patience, service.disown(&served)).await;
    if disowned.is_err() {
        tracing::warn!("requests could not be turned away in time");
    }
}

/// Tells all sessions to finish, and waits for them.
async fn end_sessions(accounts: &mut Accounts, patience: Instant) {
    let all = accounts.running();
    tracing::info!(sessions = all, "handing over");
    accounts.hand_over();
    let mut progress = interval(PROGRESS);
    progress.reset();
    while accounts.running() > 0 {
        tokio::select! {
            // Whichever comes: no order matters, and nothing is held by an arm.
            ended = accounts.ended() => accounts.on_ended(ended),
            _ = progress.tick() => {
                tracing::info!(left = accounts.running(), of = all, "handing over");
            }
            () = sleep_until(patience) => break,
        }
    }
}

/// Answers requests for partitions from now on.
async fn own(service: Arc<OwnerService>, registry: Arc<Registry>, partitions: Vec<Partition>) {
    let mut backoff = patience();
    while let Err(error) = service.own(&partitions).await {
        tracing::debug!(%error, "requests cannot be answered yet");
        let wait = backoff.next(&mut rand::rng());
        sleep(wait).await;
    }
    // What was lost meanwhile is another's to answer for. Not so what is ours by another claim than it was: that of an outage
    // aged out, and sessions went on.
    let lost: Vec<Partition> = partitions
        .into_iter()
        .filter(|partition| !registry.serves(*partition))
        .collect();
    if !lost.is_empty() {
        service.disown(&lost).await;
    }
}

#[cfg(test)]
mod tests;
