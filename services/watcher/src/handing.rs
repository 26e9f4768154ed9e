//! Partitions that are given away: their sessions end in order, nobody is answered any more, and it is looked how far they are
//! flushed. Only then the next owner may have them.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use mailbell_bus::{Logs, OwnerService};
use mailbell_core::ids::{OwnerEpoch, Partition};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    flush::{Flushed, flush},
    registry::Registry,
};

/// One whose sessions end.
#[derive(Debug, Clone, Copy)]
struct Hand {
    epoch: OwnerEpoch,
    /// From then on they are cut short; `None`: they were, or have ended.
    deadline: Option<Instant>,
    ended: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Handing {
    service: Arc<OwnerService>,
    logs: Logs,
    registry: Arc<Registry>,
    /// How long sessions may take.
    limit: Duration,
    hands: BTreeMap<Partition, Hand>,
    last_looks: JoinSet<(Partition, OwnerEpoch, Flushed)>,
    disowning: JoinSet<()>,
}

impl Handing {
    pub(crate) fn new(
        service: Arc<OwnerService>,
        logs: Logs,
        registry: Arc<Registry>,
        limit: Duration,
    ) -> Self {
        Self {
            service,
            logs,
            registry,
            limit,
            hands: BTreeMap::new(),
            last_looks: JoinSet::new(),
            disowning: JoinSet::new(),
        }
    }

    /// The sessions of this partition were told to end.
    pub(crate) fn begin(&mut self, partition: Partition, epoch: OwnerEpoch) {
        let hand = Hand {
            epoch,
            deadline: Some(Instant::now() + self.limit),
            ended: false,
        };
        self.hands.insert(partition, hand);
    }

    /// They have ended: [`Handing::next`] tells when the rest is done.
    pub(crate) fn ended(&mut self, partition: Partition) {
        let Some(hand) = self.hands.get_mut(&partition) else {
            return;
        };
        hand.deadline = None;
        if std::mem::replace(&mut hand.ended, true) {
            return;
        }
        let (epoch, service) = (hand.epoch, Arc::clone(&self.service));
        let look = flush(
            self.logs.clone(),
            Arc::clone(&self.registry),
            vec![partition],
        );
        self.last_looks.spawn(async move {
            let partitions = [partition];
            let (flushed, ()) = tokio::join!(look, service.disown(&partitions));
            (partition, epoch, flushed)
        });
    }

    /// The partition is lost: nothing of it is given any more, and nobody is answered.
    pub(crate) fn lose(&mut self, partition: Partition) {
        self.hands.remove(&partition);
        let service = Arc::clone(&self.service);
        self.disowning
            .spawn(async move { service.disown(&[partition]).await });
        while self.disowning.try_join_next().is_some() {}
    }

    /// The next partition of which all is done; never, if there is none. Cancel-safe.
    pub(crate) async fn next(&mut self) -> (Partition, OwnerEpoch, Flushed) {
        loop {
            match self.last_looks.join_next().await {
                Some(Ok(handed)) => {
                    let hand = self.hands.get(&handed.0);
                    if hand.is_some_and(|hand| hand.epoch == handed.1) {
                        self.hands.remove(&handed.0);
                        return handed;
                    }
                }
                // Cancelled: the process ends.
                Some(Err(_)) => {}
                None => return pending().await,
            }
        }
    }

    /// When the next one is overdue.
    pub(crate) fn overdue_at(&self) -> Option<Instant> {
        self.hands.values().filter_map(|hand| hand.deadline).min()
    }

    /// Those whose sessions took too long; each is named once.
    pub(crate) fn overdue(&mut self) -> Vec<Partition> {
        let now = Instant::now();
        let mut overdue = Vec::new();
        for (partition, hand) in &mut self.hands {
            if hand.deadline.is_some_and(|deadline| deadline <= now) {
                hand.deadline = None;
                overdue.push(*partition);
            }
        }
        overdue
    }
}
