//! The stream of events that an app reads.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::{Stream, StreamExt as _};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::Error,
    event::{AppEvent, Handed},
    session::Counters,
};

/// What the app and its client tell each other beside the events: how far the app is, and what the client counts.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    position: AtomicU64,
    pub(crate) changed: Notify,
    counters: Mutex<Counters>,
}

impl Taken {
    pub(crate) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    pub(crate) fn count(&self, counters: Counters) {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    fn raise(&self, position: u64) {
        if self.position.fetch_max(position, Ordering::AcqRel) < position {
            self.changed.notify_one();
        }
    }
}

/// The events of a running client, in order. The last item may be an error, which says why there are no more.
///
/// An event is *taken* when the app asks for the next one (or, with [`crate::Builder::explicit_acks`], when it says so): then the
/// client may forget it. Whoever drops the stream, or dies, is told again of what it had not taken; [`Events::close`] takes
/// what was read last.
///
/// The client reads no further ahead than its queue holds: an app that stops reading is told by the server to list, or is
/// replayed what it missed, when it reads again.
pub struct Events {
    from: mpsc::Receiver<Result<Handed, Error>>,
    taken: Arc<Taken>,
    explicit: bool,
    last: u64,
    closing: CancellationToken,
    driver: Option<JoinHandle<()>>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("position", &self.last)
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(
        from: mpsc::Receiver<Result<Handed, Error>>,
        taken: Arc<Taken>,
        explicit: bool,
        closing: CancellationToken,
        driver: JoinHandle<()>,
    ) -> Self {
        Self {
            from,
            taken,
            explicit,
            last: 0,
            closing,
            driver: Some(driver),
        }
    }

    /// The next event. Cancel-safe: an event that is not returned is not lost.
    pub async fn recv(&mut self) -> Option<Result<AppEvent, Error>> {
        self.next().await
    }

    /// The position of the event that was read last, for [`Acker::taken`].
    #[must_use]
    pub fn position(&self) -> u64 {
        self.last
    }

    /// What the client has counted since it was started: facts, repeats, resyncs. For metrics.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let counters = self.taken.counters.lock();
        *counters.unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the app is done with, from wherever that happens.
    #[must_use]
    pub fn acker(&self) -> Acker {
        Acker(Arc::clone(&self.taken))
    }

    /// Ends the client: takes what was read last (unless acknowledgements are explicit), stores the state, closes the stream.
    pub async fn close(mut self) {
        if !self.explicit {
            self.taken.raise(self.last);
        }
        self.from.close();
        self.closing.cancel();
        if let Some(driver) = self.driver.take() {
            let _ = driver.await;
        }
    }
}

impl Stream for Events {
    type Item = Result<AppEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.explicit {
            self.taken.raise(self.last);
        }
        self.from.poll_recv(cx).map(|item| {
            Some(item?.map(|handed| {
                self.last = handed.position;
                handed.event
            }))
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // The client stores what was taken, and ends by itself.
        self.closing.cancel();
    }
}

/// Tells a client what its app is done with. Clones tell the same client.
#[derive(Debug, Clone)]
pub struct Acker(Arc<Taken>);

impl Acker {
    /// The app is done with every event up to this position, see [`Events::position`]. To be said at least every 4096 events.
    pub fn taken(&self, position: u64) {
        self.0.raise(position);
    }
}
