//! What goes on beside a test: mail that arrives all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mailbell_test_servers::SyntheticImap;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::load;

/// Mail that arrives all the time.
#[derive(Debug)]
pub struct Traffic {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<u64>>,
}

impl Traffic {
    pub(crate) fn start(
        server: Arc<SyntheticImap>,
        next: Arc<AtomicU64>,
        seed: u64,
        a_second: u32,
    ) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut pace = interval(Duration::from_secs(1) / a_second.max(1));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut count = 0;
            while stopped.run_until_cancelled(pace.tick()).await.is_some() {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let user = rng.random_range(0..server.users());
                server.deliver(user, load::message(number))?;
                count += 1;
            }
            Ok(count)
        });
        Self { stop, task }
    }

    /// Ends it; how many messages there were.
    ///
    /// # Errors
    /// When it had ended before, of an error.
    pub async fn stop(self) -> anyhow::Result<u64> {
        self.stop.cancel();
        self.task.await?
    }
}
