//! Whether the server of a connection has a way to all others.
//!
//! A NATS server passes nothing on for others: one that has lost its route to the leader of a stream still answers its clients, and
//! answers what it can by itself, while everything that only the leader can answer times out, or finds nobody. Another server
//! may well have the way, so a connection on which a stream does not answer for long is made anew.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::Client;
use tokio::time::Instant;

/// The longest time between two tries to find a better server: the fault may be elsewhere.
const SELDOM: Duration = Duration::from_secs(600);

/// Since when a stream has not answered.
#[derive(Debug, Clone, Copy)]
struct Unanswered {
    /// When the first question that has no answer was asked.
    since: Instant,
    /// When the last one was given up.
    last: Instant,
}

#[derive(Debug)]
struct Inner {
    unanswered: HashMap<String, Unanswered>,
    /// When a better server was last looked for.
    moved: Option<Instant>,
    /// The least time between two such moves.
    wait: Duration,
}

/// Whether there may be another server to go to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Others {
    /// More than one was named to us.
    pub(crate) named: bool,
    /// One that the server names would be taken.
    pub(crate) discovers: bool,
}

impl Others {
    pub(crate) fn exist(self, client: &Client) -> bool {
        self.named || (self.discovers && client.server_info().connect_urls.len() > 1)
    }
}

/// What has not been answered over one connection.
#[derive(Debug)]
pub(crate) struct Reach {
    limit: Duration,
    /// Streams that do not answer, to be cheap where all do.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

impl Reach {
    /// One for streams that are expected to answer within `limit`, elections included.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            count: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                unanswered: HashMap::new(),
                moved: None,
                wait: limit / 4,
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds the lock can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A question at this subject was answered, in whatever way.
    pub(crate) fn answered(&self, subject: &str) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Some(stream) = asked_of(subject) else {
            return;
        };
        let mut inner = self.inner();
        if inner.unanswered.remove(stream).is_some() && inner.unanswered.is_empty() {
            inner.wait = self.limit / 4;
        }
        self.count.store(inner.unanswered.len(), Ordering::Relaxed);
    }

    /// Everything that is asked over this connection is answered.
    pub(crate) fn all_is_well(&self) {
        let mut inner = self.inner();
        inner.unanswered.clear();
        inner.wait = self.limit / 4;
        self.count.store(0, Ordering::Relaxed);
    }

    /// A question at this subject that was asked at `asked` found nobody, or was given up. Says whether its stream has not answered
    /// for so long that another server should be tried.
    pub(crate) fn unanswered(&self, subject: &str, asked: Instant, now: Instant) -> bool {
        let Some(stream) = asked_of(subject) else {
            return false;
        };
        let mut inner = self.inner();
        // What was not asked in between says nothing of that time.
        let limit = self.limit;
        inner
            .unanswered
            .retain(|_, entry| asked.saturating_duration_since(entry.last) <= limit);
        let entry = inner
            .unanswered
            .entry(stream.to_owned())
            .or_insert(Unanswered {
                since: asked,
                last: now,
            });
        entry.last = now;
        let since = entry.since;
        self.count.store(inner.unanswered.len(), Ordering::Relaxed);
        now.saturating_duration_since(since) >= limit
    }

    /// Whether another server may be tried now. True at most once in a while, which doubles as long as that helps nothing.
    pub(crate) fn may_move(&self, now: Instant) -> bool {
        let mut inner = self.inner();
        let since = inner
            .moved
            .map(|moved| now.saturating_duration_since(moved));
        inner.wait = match since {
            Some(since) if since < inner.wait => return false,
            Some(since) if since < inner.wait * 2 => (inner.wait * 2).min(SELDOM.max(self.limit)),
            // The first time, or it was well for a while.
            _ => self.limit / 4,
        };
        inner.moved = Some(now);
        true
    }
}

/// What of a subject names the stream that must answer: some of ours, so there are few. `None`: no stream is asked.
fn asked_of(subject: &str) -> Option<&str> {
    let tokens = if subject.starts_with("$JS.API.STREAM.MSG.GET.") {
        6
    } else if subject.starts_with("$JS.API.") {
        5
    } else if subject.starts_with("$KV.") {
        2
    } else if subject.split('.').nth(2) == Some("log") {
        4
    } else {
        // Who owns a partition is asked by other rules.
        return None;
    };
    let end = subject
        .match_indices('.')
        .nth(tokens - 1)
        .map_or(subject.len(), |(at, _)| at);
    subject.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(12);
    const S: Duration = Duration::from_secs(1);
    const APPEND: &str = "mb.main.log.3.48.default.x";
    const OTHER: &str = "mb.main.log.4.64.default.x";

    #[test]
    fn the_stream_is_named_by_the_subject() {
        for (subject, stream) in [
            (APPEND, Some("mb.main.log.3")),
            ("mb.main.req.48", None),
            ("$KV.MB_main_LIVE.member.w-0", Some("$KV.MB_main_LIVE")),
            (
                "$JS.API.STREAM.MSG.GET.MB_main_LOG_3",
                Some("$JS.API.STREAM.MSG.GET.MB_main_LOG_3"),
            ),
            (
                "$JS.API.CONSUMER.CREATE.MB_main_LOG_3.abc.mb.main.log.3.>",
                Some("$JS.API.CONSUMER.CREATE.MB_main_LOG_3"),
            ),
            ("$JS.API.INFO", Some("$JS.API.INFO")),
        ] {
            assert_eq!(asked_of(subject), stream, "{subject}");
        }
    }

    #[test]
    fn another_server_is_looked_for_when_one_stream_is_silent_for_long() {
        let reach = Reach::new(LIMIT);
        let begin = Instant::now();
        let at = |seconds| begin + S * seconds;
        assert!(!reach.unanswered(APPEND, at(0), at(5)));
        // Others answer all the while.
        reach.answered(OTHER);
        assert!(!reach.unanswered(APPEND, at(5), at(10)));
        assert!(reach.unanswered(APPEND, at(8), at(13)));
    }

    #[test]
    fn an_answer_ends_the_count() {
        let reach = Reach::new(LIMIT);
        let begin = Instant::now();
        let at = |seconds| begin + S * seconds;
        assert!(!reach.unanswered(APPEND, at(0), at(5)));
        reach.answered(APPEND);
        assert!(!reach.unanswered(APPEND, at(8), at(13)));
        assert!(!reach.unanswered(OTHER, at(8), at(13)));
        reach.all_is_well();
        assert!(!reach.unanswered(OTHER, at(13), at(21)));
    }

    #[test]
    fn what_was_not_asked_counts_for_nothing() {
        let reach = Reach::new(LIMIT);
        let begin = Instant::now();
        let at = |seconds| begin + S * seconds;
        assert!(!reach.unanswered(APPEND, at(0), at(5)));
        assert!(!reach.unanswered(APPEND, at(1_000), at(1_005)));
        // Nor does who owns a partition.
        assert!(!reach.unanswered("mb.main.req.48", at(0), at(1_005)));
    }

    /// Asks each second and moves as soon as it may.
    fn moves(reach: &Reach, begin: Instant, seconds: std::ops::Range<u32>) -> Vec<u32> {
        let moves = seconds.filter(|second| {
            let now = begin + S * *second;
            reach.unanswered(APPEND, now, now) && reach.may_move(now)
        });
        moves.collect()
    }

    #[test]
    fn what_helps_nothing_is_tried_ever_more_seldom() {
        let reach = Reach::new(LIMIT);
        let begin = Instant::now();
        let long = moves(&reach, begin, 0..3_000);
        assert_eq!(
            long,
            [12, 15, 21, 33, 57, 105, 201, 393, 777, 1_377, 1_977, 2_577]
        );
        reach.answered(APPEND);
        assert_eq!(moves(&reach, begin, 3_000..3_020), [3_012, 3_015]);
        // One that is never asked again keeps nothing as it is.
        let now = begin + S * 3_020;
        assert!(!reach.unanswered(OTHER, now, now));
        assert_eq!(moves(&reach, begin, 9_000..9_020), [9_012, 9_015]);
    }
}
