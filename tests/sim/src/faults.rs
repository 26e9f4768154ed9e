//! What goes wrong, and what arrives, while there is chaos.

use std::time::Duration;

use mailbell_core::session::{Input, Stop};
use rand::RngExt as _;

use crate::{
    drive::Ev,
    process::Cut,
    scenario::{LOGS, PARTITIONS},
    world::{MS, S, World},
};

/// One thing that happens to the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Arrival,
    Burst,
    Flood,
    Hidden,
    LateLower,
    Expunge,
    NewGeneration,
    CutMail,
    MailDown,
    WrongPassword,
    KillWatcher,
    StopWatcher,
    HangWatcher,
    Busy,
    Room,
    LoseWrites,
    LoseAnswers,
    MoreWatchers,
    Leave,
    Drain,
    BreakWatcher,
    LiveRefuses,
    LiveLost,
    BreakGateway,
    LogAway,
    LogRefuses,
    LogLost,
    LogCut,
    CheckpointLost,
    KillGateway,
    CutStream,
    CrashDevice,
    SlowDevice,
    Resubscribe,
    Unreadable,
    Pause,
    Refolder,
    ClaimAges,
    Relogin,
    Remove,
}

impl Fault {
    /// All of them, with how often each comes among the others.
    pub(crate) const ALL: &[(Self, u32)] = &[
        (Self::Arrival, 30),
        (Self::Burst, 10),
        (Self::Flood, 2),
        (Self::Hidden, 4),
        (Self::LateLower, 4),
        (Self::Expunge, 5),
        (Self::NewGeneration, 1),
        (Self::CutMail, 5),
        (Self::MailDown, 2),
        (Self::WrongPassword, 1),
        (Self::KillWatcher, 2),
        (Self::StopWatcher, 2),
        (Self::HangWatcher, 2),
        (Self::Busy, 2),
        (Self::Room, 2),
        (Self::LoseWrites, 1),
        (Self::LoseAnswers, 1),
        (Self::MoreWatchers, 2),
        (Self::Leave, 2),
        (Self::Drain, 2),
        (Self::BreakWatcher, 3),
        (Self::LiveRefuses, 1),
        (Self::LiveLost, 1),
        (Self::BreakGateway, 3),
        (Self::LogAway, 2),
        (Self::LogRefuses, 1),
        (Self::LogLost, 1),
        (Self::LogCut, 1),
        (Self::CheckpointLost, 1),
        (Self::KillGateway, 2),
        (Self::CutStream, 5),
        (Self::CrashDevice, 4),
        (Self::SlowDevice, 3),
        (Self::Resubscribe, 1),
        (Self::Unreadable, 1),
        (Self::Pause, 1),
        (Self::Refolder, 1),
        (Self::ClaimAges, 1),
        (Self::Relogin, 1),
        (Self::Remove, 1),
    ];
}

impl World {
    /// Something happens; the next thing is planned.
    pub(crate) fn on_fault(&mut self) {
        if !self.chaos {
            return;
        }
        let pace = self.scenario.pace;
        let next = self.between(pace / 10, 2 * pace);
        self.after(next, Ev::Fault);
        let sum = self
            .scenario
            .faults
            .iter()
            .map(|(_, weight)| weight)
            .sum::<u32>();
        if sum == 0 {
            return;
        }
        let mut left = self.rng.random_range(0..sum);
        let mut chosen = Fault::Arrival;
        for (fault, weight) in &self.scenario.faults {
            if left < *weight {
                chosen = *fault;
                break;
            }
            left -= weight;
        }
        self.strike(chosen);
    }

    fn some_folder(&mut self) -> (usize, usize) {
        let account = self.below(self.places.len());
        let folder = self.below(self.places[account].folders.len());
        (account, folder)
    }

    fn strike(&mut self, fault: Fault) {
        let (account, folder) = self.some_folder();
        let watchers = self.watchers();
        let partition = self.below(PARTITIONS);
        let log = self.below(LOGS);
        let device = self.below(self.devices.len());
        match fault {
            Fault::Arrival => self.arrive(account, folder, 1),
            Fault::Burst => {
                let many = 2 + self.below(6);
                self.arrive(account, folder, many);
            }
            Fault::Flood => {
                // Some are wider than what a checkpoint takes for a gap that may be filled later.
                let wide = if self.chance(0.3) { 260 } else { 0 };
                let many = self.scenario.limits.flood as usize + 1 + wide + self.below(30);
                self.count("flood");
                // What shows up late is looked for among the last messages, not among hundreds.
                self.reveal(account, folder);
                self.arrive(account, folder, many);
            }
            Fault::Hidden => {
                // EXISTS comes before the message can be fetched.
                self.count("exists before fetchable");
                let hidden = self.between(50 * MS, 3 * S);
                self.deliver(account, folder, hidden);
                self.changed(account, folder);
            }
            Fault::LateLower => {
                self.count("late lower uid");
                let hidden = self.between(50 * MS, 4 * S);
                self.deliver(account, folder, hidden);
                self.arrive(account, folder, 1);
            }
            Fault::Unreadable => {
                self.count("unreadable message");
                let uid = self.deliver(account, folder, Duration::ZERO);
                let messages = &mut self.mailboxes[account].folders[folder].messages;
                if let Some(message) = messages.get_mut(&uid) {
                    message.unreadable = true;
                }
                self.arrive(account, folder, 1);
            }
            Fault::Expunge => self.expunge(account, folder),
            // Where SEARCH names what cannot be fetched yet, nobody can say what was there when a folder began anew: a message
            // that is so at that moment is in no listing, and is not told. An exception to I1 (ARCHITECTURE.md); not modelled.
            Fault::NewGeneration | Fault::CheckpointLost
                if self.mailboxes[account].search_ahead => {}
            Fault::NewGeneration => {
                self.count("generation change");
                self.new_generation(account, folder);
            }
            Fault::CutMail => {
                let live: Vec<_> = (0..self.conns.len())
                    .filter(|conn| self.conns[*conn].alive)
                    .collect();
                if let Some(conn) = self.pick(&live) {
                    self.count("mail connection cut");
                    self.cut_conn(conn);
                }
            }
            Fault::MailDown => {
                self.count("mail server down");
                self.mailboxes[account].up = false;
                for conn in 0..self.conns.len() {
                    if self.conns[conn].account == account {
                        self.cut_conn(conn);
                    }
                }
                let lasts = self.between(S, 20 * S);
                self.after(lasts, Ev::MailUp { account });
            }
            Fault::WrongPassword => {
                self.mailboxes[account].password_right = false;
                let lasts = self.between(S, 20 * S);
                self.after(lasts, Ev::PasswordRight { account });
            }
            Fault::KillWatcher => {
                if let Some(process) = self.pick(&watchers) {
                    self.kill_watcher(process);
                }
            }
            Fault::StopWatcher => {
                if let Some(process) = self.pick(&watchers) {
                    let lasts = self.outage();
                    self.stop_process(process, lasts);
                }
            }
            Fault::HangWatcher => {
                if let Some(process) = self.pick(&watchers) {
                    let lasts = self.outage();
                    self.hang(process, lasts);
                }
            }
            Fault::Busy => {
                if let Some(process) = self.pick(&watchers) {
                    let lasts = self.outage();
                    self.be_busy(process, lasts);
                }
            }
            Fault::Room => {
                if let Some(process) = self.pick(&watchers) {
                    self.change_room(process);
                }
            }
            Fault::LoseWrites | Fault::LoseAnswers => {
                if let Some(process) = self.pick(&watchers) {
                    let lasts = self.outage();
                    let cut = match fault {
                        Fault::LoseWrites => Cut::Writes,
                        _ => Cut::Answers,
                    };
                    self.cut_one_way(process, cut, lasts);
                }
            }
            Fault::MoreWatchers => {
                if let Some(name) = self.free_name() {
                    self.count("scaled up");
                    self.start_watcher(name);
                }
            }
            Fault::Leave => {
                if let Some(process) = self.pick(&watchers) {
                    // Somebody is to stay, or to come.
                    let comes_back = watchers.len() < 2 || self.chance(0.5);
                    self.leave(process, comes_back);
                }
            }
            Fault::Drain => {
                if let Some(process) = self.pick(&watchers)
                    && !self.members[&process].leaving
                {
                    self.drain_watcher(process, true);
                    let lasts = self.outage();
                    self.after(lasts, Ev::DrainEnds { process });
                }
            }
            Fault::LiveRefuses => {
                self.count("LIVE refuses");
                if !std::mem::replace(&mut self.live.refuses, true) {
                    self.live.refused_at = self.now;
                }
                let lasts = self.between(S, 15 * S);
                self.after(lasts, Ev::LiveBack);
            }
            // Where what knows the epochs is gone, it is the clocks that make them grow.
            Fault::LiveLost | Fault::ClaimAges if !self.clocks_are_ahead() => {}
            Fault::LiveLost => self.lose_live(),
            Fault::BreakWatcher => {
                if let Some(process) = self.pick(&watchers) {
                    let lasts = self.outage();
                    self.break_link(process, lasts);
                }
            }
            Fault::BreakGateway => {
                let ready = self.ready_gateways();
                if let Some(gateway) = self.pick(&ready) {
                    let lasts = self.outage();
                    self.break_link(self.gateways[gateway].process, lasts);
                }
            }
            Fault::LogAway => {
                self.count("log away");
                self.logs[log].away = true;
                let lasts = self.outage();
                self.after(lasts, Ev::LogBack { log });
            }
            Fault::LogRefuses => {
                self.logs[log].refuses = true;
                let lasts = self.outage();
                self.after(lasts, Ev::LogBack { log });
            }
            // What proves that a log was cut is not taken away as well.
            Fault::CheckpointLost | Fault::Remove if !self.is_proven(self.places[account].log) => {}
            Fault::LogLost => self.lose_log(log, true),
            Fault::LogCut => self.lose_log(log, false),
            Fault::CheckpointLost => {
                self.count("checkpoint lost");
                self.say(|| format!("checkpoint of account {account} lost"));
                self.checkpoints[account] = None;
                self.mailboxes_told[account].acked.clear();
                self.ledgers[account].broken = true;
            }
            Fault::KillGateway => {
                let ready = self.ready_gateways();
                if let Some(gateway) = self.pick(&ready) {
                    self.kill(self.gateways[gateway].process);
                }
            }
            Fault::CutStream => {
                if let Some(stream) = self.devices[device].stream {
                    self.count("stream cut");
                    self.cut_stream(stream);
                }
            }
            Fault::CrashDevice => {
                self.count("device crash");
                self.crash_device(device, None);
            }
            Fault::SlowDevice => {
                self.devices[device].slow ^= true;
                self.count("slow device");
            }
            Fault::Resubscribe => {
                self.count("subscription change");
                let subject = self.below(5);
                let subject = self.subject(subject);
                self.crash_device(device, Some(subject));
            }
            Fault::Pause => self.pause(account, !self.paused[account]),
            Fault::Refolder => {
                let only = self.narrowed[account].is_none().then_some(folder);
                self.narrow(account, only);
            }
            Fault::ClaimAges => {
                self.membership_changed();
                self.drop_claim(partition);
            }
            Fault::Relogin => {
                self.count("login changed");
                for run in self.live_runs(account) {
                    self.give(run, Input::Relogin);
                }
            }
            // The last account of the first partition, so that its sibling goes on.
            Fault::Remove => self.remove(1),
        }
    }

    fn arrive(&mut self, account: usize, folder: usize, many: usize) {
        for _ in 0..many {
            self.deliver(account, folder, Duration::ZERO);
            if self.chance(0.3) {
                self.changed(account, folder);
            }
        }
        self.changed(account, folder);
    }

    /// A watcher dies, and comes back under its name, or under another one, or not.
    pub(crate) fn kill_watcher(&mut self, process: usize) {
        self.count("watcher killed");
        let name = self.members[&process].name;
        self.kill(process);
        let later = self.outage().min(2 * self.scenario.pace + 8 * S);
        if self.chance(0.6) {
            self.after(later, Ev::Start { name });
        } else if let Some(name) = self.free_name() {
            self.after(later, Ev::Start { name });
        }
    }

    fn live_runs(&self, account: usize) -> Vec<usize> {
        let live = |run: &usize| self.runs[*run].alive && self.runs[*run].account == account;
        (0..self.runs.len()).filter(live).collect()
    }

    pub(crate) fn pause(&mut self, account: usize, paused: bool) {
        if self.paused[account] == paused {
            return;
        }
        self.count("paused or resumed");
        self.paused[account] = paused;
        for run in self.live_runs(account) {
            self.reconfigure(run);
        }
    }

    /// Only this folder is watched from now on, or all again.
    pub(crate) fn narrow(&mut self, account: usize, only: Option<usize>) {
        if self.narrowed[account] == only || self.places[account].folders.len() == 1 {
            return;
        }
        self.count("folders changed");
        self.narrowed[account] = only;
        for run in self.live_runs(account) {
            self.reconfigure(run);
        }
    }

    pub(crate) fn reconfigure(&mut self, run: usize) {
        let config = self.config(self.runs[run].owner, self.runs[run].account);
        let config = Box::new(config);
        self.give(run, Input::Reconfigure { config });
    }

    /// An account is removed: its session says so, then all that is stored of it goes.
    fn remove(&mut self, account: usize) {
        if std::mem::replace(&mut self.removed[account], true) {
            return;
        }
        self.count("account removed");
        let runs = self.live_runs(account);
        if runs.is_empty() {
            return self.forget_account(account);
        }
        for run in runs {
            self.give(run, Input::Stop(Stop::Removed));
        }
    }

    pub(crate) fn forget_account(&mut self, account: usize) {
        self.checkpoints[account] = None;
        self.mailboxes_told[account].acked.clear();
        self.purge(account);
    }
}
