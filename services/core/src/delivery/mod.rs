//! Who gets what: the rules of the fan-out, without queues, sockets or reads.
//!
//! A [`Hub`] holds where this gateway stands in every log, a recent window of each, and for every attached device what it is
//! subscribed to and how far it was served. Whoever drives it (the gateway, the simulation) gives it the entries of the logs in
//! order, carries out the reads that devices behind need, and offers a [`Sink`] that queues frames.
//!
//! The rules that make a cursor true:
//!
//! * A group's position moves only after the entry was offered to every live device.
//! * A device whose queue is full is *behind* from the entry before: nothing of that group reaches it until everything
//!   between was read and queued, in order.
//! * A cursor says, for each group, what was queued to *this* device before it. Only devices that are live in all their groups
//!   share one.

mod resume;
mod window;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use bytes::Bytes;
use mailbell_proto::push::v1::{EventKind, ResyncReason};

pub use resume::{LogState, Resume, resume};
pub use window::Window;

use crate::{
    cursor::{Cursor, Place, Subject},
    ids::{AccountId, Group, LogId, PerGroup, Position, Tenant},
    plant,
};

/// One entry of a log, as the hub needs to see it. Cheap to clone: it is shared by all devices.
pub trait Entry: Clone {
    /// Whose.
    fn account(&self) -> &AccountId;
    /// Which kind of fact.
    fn kind(&self) -> EventKind;
    /// What it takes in memory.
    fn bytes(&self) -> usize;
}

/// Names an attached device within one hub; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u64);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What may have a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Concerned {
    /// Everything that the device is subscribed to.
    Everything,
    /// One account.
    Account(AccountId),
}

/// What is queued for a device.
#[derive(Debug, Clone)]
pub enum Frame<E> {
    /// A fact.
    Entry(E),
    /// The resume point, encoded; the same bytes for all live devices.
    Cursor(Bytes),
    /// The replay is over.
    Live,
    /// List what is concerned.
    Resync(Concerned, ResyncReason),
}

/// The queue of this device cannot take the frame now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Where frames go.
pub trait Sink<E> {
    /// Queues a frame.
    ///
    /// # Errors
    /// [`Full`]: the queue has reached its bound in frames or bytes; nothing was queued.
    fn push(&mut self, device: DeviceId, frame: Frame<E>) -> Result<(), Full>;
    /// Ends a device's stream with a status that makes it reconnect: it could not be told of a resync.
    fn close(&mut self, device: DeviceId);
}

/// A device's subscription.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Which accounts.
    pub subject: Subject,
    /// Which kinds: a bit set by number of the kind. Resync is always told.
    pub kinds: u32,
}

/// Every kind.
pub const ALL_KINDS: u32 = u32::MAX;

impl Subscription {
    fn wants(&self, kind: EventKind) -> bool {
        matches!(kind, EventKind::Resync | EventKind::Bulk) || self.kinds & (1 << kind as u32) != 0
    }

    fn concerns(&self, group: Group) -> bool {
        match &self.subject {
            Subject::Accounts(accounts) => accounts.iter().any(|account| account.group() == group),
            Subject::Tenant(_) => true,
        }
    }
}

/// How far a device was served in one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// None of its accounts is stored there.
    Unconcerned,
    /// Everything up to the group's position.
    Live,
    /// Everything up to here.
    Behind(Position),
}

#[derive(Debug)]
struct Device {
    subscription: Subscription,
    phases: PerGroup<Phase>,
    live_told: bool,
}

#[derive(Debug)]
struct GroupState<E> {
    log_id: LogId,
    position: Position,
    window: Window<E>,
}

/// A read that a device behind needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay {
    /// In which log.
    pub group: Group,
    /// Which history: if it is another by the time of the read, the hub was told, and the device is no longer behind.
    pub log_id: LogId,
    /// After here,
    pub after: Position,
    /// up to here, at least.
    pub up_to: Position,
}

/// What an attach asks for.
#[derive(Debug, Clone)]
pub enum From {
    /// From now on.
    Now,
    /// After a cursor. Per group the state of the log as the leader named it; `None` where the window is proof enough, see
    /// [`Hub::unproven`].
    Cursor(Box<Cursor>, Box<PerGroup<Option<LogState>>>),
    /// From now on, and everything may have a hole.
    Resync(ResyncReason),
}

/// The bounds of the windows, per group.
#[derive(Debug, Clone, Copy)]
pub struct WindowLimits {
    /// Entries.
    pub entries: usize,
    /// Bytes.
    pub bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Hub<E> {
    groups: PerGroup<GroupState<E>>,
    devices: BTreeMap<DeviceId, Device>,
    by_account: HashMap<AccountId, Vec<DeviceId>>,
    by_tenant: HashMap<Tenant, Vec<DeviceId>>,
    next: u64,
}

impl<E: Entry> Hub<E> {
    /// A hub that stands at these places.
    #[must_use]
    pub fn new(places: &PerGroup<Place>, limits: WindowLimits) -> Self {
        Self {
            groups: PerGroup::from_fn(|group| GroupState {
                log_id: places[group].log_id,
                position: places[group].position,
                window: Window::new(places[group].position, limits.entries, limits.bytes),
            }),
            devices: BTreeMap::new(),
            by_account: HashMap::new(),
            by_tenant: HashMap::new(),
            next: 1,
        }
    }

    /// Where this gateway stands in a log.
    #[must_use]
    pub fn place(&self, group: Group) -> Place {
        Place {
            log_id: self.groups[group].log_id,
            position: self.groups[group].position,
        }
    }

    /// How many devices are attached.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// The cursor of a device that has everything up to now.
    #[must_use]
    pub fn cursor_now(&self) -> Cursor {
        Cursor(PerGroup::from_fn(|group| self.place(group)))
    }

    /// An id for a device that is about to attach, so that its queue can be there before.
    pub fn reserve(&mut self) -> DeviceId {
        let id = DeviceId(self.next);
        self.next += 1;
        id
    }

    /// The groups for which this hub's own window does not prove that a resume is complete, or that it cannot be: their logs'
    /// leaders must be asked before [`Hub::attach`].
    #[must_use]
    pub fn unproven(&self, subscription: &Subscription, cursor: &Cursor) -> Vec<Group> {
        Group::all()
            .filter(|group| {
                subscription.concerns(*group)
                    && !matches!(
                        resume(cursor.0[*group], self.own_proof(*group)),
                        Resume::From(_)
                    )
            })
            .collect()
    }

    fn own_proof(&self, group: Group) -> LogState {
        let state = &self.groups[group];
        LogState {
            log_id: state.log_id,
            first: state.window.from().saturating_add(1),
            tail: state.position,
        }
    }

    /// Registers a device under the id that was reserved for it, tells it what it must list, and serves it from the windows as
    /// far as they reach. Whatever remains is asked for by [`Hub::replay`].
    pub fn attach(
        &mut self,
        id: DeviceId,
        subscription: Subscription,
        from: &From,
        frames: &mut impl Sink<E>,
    ) {
        let mut resyncs: Vec<(Group, ResyncReason)> = Vec::new();
        let phases = PerGroup::from_fn(|group| {
            if !subscription.concerns(group) {
                return Phase::Unconcerned;
            }
            let From::Cursor(cursor, logs) = from else {
                return Phase::Live;
            };
            let log = logs[group].unwrap_or_else(|| self.own_proof(group));
            match resume(cursor.0[group], log) {
                // A gateway that is ahead of this one has given this cursor: what comes between is told again.
                Resume::From(position) if position >= self.groups[group].position => Phase::Live,
                Resume::From(position) => Phase::Behind(position),
                Resume::Resync(reason) => {
                    resyncs.push((group, reason));
                    Phase::Live
                }
            }
        });
        match &subscription.subject {
            Subject::Accounts(accounts) => {
                for account in accounts {
                    self.by_account.entry(account.clone()).or_default().push(id);
                }
            }
            Subject::Tenant(tenant) => {
                self.by_tenant.entry(tenant.clone()).or_default().push(id);
            }
        }
        let everything = match from {
            From::Resync(reason) => Some(*reason),
            _ => None,
        };
        let told = match everything {
            Some(reason) => frames
                .push(id, Frame::Resync(Concerned::Everything, reason))
                .is_ok(),
            None => resyncs
                .iter()
                .all(|(group, reason)| tell_resync(&subscription, id, *group, *reason, frames)),
        };
        self.devices.insert(
            id,
            Device {
                subscription,
                phases,
                live_told: false,
            },
        );
        if !told {
            frames.close(id);
            return;
        }
        for group in Group::all() {
            self.catch_up(id, group, frames);
        }
        self.tell_live(id, frames);
    }

    /// Forgets a device.
    pub fn detach(&mut self, id: DeviceId) {
        let Some(device) = self.devices.remove(&id) else {
            return;
        };
        fn leave<K: std::hash::Hash + Eq>(
            index: &mut HashMap<K, Vec<DeviceId>>,
            key: &K,
            id: DeviceId,
        ) {
            if let Some(devices) = index.get_mut(key) {
                devices.retain(|other| *other != id);
                if devices.is_empty() {
                    index.remove(key);
                }
            }
        }
        match &device.subscription.subject {
            Subject::Accounts(accounts) => {
                for account in accounts {
                    leave(&mut self.by_account, account, id);
                }
            }
            Subject::Tenant(tenant) => leave(&mut self.by_tenant, tenant, id),
        }
    }

    /// The next entry of a log. Entries must come in order; one at or before the group's position is skipped.
    pub fn on_entry(
        &mut self,
        group: Group,
        position: Position,
        entry: &E,
        frames: &mut impl Sink<E>,
    ) {
        if position <= self.groups[group].position {
            return;
        }
        let named = self.by_account.get(entry.account());
        let whole = self.by_tenant.get(entry.account().tenant());
        for id in named.into_iter().chain(whole).flatten() {
            let Some(device) = self.devices.get_mut(id) else {
                continue;
            };
            if device.phases[group] != Phase::Live || !device.subscription.wants(entry.kind()) {
                continue;
            }
            if frames.push(*id, Frame::Entry(entry.clone())).is_err() {
                device.phases[group] = Phase::Behind(position - 1);
            }
        }
        let state = &mut self.groups[group];
        state.window.push(position, entry.bytes(), entry.clone());
        state.position = position;
    }

    /// The log has nothing up to `position` that this gateway has not had: purged accounts, or entries that it doesn't know.
    pub fn on_skipped(&mut self, group: Group, position: Position) {
        let state = &mut self.groups[group];
        state.position = state.position.max(position);
    }

    /// A log's history is another, or something was missed: every device concerned must list, and goes on from `place`.
    pub fn on_log_changed(
        &mut self,
        group: Group,
        place: Place,
        reason: ResyncReason,
        frames: &mut impl Sink<E>,
    ) {
        let state = &mut self.groups[group];
        state.log_id = place.log_id;
        state.position = place.position;
        state.window.reset(place.position);
        for (id, device) in &mut self.devices {
            if device.phases[group] == Phase::Unconcerned {
                continue;
            }
            device.phases[group] = Phase::Live;
            if !tell_resync(&device.subscription, *id, group, reason, frames) {
                frames.close(*id);
            }
        }
    }

    /// The read that this device needs next, if it is behind anywhere.
    #[must_use]
    pub fn replay(&self, id: DeviceId) -> Option<Replay> {
        let device = self.devices.get(&id)?;
        device.phases.iter().find_map(|(group, phase)| match phase {
            Phase::Behind(after) => Some(Replay {
                group,
                log_id: self.groups[group].log_id,
                after: *after,
                up_to: self.groups[group].position,
            }),
            _ => None,
        })
    }

    /// What a read brought: the entries of `replay`'s log after `replay.after`, in order and whole up to `read_to`, and the
    /// first sequence that the log held *after* the read. Entries of other accounts are skipped. Returns how many entries were
    /// queued.
    pub fn on_replayed(
        &mut self,
        id: DeviceId,
        replay: &Replay,
        entries: impl IntoIterator<Item = (Position, E)>,
        read_to: Position,
        first: Position,
        frames: &mut impl Sink<E>,
    ) -> usize {
        let Some(device) = self.devices.get_mut(&id) else {
            return 0;
        };
        // The hub was told of another history, or the device was served otherwise, while the read went on.
        if device.phases[replay.group] != Phase::Behind(replay.after)
            || self.groups[replay.group].log_id != replay.log_id
        {
            return 0;
        }
        if first > replay.after.saturating_add(1) {
            device.phases[replay.group] = Phase::Live;
            let reason = ResyncReason::CursorTooOld;
            if !tell_resync(&device.subscription, id, replay.group, reason, frames) {
                frames.close(id);
            }
            self.tell_live(id, frames);
            return 0;
        }
        let mut queued = 0;
        let mut at = read_to;
        for (position, entry) in entries {
            let due = device.subscription.subject.covers(entry.account())
                && device.subscription.wants(entry.kind());
            if due && frames.push(id, Frame::Entry(entry)).is_err() {
                at = position - 1;
                break;
            }
            queued += usize::from(due);
        }
        device.phases[replay.group] = Phase::Behind(at.max(replay.after));
        self.catch_up(id, replay.group, frames);
        self.tell_live(id, frames);
        queued
    }

    /// Whether the device has everything that this gateway has.
    #[must_use]
    pub fn is_live(&self, id: DeviceId) -> bool {
        self.devices.get(&id).is_some_and(|device| {
            !device
                .phases
                .iter()
                .any(|(_, phase)| matches!(phase, Phase::Behind(_)))
        })
    }

    /// Serves a device that is behind from the window, if that reaches back far enough.
    fn catch_up(&mut self, id: DeviceId, group: Group, frames: &mut impl Sink<E>) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        let Phase::Behind(after) = device.phases[group] else {
            return;
        };
        let state = &self.groups[group];
        if after >= state.position {
            device.phases[group] = Phase::Live;
            return;
        }
        if !state.window.covers(after) {
            return;
        }
        for (position, entry) in state.window.after(after) {
            let due = device.subscription.subject.covers(entry.account())
                && device.subscription.wants(entry.kind());
            if due && frames.push(id, Frame::Entry(entry.clone())).is_err() {
                device.phases[group] = Phase::Behind(position - 1);
                return;
            }
        }
        device.phases[group] = Phase::Live;
    }

    fn tell_live(&mut self, id: DeviceId, frames: &mut impl Sink<E>) {
        let live = self.is_live(id);
        if let Some(device) = self.devices.get_mut(&id)
            && live
            && !device.live_told
        {
            device.live_told = frames.push(id, Frame::Live).is_ok();
        }
    }

    /// The queue of this device has room again: serves it from the windows as far as they reach.
    pub fn on_room(&mut self, id: DeviceId, frames: &mut impl Sink<E>) {
        for group in Group::all() {
            self.catch_up(id, group, frames);
        }
        self.tell_live(id, frames);
    }

    /// Offers every device its cursor. One that cannot take it now gets the next one.
    pub fn offer_cursors(&mut self, frames: &mut impl Sink<E>) {
        let shared = self.cursor_now().encode();
        for (id, device) in &self.devices {
            let behind = device
                .phases
                .iter()
                .any(|(_, phase)| matches!(phase, Phase::Behind(_)));
            let bytes = if behind && !plant::is(plant::Bug::CursorOvertakesEvent) {
                self.own_cursor(device).encode()
            } else {
                shared.clone()
            };
            // Full: the queue holds frames that say the connection lives.
            let _ = frames.push(*id, Frame::Cursor(bytes));
        }
    }

    fn own_cursor(&self, device: &Device) -> Cursor {
        Cursor(PerGroup::from_fn(|group| match device.phases[group] {
            Phase::Behind(position) => Place {
                log_id: self.groups[group].log_id,
                position,
            },
            Phase::Live | Phase::Unconcerned => self.place(group),
        }))
    }
}

fn tell_resync<E>(
    subscription: &Subscription,
    id: DeviceId,
    group: Group,
    reason: ResyncReason,
    frames: &mut impl Sink<E>,
) -> bool {
    match &subscription.subject {
        Subject::Tenant(_) => frames
            .push(id, Frame::Resync(Concerned::Everything, reason))
            .is_ok(),
        Subject::Accounts(accounts) => accounts
            .iter()
            .filter(|account| account.group() == group)
            .all(|account| {
                let concerned = Concerned::Account(account.clone());
                frames.push(id, Frame::Resync(concerned, reason)).is_ok()
            }),
    }
}
