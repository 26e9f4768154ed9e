//! A process with its link to NATS: a watcher or a gateway.

use std::time::Duration;

use mailbell_core::{
    history::History,
    session::{Input, Outcome},
};

use crate::{
    drive::Ev,
    scenario::LOGS,
    world::{MS, World},
};

/// What is lost on its way between a process and NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    None,
    /// Nothing that it writes is stored; it can read.
    Writes,
    /// What it writes is stored, and it hears of nothing but what it watches.
    Answers,
}

/// See the module.
pub(crate) struct Process {
    pub(crate) alive: bool,
    /// `None`: a watcher.
    pub(crate) gateway: Option<usize>,
    pub(crate) up: bool,
    /// Counts the connections: what was sent on an old one is not answered.
    pub(crate) link: u64,
    /// What it knows of the logs.
    pub(crate) views: [History; LOGS],
    /// It handles nothing, as after SIGSTOP.
    pub(crate) stopped: bool,
    /// What is lost on its way, in one direction only.
    pub(crate) cut: Cut,
    /// When the last thing that hampered it ended.
    pub(crate) clear_since: Duration,
    /// How far its wall clock is off.
    pub(crate) skew_us: i64,
}

fn micros(of: Duration) -> i64 {
    i64::try_from(of.as_micros()).unwrap()
}

impl World {
    /// A new process, linked.
    pub(crate) fn spawn(&mut self, gateway: Option<usize>) -> usize {
        let views = std::array::from_fn(|log| {
            let mut view = History::default();
            self.identities[log].apply_to(&mut view);
            view
        });
        let most = self.scenario.skew;
        let skew = self.between(Duration::ZERO, most);
        self.processes.push(Process {
            alive: true,
            gateway,
            up: true,
            link: 0,
            views,
            stopped: false,
            cut: Cut::None,
            clear_since: self.now,
            skew_us: micros(skew) - micros(most / 2),
        });
        let process = self.processes.len() - 1;
        self.record_seen_later(process);
        process
    }

    pub(crate) fn is_up(&self, process: usize) -> bool {
        self.processes[process].alive && self.processes[process].up
    }

    /// Breaks the link for a while.
    pub(crate) fn break_link(&mut self, process: usize, lasts: Duration) {
        let state = &mut self.processes[process];
        if !state.alive {
            return;
        }
        state.link += 1;
        state.up = false;
        let link = state.link;
        self.say(|| format!("process {process}: link broken for {lasts:?}"));
        self.count("link broken");
        if lasts > self.scenario.timing.duplicate_window {
            self.count("away beyond the window");
        }
        let notice = self.between(MS, 200 * MS);
        self.after(notice.min(lasts), Ev::LinkDown { process, link });
        self.after(lasts, Ev::LinkUp { process, link });
    }

    pub(crate) fn on_link_down(&mut self, process: usize, link: u64) {
        let state = &self.processes[process];
        if !state.alive || state.link != link {
            return;
        }
        for run in self.runs_of(process) {
            if let Some((op, _)) = self.runs[run].append.clone() {
                let outcome = Outcome::Disconnected;
                self.give(run, Input::Appended { op, outcome });
            }
            self.give(run, Input::Bus { up: false });
        }
    }

    pub(crate) fn on_link_up(&mut self, process: usize, link: u64) {
        let state = &mut self.processes[process];
        if !state.alive || state.link != link {
            return;
        }
        // Without an answer nobody is linked, and the histories could not be looked at.
        if state.cut == Cut::Answers {
            return self.after(200 * MS, Ev::LinkUp { process, link });
        }
        state.up = true;
        state.clear_since = self.now;
        self.say(|| format!("process {process}: linked"));
        // The histories are looked at before anything is built on them.
        for log in 0..LOGS {
            self.look_at_log(process, log);
            // The bucket of the identities is watched again.
            self.soon(Ev::IdentityTold { process, log });
        }
        match self.processes[process].gateway {
            Some(gateway) => self.follow_anew(gateway),
            None => {
                self.sharing_linked(process);
                for run in self.runs_of(process) {
                    self.give(run, Input::Bus { up: true });
                }
            }
        }
    }

    /// The process dies, between any two steps.
    pub(crate) fn kill(&mut self, process: usize) {
        self.say(|| format!("process {process}: killed"));
        self.processes[process].alive = false;
        self.processes[process].up = false;
        self.jobs.retain(|_, job| job.process != process);
        match self.processes[process].gateway {
            Some(gateway) => self.gateway_died(gateway),
            None => self.watcher_died(process),
        }
    }
}
