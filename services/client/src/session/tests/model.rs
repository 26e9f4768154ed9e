//! A mailbox, a log, a lossy stream and a forgetful app around the real session.
//!
//! What must hold whatever happens, at each step and at the end:
//! * the app hears of each fact once; only what it had seen and the last stored state did not know may come again after a crash;
//! * per account, first tellings come in the order of the log;
//! * at the end the app holds exactly what the mailboxes hold; if resyncs list only the newest messages, it holds all that ever
//!   came and is still there, though it need not know what became of the older ones since.

use std::collections::{BTreeMap, VecDeque};

use mailbell_core::event::message_id;
use mailbell_proto::push::v1::{
    self as push, AccountState, Cursor, Event, EventKey, EventKind, Hello, Resync, ResyncReason,
    event::Body, resync::Scope,
};
use proptest::prelude::*;

use super::{super::*, app::App};

const ACCOUNTS: [&str; 2] = ["a.1", "a.2"];
const ROOM: usize = 4;

type Place = (&'static str, u32);

#[derive(Default)]
struct Mailbox {
    generation: u32,
    next_uid: u32,
    messages: BTreeMap<u32, u64>,
}

#[derive(Clone)]
pub(super) enum Entry {
    Event(Box<Event>),
    Resync(Resync),
}

impl Entry {
    pub(super) fn key(&self) -> &EventKey {
        match self {
            Self::Event(event) => event.key.as_ref().unwrap(),
            Self::Resync(resync) => resync.key.as_ref().unwrap(),
        }
    }

    fn frame(&self) -> ServerFrame {
        frame(match self.clone() {
            Self::Event(event) => Frame::Event(*event),
            Self::Resync(resync) => Frame::Resync(resync),
        })
    }
}

struct Reading {
    request: ListRequest,
    generation: u32,
    /// The newer half, read earlier.
    newer: Option<(u32, BTreeMap<u32, u64>)>,
}

struct Device {
    session: ClientSession,
    wire: VecDeque<ServerFrame>,
    /// Next log entry to be sent; from where this stream began; whether `Live` was sent.
    stream: Option<(usize, usize, bool)>,
    channel: VecDeque<Handed>,
    readings: Vec<Reading>,
    /// Read, and on the way.
    answers: Vec<(u64, Result<Listing, ListFailure>)>,
    last_seen: u64,
    depth: u32,
}

struct World {
    rng: SmallRng,
    elapsed: Duration,
    truth: BTreeMap<Place, Mailbox>,
    modseq: u64,
    counter: u64,
    unlogged: BTreeMap<&'static str, VecDeque<Entry>>,
    log: Vec<Entry>,
    log_id: u32,
    log_first: usize,
    device: Device,
    app: App,
    stored: Option<Vec<u8>>,
    lazy: bool,
    /// How slow the app and the listings are.
    slow: (u32, u32),
    /// How rare what makes a listing necessary is: where all is listed all the time, nothing else is tried.
    rare: u32,
    /// No more mishaps.
    calm: bool,
    trace: Vec<String>,
}

fn flags(modseq: u64) -> Vec<String> {
    vec![format!("m{modseq}")]
}

fn message(uid: u32, modseq: u64) -> push::Message {
    push::Message {
        uid,
        flags: flags(modseq),
        // Of what nothing is known, all is new.
        internal_date_ms: i64::MAX,
        ..push::Message::default()
    }
}

fn token(log_id: u32, position: usize) -> Bytes {
    format!("{log_id}:{position}").into()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut truth = BTreeMap::new();
        for account in ACCOUNTS {
            for folder in 1..=2 {
                let mailbox = Mailbox {
                    generation: 1,
                    next_uid: 1,
                    ..Mailbox::default()
                };
                truth.insert((account, folder), mailbox);
            }
        }
        Self {
            lazy: rng.random(),
            device: Device::new(None, [2, 10_000][rng.random_range(0..2)]),
            slow: (rng.random_range(1..10), rng.random_range(1..20)),
            rare: [1, 10, 100_000][rng.random_range(0..3)],
            rng,
            elapsed: Duration::ZERO,
            truth,
            modseq: 1,
            counter: 1,
            unlogged: BTreeMap::new(),
            log: Vec::new(),
            log_id: 1,
            log_first: 0,
            app: App::default(),
            stored: None,
            calm: false,
            trace: Vec::new(),
        }
    }

    fn now(&self) -> Now {
        Now {
            elapsed: self.elapsed,
            wall_ms: i64::try_from(self.elapsed.as_millis()).unwrap(),
        }
    }

    fn pick(&mut self) -> Place {
        let at = self.rng.random_range(0..self.truth.len());
        *self.truth.keys().nth(at).unwrap()
    }

    fn key(&self, (account, folder): Place, uid: u32, kind: EventKind, modseq: u64) -> EventKey {
        EventKey {
            account: account.to_owned(),
            folder,
            generation: self.truth[&(account, folder)].generation,
            uid,
            kind: kind.into(),
            modseq,
        }
    }

    fn tell(&mut self, place: Place, uid: u32, kind: EventKind, modseq: u64, body: Body) {
        let event = Event {
            key: Some(self.key(place, uid, kind, modseq)),
            alert: false,
            body: Some(body),
            ..Event::default()
        };
        let queue = self.unlogged.entry(place.0).or_default();
        queue.push_back(Entry::Event(Box::new(event)));
    }

    fn deliver(&mut self, place: Place) -> u32 {
        self.modseq += 1;
        let modseq = self.modseq;
        let mailbox = self.truth.get_mut(&place).unwrap();
        let uid = mailbox.next_uid;
        mailbox.next_uid += 1;
        mailbox.messages.insert(uid, modseq);
        uid
    }

    fn tell_arrived(&mut self, place: Place, uid: u32) {
        let Some(modseq) = self.truth[&place].messages.get(&uid).copied() else {
            return;
        };
        let arrived = push::Arrived {
            message: Some(message(uid, modseq)),
        };
        self.tell(place, uid, EventKind::Arrived, 0, Body::Arrived(arrived));
    }

    fn any_message(&mut self, place: Place) -> Option<u32> {
        let many = self.truth[&place].messages.len();
        (many > 0).then(|| {
            let at = self.rng.random_range(0..many);
            *self.truth[&place].messages.keys().nth(at).unwrap()
        })
    }

    fn change_generation(&mut self, place: Place) {
        let old = self.truth[&place].generation;
        // What was not logged of the old generation never will be.
        if let Some(queue) = self.unlogged.get_mut(place.0) {
            queue.retain(|entry| entry.key().folder != place.1 || entry.key().generation != old);
        }
        let mailbox = self.truth.get_mut(&place).unwrap();
        mailbox.generation += 1;
        let kept: Vec<u64> = mailbox.messages.values().copied().collect();
        mailbox.messages = (1..).zip(kept).collect();
        mailbox.next_uid = u32::try_from(mailbox.messages.len()).unwrap() + 1;
        self.counter += 1;
        let resync = Resync {
            scope: Some(Scope {
                account: place.0.to_owned(),
                folder: place.1,
                ..Scope::default()
            }),
            reason: ResyncReason::Generation.into(),
            generation: self.truth[&place].generation,
            key: Some(self.key(place, 0, EventKind::Resync, self.counter)),
            ..Resync::default()
        };
        let queue = self.unlogged.entry(place.0).or_default();
        queue.push_back(Entry::Resync(resync));
    }

    fn flood(&mut self, place: Place) {
        let first = self.deliver(place);
        let mut last = first;
        for _ in 0..self.rng.random_range(2..6) {
            last = self.deliver(place);
        }
        self.counter += 1;
        let bulk = push::Bulk {
            first_uid: first,
            last_uid: last,
            count: 0,
        };
        self.tell(place, 0, EventKind::Bulk, self.counter, Body::Bulk(bulk));
        self.tell_arrived(place, last - 1);
        self.tell_arrived(place, last);
    }

    fn append(&mut self) {
        let account = ACCOUNTS[self.rng.random_range(0..2)];
        if let Some(entry) = self.unlogged.get_mut(account).and_then(VecDeque::pop_front) {
            self.log.push(entry);
        }
    }

    /// A late watcher appends what is still true once more.
    fn append_again(&mut self) {
        let near = self.log.len().saturating_sub(4).max(self.log_first);
        let Some(entry) = self.log.get(near).cloned() else {
            return;
        };
        let key = entry.key();
        let mailbox = self
            .truth
            .iter()
            .find(|((account, folder), _)| *account == key.account && *folder == key.folder)
            .unwrap()
            .1;
        let holds = key.generation == mailbox.generation
            && match key.kind() {
                EventKind::Arrived => mailbox.messages.contains_key(&key.uid),
                EventKind::Changed => mailbox.messages.get(&key.uid) == Some(&key.modseq),
                EventKind::Gone => true,
                _ => true,
            };
        if holds {
            self.log.push(entry);
        }
    }

    fn lose_log(&mut self) {
        self.trace.push("log lost".to_owned());
        self.log_id += 1;
        self.log.clear();
        self.log_first = 0;
        if let Some(stream) = &mut self.device.stream {
            *stream = (0, 0, stream.2);
            self.device.wire.push_back(everything());
        }
    }

    fn connect(&mut self) {
        if self.device.stream.is_some() {
            return;
        }
        let (cursor, digest) = self.device.session.resume_point();
        let hello = Hello {
            digest: Bytes::from_static(b"digest"),
            accounts: ACCOUNTS
                .iter()
                .map(|account| AccountState {
                    account: (*account).to_owned(),
                    ..AccountState::default()
                })
                .collect(),
            ..Hello::default()
        };
        self.device.wire.push_back(frame(Frame::Hello(hello)));
        let mut from = self.log.len();
        if !cursor.is_empty() {
            assert_eq!(digest, "digest");
            let text = String::from_utf8(cursor.to_vec()).unwrap();
            let (log_id, position) = text.split_once(':').unwrap();
            let position: usize = position.parse().unwrap();
            if log_id == self.log_id.to_string() && position >= self.log_first {
                from = position;
            } else {
                self.device.wire.push_back(everything());
            }
        }
        self.device.stream = Some((from, from, false));
    }

    fn disconnect(&mut self) {
        if self.device.stream.take().is_some() {
            self.device.wire.clear();
            self.device.readings.clear();
            self.device.answers.clear();
            let reason = DisconnectReason::Ended;
            let out = self.device.session.on_disconnected(reason, Duration::ZERO);
            self.output(out);
        }
    }

    fn send(&mut self) {
        let Some((next, first, live)) = &mut self.device.stream else {
            return;
        };
        if !self.calm && self.rng.random_ratio(1, 12) {
            // Told again, from some point on.
            let back = self.rng.random_range(*first..=*next);
            *next = back.max(self.log_first.min(*next));
        }
        if *next < self.log_first {
            *next = self.log.len();
            // What was left out is never told, not even as a repeat.
            *first = *next;
            self.device.wire.push_back(everything());
        } else if let Some(entry) = self.log.get(*next) {
            *next += 1;
            self.device.wire.push_back(entry.frame());
        } else if !*live {
            *live = true;
            self.device
                .wire
                .push_back(frame(Frame::Live(push::Live {})));
        }
        if self.rng.random_ratio(1, 3) {
            let cursor = Cursor {
                token: token(self.log_id, *next),
                log_silent_since_ms: 0,
            };
            self.device.wire.push_back(frame(Frame::Cursor(cursor)));
        }
    }

    fn receive(&mut self) {
        if self.device.channel.len() < ROOM
            && let Some(frame) = self.device.wire.pop_front()
        {
            let now = self.now();
            self.trace.push(shown(&frame));
            let out = self.device.session.on_frame(frame, now);
            self.output(out);
        }
    }

    fn output(&mut self, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Hand(handed) => self.device.channel.push_back(handed),
                Output::Persist => self.store(),
                Output::GoAway(_) => {}
                Output::Violation => panic!("a violation"),
            }
        }
    }

    fn list(&mut self) {
        let now = self.now();
        if let Some(request) = self.device.session.start_listing(now) {
            self.trace.push(format!("list {request:?}"));
            self.device.readings.push(Reading {
                request,
                generation: 0,
                newer: None,
            });
        }
    }

    fn read(&mut self) {
        if self.device.readings.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.device.readings.len());
        let reading = &mut self.device.readings[at];
        let (account, folder) = (reading.request.account.clone(), reading.request.folder);
        let mailbox = self
            .truth
            .iter()
            .find(|((of, number), _)| *of == account && *number == folder)
            .unwrap()
            .1;
        let (first, last) = match reading.request.span {
            Span::Newest => (1, u32::MAX),
            Span::Uids { first, last } => (first, last),
        };
        let Some((pivot, newer)) = reading.newer.take() else {
            let pivot = self.rng.random_range(0..mailbox.next_uid);
            reading.generation = mailbox.generation;
            let newer = mailbox.messages.range(pivot.saturating_add(1)..);
            reading.newer = Some((pivot, newer.map(|(uid, modseq)| (*uid, *modseq)).collect()));
            return;
        };
        let reading = self.device.readings.swap_remove(at);
        let answer = if reading.generation != mailbox.generation || self.rng.random_ratio(1, 8) {
            Err(ListFailure::Retry)
        } else {
            let messages: Vec<_> = mailbox
                .messages
                .range(..=pivot)
                .map(|(uid, modseq)| (*uid, *modseq))
                .chain(newer)
                .filter(|(uid, _)| (first..=last).contains(uid))
                .map(|(uid, modseq)| message(uid, modseq))
                .collect();
            // Parts of two, to have ranges in parts.
            let limit = match reading.request.span {
                Span::Uids { .. } => 2,
                Span::Newest => usize::try_from(reading.request.limit).unwrap(),
            };
            let more = messages.len() > limit;
            let from = match reading.request.span {
                Span::Uids { .. } => 0,
                Span::Newest => messages.len().saturating_sub(limit),
            };
            Ok(Listing {
                generation: mailbox.generation,
                folder_name: String::new(),
                folders: vec![1, 2],
                exists: u32::try_from(mailbox.messages.len()).unwrap(),
                messages: messages.into_iter().skip(from).take(limit).collect(),
                more,
            })
        };
        self.device.answers.push((reading.request.ticket, answer));
    }

    fn answer(&mut self) {
        if self.device.channel.len() < ROOM
            && let Some((ticket, answer)) = self.device.answers.pop()
        {
            let now = self.now();
            let out = self.device.session.on_listed(ticket, answer, now);
            self.output(out);
        }
    }

    fn poll(&mut self) {
        self.device.session.on_taken(self.device.last_seen);
        if !self.lazy || self.rng.random_ratio(1, 4) {
            self.store();
        }
        if let Some(handed) = self.device.channel.pop_front() {
            assert_eq!(handed.position, self.device.last_seen + 1);
            self.device.last_seen = handed.position;
            self.trace.push(format!("{handed:?}"));
            self.app.see(handed, self.log_id, &self.log);
        }
    }

    fn store(&mut self) {
        if let Some(state) = self.device.session.storable() {
            self.trace
                .push(format!("stored {:?} {}", state.cursor(), state.pending()));
            self.stored = Some(state.encode());
            // All but what the app sees at this moment was taken before.
            self.app.unsaved.clear();
        }
    }

    fn crash(&mut self) {
        self.trace.push("crash".to_owned());
        self.app.may_repeat.extend(self.app.unsaved.drain());
        let stored = self
            .stored
            .as_deref()
            .map(|bytes| StoredState::decode(bytes).unwrap());
        self.device = Device::new(stored, self.device.depth);
    }

    fn step(&mut self) {
        self.elapsed += Duration::from_secs(1);
        let place = self.pick();
        match self.rng.random_range(0..100) {
            0..8 => {
                let uid = self.deliver(place);
                self.tell_arrived(place, uid);
            }
            8..12 => {
                if let Some(uid) = self.any_message(place) {
                    self.modseq += 1;
                    let modseq = self.modseq;
                    self.truth
                        .get_mut(&place)
                        .unwrap()
                        .messages
                        .insert(uid, modseq);
                    let changed = push::Changed {
                        flags: flags(modseq),
                    };
                    self.tell(
                        place,
                        uid,
                        EventKind::Changed,
                        modseq,
                        Body::Changed(changed),
                    );
                }
            }
            12..15 => {
                if let Some(uid) = self.any_message(place) {
                    self.truth.get_mut(&place).unwrap().messages.remove(&uid);
                    self.tell(place, uid, EventKind::Gone, 0, Body::Gone(push::Gone {}));
                }
            }
            15..18 | 31..33 if !self.rng.random_ratio(1, self.rare) => {}
            15 => self.change_generation(place),
            16..18 => self.flood(place),
            18..30 => self.append(),
            30 => self.append_again(),
            31 => self.log_first = self.rng.random_range(self.log_first..=self.log.len()),
            32 if self.rng.random_ratio(1, 4) => self.lose_log(),
            33..37 => self.connect(),
            37 => self.disconnect(),
            38 => self.crash(),
            39..55 => self.send(),
            55..70 => self.receive(),
            70..74 => self.list(),
            74..80 => self.read(),
            80..83 if self.rng.random_ratio(1, self.slow.1) => self.answer(),
            83.. if self.rng.random_ratio(1, self.slow.0) => self.poll(),
            _ => {}
        }
    }

    fn settle(&mut self) {
        self.calm = true;
        for _ in 0..20_000 {
            self.elapsed += Duration::from_secs(1);
            self.connect();
            self.append();
            self.send();
            self.receive();
            self.list();
            self.read();
            self.answer();
            self.poll();
            let quiet = self.unlogged.values().all(VecDeque::is_empty)
                && self.device.wire.is_empty()
                && self.device.channel.is_empty()
                && !self.device.session.is_resyncing()
                && self
                    .device
                    .stream
                    .is_some_and(|(next, _, live)| live && next == self.log.len());
            if quiet {
                self.device.session.on_taken(self.device.last_seen);
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn compare(&mut self, began: &BTreeMap<Place, (u32, u32)>) {
        for ((account, folder), mailbox) in &self.truth {
            let view = self
                .app
                .view
                .remove(&((*account).to_owned(), *folder))
                .unwrap_or_default();
            // What was there before the client first connected is told only by a listing.
            let (generation, next_uid) = began[&(*account, *folder)];
            let old = |of: u32, uid: u32| of == generation && uid < next_uid;
            let held: BTreeMap<_, _> = view
                .into_iter()
                .filter(|((of, uid), _)| !old(*of, *uid))
                .collect();
            let there: BTreeMap<_, _> = mailbox
                .messages
                .iter()
                .map(|(uid, modseq)| ((mailbox.generation, *uid), format!("m{modseq}")))
                .filter(|((of, uid), _)| !old(*of, *uid))
                .collect();
            if self.device.depth > 2 {
                assert_eq!(held, there, "{account}/{folder}");
            }
            let lost = there.keys().find(|message| !held.contains_key(message));
            assert_eq!(lost, None, "{account}/{folder}");
        }
    }
}

impl Device {
    fn new(state: Option<StoredState>, depth: u32) -> Self {
        let options = SessionOptions {
            resync_depth: depth,
            ..SessionOptions::default()
        };
        Self {
            session: ClientSession::new(options, state, 7),
            wire: VecDeque::new(),
            stream: None,
            channel: VecDeque::new(),
            readings: Vec::new(),
            answers: Vec::new(),
            last_seen: 0,
            depth,
        }
    }
}

fn frame(frame: Frame) -> ServerFrame {
    ServerFrame { frame: Some(frame) }
}

fn shown(frame: &ServerFrame) -> String {
    match frame.frame.as_ref().unwrap() {
        Frame::Event(event) => format!("< {}", message_id(event.key.as_ref().unwrap())),
        Frame::Cursor(cursor) => format!("< {:?}", cursor.token),
        Frame::Resync(resync) => format!("< resync {:?} {}", resync.scope, resync.generation),
        Frame::Hello(_) => "< hello".to_owned(),
        _ => "< live".to_owned(),
    }
}

fn everything() -> ServerFrame {
    frame(Frame::Resync(Resync {
        scope: Some(Scope {
            everything: true,
            ..Scope::default()
        }),
        reason: ResyncReason::LogChanged.into(),
        ..Resync::default()
    }))
}

/// One life of a device, from its seed.
fn live(seed: u64, steps: usize) {
    let mut world = World::new(seed);
    // A client that has never been connected hears of what comes from then on.
    world.connect();
    world.receive();
    let began = world
        .truth
        .iter()
        .map(|(place, mailbox)| (*place, (mailbox.generation, mailbox.next_uid)))
        .collect();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..steps {
            world.step();
        }
        world.settle();
        world.compare(&began);
    }));
    if let Err(panic) = result {
        let tail = world.trace.len().saturating_sub(200);
        eprintln!(
            "seed {seed}, {steps} steps:\n{}",
            world.trace[tail..].join("\n")
        );
        std::panic::resume_unwind(panic);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_app_ends_with_everything_once(seed in any::<u64>(), steps in 10usize..1500) {
        live(seed, steps);
    }
}
