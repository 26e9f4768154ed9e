//! What ends a client.

use crate::state::StateError;

/// Why a client's stream of events ended for good. Everything else is retried, and told as
/// [`crate::event::AppEvent::Disconnected`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the builder was given makes no sense.
    #[error("{0}")]
    Config(String),
    /// The state cannot be read or kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The server refuses the token, and there is no other.
    #[error("the server refuses the token: {0}")]
    Unauthenticated(String),
    /// The source of tokens says that there will be none.
    #[error("no token can be had: {0}")]
    NoToken(String),
    /// The token does not allow what was asked for.
    #[error("the token does not allow this: {0}")]
    PermissionDenied(String),
    /// An account does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// The server does not understand the request.
    #[error("the server refuses the request: {0}")]
    InvalidArgument(String),
    /// The server does not offer this.
    #[error("the server does not offer this: {0}")]
    Unimplemented(String),
}
