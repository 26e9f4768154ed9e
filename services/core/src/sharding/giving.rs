//! How fast partitions are given away.
//!
//! Two things bound it: what the members can do (load a partition, begin sessions), and what mail hosts let in again. An account that
//! is given away is not watched until it has logged in at its new owner, so what is given in a second is what can log in in a second:
//! else a hand-over that nobody is in a hurry for would leave accounts in the dark, waiting for their turn.

use std::{collections::BTreeMap, time::Duration};

use super::{assignment::Assignment, claims::Claims, liveness::Observer, planner::Pace};
use crate::ids::Partition;

/// Those whose turn comes within this time are no backlog.
const SOON: f64 = 5.0;
/// So many may wait anyway.
const LEAST_BACKLOG: u32 = 32;
/// However few logins there are, so many accounts are given away a second.
pub(super) const LEAST_RATE: f64 = 0.5;

/// Who is to get partitions that others have, and from how many.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Receivers {
    /// Members that should own what another living one has.
    receivers: u32,
    /// Their parts of the budgets at a mail host, added up: 1 is all that one address may do.
    parts: f64,
    /// Those that have it.
    givers: u32,
    /// Those of them that drain or leave.
    draining: u32,
}

/// One member that lives.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    wanted: u32,
    receives: bool,
    gives: bool,
    drains: bool,
    /// All that it has is still being loaded: of that it can give nothing, and it may take as long as a stream is away.
    loads: bool,
}

impl Receivers {
    pub(super) fn new(
        partitions: &[Partition],
        claims: &Claims,
        observer: &Observer,
        assignment: &Assignment,
    ) -> Self {
        let mut members: BTreeMap<&str, (&str, Side)> = observer
            .live()
            .map(|member| {
                let load = member.load.unwrap_or_default();
                let side = Side {
                    drains: member.draining,
                    loads: load.loading > 0 && load.serving == 0 && load.handing_over == 0,
                    ..Side::default()
                };
                (&*member.id, (&*member.egress, side))
            })
            .collect();
        for partition in partitions.iter().copied() {
            let Some(wanted) = assignment.owner(partition) else {
                continue;
            };
            let claim = claims.claim(partition).filter(|claim| !claim.released);
            let moves = claim
                .filter(|claim| claim.member != wanted)
                .and_then(|claim| members.get_mut(&*claim.member))
                .map(|(_, giver)| giver.gives = true)
                .is_some();
            if let Some((_, side)) = members.get_mut(wanted) {
                side.wanted += 1;
                side.receives |= moves;
            }
        }
        // Those with one address share a budget by what they should own.
        let mut together: BTreeMap<&str, u32> = BTreeMap::new();
        for (egress, side) in members.values() {
            *together.entry(egress).or_default() += side.wanted;
        }
        let mut receivers = Self::default();
        for (egress, side) in members.values() {
            receivers.givers += u32::from(side.gives);
            receivers.draining += u32::from(side.gives && side.drains && !side.loads);
            if side.receives {
                receivers.receivers += 1;
                let of = together.get(egress).copied().unwrap_or_default();
                receivers.parts += f64::from(side.wanted) / f64::from(of.max(1));
            }
        }
        receivers
    }

    /// Of `logins` a second that one address may do, those of the receivers.
    fn theirs(self, logins: f64) -> f64 {
        logins * self.parts
    }

    /// Of `logins` a second that one address may do, those that one giver may cause, which does no more than `usual` itself. Who drains
    /// goes first: the others, which move partitions for balance alone, share what those that drain leave.
    fn of_one(self, logins: f64, usual: f64, drains: bool) -> f64 {
        let all = self.theirs(logins);
        let draining = f64::from(self.draining);
        if drains {
            // Its own record may be late.
            return all / draining.max(1.0);
        }
        let others = self.givers.saturating_sub(self.draining);
        (all - usual * draining).max(0.0) / f64::from(others.max(1))
    }
}

/// What may be given away now.
#[derive(Debug)]
pub(super) struct Giving {
    pace: Pace,
    /// Of all the accounts here, so many could log in a second if all members took part.
    logins: Option<f64>,
    /// Accounts and partitions that may be given.
    work: f64,
    /// Accounts that may be given.
    accounts: f64,
    filled: Duration,
    /// What came last a second: the buckets hold no more.
    rates: (f64, f64),
    /// Its partitions go before those of members that do not drain.
    draining: bool,
    /// Since it leaves: what has to go a second.
    leaving: Option<f64>,
}

impl Giving {
    pub(super) fn new(pace: Pace) -> Self {
        let usual = f64::from(pace.accounts_per_second.max(1));
        Self {
            pace,
            logins: None,
            work: usual,
            accounts: usual,
            filled: Duration::ZERO,
            rates: (usual, usual),
            draining: false,
            leaving: None,
        }
    }

    pub(super) fn set_logins(&mut self, logins: f64) {
        self.logins = Some(logins).filter(|logins| logins.is_finite() && *logins >= 0.0);
    }

    pub(super) fn drain(&mut self, draining: bool) {
        self.draining = draining;
    }

    /// It has to give `owned` accounts and partitions away, and does so within half of the time that it has, whatever others can do.
    pub(super) fn leave(&mut self, within: Duration, owned: u32) {
        let half = within.as_secs_f64().max(2.0) / 2.0;
        let usual = f64::from(self.pace.accounts_per_second.max(1));
        self.leaving = Some(usual.max(f64::from(owned) / half + 1.0));
    }

    /// How fast it goes now, with a backlog that is worked off soon.
    pub(super) fn pace(&self, receivers: Receivers) -> Pace {
        let Some(logins) = self.logins else {
            return self.pace;
        };
        let each = receivers.theirs(logins) / f64::from(receivers.receivers.max(1));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates"
        )]
        let soon = (each * SOON) as u32;
        Pace {
            soon: soon.max(LEAST_BACKLOG),
            ..self.pace
        }
    }

    /// Time has passed.
    pub(super) fn fill(&mut self, now: Duration, receivers: Receivers) {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.filled = now;
        let usual = f64::from(self.pace.accounts_per_second.max(1));
        self.rates = match (self.leaving, self.logins) {
            (Some(rate), _) => (rate, rate),
            (None, Some(logins)) if receivers.receivers > 0 => {
                let ours = receivers.of_one(logins, usual, self.draining);
                (usual, ours.max(LEAST_RATE).min(usual))
            }
            (None, _) => (usual, usual),
        };
        let (work, accounts) = self.rates;
        self.work = (self.work + work * passed).min(work);
        self.accounts = (self.accounts + accounts * passed).min(accounts);
    }

    /// Whether a partition with so many accounts may be given now; if so, it counts. One that is larger than a bucket goes when that is
    /// full, and is paid for afterwards.
    pub(super) fn give(&mut self, accounts: u32) -> bool {
        let accounts = f64::from(accounts);
        let may = self.work >= (accounts + 1.0).min(self.rates.0)
            && (accounts == 0.0 || self.accounts >= accounts.min(self.rates.1));
        if may {
            self.work -= accounts + 1.0;
            self.accounts -= accounts;
        }
        may
    }
}

#[cfg(test)]
mod tests;
