//! What can go wrong on the bus.

use std::time::Duration;

use mailbell_core::schema::TooOld;

/// Why something on the bus did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The options contradict each other or name something that cannot be.
    #[error("{0}")]
    Options(String),
    /// No server could be reached.
    #[error("no NATS server answers at {urls}: {reason}")]
    Connect {
        /// Where was tried.
        urls: String,
        /// What the last try said.
        reason: String,
    },
    /// The server does not know this user, or not with this secret.
    #[error("NATS refuses this user or its secret")]
    Authentication,
    /// TLS could not be agreed on.
    #[error("no TLS with NATS: {0}")]
    Tls(String),
    /// The connection is down.
    #[error("not connected to NATS")]
    Disconnected,
    /// No answer in time. What was asked for may have happened.
    #[error("no answer from NATS within {0:?}")]
    Timeout(Duration),
    /// This process sends faster than the connection takes it.
    #[error("the queue to NATS is full")]
    Busy,
    /// This user may not do that.
    #[error("the NATS user may not use {0}")]
    Denied(String),
    /// The stream or bucket is not there, or has no leader at the moment.
    #[error("no stream {0}, or it has no leader now")]
    NoStream(String),
    /// No room.
    #[error("no room: {0}")]
    StorageFull(String),
    /// Larger than what the server or the stream takes.
    #[error("too large: {0}")]
    TooLarge(String),
    /// JetStream refuses for another reason.
    #[error("JetStream refuses: {description} ({code}/{err_code})")]
    Refused {
        /// HTTP-like.
        code: u16,
        /// JetStream's own number.
        err_code: u32,
        /// JetStream's words.
        description: String,
    },
    /// A server could not read its files again; what it had before stays.
    #[error("the NATS server cannot read its files again: {0}")]
    Reload(String),
    /// What came back cannot be read.
    #[error("an answer that cannot be read: {0}")]
    Garbled(&'static str),
    /// A record cannot be read.
    #[error("the record {0} cannot be read")]
    Record(String),
    /// A record that a newer release wrote; this one must not rewrite it.
    #[error("the record {0} was written by a newer release")]
    NewerRecord(String),
    /// The installation has not been set up.
    #[error("the installation {0} is not set up in NATS")]
    NotSetUp(String),
    /// The installation was made with other fixed numbers.
    #[error("the installation has {found} {what}, this release needs {expected}")]
    Layout {
        /// Of what.
        what: &'static str,
        /// As it is.
        found: u32,
        /// As it must be.
        expected: u32,
    },
    /// The installation is written in a schema that this release does not know.
    #[error(transparent)]
    TooOld(#[from] TooOld),
    /// A stream differs in a way that cannot be put right without losing data.
    #[error("refused, since it would lose data: {0}")]
    WouldLoseData(String),
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

/// The few classes of [`BusError`]: what a caller decides on, and what a metric is labelled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// Wrong settings.
    Options,
    /// NATS is away or slow.
    Unavailable,
    /// No answer: it may have happened.
    Unknown,
    /// This process may not.
    Denied,
    /// No room.
    Full,
    /// Too large, now and later.
    TooLarge,
    /// JetStream refused.
    Refused,
    /// Bytes that make no sense.
    Data,
    /// The installation is not as it must be.
    Installation,
    /// It was closed.
    Closed,
}

impl Code {
    /// The label in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Options => "options",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
            Self::Denied => "denied",
            Self::Full => "full",
            Self::TooLarge => "too-large",
            Self::Refused => "refused",
            Self::Data => "data",
            Self::Installation => "installation",
            Self::Closed => "closed",
        }
    }

    /// Whether trying again later may help without anybody changing anything.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Self::Unavailable | Self::Unknown | Self::Full | Self::Refused
        )
    }
}

impl BusError {
    /// Its class.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Options(_) | Self::Tls(_) => Code::Options,
            Self::Connect { .. } | Self::Disconnected | Self::Busy | Self::NoStream(_) => {
                Code::Unavailable
            }
            Self::Timeout(_) => Code::Unknown,
            Self::Authentication | Self::Denied(_) => Code::Denied,
            Self::StorageFull(_) => Code::Full,
            Self::TooLarge(_) => Code::TooLarge,
            Self::Refused { .. } | Self::Reload(_) => Code::Refused,
            Self::Garbled(_) | Self::Record(_) | Self::NewerRecord(_) => Code::Data,
            Self::NotSetUp(_) | Self::Layout { .. } | Self::TooOld(_) | Self::WouldLoseData(_) => {
                Code::Installation
            }
            Self::Closed => Code::Closed,
        }
    }

    /// Whether trying again later may help.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.code().is_retryable()
    }
}
