//! What a role's readiness says of its connection.

use mailbell_runtime::{drain::DrainHandle, health::Health};

use crate::{Bus, Link};

impl Bus {
    /// Keeps a check of this name at whether the connection is up, until the drain begins or the bus is closed. Without NATS the
    /// sessions of a role stay, but nothing is told of what they see.
    pub fn tell_health(
        &self,
        health: &Health,
        check: &'static str,
        mut drain: DrainHandle,
    ) -> impl Future<Output = ()> + Send + 'static {
        // Not the bus itself: it ends with its last handle.
        let (mut link, health) = (self.link(), health.clone());
        async move {
            loop {
                let value = match *link.borrow_and_update() {
                    Link::Up { .. } => Ok(()),
                    Link::Down { refused: false, .. } => Err("not connected to NATS"),
                    Link::Down { refused: true, .. } => Err("NATS refuses its password"),
                };
                health.set(check, value);
                tokio::select! {
                    biased;
                    // First: readiness is off for good then.
                    _ = drain.signaled() => return,
                    changed = link.changed() => if changed.is_err() { return },
                }
            }
        }
    }
}
