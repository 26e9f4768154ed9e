//! Whether the mailboxes that should be watched are. Pure.
//!
//! Of those that are paused, or have something wrong of their own, nothing is said here: their accounts say so. Of those that nobody owns
//! it is not known which are, so all of them count.

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
/// How what is said of those that nobody owns begins.
const UNOWNED_TEXT: &str = "nobody watches";

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
    /// What was said before anybody has looked.
    said: Option<Progress>,
    last: Option<(Instant, Mailboxes)>,
    /// Since when some have waited, and none has come to be watched; and the fewest that have waited since.
    stuck: Option<(Instant, u64)>,
    /// Since when some have waited for their mail server.
    held: Option<Instant>,
}

impl Watched {
    /// Goes on with what is said of them in the status, by whoever led before.
    #[must_use]
    pub fn after(said: Option<Progress>, now: Instant) -> Self {
        let since = now.checked_sub(STUCK).unwrap_or(now);
        let (stuck, held) = match &said {
            // For how long nobody has owned them each look tells anew.
            Some(Progress::Failed { text, .. }) if !text.starts_with(UNOWNED_TEXT) => {
                (Some((since, u64::MAX)), None)
            }
            Some(Progress::Usable(_)) => (None, Some(since)),
            _ => (None, None),
        };
        Self {
            said,
            last: None,
            stuck,
            held,
        }
    }

    /// Notes what is seen now, if anything is.
    pub fn observe(&mut self, now: Instant, seen: Option<Mailboxes>) {
        let Some(seen) = seen.filter(|seen| seen.steady) else {
            return;
        };
        if self
            .last
            .is_some_and(|(last, _)| now.duration_since(last) > GAP)
        {
            *self = Self::default();
        }
        let before = self.last.map_or(seen, |(_, before)| before);
        // Those that end begin to wait, which is no reason to wait longer for the others. Nor is one that tries again and again, and is not
        // among those that wait meanwhile; but one that is watched again and again does come.
        self.stuck = match self.stuck {
            _ if seen.waiting == 0 => None,
            Some((since, fewest)) if seen.watched < before.watched => {
                Some((since, fewest.max(seen.waiting)))
            }
            Some((since, fewest)) if seen.watched == before.watched && seen.waiting >= fewest => {
                Some((since, fewest))
            }
            // Nobody has counted them until now.
            Some((since, u64::MAX)) => Some((since, seen.waiting)),
            _ => Some((now, seen.waiting)),
        };
        self.held = (seen.held > 0).then(|| self.held.unwrap_or(now));
        self.last = Some((now, seen));
    }

    /// What is wrong with them, once that has lasted, as it was when they were last seen; `None`: nothing.
    #[must_use]
    pub fn trouble(&self) -> Option<Progress> {
        let Some((last, seen)) = self.last else {
            return self.said.clone();
        };
        let lasts =
            |since: Option<Instant>| since.is_some_and(|since| last.duration_since(since) >= STUCK);
        let all = seen.registered;
        if seen.unowned > 0 && seen.unowned_for >= UNOWNED {
            // Where some are owned, and of these none is watched and none waits, the others may be paused just as well.
            let serves = seen.watched > 0 || (seen.waiting == 0 && seen.unowned < all);
            let text = format!(
                "{UNOWNED_TEXT} {} of {all}: `mailbell shards` says what waits, and why",
                seen.unowned
            );
            return Some(Progress::Failed { text, serves });
        }
        if lasts(self.stuck.map(|(since, _)| since)) {
            let text = format!(
                "{} of {all} wait to be watched, and none has come to be for {} minutes: `mailbell shards` says what for",
                seen.waiting,
                STUCK.as_secs() / 60
            );
            let serves = seen.watched > 0;
            return Some(Progress::Failed { text, serves });
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
            said.push(watched.trouble());
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
        // Whoever cannot tell who lives changes nothing.
        let unknown = Mailboxes {
            steady: false,
            ..mailboxes(0, 0)
        };
        failed(&looks(&mut watched, &mut now, unknown, 9), true);
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
        // A watcher dies.
        assert_eq!(looks(&mut watched, &mut now, mailboxes(40, 60), 1), [None]);
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

    /// A host that ends one session after another; a mailbox that tries again at every other look.
    #[test]
    fn who_goes_and_who_only_tries_is_no_reason_to_wait_longer() {
        let (mut watched, mut now) = (Watched::default(), Instant::now());
        for fewer in 1..=10 {
            let seen = mailboxes(100 - fewer, fewer);
            assert_eq!(looks(&mut watched, &mut now, seen, 1), [None]);
        }
        let said = looks(&mut watched, &mut now, mailboxes(89, 11), 1);
        assert!(failed(&said, true).starts_with("11 of 100 wait to be watched"));
        assert_eq!(looks(&mut watched, &mut now, mailboxes(90, 10), 1), [None]);
        for _ in 0..5 {
            for waiting in [10, 11] {
                let seen = mailboxes(90, waiting);
                watched.observe(now + LOOK, Some(seen));
                now += LOOK;
            }
        }
        failed(&[watched.trouble()], true);
        // They are not watched, but something of their own is found to be wrong with them.
        assert_eq!(looks(&mut watched, &mut now, mailboxes(90, 9), 1), [None]);
    }

    #[test]
    fn what_nobody_sees_is_not_said() {
        let (mut watched, mut now) = (Watched::default(), Instant::now());
        let seen = Mailboxes {
            held: 7,
            ..mailboxes(0, 20)
        };
        assert_eq!(looks(&mut watched, &mut now, seen, 10), vec![None; 10]);
        let unsteady = Mailboxes {
            steady: false,
            ..seen
        };
        assert_eq!(looks(&mut watched, &mut now, unsteady, 20), vec![None; 20]);
        watched.observe(now, None);
        assert_eq!(watched.trouble(), None);
    }

    #[test]
    fn what_was_said_before_is_said_until_a_look_shows_something_else() {
        let mut now = Instant::now();
        let said = |text: &str| {
            let (text, serves) = (text.to_owned(), true);
            Some(Progress::Failed { text, serves })
        };
        let (stuck, unowned) = (said("9 of 100 wait"), said("nobody watches 9 of 100"));
        let held = Some(Progress::Usable("9 of 100 wait".to_owned()));
        let unsteady = Mailboxes {
            steady: false,
            ..mailboxes(100, 0)
        };
        for before in [&stuck, &unowned, &held] {
            let mut watched = Watched::after(before.clone(), now);
            assert_eq!(watched.trouble(), *before);
            let said = looks(&mut watched, &mut now, unsteady, 9);
            assert_eq!(said, vec![before.clone(); 9]);
            assert_eq!(looks(&mut watched, &mut now, mailboxes(100, 0), 1), [None]);
        }
        let mut watched = Watched::after(stuck, now);
        let said = looks(&mut watched, &mut now, mailboxes(92, 8), 9);
        assert!(failed(&said[..1], true).starts_with("8 of 100 wait to be watched"));
        failed(&said, true);
        assert_eq!(looks(&mut watched, &mut now, mailboxes(93, 7), 1), [None]);
        // Those that wait now have just lost their watcher.
        let mut watched = Watched::after(unowned, now);
        let said = looks(&mut watched, &mut now, mailboxes(92, 8), 10);
        assert_eq!(said, vec![None; 10]);
        let seen = Mailboxes {
            held: 6,
            ..mailboxes(94, 0)
        };
        let mut watched = Watched::after(held, now);
        let said = looks(&mut watched, &mut now, seen, 1);
        assert!(
            matches!(&said[..], [Some(Progress::Usable(text))] if text.starts_with("6 of 100 wait, since"))
        );
    }

    /// All that somebody owns are paused, or have something wrong of their own: so may the others be.
    #[test]
    fn of_what_nobody_owns_it_is_not_known_whether_it_should_be_watched() {
        let unowned = |unowned, waiting| Mailboxes {
            unowned,
            unowned_for: UNOWNED,
            ..mailboxes(0, waiting)
        };
        for (seen, serves) in [
            (unowned(30, 0), true),
            (unowned(30, 1), false),
            (unowned(100, 0), false),
        ] {
            let (mut watched, mut now) = (Watched::default(), Instant::now());
            failed(&looks(&mut watched, &mut now, seen, 1), serves);
        }
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
