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

use async_nats::{Client, Server, ServerAddr};
use tokio::time::Instant;

/// The time between two tries to find a better server when those before helped nothing: the fault is elsewhere, and each try makes all
/// consumers anew.
const SELDOM: Duration = Duration::from_secs(600);
/// Each of the others is tried so often before that.
const ROUNDS: usize = 2;
/// The same where nothing but a little record goes over the connection, and little is made anew.
const SELDOM_LIGHT: Duration = Duration::from_secs(60);
/// One that could not be reached so often, or more often, is tried a third as often as one that could.
const MOST_FAILED: usize = 2;

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
    /// Moves in a row that helped nothing.
    moves: usize,
    /// The time between two when each server was tried.
    seldom: Duration,
}

/// Whether there may be another server to go to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Others {
    /// So many were named to us.
    pub(crate) named: usize,
    /// One that the server names would be taken.
    pub(crate) discovers: bool,
}

impl Others {
    /// How many there are beside the one that is connected.
    pub(crate) fn count(self, client: &Client) -> usize {
        let told = match self.discovers {
            true => client.server_info().connect_urls.len(),
            false => 0,
        };
        self.named.max(told).saturating_sub(1)
    }
}

/// Which server is the next one: each in its turn, and those that cannot be reached less often.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// How often each was chosen.
    chosen: Vec<(ServerAddr, usize)>,
    last: Option<ServerAddr>,
}

impl Turns {
    /// One of these; not the last one again, unless there is nothing else.
    pub(crate) fn next(&mut self, servers: &[Server]) -> Option<ServerAddr> {
        self.chosen
            .retain(|(addr, _)| servers.iter().any(|server| server.addr == *addr));
        // One that is new is as good as the best, and no better; and from then on it waits as they do.
        let least = self.chosen.iter().map(|(_, times)| *times).min();
        for server in servers {
            if !self.chosen.iter().any(|(addr, _)| server.addr == *addr) {
                self.chosen
                    .push((server.addr.clone(), least.unwrap_or_default()));
            }
        }
        let rank = |server: &&Server| {
            let last = match &self.last {
                Some(last) => server.addr == *last,
                // The first time that a connection is left.
                None => server.did_connect,
            };
            let known = self.chosen.iter().find(|(addr, _)| server.addr == *addr);
            let times = known.map_or(0, |(_, times)| *times);
            let chance: u16 = rand::random();
            let turn = (times + 1) * (1 + server.failed_attempts.min(MOST_FAILED));
            (last, turn, chance)
        };
        let next = servers.iter().min_by_key(rank)?.addr.clone();
        if let Some((_, times)) = self.chosen.iter_mut().find(|(addr, _)| *addr == next) {
            *times += 1;
        }
        self.last = Some(next.clone());
        Some(next)
    }
}

/// What has not been answered over one connection.
#[derive(Debug)]
pub(crate) struct Reach {
    limit: Duration,
    jitter: f64,
    /// Streams that do not answer, to be cheap where all do.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

impl Reach {
    /// One for streams that are expected to answer within `limit`, elections included. `jitter` (1 to 2) stretches the time between
    /// tries that help nothing, so that not all processes try at the same moment.
    pub(crate) fn new(limit: Duration, jitter: f64) -> Self {
        Self {
            limit,
            jitter,
            count: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                unanswered: HashMap::new(),
                moved: None,
                wait: limit / 4,
                moves: 0,
                seldom: SELDOM.max(limit).mul_f64(jitter),
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
            (inner.wait, inner.moves) = (self.limit / 4, 0);
        }
        self.count.store(inner.unanswered.len(), Ordering::Relaxed);
    }

    /// To move costs little.
    pub(crate) fn is_light(&self) {
        self.inner().seldom = SELDOM_LIGHT.max(self.limit).mul_f64(self.jitter);
    }

    /// Everything that is asked over this connection is answered.
    pub(crate) fn all_is_well(&self) {
        let mut inner = self.inner();
        inner.unanswered.clear();
        (inner.wait, inner.moves) = (self.limit / 4, 0);
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

    /// Whether one of so many other servers may be tried now. True at most once in a while, which doubles as long as that helps
    /// nothing, and is long when each was tried.
    pub(crate) fn may_move(&self, now: Instant, others: usize) -> bool {
        let mut inner = self.inner();
        let since = inner
            .moved
            .map(|moved| now.saturating_duration_since(moved));
        match since {
            Some(since) if since < inner.wait => return false,
            // A question takes its time to be given up.
            Some(since) if since < inner.wait * 2 + self.limit => inner.moves += 1,
            // The first time, or it was well for a while.
            _ => (inner.wait, inner.moves) = (self.limit / 8, 1),
        }
        inner.wait = match inner.moves < others * ROUNDS {
            true => (inner.wait * 2).min(inner.seldom),
            false => inner.seldom,
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
        let reach = Reach::new(LIMIT, 1.0);
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
        let reach = Reach::new(LIMIT, 1.0);
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
        let reach = Reach::new(LIMIT, 1.0);
        let begin = Instant::now();
        let at = |seconds| begin + S * seconds;
        assert!(!reach.unanswered(APPEND, at(0), at(5)));
        assert!(!reach.unanswered(APPEND, at(1_000), at(1_005)));
        // Nor does who owns a partition.
        assert!(!reach.unanswered("mb.main.req.48", at(0), at(1_005)));
    }

    /// Asks each second, hears after five that there is no answer, and moves as soon as it may.
    fn moves(reach: &Reach, begin: Instant, seconds: std::ops::Range<u32>) -> Vec<u32> {
        let moves = seconds.filter(|second| {
            let now = begin + S * (*second + 5);
            reach.unanswered(APPEND, begin + S * *second, now) && reach.may_move(now, 2)
        });
        moves.collect()
    }

    /// One question at a time: while it moves, nothing is asked.
    #[test]
    fn moves_are_in_a_row_though_answers_are_waited_for() {
        let reach = Reach::new(LIMIT, 1.0);
        let (mut now, mut moves) = (Instant::now(), 0);
        for _ in 0..60 {
            let asked = now;
            now += S * 5;
            if reach.unanswered(APPEND, asked, now) && reach.may_move(now, 2) {
                moves += 1;
                now += S * 2;
            }
        }
        assert_eq!(moves, 4);
    }

    #[test]
    fn a_light_connection_is_tried_each_minute() {
        let reach = Reach::new(LIMIT, 1.0);
        reach.is_light();
        let moves = moves(&reach, Instant::now(), 0..300);
        assert_eq!(moves, [7, 10, 16, 28, 88, 148, 208, 268]);
    }

    #[test]
    fn what_helps_nothing_is_tried_ever_more_seldom() {
        let reach = Reach::new(LIMIT, 1.0);
        let begin = Instant::now();
        let long = moves(&reach, begin, 0..3_000);
        assert_eq!(long, [7, 10, 16, 28, 628, 1_228, 1_828, 2_428]);
        reach.answered(APPEND);
        assert_eq!(moves(&reach, begin, 3_000..3_020), [3_007, 3_010, 3_016]);
        // One that is never asked again keeps nothing as it is.
        let now = begin + S * 3_020;
        assert!(!reach.unanswered(OTHER, now, now));
        assert_eq!(moves(&reach, begin, 9_000..9_020), [9_007, 9_010, 9_016]);
    }

    fn server(name: &str, failed_attempts: usize) -> Server {
        Server {
            addr: format!("nats://{name}:4222").parse().unwrap(),
            failed_attempts,
            did_connect: false,
            is_discovered: false,
            last_error: None,
        }
    }

    /// Chance decides among equals, so often enough that no luck helps.
    #[test]
    fn servers_take_turns_and_those_that_fail_less_often() {
        for _ in 0..1_000 {
            take_turns();
        }
    }

    fn take_turns() {
        let mut turns = Turns::default();
        let mut servers = [server("a", 0), server("b", 0), server("c", 0)];
        // It is connected to the first.
        servers[0].did_connect = true;
        let mut next = |servers: &[Server]| turns.next(servers).unwrap().host().to_owned();
        let first = next(&servers);
        assert_ne!(first, "a");
        let second = next(&servers);
        assert_ne!(first, second);
        let mut round: Vec<String> = (0..9).map(|_| next(&servers)).collect();
        assert!(round.windows(2).all(|two| two[0] != two[1]), "{round:?}");
        round.sort();
        for name in ["a", "b", "c"] {
            let times = round.iter().filter(|host| *host == name).count();
            assert!((2..=4).contains(&times), "{round:?}");
        }
        // One that is never there is asked, but seldom; and one that is new is no better than the others.
        servers[1].failed_attempts = 30;
        let times = (0..70).filter(|_| next(&servers) == "b").count();
        assert!((5..=14).contains(&times), "{times}");
        let four = [servers[0].clone(), servers[2].clone(), server("d", 0)];
        let times = (0..9).filter(|_| next(&four) == "d").count();
        assert!((2..=4).contains(&times), "{times}");
        assert_eq!(next(&four[..1]), "a");
        assert_eq!(next(&four[..1]), "a");
        assert!(turns.next(&[]).is_none());
    }
}
