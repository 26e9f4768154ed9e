//! What happens, in which order; the beginning, and the healing at the end.

use std::time::Duration;

use mailbell_client::session::{ListFailure, Listing};
use mailbell_core::{
    checkpoint::Checkpoint,
    delivery::LogState,
    ids::{Generation, PerGroup, Position, Uid},
    schema,
    session::{Input, Op, Wake},
};

use crate::{
    breach::Breach,
    bus::{Ack, Identity, Log, Publish, Stand, StoredCheckpoint},
    device::ListAsk,
    gateway::Attach,
    live::Asked,
    mailbox::Work,
    scenario::LOGS,
    session::{Ledger, Told as Known},
    watcher::Told,
    world::{MS, S, World},
};

/// Something that will happen.
pub(crate) enum Ev {
    Fault,
    Spawn,
    LinkDown {
        process: usize,
        link: u64,
    },
    LinkUp {
        process: usize,
        link: u64,
    },

    Mail {
        run: usize,
        conn: Option<usize>,
        op: Op,
        work: Work,
    },
    Notice {
        conn: usize,
        op: Op,
    },
    ParkEnds {
        conn: usize,
        op: Op,
    },
    Interrupted {
        conn: usize,
        op: Op,
    },
    Visible {
        account: usize,
        folder: usize,
        generation: Generation,
        uid: Uid,
    },
    MailUp {
        account: usize,
    },
    PasswordRight {
        account: usize,
    },

    Give {
        run: usize,
        input: Input,
    },
    Timer {
        run: usize,
        number: u64,
    },
    Store {
        run: usize,
        op: Op,
        checkpoint: Box<Checkpoint>,
        revision: Option<u64>,
    },

    Publish(Box<Publish>),
    Ack(Box<Ack>),
    Replicated {
        log: usize,
        follower: usize,
        history: u64,
        position: Position,
    },
    IdentityTold {
        process: usize,
        log: usize,
    },
    RecordSeen {
        process: usize,
    },
    LogBack {
        log: usize,
    },
    ReadStep {
        job: u64,
    },

    AskLive(Box<Asked>),
    Told {
        process: usize,
        link: Option<u64>,
        told: Told,
    },
    Start {
        name: usize,
    },
    Continue {
        process: usize,
        number: u64,
    },
    CutEnds {
        process: usize,
        number: u64,
    },
    DrainEnds {
        process: usize,
    },
    BusyEnds {
        process: usize,
    },
    LiveBack,
    Audit,

    Load {
        owner: usize,
        only: Option<usize>,
    },
    Flush {
        owner: usize,
    },
    FlushBound {
        owner: usize,
        stand: Stand,
    },
    HandOverLate {
        owner: usize,
    },

    Deliver {
        gateway: usize,
        log: usize,
    },
    Follow {
        gateway: usize,
    },
    Attach(Box<Attach>),
    AttachProven {
        attach: Box<Attach>,
        logs: Box<PerGroup<Option<LogState>>>,
    },
    Replay {
        stream: usize,
    },
    Beat {
        gateway: usize,
    },
    Drain {
        stream: usize,
    },
    Detach {
        stream: usize,
    },

    Connect {
        device: usize,
        incarnation: u64,
    },
    Take_ {
        device: usize,
        incarnation: u64,
    },
    Persist {
        device: usize,
    },
    List {
        device: usize,
        incarnation: u64,
    },
    Ask(Box<ListAsk>),
    AskOver(Box<ListAsk>),
    Listed {
        ask: Box<ListAsk>,
        answer: Box<Result<Listing, ListFailure>>,
    },
}

impl Ev {
    /// A watcher is told something by itself.
    pub(crate) fn told(process: usize, told: Told) -> Self {
        Self::Told {
            process,
            link: None,
            told,
        }
    }
}

impl World {
    /// Which process handles it, if any does.
    fn handled_by(&self, ev: &Ev) -> Option<usize> {
        let of_owner = |owner: usize| self.owners[owner].process;
        let of_run = |run: usize| of_owner(self.runs[run].owner);
        match ev {
            Ev::LinkDown { process, .. }
            | Ev::LinkUp { process, .. }
            | Ev::IdentityTold { process, .. }
            | Ev::RecordSeen { process }
            | Ev::Told { process, .. } => Some(*process),
            Ev::Mail { run, .. } | Ev::Give { run, .. } | Ev::Timer { run, .. } => {
                Some(of_run(*run))
            }
            Ev::Ack(ack) => Some(ack.process),
            Ev::ReadStep { job } => self.jobs.get(job).map(|job| job.process),
            Ev::Load { owner, .. }
            | Ev::Flush { owner }
            | Ev::FlushBound { owner, .. }
            | Ev::HandOverLate { owner } => Some(of_owner(*owner)),
            _ => None,
        }
    }

    pub(crate) fn happen(&mut self, ev: Ev) {
        if self.stopped > 0
            && let Some(process) = self.handled_by(&ev)
            && self.processes[process].stopped
            && !self.is_for_thread(process, &ev)
        {
            return self.defer(process, ev);
        }
        match ev {
            Ev::Fault => self.on_fault(),
            Ev::Spawn => self.on_spawn(),
            Ev::LinkDown { process, link } => self.on_link_down(process, link),
            Ev::LinkUp { process, link } => self.on_link_up(process, link),
            Ev::Mail {
                run,
                conn,
                op,
                work,
            } => self.on_mail(run, conn, op, work),
            Ev::Notice { conn, op } => self.on_notice(conn, op),
            Ev::ParkEnds { conn, op } => self.on_park_ends(conn, op, Wake::Expired),
            Ev::Interrupted { conn, op } => self.on_park_ends(conn, op, Wake::Interrupted),
            Ev::Visible {
                account,
                folder,
                generation,
                uid,
            } => {
                self.on_visible(account, folder, generation, uid);
            }
            Ev::MailUp { account } => self.mailboxes[account].up = true,
            Ev::PasswordRight { account } => self.mailboxes[account].password_right = true,
            Ev::Give { run, input } => self.give(run, input),
            Ev::Timer { run, number } => self.on_timer(run, number),
            Ev::Store {
                run,
                op,
                checkpoint,
                revision,
            } => {
                self.on_store(run, op, &checkpoint, revision);
            }
            Ev::Publish(publish) => self.on_publish(*publish),
            Ev::Ack(ack) => self.on_ack(*ack),
            Ev::Replicated {
                log,
                follower,
                history,
                position,
            } => {
                self.on_replicated(log, follower, history, position);
            }
            Ev::IdentityTold { process, log } => self.on_identity_told(process, log),
            Ev::RecordSeen { process } => self.on_record_seen(process),
            Ev::LogBack { log } => self.on_log_back(log),
            Ev::ReadStep { job } => self.on_read_step(job),
            Ev::AskLive(asked) => self.on_ask_live(*asked),
            Ev::Told {
                process,
                link,
                told,
            } => self.on_told(process, link, told),
            Ev::Start { name } => self.start_watcher(name),
            Ev::Continue { process, number } => self.on_continue(process, number),
            Ev::CutEnds { process, number } => self.on_cut_ends(process, number),
            Ev::DrainEnds { process } => {
                if self.processes[process].alive && !self.members[&process].leaving {
                    self.drain_watcher(process, false);
                }
            }
            Ev::BusyEnds { process } => self.says(process).busy = false,
            Ev::LiveBack => {
                if std::mem::take(&mut self.live.refuses) {
                    self.live.trouble = self.now;
                }
            }
            Ev::Audit => self.on_audit(),
            Ev::Load { owner, only } => self.on_load(owner, only),
            Ev::Flush { owner } => self.on_flush(owner),
            Ev::FlushBound { owner, stand } => self.on_flush_bound(owner, stand),
            Ev::HandOverLate { owner } => self.on_hand_over_late(owner),
            Ev::Deliver { gateway, log } => self.on_deliver(gateway, log),
            Ev::Follow { gateway } => {
                if self.gateways[gateway].alive {
                    self.gateways[gateway].follows_soon = false;
                    self.follow_anew(gateway);
                }
            }
            Ev::Attach(attach) => self.on_attach(*attach),
            Ev::AttachProven { attach, logs } => self.on_attach_proven(*attach, *logs),
            Ev::Replay { stream } => self.replay(stream),
            Ev::Beat { gateway } => self.on_beat(gateway),
            Ev::Drain { stream } => self.on_drain(stream),
            Ev::Detach { stream } => self.on_detach(stream),
            Ev::Connect {
                device,
                incarnation,
            } => self.on_connect(device, incarnation),
            Ev::Take_ {
                device,
                incarnation,
            } => self.on_take_(device, incarnation),
            Ev::Persist { device } => self.on_persist(device),
            Ev::List {
                device,
                incarnation,
            } => self.on_list(device, incarnation),
            Ev::Ask(ask) => self.on_ask(*ask),
            Ev::AskOver(ask) => self.on_listed(&ask, Err(ListFailure::Retry)),
            Ev::Listed { ask, answer } => self.on_listed(&ask, *answer),
        }
    }

    fn on_log_back(&mut self, log: usize) {
        self.logs[log].away = false;
        self.logs[log].refuses = false;
        self.wake_consumers(log);
    }

    fn on_spawn(&mut self) {
        let process = self.spawn(None);
        if !self.start_gateway(process) {
            self.processes[process].alive = false;
            self.after(S, Ev::Spawn);
        }
    }

    pub(crate) fn build(&mut self) {
        for _ in 0..LOGS {
            let id = self.new_log_id();
            self.logs.push(Log::new());
            self.identities.push(Identity::new(id));
        }
        for account in 0..self.places.len() {
            let mailbox = self.new_mailbox(account);
            self.mailboxes.push(mailbox);
            self.mailboxes_told.push(Known::default());
            self.paused.push(false);
            self.narrowed.push(None);
            self.removed.push(false);
            self.checkpoints.push(None);
            let folders = self.places[account].folders;
            for folder in 0..folders.len() {
                for _ in 0..self.below(4) {
                    self.deliver(account, folder, Duration::ZERO);
                }
            }
            // Looked at when it was added, or not before its first login.
            let mut first = Checkpoint::default();
            if self.mailboxes[account].search_ahead || self.chance(0.5) {
                let looked = self.mailboxes[account].folders.clone().into_iter();
                let looked = looked
                    .map(|folder| (folder.name.to_owned(), folder.generation, folder.uid_next));
                first = Checkpoint::first(looked, self.wall_us());
                for (number, folder) in self.mailboxes[account].folders.iter().enumerate() {
                    let told = (number, folder.generation, 1, folder.uid_next - 1);
                    self.mailboxes_told[account].ranges.push(told);
                }
                self.last_revision += 1;
                self.checkpoints[account] = Some(StoredCheckpoint {
                    revision: self.last_revision,
                    record: first.to_record(schema::WriteVersion::NEWEST),
                });
            }
            self.ledgers.push(Ledger {
                first,
                entries: Vec::new(),
                broken: false,
            });
        }
        for name in 0..self.scenario.members {
            self.start_watcher(name);
        }
        for _ in 0..2 {
            self.on_spawn();
        }
        self.after(S, Ev::Audit);
        for device in 0..4 {
            let number = if device == 0 { 0 } else { self.below(5) };
            let subject = self.subject(number);
            self.new_device(subject);
        }
        self.after(2 * S, Ev::Fault);
    }

    /// Nothing goes wrong from now on.
    pub(crate) fn heal(&mut self) {
        self.say(|| "healed".to_owned());
        self.chaos = false;
        for log in 0..LOGS {
            self.on_log_back(log);
        }
        self.heal_watchers();
        for process in 0..self.processes.len() {
            let state = &self.processes[process];
            if state.alive && !state.up {
                self.on_link_up(process, self.processes[process].link);
            }
        }
        for account in 0..self.places.len() {
            self.mailboxes[account].up = true;
            self.mailboxes[account].password_right = true;
            self.pause(account, false);
            self.narrow(account, None);
        }
    }

    /// Waits until everything has come to rest, and checks that it stays so.
    pub(crate) fn settle(&mut self) {
        self.settle_without_room();
        let end = self.now + 600 * S;
        loop {
            let rest = self.now + 2 * S;
            while self.failure.is_none() && self.step(rest) {}
            self.now = rest;
            if self.failure.is_some() {
                return;
            }
            let Some((breach, lacks)) = self.unrest() else {
                break;
            };
            if self.now > end {
                return self.fail(breach, format!("never comes to rest: {lacks}"));
            }
        }
        // Everything is there: from now on nothing happens but what must.
        let before = self.effects;
        let rest = self.now + 30 * S;
        while self.failure.is_none() && self.step(rest) {}
        self.now = rest;
        let effects = self.effects - before;
        if effects > 4 * 30 * 12 {
            self.fail(
                Breach::Restless,
                format!("sessions that rest do {effects} things in 30 s"),
            );
        }
        // A heartbeat may just be on its way, or a late publish have come.
        for _ in 0..100 {
            if self.unrest().is_none() {
                break;
            }
            let rest = self.now + 100 * MS;
            while self.failure.is_none() && self.step(rest) {}
            self.now = rest;
        }
        if let Some((breach, lacks)) = self.unrest() {
            return self.fail(breach, format!("does not stay at rest: {lacks}"));
        }
        for account in 0..self.places.len() {
            self.check_ledger(account);
        }
        let settled = (self.now - self.scenario.chaos_lasts).as_millis();
        self.coverage
            .add("ms to come to rest", u64::try_from(settled).unwrap());
    }
}
