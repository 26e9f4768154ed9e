//! What goes into an account session and what comes out of it.

use std::time::Duration;

use mailbell_proto::push::v1::{ContentLevel, Health, Message};

use crate::{
    checkpoint::Checkpoint,
    event::Event,
    ids::{AccountId, Generation, LogId, OwnerEpoch, Position, Uid},
    timing::Timing,
};

/// The time, which a session is told and never asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Since some start; never goes back.
    pub mono: Duration,
    /// Microseconds since the epoch; may jump.
    pub wall_us: i64,
}

/// Bounds and periods of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// More new messages than this at once are a flood: `Bulk`, then the newest of them.
    pub flood: u32,
    /// How many messages are fetched at once, and lie in memory at most.
    pub page: usize,
    /// How long a UID that was skipped is looked for.
    pub hole_age: Duration,
    /// A message with which the connection is lost each time is told unread after so long, and not before: that is final, and a
    /// mail server or proxy that restarts, or whose store is away, does the same to any message for some minutes.
    pub unread_age: Duration,
    /// How often folders other than the one held open are looked at.
    pub sweep: Duration,
    /// IDLE is ended and begun anew after this time. RFC 2177 names 29 minutes.
    pub idle: Duration,
    /// The shortest time between polls where the server has no IDLE.
    pub poll_least: Duration,
    /// The longest time between polls.
    pub poll_most: Duration,
    /// A poll never comes sooner than so many times the measured handshake, so that polling cannot cause the time-outs that it
    /// suffers from.
    pub poll_handshakes: u32,
    /// A passing failure is told to devices when it lasts this long.
    pub tell_after: Duration,
    /// How long after a failure that a person must mend the login is tried again all the same.
    pub permanent_retry: Duration,
    /// A message whose INTERNALDATE is older than the last look by more than this does not alert. Covers clocks that differ.
    pub alert_margin: Duration,
    /// Reconnects: the longest first delay, and the longest of all.
    pub reconnect_first: Duration,
    /// See `reconnect_first`.
    pub reconnect_most: Duration,
    /// Retries of an append: the longest delay.
    pub append_most: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flood: 500,
            page: 32,
            hole_age: Duration::from_secs(120),
            unread_age: Duration::from_secs(5 * 60),
            sweep: Duration::from_secs(60),
            idle: Duration::from_secs(24 * 60),
            poll_least: Duration::from_secs(10),
            poll_most: Duration::from_secs(300),
            poll_handshakes: 10,
            tell_after: Duration::from_secs(30),
            permanent_retry: Duration::from_secs(15 * 60),
            alert_margin: Duration::from_secs(10 * 60),
            reconnect_first: Duration::from_secs(2),
            // A mail server that is back has news: nobody waits for minutes. The gate of its host keeps the pace.
            reconnect_most: Duration::from_secs(60),
            append_most: Duration::from_secs(15),
        }
    }
}

/// Why an account is not to be watched now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Its owner wants it so.
    Owner,
    /// The operator wants nobody to connect for its tenant.
    Tenant,
    /// The operator wants nobody to connect to its mail provider.
    Provider,
}

impl Pause {
    /// All there are: where several hold, the first one is told.
    pub const ALL: [Self; 3] = [Self::Owner, Self::Tenant, Self::Provider];

    /// The word for programs.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Owner => "paused",
            Self::Tenant => "tenant-paused",
            Self::Provider => "provider-paused",
        }
    }
}

/// What a session is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whose mailbox.
    pub account: AccountId,
    /// Which folders; the first is held open. Never empty.
    pub folders: Vec<String>,
    /// Not to be watched now, and why.
    pub paused: Option<Pause>,
    /// The most that events say of messages. Never [`ContentLevel::Unspecified`].
    pub content: ContentLevel,
    /// The ownership under which this session appends.
    pub owner_epoch: OwnerEpoch,
    /// Bounds.
    pub limits: Limits,
    /// Periods of the installation.
    pub timing: Timing,
}

/// Correlates an effect with its answer. An answer to anything but the effect that is awaited is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Op(pub u64);

/// Why something on the mail server's side did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A stable word, such as `bad-credentials`.
    pub code: &'static str,
    /// One sentence for a person: what is wrong and what to do.
    pub sentence: String,
    /// What it means for the session.
    pub severity: Severity,
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It passes; the connection is gone.
    Transient,
    /// If it happens twice in a row, a person must act; the connection is gone.
    Permanent,
    /// This folder does not exist; the connection is well.
    NoSuchFolder,
}

/// What a look at a folder found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    /// UIDVALIDITY.
    pub generation: Generation,
    /// UIDNEXT.
    pub uid_next: Uid,
    /// Whether the server said UIDNEXT; else it was derived from the last message, and may go back when that is deleted.
    pub uid_next_exact: bool,
    /// How many messages have a UID of at least the one that was asked for.
    pub total_new: u32,
    /// The UIDs of the newest of them, at most as many as asked for, ascending.
    pub uids: Vec<Uid>,
    /// The UIDs that exist within the holes that were asked for, ascending.
    pub late: Vec<Uid>,
}

/// A message as it was fetched.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// What a device may see of it.
    pub message: Message,
    /// The trace that begins with it, or empty.
    pub traceparent: String,
}

/// Why a parked connection woke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The server said that something changed. When its notice was read, in microseconds since the epoch.
    Changed {
        /// Of the notice.
        noticed_us: i64,
    },
    /// The time that was asked for is over.
    Expired,
    /// [`Effect::Interrupt`] was carried out.
    Interrupted,
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The log holds it.
    Stored {
        /// In which history.
        log_id: LogId,
        /// Where.
        position: Position,
    },
    /// No answer in time: it may or may not be stored.
    NoAnswer,
    /// The connection broke in between: it may or may not be stored.
    Disconnected,
    /// The log refused it, for a stable reason such as `storage-full`.
    Refused {
        /// A stable word.
        code: &'static str,
        /// One sentence for a person.
        sentence: String,
    },
}

/// The end of an account's log as its leader has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Which history.
    pub log_id: LogId,
    /// The account's events after the position that was asked for, in order.
    pub events: Vec<(Position, Event)>,
    /// Everything up to here was read.
    pub read_to: Position,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The process ends or gives the account away: finish what is in flight, store the checkpoint.
    HandOver,
    /// Somebody else owns the account: end at once, write nothing.
    Lost,
    /// The account was removed: say so, then end.
    Removed,
}

/// What a session is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Begin.
    Start,
    /// The time that [`Effect::Timer`] asked for has come.
    Tick,
    /// Answer to [`Effect::Open`].
    Opened {
        /// Which.
        op: Op,
        /// Whether the server has IDLE.
        idle: bool,
        /// From the first packet to the login's answer.
        handshake: Duration,
        /// Watched folders that people don't read (Sent, Drafts, Junk, Trash, virtual ones): their mail does not alert.
        quiet_folders: Vec<String>,
    },
    /// Answer to [`Effect::Look`].
    Looked {
        /// Which.
        op: Op,
        /// What was found.
        look: Look,
    },
    /// Answer to [`Effect::Fetch`]: those that still exist.
    FetchedPage {
        /// Which.
        op: Op,
        /// In ascending order of UID.
        messages: Vec<Fetched>,
    },
    /// Answer to [`Effect::Park`].
    Woke {
        /// Which.
        op: Op,
        /// Why.
        wake: Wake,
    },
    /// Answer to [`Effect::Poll`].
    Polled {
        /// Which.
        op: Op,
        /// Whether the server said that something changed.
        changed: bool,
    },
    /// Answer to [`Effect::Serve`].
    Served {
        /// Which.
        op: Op,
    },
    /// Answer to [`Effect::Close`].
    Closed {
        /// Which.
        op: Op,
    },
    /// [`Effect::Open`] is not even begun yet and may take long, since the mail server fails for many accounts. The answer still
    /// follows.
    Held {
        /// Which.
        op: Op,
        /// Why, for the status; it is no attempt that failed.
        failure: Failure,
    },
    /// What was asked of the mail server did not work.
    Failed {
        /// Which.
        op: Op,
        /// Why.
        failure: Failure,
    },
    /// Answer to [`Effect::Append`].
    Appended {
        /// Which.
        op: Op,
        /// What became of it.
        outcome: Outcome,
    },
    /// Answer to [`Effect::ReadTail`]; `None`: it could not be read.
    TailRead {
        /// Which.
        op: Op,
        /// What the leader has.
        tail: Option<Tail>,
    },
    /// Answer to [`Effect::StoreCheckpoint`].
    CheckpointStored {
        /// Which.
        op: Op,
        /// The revision now.
        revision: u64,
    },
    /// Answer to [`Effect::StoreCheckpoint`]: it could not be stored, or nobody knows.
    CheckpointNotStored {
        /// Which.
        op: Op,
        /// A stable word.
        code: &'static str,
        /// One sentence for a person.
        sentence: String,
    },
    /// Answer to [`Effect::StoreCheckpoint`]: somebody else has written it.
    CheckpointConflict {
        /// Which.
        op: Op,
    },
    /// The link to the logs came or went.
    Bus {
        /// Whether it is there.
        up: bool,
    },
    /// Somebody wants to use the connection (to list a folder); see [`Effect::Serve`].
    Request,
    /// Folders, a pause switch or periods changed.
    Reconfigure {
        /// As they are now.
        config: Box<Config>,
    },
    /// The credential or the server changed: log in anew.
    Relogin,
    /// End.
    Stop(Stop),
}

/// What a session asks for. At most one effect on the mail connection, one append or tail read, and one checkpoint are awaited
/// at any time.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Connect and log in.
    Open {
        /// Answer with it.
        op: Op,
    },
    /// EXAMINE the folder (anew if `select`, or if another one is selected), and say what is new in it.
    Look {
        /// Answer with it.
        op: Op,
        /// Which.
        folder: String,
        /// EXAMINE even if it is selected.
        select: bool,
        /// The lowest UID that is new.
        from: Uid,
        /// At most so many UIDs.
        most: u32,
        /// Ranges of UIDs below `from` to look for too.
        holes: Vec<(Uid, Uid)>,
    },
    /// Fetch these messages of the folder that was looked at last.
    Fetch {
        /// Answer with it.
        op: Op,
        /// Ascending, at most [`Limits::page`].
        uids: Vec<Uid>,
    },
    /// Wait for the server's notice (IDLE), or just hold the connection.
    Park {
        /// Answer with it.
        op: Op,
        /// By IDLE.
        idle: bool,
        /// At most this long.
        most: Duration,
    },
    /// Wake the parked connection.
    Interrupt,
    /// NOOP.
    Poll {
        /// Answer with it.
        op: Op,
    },
    /// Let those who asked use the connection now.
    Serve {
        /// Answer with it.
        op: Op,
    },
    /// Tell those who asked to try again later.
    RefuseRequests,
    /// Leave politely (DONE, LOGOUT), within bounds.
    Close {
        /// Answer with it.
        op: Op,
    },
    /// Drop the connection.
    Drop,
    /// Append to the log, and wait for the acknowledgement.
    Append {
        /// Answer with it.
        op: Op,
        /// The same bytes and id for each retry.
        event: Box<Event>,
        /// Whether it was tried before.
        retry: bool,
    },
    /// Read the account's log from the leader.
    ReadTail {
        /// Answer with it.
        op: Op,
        /// What is known is the fold of this log; if it is another by now, read all of it.
        log_id: LogId,
        /// After here.
        after: Position,
    },
    /// Store the checkpoint if the stored one still has this revision.
    StoreCheckpoint {
        /// Answer with it.
        op: Op,
        /// What is known.
        checkpoint: Box<Checkpoint>,
        /// `None`: there is none yet.
        revision: Option<u64>,
    },
    /// The account's status changed.
    Status(Status),
    /// Send [`Input::Tick`] then (on the monotonic clock). Replaces the one before.
    Timer(Duration),
    /// The session is over. Nothing follows.
    Stopped,
}

/// How an account is doing, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// In a word.
    pub health: Health,
    /// A stable word for programs.
    pub code: &'static str,
    /// One sentence for a person.
    pub sentence: String,
    /// Since when, in microseconds since the epoch.
    pub since_us: i64,
    /// `idle`, `poll` or empty.
    pub mode: &'static str,
    /// When the last message arrived, in microseconds since the epoch. 0: none yet in this session.
    pub last_arrival_us: i64,
}
