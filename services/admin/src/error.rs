//! What can go wrong, and what of it a caller is told.

use mailbell_bus::{AskError, BusError};
use mailbell_core::seal::SealError;
use tonic::{Code, Status, metadata::MetadataValue};

/// The metadata of a status that says in a stable word what a mail server's login failed of.
pub const CHECK_CODE: &str = "mailbell-check-code";
/// The metadata by which gRPC clients are told that a call may be repeated, and after how many milliseconds; see gRFC A6. It stands
/// where nothing was done: a call whose answer was lost must not be made twice by a machine.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// What is missing then is there in a moment, or not soon.
const PUSHBACK_MS: u32 = 500;

/// Why a call, or the service as a whole, did not work. The text of each but [`Error::Bus`] and [`Error::Setup`] is meant for the
/// caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field is not as it must be. One sentence that names the field.
    #[error("{0}")]
    Invalid(String),
    /// There is no such account or token.
    #[error("{0}")]
    NotFound(String),
    /// The external id belongs to an account with other settings.
    #[error("{0}")]
    AlreadyExists(String),
    /// Somebody else changed it meanwhile.
    #[error("{0}")]
    Changed(String),
    /// The login was tried and failed. A stable word and a sentence.
    #[error("{sentence}")]
    CheckFailed {
        /// Such as `bad-credentials`.
        code: String,
        /// What is wrong and what to do.
        sentence: String,
    },
    /// It is somebody else's to change.
    #[error("{0}")]
    Managed(String),
    /// This kind of token does not make this call.
    #[error("{0}")]
    Denied(String),
    /// Not now; nothing was done.
    #[error("{0}")]
    Unavailable(String),
    /// No admin token, or a wrong one.
    #[error(
        "this call needs `authorization: Bearer <admin token>` with a token of this installation"
    )]
    Unauthenticated,
    /// Too many wrong admin tokens.
    #[error("too many calls with a wrong admin token; wait a little")]
    TooManyFailures,
    /// Something that must not happen.
    #[error("internal error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// NATS.
    #[error("the store is not available: {0}")]
    Bus(#[from] BusError),
    /// The service cannot start.
    #[error("{0}")]
    Setup(String),
}

impl Error {
    /// For metrics and for the status' code; a closed set.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::Changed(_) => Code::Aborted,
            Self::CheckFailed { .. } | Self::Managed(_) => Code::FailedPrecondition,
            Self::Denied(_) => Code::PermissionDenied,
            Self::Unavailable(_) => Code::Unavailable,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::TooManyFailures => Code::ResourceExhausted,
            Self::Bus(error) if error.is_retryable() => Code::Unavailable,
            Self::Internal(_) | Self::Bus(_) | Self::Setup(_) => Code::Internal,
        }
    }

    pub(crate) fn internal(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(source.into())
    }

    /// What the caller gets. What only an operator may read is logged here, where it ends.
    pub(crate) fn into_status(self) -> Status {
        let code = self.code();
        match &self {
            Self::Internal(source) => {
                tracing::error!(error = %source, "a call of the admin API failed by a fault of ours");
                Status::new(
                    code,
                    "internal error; the log of the admin process says more",
                )
            }
            Self::Bus(error) if code == Code::Unavailable => {
                tracing::warn!(%error, "a call of the admin API failed: NATS did not answer as it should");
                Status::new(code, "the store (NATS) does not answer; try again")
            }
            Self::Bus(error) => {
                tracing::error!(%error, "a call of the admin API failed: NATS refuses");
                Status::new(
                    code,
                    "the store (NATS) refuses; the log of the admin process says why",
                )
            }
            Self::CheckFailed {
                code: word,
                sentence,
            } => {
                let mut status = Status::new(code, sentence);
                if let Ok(word) = MetadataValue::try_from(word) {
                    status.metadata_mut().insert(CHECK_CODE, word);
                }
                status
            }
            Self::Unavailable(sentence) => {
                let mut status = Status::new(code, sentence);
                let pushback = MetadataValue::from(PUSHBACK_MS);
                status.metadata_mut().insert(PUSHBACK, pushback);
                status
            }
            other => Status::new(code, other.to_string()),
        }
    }
}

impl From<AskError> for Error {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NoOwner => Self::Unavailable(
                "no watcher is there to try the login; see whether one runs, and try again"
                    .to_owned(),
            ),
            AskError::Timeout => {
                Self::Unavailable("the watcher did not answer in time; try again".to_owned())
            }
            AskError::Disconnected | AskError::Closed => {
                Self::Unavailable("the store (NATS) does not answer; try again".to_owned())
            }
            AskError::TooLarge => Self::Invalid("the settings are too large".to_owned()),
            AskError::Denied | AskError::Garbled => Self::internal(error),
        }
    }
}

impl From<SealError> for Error {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Length => Self::Invalid(format!("password: {error}.")),
            _ => Self::internal(error),
        }
    }
}
