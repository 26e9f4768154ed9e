//! The rules of a client, without a socket, a clock or an await: frames go in, what the app gets comes out.
//!
//! # What makes it whole
//! * **Handed, taken, stored.** Every event has a position. It is *handed* when it leaves this session, *taken* when the app
//!   says that it is done with it ([`ClientSession::on_taken`]). A repeat is told from a first telling by what was handed; what
//!   is stored knows only what was taken. So a process that dies loses nothing that its app did not see, and hears of nothing
//!   again that was taken and stored.
//! * **A cursor waits for what came before it.** A Cursor frame goes into the same queue as the events, and counts once all of
//!   them were taken.
//! * **A cursor waits for resyncs.** While one is pending (not listed, or its listing not taken), the stored cursor stays where
//!   it is: who dies in between is told to resync again. Pending resyncs are stored too, and listed again after a restart;
//!   that is why one that takes very long (a mailbox that cannot be opened for days) may stop holding the cursor back.
//! * **An empty cursor in a stored state** means that the process died before its first Cursor frame: everything is listed.
//! * **A resync reaches down to what was told.** A listing of a folder's newest messages that ends above the highest UID that
//!   had been told when the resync came is followed by a listing of what lies between.
//! * **A listing is as new as the stream.** Facts of a folder that are told while it is listed are handed at once, and worked
//!   into its listing before that is handed.

mod directory;
mod facts;
mod frames;
mod listing;
mod pending;
mod ranges;
mod stored;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use mailbell_core::backoff::Backoff;
use mailbell_proto::push::v1::{AccountState, EventKey, ServerFrame, server_frame::Frame};
use rand::{SeedableRng as _, rngs::SmallRng};

pub(crate) use listing::MOST_DEPTH;
pub use listing::{ListFailure, ListRequest, Listing, Span};
pub use stored::{DecodeError, StoredState};

use crate::event::{AppEvent, DisconnectReason, Handed};
use directory::Directory;
use facts::{Facts, ListedUids};
use pending::{PendingSet, Phase, Slot, StoredPending};

/// So many keys wait to be acknowledged; more are left out, since acknowledgements only measure.
const MOST_ACKS: usize = 4096;
/// An acknowledgement names at most this many keys.
const ACKS_A_FRAME: usize = 512;

/// What a session must know of its subscription.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The accounts that the app names, so that a resync of everything reaches those that are never heard of.
    pub accounts: Vec<String>,
    /// How many of a folder's newest messages a resync lists at least. 1 to 10,000. If more came than these, all of them are
    /// listed.
    pub resync_depth: u32,
    /// How many keys are remembered. The unit of the memory and of the stored state: 8 to 20 bytes each; beside them, which UIDs
    /// of each folder were told, as ranges. Half as many events may be handed and not taken, see [`ClientSession::has_room`].
    pub recent_keys: usize,
    /// How many listings are under way, or handed and not taken, at a time: bounds what they take in memory.
    pub listings: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            accounts: Vec::new(),
            resync_depth: 200,
            recent_keys: 8192,
            listings: 2,
        }
    }
}

/// The time, twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Since the session was made; never goes back.
    pub elapsed: Duration,
    /// By the wall clock, in milliseconds since the epoch.
    pub wall_ms: i64,
}

/// What whoever drives a session does.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Give this to the app, in this order.
    Hand(Handed),
    /// Store [`ClientSession::storable`] before anything that follows is handed to the app.
    Persist,
    /// This stream is about to end: reconnect after so long.
    GoAway(Duration),
    /// What came is not of this protocol: end the stream.
    Violation,
}

/// How pressing it is to store the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unsaved {
    /// What is stored is up to date.
    Nothing,
    /// The cursor has moved, and nothing was taken: a longer replay is all that is lost.
    Cursor,
    /// The app has taken something: it would be told again.
    Facts,
}

/// Counts since the session was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Facts handed for the first time.
    pub facts: u64,
    /// Repeats, left out.
    pub repeats: u64,
    /// Resyncs and bulks that were not repeats.
    pub resyncs: u64,
    /// Listings handed.
    pub listings: u64,
    /// Frames or events that made no sense.
    pub malformed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct ResumePoint {
    cursor: Bytes,
    digest: Bytes,
}

#[derive(Debug)]
enum Flight {
    Fact {
        key: EventKey,
        alerted: Option<u64>,
    },
    Listed {
        slot: Slot,
        /// `None`: it could not be listed.
        uids: Option<ListedUids>,
    },
    Status,
    Cursor(ResumePoint),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stream {
    Off,
    Replaying,
    Live,
}

/// See the module.
#[derive(Debug)]
pub struct ClientSession {
    options: SessionOptions,
    rng: SmallRng,
    stream: Stream,
    /// A stream was open in this run.
    was_open: bool,
    digest: Bytes,
    /// A stream was open once, in this run or in the one that stored the state.
    began: bool,
    handed: Facts,
    taken: Facts,
    directory: Directory,
    pending: PendingSet,
    /// How long listings wait that the end of a stream left behind: longer each time, until one is answered.
    interrupted: Backoff,
    /// The same for the first time, as the server wished it for the resyncs that are pending.
    spread: Duration,
    /// What was handed and not taken, and the cursors between; bounded by [`ClientSession::has_room`].
    in_flight: VecDeque<(u64, Flight)>,
    next_position: u64,
    taken_to: u64,
    next_ticket: u64,
    /// The newest cursor that came: where this run reconnects.
    newest: Option<ResumePoint>,
    /// The newest cursor of which all that came before it is taken.
    due: Option<ResumePoint>,
    /// The same, released by the pending resyncs: what is stored.
    released: Option<ResumePoint>,
    /// How many facts had been told when `released` last moved.
    released_at: u64,
    as_of_ms: i64,
    states: HashMap<String, AccountState>,
    acks: VecDeque<EventKey>,
    unsaved: Unsaved,
    counters: Counters,
}

impl ClientSession {
    /// A session that goes on from a stored state, or begins. `seed` is for the jitter of listings.
    #[must_use]
    pub fn new(options: SessionOptions, state: Option<StoredState>, seed: u64) -> Self {
        let began = state.is_some();
        let state = state.unwrap_or_default();
        let taken = Facts::restore(options.recent_keys, state.facts);
        let released = (!state.cursor.is_empty()).then_some(ResumePoint {
            cursor: state.cursor,
            digest: state.digest,
        });
        let mut pending = PendingSet::default();
        for StoredPending {
            slot,
            range,
            told,
            since_ms,
        } in state.pending
        {
            pending.add(slot, range, told, since_ms, Duration::ZERO);
        }
        let mut session = Self {
            rng: SmallRng::seed_from_u64(seed),
            stream: Stream::Off,
            was_open: false,
            digest: Bytes::new(),
            began,
            handed: taken.clone(),
            taken,
            directory: state.directory,
            pending,
            interrupted: pending::backoff(),
            spread: Duration::ZERO,
            in_flight: VecDeque::new(),
            next_position: 1,
            taken_to: 0,
            next_ticket: 1,
            newest: released.clone(),
            due: None,
            released,
            released_at: 0,
            as_of_ms: state.as_of_ms,
            states: HashMap::new(),
            acks: VecDeque::new(),
            unsaved: Unsaved::Nothing,
            counters: Counters::default(),
            options,
        };
        let named = session.options.accounts.clone();
        for account in &named {
            session.note(account, 0, session.as_of_ms, Duration::ZERO);
        }
        session
    }

    /// Cursor and digest for the next `SubscribeRequest`; empty: from now on.
    #[must_use]
    pub fn resume_point(&self) -> (Bytes, Bytes) {
        self.newest
            .clone()
            .map_or_else(Default::default, |point| (point.cursor, point.digest))
    }

    /// A frame came.
    pub fn on_frame(&mut self, frame: ServerFrame, now: Now) -> Vec<Output> {
        let mut out = Vec::new();
        match (frame.frame, self.stream) {
            (Some(Frame::Hello(hello)), Stream::Off) => self.on_hello(hello, now, &mut out),
            (Some(Frame::Hello(_)), _) | (Some(_), Stream::Off) => {
                self.counters.malformed += 1;
                out.push(Output::Violation);
            }
            (Some(Frame::Event(event)), _) => self.on_event(event, now, &mut out),
            (Some(Frame::Cursor(cursor)), _) => self.on_cursor(cursor, now),
            (Some(Frame::Live(_)), _) => {
                self.stream = Stream::Live;
                self.hand(AppEvent::Live, Flight::Status, &mut out);
            }
            (Some(Frame::Resync(resync)), _) => self.on_resync(&resync, now),
            (Some(Frame::AccountState(state)), _) => self.on_account_state(state, now, &mut out),
            (Some(Frame::GoAway(away)), _) => {
                let after = Duration::from_millis(away.reconnect_after_ms.into());
                out.push(Output::GoAway(after));
            }
            // A frame of a newer release.
            (None, _) => {}
        }
        self.settle();
        out
    }

    /// The stream ended, or could not be opened.
    pub fn on_disconnected(&mut self, reason: DisconnectReason, retry_in: Duration) -> Vec<Output> {
        self.stream = Stream::Off;
        self.pending.interrupt();
        let mut out = Vec::new();
        let event = AppEvent::Disconnected { reason, retry_in };
        self.hand(event, Flight::Status, &mut out);
        out
    }

    /// Whether more may be read: fewer events than half of [`SessionOptions::recent_keys`] are handed and not taken. Else an
    /// app that reads and never says what it is done with takes memory without end.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let out = self.next_position - 1 - self.taken_to;
        let most = (self.options.recent_keys / 2).max(1);
        out < u64::try_from(most).unwrap_or(u64::MAX)
    }

    /// The app is done with everything up to this position.
    pub fn on_taken(&mut self, position: u64) {
        self.taken_to = self.taken_to.max(position).min(self.next_position - 1);
        self.settle();
    }

    fn hand(&mut self, event: AppEvent, flight: Flight, out: &mut Vec<Output>) {
        let position = self.next_position;
        self.next_position += 1;
        self.in_flight.push_back((position, flight));
        out.push(Output::Hand(Handed { position, event }));
    }

    /// Moves on what is taken, and the cursors behind it.
    fn settle(&mut self) {
        while let Some((position, _)) = self.in_flight.front()
            && *position <= self.taken_to
            && let Some((position, flight)) = self.in_flight.pop_front()
        {
            match flight {
                Flight::Fact { key, alerted } => {
                    self.taken.insert(&key);
                    if let Some(content) = alerted {
                        self.taken.insert_alerted(content);
                    }
                    if self.acks.len() < MOST_ACKS {
                        self.acks.push_back(key);
                    }
                    self.unsaved = Unsaved::Facts;
                }
                Flight::Listed { slot, uids } => {
                    if let Some(uids) = uids {
                        self.taken.insert_listed(&uids);
                    }
                    if let Some(pending) = self.pending.get_mut(&slot)
                        && pending.phase == Phase::Handed(position)
                    {
                        self.pending.remove(&slot);
                    }
                    self.unsaved = Unsaved::Facts;
                }
                Flight::Status => {}
                Flight::Cursor(point) => self.due = Some(point),
            }
        }
        // Resyncs that overlap could hold it back for ever, each of them only for a while: then the recent keys would no longer
        // reach back to the stored cursor, and what was taken would be told again. They are stored beside it.
        let told = self.counters.facts - self.released_at;
        let overdue = told >= u64::try_from(self.handed.most() / 2).unwrap_or(u64::MAX);
        if self.due.is_some()
            && (overdue || self.pending.iter().all(|(_, pending)| pending.is_parked()))
        {
            self.released_at = self.counters.facts;
            // The first cursor ever ends the time in which a crash means listing everything.
            let first = self.released.is_none();
            self.released = self.due.take();
            self.unsaved = self.unsaved.max(if first {
                Unsaved::Facts
            } else {
                Unsaved::Cursor
            });
        }
    }

    /// How pressing it is to store the state.
    #[must_use]
    pub fn unsaved(&self) -> Unsaved {
        if self.began {
            self.unsaved
        } else {
            Unsaved::Nothing
        }
    }

    /// What is to be stored now. `None`: nothing has changed since the last call.
    pub fn storable(&mut self) -> Option<StoredState> {
        if self.unsaved() == Unsaved::Nothing {
            return None;
        }
        self.unsaved = Unsaved::Nothing;
        let mut state = StoredState::new();
        if let Some(point) = &self.released {
            state.cursor = point.cursor.clone();
            state.digest = point.digest.clone();
        }
        state.as_of_ms = self.as_of_ms;
        state.facts = self.taken.store();
        state.directory = self.directory.clone();
        state.pending = self.stored_pending();
        Some(state)
    }

    /// What [`ClientSession::storable`] gave could not be stored.
    pub fn not_stored(&mut self) {
        self.unsaved = Unsaved::Facts;
    }

    /// Whether [`ClientSession::take_acks`] has any.
    #[must_use]
    pub fn has_acks(&self) -> bool {
        !self.acks.is_empty()
    }

    /// Keys of facts that the app has taken, to be acknowledged; at most 512 at a time.
    pub fn take_acks(&mut self) -> Vec<EventKey> {
        let many = self.acks.len().min(ACKS_A_FRAME);
        self.acks.drain(..many).collect()
    }

    /// Counts since the session was made.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }
}
