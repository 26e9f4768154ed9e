//! The hub itself.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use mailbell_proto::push::v1::ResyncReason;

use super::{
    Concerned, DeviceId, Entry, Frame, LogState, Resume, Sink, Subscription, Window, resume,
};
use crate::{
    cursor::{Cursor, Place, Subject},
    ids::{AccountId, Group, LogId, PerGroup, Position, Tenant},
    plant,
};

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
    /// It got on since its last cursor, and is in [`Hub`]'s list of those.
    fresh: bool,
}

impl Device {
    fn mark(&mut self, id: DeviceId, fresh: &mut Vec<DeviceId>) {
        if !self.fresh {
            self.fresh = true;
            fresh.push(id);
        }
    }

    fn is_live(&self) -> bool {
        !self
            .phases
            .iter()
            .any(|(_, phase)| matches!(phase, Phase::Behind(_)))
    }
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
    /// Devices that got on since their last cursor, by entries or by other means.
    fresh: Vec<DeviceId>,
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
            fresh: Vec::new(),
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
        if let From::Resync(reason) = from {
            resyncs.extend(Group::all().map(|group| (group, *reason)));
        }
        let told = tell_resync(&subscription, id, &resyncs, frames);
        self.devices.insert(
            id,
            Device {
                subscription,
                phases,
                live_told: false,
                fresh: false,
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
            } else {
                device.mark(*id, &mut self.fresh);
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

    /// This hub stands there. What was before is not in its window.
    pub fn join(&mut self, group: Group, place: Place) {
        let state = &mut self.groups[group];
        state.log_id = place.log_id;
        state.position = place.position;
        state.window.reset(place.position);
    }

    /// A log's history is another, or something was missed: every device concerned must list, and goes on from `place`.
    pub fn on_log_changed(
        &mut self,
        group: Group,
        place: Place,
        reason: ResyncReason,
        frames: &mut impl Sink<E>,
    ) {
        self.join(group, place);
        let mut concerned = Vec::new();
        for (id, device) in &mut self.devices {
            if device.phases[group] == Phase::Unconcerned {
                continue;
            }
            device.phases[group] = Phase::Live;
            // Its last cursor is good for nothing now.
            device.mark(*id, &mut self.fresh);
            concerned.push(*id);
            if !tell_resync(&device.subscription, *id, &[(group, reason)], frames) {
                frames.close(*id);
            }
        }
        for id in concerned {
            self.tell_live(id, frames);
        }
    }

    /// The read that this device needs next, if it is behind anywhere.
    #[must_use]
    pub fn replay(&self, id: DeviceId) -> Option<Replay> {
        self.replay_of(id, |_| true)
    }

    /// The read that this device needs next of a log that can be read, if it is behind in one.
    #[must_use]
    pub fn replay_of(&self, id: DeviceId, readable: impl Fn(Group) -> bool) -> Option<Replay> {
        let device = self.devices.get(&id)?;
        device.phases.iter().find_map(|(group, phase)| match phase {
            Phase::Behind(after) if readable(group) => Some(Replay {
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
            device.mark(id, &mut self.fresh);
            let resync = [(replay.group, ResyncReason::CursorTooOld)];
            if !tell_resync(&device.subscription, id, &resync, frames) {
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
        if queued > 0 {
            device.mark(id, &mut self.fresh);
        }
        device.phases[replay.group] = Phase::Behind(at.max(replay.after));
        self.catch_up(id, replay.group, frames);
        self.tell_live(id, frames);
        queued
    }

    /// Whether the device has everything that this gateway has.
    #[must_use]
    pub fn is_live(&self, id: DeviceId) -> bool {
        self.devices.get(&id).is_some_and(Device::is_live)
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
            device.mark(id, &mut self.fresh);
            return;
        }
        if !state.window.covers(after) {
            return;
        }
        for (position, entry) in state.window.after(after) {
            let due = device.subscription.subject.covers(entry.account())
                && device.subscription.wants(entry.kind());
            if !due {
                continue;
            }
            if frames.push(id, Frame::Entry(entry.clone())).is_err() {
                device.phases[group] = Phase::Behind(position - 1);
                return;
            }
            device.mark(id, &mut self.fresh);
        }
        device.phases[group] = Phase::Live;
        // Also if nothing between was for it: else it would come back to where it was behind.
        device.mark(id, &mut self.fresh);
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

    /// Offers its cursor to every device that got on since its last one.
    pub fn offer_fresh_cursors(&mut self, frames: &mut impl Sink<E>) {
        let shared = self.cursor_now().encode();
        for id in std::mem::take(&mut self.fresh) {
            let Some(device) = self.devices.get(&id) else {
                continue;
            };
            if self.give_cursor(id, device, &shared, frames) {
                if let Some(device) = self.devices.get_mut(&id) {
                    device.fresh = false;
                }
            } else {
                self.fresh.push(id);
            }
        }
    }

    /// Offers the next `most` devices after `after` their cursors, so that a heartbeat for very many can be spread over time.
    /// Returns the last one; `None` once all have had their turn.
    pub fn offer_cursors_after(
        &mut self,
        after: DeviceId,
        most: usize,
        frames: &mut impl Sink<E>,
    ) -> Option<DeviceId> {
        let shared = self.cursor_now().encode();
        let mut last = None;
        let rest = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let mut devices = self.devices.range(rest);
        for (id, device) in devices.by_ref().take(most) {
            // Full: the queue holds frames that say the connection lives.
            let _ = self.give_cursor(*id, device, &shared, frames);
            last = Some(*id);
        }
        devices.next().and(last)
    }

    /// Offers one device its cursor.
    pub fn offer_cursor(&mut self, id: DeviceId, frames: &mut impl Sink<E>) {
        if let Some(device) = self.devices.get(&id) {
            let shared = self.cursor_now().encode();
            let _ = self.give_cursor(id, device, &shared, frames);
        }
    }

    fn give_cursor(
        &self,
        id: DeviceId,
        device: &Device,
        shared: &Bytes,
        frames: &mut impl Sink<E>,
    ) -> bool {
        let frame = if device.is_live() || plant::is(plant::Bug::CursorOvertakesEvent) {
            Frame::Cursor(shared.clone())
        } else {
            Frame::OwnCursor(self.own_cursor(device).encode())
        };
        frames.push(id, frame).is_ok()
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

/// More accounts than this are told as one: a queue that has just been made must take what is told at an attach, or the device
/// would be closed, come back with the same cursor, and be closed again.
const MOST_NAMED: usize = 4;

/// Tells a device what it must list, as few frames as possible. False: its queue did not take all of them.
fn tell_resync<E>(
    subscription: &Subscription,
    id: DeviceId,
    groups: &[(Group, ResyncReason)],
    frames: &mut impl Sink<E>,
) -> bool {
    let Some((_, first)) = groups.first() else {
        return true;
    };
    let mut tell = |concerned, reason| frames.push(id, Frame::Resync(concerned, reason)).is_ok();
    let Subject::Accounts(accounts) = &subscription.subject else {
        return tell(Concerned::Everything, *first);
    };
    let reason_of = |account: &AccountId| {
        let group = account.group();
        groups.iter().find(|(other, _)| *other == group)
    };
    let concerned: Vec<_> = accounts
        .iter()
        .filter_map(|account| Some((account, reason_of(account)?.1)))
        .collect();
    if concerned.len() == accounts.len() || concerned.len() > MOST_NAMED {
        return tell(Concerned::Everything, *first);
    }
    concerned
        .into_iter()
        .all(|(account, reason)| tell(Concerned::Account(account.clone()), reason))
}
