//! The handle to NATS.

use std::sync::Arc;

use mailbell_core::{ids::Installation, timing::Timing};
use tokio::{sync::watch, time::Instant};

use crate::{BusError, BusOptions, Role};

/// How the connection is. Each change of `since` is another connection or the end of one: whoever compares it before and after
/// a wait knows whether the connection broke in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Connected.
    Up {
        /// When it was connected.
        since: Instant,
        /// The server said that it will shut down soon; another one is looked for.
        lame_duck: bool,
    },
    /// Not connected; it is tried again for as long as the bus lives.
    Down {
        /// When the connection was lost.
        since: Instant,
    },
}

impl Link {
    /// Whether it is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

/// A connection to NATS as one role of an installation. Clones are cheap and share it; it ends with the last one, or by
/// [`Bus::close`].
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    options: BusOptions,
}

impl Bus {
    /// Connects; fails if no server answers. Later the connection is made anew without end, with full jitter.
    ///
    /// # Errors
    /// [`BusError::Options`], [`BusError::Connect`], [`BusError::Authentication`], [`BusError::Tls`].
    pub async fn connect(options: BusOptions) -> Result<Self, BusError> {
        let _ = options;
        todo!()
    }

    /// How the connection is, now and later.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        todo!()
    }

    /// Whether it is connected to a server that will stay.
    #[must_use]
    pub fn ready(&self) -> bool {
        todo!()
    }

    /// Which Mailbell.
    #[must_use]
    pub fn installation(&self) -> &Installation {
        &self.inner.options.installation
    }

    /// The role it connected as.
    #[must_use]
    pub fn role(&self) -> Role {
        self.inner.options.role
    }

    /// The periods of the installation.
    #[must_use]
    pub fn timing(&self) -> &Timing {
        &self.inner.options.timing
    }

    /// Ends the connection and every task of it. What is queued is sent first, within a second.
    pub async fn close(&self) {
        todo!()
    }
}
