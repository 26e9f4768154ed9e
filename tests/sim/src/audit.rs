//! What must be true of how watchers share the partitions, judged by what no watcher sees.
//!
//! * Epochs of a partition only grow, as long as the bucket lives.
//! * Nothing is taken from a member that lives and is acknowledged.
//! * Nothing is released while its sessions run, and nobody stops what is its own.
//! * Two serve one partition only while one of them is hampered, or for [`DOUBLE`] after that.
//! * A partition is without an owner for at most [`UNOWNED`], once whatever hampers members has ended.

use std::time::Duration;

use mailbell_core::ids::OwnerEpoch;
use mailbell_proto::bus::v1 as records;

use crate::{
    breach::Breach,
    drive::Ev,
    live::Holder,
    owner::Phase,
    process::Cut,
    scenario::PARTITIONS,
    world::{S, World},
};

/// How long two may serve one partition once both are well: the newer claim has come to the old one.
const DOUBLE: Duration = Duration::from_secs(12);
/// How long a partition may be without an owner once all members are well.
const UNOWNED: Duration = Duration::from_secs(25);
/// How long after it was right to call a member dead a take-over may still be on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(15);

/// How a partition is served.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Served {
    double_since: Option<Duration>,
    none_since: Option<Duration>,
}

impl World {
    /// Members came or went: bounds begin anew.
    pub(crate) fn membership_changed(&mut self) {
        self.changed_at = self.now;
    }

    fn is_hampered(&self, process: usize) -> bool {
        let state = &self.processes[process];
        !state.up || state.stopped || state.cut != Cut::None
    }

    /// Whether every clock is above all epochs, also one that is as far behind as any may be.
    pub(crate) fn clocks_are_ahead(&self) -> bool {
        let unix_s = u64::try_from(self.wall_us() / 1_000_000).unwrap();
        let unix_s = unix_s - self.scenario.skew.as_secs().div_ceil(2);
        self.live.epochs.iter().all(|(epoch, _)| *epoch < unix_s)
    }

    /// Whether this owner's claim is the newest that was stored.
    pub(crate) fn holds(&self, owner: usize) -> bool {
        let state = &self.owners[owner];
        let holder = self.live.holders[state.partition];
        state.phase != Phase::Gone
            && holder.is_some_and(|holder| !holder.released && holder.process == state.process)
    }

    /// The newest epoch that was stored.
    pub(crate) fn newest_epoch(&self, partition: usize) -> OwnerEpoch {
        self.live.holders[partition].map_or(0, |holder| holder.epoch)
    }

    /// A claim is stored.
    pub(crate) fn audit_write(&mut self, process: usize, partition: usize, claim: &records::Claim) {
        let holder = Holder {
            process: claim.incarnation.parse().unwrap(),
            epoch: claim.owner_epoch,
            released: claim.released,
        };
        let before = self.live.holders[partition].replace(holder);
        let same = before
            .is_some_and(|before| (before.process, before.epoch) == (holder.process, holder.epoch));
        if claim.released {
            let owner = self.members[&holder.process].owners[partition];
            let ends = owner.is_some_and(|owner| {
                let owner = &self.owners[owner];
                owner.epoch == holder.epoch && owner.runs.values().any(|run| self.runs[*run].alive)
            });
            if ends && self.processes[holder.process].alive {
                self.fail(Breach::ReleasedInUse, format!(
                    "partition {partition} is released by process {process} while its sessions run"
                ));
            }
            if owner.is_none() {
                self.count("stray cleared");
            } else if claim.successor.is_empty() {
                self.count("released to nobody");
            } else {
                self.count("offered");
            }
        }
        if same {
            return;
        }
        let (known, of) = self.live.epochs[partition];
        if (known, of) == (holder.epoch, holder.process) {
            // Over another attempt of its own, which came late.
            return;
        }
        if holder.epoch <= known {
            // Written long ago, where nothing stands now: nobody serves by it, its owner takes it anew.
            if self.live.claims[partition].is_none() {
                return self.count("late claim over nothing");
            }
            return self.not_above(partition, holder.epoch, known);
        }
        self.live.epochs[partition] = (holder.epoch, holder.process);
        self.count("take-over");
        match before {
            Some(old) if old.process == holder.process && !old.released => {
                self.count("taken again");
            }
            Some(old) if !old.released => self.audit_take(partition, old, holder),
            _ => {}
        }
    }

    /// An ownership begins to serve under this number.
    pub(crate) fn audit_epoch(&mut self, process: usize, partition: usize, epoch: OwnerEpoch) {
        let known = self.epochs_served[partition];
        self.epochs_served[partition] = known.max(epoch);
        // It was stopped since its claim was stored, and has yet to hear of the next one.
        let late = self.processes[process].clear_since == self.now;
        if epoch < known && late && self.live.epochs[partition].0 > epoch {
            self.count("loaded too late");
        } else if epoch <= known {
            self.not_above(partition, epoch, known);
        }
    }

    fn not_above(&mut self, partition: usize, epoch: OwnerEpoch, known: OwnerEpoch) {
        self.fail(
            Breach::EpochNotAbove,
            format!("epoch {epoch} of partition {partition} is not above {known}"),
        );
    }

    /// A claim is taken from a member that did not release it.
    fn audit_take(&mut self, partition: usize, from: Holder, by: Holder) {
        let old = &self.members[&from.process];
        if old.name == self.members[&by.process].name {
            return self.count("member replaced");
        }
        if !self.processes[from.process].alive {
            return self.count("take-over from the dead");
        }
        if self.live.claims[partition].is_none() {
            return self.count("aged claim taken by another");
        }
        let id = &self.scenario.names[old.name];
        let now = self.now;
        let dead = self.scenario.timing.member_dead;
        let trouble = self.live.trouble;
        let standing = self.live.standing.get(id).cloned();
        let right = standing.as_ref().is_none_or(|standing| {
            standing.incarnation != from.process.to_string()
                || standing.left
                || standing.stalled
                || now.saturating_sub(standing.renewed.max(trouble)) >= dead
                // Before a trouble that was too short for others to miss two renewals.
                || self.live.refused_at.saturating_sub(standing.renewed) >= dead
                    && now - self.live.refused_at <= ON_ITS_WAY
                || standing
                    .stood_still
                    .is_some_and(|at| now - at <= ON_ITS_WAY)
        });
        self.count("zombie");
        if !right || self.live.refuses {
            self.fail(Breach::TakenFromTheLiving, format!(
                "partition {partition} is taken from process {}, which lives and is acknowledged, by process {}: {:?}, trouble {trouble:?}",
                from.process, by.process, standing
            ));
        }
    }

    /// A member believes that a partition is another's.
    pub(crate) fn audit_stop(&mut self, process: usize, partition: usize, epoch: OwnerEpoch) {
        let own = Some(Holder {
            process,
            epoch,
            released: false,
        });
        // What it saw last may be of a bucket that was lost.
        let told = self.members[&process].told_of == self.live.history;
        if told && self.live.holders[partition] == own && self.live.claims[partition].is_some() {
            self.fail(
                Breach::StopsItsOwn,
                format!("process {process} stops partition {partition}, which is its own"),
            );
        }
    }

    /// Who serves a partition now, from its load to the end of its sessions.
    pub(crate) fn serving(&self, partition: usize) -> Vec<usize> {
        let owners = self.watchers().into_iter();
        owners
            .filter_map(|process| self.members[&process].owners[partition])
            .filter(|owner| self.owners[*owner].phase != Phase::Gone)
            .collect()
    }

    /// Looks at how the partitions are served.
    pub(crate) fn on_audit(&mut self) {
        self.after(S, Ev::Audit);
        self.age_keys();
        let watchers = self.watchers();
        let well: Vec<usize> = watchers
            .iter()
            .copied()
            .filter(|process| !self.is_hampered(*process) && !self.live.refuses)
            .collect();
        let all_well = well.len() == watchers.len();
        let takes = |process: &usize| {
            !self.members[process].leaving && !self.members[process].sharding.is_draining()
        };
        let someone = all_well && well.iter().any(takes);
        let since = watchers
            .iter()
            .map(|process| self.processes[*process].clear_since)
            .chain([self.live.trouble, self.changed_at])
            .max()
            .unwrap_or_default();
        let wanted = self.wanted();
        for partition in 0..PARTITIONS {
            let serving = self.serving(partition);
            let mut served = self.served[partition];
            if serving.len() > 1 {
                if served.double_since.is_none() {
                    self.count("double session");
                }
                let double = *served.double_since.get_or_insert(self.now);
                let hampered = serving
                    .iter()
                    .any(|owner| !well.contains(&self.owners[*owner].process));
                if hampered {
                    served.double_since = Some(self.now);
                } else if self.now.saturating_sub(double.max(since)) > DOUBLE {
                    self.fail(
                        Breach::ServedTwice,
                        format!("partition {partition} is served twice: {serving:?}"),
                    );
                }
            } else {
                served.double_since = None;
            }
            if serving.is_empty() {
                let none = *served.none_since.get_or_insert(self.now);
                let room = wanted.owner(self.partition_of(partition)).is_some();
                if someone && !room {
                    self.count("unowned for want of room");
                }
                if !someone || !room {
                    served.none_since = Some(self.now);
                } else if self.now.saturating_sub(none.max(since)) > UNOWNED {
                    let why = self.explain(partition);
                    self.fail(
                        Breach::ServedByNobody,
                        format!("partition {partition} is served by nobody: {why}"),
                    );
                }
            } else if let Some(none) = served.none_since.take() {
                let lasted = u64::try_from((self.now - none).as_millis()).unwrap();
                self.coverage.add("ms unowned", lasted);
            }
            self.served[partition] = served;
        }
    }

    /// How each member sees a partition.
    fn explain(&self, partition: usize) -> String {
        let id = self.partition_of(partition);
        let watchers = self.watchers();
        let of = watchers.iter().map(|process| {
            let sharding = &self.members[process].sharding;
            let steady = sharding.observer().is_steady(self.now);
            let (standing, wants) = (
                sharding.claims().standing(id),
                sharding.assignment().owner(id),
            );
            let plan = sharding.last_plan();
            format!("process {process} is steady {steady}, sees {standing:?}, wants {wants:?} and plans {plan:?}")
        });
        of.collect::<Vec<_>>().join("; ")
    }

    /// What is missing for all members to agree, and for each partition to be where it should: with its owner, or, without room
    /// anywhere, with nobody or with who kept it.
    pub(crate) fn sharing_unrest(&self, partition: usize) -> Result<Option<usize>, String> {
        let id = self.partition_of(partition);
        let wanted = self.wanted();
        let wanted = wanted.owner(id);
        for process in self.watchers() {
            let wants = self.members[&process].sharding.assignment().owner(id);
            if wants != wanted {
                return Err(format!(
                    "partition {partition} is {wanted:?}'s, process {process} wants {wants:?}"
                ));
            }
        }
        let serving = self.serving(partition);
        let name = |owner: &usize| {
            let server = self.owners[*owner].process;
            self.scenario.names[self.members[&server].name].as_str()
        };
        match serving.as_slice() {
            [] if wanted.is_none() => Ok(None),
            [owner] if wanted.is_none_or(|wanted| wanted == name(owner)) => Ok(Some(*owner)),
            _ => Err(format!(
                "partition {partition} is {wanted:?}'s, and served by {serving:?}"
            )),
        }
    }
}
