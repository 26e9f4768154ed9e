//! A watcher at work: the one owner of everything that changes hands.

use std::{convert::Infallible, sync::Arc, time::Duration};

use mailbell_bus::{
    OwnerService, ServeOptions, Shards, Share, ShareOptions, patience, patiently,
    state::{AccountChange, AccountChanges},
};
use mailbell_core::{
    ids::{AccountId, OwnerEpoch, Partition},
    policy::{HostLimits, Hosts},
};
use mailbell_runtime::{
    drain::{DrainHandle, Draining},
    health::Health,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    Error, Options,
    accounts::Accounts,
    acquire::{Loaded, Loads, Taken},
    clock::Clock,
    driver::{Context, Dial},
    flush::{Flushed, flush},
    gate::Gate,
    handing::Handing,
    ledger::BusLedger,
    policy::Policy,
    proofs::Proofs,
    registry::Registry,
    requests::Answers,
    rereads::Rereads,
    room,
    wait::{finished, until},
    watcher::Watcher,
};

/// The name of the health check.
pub(crate) const CHECK: &str = "partitions";
/// The loop beats at least this often, or the process is stuck.
const BEAT: Duration = Duration::from_secs(30);
/// At the start everything is waited for so long; whatever does not answer by then joins when it does.
const SETTLE: Duration = Duration::from_secs(10);
/// What checkpoints prove of a group counts for so many times as long as it takes until a silent member is dead.
const FRESH: u32 = 5;
/// How often a drain says how far it is, and counts are told.
const PROGRESS: Duration = Duration::from_secs(1);
/// What is taken comes one by one: so long is waited for more, so that it is loaded together.
const GATHER: Duration = Duration::from_millis(50);

/// So many may be asked to log in at once before somebody is told to try again.
pub(crate) const HURRIES: usize = 64;

/// See the module.
pub(crate) struct Running {
    options: Options,
    context: Arc<Context>,
    ledger: BusLedger,
    /// Accounts for which somebody asks to log in now.
    hurried: mpsc::Receiver<AccountId>,
    /// What keeps the clock right, for as long as this lives.
    _keeping: JoinSet<Infallible>,
    accounts: Accounts,
    registry: Arc<Registry>,
    shards: Shards,
    service: Arc<OwnerService>,
    changes: AccountChanges,
    /// Records of partitions of ours that are read anew.
    rereads: Rereads,
    /// Taken, and to be loaded at this time.
    taken: Vec<(Partition, Taken)>,
    load_at: Option<Instant>,
    loads: Loads,
    proofs: Arc<Proofs>,
    /// A look at all checkpoints in advance.
    looking: JoinHandle<()>,
    /// Partitions that are given away.
    handing: Handing,
    /// The most partitions that it takes, as others were told, if there is a limit of accounts.
    room: u32,
    /// Tasks that begin to answer requests for partitions.
    owning: JoinSet<()>,
    /// Of how many accounts the hosts were counted, and when.
    hosts_counted: (usize, Instant),
    flushing: Option<JoinHandle<Flushed>>,
    /// When claims are looked at, whether they can move on.
    flushes: Interval,
    progress: Interval,
    health: Health,
    ready: watch::Sender<bool>,
    /// From then on it is ready with what it has; `None`: it is.
    settle: Option<Instant>,
    /// What the operator says of tenants and mail providers.
    policy: watch::Receiver<Arc<Policy>>,
}

impl Running {
    pub(crate) async fn start(watcher: Watcher) -> Result<Self, Error> {
        let Watcher {
            options,
            bus,
            imap,
            ring,
            metrics,
            health,
            registry,
            ready,
            policy,
        } = watcher;
        let logs = patiently(|| bus.logs_that_answer()).await?;
        let clock = Arc::new(Clock::default());
        clock.compared(&patiently(|| bus.server_status()).await?, &metrics);
        let mut keeping = JoinSet::new();
        keeping.spawn(Arc::clone(&clock).keep(bus.clone(), metrics.clone()));
        if let Some(key) = ring.newest() {
            // Offered to whoever seals a new password.
            let (keys, record) = (bus.sealing_keys(), key.to_record());
            patiently(|| keys.put(&record)).await?;
        }
        let ledger = BusLedger {
            bus: bus.clone(),
            logs,
        };
        let context = Arc::new(Context {
            ledger: Box::new(ledger.clone()),
            connect: Box::new(Dial),
            imap,
            ring,
            gate: Gate::new(options.rates(), metrics.clone()),
            clock: Arc::clone(&clock),
            limits: options.limits,
            policy: policy.clone(),
            timing: *bus.timing(),
            quiet: options.quiet,
            most_content: options.most_content,
            page_time: options.page_time,
            requests: options.requests,
            metrics,
            started: Instant::now(),
            #[cfg(test)]
            panics: std::sync::atomic::AtomicU32::new(0),
        });
        let mut policy = policy;
        context.gate.hosts(limits_of(&policy.borrow_and_update()));
        let (hurries, hurried) = mpsc::channel(HURRIES);
        let answers = Answers {
            context: Arc::clone(&context),
            registry: Arc::clone(&registry),
            checks: Arc::new(Semaphore::new(options.checks.max(1))),
            hurries,
        };
        let service = bus.serve(ServeOptions::default(), move |account, request| {
            answers.clone().answer(account, request)
        });
        let service = Arc::new(service);
        // Before others give it anything, but not for as long as it takes: each load looks for itself.
        let proofs = Arc::new(Proofs::new(bus.timing().member_dead * FRESH));
        let mut looking = tokio::spawn(Arc::clone(&proofs).see_all(ledger.clone()));
        let _ = timeout(SETTLE, &mut looking).await;
        let (changes, reader) = bus.accounts().follow();
        // Enough to learn how many accounts a partition has.
        let first = options.most_accounts.map_or(0, |_| room::FIRST);
        let shards = bus.share(ShareOptions {
            weight: options.weight,
            most_partitions: first,
            egress: options.egress.clone(),
            release: options.release.clone(),
            ..ShareOptions::new(&options.member, &options.incarnation)
        })?;
        let mut flushes = interval(bus.timing().claim_refresh);
        flushes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut progress = interval(PROGRESS);
        progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            hurried,
            _keeping: keeping,
            accounts: Accounts::new(Arc::clone(&context), Arc::clone(&registry)),
            context,
            changes,
            loads: Loads::new(reader.clone(), Arc::clone(&proofs)),
            proofs,
            looking,
            rereads: Rereads::new(reader),
            handing: Handing::new(
                Arc::clone(&service),
                ledger.logs.clone(),
                Arc::clone(&registry),
                options.finish,
            ),
            options,
            ledger,
            registry,
            shards,
            service,
            taken: Vec::new(),
            load_at: None,
            room: first,
            owning: JoinSet::new(),
            hosts_counted: (0, Instant::now()),
            flushing: None,
            flushes,
            progress,
            health,
            ready,
            settle: Some(Instant::now() + SETTLE),
            policy,
        })
    }

    /// Keeps what it owns until the drain begins.
    pub(crate) async fn keep(&mut self, drain: &mut DrainHandle) -> Result<Draining, Error> {
        let heartbeat = self.health.heartbeat("watcher", BEAT);
        loop {
            tokio::select! {
                // The end goes first: whatever else there is to do, it is done on the way out.
                biased;
                draining = drain.signaled() => return Ok(draining),
                stepped = self.step() => stepped?,
            }
            heartbeat.beat();
        }
    }

    /// Whatever comes next. Cancel-safe: it waits for something, and does what follows without waiting.
    async fn step(&mut self) -> Result<(), Error> {
        let quarantine = self.accounts.quarantine_ends();
        let overdue = self.handing.overdue_at();
        tokio::select! {
            // In order of urgency: after a loss nothing may be appended; sessions that ended free memory before new ones
            // take it; the timers come last, since all they do can wait. All arms are cancel-safe: what they wait for
            // stays where it is.
            biased;
            share = self.shards.next() => self.on_share(share.ok_or(Error::Closed)?)?,
            ended = self.accounts.ended() => {
                if let Some(partition) = self.accounts.on_ended(ended) {
                    self.see_whether_ended(partition);
                }
            }
            loaded = self.loads.next() => self.on_loaded(loaded),
            handed = self.handing.next() => self.on_handed(handed),
            Some(_) = self.owning.join_next() => self.see_whether_ready(),
            change = self.changes.next() => self.on_change(change.ok_or(Error::Closed)?),
            read = self.rereads.next() => {
                for (wanted, records) in read {
                    self.accounts.reread(wanted, records);
                }
                self.read_anew();
            }
            // An error means that it never changes.
            Ok(()) = self.policy.changed() => self.on_policy(),
            flushed = finished(&mut self.flushing) => self.on_flushed(flushed),
            () = until(self.load_at) => self.load(),
            () = until(overdue) => {
                for partition in self.handing.overdue() {
                    tracing::warn!(%partition, "sessions had not ended in time: the next owner reads what they did not store from the log");
                    self.accounts.cut_short(partition);
                }
            }
            _ = self.flushes.tick() => self.flush(),
            _ = self.progress.tick() => self.tell(),
            // Never closed: the service that answers is ours.
            Some(account) = self.hurried.recv() => self.accounts.hurry(&account),
            () = until(quarantine) => self.accounts.end_quarantines(),
            () = until(self.settle) => self.see_whether_ready(),
        }
        Ok(())
    }

    fn on_share(&mut self, share: Share) -> Result<(), Error> {
        match share {
            Share::Load {
                partition,
                epoch,
                before,
            } => {
                self.accounts.expect([(partition, epoch)]);
                self.taken.push((partition, Taken { epoch, before }));
                self.load_at.get_or_insert(Instant::now() + GATHER);
            }
            Share::Renewed { partition, epoch } => {
                tracing::info!(%partition, "a claim that had aged out is ours again");
                self.accounts.renew(partition, epoch);
            }
            Share::Finish { partition, epoch } => {
                if self.accounts.hand_over(partition, epoch) {
                    self.handing.begin(partition, epoch);
                    self.see_whether_ended(partition);
                }
            }
            Share::Stop { partition, epoch } => {
                self.accounts.lose(partition, epoch);
                self.handing.lose(partition);
            }
            Share::Released { partition } => tracing::debug!(%partition, "given away"),
            Share::Replaced => return Err(Error::Replaced(self.options.member.clone())),
        }
        Ok(())
    }

    fn load(&mut self) {
        self.load_at = None;
        self.loads
            .begin(&self.ledger, std::mem::take(&mut self.taken));
    }

    fn on_loaded(&mut self, loaded: Loaded) {
        self.loads.go_on(&self.ledger, &loaded);
        let Loaded {
            mut partitions,
            found,
        } = loaded;
        // Some may have been lost while they were loaded, and some are ours by another claim.
        let claims = self.shards.sharding().claims();
        partitions.retain_mut(|(partition, epoch)| {
            let ours = self.accounts.still_ours(*partition, *epoch);
            *epoch = ours.unwrap_or(*epoch);
            ours.is_some() && claims.epoch(*partition) == ours
        });
        if partitions.is_empty() {
            return;
        }
        self.accounts.begin(&partitions, found);
        // One that was loaded when its bucket was made anew.
        self.read_anew();
        tracing::debug!(
            partitions = partitions.len(),
            sessions = self.registry.sessions(),
            "partitions were taken"
        );
        for (partition, epoch) in &partitions {
            let accounts = self.accounts.accounts_in(*partition);
            self.shards.serving(*partition, *epoch, accounts);
        }
        self.owning.spawn(own(
            Arc::clone(&self.service),
            Arc::clone(&self.registry),
            partitions.iter().map(|(partition, _)| *partition).collect(),
        ));
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

    /// The policy is another one. Sessions look it up by themselves: each may hear of a later change already.
    fn on_policy(&mut self) {
        let limits = limits_of(&self.policy.borrow_and_update());
        self.context.gate.hosts(limits);
        self.registry.policy_changed();
        // At the next look hosts are counted anew.
        self.hosts_counted = (0, Instant::now());
    }

    /// Begins to read the records of partitions whose changes may have been missed.
    fn read_anew(&mut self) {
        let wanted = self.accounts.rereads();
        self.rereads.begin(wanted);
    }

    /// A partition that is handed over: once its sessions have ended, it is looked at how far it is flushed.
    fn see_whether_ended(&mut self, partition: Partition) {
        if self.accounts.running_in(partition) == 0 {
            self.handing.ended(partition);
        }
    }

    /// Sessions have ended, what they know is stored, and nobody is answered here any more: others may have it.
    fn on_handed(&mut self, handed: (Partition, OwnerEpoch, Flushed)) {
        let (partition, epoch, flushed) = handed;
        self.on_flushed(flushed);
        self.accounts.let_go(partition, epoch);
        self.shards.finished(partition, epoch);
    }

    fn flush(&mut self) {
        if self.flushing.is_none() {
            self.flushing = Some(tokio::spawn(flush(
                self.ledger.logs.clone(),
                Arc::clone(&self.registry),
                self.registry.partitions(),
            )));
        }
    }

    fn on_flushed(&mut self, flushed: Flushed) {
        for (partition, log_id, position) in flushed.0 {
            let accounts = self.accounts.accounts_in(partition);
            self.shards.flushed(partition, log_id, position, accounts);
        }
    }

    /// Ready: it has its place among the others and everything that could be taken answers; or the rest was waited for.
    fn see_whether_ready(&mut self) {
        let whole = self.taken.is_empty() && self.loads.is_empty() && self.shards.has_settled();
        let over = self.settle.is_some_and(|settle| settle <= Instant::now());
        if over {
            self.settle = None;
        }
        let enough = whole || (over && !self.registry.partitions().is_empty());
        if enough && self.owning.is_empty() {
            self.settle = None;
            self.health.set::<&str>(CHECK, Ok(()));
            if !self.ready.send_replace(true) {
                tracing::info!(
                    partitions = self.shards.held(),
                    sessions = self.registry.sessions(),
                    "this watcher has its place among the others"
                );
            }
        } else if !*self.ready.borrow() {
            self.settle.get_or_insert(Instant::now() + PROGRESS);
            self.health.set(
                CHECK,
                Err("partitions are being claimed, and what is known of their accounts is being loaded"),
            );
        }
    }
}

fn limits_of(policy: &Policy) -> Hosts<HostLimits> {
    policy.providers.map(|provider| provider.limits)
}

/// Answers requests for partitions from now on.
pub(crate) async fn own(
    service: Arc<OwnerService>,
    registry: Arc<Registry>,
    partitions: Vec<Partition>,
) {
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

mod leaving;
mod telling;
#[cfg(test)]
mod tests;
