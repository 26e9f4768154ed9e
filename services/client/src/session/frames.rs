//! What each frame means.

use std::time::Duration;

use mailbell_proto::push::v1::{
    AccountState, ContentLevel, Cursor, Event, EventKey, EventKind, Health, Hello, Resync,
    event::Body, resync::Scope,
};

use super::{ClientSession, Flight, Now, Output, ResumePoint, Stream, Unsaved, listing};
use crate::{
    event::{AppEvent, Arrived, Changed, Connected, Gone},
    status::MOST_WAIT,
};

/// A cursor is opaque, but not without a bound.
const MOST_CURSOR: usize = 4096;
/// An account id or a folder's name that is longer is not of this protocol.
const MOST_NAME: usize = 1024;

/// Of so many accounts it is known which state was told last; of more it may be told again at a reconnect.
const MOST_STATES: usize = 100_000;

impl ClientSession {
    pub(super) fn on_hello(&mut self, hello: Hello, now: Now, out: &mut Vec<Output>) {
        self.stream = Stream::Replaying;
        self.digest = hello.digest;
        let resumed = self.newest.is_some();
        for state in &hello.accounts {
            if state.health() == Health::Removed {
                self.forget_account(&state.account);
            } else {
                self.note(&state.account, 0, now.wall_ms, now.elapsed);
            }
        }
        if !self.began {
            self.began = true;
            self.as_of_ms = now.wall_ms;
            self.unsaved = Unsaved::Facts;
            out.push(Output::Persist);
        } else if !resumed {
            // The stream before this one ended before its first Cursor frame, and what came since is told by nobody.
            self.list_everything(self.as_of_ms, now.elapsed);
        }
        let due = self
            .pending
            .next()
            .is_some_and(|(at, _)| *at <= now.elapsed);
        if self.was_open && due {
            // Whatever ended the last stream may have ended those of many clients, and all of them are back now.
            let spread = self.spread.mul_f64(self.jitter());
            let delay = self.interrupted.next(&mut self.rng).max(spread);
            self.pending.postpone(now.elapsed + delay);
        }
        self.was_open = true;
        let connected = Connected {
            session: hello.session,
            resumed,
            content: ContentLevel::try_from(hello.content).unwrap_or_default(),
        };
        self.hand(AppEvent::Connected(connected), Flight::Status, out);
        for state in hello.accounts {
            let news = self.states.get(&state.account).is_none_or(|before| {
                (before.health, &before.code, before.since_ms)
                    != (state.health, &state.code, state.since_ms)
            });
            if news {
                self.hand_state(state, Flight::Status, out);
            }
        }
    }

    pub(super) fn on_event(&mut self, event: Event, now: Now, out: &mut Vec<Output>) {
        let (Some(key), Some(body)) = (&event.key, &event.body) else {
            // A kind of a newer release has a body that we don't know.
            self.counters.malformed += u64::from(event.key.is_none());
            return;
        };
        let kind = match body {
            Body::Arrived(_) => EventKind::Arrived,
            Body::Changed(_) => EventKind::Changed,
            Body::Gone(_) => EventKind::Gone,
            Body::Bulk(_) => EventKind::Bulk,
        };
        let whole = key.kind() == kind && key.folder != 0 && is_name(&key.account);
        if !whole || (kind != EventKind::Bulk && key.uid == 0) {
            self.counters.malformed += 1;
            return;
        }
        if self.handed.knows(key) {
            self.counters.repeats += 1;
            return;
        }
        self.note(&key.account, key.folder, self.as_of_ms, now.elapsed);
        if let Body::Bulk(bulk) = body {
            // What the watcher says is worth an alert is so whenever it came.
            let since_ms = if event.alert { i64::MIN } else { self.as_of_ms };
            self.list_range(key, bulk.first_uid, bulk.last_uid, since_ms, now.elapsed);
            self.answered_by_listing(&key.clone());
            return;
        }
        self.pending.record(&event);
        let Event {
            key: Some(key),
            body: Some(body),
            ..
        } = event
        else {
            return;
        };
        let mut alerted = None;
        let told = match body {
            Body::Arrived(arrived) => {
                let content = arrived.message.as_ref().and_then(listing::content);
                let alert = event.alert && !content.is_some_and(|c| self.handed.has_alerted(c));
                if event.alert {
                    self.directory.note_alert(&key.account, key.folder);
                    alerted = content;
                }
                AppEvent::Arrived(Box::new(Arrived {
                    key: key.clone(),
                    folder_name: event.folder_name,
                    alert,
                    priority: event.priority.try_into().unwrap_or_default(),
                    message: arrived.message,
                    times: event.times.unwrap_or_default(),
                    traceparent: event.traceparent,
                }))
            }
            Body::Changed(changed) => AppEvent::Changed(Changed {
                key: key.clone(),
                flags: changed.flags,
            }),
            Body::Gone(_) => AppEvent::Gone(Gone { key: key.clone() }),
            Body::Bulk(_) => return,
        };
        self.handed.insert(&key);
        if let Some(content) = alerted {
            self.handed.insert_alerted(content);
        }
        self.counters.facts += 1;
        self.hand(told, Flight::Fact { key, alerted }, out);
    }

    pub(super) fn on_cursor(&mut self, cursor: Cursor, now: Now) {
        if cursor.token.is_empty() || cursor.token.len() > MOST_CURSOR {
            self.counters.malformed += 1;
            return;
        }
        if self.stream == Stream::Live && cursor.log_silent_since_ms == 0 {
            self.as_of_ms = now.wall_ms;
        }
        let point = ResumePoint {
            cursor: cursor.token,
            digest: self.digest.clone(),
        };
        self.newest = Some(point.clone());
        if let Some((_, Flight::Cursor(last))) = self.in_flight.back_mut() {
            *last = point;
        } else {
            // It counts once everything before it is taken.
            let after = self.next_position - 1;
            self.in_flight.push_back((after, Flight::Cursor(point)));
        }
    }

    pub(super) fn on_resync(&mut self, resync: &Resync, now: Now) {
        if let Some(key) = &resync.key {
            if self.handed.knows(key) {
                self.counters.repeats += 1;
                return;
            }
            if !is_name(&key.account) {
                self.counters.malformed += 1;
                return;
            }
        }
        let wait = Duration::from_millis(resync.retry_after_ms.into());
        // An hour-long wish is kept for this resync, and not for what a broken stream leaves behind.
        let earlier = self.spread * u32::from(self.pending.len() > 0);
        self.spread = wait.min(MOST_WAIT).max(earlier);
        let not_before = now.elapsed + wait.mul_f64(1.0 + self.jitter() / 2.0);
        let since_ms = self.as_of_ms;
        let everything = Scope {
            everything: true,
            ..Scope::default()
        };
        let scope = resync.scope.as_ref().unwrap_or(&everything);
        if scope.everything || !is_name(&scope.account) {
            self.list_everything(since_ms, not_before);
        } else if scope.folder == 0 {
            self.list_account(&scope.account, since_ms, not_before);
        } else if (scope.first_uid, scope.last_uid) == (0, 0) {
            self.note(&scope.account, scope.folder, since_ms, not_before);
            self.list_folder(&scope.account, scope.folder, since_ms, not_before);
        } else {
            self.note(&scope.account, scope.folder, since_ms, not_before);
            let place = EventKey {
                account: scope.account.clone(),
                folder: scope.folder,
                generation: resync.generation,
                ..EventKey::default()
            };
            self.list_range(
                &place,
                scope.first_uid,
                scope.last_uid,
                since_ms,
                not_before,
            );
        }
        match &resync.key {
            Some(key) => self.answered_by_listing(key),
            None => self.counters.resyncs += 1,
        }
    }

    /// A recorded fact that a listing answers. It is known from here on, also in what is stored: the listing itself is stored
    /// as pending until the app has taken it.
    fn answered_by_listing(&mut self, key: &EventKey) {
        self.handed.insert(key);
        self.taken.insert(key);
        self.counters.resyncs += 1;
        self.unsaved = Unsaved::Facts;
    }

    pub(super) fn on_account_state(
        &mut self,
        state: AccountState,
        now: Now,
        out: &mut Vec<Output>,
    ) {
        if !is_name(&state.account) {
            self.counters.malformed += 1;
            return;
        }
        let flight = match state.key.clone() {
            Some(key) if self.handed.knows(&key) => {
                self.counters.repeats += 1;
                return;
            }
            Some(key) => {
                self.handed.insert(&key);
                self.counters.facts += 1;
                Flight::Fact { key, alerted: None }
            }
            None => Flight::Status,
        };
        if state.health() == Health::Removed {
            self.forget_account(&state.account);
        } else {
            self.note(&state.account, 0, self.as_of_ms, now.elapsed);
        }
        self.hand_state(state, flight, out);
    }

    fn forget_account(&mut self, account: &str) {
        self.directory.forget_account(account);
        self.pending.forget_account(account);
        self.handed.forget_account(account);
        self.taken.forget_account(account);
        self.unsaved = Unsaved::Facts;
    }

    fn hand_state(&mut self, state: AccountState, flight: Flight, out: &mut Vec<Output>) {
        if self.states.len() < MOST_STATES || self.states.contains_key(&state.account) {
            self.states.insert(state.account.clone(), state.clone());
        }
        self.hand(AppEvent::AccountState(state), flight, out);
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MOST_NAME
}
