//! Looking at a folder, and what becomes of what is found.

use std::time::Duration;

use bytes::Bytes;
use mailbell_proto::push::v1::{Bulk, Message, Resync, ResyncReason, resync::Scope};
use prost::Message as _;

use super::{
    Effect, Fetched, Look, Now, Op, Session,
    folders::Page,
    mailbox::{Connection, LOOK_PACE_MOST, Work},
};
use crate::{
    checkpoint::{Folder, Hole, UNSETTLED, gaps, present},
    content,
    event::{Event, Fact, content_digest, fit_message, place_digest},
    ids::{FolderId, Generation, Uid},
    plant,
};

impl Session {
    pub(super) fn look(&mut self, now: Now, index: usize, effects: &mut Vec<Effect>) {
        let op = self.op();
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        watch.dirty = false;
        watch.looked_us = Some(now.wall_us);
        let select = std::mem::take(&mut watch.select);
        if select {
            watch.examined_at = now.mono;
        }
        let (from, most) = match watch.begins {
            Some((_, from)) => (Some(from), UNSETTLED),
            // Those below the newest that a flood leaves to be told one by one are told of as there or not there.
            None => (None, self.config.limits.flood + UNSETTLED),
        };
        let id = self.checkpoint.folder_id(&watch.name);
        let known = self.checkpoint.folder(id);
        let age = self.config.limits.hole_age;
        let effect = Effect::Look {
            op,
            folder: watch.name.clone(),
            select,
            from: from.unwrap_or_else(|| known.map_or(Uid::MAX, |folder| folder.uid_next)),
            most,
            holes: known
                .map(|folder| {
                    folder
                        .holes
                        .iter()
                        .filter(|hole| is_open(now, folder, hole, age))
                        .map(|hole| (hole.first, hole.last))
                        .collect()
                })
                .unwrap_or_default(),
        };
        self.busy(op, Work::Look(index));
        effects.push(effect);
    }

    pub(super) fn fetch(&mut self, now: Now, index: usize, effects: &mut Vec<Effect>) {
        let most = self.config.limits.page;
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        if let Some(uid) = watch.next_unreadable(&self.config.limits) {
            self.tell_unread(now, index, uid);
            self.advance_append(now, effects);
            return;
        }
        let uids = watch.next_page(most);
        let Some(page) = Page::of(&uids) else {
            return;
        };
        let op = self.op();
        self.busy(op, Work::Fetch(index, page));
        effects.push(Effect::Fetch { op, uids });
    }

    /// Tells of a message that the server cannot give: that it is there, and nothing of what is in it.
    fn tell_unread(&mut self, now: Now, index: usize, uid: Uid) {
        let message = Message {
            uid,
            internal_date_ms: now.wall_us / 1000,
            ..Message::default()
        };
        let traceparent = String::new();
        self.tell_messages(
            now,
            index,
            vec![Fetched {
                message,
                traceparent,
            }],
        );
    }

    pub(super) fn on_looked(&mut self, now: Now, op: Op, look: Look) {
        let Some(Work::Look(index)) = self.answered(op) else {
            return;
        };
        self.served_last = false;
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        if self.stop.is_some() {
            watch.look_again();
            return;
        }
        let quick = now.mono.saturating_sub(watch.looked_at) < LOOK_PACE_MOST * 2;
        let limits = &self.config.limits;
        let mut found = look.uids.iter().chain(&look.late);
        let nothing = found.all(|uid| watch.is_passed(now, limits, *uid));
        self.empty_looks = if quick && nothing {
            self.empty_looks.saturating_add(1)
        } else {
            0
        };
        watch.looked_at = now.mono;
        watch.missing = None;
        let name = watch.name.clone();
        let id = self.checkpoint.folder_id(&name);
        let known = self.checkpoint.folder(id).map(|folder| {
            let went_back = look.uid_next_exact && look.uid_next < folder.uid_next;
            (folder.generation, went_back)
        });
        let reason = match known {
            None => Some(ResyncReason::Baseline),
            Some((generation, _)) if generation != look.generation => {
                Some(ResyncReason::Generation)
            }
            Some((_, true)) => Some(ResyncReason::Baseline),
            Some(_) => None,
        };
        let watch_begins = watch.begins.take();
        if watch_begins.is_some() && reason.is_none() {
            // The folder is the known one again, and this look was not about what is new in it.
            watch.dirty = true;
            return;
        }
        if let Some(reason) = reason {
            watch.forget_found();
            let from = look.uid_next.saturating_sub(UNSETTLED).max(1);
            if look.uid_next > 1 && watch_begins.is_none_or(|(of, _)| of != look.generation) {
                // Once more, for what of the newest is there: the rest may show up after devices have listed.
                watch.begins = Some((look.generation, from));
                watch.dirty = true;
                return;
            }
            let last = look.uid_next.saturating_sub(1);
            let present = present(last, &look.uids);
            let absent = !gaps(1, last, present).is_empty();
            watch.plan_recheck(now, &self.config.limits, look.uid_next, absent);
            let counter = self.next_counter(now);
            let fact = Fact::Resync {
                counter,
                uid_next: look.uid_next,
                present,
                reason,
            };
            let scope = Scope {
                account: self.config.account.to_string(),
                folder: id,
                ..Scope::default()
            };
            let content = Resync {
                scope: Some(scope),
                reason: reason.into(),
                generation: look.generation,
                uid_next: look.uid_next,
                ..Resync::default()
            };
            self.tell(
                now,
                index,
                id,
                look.generation,
                fact,
                content.encode_to_vec(),
            );
            return;
        }
        let Some(folder) = self.checkpoint.folder(id) else {
            return;
        };
        let cap = self.config.limits.flood;
        // The lowest UID that is not told by then, and the new messages that are told one by one.
        let (mut from, mut newest) = (folder.uid_next, look.uids.as_slice());
        let mut absent = false;
        if look.total_new > cap {
            let most = usize::try_from(cap).unwrap_or(usize::MAX);
            let (whole, rest) = newest.split_at(newest.len().saturating_sub(most));
            if let Some(first_told) = rest.first().copied().filter(|first| *first > from) {
                let (first, last) = (from, first_told - 1);
                let present = present(last, whole);
                absent = !gaps(first, last, present).is_empty();
                (from, newest) = (first_told, rest);
                let fact = Fact::Bulk {
                    counter: self.next_counter(now),
                    first,
                    last,
                    present,
                };
                let content = Bulk {
                    first_uid: first,
                    last_uid: last,
                    count: look.total_new.saturating_sub(cap),
                };
                let content = content.encode_to_vec();
                self.tell(now, index, id, look.generation, fact, content);
                if plant::is(plant::Bug::BulkAfterNewest) {
                    let bulk = self.outbox.queue.pop_back();
                    if let Some(watch) = self.watches.get_mut(index) {
                        watch.bulk_later = bulk;
                    }
                }
            }
        }
        let Some(folder) = self.checkpoint.folder(id) else {
            return;
        };
        let expected = newest.last().map_or(from, |last| last.saturating_add(1));
        let age = self.config.limits.hole_age;
        let open = folder
            .holes
            .iter()
            .any(|hole| is_open(now, folder, hole, age));
        let gap_now = newest.first().is_some_and(|first| *first > from)
            || newest
                .windows(2)
                .any(|pair| matches!(pair, [a, b] if *b > *a + 1));
        let missing = look.uid_next_exact && look.uid_next > expected;
        let expect_more = absent || open || gap_now || missing;
        let found = look
            .late
            .iter()
            .chain(newest)
            .copied()
            .filter(|uid| !folder.told(*uid))
            .collect();
        if let Some(watch) = self.watches.get_mut(index) {
            watch.take_found(now, &self.config.limits, from, found);
            watch.plan_recheck(now, &self.config.limits, look.uid_next, expect_more);
        }
    }

    pub(super) fn on_fetched(&mut self, now: Now, op: Op, messages: Vec<Fetched>) {
        let Some(Work::Fetch(index, page)) = self.answered(op) else {
            return;
        };
        let Some(watch) = self.watches.get_mut(index) else {
            return;
        };
        if self.stop.is_some() {
            // Nothing may follow what is told last.
            watch.look_again();
            return;
        }
        watch.clear(page);
        if messages.len() < page.size {
            // Expunged since, or the server names messages before it gives them.
            watch.missed_some(now, &self.config.limits);
        }
        self.tell_messages(now, index, messages);
        self.poll_every = self.poll_least();
    }

    fn tell_messages(&mut self, now: Now, index: usize, messages: Vec<Fetched>) {
        let Some(watch) = self.watches.get(index) else {
            return;
        };
        let id = self.checkpoint.folder_id(&watch.name);
        let Some(folder) = self.checkpoint.folder(id) else {
            return;
        };
        let generation = folder.generation;
        let (quiet, name) = (watch.quiet, watch.name.clone());
        let detected_us = watch.noticed_us.or(watch.looked_us).unwrap_or(now.wall_us);
        // An owner before may have had a clock that was ahead.
        let last_look_us = folder.last_look_us.min(now.wall_us);
        let newest_alert = last_look_us - as_us(self.config.limits.alert_margin);
        let told: Vec<bool> = messages
            .iter()
            .map(|fetched| folder.told(fetched.message.uid))
            .collect();
        for (fetched, told) in messages.into_iter().zip(told) {
            if told || fetched.message.uid == 0 {
                continue;
            }
            let message = fit_message(fetched.message);
            let digest = content_digest(&message)
                .unwrap_or_else(|| place_digest(id, generation, message.uid));
            let seen = message
                .flags
                .iter()
                .any(|flag| flag.eq_ignore_ascii_case("\\Seen"));
            let recent = message.internal_date_ms.saturating_mul(1000) >= newest_alert;
            let alerted = self.checkpoint.alerted.contains(&digest)
                || self.outbox.events().any(|event| {
                    event.alert && matches!(event.fact, Fact::Arrived { digest: other, .. } if other == digest)
                });
            self.condition.arrived(now.wall_us);
            self.outbox.queue.push_back(Event {
                account: self.config.account.clone(),
                folder: id,
                generation,
                fact: Fact::Arrived {
                    uid: message.uid,
                    digest,
                },
                alert: !seen && recent && !quiet && !alerted,
                owner_epoch: self.config.owner_epoch,
                traceparent: fetched.traceparent,
                detected_us,
                fetched_us: now.wall_us,
                folder_name: name.clone(),
                content: content::stored(message, self.config.content),
            });
        }
    }

    fn tell(
        &mut self,
        now: Now,
        index: usize,
        folder: FolderId,
        generation: Generation,
        fact: Fact,
        content: Vec<u8>,
    ) {
        let Some(watch) = self.watches.get(index) else {
            return;
        };
        self.outbox.queue.push_back(Event {
            account: self.config.account.clone(),
            folder,
            generation,
            fact,
            alert: false,
            owner_epoch: self.config.owner_epoch,
            traceparent: String::new(),
            detected_us: watch.noticed_us.unwrap_or(now.wall_us),
            fetched_us: now.wall_us,
            folder_name: watch.name.clone(),
            content: Bytes::from(content),
        });
    }

    /// Everything that a look found is in the log: it was a good look.
    pub(super) fn note_whole_folders(&mut self, now: Now) {
        let looking = matches!(
            self.connection,
            Connection::Busy {
                work: Work::Look(_) | Work::Fetch(..),
                ..
            }
        );
        if looking || !self.outbox.is_empty() {
            return;
        }
        const STORED_AT_LEAST_EVERY_US: i64 = 10 * 60 * 1_000_000;
        for (index, watch) in self.watches.iter_mut().enumerate() {
            if !watch.backlog.is_empty() || watch.bulk_later.is_some() {
                continue;
            }
            if watch.dirty {
                continue;
            }
            let Some(looked_us) = watch.looked_us.take() else {
                continue;
            };
            watch.noticed_us = None;
            if index == 0 {
                self.condition.watching(now);
                self.well_since.get_or_insert(now.mono);
            }
            // Gaps stay open until those are told too, here or by a successor.
            if watch.lacks_some() {
                continue;
            }
            let id = self.checkpoint.folder_id(&watch.name);
            if let Some(folder) = self.checkpoint.folder_mut(id) {
                if (looked_us - folder.last_look_us).abs() >= STORED_AT_LEAST_EVERY_US {
                    let due = now.mono + self.config.timing.checkpoint_delay;
                    self.store_due.get_or_insert(due);
                }
                // Also back, if a clock was ahead.
                folder.last_look_us = looked_us;
            }
        }
    }
}

/// Whether a gap is still looked into: until a look that came after its time, however long there was none.
fn is_open(now: Now, folder: &Folder, hole: &Hole, age: Duration) -> bool {
    folder.last_look_us.min(now.wall_us) <= hole.noticed_us.saturating_add(as_us(age))
}

fn as_us(period: Duration) -> i64 {
    i64::try_from(period.as_micros()).unwrap_or(i64::MAX)
}
