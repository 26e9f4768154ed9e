//! Whether the mailboxes that should be watched are. Pure.
//!
//! Those that are paused, or have something wrong of their own, are not asked for: their accounts say so.

use std::time::Duration;

use mailbell_proto::admin::v1::{GetShardsResponse, MemberState};
use tokio::time::Instant;

use crate::{progress::Progress, sizing::GAP};

/// Nobody has owned some for so long: then the alert `MailbellMailboxesUnwatched` (`charts/mailbell/files/alerts.yaml`) fires too. That a
/// watcher has died is known after 12 s, and a hand-over takes less.
const UNOWNED: Duration = Duration::from_secs(120);
/// For so long some have waited and none has come to be watched. Where many log in each look sees more that are: 10,000 at one host, at 50
/// a second, take 200 s in all, and of a host that lets one in every 20 s there are fifteen in this time.
const STUCK: Duration = Duration::from_secs(300);

/// The mailboxes at one look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mailboxes {
    /// All of them.
    pub registered: u64,
    /// Those that are watched.
    pub watched: u64,
    /// Those that no living watcher owns.
    pub unowned: u64,
    /// For how long the first of these has been so.
    pub unowned_for: Duration,
    /// Those that log in, or wait for their turn.
    pub waiting: u64,
    /// Those that wait until their mail server works again for others.
    pub held: u64,
    /// Whether it can be told who lives.
    pub steady: bool,
}

impl Mailboxes {
    /// As the admin API tells it; `None`: it does not say how many there are.
    #[must_use]
    pub fn of(answer: &GetShardsResponse) -> Option<Self> {
        let totals = answer.totals?;
        let mut seen = Self {
            registered: totals.accounts,
            unowned: totals.accounts_unowned,
            unowned_for: Duration::from_millis(totals.unowned_ms),
            steady: answer.steady,
            ..Self::default()
        };
        let living = answer.members.iter().filter(|member| {
            // What the others last said of themselves holds no longer.
            !matches!(
                member.state(),
                MemberState::Dead | MemberState::Left | MemberState::Stalled
            )
        });
        for member in living {
            seen.watched += u64::from(member.watching);
            seen.waiting += u64::from(member.starting) + u64::from(member.waiting_pace);
            seen.held += u64::from(member.waiting_circuit);
        }
        Some(seen)
    }
}

/// What was seen of one installation's mailboxes. What is not known now is as it was.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    last: Option<(Instant, Mailboxes)>,
    /// Since when some have waited, and none has come to be watched.
    stuck: Option<Instant>,
    /// Since when some have waited for their mail server.
    held: Option<Instant>,
}

impl Watched {
    /// Notes what is seen now, if anything is.
    pub fn observe(&mut self, now: Instant, seen: Option<Mailboxes>) {
        let Some(seen) = seen.filter(|seen| seen.steady) else {
            return;
        };
        if self
            .last
            .is_none_or(|(last, _)| now.duration_since(last) > GAP)
        {
            *self = Self::default();
        }
        let before = self.last.map_or(0, |(_, before)| before.watched);
        // Where there are fewer, those that have just ended begin to wait.
        if seen.watched != before {
            self.stuck = None;
        }
        let since = |since: Option<Instant>, count| (count > 0).then(|| since.unwrap_or(now));
        self.stuck = since(self.stuck, seen.waiting);
        self.held = since(self.held, seen.held);
        self.last = Some((now, seen));
    }

    /// What is wrong with them, once that has lasted; `None`: nothing.
    #[must_use]
    pub fn trouble(&self, now: Instant) -> Option<Progress> {
        let (_, seen) = self.last?;
        let lasts =
            |since: Option<Instant>| since.is_some_and(|since| now.duration_since(since) >= STUCK);
        let all = seen.registered;
        let failed = |text| {
            let serves = seen.watched > 0;
            Some(Progress::Failed { text, serves })
        };
        if seen.unowned > 0 && seen.unowned_for >= UNOWNED {
            return failed(format!(
                "nobody watches {} of {all}: `mailbell shards` says what waits, and why",
                seen.unowned
            ));
        }
        if lasts(self.stuck) {
            return failed(format!(
                "{} of {all} wait to be watched, and none has come to be for {} minutes: `mailbell shards` says what for",
                seen.waiting,
                STUCK.as_secs() / 60
            ));
        }
        // Of these the mail server is to be mended, not the installation.
        lasts(self.held).then(|| {
            Progress::Usable(format!(
                "{} of {all} wait, since their mail server fails for many: `mailbell account list` says which",
                seen.held
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use mailbell_proto::admin::v1::{ShardMember, ShardTotals};

    use super::*;

    const LOOK: Duration = Duration::from_secs(30);

    fn mailboxes(watched: u64, waiting: u64) -> Mailboxes {
        Mailboxes {
            registered: 100,
            watched,
            waiting,
            steady: true,
            ..Mailboxes::default()
        }
    }

    /// What is said after each of so many looks that see the same.
    fn looks(
        watched: &mut Watched,
        now: &mut Instant,
        seen: Mailboxes,
        many: u32,
    ) -> Vec<Option<Progress>> {
        let mut said = Vec::new();
        for _ in 0..many {
            *now += LOOK;
            watched.observe(*now, Some(seen));
            said.push(watched.trouble(*now));
        }
        said
    }

    fn failed(said: &[Option<Progress>], serves: bool) -> &str {
        match said.last() {
            Some(Some(Progress::Failed { text, serves: they })) if *they == serves => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_nobody_owns_is_told_when_the_alert_is() {
        let (mut watched, mut now) = (Watched::default(), Instant::now());
        let unowned = |seconds, watched| Mailboxes {
            unowned: 30,
            unowned_for: Duration::from_secs(seconds),
            ..mailboxes(watched, 0)
        };
        assert_eq!(
            looks(&mut watched, &mut now, unowned(119, 70), 9),
            vec![None; 9]
        );
        let said = looks(&mut watched, &mut now, unowned(120, 70), 1);
        assert!(failed(&said, true).starts_with("nobody watches 30 of 100: `mailbell shards`"));
        failed(&looks(&mut watched, &mut now, unowned(120, 0), 1), false);
        // Whoever cannot tell who lives changes nothing.
        let unknown = Mailboxes {
            steady: false,
            ..mailboxes(0, 0)
        };
        failed(&looks(&mut watched, &mut now, unknown, 9), false);
        assert_eq!(looks(&mut watched, &mut now, mailboxes(70, 0), 1), [None]);
    }

    #[test]
    fn a_storm_of_logins_is_none_while_it_goes_on() {
        let (mut watched, mut now) = (Watched::default(), Instant::now());
        // Nine looks see no more than the one before, one in ten does, for hours.
        for more in 0..40 {
            let said = looks(&mut watched, &mut now, mailboxes(more, 100 - more), 10);
            assert_eq!(said, vec![None; 10]);
        }
        // A watcher has died.
        assert_eq!(looks(&mut watched, &mut now, mailboxes(10, 90), 1), [None]);
        assert_eq!(
            looks(&mut watched, &mut now, mailboxes(11, 89), 10),
            vec![None; 10]
        );
        let said = looks(&mut watched, &mut now, mailboxes(11, 89), 1);
        let text = failed(&said, true);
        assert!(text.starts_with("89 of 100 wait to be watched"), "{text}");
        assert!(text.contains("for 5 minutes: `mailbell shards`"), "{text}");
        assert_eq!(looks(&mut watched, &mut now, mailboxes(12, 88), 1), [None]);
    }

    #[test]
    fn where_none_is_watched_nothing_is_served() {
        let (mut watched, mut now) = (Watched::default(), Instant::now());
        let said = looks(&mut watched, &mut now, mailboxes(0, 20), 11);
        assert_eq!(said[..10], vec![None; 10]);
        failed(&said, false);
        // All are paused, or have something wrong of their own.
        assert_eq!(
            looks(&mut watched, &mut now, mailboxes(0, 0), 20),
            vec![None; 20]
        );
    }

    #[test]
    fn of_a_mail_server_that_fails_it_is_told_and_all_else_serves() {
        let (mut watched, mut now) = (Watched::default(), Instant::now());
        let held = Mailboxes {
            held: 20,
            ..mailboxes(0, 0)
        };
        let said = looks(&mut watched, &mut now, held, 11);
        assert_eq!(said[..10], vec![None; 10]);
        let Some(Some(Progress::Usable(text))) = said.last() else {
            panic!("{said:?}");
        };
        assert!(
            text.starts_with("20 of 100 wait, since their mail server"),
            "{text}"
        );
        // Of the time in which nobody looked nothing is known.
        now += GAP;
        assert_eq!(looks(&mut watched, &mut now, held, 10), vec![None; 10]);
    }

    #[test]
    fn what_the_dead_last_said_is_not_counted() {
        let member = |state: MemberState| ShardMember {
            state: state.into(),
            owned: 1,
            watching: 7,
            starting: 1,
            waiting_pace: 2,
            waiting_circuit: 4,
            quarantined: 8,
            held_back: 16,
            ..ShardMember::default()
        };
        let answer = GetShardsResponse {
            members: vec![
                member(MemberState::Live),
                member(MemberState::Quiet),
                member(MemberState::Dead),
                member(MemberState::Stalled),
                member(MemberState::Left),
            ],
            totals: Some(ShardTotals {
                accounts: 90,
                accounts_unowned: 5,
                unowned_ms: 7_000,
                ..ShardTotals::default()
            }),
            steady: true,
            ..GetShardsResponse::default()
        };
        let seen = Mailboxes {
            registered: 90,
            watched: 14,
            unowned: 5,
            unowned_for: Duration::from_secs(7),
            waiting: 6,
            held: 8,
            steady: true,
        };
        assert_eq!(Mailboxes::of(&answer), Some(seen));
        assert_eq!(Mailboxes::of(&GetShardsResponse::default()), None);
    }
}
