//! What all sessions of a watcher share, and what one is about.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use mailbell_core::{
    content,
    ids::{AccountId, OwnerEpoch},
    seal::KeyRing,
    session::{Config, Limits, Now, Pause},
    timing::Timing,
};
use mailbell_proto::{bus::v1::AccountRecord, push::v1::ContentLevel};
use tokio::{sync::watch, time::Instant};

use super::Connect;
use crate::{
    clock::Clock,
    gate::Gate,
    ledger::Ledger,
    metrics::Metrics,
    policy::{Policy, Said},
    slot::Slot,
};

/// What all sessions of a watcher share.
pub(crate) struct Context {
    pub(crate) ledger: Box<dyn Ledger>,
    pub(crate) connect: Box<dyn Connect>,
    pub(crate) imap: mailbell_imap::Settings,
    pub(crate) ring: KeyRing,
    pub(crate) gate: Gate,
    pub(crate) clock: Arc<Clock>,
    pub(crate) limits: Limits,
    pub(crate) policy: watch::Receiver<Arc<Policy>>,
    pub(crate) timing: Timing,
    pub(crate) most_content: ContentLevel,
    pub(crate) quiet: Duration,
    pub(crate) page_time: Duration,
    pub(crate) requests: usize,
    pub(crate) metrics: Metrics,
    /// The beginning of the monotonic clock that sessions see.
    pub(crate) started: Instant,
    /// How many session tasks a test makes panic.
    #[cfg(test)]
    pub(crate) panics: std::sync::atomic::AtomicU32,
}

impl Context {
    pub(crate) fn now(&self) -> Now {
        Now {
            mono: self.started.elapsed(),
            wall_us: self.clock.now_us(),
        }
    }

    /// What the operator says of an account whose mailbox is at this host.
    pub(crate) fn said(&self, account: &AccountId, host: &str) -> Said {
        self.policy.borrow().of(account, host)
    }
}

pub(super) fn time_of(us: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(us).unwrap_or_default())
}

/// Folders that are watched at most; each costs a look every sweep.
const MAX_FOLDERS: usize = 64;

/// Why an account is not to be watched now: its owner's word goes first.
pub(super) fn pause_of(record: &AccountRecord, said: &Said) -> Option<Pause> {
    if record.paused {
        return Some(Pause::Owner);
    }
    said.pause()
}

/// What a session is about, from the account's record and what the operator says of it.
pub(super) fn config_of(
    context: &Context,
    slot: &Slot,
    record: &AccountRecord,
    said: &Said,
    epoch: OwnerEpoch,
) -> Config {
    let mut folders: Vec<String> = Vec::new();
    for name in &record.folders {
        // INBOX has one spelling here; other names are the server's own.
        let name = if name.eq_ignore_ascii_case("INBOX") {
            "INBOX"
        } else {
            name
        };
        if !name.is_empty() && !folders.iter().any(|known| known == name) {
            folders.push(name.to_owned());
        }
    }
    // The first is held open, so it is the one of which news comes at once.
    if let Some(inbox) = folders.iter().position(|name| name == "INBOX") {
        folders.swap(0, inbox);
    }
    folders.truncate(MAX_FOLDERS);
    if folders.is_empty() {
        folders.push("INBOX".to_owned());
    }
    Config {
        account: slot.account.clone(),
        folders,
        paused: match record.removed_at_ms {
            0 => pause_of(record, said),
            _ => Some(Pause::Owner),
        },
        content: context.most_content.min(content::policy(record.content)),
        owner_epoch: epoch,
        limits: (said.provider.as_ref()).map_or(context.limits, |provider| {
            provider.session_limits(context.limits)
        }),
        timing: context.timing,
    }
}
