//! A bounded queue that can be seen: its length is a gauge, what it refuses is counted and handed back.
//!
//! For the few queues between long-lived tasks. A device's queue is not one of them: there are too many for a gauge each.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::mpsc;

/// `mailbell_queue_length{queue}`: items that wait.
pub const LENGTH: &str = "queue_length";
/// `mailbell_queue_capacity{queue}`: how many may wait.
pub const CAPACITY: &str = "queue_capacity";
/// `mailbell_queue_refused_total{queue}`: items handed back because the queue was full.
pub const REFUSED: &str = "queue_refused";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    queue: &'static str,
}

/// The metrics of all queues of a process.
#[derive(Debug, Clone, Default)]
pub struct QueueMetrics {
    length: Family<Labels, Gauge>,
    capacity: Family<Labels, Gauge>,
    refused: Family<Labels, Counter>,
}

impl QueueMetrics {
    /// Registers the three metrics.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(LENGTH, "Items that wait in a queue", metrics.length.clone());
        registry.register(
            CAPACITY,
            "Items that may wait in a queue",
            metrics.capacity.clone(),
        );
        registry.register(
            REFUSED,
            "Items handed back because the queue was full",
            metrics.refused.clone(),
        );
        metrics
    }

    /// A queue of this name for at most `capacity` items. Several of one name are counted together.
    #[must_use]
    pub fn bounded<T>(&self, queue: &'static str, capacity: usize) -> (Sender<T>, Receiver<T>) {
        let labels = Labels { queue };
        let length = self.length.get_or_create_owned(&labels);
        let total = self.capacity.get_or_create_owned(&labels);
        // tokio refuses a capacity of 0 by panicking; one waiting item is the least a queue can be.
        let capacity = capacity.max(1);
        let counted = i64::try_from(capacity).unwrap_or(i64::MAX);
        total.inc_by(counted);
        let (tx, rx) = mpsc::channel(capacity);
        let sender = Sender {
            tx,
            length: length.clone(),
            refused: self.refused.get_or_create_owned(&labels),
        };
        (
            sender,
            Receiver {
                rx,
                length,
                total,
                counted,
            },
        )
    }
}

/// Why an item was handed back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected<T> {
    /// The queue is full.
    #[error("the queue is full")]
    Full(T),
    /// The receiver is gone.
    #[error("the queue is closed")]
    Closed(T),
}

/// The side that puts items in.
#[derive(Debug)]
pub struct Sender<T> {
    tx: mpsc::Sender<T>,
    length: Gauge,
    refused: Counter,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            tx: self.tx.clone(),
            length: self.length.clone(),
            refused: self.refused.clone(),
        }
    }
}

impl<T> Sender<T> {
    /// Puts an item in, or hands it back at once.
    ///
    /// # Errors
    /// [`Rejected`] with the item.
    pub fn try_send(&self, item: T) -> Result<(), Rejected<T>> {
        match self.tx.try_reserve() {
            Ok(permit) => {
                // Counted before it is visible, so that the receiver's decrement cannot come first.
                self.length.inc();
                permit.send(item);
                Ok(())
            }
            Err(mpsc::error::TrySendError::Full(())) => {
                self.refused.inc();
                Err(Rejected::Full(item))
            }
            Err(mpsc::error::TrySendError::Closed(())) => Err(Rejected::Closed(item)),
        }
    }

    /// Waits for room. Cancelled, it drops the item.
    ///
    /// # Errors
    /// [`Rejected::Closed`] with the item.
    pub async fn send(&self, item: T) -> Result<(), Rejected<T>> {
        match self.tx.reserve().await {
            Ok(permit) => {
                self.length.inc();
                permit.send(item);
                Ok(())
            }
            Err(_closed) => Err(Rejected::Closed(item)),
        }
    }

    /// Waits until the receiver is gone.
    pub async fn closed(&self) {
        self.tx.closed().await;
    }
}

/// The side that takes items out.
#[derive(Debug)]
pub struct Receiver<T> {
    rx: mpsc::Receiver<T>,
    length: Gauge,
    total: Gauge,
    counted: i64,
}

impl<T> Receiver<T> {
    /// The next item; `None` once it is closed and empty. Cancel-safe.
    pub async fn recv(&mut self) -> Option<T> {
        let item = self.rx.recv().await?;
        self.length.dec();
        Some(item)
    }

    /// The next item if one waits.
    pub fn try_recv(&mut self) -> Option<T> {
        let item = self.rx.try_recv().ok()?;
        self.length.dec();
        Some(item)
    }

    /// Takes nothing more in; what waits can still be taken out. The first step of an owner task that drains.
    pub fn close(&mut self) {
        self.rx.close();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.rx.close();
        while self.try_recv().is_some() {}
        self.total.dec_by(self.counted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn value(metrics: &Metrics, name: &str) -> i64 {
        let line = format!("mailbell_{name}{{queue=\"work\"}} ");
        let text = metrics.encode().unwrap();
        text.lines()
            .find_map(|l| l.strip_prefix(line.as_str()))
            .unwrap()
            .parse()
            .unwrap()
    }

    #[tokio::test]
    async fn full_and_closed_hand_the_item_back() {
        let mut metrics = Metrics::new("test");
        let queues = QueueMetrics::register(metrics.registry());
        let (tx, mut rx) = queues.bounded("work", 2);
        tx.try_send(1).unwrap();
        tx.send(2).await.unwrap();
        assert_eq!(tx.try_send(3), Err(Rejected::Full(3)));
        assert_eq!(
            (
                value(&metrics, LENGTH),
                value(&metrics, CAPACITY),
                value(&metrics, "queue_refused_total")
            ),
            (2, 2, 1)
        );
        assert_eq!(rx.recv().await, Some(1));
        assert_eq!(value(&metrics, LENGTH), 1);
        rx.close();
        assert_eq!(tx.try_send(4), Err(Rejected::Closed(4)));
        assert_eq!(tx.send(5).await, Err(Rejected::Closed(5)));
        assert_eq!(rx.recv().await, Some(2));
        assert_eq!(rx.recv().await, None);
    }

    #[tokio::test]
    async fn a_dropped_receiver_leaves_nothing_counted() {
        let mut metrics = Metrics::new("test");
        let queues = QueueMetrics::register(metrics.registry());
        let (tx, rx) = queues.bounded("work", 8);
        tx.try_send("a").unwrap();
        tx.try_send("b").unwrap();
        drop(rx);
        tx.closed().await;
        assert_eq!((value(&metrics, LENGTH), value(&metrics, CAPACITY)), (0, 0));
    }
}
