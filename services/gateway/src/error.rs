//! The error of this crate.

use mailbell_bus::BusError;
use mailbell_core::timing::TimingError;

/// Why a gateway cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The periods contradict each other.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// A bound that would let nothing through.
    #[error("{0} must be more than 0")]
    Zero(&'static str),
    /// The listener or TLS cannot be used.
    #[error(transparent)]
    Runtime(#[from] mailbell_runtime::Error),
    /// The bus is not as it must be.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The bus was closed while the gateway ran.
    #[error("the bus was closed while the gateway ran")]
    BusClosed,
    /// A task that the gateway cannot be without ended by itself: a bug.
    #[error("a task of the gateway ended")]
    Helper(#[source] tokio::task::JoinError),
    /// The descriptors of the services cannot be read: a bug.
    #[error("the service descriptors cannot be read")]
    Descriptors,
}
