//! How a watcher ends.

use std::time::Duration;

use mailbell_bus::Link;
use mailbell_runtime::drain::Draining;
use tokio::{
    sync::watch,
    time::{Instant, interval, timeout, timeout_at},
};

use super::{PROGRESS, Running};

/// Of the time that a drain has, this part is kept for the last writes, once sessions have ended or were given up.
const RELEASE_PART: u32 = 4;
/// One server may know other passwords than the next, while these are changed: so long another one is waited for.
const SURELY: Duration = Duration::from_secs(10);

impl Running {
    /// Gives everything away, a few partitions at a time; to nobody, if there is nobody.
    pub(crate) async fn leave(mut self, draining: Draining) {
        self.registry.set_draining();
        let reserve = draining.window() / RELEASE_PART;
        let patience = draining
            .deadline
            .checked_sub(reserve)
            .unwrap_or(draining.deadline);
        let (all, sessions) = (self.shards.held(), self.accounts.running());
        tracing::info!(partitions = all, sessions, "handing over");
        self.shards
            .leave(patience.saturating_duration_since(Instant::now()));
        let mut progress = interval(PROGRESS);
        progress.reset();
        let refused = surely_refused(self.ledger.bus.link());
        tokio::pin!(refused);
        let mut is_refused = false;
        while self.shards.held() > 0 {
            tokio::select! {
                // Whichever comes: no order matters, and nothing is held by an arm.
                stepped = self.step() => {
                    if let Err(error) = stepped {
                        tracing::warn!(%error, "handing over ends here");
                        break;
                    }
                }
                _ = progress.tick() => {
                    tracing::info!(
                        partitions = self.shards.held(),
                        sessions = self.accounts.running(),
                        of = all,
                        "still to be handed over"
                    );
                }
                () = tokio::time::sleep_until(patience) => break,
                () = &mut refused => {
                    is_refused = true;
                    break;
                }
            }
        }
        let left = self.shards.held();
        if left > 0 {
            tracing::warn!(
                partitions = left,
                sessions = self.accounts.running(),
                "not handed over: whoever takes them reads what was not stored from the log"
            );
        } else {
            tracing::info!(partitions = all, "handed over");
        }
        self.accounts.abort().await;
        let is_told = !is_refused
            && timeout_at(draining.deadline, self.shards.left())
                .await
                .is_ok();
        if !is_told {
            tracing::warn!("the others could not be told; they notice by themselves");
        }
    }

    /// Whatever runs is not ours to finish.
    pub(crate) async fn abort(&mut self) {
        self.registry.set_draining();
        self.accounts.abort().await;
    }
}

/// Waits until no server lets this process in, and none has for a while: waiting longer does not help it then.
async fn surely_refused(mut link: watch::Receiver<Link>) {
    while link.wait_for(Link::is_refused).await.is_ok() {
        let another = timeout(SURELY, link.wait_for(|link| !link.is_refused()));
        if another.await.is_err() {
            return;
        }
    }
}
