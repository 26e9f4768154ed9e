//! The hub's rules, one by one and then all at once by chance.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;
use crate::{
    cursor::{Cursor, Place},
    ids::{LogId, PerGroup, Position},
};

#[derive(Debug, Clone, PartialEq)]
struct Fact {
    account: AccountId,
    kind: EventKind,
    position: Position,
}

impl Entry for Fact {
    fn account(&self) -> &AccountId {
        &self.account
    }
    fn kind(&self) -> EventKind {
        self.kind
    }
    fn bytes(&self) -> usize {
        100
    }
}

/// Queues of so many frames.
struct Queues {
    room: usize,
    queued: HashMap<DeviceId, Vec<Frame<Fact>>>,
    closed: Vec<DeviceId>,
}

impl Queues {
    fn of(room: usize) -> Self {
        Self {
            room,
            queued: HashMap::new(),
            closed: Vec::new(),
        }
    }

    fn take(&mut self, id: DeviceId) -> Vec<Frame<Fact>> {
        self.queued.remove(&id).unwrap_or_default()
    }

    /// What was queued, as text, and forgets it.
    fn told(&mut self, id: DeviceId) -> Vec<String> {
        self.take(id).iter().map(word).collect()
    }
}

fn word(frame: &Frame<Fact>) -> String {
    match frame {
        Frame::Entry(fact) => format!("{}", fact.position),
        Frame::Cursor(bytes) | Frame::OwnCursor(bytes) => {
            let cursor = Cursor::decode(bytes).unwrap();
            format!("cursor {}", cursor.0[group()].position)
        }
        Frame::Live => "live".to_owned(),
        Frame::Resync(Concerned::Everything, reason) => format!("resync all {}", *reason as i32),
        Frame::Resync(Concerned::Account(_), reason) => format!("resync one {}", *reason as i32),
    }
}

impl Sink<Fact> for Queues {
    fn push(&mut self, device: DeviceId, frame: Frame<Fact>) -> Result<(), Full> {
        let queue = self.queued.entry(device).or_default();
        if queue.len() >= self.room {
            return Err(Full);
        }
        queue.push(frame);
        Ok(())
    }

    fn close(&mut self, device: DeviceId) {
        self.closed.push(device);
    }
}

fn account(n: u32) -> AccountId {
    AccountId::new(
        "t".parse().unwrap(),
        ulid::Ulid::from_parts(1_700_000_000_000, u128::from(n)),
    )
}

/// The group of account 0.
fn group() -> Group {
    account(0).group()
}

/// `count` accounts whose groups are all others than that of account 0, and differ.
fn elsewhere(count: usize) -> Vec<AccountId> {
    let mut groups = BTreeSet::from([group()]);
    let others = (1..).map(account);
    others
        .filter(|account| groups.insert(account.group()))
        .take(count)
        .collect()
}

fn log_id(n: u8) -> LogId {
    LogId([n; 16])
}

fn place(position: Position) -> Place {
    Place {
        log_id: log_id(1),
        position,
    }
}

fn hub_with(entries: usize) -> Hub<Fact> {
    let places = PerGroup::from_fn(|_| place(10));
    let bytes = usize::MAX;
    Hub::new(&places, WindowLimits { entries, bytes })
}

fn fact(position: Position) -> Fact {
    Fact {
        account: account(0),
        kind: EventKind::Arrived,
        position,
    }
}

fn to(accounts: impl IntoIterator<Item = AccountId>) -> Subscription {
    Subscription {
        subject: Subject::accounts(accounts),
        kinds: ALL_KINDS,
    }
}

fn attach(hub: &mut Hub<Fact>, what: Subscription, from: &From, queues: &mut Queues) -> DeviceId {
    let id = hub.reserve();
    hub.attach(id, what, from, queues);
    id
}

fn append(hub: &mut Hub<Fact>, positions: std::ops::RangeInclusive<u64>, queues: &mut Queues) {
    for position in positions {
        hub.on_entry(group(), position, &fact(position), queues);
    }
}

/// At `position` in the group of account 0, elsewhere where the hub begins.
fn cursor_at(position: Position) -> Cursor {
    let at = |other| if other == group() { position } else { 10 };
    Cursor(PerGroup::from_fn(|other| place(at(other))))
}

fn from_cursor(position: Position, logs: PerGroup<Option<LogState>>) -> From {
    From::Cursor(Box::new(cursor_at(position)), Box::new(logs))
}

fn unasked() -> PerGroup<Option<LogState>> {
    PerGroup::from_fn(|_| None)
}

#[test]
fn entries_in_order_to_those_they_concern() {
    let (mut hub, mut queues) = (hub_with(100), Queues::of(100));
    let mine = attach(&mut hub, to([account(0)]), &From::Now, &mut queues);
    let other = attach(&mut hub, to(elsewhere(1)), &From::Now, &mut queues);
    let tenant = Subscription {
        subject: Subject::Tenant("t".parse().unwrap()),
        kinds: 1 << EventKind::Gone as u32,
    };
    let tenant = attach(&mut hub, tenant, &From::Now, &mut queues);
    append(&mut hub, 11..=13, &mut queues);
    // A repeat of the log's follower, and what the tenant's device did not ask for.
    append(&mut hub, 12..=13, &mut queues);
    let gone = Fact {
        kind: EventKind::Gone,
        ..fact(14)
    };
    hub.on_entry(group(), 14, &gone, &mut queues);
    let resync = Fact {
        kind: EventKind::Resync,
        ..fact(15)
    };
    hub.on_entry(group(), 15, &resync, &mut queues);
    assert_eq!(queues.told(mine), ["live", "11", "12", "13", "14", "15"]);
    assert_eq!(queues.told(other), ["live"]);
    assert_eq!(queues.told(tenant), ["live", "14", "15"]);
    hub.detach(mine);
    hub.detach(mine);
    append(&mut hub, 16..=16, &mut queues);
    assert!(queues.told(mine).is_empty() && hub.devices() == 2);
}

#[test]
fn a_resume_within_the_window_needs_no_leader() {
    let (mut hub, mut queues) = (hub_with(3), Queues::of(100));
    append(&mut hub, 11..=15, &mut queues);
    let what = to([account(0)]);
    assert!(hub.unproven(&what, &cursor_at(12)).is_empty());
    assert_eq!(hub.unproven(&what, &cursor_at(11)), [group()]);
    // Beyond what this gateway has: only the leader knows whether that is a cut log.
    assert_eq!(hub.unproven(&what, &cursor_at(16)), [group()]);
    let id = attach(&mut hub, what, &from_cursor(13, unasked()), &mut queues);
    assert_eq!(queues.told(id), ["14", "15", "live"]);
    assert!(hub.is_live(id) && hub.replay(id).is_none());
}

#[test]
fn a_resume_beyond_the_window_is_read_and_then_joined() {
    let (mut hub, mut queues) = (hub_with(3), Queues::of(100));
    append(&mut hub, 11..=20, &mut queues);
    let mut logs = unasked();
    logs[group()] = Some(LogState {
        log_id: log_id(1),
        first: 5,
        tail: 20,
    });
    let what = to([account(0)]);
    let id = attach(&mut hub, what, &from_cursor(12, logs), &mut queues);
    let replay = hub.replay(id).unwrap();
    assert_eq!(
        (replay.group, replay.after, replay.up_to),
        (group(), 12, 20)
    );
    // While the read goes on: entries that this device must not get yet, and its own cursor.
    append(&mut hub, 21..=22, &mut queues);
    hub.offer_cursor(id, &mut queues);
    assert_eq!(queues.told(id), ["cursor 12"]);
    let read: Vec<_> = (13..=20)
        .map(|position| (position, fact(position)))
        .collect();
    assert_eq!(
        hub.on_replayed(id, &replay, read.clone(), 20, 5, &mut queues),
        8
    );
    let mut expected: Vec<_> = (13..=22).map(|n| n.to_string()).collect();
    expected.push("live".to_owned());
    assert_eq!(queues.told(id), expected);
    // The same answer once more changes nothing.
    assert_eq!(hub.on_replayed(id, &replay, read, 20, 5, &mut queues), 0);
    assert!(queues.told(id).is_empty());
}

#[test]
fn what_aged_out_during_a_read_is_a_resync() {
    let (mut hub, mut queues) = (hub_with(3), Queues::of(100));
    append(&mut hub, 11..=20, &mut queues);
    let mut logs = unasked();
    logs[group()] = Some(LogState {
        log_id: log_id(1),
        first: 13,
        tail: 20,
    });
    let what = to([account(0), elsewhere(1).remove(0)]);
    let id = attach(&mut hub, what, &from_cursor(12, logs), &mut queues);
    let replay = hub.replay(id).unwrap();
    let read = [(16, fact(16))];
    hub.on_replayed(id, &replay, read, 20, 16, &mut queues);
    let reason = ResyncReason::CursorTooOld as i32;
    assert_eq!(
        queues.told(id),
        [format!("resync one {reason}"), "live".to_owned()]
    );
}

#[test]
fn whoever_goes_on_elsewhere_soon_has_a_cursor_that_says_so() {
    let (mut hub, mut queues) = (hub_with(3), Queues::of(100));
    append(&mut hub, 11..=20, &mut queues);
    let fresh = |hub: &mut Hub<Fact>, queues: &mut Queues, id| {
        queues.told(id);
        hub.offer_fresh_cursors(queues);
        queues.told(id)
    };
    let mut logs = unasked();
    logs[group()] = Some(LogState {
        log_id: log_id(1),
        first: 1,
        tail: 20,
    });
    // It has to list, since what it missed aged out during the read.
    let old = from_cursor(12, logs.clone());
    let id = attach(&mut hub, to([account(0)]), &old, &mut queues);
    assert!(fresh(&mut hub, &mut queues, id).is_empty());
    let replay = hub.replay(id).unwrap();
    hub.on_replayed(id, &replay, [], 20, 16, &mut queues);
    assert_eq!(fresh(&mut hub, &mut queues, id), ["cursor 20"]);
    // What was read had nothing for it.
    let id = attach(&mut hub, to([account(0)]), &old, &mut queues);
    let replay = hub.replay(id).unwrap();
    hub.on_replayed(id, &replay, [], 20, 1, &mut queues);
    assert!(hub.is_live(id));
    assert_eq!(fresh(&mut hub, &mut queues, id), ["cursor 20"]);
    // The log is another.
    let place = Place {
        log_id: log_id(2),
        position: 3,
    };
    let reason = ResyncReason::LogChanged;
    hub.on_log_changed(group(), place, reason, &mut queues);
    assert_eq!(fresh(&mut hub, &mut queues, id), ["cursor 3"]);
    assert!(fresh(&mut hub, &mut queues, id).is_empty());
}

#[test]
fn full_means_behind_and_room_means_caught_up() {
    let (mut hub, mut queues) = (hub_with(4), Queues::of(3));
    let id = attach(&mut hub, to([account(0)]), &From::Now, &mut queues);
    append(&mut hub, 11..=14, &mut queues);
    assert!(!hub.is_live(id));
    hub.offer_cursors_after(DeviceId(0), 1, &mut queues);
    assert_eq!(queues.told(id), ["live", "11", "12"]);
    hub.offer_fresh_cursors(&mut queues);
    hub.on_room(id, &mut queues);
    assert_eq!(queues.told(id), ["cursor 12", "13", "14"]);
    assert!(hub.is_live(id));
    hub.offer_fresh_cursors(&mut queues);
    hub.offer_fresh_cursors(&mut queues);
    assert_eq!(queues.told(id), ["cursor 14"], "one cursor is enough");
    // So far behind that the window is of no use: a read, in pieces.
    append(&mut hub, 15..=30, &mut queues);
    assert_eq!(queues.told(id), ["15", "16", "17"]);
    hub.on_room(id, &mut queues);
    for (after, first) in [(17, 18), (20, 21), (23, 24)] {
        let replay = hub.replay(id).unwrap();
        assert_eq!(replay.after, after);
        let read = (after + 1..=30).map(|position| (position, fact(position)));
        hub.on_replayed(id, &replay, read, 30, 1, &mut queues);
        let told: Vec<_> = (first..first + 3).map(|n| n.to_string()).collect();
        assert_eq!(queues.told(id), told);
    }
    assert!(!hub.is_live(id));
    // From here on the window reaches.
    hub.on_room(id, &mut queues);
    assert_eq!(queues.told(id), ["27", "28", "29"]);
    hub.on_room(id, &mut queues);
    assert_eq!(queues.told(id), ["30"]);
    assert!(hub.is_live(id));
}

#[test]
fn another_history_is_a_resync_for_whom_it_concerns() {
    let (mut hub, mut queues) = (hub_with(3), Queues::of(100));
    append(&mut hub, 11..=20, &mut queues);
    let mut logs = unasked();
    logs[group()] = Some(LogState {
        log_id: log_id(1),
        first: 1,
        tail: 20,
    });
    let what = to([account(0), elsewhere(1).remove(0)]);
    let behind = attach(&mut hub, what, &from_cursor(12, logs), &mut queues);
    let other = attach(&mut hub, to(elsewhere(1)), &From::Now, &mut queues);
    let replay = hub.replay(behind).unwrap();
    let new = Place {
        log_id: log_id(2),
        position: 3,
    };
    hub.on_log_changed(group(), new, ResyncReason::LogChanged, &mut queues);
    // An answer of the old history comes too late.
    hub.on_replayed(behind, &replay, [(13, fact(13))], 20, 1, &mut queues);
    append(&mut hub, 4..=4, &mut queues);
    hub.offer_cursor(behind, &mut queues);
    let reason = ResyncReason::LogChanged as i32;
    let resync = format!("resync one {reason}");
    assert_eq!(
        queues.told(behind),
        [resync.as_str(), "live", "4", "cursor 4"]
    );
    assert_eq!(queues.told(other), ["live"]);
    assert_eq!(hub.place(group()).log_id, log_id(2));
    // Who cannot be told is closed, and is told when it comes back.
    queues.room = 0;
    hub.on_log_changed(group(), place(9), ResyncReason::LogChanged, &mut queues);
    assert_eq!(queues.closed, [behind]);
}

#[test]
fn resyncs_at_an_attach_always_fit() {
    let (mut hub, mut queues) = (hub_with(3), Queues::of(8));
    let reason = ResyncReason::BadCursor;
    let many: Vec<_> = (0..256).map(account).collect();
    let all = format!("resync all {}", reason as i32);
    let id = attach(
        &mut hub,
        to(many.clone()),
        &From::Resync(reason),
        &mut queues,
    );
    assert_eq!(queues.told(id), [all.as_str(), "live"]);
    // Cursors of another history, in every group.
    let logs = PerGroup::from_fn(|_| {
        Some(LogState {
            log_id: log_id(9),
            first: 1,
            tail: 1,
        })
    });
    let id = attach(
        &mut hub,
        to(many),
        &from_cursor(10, logs.clone()),
        &mut queues,
    );
    let all = format!("resync all {}", ResyncReason::LogChanged as i32);
    assert_eq!(queues.told(id), [all.as_str(), "live"]);
    let tenant = Subscription {
        subject: Subject::Tenant("t".parse().unwrap()),
        kinds: ALL_KINDS,
    };
    let id = attach(&mut hub, tenant, &from_cursor(10, logs), &mut queues);
    assert_eq!(queues.told(id), [all.as_str(), "live"]);
    assert!(queues.closed.is_empty());
}

#[test]
fn cursors_can_be_offered_in_slices() {
    let (mut hub, mut queues) = (hub_with(3), Queues::of(100));
    let ids: Vec<_> = (0..5)
        .map(|_| attach(&mut hub, to([account(0)]), &From::Now, &mut queues))
        .collect();
    let first = hub.offer_cursors_after(DeviceId(0), 2, &mut queues);
    assert_eq!(first, Some(ids[1]));
    let second = hub.offer_cursors_after(ids[1], 2, &mut queues);
    assert_eq!(second, Some(ids[3]));
    assert_eq!(hub.offer_cursors_after(ids[3], 2, &mut queues), None);
    for id in ids {
        assert_eq!(queues.told(id), ["live", "cursor 10"]);
    }
}

/// One step of the world around the hub.
#[derive(Debug, Clone)]
enum Step {
    Append { account: u32 },
    Purge,
    Drain { device: usize },
    Read { device: usize, stale: bool },
    Cursors,
    Reconnect { device: usize },
    Expire { keep: u64 },
    NewHistory,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0u32..4).prop_map(|account| Step::Append { account }),
        1 => Just(Step::Purge),
        4 => (0usize..3).prop_map(|device| Step::Drain { device }),
        4 => (0usize..3, any::<bool>()).prop_map(|(device, stale)| Step::Read { device, stale }),
        2 => Just(Step::Cursors),
        1 => (0usize..3).prop_map(|device| Step::Reconnect { device }),
        1 => (0u64..30).prop_map(|keep| Step::Expire { keep }),
        1 => Just(Step::NewHistory),
    ];
    prop::collection::vec(step, 1..200)
}

/// All accounts lie in the group of account 0, so that one log shows every rule.
struct World {
    hub: Hub<Fact>,
    queues: Queues,
    accounts: Vec<AccountId>,
    history: u8,
    first: Position,
    log: Vec<Fact>,
    tail: Position,
    devices: Vec<Client>,
}

/// What a device knows, as the rules for clients say.
struct Client {
    id: DeviceId,
    what: Vec<AccountId>,
    /// The stored cursor.
    cursor: Option<Vec<u8>>,
    had: BTreeSet<(u8, Position)>,
    /// From here on it must have everything.
    since: (u8, Position),
    highest: (u8, Position),
    pending: Option<Replay>,
}

impl World {
    fn new() -> Self {
        let accounts: Vec<_> = (0..)
            .map(account)
            .filter(|account| account.group() == group())
            .take(4)
            .collect();
        let mut world = Self {
            hub: hub_with(4),
            queues: Queues::of(5),
            accounts: accounts.clone(),
            history: 1,
            first: 11,
            log: Vec::new(),
            tail: 10,
            devices: Vec::new(),
        };
        for n in 0..3 {
            let what = accounts[..=n].to_vec();
            let id = attach(
                &mut world.hub,
                to(what.clone()),
                &From::Now,
                &mut world.queues,
            );
            world.devices.push(Client {
                id,
                what,
                cursor: None,
                had: BTreeSet::new(),
                since: (1, 10),
                highest: (1, 10),
                pending: None,
            });
        }
        world
    }

    fn state(&self) -> LogState {
        LogState {
            log_id: log_id(self.history),
            first: self.first,
            tail: self.tail,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { account } => {
                self.tail += 1;
                let fact = Fact {
                    account: self.accounts[*account as usize].clone(),
                    ..fact(self.tail)
                };
                self.log.push(fact.clone());
                self.hub
                    .on_entry(group(), self.tail, &fact, &mut self.queues);
            }
            Step::Purge => {
                self.tail += 1;
                self.hub.on_skipped(group(), self.tail);
            }
            Step::Drain { device } => self.drain(*device),
            Step::Read { device, stale } => self.read(*device, *stale),
            Step::Cursors => {
                let all = usize::MAX;
                self.hub
                    .offer_cursors_after(DeviceId(0), all, &mut self.queues);
            }
            Step::Reconnect { device } => self.reconnect(*device),
            Step::Expire { keep } => {
                self.first = self.first.max(self.tail.saturating_sub(*keep) + 1);
                let first = self.first;
                self.log.retain(|fact| fact.position >= first);
            }
            Step::NewHistory => {
                self.history += 1;
                self.log.clear();
                self.first = 1;
                self.tail = 0;
                let place = Place {
                    log_id: log_id(self.history),
                    position: 0,
                };
                let reason = ResyncReason::LogChanged;
                self.hub
                    .on_log_changed(group(), place, reason, &mut self.queues);
            }
        }
        for id in std::mem::take(&mut self.queues.closed) {
            if let Some(n) = self.devices.iter().position(|device| device.id == id) {
                self.reconnect(n);
            }
        }
    }

    /// The device reads all that is queued for it, and keeps the rules.
    fn drain(&mut self, n: usize) {
        let at = (self.history, self.tail);
        let client = &mut self.devices[n];
        for frame in self.queues.take(client.id) {
            match frame {
                Frame::Entry(fact) => {
                    assert!(client.what.contains(&fact.account));
                    client.had.insert((self.history, fact.position));
                }
                // It lists now, and so has everything up to now. (No entry of an old history is queued behind it.)
                Frame::Resync(..) => client.since = at,
                Frame::Cursor(bytes) | Frame::OwnCursor(bytes) => {
                    let place = Cursor::decode(&bytes).unwrap().0[group()];
                    if place.log_id == log_id(self.history) {
                        Self::check(&self.log, self.history, client, place.position);
                        client.cursor = Some(bytes.to_vec());
                    }
                }
                Frame::Live => {}
            }
        }
        self.hub.on_room(client.id, &mut self.queues);
    }

    /// Everything that is due up to `position` has come, as far as the log still holds it.
    fn check(log: &[Fact], history: u8, client: &mut Client, position: Position) {
        for fact in log.iter().filter(|fact| fact.position <= position) {
            let key = (history, fact.position);
            let due = client.what.contains(&fact.account) && key > client.since;
            assert!(!due || client.had.contains(&key), "{key:?} is missing");
        }
        client.highest = client.highest.max((history, position));
    }

    /// A read begins, or one that began before ends.
    fn read(&mut self, n: usize, stale: bool) {
        let client = &mut self.devices[n];
        let replay = match client.pending.take() {
            Some(replay) => replay,
            None => match self.hub.replay(client.id) {
                Some(replay) => replay,
                None => return,
            },
        };
        if stale {
            client.pending = Some(replay);
            return;
        }
        let read: Vec<_> = self
            .log
            .iter()
            .filter(|fact| fact.position > replay.after && fact.position <= replay.up_to)
            .map(|fact| (fact.position, fact.clone()))
            .collect();
        let up_to = replay.up_to;
        self.hub.on_replayed(
            client.id,
            &replay,
            read,
            up_to,
            self.first,
            &mut self.queues,
        );
    }

    /// The stream breaks, with all that was queued; the device comes back with the cursor that it stored.
    fn reconnect(&mut self, n: usize) {
        let state = self.state();
        let client = &mut self.devices[n];
        self.queues.take(client.id);
        self.hub.detach(client.id);
        client.pending = None;
        let from = match &client.cursor {
            None => {
                client.since = (self.history, self.tail);
                From::Now
            }
            Some(bytes) => {
                let cursor = Cursor::decode(bytes).unwrap();
                let mut logs = unasked();
                for group in self.hub.unproven(&to(client.what.clone()), &cursor) {
                    logs[group] = Some(state);
                }
                From::Cursor(Box::new(cursor), Box::new(logs))
            }
        };
        let what = to(client.what.clone());
        client.id = attach(&mut self.hub, what, &from, &mut self.queues);
    }

    fn settle(&mut self) {
        for n in 0..self.devices.len() {
            for _ in 0..1000 {
                self.step(&Step::Drain { device: n });
                if self.hub.is_live(self.devices[n].id) {
                    break;
                }
                self.step(&Step::Read {
                    device: n,
                    stale: false,
                });
            }
            let id = self.devices[n].id;
            assert!(self.hub.is_live(id), "a device never gets through");
            self.step(&Step::Drain { device: n });
            self.hub.offer_cursor(id, &mut self.queues);
            self.step(&Step::Drain { device: n });
            let cursor = Cursor::decode(self.devices[n].cursor.as_ref().unwrap()).unwrap();
            assert_eq!(cursor.0[group()].position, self.tail);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 4000 }))]

    /// Whatever happens: a cursor never claims what did not come, and every device gets through in the end.
    #[test]
    fn a_cursor_is_true_and_nobody_is_stuck(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}
