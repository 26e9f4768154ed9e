//! How the account is doing, in words; and what of it devices are told.

use std::time::Duration;

use bytes::Bytes;
use mailbell_proto::push::v1::{AccountState, Health};
use prost::Message as _;

use super::{Failure, Now, Pause, Session, Severity, Status, Stop, folders};
use crate::event::{Event, Fact};

/// A stable word for programs, and a sentence for a person.
pub(super) type Words = (&'static str, String);

/// A log that leaves so many appends in a row unanswered does not work.
const SILENT_AFTER: u32 = 2;
/// A checkpoint that so many times in a row could not be stored is told of: a single failure passes.
const UNSTORED_AFTER: u32 = 3;

/// The account's condition now.
#[derive(Debug)]
pub(super) struct Condition {
    health: Health,
    code: &'static str,
    sentence: String,
    since_us: i64,
    failing_since: Option<Duration>,
    permanent: u32,
    /// What keeps the log from taking events.
    log_trouble: Option<Words>,
    /// Appends in a row that the log did not answer.
    silences: u32,
    /// What keeps the checkpoint from being stored, and how often in a row it did.
    store_trouble: Option<(Words, u32)>,
    last_arrival_us: i64,
    shown: Option<Status>,
    telling: Option<Health>,
}

impl Condition {
    /// `last_arrival_us`: as far as is known from before, or 0.
    pub(super) fn starting(now: Now, last_arrival_us: i64) -> Self {
        Self {
            health: Health::Starting,
            code: "starting",
            sentence: "About to log in.".to_owned(),
            since_us: now.wall_us,
            failing_since: None,
            permanent: 0,
            log_trouble: None,
            silences: 0,
            store_trouble: None,
            last_arrival_us,
            shown: None,
            telling: None,
        }
    }

    fn set(&mut self, now: Now, health: Health, code: &'static str, sentence: String) {
        if self.health != health {
            self.since_us = now.wall_us;
        }
        self.health = health;
        self.code = code;
        self.sentence = sentence;
    }

    pub(super) fn watching(&mut self, now: Now) {
        if self.health != Health::Watching {
            self.set(
                now,
                Health::Watching,
                "watching",
                "Watching for new mail.".to_owned(),
            );
        }
        self.forget_failures();
    }

    /// Answers whether a person must act.
    pub(super) fn failed(&mut self, now: Now, failure: &Failure) -> bool {
        self.failing_since.get_or_insert(now.mono);
        self.permanent = match failure.severity {
            Severity::Permanent => self.permanent.saturating_add(1),
            // Something else in between says nothing about the password.
            _ => self.permanent,
        };
        let act = failure.severity == Severity::Permanent && self.permanent >= 2;
        let health = if act {
            Health::ActionNeeded
        } else {
            Health::Retrying
        };
        self.set(now, health, failure.code, failure.sentence.clone());
        act
    }

    /// It waits until its mail server works for others again. Whoever has to mend something still has to.
    pub(super) fn held(&mut self, now: Now, failure: &Failure) {
        if self.health == Health::ActionNeeded {
            return;
        }
        self.failing_since.get_or_insert(now.mono);
        let sentence = failure.sentence.clone();
        self.set(now, Health::Retrying, failure.code, sentence);
    }

    pub(super) fn forget_failures(&mut self) {
        self.failing_since = None;
        self.permanent = 0;
    }

    pub(super) fn paused(&mut self, now: Now, pause: Pause) {
        self.forget_failures();
        let sentence = match pause {
            Pause::Owner => "Paused: new mail is not looked for.",
            Pause::Tenant => {
                "Paused: whoever runs Mailbell lets nobody connect for this tenant now."
            }
            Pause::Provider => {
                "Paused: whoever runs Mailbell lets nobody connect to this mail provider now."
            }
        };
        self.set(now, Health::Paused, pause.code(), sentence.to_owned());
    }

    pub(super) fn is_paused(&self) -> bool {
        self.health == Health::Paused
    }

    pub(super) fn resumed(&mut self, now: Now) {
        self.set(
            now,
            Health::Starting,
            "starting",
            "About to log in.".to_owned(),
        );
    }

    pub(super) fn arrived(&mut self, wall_us: i64) {
        self.last_arrival_us = self.last_arrival_us.max(wall_us);
    }

    pub(super) fn log_refuses(&mut self, words: Words) {
        self.silences = 0;
        self.log_trouble = Some(words);
    }

    pub(super) fn log_is_silent(&mut self) {
        self.silences = self.silences.saturating_add(1);
        if self.silences >= SILENT_AFTER {
            self.log_trouble = Some((
                "log-unavailable",
                "The log does not answer: it is tried again.".to_owned(),
            ));
        }
    }

    pub(super) fn log_works(&mut self) {
        self.silences = 0;
        self.log_trouble = None;
    }

    pub(super) fn store_fails(&mut self, words: Words) {
        let before = self.store_trouble.take().map_or(0, |(_, times)| times);
        self.store_trouble = Some((words, before.saturating_add(1)));
    }

    pub(super) fn store_works(&mut self) {
        self.store_trouble = None;
    }

    #[cfg(test)]
    pub(super) fn shown(&self) -> Option<&Status> {
        self.shown.as_ref()
    }

    /// What was queued for devices was dropped; it is told again.
    pub(super) fn told_anew(&mut self) {
        self.telling = None;
    }

    /// When a passing failure has lasted long enough to be told.
    pub(super) fn tell_at(&self, tell_after: Duration) -> Option<Duration> {
        (self.health == Health::Retrying && self.telling != Some(Health::Retrying))
            .then_some(self.failing_since)
            .flatten()
            .map(|since| since + tell_after)
    }

    /// How the account is, apart from what is Mailbell's own. `missing`: a watched folder beside the one that is held open.
    fn words<'a>(&'a self, missing: Option<&'a Words>) -> (&'static str, &'a str) {
        match missing {
            Some((code, sentence)) if self.health == Health::Watching => (*code, sentence),
            _ => (self.code, &self.sentence),
        }
    }

    /// The status, if it is not the one that was given last. `mode`: empty without a connection, and then what keeps the mail
    /// server away is all that there is to say.
    pub(super) fn changed(
        &mut self,
        mode: &'static str,
        missing: Option<&Words>,
    ) -> Option<Status> {
        let unstored = self.store_trouble.as_ref();
        let unstored = unstored.filter(|(_, times)| *times >= UNSTORED_AFTER);
        let own = self.log_trouble.as_ref();
        let own = own.or(unstored.map(|(words, _)| words));
        let (code, sentence) = match own {
            Some((code, sentence)) if !mode.is_empty() => (*code, sentence.as_str()),
            _ => self.words(missing),
        };
        let sentence = sentence.to_owned();
        let status = Status {
            health: self.health,
            code,
            sentence,
            since_us: self.since_us,
            mode,
            last_arrival_us: self.last_arrival_us,
        };
        if self.shown.as_ref() == Some(&status) {
            return None;
        }
        self.shown = Some(status.clone());
        Some(status)
    }
}

impl Session {
    /// Queues the fact that the account's health is another than devices were told.
    pub(super) fn queue_health(&mut self, now: Now) {
        let condition = &self.condition;
        let due = match condition.health {
            _ if self.stop == Some(Stop::Removed) => Some(Health::Removed),
            Health::Retrying => condition
                .tell_at(self.config.limits.tell_after)
                .is_some_and(|at| at <= now.mono)
                .then_some(Health::Retrying),
            Health::Watching | Health::ActionNeeded | Health::Paused => Some(condition.health),
            _ => None,
        };
        let Some(health) = due else { return };
        if condition.telling == Some(health) || !self.bus_up {
            return;
        }
        // What devices hear last, once everything that waits is in the log.
        let told = self
            .outbox
            .events()
            .filter_map(|event| match event.fact {
                Fact::AccountState { health, .. } => Some(health),
                _ => None,
            })
            .last()
            .unwrap_or(self.checkpoint.health);
        if told == health {
            self.condition.telling = Some(health);
            return;
        }
        if self.stop == Some(Stop::HandOver) {
            return;
        }
        if health == Health::Removed {
            // Nothing but this is told of an account that is gone.
            self.outbox.queue.clear();
        }
        self.condition.telling = Some(health);
        let counter = self.next_counter(now);
        let removed = health == Health::Removed;
        let (code, sentence) = if removed {
            ("removed", "This account was removed.")
        } else {
            self.condition.words(folders::missing(&self.watches))
        };
        let content = AccountState {
            account: self.config.account.to_string(),
            health: health.into(),
            code: code.to_owned(),
            sentence: crate::event::cut(sentence, 1024).to_owned(),
            since_ms: self.condition.since_us / 1000,
            mode: self.mode().to_owned(),
            key: None,
        };
        let event = Event {
            account: self.config.account.clone(),
            folder: 0,
            generation: 0,
            fact: Fact::AccountState { counter, health },
            alert: false,
            owner_epoch: self.config.owner_epoch,
            traceparent: String::new(),
            detected_us: now.wall_us,
            fetched_us: now.wall_us,
            folder_name: String::new(),
            content: Bytes::from(content.encode_to_vec()),
        };
        self.outbox.queue.push_back(event);
    }

    /// Whether the log holds that the account was removed.
    pub(super) fn removal_told(&self) -> bool {
        self.checkpoint.health == Health::Removed
    }

    /// A counter that no fact of this account has.
    pub(super) fn next_counter(&mut self, now: Now) -> u64 {
        let next = self
            .checkpoint
            .next_counter(self.config.owner_epoch, now.wall_us)
            .max(self.counter_given.saturating_add(1));
        self.counter_given = next;
        next
    }
}
