//! How streams tell the dispatcher something without waiting and without a queue that could be full.
//!
//! Each device is in each list at most once, so both are bounded by the number of devices.

use std::sync::{Mutex, PoisonError};

use mailbell_core::delivery::DeviceId;
use tokio::sync::Notify;

/// What was rung for since the last look.
#[derive(Debug, Default)]
pub(crate) struct Rung {
    /// Their queues, which were full, have room again.
    pub(crate) room: Vec<DeviceId>,
    /// Their streams are gone.
    pub(crate) gone: Vec<DeviceId>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<Rung>,
    notify: Notify,
}

impl Bell {
    pub(crate) fn room(&self, id: DeviceId) {
        self.ring(|rung| rung.room.push(id));
    }

    pub(crate) fn gone(&self, id: DeviceId) {
        self.ring(|rung| rung.gone.push(id));
    }

    fn ring(&self, note: impl FnOnce(&mut Rung)) {
        note(&mut self.rung.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    /// Waits until it rings. Cancel-safe: what was rung for stays noted.
    pub(crate) async fn heard(&self) -> Rung {
        loop {
            let rung =
                std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner));
            if !rung.room.is_empty() || !rung.gone.is_empty() {
                return rung;
            }
            self.notify.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_rung_for_is_missed() {
        let bell = Bell::default();
        bell.room(DeviceId(1));
        bell.gone(DeviceId(2));
        bell.room(DeviceId(3));
        let rung = bell.heard().await;
        assert_eq!(rung.room, [DeviceId(1), DeviceId(3)]);
        assert_eq!(rung.gone, [DeviceId(2)]);
        let (rung, ()) = tokio::join!(bell.heard(), async { bell.gone(DeviceId(4)) });
        assert_eq!(rung.gone, [DeviceId(4)]);
    }
}
