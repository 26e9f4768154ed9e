//! Resyncs that are not answered yet: what must be listed, what is being listed, what the app has not taken.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, btree_map::Entry},
    ops::RangeInclusive,
    time::Duration,
};

use mailbell_core::backoff::Backoff;
use mailbell_proto::push::v1::{Event, Message, event::Body};
use serde::{Deserialize, Serialize};

/// A resync that has failed so often no longer holds the cursor back; it is stored beside it.
const PARKED_AFTER: u32 = 3;
/// So many facts of a folder can be worked into its listing; with more the listing begins anew.
const MOST_OVERLAID: usize = 4096;

/// What is to be listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Slot {
    pub(crate) account: String,
    pub(crate) folder: u32,
    pub(crate) part: Part,
}

/// Which part of a folder. A listing of the newest messages does not answer for a range, nor the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Part {
    /// As far down as the client was asked to look.
    Newest,
    /// UIDs of this generation, see [`Pending::range`].
    Range(u32),
}

/// UIDs, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// To be listed, not before this time.
    Waiting(Duration),
    /// Being listed.
    Listing {
        /// By which the answer is known.
        ticket: u64,
        /// Of a range: from here.
        first: u32,
        /// Of a range: to here. The range itself may grow meanwhile.
        last: u32,
    },
    /// Handed to the app, at this position.
    Handed(u64),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) phase: Phase,
    /// Of a [`Part::Range`].
    pub(crate) range: Option<Range>,
    /// The next UID of the range; what is stored is the whole range.
    pub(crate) next: u32,
    /// Of a [`Part::Newest`]: the highest UID of each generation that had been told when it began. What came since is told in
    /// the folder too, and says nothing of the hole.
    pub(crate) told: Vec<(u32, u32)>,
    /// Only messages that came after this alert.
    pub(crate) since_ms: i64,
    /// A resync came while a listing was under way, which may have been too early for it.
    pub(crate) again: bool,
    pub(crate) overlay: Overlay,
    pub(crate) backoff: Backoff,
}

/// As it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredPending {
    pub(crate) slot: Slot,
    pub(crate) range: Option<Range>,
    #[serde(default)]
    pub(crate) told: Vec<(u32, u32)>,
    pub(crate) since_ms: i64,
}

/// 2 s, 4 s, 8 s .. 5 min, with jitter: as long as a mail server may be away.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(
        Duration::from_secs(1),
        Duration::from_secs(2),
        Duration::from_secs(300),
    )
}

impl Pending {
    fn new(
        range: Option<Range>,
        told: Vec<(u32, u32)>,
        since_ms: i64,
        not_before: Duration,
    ) -> Self {
        Self {
            phase: Phase::Waiting(not_before),
            range,
            next: range.map_or(0, |range| range.first),
            told,
            since_ms,
            again: false,
            overlay: Overlay::default(),
            backoff: backoff(),
        }
    }

    /// Another resync of the same part. Gives the phase that follows.
    fn merge(
        &mut self,
        range: Option<Range>,
        told: &[(u32, u32)],
        since_ms: i64,
        not_before: Duration,
    ) -> Phase {
        self.since_ms = self.since_ms.min(since_ms);
        // The larger hole counts. Of a generation of which nothing had been told at first, nothing is known now either; and what
        // had been handed then, and is not known now, was not taken before a restart.
        for (generation, uid) in &mut self.told {
            let other = told.iter().find(|(of, _)| of == generation);
            *uid = (*uid).min(other.map_or(0, |(_, other)| *other));
        }
        if let (Some(mine), Some(other)) = (&mut self.range, range) {
            // What lies between two ranges is listed with them: more than needed, and no harm done.
            mine.first = mine.first.min(other.first);
            mine.last = mine.last.max(other.last);
            self.next = mine.first;
        }
        match self.phase {
            Phase::Waiting(at) => Phase::Waiting(at.max(not_before)),
            Phase::Listing { .. } => {
                self.again = true;
                self.phase
            }
            Phase::Handed(_) => Phase::Waiting(not_before),
        }
    }

    /// Whether it no longer holds the cursor back, because its listing failed again and again.
    pub(crate) fn is_parked(&self) -> bool {
        self.backoff.attempts() >= PARKED_AFTER
    }
}

/// Every resync that is not answered yet, and which are next.
#[derive(Debug, Default)]
pub(crate) struct PendingSet {
    all: BTreeMap<Slot, Pending>,
    waiting: BTreeSet<(Duration, Slot)>,
    /// By ticket.
    listing: BTreeMap<u64, Slot>,
}

impl PendingSet {
    /// A resync: a new one, or one more of the same part.
    pub(crate) fn add(
        &mut self,
        slot: Slot,
        range: Option<Range>,
        told: Vec<(u32, u32)>,
        since_ms: i64,
        not_before: Duration,
    ) {
        let phase = match self.all.entry(slot.clone()) {
            Entry::Occupied(mut pending) => {
                pending.get_mut().merge(range, &told, since_ms, not_before)
            }
            Entry::Vacant(place) => {
                place
                    .insert(Pending::new(range, told, since_ms, not_before))
                    .phase
            }
        };
        self.set_phase(&slot, phase);
    }

    pub(crate) fn set_phase(&mut self, slot: &Slot, phase: Phase) {
        let Some(pending) = self.all.get_mut(slot) else {
            return;
        };
        let before = std::mem::replace(&mut pending.phase, phase);
        self.leave(slot, before);
        match phase {
            Phase::Waiting(at) => {
                self.waiting.insert((at, slot.clone()));
            }
            Phase::Listing { ticket, .. } => {
                self.listing.insert(ticket, slot.clone());
            }
            Phase::Handed(_) => {}
        }
    }

    fn leave(&mut self, slot: &Slot, phase: Phase) {
        match phase {
            Phase::Waiting(at) => {
                self.waiting.remove(&(at, slot.clone()));
            }
            Phase::Listing { ticket, .. } => {
                self.listing.remove(&ticket);
            }
            Phase::Handed(_) => {}
        }
    }

    pub(crate) fn remove(&mut self, slot: &Slot) {
        if let Some(pending) = self.all.remove(slot) {
            self.leave(slot, pending.phase);
        }
    }

    pub(crate) fn forget_account(&mut self, account: &str) {
        self.all.retain(|slot, _| slot.account != account);
        self.waiting.retain(|(_, slot)| slot.account != account);
        self.listing.retain(|_, slot| slot.account != account);
    }

    pub(crate) fn get_mut(&mut self, slot: &Slot) -> Option<&mut Pending> {
        self.all.get_mut(slot)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Slot, &Pending)> {
        self.all.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The first that may be listed, and when. One listing of a folder at a time: two of them that overlap may be answered in
    /// another order than they were read in, and the older one would undo what only the newer one holds.
    pub(crate) fn next(&self) -> Option<&(Duration, Slot)> {
        let same = |a: &Slot, b: &Slot| (&a.account, a.folder) == (&b.account, b.folder);
        self.waiting
            .iter()
            .find(|(_, slot)| !self.listing.values().any(|listed| same(listed, slot)))
    }

    /// How many are being listed.
    pub(crate) fn under_way(&self) -> usize {
        self.listing.len()
    }

    /// What is being listed under this ticket, and which UIDs. `None`: of a stream that has ended, or of an account that
    /// was removed.
    pub(crate) fn by_ticket(&self, ticket: u64) -> Option<(Slot, RangeInclusive<u32>)> {
        let slot = self.listing.get(&ticket)?;
        match self.all.get(slot)?.phase {
            Phase::Listing { first, last, .. } => Some((slot.clone(), first..=last)),
            _ => None,
        }
    }

    /// A fact of a folder is handed: a listing of the folder that is under way may be older.
    pub(crate) fn record(&mut self, event: &Event) {
        let Some(key) = &event.key else { return };
        for slot in self.listing.values() {
            if (&slot.account, slot.folder) == (&key.account, key.folder)
                && let Some(pending) = self.all.get_mut(slot)
            {
                pending.overlay.record(event);
            }
        }
    }

    /// Nothing is listed before this time, neither what was under way nor what waited for it.
    pub(crate) fn postpone(&mut self, until: Duration) {
        while let Some((at, slot)) = self.waiting.first().cloned()
            && at < until
        {
            self.set_phase(&slot, Phase::Waiting(until));
        }
    }

    /// Nobody will answer the listings that are under way: they begin anew, once there is a stream, see
    /// [`PendingSet::postpone`].
    pub(crate) fn interrupt(&mut self) {
        for slot in std::mem::take(&mut self.listing).into_values() {
            self.set_phase(&slot, Phase::Waiting(Duration::ZERO));
        }
    }
}

/// The facts of a folder that were told while it was being listed: pages may be older.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    facts: HashMap<(u32, u32), Overlaid>,
    overflown: bool,
}

#[derive(Debug, Default)]
struct Overlaid {
    arrived: Option<Message>,
    flags: Option<Vec<String>>,
    gone: bool,
}

impl Overlay {
    pub(crate) fn record(&mut self, event: &Event) {
        let Some(key) = &event.key else { return };
        let place = (key.generation, key.uid);
        if self.facts.len() >= MOST_OVERLAID && !self.facts.contains_key(&place) {
            self.overflown = true;
            return;
        }
        let fact = self.facts.entry(place).or_default();
        match &event.body {
            Some(Body::Arrived(arrived)) => {
                let mut message = arrived.message.clone().unwrap_or_default();
                message.uid = key.uid;
                fact.arrived = Some(message);
            }
            Some(Body::Changed(changed)) => fact.flags = Some(changed.flags.clone()),
            Some(Body::Gone(_)) => fact.gone = true,
            Some(Body::Bulk(_)) | None => {}
        }
    }

    /// Works the facts into a listing. False: there were too many, and the listing is worth nothing.
    pub(crate) fn apply(
        mut self,
        generation: u32,
        uids: &RangeInclusive<u32>,
        messages: &mut BTreeMap<u32, Message>,
    ) -> bool {
        if self.overflown {
            return false;
        }
        for ((of, uid), fact) in self.facts.drain() {
            if of != generation || !uids.contains(&uid) {
                continue;
            }
            if fact.gone {
                messages.remove(&uid);
                continue;
            }
            if let Some(message) = fact.arrived {
                messages.entry(uid).or_insert(message);
            }
            if let (Some(flags), Some(message)) = (fact.flags, messages.get_mut(&uid)) {
                message.flags = flags;
            }
        }
        true
    }
}
