//! Creating and verifying what an installation stores in NATS.

use crate::{Bus, BusError};

/// A field of a stream that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// The stream's name.
    pub stream: String,
    /// The field; empty if the stream is missing as a whole.
    pub field: String,
    /// As it is, as JSON.
    pub found: String,
    /// As it should be, as JSON.
    pub wanted: String,
    /// Whether putting it right would lose data, so that setup refuses.
    pub loses_data: bool,
}

/// What setup found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SetupReport {
    /// Streams that were made.
    pub created: Vec<String>,
    /// Fields that were changed.
    pub changed: Vec<Drift>,
    /// Fields that are not as they should be and were left so (by [`Bus::verify`]).
    pub drift: Vec<Drift>,
}

impl Bus {
    /// Creates what is missing and puts right what differs. Safe to run again, and twice at once.
    ///
    /// # Errors
    /// [`BusError::WouldLoseData`] before anything is changed; [`BusError::Layout`]; why NATS did not do it.
    pub async fn setup(&self) -> Result<SetupReport, BusError> {
        todo!()
    }

    /// Looks only.
    ///
    /// # Errors
    /// [`BusError::Layout`]; why NATS did not answer.
    pub async fn verify(&self) -> Result<SetupReport, BusError> {
        todo!()
    }

    /// Checks that the installation was set up with this release's fixed numbers.
    ///
    /// # Errors
    /// [`BusError::NotSetUp`], [`BusError::Layout`], or why NATS did not answer.
    pub async fn check_meta(&self) -> Result<(), BusError> {
        todo!()
    }
}
