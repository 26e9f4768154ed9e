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
const LEAST_BACKLOG: u32 = 8;

/// Who is to get more partitions, and from how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Receivers {
    /// Members that should own more than they do.
    receivers: u32,
    /// What they should own together, of `all`.
    wanted: u32,
    /// Those that live and own more than they should.
    givers: u32,
    all: u32,
}

impl Receivers {
    pub(super) fn new(
        partitions: &[Partition],
        claims: &Claims,
        observer: &Observer,
        assignment: &Assignment,
    ) -> Self {
        let mut members: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for partition in partitions.iter().copied() {
            let claim = claims.claim(partition).filter(|claim| !claim.released);
            if let Some(claim) = claim {
                members.entry(&claim.member).or_default().0 += 1;
            }
            if let Some(wanted) = assignment.owner(partition) {
                members.entry(wanted).or_default().1 += 1;
            }
        }
        let mut receivers = Self {
            all: u32::try_from(partitions.len()).unwrap_or(u32::MAX),
            ..Self::default()
        };
        for (id, (held, wanted)) in members {
            if held < wanted {
                receivers.receivers += 1;
                receivers.wanted += wanted;
            } else if held > wanted && observer.live().any(|member| member.id == id) {
                receivers.givers += 1;
            }
        }
        receivers
    }

    /// Of `logins` a second that are shared by what members should own: those of the receivers.
    fn theirs(self, logins: f64) -> f64 {
        logins * f64::from(self.wanted) / f64::from(self.all.max(1))
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
        }
    }

    pub(super) fn set_logins(&mut self, logins: f64) {
        self.logins = Some(logins).filter(|logins| logins.is_finite() && *logins >= 0.0);
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
            backlog: self.pace.backlog.min(soon.max(LEAST_BACKLOG)),
            ..self.pace
        }
    }

    /// Time has passed. One that is `leaving` gives the `owned` accounts and partitions away within half of that time, whatever the
    /// others can do.
    pub(super) fn fill(
        &mut self,
        now: Duration,
        receivers: Receivers,
        leaving: Option<(Duration, u32)>,
    ) {
        let passed = now.saturating_sub(self.filled).as_secs_f64();
        self.filled = now;
        let usual = f64::from(self.pace.accounts_per_second.max(1));
        let (work, accounts) = match (leaving, self.logins) {
            (Some((within, owned)), _) => {
                let half = within.as_secs_f64().max(2.0) / 2.0;
                let rate = usual.max(f64::from(owned) / half + 1.0);
                (rate, rate)
            }
            (None, Some(logins)) => {
                let ours = receivers.theirs(logins) / f64::from(receivers.givers.max(1));
                (usual, ours.min(usual))
            }
            (None, None) => (usual, usual),
        };
        self.work = (self.work + work * passed).min(work);
        self.accounts = (self.accounts + accounts * passed).min(accounts);
        self.rates = (work, accounts);
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
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn receivers(receivers: u32, wanted: u32, givers: u32) -> Receivers {
        Receivers {
            receivers,
            wanted,
            givers,
            all: 1024,
        }
    }

    /// How many accounts go in so many seconds, in partitions of `size`.
    fn given(giving: &mut Giving, seconds: std::ops::Range<u32>, size: u32, to: Receivers) -> u32 {
        let mut given = 0;
        for step in seconds.start * 5..seconds.end * 5 {
            giving.fill(S * step / 5, to, None);
            while giving.give(size) {
                given += size;
            }
        }
        given
    }

    #[test]
    fn no_more_is_given_than_can_log_in() {
        let mut giving = Giving::new(Pace::default());
        giving.set_logins(50.0);
        // A fourth member gets a quarter from three: 12.5 logins a second are its part, and a third of them are for what we give.
        let to = receivers(1, 256, 3);
        giving.fill(Duration::ZERO, to, None);
        let a_minute = given(&mut giving, 0..60, 3, to);
        assert!((245..=260).contains(&a_minute), "{a_minute}");
        // Partitions without accounts wait for nobody.
        assert!(giving.give(0));
        // A large one goes when the bucket is full, and then nothing until it is paid for.
        let mut large = Giving::new(Pace::default());
        large.set_logins(50.0);
        large.fill(Duration::ZERO, to, None);
        let a_minute = given(&mut large, 0..60, 100, to);
        assert_eq!(a_minute, 300);
    }

    #[test]
    fn many_hosts_are_bound_by_the_members_alone() {
        let mut giving = Giving::new(Pace::default());
        giving.set_logins(1e9);
        let to = receivers(1, 256, 3);
        let seconds = given(&mut giving, 0..10, 9, to);
        assert!((9_000..=10_000).contains(&seconds), "{seconds}");
        assert_eq!(giving.pace(to), Pace::default());
        giving.set_logins(f64::NAN);
        assert_eq!(giving.pace(to), Pace::default());
    }

    #[test]
    fn a_backlog_is_what_takes_longer_than_a_few_seconds() {
        let mut giving = Giving::new(Pace::default());
        giving.set_logins(50.0);
        assert_eq!(giving.pace(receivers(1, 256, 3)).backlog, 62);
        assert_eq!(giving.pace(receivers(2, 512, 2)).backlog, 62);
        assert_eq!(giving.pace(receivers(1, 10, 3)).backlog, LEAST_BACKLOG);
        giving.set_logins(5000.0);
        assert_eq!(giving.pace(receivers(1, 256, 3)).backlog, 500);
    }

    #[test]
    fn one_that_leaves_waits_for_nobody() {
        let mut giving = Giving::new(Pace::default());
        giving.set_logins(1.0);
        let mut given = 0;
        for step in 0..50 {
            giving.fill(S * step / 5, receivers(3, 1024, 1), Some((S * 20, 30_000)));
            while giving.give(29) {
                given += 30;
            }
        }
        assert!((29_000..=33_000).contains(&given), "{given}");
    }
}
