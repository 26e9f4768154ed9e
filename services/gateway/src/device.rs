//! One attached device, as its stream and the dispatcher share it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mailbell_core::{
    cursor::Subject,
    delivery::{DeviceId, Subscription},
};
use mailbell_proto::push::v1::ContentLevel;
use tokio_util::sync::CancellationToken;

use crate::{authority::Credential, bell::Bell, queue::Queue};

/// Names a stream in the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Session(u64);

impl Session {
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s-{:016x}", self.0)
    }
}

/// The connection that carries a stream. Cancelled, it is closed at once, with all its streams: the only way to end the stream
/// of a device that does not read. Idle connections are known by nobody else holding this.
pub(crate) type Line = Arc<CancellationToken>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) session: Session,
    pub(crate) queue: Queue,
    /// The content level in force.
    pub(crate) level: ContentLevel,
    pub(crate) subscription: Subscription,
    pub(crate) line: Line,
    credential: Mutex<Credential>,
}

impl Device {
    pub(crate) fn new(
        queue: Queue,
        level: ContentLevel,
        subscription: Subscription,
        line: Line,
        credential: Credential,
    ) -> Self {
        Self {
            session: Session::random(),
            queue,
            level,
            subscription,
            line,
            credential: Mutex::new(credential),
        }
    }

    pub(crate) fn credential(&self) -> MutexGuard<'_, Credential> {
        self.credential
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `outer` names all that `inner` does.
pub(crate) fn covers(outer: &Subject, inner: &Subject) -> bool {
    match inner {
        Subject::Accounts(accounts) => accounts.iter().all(|account| outer.covers(account)),
        Subject::Tenant(tenant) => matches!(outer, Subject::Tenant(other) if other == tenant),
    }
}

/// A device's place at the dispatcher. Its drop gives it back.
#[derive(Debug)]
pub(crate) struct Registration {
    pub(crate) id: DeviceId,
    pub(crate) bell: Arc<Bell>,
}

impl Registration {
    /// The device's queue has room again.
    pub(crate) fn room(&self) {
        self.bell.room(self.id);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.bell.gone(self.id);
    }
}
