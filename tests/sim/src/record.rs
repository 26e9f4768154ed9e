//! What a watcher says of itself in its record: its weight, its limit, its load, and that its main part hangs.
//!
//! The record is renewed by a thread of its own, which goes on while the rest of the process hangs, and says so.

use std::time::Duration;

use mailbell_core::{
    ids::PARTITIONS as ALL,
    sharding::{
        Assignment, Candidate, Input, assign,
        renewal::{Answer, Ask, Step},
    },
};
use mailbell_proto::bus::v1 as records;

use crate::{
    breach::Breach,
    drive::Ev,
    live::Want,
    watcher::Told,
    world::{S, World},
};

/// News of the thread that wait for the main part; what does not fit is lost.
const NEWS: usize = 16;

/// What is said beside the names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Says {
    pub(crate) weight: u32,
    /// Partitions at most, of all that there are; 0: no limit.
    pub(crate) most: u32,
    /// It has more accounts to log in than members may have that are given partitions.
    pub(crate) busy: bool,
    /// Its main part has not answered since then.
    pub(crate) hangs_since: Option<Duration>,
}

impl World {
    /// What a process says that starts now.
    pub(crate) fn says_first(&mut self) -> Says {
        let weights = self.scenario.weights;
        let weight = weights[self.below(weights.len())];
        Says {
            weight,
            most: self.some_room(),
            busy: false,
            hangs_since: None,
        }
    }

    fn some_room(&mut self) -> u32 {
        let rooms = self.scenario.rooms;
        rooms[self.below(rooms.len())]
    }

    pub(crate) fn record_of(&self, process: usize) -> records::Member {
        let member = &self.members[&process];
        let count = |many: usize| u32::try_from(many).unwrap();
        let (serving, loading, handing_over) = member.sharding.stages();
        let backlog = self.scenario.backlog;
        let load = records::MemberLoad {
            serving: count(serving),
            loading: count(loading),
            handing_over: count(handing_over),
            waiting_pace: if member.says.busy { backlog + 1 } else { 0 },
            ..records::MemberLoad::default()
        };
        let hangs = member.says.hangs_since;
        let dead = self.scenario.timing.member_dead;
        records::Member {
            id: self.scenario.names[member.name].clone(),
            incarnation: process.to_string(),
            weight: member.says.weight,
            most_partitions: member.says.most,
            draining: member.sharding.is_draining(),
            stalled: hangs.is_some_and(|since| self.now - since >= dead),
            load: Some(load),
            ..records::Member::default()
        }
    }

    pub(crate) fn renew(&mut self, process: usize) {
        let period = self.scenario.timing.member_renew;
        self.tell_later(process, period, Told::Renew);
        let member = self.members.get_mut(&process).unwrap();
        if member.awaits.take().is_some() {
            self.news(process, Input::RenewalFailed);
        }
        let record = self.record_of(process);
        let member = self.members.get_mut(&process).unwrap();
        member.awaits = Some(record);
        member.attempts += 1;
        let ask = member.renewal.begin();
        self.ask_record(process, ask);
        let asked = self.now;
        self.ask_live(process, Want::Members { asked });
    }

    fn ask_record(&mut self, process: usize, ask: Ask) {
        let member = &self.members[&process];
        if let Some(record) = member.awaits.clone() {
            let number = member.attempts;
            let want = Want::Record {
                number,
                record,
                ask,
            };
            self.ask_live(process, want);
        }
    }

    pub(crate) fn on_record(&mut self, process: usize, answer: Answer) {
        let member = self.members.get_mut(&process).unwrap();
        if member.awaits.is_none() {
            return;
        }
        match member.renewal.on(answer) {
            Step::Ask(ask) => self.ask_record(process, ask),
            Step::Renewed => {
                member.awaits = None;
                self.news(process, Input::Renewed);
            }
            Step::Replaced => {
                let breach = format!("process {process} is replaced, though it runs alone");
                self.fail(Breach::Contract, breach);
            }
        }
    }

    /// It finds that its partitions have more accounts than it thought, or fewer.
    pub(crate) fn change_room(&mut self, process: usize) {
        let most = self.some_room();
        let before = std::mem::replace(&mut self.says(process).most, most);
        if before != most {
            self.count("limit changed");
            self.membership_changed();
        }
    }

    /// Everybody has room again.
    pub(crate) fn lift_limits(&mut self) {
        for process in self.watchers() {
            self.says(process).most = 0;
        }
        self.scenario.rooms = &[0];
        self.membership_changed();
    }

    /// Many logins wait for their turn, for a while.
    pub(crate) fn be_busy(&mut self, process: usize, lasts: Duration) {
        if !std::mem::replace(&mut self.says(process).busy, true) {
            self.count("long backlog");
            self.after(lasts, Ev::BusyEnds { process });
        }
    }

    pub(crate) fn says(&mut self, process: usize) -> &mut Says {
        &mut self.members.get_mut(&process).unwrap().says
    }

    /// The main part hangs for a while: the process handles nothing, and renews its record all the same.
    pub(crate) fn hang(&mut self, process: usize, lasts: Duration) {
        if self.processes[process].stopped {
            return;
        }
        self.count("hangs");
        self.says(process).hangs_since = Some(self.now);
        self.stop_process(process, lasts);
    }

    /// Whether its thread handles it while the rest hangs.
    pub(crate) fn is_for_thread(&self, process: usize, ev: &Ev) -> bool {
        let hangs = self
            .members
            .get(&process)
            .is_some_and(|member| member.says.hangs_since.is_some());
        let Ev::Told { told, .. } = ev else {
            return false;
        };
        hangs && matches!(told, Told::Renew | Told::Record { .. })
    }

    /// The thread has news for the main part.
    pub(crate) fn news(&mut self, process: usize, input: Input) {
        if self.processes[process].stopped {
            self.defer(process, Ev::told(process, Told::Share(input)));
        } else {
            self.share(process, input);
        }
    }

    /// Whether there is no place for another one of the news.
    pub(crate) fn is_full_of_news(&self, process: usize, ev: &Ev) -> bool {
        let is_news = |ev: &Ev| {
            let Ev::Told { told, .. } = ev else {
                return false;
            };
            let Told::Share(input) = told else {
                return false;
            };
            matches!(
                input,
                Input::Renewed | Input::RenewalFailed | Input::Members { .. }
            )
        };
        let member = &self.members[&process];
        is_news(ev) && member.inbox.iter().filter(|ev| is_news(ev)).count() >= NEWS
    }

    /// Who should own what, by what the watchers that take partitions say.
    pub(crate) fn wanted(&self) -> Assignment {
        let watchers = self.watchers();
        let takes = watchers
            .iter()
            .map(|process| &self.members[process])
            .filter(|member| !member.leaving && !member.sharding.is_draining());
        let candidates: Vec<Candidate<'_>> = takes
            .map(|member| Candidate {
                id: &self.scenario.names[member.name],
                weight: member.says.weight,
                most: u16::try_from(member.says.most)
                    .ok()
                    .filter(|most| (1..ALL).contains(most)),
            })
            .collect();
        assign(&candidates)
    }

    /// Waits until all partitions are where they should be, though some have no room anywhere; then room comes.
    pub(crate) fn settle_without_room(&mut self) {
        let lacks_room = |world: &Self| {
            let wanted = world.wanted();
            (0..crate::scenario::PARTITIONS)
                .any(|partition| wanted.owner(world.partition_of(partition)).is_none())
        };
        if !lacks_room(self) {
            return;
        }
        self.count("no room for all");
        let end = self.now + 120 * S;
        loop {
            let rest = self.now + 2 * S;
            while self.failure.is_none() && self.step(rest) {}
            self.now = rest;
            let unrest = (0..crate::scenario::PARTITIONS)
                .find_map(|partition| self.sharing_unrest(partition).err());
            match unrest {
                None => break,
                Some(_) if self.failure.is_some() => return,
                Some(lacks) if self.now > end => {
                    let what = format!("without room never comes to rest: {lacks}");
                    return self.fail(Breach::Restless, what);
                }
                Some(_) => {}
            }
        }
        self.lift_limits();
    }
}
