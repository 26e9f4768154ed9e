//! What an app gets. The `Debug` output of all of it names messages by key, and never shows what is in them.

use std::{fmt, ops::RangeInclusive, time::Duration};

use mailbell_proto::push::v1::{
    AccountState, ContentLevel, EventKey, Health, Message, Priority, Times,
};

/// One thing that an app is told.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum AppEvent {
    /// A message is in a folder that was not there before.
    Arrived(Box<Arrived>),
    /// A message's flags changed.
    Changed(Changed),
    /// A message is no longer in its folder; final within the generation.
    Gone(Gone),
    /// An account is watched, or is not, and why.
    AccountState(AccountState),
    /// What the app holds of a folder is to be replaced: there may have been a hole.
    ReplaceFolder(ReplaceFolder),
    /// A folder that should be listed cannot be, and never will be by waiting: what the app holds of it may have a hole.
    Unlistable(Unlistable),
    /// A stream is open.
    Connected(Connected),
    /// What was missed has been told; what follows happens now.
    Live,
    /// The stream ended, or could not be opened.
    Disconnected {
        /// Why.
        reason: DisconnectReason,
        /// After how long the next attempt follows.
        retry_in: Duration,
    },
}

/// See [`AppEvent::Arrived`].
#[derive(Clone, PartialEq)]
pub struct Arrived {
    /// What makes it one fact; also names account, folder, generation and UID.
    pub key: EventKey,
    /// As a person knows the folder.
    pub folder_name: String,
    /// Whether a person should be alerted: the server says so, and no copy of the message has alerted before.
    pub alert: bool,
    /// How urgent it is.
    pub priority: Priority,
    /// `None` at content level KEY.
    pub message: Option<Message>,
    /// When it passed each milestone.
    pub times: Times,
    /// W3C trace context of its way through Mailbell; may be empty.
    pub traceparent: String,
}

/// See [`AppEvent::Changed`]. An older change than the last one told is never told.
#[derive(Clone, PartialEq)]
pub struct Changed {
    /// What makes it one fact.
    pub key: EventKey,
    /// All flags of the message now.
    pub flags: Vec<String>,
}

/// See [`AppEvent::Gone`].
#[derive(Clone, PartialEq)]
pub struct Gone {
    /// What makes it one fact.
    pub key: EventKey,
}

/// Replaces what an app holds of a folder: whatever it has of another generation, and whatever it has with a UID in `uids`,
/// makes way for `messages`. Facts that came while the folder was listed are already worked in.
#[derive(Clone, PartialEq)]
pub struct ReplaceFolder {
    /// Whose.
    pub account: String,
    /// Which of its folders.
    pub folder: u32,
    /// As a person knows it.
    pub folder_name: String,
    /// The folder's UIDVALIDITY.
    pub generation: u32,
    /// Which UIDs were looked at.
    pub uids: RangeInclusive<u32>,
    /// What is there, in ascending order of UID.
    pub messages: Vec<Listed>,
    /// Whether this is all that was concerned. Not so if more parts of a large range follow, or if the folder holds older
    /// messages than the newest ones that the client was asked to list.
    pub complete: bool,
}

impl ReplaceFolder {
    /// The messages of which a person should hear now.
    pub fn alert_for(&self) -> impl Iterator<Item = &Message> {
        self.messages
            .iter()
            .filter(|listed| listed.alert)
            .map(|listed| &listed.message)
    }
}

/// A message of a [`ReplaceFolder`].
#[derive(Clone, PartialEq)]
pub struct Listed {
    /// What is known of it.
    pub message: Message,
    /// The app was told of it before, as [`AppEvent::Arrived`] or in a listing.
    pub known: bool,
    /// Whether a person should be alerted: not known, not read, new, and no copy of it has alerted before.
    pub alert: bool,
}

/// See [`AppEvent::Unlistable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlistable {
    /// Whose.
    pub account: String,
    /// Which of its folders.
    pub folder: u32,
    /// Why.
    pub reason: UnlistableReason,
}

/// Why a folder cannot be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnlistableReason {
    /// The account or the folder does not exist (any more).
    NotFound,
    /// The token does not name the account.
    PermissionDenied,
    /// The server refuses the request, or does not offer listings.
    Refused,
}

/// See [`AppEvent::Connected`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The stream's name in the server's logs.
    pub session: String,
    /// A cursor was presented: what was missed follows, or a resync of what cannot be told.
    pub resumed: bool,
    /// How much of a message's content is told.
    pub content: ContentLevel,
}

/// Why a stream ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// No connection, or it broke: why, in a few words of whatever found out (the system, TLS, the server).
    #[error("the server cannot be reached: {0}")]
    Unreachable(String),
    /// Nothing came for two heartbeats, or no answer within the time limit.
    #[error("the server fell silent")]
    Silent,
    /// The server asked us to reconnect.
    #[error("the server moves us elsewhere")]
    GoAway,
    /// The server ended the stream without a reason.
    #[error("the server ended the stream")]
    Ended,
    /// The server has no room for us now, or we read too slowly.
    #[error("the server is overloaded, or this reader too slow")]
    Overloaded,
    /// The token was refused; another one is asked for.
    #[error("the token was refused")]
    TokenRefused,
    /// No token could be had for a passing reason.
    #[error("no token could be had")]
    NoToken,
    /// What came was not the protocol.
    #[error("the server does not speak this protocol")]
    Protocol,
}

/// An [`AppEvent`] with its place in the app's stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Handed {
    /// Counts up by one from event to event within one [`crate::session::ClientSession`].
    pub position: u64,
    /// What the app gets.
    pub event: AppEvent,
}

impl fmt::Debug for AppEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrived(arrived) => arrived.fmt(f),
            Self::Changed(changed) => changed.fmt(f),
            Self::Gone(gone) => gone.fmt(f),
            // The sentence may name the user or the host.
            Self::AccountState(state) => f
                .debug_struct("AccountState")
                .field("account", &state.account)
                .field("health", &Health::try_from(state.health))
                .field("code", &state.code)
                .finish_non_exhaustive(),
            Self::ReplaceFolder(replace) => replace.fmt(f),
            Self::Unlistable(unlistable) => unlistable.fmt(f),
            Self::Connected(connected) => connected.fmt(f),
            Self::Live => f.write_str("Live"),
            Self::Disconnected { reason, retry_in } => f
                .debug_struct("Disconnected")
                .field("reason", reason)
                .field("retry_in", retry_in)
                .finish(),
        }
    }
}

struct Key<'a>(&'a EventKey);

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&mailbell_core::event::message_id(self.0))
    }
}

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrived")
            .field("key", &Key(&self.key))
            .field("alert", &self.alert)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changed")
            .field("key", &Key(&self.key))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gone")
            .field("key", &Key(&self.key))
            .finish()
    }
}

impl fmt::Debug for ReplaceFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplaceFolder")
            .field("account", &self.account)
            .field("folder", &self.folder)
            .field("generation", &self.generation)
            .field("uids", &self.uids)
            .field("messages", &self.messages)
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listed")
            .field("uid", &self.message.uid)
            .field("known", &self.known)
            .field("alert", &self.alert)
            .finish_non_exhaustive()
    }
}
