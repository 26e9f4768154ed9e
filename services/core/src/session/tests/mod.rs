//! Single steps of the session. The interleavings are the simulation's, in `tests/sim`; what it found is in [`found`].

mod content;
mod found;
mod ownership;
mod passing;
mod status;

use super::*;
use mailbell_proto::push::v1::{ContentLevel, Health, Message};
use prost::Message as _;
use rand::{SeedableRng as _, rngs::SmallRng};

use crate::{event::Fact, ids::INBOX, timing::Timing};

/// A session with what it asked for last.
struct Bench {
    session: Session,
    rng: SmallRng,
    now: Now,
    position: Position,
    effects: Vec<Effect>,
}

const LOG: LogId = LogId([7; 16]);

impl Bench {
    fn new(known: Known) -> Self {
        let config = Config {
            account: "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            folders: vec!["INBOX".to_owned()],
            paused: None,
            content: ContentLevel::Preview,
            owner_epoch: 1,
            limits: Limits {
                flood: 5,
                page: 2,
                ..Limits::default()
            },
            timing: Timing::default(),
        };
        let now = Now {
            mono: Duration::from_secs(1),
            wall_us: 1_000_000_000_000,
        };
        Self {
            session: Session::new(config, known, now),
            rng: SmallRng::seed_from_u64(1),
            now,
            position: 0,
            effects: Vec::new(),
        }
    }

    fn watching() -> Self {
        let mut checkpoint = Checkpoint::first([("INBOX".to_owned(), 9, 10)], 999_000_000_000);
        // Devices know already: no AccountState comes between what these tests are about.
        checkpoint.health = Health::Watching;
        let mut bench = Self::new(Known {
            checkpoint,
            revision: Some(1),
            unstored_from: None,
        });
        bench.open();
        bench
    }

    fn open(&mut self) {
        self.open_with(true, Duration::from_millis(30));
    }

    fn open_with(&mut self, idle: bool, handshake: Duration) {
        self.give(Input::Start);
        let op = self.take(|effect| match effect {
            Effect::Open { op } => Some(*op),
            _ => None,
        });
        self.give(Input::Opened {
            op,
            idle,
            handshake,
            quiet_folders: Vec::new(),
        });
    }

    fn give(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.session
            .handle(self.now, &mut self.rng, input, &mut effects);
        self.effects.extend(effects);
    }

    /// The first effect that `which` accepts; what came before it is forgotten.
    fn take<T>(&mut self, which: impl Fn(&Effect) -> Option<T>) -> T {
        let (index, found) = self
            .effects
            .iter()
            .enumerate()
            .find_map(|(index, effect)| which(effect).map(|found| (index, found)))
            .unwrap_or_else(|| panic!("not among {:?}", self.effects));
        self.effects.drain(..=index);
        found
    }

    fn has(&self, which: impl Fn(&Effect) -> bool) -> bool {
        self.effects.iter().any(which)
    }

    fn look(&mut self, look: Look) {
        let op = self.take(|effect| match effect {
            Effect::Look { op, .. } => Some(*op),
            _ => None,
        });
        self.give(Input::Looked { op, look });
    }

    fn fetch(&mut self) -> Vec<u32> {
        let (op, uids) = self.asked();
        self.fetched(op, &uids);
        uids
    }

    /// The page that is to be fetched.
    fn asked(&mut self) -> (Op, Vec<u32>) {
        self.take(|effect| match effect {
            Effect::Fetch { op, uids } => Some((*op, uids.clone())),
            _ => None,
        })
    }

    fn fetched(&mut self, op: Op, uids: &[u32]) {
        let messages = uids
            .iter()
            .map(|uid| Fetched {
                message: Message {
                    uid: *uid,
                    subject: format!("message {uid}"),
                    preview: "text".to_owned(),
                    internal_date_ms: self.now.wall_us / 1000,
                    ..Message::default()
                },
                traceparent: String::new(),
            })
            .collect();
        self.give(Input::FetchedPage { op, messages });
    }

    /// The connection is lost with what was asked for, and comes back. How long that took.
    fn disconnect(&mut self, op: Op) -> Duration {
        let begin = self.now.mono;
        self.give(Input::Failed {
            op,
            failure: Failure {
                code: "disconnected",
                sentence: "The mail server closed the connection.".to_owned(),
                severity: Severity::Transient,
            },
        });
        while !self.has(|effect| matches!(effect, Effect::Open { .. })) {
            self.now.mono += Duration::from_millis(100);
            self.give(Input::Tick);
            // Devices are told of a long failure.
            self.appends();
        }
        self.open();
        self.now.mono - begin
    }

    fn append(&mut self) -> (Op, Event) {
        self.take(|effect| match effect {
            Effect::Append { op, event, .. } => Some((*op, (**event).clone())),
            _ => None,
        })
    }

    fn stored(&mut self, op: Op) {
        self.position += 1;
        let outcome = Outcome::Stored {
            log_id: LOG,
            position: self.position,
        };
        self.give(Input::Appended { op, outcome });
    }

    /// Acknowledges appends until none is asked for, and answers what they said.
    fn appends(&mut self) -> Vec<Fact> {
        let mut facts = Vec::new();
        while self.has(|effect| matches!(effect, Effect::Append { .. })) {
            let (op, event) = self.append();
            facts.push(event.fact);
            self.stored(op);
        }
        facts
    }
}

fn look(uids: &[u32]) -> Look {
    let uid_next = uids.last().map_or(10, |last| last + 1);
    Look {
        generation: 9,
        uid_next,
        uid_next_exact: true,
        total_new: uids.len() as u32,
        uids: uids.to_vec(),
        late: Vec::new(),
    }
}

#[test]
fn an_arrival_is_appended_and_known_only_then() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    assert_eq!(bench.fetch(), [10]);
    let (op, event) = bench.append();
    assert!(event.alert);
    assert_eq!(
        bench.session.checkpoint().folder(INBOX).unwrap().uid_next,
        10
    );
    bench.stored(op);
    assert_eq!(
        bench.session.checkpoint().folder(INBOX).unwrap().uid_next,
        11
    );
    assert!(bench.has(|effect| matches!(effect, Effect::Park { idle: true, .. })));
    // The acknowledgement again, and one of another time, change nothing.
    bench.stored(op);
    bench.stored(Op(999));
    assert_eq!(
        bench.session.checkpoint().folder(INBOX).unwrap().uid_next,
        11
    );
}

#[test]
fn without_a_checkpoint_it_starts_at_uidnext_and_says_so() {
    let mut bench = Bench::new(Known::default());
    bench.open();
    bench.look(look(&[]));
    bench.appends();
    bench.look(look(&[9]));
    let facts = bench.appends();
    assert!(
        matches!(facts[0], Fact::Resync { uid_next: 10, .. }),
        "{facts:?}"
    );
    assert_eq!(
        bench.session.checkpoint().folder(INBOX).unwrap().uid_next,
        10
    );
}

#[test]
fn a_flood_is_bulk_and_then_the_newest() {
    let mut bench = Bench::watching();
    bench.appends();
    // 24 is not there yet.
    let new: Vec<_> = (10..=30).filter(|uid| *uid != 24).collect();
    bench.look(look(&new));
    let mut facts = Vec::new();
    loop {
        facts.extend(bench.appends());
        if !bench.has(|effect| matches!(effect, Effect::Fetch { .. })) {
            break;
        }
        bench.fetch();
    }
    assert!(
        matches!(
            facts[0],
            Fact::Bulk {
                first: 10,
                last: 25,
                ..
            }
        ),
        "{facts:?}"
    );
    let uids: Vec<_> = facts[1..]
        .iter()
        .map(|fact| match fact {
            Fact::Arrived { uid, .. } => *uid,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(uids, [26, 27, 28, 29, 30]);
    // What was there is in the range; only what was not is looked for again, and told.
    let soon = found::timer(&bench).unwrap();
    let (op, from, holes) = found::look_at(&mut bench, soon);
    assert_eq!((from, holes), (31, vec![(24, 24)]));
    let mut late = look(&[]);
    late.uid_next = 31;
    late.late.push(24);
    bench.give(Input::Looked { op, look: late });
    assert_eq!(bench.fetch(), [24]);
}

#[test]
fn another_generation_is_one_resync() {
    let mut bench = Bench::watching();
    bench.appends();
    let anew = Look {
        generation: 11,
        uid_next: 4,
        uid_next_exact: true,
        ..Look::default()
    };
    bench.look(anew.clone());
    bench.look(anew);
    let facts = bench.appends();
    assert!(
        facts
            .iter()
            .any(|fact| matches!(fact, Fact::Resync { uid_next: 4, .. })),
        "{facts:?}"
    );
    let folder = bench.session.checkpoint().folder(INBOX).unwrap();
    assert_eq!((folder.generation, folder.uid_next), (11, 4));
}

#[test]
fn an_unanswered_append_goes_out_again_as_it_was() {
    let mut bench = Bench::watching();
    bench.look(look(&[10]));
    bench.fetch();
    let (op, event) = bench.append();
    bench.give(Input::Appended {
        op,
        outcome: Outcome::NoAnswer,
    });
    bench.now.mono += Duration::from_secs(20);
    bench.give(Input::Tick);
    let (op, again) = bench.append();
    assert_eq!(again, event);
    // After a disconnect the tail is read first; it holds the event, so it is not sent a third time.
    bench.give(Input::Appended {
        op,
        outcome: Outcome::Disconnected,
    });
    bench.now.mono += Duration::from_secs(20);
    bench.give(Input::Tick);
    let op = bench.take(|effect| match effect {
        Effect::ReadTail { op, .. } => Some(*op),
        _ => None,
    });
    let position = bench.position + 1;
    bench.give(Input::TailRead {
        op,
        tail: Some(Tail {
            log_id: LOG,
            events: vec![(position, event.clone())],
            read_to: position,
        }),
    });
    assert!(!bench.has(|effect| matches!(effect, Effect::Append { .. })));
    assert_eq!(
        bench.session.checkpoint().folder(INBOX).unwrap().uid_next,
        11
    );
}

#[test]
fn a_wrong_password_needs_two_tries_to_be_believed() {
    let mut bench = Bench::watching();
    bench.appends();
    let failure = Failure {
        code: "bad-credentials",
        sentence: "The mail server refuses the password.".to_owned(),
        severity: Severity::Permanent,
    };
    bench.give(Input::Relogin);
    for expected in [Health::Retrying, Health::ActionNeeded] {
        bench.now.mono += Duration::from_secs(60);
        bench.give(Input::Tick);
        let op = bench.take(|effect| match effect {
            Effect::Open { op } => Some(*op),
            _ => None,
        });
        bench.give(Input::Failed {
            op,
            failure: failure.clone(),
        });
        bench.take(|effect| match effect {
            Effect::Status(status) if status.health == expected => Some(()),
            _ => None,
        });
    }
    let told = bench
        .session
        .outbox
        .events()
        .last()
        .map(|event| event.fact.clone());
    let act = Health::ActionNeeded;
    assert!(
        matches!(told, Some(Fact::AccountState { health, .. }) if health == act),
        "{told:?}"
    );
    bench.give(Input::Relogin);
    assert!(bench.has(|effect| matches!(effect, Effect::Open { .. })));
}

#[test]
fn a_listing_does_not_come_between_a_look_and_its_fetch() {
    let mut bench = Bench::watching();
    let op = bench.take(|effect| match effect {
        Effect::Look { op, .. } => Some(*op),
        _ => None,
    });
    bench.give(Input::Request);
    let found = look(&[10, 11, 12]);
    bench.give(Input::Looked { op, look: found });
    // The UIDs are INBOX's: another folder must not be selected before they are fetched.
    assert!(!bench.has(|effect| matches!(effect, Effect::Serve { .. })));
    assert_eq!(bench.fetch(), [10, 11]);
    bench.appends();
    assert_eq!(bench.fetch(), [12]);
    bench.appends();
    let op = bench.take(|effect| match effect {
        Effect::Serve { op } => Some(*op),
        _ => None,
    });
    // The next listing waits for a look in turn.
    bench.give(Input::Request);
    bench.give(Input::Served { op });
    assert!(!bench.has(|effect| matches!(effect, Effect::Serve { .. })));
    assert!(bench.has(|effect| matches!(effect, Effect::Look { select: true, .. })));
}

#[test]
fn a_fetch_that_fails_again_and_again_is_no_loop_of_logins() {
    let mut bench = Bench::watching();
    let mut waited = Duration::ZERO;
    for uid in 10..30 {
        bench.look(look(&[uid]));
        let (op, _) = bench.asked();
        waited = waited.max(bench.disconnect(op));
    }
    let most = Limits::default().reconnect_most;
    assert!(waited > most / 3, "the delay grows: {waited:?}");
}

#[test]
fn no_poll_comes_sooner_than_the_server_can_stand() {
    let mut bench = Bench::watching();
    bench.give(Input::Relogin);
    let handshake = Duration::from_secs(3);
    bench.open_with(false, handshake);
    let least = handshake * Limits::default().poll_handshakes;
    for found in [&[][..], &[10]] {
        bench.look(look(found));
        if !found.is_empty() {
            bench.fetch();
            bench.appends();
        }
        let (op, most) = bench.take(|effect| match effect {
            Effect::Park { op, most, .. } => Some((*op, *most)),
            _ => None,
        });
        assert_eq!(most, least);
        bench.now.mono += most;
        let wake = Wake::Expired;
        bench.give(Input::Woke { op, wake });
        let op = bench.take(|effect| match effect {
            Effect::Poll { op } => Some(*op),
            _ => None,
        });
        bench.give(Input::Polled { op, changed: true });
    }
}

#[test]
fn each_of_several_unread_messages_alerts() {
    let mut bench = Bench::watching();
    bench.look(look(&[10, 11]));
    let (op, uids) = bench.asked();
    let messages = uids
        .iter()
        .map(|uid| Fetched {
            message: Message {
                uid: *uid,
                internal_date_ms: bench.now.wall_us / 1000,
                ..Message::default()
            },
            traceparent: String::new(),
        })
        .collect();
    bench.give(Input::FetchedPage { op, messages });
    for _ in uids {
        let (op, event) = bench.append();
        assert!(event.alert, "{event:?}");
        bench.stored(op);
    }
}

#[test]
fn a_server_that_announces_nothing_new_does_not_set_the_pace() {
    let mut bench = Bench::watching();
    let mut looks = 0;
    let begin = bench.now.mono;
    while bench.now.mono - begin < Duration::from_secs(60) {
        if bench.has(|effect| matches!(effect, Effect::Look { .. })) {
            looks += 1;
            bench.look(look(&[]));
        } else if bench.has(|effect| matches!(effect, Effect::Park { .. })) {
            let op = bench.take(|effect| match effect {
                Effect::Park { op, .. } => Some(*op),
                _ => None,
            });
            let wake = Wake::Changed { noticed_us: 1 };
            bench.give(Input::Woke { op, wake });
        } else {
            bench.now.mono += Duration::from_millis(50);
            bench.give(Input::Tick);
        }
    }
    assert!(looks < 40, "{looks} looks in a minute");
}
