//! Stores the state: one write at a time, on a thread that may block, no more often than it is worth.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::{
    task::{JoinError, JoinHandle, spawn_blocking},
    time::Instant,
};

use crate::{
    client::Timing,
    session::{ClientSession, StoredState, Unsaved},
    state::{StateError, StateStore},
};

pub(super) struct Keeper {
    store: Arc<dyn StateStore>,
    timing: Timing,
    storing: Option<JoinHandle<Result<(), StateError>>>,
    began: Option<Instant>,
    took: Duration,
    failing: bool,
}

impl Keeper {
    pub(super) fn new(store: Arc<dyn StateStore>, timing: Timing) -> Self {
        Self {
            store,
            timing,
            storing: None,
            began: None,
            took: Duration::ZERO,
            failing: false,
        }
    }

    pub(super) async fn load(&self) -> Result<Option<StoredState>, StateError> {
        let store = Arc::clone(&self.store);
        flat(spawn_blocking(move || store.load()).await)
    }

    /// When to store next.
    pub(super) fn due(&self, unsaved: Unsaved) -> Option<Instant> {
        let wait = match unsaved {
            _ if self.storing.is_some() => return None,
            Unsaved::Nothing => return None,
            // A state that takes long to write is not written all the time.
            Unsaved::Facts => self.timing.store.max(self.took * 20),
            Unsaved::Cursor => self.timing.store_cursor,
        };
        Some(self.began.map_or_else(Instant::now, |began| began + wait))
    }

    pub(super) fn begin(&mut self, session: &mut ClientSession) {
        if let Some(state) = session.storable() {
            let store = Arc::clone(&self.store);
            self.began = Some(Instant::now());
            self.storing = Some(spawn_blocking(move || store.store(&state)));
        }
    }

    /// The write that is under way has ended. Cancel-safe.
    pub(super) async fn finished(&mut self) -> Result<(), StateError> {
        let Some(storing) = &mut self.storing else {
            return pending().await;
        };
        let result = flat(storing.await);
        self.storing = None;
        self.took = self.began.map_or(Duration::ZERO, |began| began.elapsed());
        result
    }

    pub(super) fn on_finished(
        &mut self,
        result: Result<(), StateError>,
        session: &mut ClientSession,
    ) {
        match result {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !self.failing {
                    tracing::warn!(%error, "the state cannot be stored; after a crash more is told again");
                }
                self.failing = true;
                session.not_stored();
            }
        }
    }

    /// Stores now, and waits for it.
    pub(super) async fn now(&mut self, session: &mut ClientSession) -> Result<(), StateError> {
        if self.storing.is_some() {
            let result = self.finished().await;
            self.on_finished(result, session);
        }
        self.begin(session);
        if self.storing.is_none() {
            return Ok(());
        }
        self.finished().await
    }
}

fn flat<T>(joined: Result<Result<T, StateError>, JoinError>) -> Result<T, StateError> {
    joined.unwrap_or_else(|_| Err(StateError::Other("it panicked".to_owned())))
}
