//! Answering a resync: what is listed when, and what the app gets of it.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use mailbell_core::{checkpoint::UNSETTLED, event::content_digest};
use mailbell_proto::push::v1::{EventKey, EventKind, Message};
use rand::RngExt as _;

use super::{
    ClientSession, Flight, ListedUids, Now, Output, Phase, Slot, Stream,
    pending::{Overlay, Part, Range, StoredPending},
};
use crate::event::{AppEvent, Listed, ReplaceFolder, Unlistable, UnlistableReason};

/// One listing of a range brings at most this many messages to the app at a time; the rest follows in further ones.
const RANGE_AT_ONCE: u32 = 1000;
/// More ranges than this are not kept apart: the newest messages of their folders are listed instead.
const MOST_PENDING: usize = 400_000;
/// Clocks differ: a message alerts if the mail server received it this much before the stream was last whole.
const MARGIN_MS: i64 = 10 * 60 * 1000;
/// What this client lists is at most so much, whatever the app asks for.
pub(crate) const MOST_DEPTH: u32 = 10_000;

/// What is to be listed by `ListMessages`, all pages of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListRequest {
    /// To be given back with the answer.
    pub ticket: u64,
    /// Whose.
    pub account: String,
    /// Which of its folders.
    pub folder: u32,
    /// Which messages.
    pub span: Span,
    /// At most this many: of [`Span::Newest`] the newest, of [`Span::Uids`] the oldest.
    pub limit: u32,
}

/// Which messages of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The newest.
    Newest,
    /// Those with these UIDs, both included.
    Uids {
        /// The lowest.
        first: u32,
        /// The highest.
        last: u32,
    },
}

/// The answer.
#[derive(Clone, PartialEq)]
pub struct Listing {
    /// UIDVALIDITY, the same in all pages.
    pub generation: u32,
    /// As a person knows it.
    pub folder_name: String,
    /// What is there, in any order.
    pub messages: Vec<Message>,
    /// How many messages the folder holds.
    pub exists: u32,
    /// All folders of the account that are watched; empty if the server does not say.
    pub folders: Vec<u32>,
    /// The limit was reached before the end of the span.
    pub more: bool,
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing")
            .field("generation", &self.generation)
            .field("messages", &self.messages.len())
            .field("more", &self.more)
            .finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFailure {
    /// For a passing reason.
    Retry,
    /// The same, and the server says that it will last at least so long.
    RetryAfter(Duration),
    /// There will never be one.
    Never(UnlistableReason),
}

impl ClientSession {
    pub(super) fn jitter(&mut self) -> f64 {
        self.rng.random::<f64>()
    }

    /// Takes note of an account and a folder, and lists what a resync before could not name.
    pub(super) fn note(&mut self, account: &str, folder: u32, since_ms: i64, at: Duration) {
        for folder in self.directory.note(account, folder) {
            self.list_folder(account, folder, since_ms, at);
        }
    }

    pub(super) fn list_everything(&mut self, since_ms: i64, at: Duration) {
        for (account, folder) in self.directory.all() {
            self.list_folder(&account, folder, since_ms, at);
        }
        self.unsaved = super::Unsaved::Facts;
    }

    pub(super) fn list_account(&mut self, account: &str, since_ms: i64, at: Duration) {
        self.note(account, 0, since_ms, at);
        for folder in self.directory.all_of(account) {
            self.list_folder(account, folder, since_ms, at);
        }
    }

    pub(super) fn list_folder(&mut self, account: &str, folder: u32, since_ms: i64, at: Duration) {
        let slot = Slot {
            account: account.to_owned(),
            folder,
            part: Part::Newest,
        };
        self.add_pending(slot, None, since_ms, at);
    }

    pub(super) fn list_range(
        &mut self,
        place: &EventKey,
        first: u32,
        last: u32,
        since_ms: i64,
        at: Duration,
    ) {
        if last < first || last == 0 || self.pending.len() >= MOST_PENDING {
            return self.list_folder(&place.account, place.folder, since_ms, at);
        }
        let slot = Slot {
            account: place.account.clone(),
            folder: place.folder,
            part: Part::Range(place.generation),
        };
        let range = Range {
            first: first.max(1),
            last,
        };
        self.add_pending(slot, Some(range), since_ms, at);
    }

    fn add_pending(&mut self, slot: Slot, range: Option<Range>, since_ms: i64, at: Duration) {
        self.unsaved = super::Unsaved::Facts;
        let told = match slot.part {
            Part::Newest => self.handed.highest(&slot.account, slot.folder),
            Part::Range(_) => Vec::new(),
        };
        self.pending.add(slot, range, told, since_ms, at);
    }

    pub(super) fn stored_pending(&self) -> Vec<StoredPending> {
        self.pending
            .iter()
            .map(|(slot, pending)| StoredPending {
                slot: slot.clone(),
                range: pending.range,
                told: pending.told.clone(),
                since_ms: pending.since_ms,
            })
            .collect()
    }

    /// Whether there are resyncs that the app has not got the answer to.
    #[must_use]
    pub fn is_resyncing(&self) -> bool {
        self.pending.len() > 0
    }

    fn has_room_for_a_listing(&self) -> bool {
        let handed = self
            .in_flight
            .iter()
            .filter(|(_, flight)| matches!(flight, Flight::Listed { .. }))
            .count();
        self.stream != Stream::Off
            && self.pending.under_way() + handed < self.options.listings.max(1)
    }

    /// When the next listing may begin; `None`: there is none to begin, or too many are under way.
    #[must_use]
    pub fn next_listing_at(&self) -> Option<Duration> {
        let (at, _) = self.pending.next()?;
        self.has_room_for_a_listing().then_some(*at)
    }

    /// The next listing, if it is time for one.
    pub fn start_listing(&mut self, now: Now) -> Option<ListRequest> {
        self.next_listing_at().filter(|at| *at <= now.elapsed)?;
        let (_, slot) = self.pending.next()?.clone();
        let pending = self.pending.get_mut(&slot)?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        pending.again = false;
        pending.overlay = Overlay::default();
        let first = pending.next;
        let last = pending.range.map_or(u32::MAX, |range| range.last);
        let (span, limit) = match pending.range {
            Some(_) => (Span::Uids { first, last }, RANGE_AT_ONCE),
            None => (Span::Newest, self.options.resync_depth.clamp(1, MOST_DEPTH)),
        };
        let phase = Phase::Listing {
            ticket,
            first,
            last,
        };
        self.pending.set_phase(&slot, phase);
        Some(ListRequest {
            ticket,
            account: slot.account,
            folder: slot.folder,
            span,
            limit,
        })
    }

    /// A listing was answered, or was not.
    pub fn on_listed(
        &mut self,
        ticket: u64,
        answer: Result<Listing, ListFailure>,
        now: Now,
    ) -> Vec<Output> {
        let mut out = Vec::new();
        if let Some((slot, asked)) = self.pending.by_ticket(ticket) {
            match answer {
                Ok(listing) => self.on_listing(&slot, asked, listing, now, &mut out),
                Err(ListFailure::Retry) => self.list_later(&slot, Duration::ZERO, now),
                Err(ListFailure::RetryAfter(wait)) => self.list_later(&slot, wait, now),
                Err(ListFailure::Never(reason)) => self.give_up(&slot, reason, &mut out),
            }
        }
        self.settle();
        out
    }

    fn list_later(&mut self, slot: &Slot, wait: Duration, now: Now) {
        if let Some(pending) = self.pending.get_mut(slot) {
            let delay = pending.backoff.next(&mut self.rng).max(wait);
            self.pending
                .set_phase(slot, Phase::Waiting(now.elapsed + delay));
        }
    }

    fn give_up(&mut self, slot: &Slot, reason: UnlistableReason, out: &mut Vec<Output>) {
        if reason == UnlistableReason::NotFound {
            self.directory.forget_folder(&slot.account, slot.folder);
        }
        let event = AppEvent::Unlistable(Unlistable {
            account: slot.account.clone(),
            folder: slot.folder,
            reason,
        });
        self.hand_answer(slot, true, event, None, out);
    }

    fn on_listing(
        &mut self,
        slot: &Slot,
        asked: RangeInclusive<u32>,
        listing: Listing,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        let Some(pending) = self.pending.get_mut(slot) else {
            return;
        };
        let (is_range, since_ms) = (pending.range.is_some(), pending.since_ms);
        let again = pending.again;
        let after_ms = since_ms.saturating_sub(MARGIN_MS);
        let told = pending.told.iter();
        let told = told
            .copied()
            .find(|(generation, _)| *generation == listing.generation)
            .map(|(_, uid)| uid);
        let overlay = std::mem::take(&mut pending.overlay);
        if let Part::Range(generation) = slot.part
            && generation != 0
            && generation != listing.generation
        {
            // The range is of a folder that is no more: what is there now is listed as a whole.
            self.pending.remove(slot);
            return self.list_folder(&slot.account, slot.folder, since_ms, now.elapsed);
        }
        // If the whole account is resynced, those that are new to us are listed as well.
        for folder in &listing.folders {
            self.note(&slot.account, *folder, since_ms, now.elapsed);
        }
        let many = listing.messages.len();
        let mut messages: BTreeMap<u32, Message> = listing
            .messages
            .into_iter()
            .filter(|message| message.uid > 0 && asked.contains(&message.uid))
            .map(|message| (message.uid, message))
            .collect();
        if is_range && listing.more && messages.is_empty() {
            // More, and nothing of what was asked for: with such an answer there would be no end.
            return self.list_later(slot, Duration::ZERO, now);
        }
        let lowest = messages.first_key_value().map_or(1, |(uid, _)| *uid);
        let highest = messages.last_key_value().map(|(uid, _)| *uid);
        let (uids, complete) = match highest {
            Some(highest) if is_range && listing.more && highest < *asked.end() => {
                (*asked.start()..=highest, false)
            }
            // Not so if the range has grown meanwhile, or is to be listed again.
            _ if is_range => (asked, !again),
            _ if listing.more && u32::try_from(many).is_ok_and(|n| n < listing.exists) => {
                (lowest..=u32::MAX, false)
            }
            _ => (1..=u32::MAX, true),
        };
        let hole = messages
            .first_key_value()
            .filter(|_| !is_range && !complete)
            .and_then(|(_, lowest)| hole_below(lowest, told, after_ms));
        messages.retain(|uid, _| uids.contains(uid));
        if !overlay.apply(listing.generation, &uids, &mut messages) {
            return self.list_later(slot, Duration::ZERO, now);
        }
        let mut listed_uids = ListedUids {
            account: slot.account.clone(),
            folder: slot.folder,
            generation: listing.generation,
            uids: messages.keys().copied().collect(),
            alerted: Vec::new(),
        };
        let alerts = self.directory.alerts(&slot.account, slot.folder);
        let messages = messages
            .into_values()
            .map(|message| {
                let known = self.handed.knows(&EventKey {
                    account: slot.account.clone(),
                    folder: slot.folder,
                    generation: listing.generation,
                    uid: message.uid,
                    kind: EventKind::Arrived.into(),
                    modseq: 0,
                });
                let content = content(&message);
                let alert = alerts
                    && !known
                    && message.internal_date_ms >= after_ms
                    && !message
                        .flags
                        .iter()
                        .any(|f| f.eq_ignore_ascii_case("\\Seen"))
                    && !content.is_some_and(|content| self.handed.has_alerted(content));
                if alert && let Some(content) = content {
                    self.handed.insert_alerted(content);
                    listed_uids.alerted.push(content);
                }
                Listed {
                    message,
                    known,
                    alert,
                }
            })
            .collect();
        self.handed.insert_listed(&listed_uids);
        self.counters.listings += 1;
        let last = !is_range || complete;
        if let Some(hole) = hole {
            let place = EventKey {
                account: slot.account.clone(),
                folder: slot.folder,
                generation: listing.generation,
                ..EventKey::default()
            };
            self.list_range(&place, hole.first, hole.last, since_ms, now.elapsed);
        }
        if !last
            && let Some(pending) = self.pending.get_mut(slot)
            && !pending.again
        {
            pending.next = uids.end().saturating_add(1);
        }
        let event = AppEvent::ReplaceFolder(ReplaceFolder {
            account: slot.account.clone(),
            folder: slot.folder,
            folder_name: listing.folder_name,
            generation: listing.generation,
            uids,
            messages,
            complete,
        });
        self.hand_answer(slot, last, event, Some(listed_uids), out);
    }

    /// Hands an answer; the resync is over when the app has taken the last one.
    fn hand_answer(
        &mut self,
        slot: &Slot,
        last: bool,
        event: AppEvent,
        uids: Option<ListedUids>,
        out: &mut Vec<Output>,
    ) {
        let position = self.next_position;
        if let Some(pending) = self.pending.get_mut(slot) {
            pending.backoff.reset();
            self.interrupted.reset();
            let phase = if last && !pending.again {
                Phase::Handed(position)
            } else {
                Phase::Waiting(Duration::ZERO)
            };
            self.pending.set_phase(slot, phase);
        }
        let slot = slot.clone();
        self.hand(event, Flight::Listed { slot, uids }, out);
    }
}

/// What may be missing below a listing of the newest messages: what lies above the highest UID that was `told`. If none of this
/// generation was, only the date says whether all that is new was listed; then it is looked for as far down as a listing may go.
fn hole_below(lowest: &Message, told: Option<u32>, after_ms: i64) -> Option<Range> {
    let first = match told {
        // A message may show up below one that was told before it.
        Some(told) => told.saturating_sub(UNSETTLED),
        None if lowest.internal_date_ms >= after_ms => lowest.uid.saturating_sub(MOST_DEPTH),
        None => return None,
    };
    let range = Range {
        first: first.max(1),
        last: lowest.uid.saturating_sub(1),
    };
    (range.first <= range.last).then_some(range)
}

/// By which copies of a message are known. `None` at content level KEY, where all would look the same.
pub(super) fn content(message: &Message) -> Option<u64> {
    let shown =
        !message.content_id.is_empty() || !message.message_id.is_empty() || message.size > 0;
    shown.then(|| content_digest(message)).flatten()
}
