//! Drives the real hubs: consumers that follow the logs, attaches, replays, cursors, queues that fill up.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use mailbell_core::{
    cursor::{Cursor, Place},
    delivery::{
        ALL_KINDS, Concerned, DeviceId, Frame, From, Hub, LogState, Subscription, WindowLimits,
    },
    ids::{LogId, PerGroup, Position},
};
use mailbell_proto::push::v1::ResyncReason;

use crate::{
    breach::Breach,
    drive::Ev,
    frames::{Done, Queued, Queues, Shared},
    read::{Job, Purpose, Range},
    scenario::{LOGS, group},
    world::{MS, World},
};

/// One gateway.
pub(crate) struct Gateway {
    pub(crate) process: usize,
    pub(crate) alive: bool,
    hub: Hub<Shared>,
    streams: BTreeMap<DeviceId, usize>,
    /// Where its consumers go on.
    next: [Position; LOGS],
    beats: u32,
    pub(crate) follows_soon: bool,
}

/// One device's stream.
pub(crate) struct Stream {
    pub(crate) device: usize,
    pub(crate) gateway: usize,
    pub(crate) id: DeviceId,
    pub(crate) subscription: Subscription,
    /// The gateway still has it.
    pub(crate) attached: bool,
    /// The device still has it.
    pub(crate) open: bool,
    pub(crate) queue: VecDeque<Queued>,
    pub(crate) full: bool,
    draining: bool,
    pub(crate) reading: bool,
    /// What was queued for it.
    queued: BTreeSet<(usize, Position)>,
    /// Up to where it was checked that everything due was queued.
    proven: [Position; LOGS],
}

/// What a device asks a gateway for.
#[derive(Debug, Clone)]
pub(crate) struct Attach {
    pub(crate) device: usize,
    pub(crate) incarnation: u64,
    pub(crate) gateway: usize,
    pub(crate) subscription: Subscription,
    pub(crate) cursor: Bytes,
    pub(crate) digest: Bytes,
}

fn id_of_unused(number: u8) -> LogId {
    LogId([0xf0 | number; 16])
}

impl World {
    /// A gateway starts at the tails of the logs; it is not ready before their leaders have named them.
    pub(crate) fn start_gateway(&mut self, process: usize) -> bool {
        let stands = std::array::from_fn::<_, LOGS, _>(|log| self.look_at_log(process, log));
        if stands.iter().any(Option::is_none) {
            return false;
        }
        let mut places = PerGroup::from_fn(|group| Place {
            log_id: id_of_unused(group.number()),
            position: 0,
        });
        let mut next = [0; LOGS];
        for (log, stand) in stands.into_iter().flatten().enumerate() {
            places[group(log)] = Place {
                log_id: stand.log_id,
                position: stand.last,
            };
            next[log] = stand.last + 1;
        }
        let limits = WindowLimits {
            entries: self.scenario.window,
            bytes: 1 << 20,
        };
        let number = self.gateways.len();
        self.gateways.push(Gateway {
            process,
            alive: true,
            hub: Hub::new(&places, limits),
            streams: BTreeMap::new(),
            next,
            beats: 0,
            follows_soon: false,
        });
        self.processes[process].gateway = Some(number);
        self.say(|| format!("gateway {number}: ready in process {process}"));
        self.soon(Ev::Beat { gateway: number });
        true
    }

    pub(crate) fn gateway_died(&mut self, gateway: usize) {
        self.count("gateway killed");
        self.gateways[gateway].alive = false;
        for stream in std::mem::take(&mut self.gateways[gateway].streams).into_values() {
            self.streams[stream].attached = false;
            self.cut_stream(stream);
        }
        self.after(self.scenario.pace, Ev::Spawn);
    }

    /// Does something with a hub, and carries out what that means for the queues.
    fn with_hub<R>(
        &mut self,
        gateway: usize,
        act: impl FnOnce(&mut Hub<Shared>, &mut Queues<'_>) -> R,
    ) -> R {
        let state = &mut self.gateways[gateway];
        let mut queues = Queues {
            streams: &mut self.streams,
            by_id: &state.streams,
            most: self.scenario.queue,
            done: Vec::new(),
        };
        let result = act(&mut state.hub, &mut queues);
        for done in queues.done {
            match done {
                Done::Pushed(stream, frame) => self.pushed(stream, &frame),
                Done::Full => self.count("queue full"),
                Done::Closed(stream) => {
                    self.count("closed by the hub");
                    self.cut_stream(stream);
                }
            }
        }
        result
    }

    fn pushed(&mut self, number: usize, frame: &Frame<Shared>) {
        let gateway = self.streams[number].gateway;
        match frame {
            Frame::Entry(entry) => {
                let place = (entry.0.log, entry.0.position);
                self.streams[number].queued.insert(place);
            }
            Frame::Cursor(bytes) | Frame::OwnCursor(bytes) => self.check_cursor(number, bytes),
            Frame::Resync(concerned, reason) => {
                self.say(|| format!("stream {number}: resync {concerned:?} {reason:?}"));
                self.count(match reason {
                    ResyncReason::CursorTooOld => "resync: too old",
                    ResyncReason::LogChanged => "resync: log changed",
                    ResyncReason::SubscriptionChanged => "resync: subscription",
                    _ => "resync: other",
                });
                for log in 0..LOGS {
                    let concerns = match concerned {
                        Concerned::Everything => true,
                        Concerned::Account(account) => account.group() == group(log),
                    };
                    if concerns {
                        let position = self.gateways[gateway].hub.place(group(log)).position;
                        self.streams[number].proven[log] = position;
                    }
                }
            }
            Frame::Live => {}
        }
        self.drain(number);
    }

    /// Everything that was due to the device up to the cursor was queued before it.
    fn check_cursor(&mut self, number: usize, bytes: &Bytes) {
        let cursor = Cursor::decode(bytes).expect("a cursor is read as it was written");
        let stream = &self.streams[number];
        let mut missing = None;
        let mut proven = stream.proven;
        for (log, proven) in proven.iter_mut().enumerate() {
            let place = cursor.0[group(log)];
            let identity = &self.identities[log];
            // A gateway that was not told of a new history yet cannot know.
            let known =
                identity.log_id == place.log_id && identity.history == self.logs[log].history;
            if !known {
                continue;
            }
            missing = missing.or(self.logs[log]
                .after(stream.proven[log])
                .take_while(|stored| stored.position <= place.position)
                .filter(|stored| stream.subscription.subject.covers(&stored.event.account))
                .find(|stored| !stream.queued.contains(&(log, stored.position)))
                .map(|stored| (log, stored.position, place.position)));
            *proven = place.position;
        }
        self.streams[number].proven = proven;
        if let Some((log, position, cursor)) = missing {
            self.fail(Breach::CursorOvertakes, format!(
                "a cursor at {cursor} of log {log} for stream {number}, to which {position} was not queued"
            ));
        }
    }

    /// New entries: the consumers deliver them after a while.
    pub(crate) fn wake_consumers(&mut self, log: usize) {
        for gateway in 0..self.gateways.len() {
            if self.gateways[gateway].alive {
                self.soon(Ev::Deliver { gateway, log });
            }
        }
    }

    pub(crate) fn on_deliver(&mut self, gateway: usize, log: usize) {
        let state = &self.gateways[gateway];
        if !state.alive || !self.processes[state.process].up || self.logs[log].away {
            return;
        }
        let next = state.next[log];
        let Some(stored) = self.logs[log].after(next - 1).next().cloned() else {
            return;
        };
        let place = state.hub.place(group(log));
        if stored.position > next {
            let aged = self.logs[log].first() > next;
            if aged {
                self.count("consumer fell behind the log");
                let place = Place {
                    log_id: place.log_id,
                    position: stored.position - 1,
                };
                let reason = ResyncReason::CursorTooOld;
                self.with_hub(gateway, |hub, queues| {
                    hub.on_log_changed(group(log), place, reason, queues);
                });
            } else {
                self.count("purged entries skipped");
                self.gateways[gateway]
                    .hub
                    .on_skipped(group(log), stored.position - 1);
            }
        }
        let position = stored.position;
        self.gateways[gateway].next[log] = position + 1;
        let process = self.gateways[gateway].process;
        self.processes[process].views[log].note_seen(place.log_id, position);
        self.say(|| format!("gateway {gateway}: log {log} at {position}"));
        self.with_hub(gateway, |hub, queues| {
            hub.on_entry(group(log), position, &Shared(stored), queues);
        });
        self.replay_all(gateway);
        if self.logs[log].last > position {
            let delay = self.between(MS / 10, 2 * MS);
            self.after(delay, Ev::Deliver { gateway, log });
        }
    }

    /// The consumers are made anew: is it still the same history, and is nothing missing?
    pub(crate) fn follow_anew(&mut self, gateway: usize) {
        let process = self.gateways[gateway].process;
        for log in 0..LOGS {
            let Some(stand) = self.look_at_log(process, log) else {
                // The leader is away: the next try is not far.
                if !std::mem::replace(&mut self.gateways[gateway].follows_soon, true) {
                    self.after(500 * MS, Ev::Follow { gateway });
                }
                continue;
            };
            let next = self.gateways[gateway].next[log];
            let known = self.gateways[gateway].hub.place(group(log));
            let reason = if known.log_id != stand.log_id {
                ResyncReason::LogChanged
            } else if stand.first > next {
                ResyncReason::CursorTooOld
            } else {
                self.soon(Ev::Deliver { gateway, log });
                continue;
            };
            // Another history is followed from its end, one with a hole from where it begins again.
            let position = match reason {
                ResyncReason::LogChanged => stand.last,
                _ => stand.first - 1,
            };
            let place = Place {
                log_id: stand.log_id,
                position,
            };
            self.gateways[gateway].next[log] = position + 1;
            self.say(|| format!("gateway {gateway}: log {log} anew at {position}, {reason:?}"));
            self.with_hub(gateway, |hub, queues| {
                hub.on_log_changed(group(log), place, reason, queues);
            });
            self.soon(Ev::Deliver { gateway, log });
        }
    }

    /// A device asks to be attached: whatever the window does not prove is asked of the leaders.
    pub(crate) fn on_attach(&mut self, attach: Attach) {
        let Some(stream_wanted) = self.still_wanted(&attach) else {
            return;
        };
        let (gateway, process) = stream_wanted;
        let mut logs: PerGroup<Option<LogState>> = PerGroup::default();
        if let Ok(cursor) = Cursor::decode(&attach.cursor) {
            let hub = &self.gateways[gateway].hub;
            for unproven in hub.unproven(&attach.subscription, &cursor) {
                let Some(log) = (0..LOGS).find(|log| group(*log) == unproven) else {
                    logs[unproven] = Some(LogState {
                        log_id: id_of_unused(unproven.number()),
                        first: 1,
                        tail: 0,
                    });
                    continue;
                };
                let Some(stand) = self.look_at_log(process, log) else {
                    return self.attach_failed(&attach);
                };
                logs[unproven] = Some(LogState {
                    log_id: stand.log_id,
                    first: stand.first,
                    tail: stand.last,
                });
                if self.gateways[gateway].hub.place(unproven).log_id != stand.log_id {
                    self.follow_anew(gateway);
                }
            }
        }
        self.soon(Ev::AttachProven {
            attach: Box::new(attach),
            logs: Box::new(logs),
        });
    }

    fn still_wanted(&mut self, attach: &Attach) -> Option<(usize, usize)> {
        let device = &self.devices[attach.device];
        if !device.alive || device.incarnation != attach.incarnation || device.stream.is_some() {
            return None;
        }
        let state = &self.gateways[attach.gateway];
        if !state.alive || !self.processes[state.process].up {
            self.attach_failed(attach);
            return None;
        }
        Some((attach.gateway, state.process))
    }

    pub(crate) fn on_attach_proven(&mut self, attach: Attach, logs: PerGroup<Option<LogState>>) {
        let Some((gateway, _)) = self.still_wanted(&attach) else {
            return;
        };
        let stale = LOGS_IN.iter().any(|log| {
            let proof = logs[group(*log)];
            let known = self.gateways[gateway].hub.place(group(*log)).log_id;
            proof.is_some_and(|proof| proof.log_id != known)
        });
        if stale {
            // The history changed between the two.
            return self.attach_failed(&attach);
        }
        let digest = mailbell_core::cursor::digest(&attach.subscription.subject, ALL_KINDS);
        let from = if attach.cursor.is_empty() {
            From::Now
        } else {
            match Cursor::decode(&attach.cursor) {
                Err(_) => From::Resync(ResyncReason::BadCursor),
                Ok(_) if attach.digest != digest => From::Resync(ResyncReason::SubscriptionChanged),
                Ok(cursor) => From::Cursor(Box::new(cursor), Box::new(logs)),
            }
        };
        let number = self.streams.len();
        let state = &mut self.gateways[gateway];
        let id = state.hub.reserve();
        let proven = std::array::from_fn(|log| {
            let here = state.hub.place(group(log));
            match &from {
                From::Cursor(cursor, _) if cursor.0[group(log)].log_id == here.log_id => {
                    cursor.0[group(log)].position
                }
                _ => here.position,
            }
        });
        state.streams.insert(id, number);
        self.streams.push(Stream {
            device: attach.device,
            gateway,
            id,
            subscription: attach.subscription.clone(),
            attached: true,
            open: true,
            queue: VecDeque::from([Queued::Hello(digest)]),
            full: false,
            draining: false,
            reading: false,
            queued: BTreeSet::new(),
            proven,
        });
        self.devices[attach.device].stream = Some(number);
        self.count("attach");
        self.say(|| {
            format!(
                "stream {number}: device {} at gateway {gateway}",
                attach.device
            )
        });
        let subscription = attach.subscription;
        self.with_hub(gateway, |hub, queues| {
            hub.attach(id, subscription, &from, queues)
        });
        self.drain(number);
        self.replay(number);
    }

    fn replay_all(&mut self, gateway: usize) {
        for stream in self.gateways[gateway].streams.clone().into_values() {
            self.replay(stream);
        }
    }

    /// Reads what a device that is behind needs, unless it cannot take more now.
    pub(crate) fn replay(&mut self, number: usize) {
        let stream = &self.streams[number];
        let state = &self.gateways[stream.gateway];
        if !stream.attached || stream.reading || stream.queue.len() >= self.scenario.queue {
            return;
        }
        let Some(replay) = state.hub.replay(stream.id) else {
            return;
        };
        let log = (0..LOGS).find(|log| group(*log) == replay.group).unwrap();
        let covers = |account: &usize| {
            let account = &self.places[*account].account;
            account.group() == replay.group && stream.subscription.subject.covers(account)
        };
        let range = Range {
            log,
            accounts: (0..self.places.len()).filter(covers).collect(),
            log_id: replay.log_id,
            after: replay.after,
            up_to: replay.up_to,
        };
        let process = state.process;
        self.streams[number].reading = true;
        self.count("replay");
        self.read(
            process,
            range,
            Purpose::Replay {
                stream: number,
                replay,
            },
        );
    }

    pub(crate) fn replay_later(&mut self, stream: usize) {
        let delay = self.between(100 * MS, 600 * MS);
        self.after(delay, Ev::Replay { stream });
    }

    pub(crate) fn replay_read(&mut self, job: Job) {
        let Purpose::Replay {
            stream: number,
            replay,
        } = &job.purpose
        else {
            return;
        };
        self.streams[*number].reading = false;
        let (gateway, id) = (self.streams[*number].gateway, self.streams[*number].id);
        let Some(stand) = self.look_at_log(self.gateways[gateway].process, job.log) else {
            return self.replay_later(*number);
        };
        if stand.log_id != replay.log_id {
            self.follow_anew(gateway);
            return self.replay(*number);
        }
        if !self.streams[*number].attached {
            return;
        }
        let read_to = job.read_to();
        let entries: Vec<_> = job
            .entries
            .iter()
            .map(|stored| (stored.position, Shared(stored.clone())))
            .collect();
        self.with_hub(gateway, |hub, queues| {
            hub.on_replayed(id, replay, entries, read_to, stand.first, queues)
        });
        self.replay(*number);
    }

    /// Cursors: soon after events, and as heartbeat.
    pub(crate) fn on_beat(&mut self, gateway: usize) {
        if !self.gateways[gateway].alive {
            return;
        }
        self.gateways[gateway].beats += 1;
        if self.gateways[gateway].beats.is_multiple_of(10) {
            self.with_hub(gateway, |hub, queues| {
                hub.offer_cursors_after(DeviceId(0), usize::MAX, queues);
            });
        } else {
            self.with_hub(gateway, |hub, queues| hub.offer_fresh_cursors(queues));
        }
        self.after(400 * MS, Ev::Beat { gateway });
    }

    fn drain(&mut self, number: usize) {
        let stream = &mut self.streams[number];
        if stream.queue.is_empty() || std::mem::replace(&mut stream.draining, true) {
            return;
        }
        let slow = self.devices[stream.device].slow && self.chaos;
        let delay = if slow {
            self.between(500 * MS, Duration::from_secs(2))
        } else {
            self.between(MS / 5, 4 * MS)
        };
        self.after(delay, Ev::Drain { stream: number });
    }

    /// The device reads the next frame.
    pub(crate) fn on_drain(&mut self, number: usize) {
        let stream = &mut self.streams[number];
        stream.draining = false;
        if !stream.open {
            return;
        }
        let Some(queued) = stream.queue.pop_front() else {
            return;
        };
        self.device_reads(number, queued);
        let stream = &mut self.streams[number];
        if stream.attached && std::mem::take(&mut stream.full) {
            let (gateway, id) = (stream.gateway, stream.id);
            self.with_hub(gateway, |hub, queues| hub.on_room(id, queues));
        }
        self.replay(number);
        self.drain(number);
    }

    /// A connection of a device breaks; the gateway notices later.
    pub(crate) fn cut_stream(&mut self, number: usize) {
        if std::mem::replace(&mut self.streams[number].open, false) {
            self.device_lost(number);
        }
        if self.streams[number].attached {
            let delay = self.between(MS, 500 * MS);
            self.after(delay, Ev::Detach { stream: number });
        }
    }

    pub(crate) fn on_detach(&mut self, number: usize) {
        let stream = &mut self.streams[number];
        if std::mem::replace(&mut stream.attached, false) {
            let (gateway, id) = (stream.gateway, stream.id);
            stream.queue.clear();
            self.gateways[gateway].hub.detach(id);
            self.gateways[gateway].streams.remove(&id);
        }
    }

    pub(crate) fn ready_gateways(&self) -> Vec<usize> {
        (0..self.gateways.len())
            .filter(|gateway| self.gateways[*gateway].alive)
            .collect()
    }

    /// Whether a stream has everything that its gateway has, and its gateway everything that there is.
    pub(crate) fn is_current(&self, number: usize) -> bool {
        let stream = &self.streams[number];
        let hub = &self.gateways[stream.gateway].hub;
        // Of purged entries at the end nobody hears.
        let level = |log: usize| {
            let here = hub.place(group(log)).position;
            self.logs[log].after(here).next().is_none()
        };
        stream.attached && stream.queue.is_empty() && hub.is_live(stream.id) && (0..LOGS).all(level)
    }
}

const LOGS_IN: [usize; LOGS] = [0, 1];
