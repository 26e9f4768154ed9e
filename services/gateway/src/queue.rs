//! The queue of one device: bounded in frames and bytes, cheap when empty.
//!
//! When it is full, the frame is refused, the device is *behind* (see [`mailbell_core::delivery`]), and the dispatcher hears
//! of it as soon as half of the queue is free again. So the loss policy is: nothing is lost, it is read from the log later.
//!
//! It is a `VecDeque` under a lock and not a channel, because there are very many of them: idle it costs some 200 bytes.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use mailbell_core::delivery::Full;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;
use tonic::Status;

use crate::entry::SharedEntry;

/// The bounds of a device's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Frames.
    pub frames: usize,
    /// Bytes of frames. An empty queue takes any frame.
    pub bytes: usize,
}

/// A frame that waits.
#[derive(Debug)]
pub(crate) struct Item {
    /// Encoded, with the prefix of a gRPC message.
    pub(crate) frame: Bytes,
    /// Which fact it is, if it is one.
    pub(crate) entry: Option<SharedEntry>,
    /// When it was queued, in microseconds since the epoch.
    pub(crate) queued_us: i64,
    is_cursor: bool,
    /// It does not count against the bounds.
    is_free: bool,
}

impl Item {
    /// A frame that is no fact.
    pub(crate) fn control(frame: Bytes) -> Self {
        Self {
            frame,
            entry: None,
            queued_us: 0,
            is_cursor: false,
            is_free: false,
        }
    }

    /// A Cursor frame.
    pub(crate) fn cursor(frame: Bytes) -> Self {
        Self {
            is_cursor: true,
            ..Self::control(frame)
        }
    }

    /// A fact.
    pub(crate) fn fact(frame: Bytes, entry: SharedEntry, queued_us: i64) -> Self {
        Self {
            entry: Some(entry),
            queued_us,
            ..Self::control(frame)
        }
    }
}

/// What the stream's side gets.
#[derive(Debug)]
pub(crate) enum Taken {
    /// The next frame. `room`: the dispatcher waits to hear that half of the queue is free again; tell it.
    Frame { item: Item, room: bool },
    /// Nothing follows: this is how the stream ends.
    End(Status),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: QueueLimits,
    /// Frames in all queues.
    depth: Gauge,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    items: VecDeque<Item>,
    /// Frames and bytes that count against the bounds.
    frames: usize,
    bytes: usize,
    wants_room: bool,
    end: Option<Status>,
    /// Since when the oldest frame waits without any having been taken.
    stalled: Option<Instant>,
    waker: Option<Waker>,
}

impl Queue {
    pub(crate) fn new(limits: QueueLimits, depth: Gauge) -> Self {
        Self {
            limits,
            depth,
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                frames: 0,
                bytes: 0,
                wants_room: false,
                end: None,
                stalled: None,
                waker: None,
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing under this lock calls out, so a panic cannot have left it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame. What comes after the end is dropped.
    ///
    /// A cursor takes the place of a cursor that is the last in the queue: it says more, and a slow device's queue does not
    /// fill with heartbeats.
    pub(crate) fn push(&self, item: Item, now: Instant) -> Result<(), Full> {
        let mut inner = self.inner();
        if inner.end.is_some() {
            return Ok(());
        }
        if item.is_cursor
            && let Some(last) = inner.items.back_mut()
            && last.is_cursor
        {
            let (old, new) = (last.frame.len(), item.frame.len());
            *last = item;
            inner.bytes = inner.bytes + new - old;
            return Ok(());
        }
        let full = inner.frames >= self.limits.frames
            || inner.bytes + item.frame.len() > self.limits.bytes;
        if full && inner.frames > 0 {
            // A cursor that is refused is offered again by time.
            inner.wants_room |= !item.is_cursor;
            return Err(Full);
        }
        self.add(inner, item, now);
        Ok(())
    }

    /// Queues a frame beyond the bounds: Hello and GoAway, of which a stream gets one each. They take no room from others: a
    /// Hello that is large leaves enough for the resyncs of an attach, without which the device would come back in vain.
    pub(crate) fn force(&self, mut item: Item, now: Instant) {
        item.is_free = true;
        let inner = self.inner();
        if inner.end.is_none() {
            self.add(inner, item, now);
        }
    }

    fn add(&self, mut inner: MutexGuard<'_, Inner>, item: Item, now: Instant) {
        if !item.is_free {
            inner.frames += 1;
            inner.bytes += item.frame.len();
        }
        inner.items.push_back(item);
        inner.stalled.get_or_insert(now);
        let waker = inner.waker.take();
        drop(inner);
        self.depth.inc();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Drops what waits. Before the last words to a device that may not see it any more, or does not read it.
    pub(crate) fn clear(&self) {
        let mut inner = self.inner();
        let dropped = std::mem::take(&mut inner.items);
        (inner.frames, inner.bytes) = (0, 0);
        drop(inner);
        self.uncount(dropped.len());
    }

    /// The stream ends with this status after what waits now. The first call counts.
    pub(crate) fn end(&self, status: Status) {
        let mut inner = self.inner();
        inner.end.get_or_insert(status);
        let waker = inner.waker.take();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Asks to be told when half of the queue is free. False: it is so already.
    pub(crate) fn ask_for_room(&self) -> bool {
        let mut inner = self.inner();
        inner.wants_room = !self.has_room(&inner);
        inner.wants_room
    }

    fn has_room(&self, inner: &Inner) -> bool {
        inner.frames <= self.limits.frames / 2 && inner.bytes <= self.limits.bytes / 2
    }

    /// How long its oldest frame has been waiting without any having been taken.
    pub(crate) fn stalled(&self, now: Instant) -> Option<std::time::Duration> {
        let since = self.inner().stalled?;
        Some(now.saturating_duration_since(since))
    }

    /// The next frame, or the end.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>, now: Instant) -> Poll<Taken> {
        let mut inner = self.inner();
        let Some(item) = inner.items.pop_front() else {
            if let Some(status) = &inner.end {
                return Poll::Ready(Taken::End(status.clone()));
            }
            match &mut inner.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        };
        if !item.is_free {
            inner.frames -= 1;
            inner.bytes -= item.frame.len();
        }
        inner.stalled = (!inner.items.is_empty()).then_some(now);
        if inner.items.is_empty() && inner.items.capacity() > 4 {
            // The memory of a burst is given back.
            inner.items = VecDeque::new();
        }
        let room = inner.wants_room && self.has_room(&inner);
        inner.wants_room &= !room;
        drop(inner);
        self.uncount(1);
        Poll::Ready(Taken::Frame { item, room })
    }

    /// The stream is gone: nobody takes anything any more. Also lets its waker go, which keeps the whole task in memory.
    pub(crate) fn abandon(&self) {
        let waker = self.inner().waker.take();
        drop(waker);
        self.end(Status::cancelled("the stream is gone"));
        self.clear();
    }

    fn uncount(&self, frames: usize) {
        self.depth.dec_by(i64::try_from(frames).unwrap_or(i64::MAX));
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let left = self.inner().items.len();
        self.uncount(left);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, task::Wake, time::Duration};

    use super::*;

    #[derive(Default)]
    struct Bell(std::sync::atomic::AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn queue() -> (Queue, Gauge) {
        let depth = Gauge::default();
        let limits = QueueLimits {
            frames: 4,
            bytes: 100,
        };
        (Queue::new(limits, depth.clone()), depth)
    }

    fn item(len: usize) -> Item {
        Item::control(vec![0; len].into())
    }

    fn take(queue: &Queue) -> Option<(usize, bool)> {
        let waker = Arc::new(Bell::default()).into();
        match queue.poll_take(&mut Context::from_waker(&waker), Instant::now()) {
            Poll::Ready(Taken::Frame { item, room }) => Some((item.frame.len(), room)),
            _ => None,
        }
    }

    #[test]
    fn bounded_in_frames_and_bytes() {
        let (queue, depth) = queue();
        let now = Instant::now();
        for len in 1..=4 {
            queue.push(item(len), now).unwrap();
        }
        assert_eq!(queue.push(item(1), now), Err(Full));
        queue.force(item(9), now);
        assert_eq!(depth.get(), 5);
        let taken: Vec<_> = std::iter::from_fn(|| take(&queue)).collect();
        assert_eq!(
            taken,
            [(1, false), (2, true), (3, false), (4, false), (9, false)],
            "told once that half is free"
        );
        assert_eq!(depth.get(), 0);
        queue.push(item(1000), now).unwrap();
        assert_eq!(queue.push(item(1), now), Err(Full));
        take(&queue);
        queue.push(item(60), now).unwrap();
        assert_eq!(queue.push(item(60), now), Err(Full));
        drop(queue);
        assert_eq!(depth.get(), 0);
    }

    #[test]
    fn the_first_words_take_no_room_from_others() {
        let (queue, depth) = queue();
        let now = Instant::now();
        queue.force(item(1000), now);
        assert!(!queue.ask_for_room());
        for _ in 0..4 {
            queue.push(item(25), now).unwrap();
        }
        assert_eq!(queue.push(item(1), now), Err(Full));
        assert_eq!(depth.get(), 5);
        let taken: Vec<_> = std::iter::from_fn(|| take(&queue)).collect();
        let room = [false, false, true, false, false];
        assert_eq!(
            taken.iter().map(|(_, room)| *room).collect::<Vec<_>>(),
            room
        );
        let inner = queue.inner();
        assert_eq!((inner.frames, inner.bytes), (0, 0));
    }

    #[test]
    fn a_cursor_takes_the_place_of_the_last_one() {
        let (queue, depth) = queue();
        let now = Instant::now();
        let cursor = |len: usize| Item::cursor(vec![0; len].into());
        queue.push(cursor(10), now).unwrap();
        queue.push(cursor(20), now).unwrap();
        queue.push(item(5), now).unwrap();
        queue.push(cursor(30), now).unwrap();
        assert_eq!(depth.get(), 3);
        let taken: Vec<_> = std::iter::from_fn(|| take(&queue)).collect();
        assert_eq!(taken, [(20, false), (5, false), (30, false)]);
        assert_eq!(queue.inner().bytes, 0);
    }

    #[test]
    fn the_end_comes_after_what_waits_and_nothing_after_the_end() {
        let (queue, _) = queue();
        let now = Instant::now();
        queue.push(item(1), now).unwrap();
        queue.end(Status::unavailable("first"));
        queue.end(Status::internal("second"));
        queue.push(item(2), now).unwrap();
        queue.force(item(2), now);
        assert_eq!(take(&queue), Some((1, false)));
        let waker = Waker::noop();
        let end = queue.poll_take(&mut Context::from_waker(waker), now);
        assert!(
            matches!(end, Poll::Ready(Taken::End(status)) if status.code() == tonic::Code::Unavailable)
        );
    }

    #[test]
    fn whoever_waits_is_woken_and_an_abandoned_queue_keeps_nothing() {
        let (queue, depth) = queue();
        let bell = Arc::new(Bell::default());
        let waker = Arc::clone(&bell).into();
        let now = Instant::now();
        let mut cx = Context::from_waker(&waker);
        assert!(queue.poll_take(&mut cx, now).is_pending());
        queue.push(item(1), now).unwrap();
        queue.push(item(1), now).unwrap();
        assert_eq!(bell.0.load(std::sync::atomic::Ordering::SeqCst), 1);
        while take(&queue).is_some() {}
        assert!(queue.poll_take(&mut cx, now).is_pending());
        queue.push(item(1), now).unwrap();
        queue.abandon();
        drop(waker);
        assert_eq!(Arc::strong_count(&bell), 1, "the waker was let go");
        queue.push(item(1), now).unwrap();
        assert_eq!(depth.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_is_noticed() {
        let (queue, _) = queue();
        assert_eq!(queue.stalled(Instant::now()), None);
        queue.push(item(1), Instant::now()).unwrap();
        queue.push(item(1), Instant::now()).unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(queue.stalled(Instant::now()), Some(Duration::from_secs(5)));
        take(&queue);
        assert_eq!(queue.stalled(Instant::now()), Some(Duration::ZERO));
        assert!(!queue.ask_for_room());
        take(&queue);
        assert_eq!(queue.stalled(Instant::now()), None);
    }
}
