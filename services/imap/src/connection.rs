//! A connection between two waits: it runs commands and remembers what the server lets drop.

use std::time::Duration;

use imap_proto::{MailboxDatum, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};

use crate::capability::{Capabilities, Capability};
use crate::channel::{Channel, Ending};
use crate::command::Command;
use crate::error::Error;
use crate::fetch::Ahead;
use crate::guard::Limits;
use crate::message::Content;
use crate::settings::{Settings, Timeouts};

/// What is said unasked of one message when all are marked as read, or go: its flags, or its removal.
const NEWS_BYTES: u32 = 128;
/// Most bytes of that, for folders of 65,000 messages and more. They are counted, not kept.
const NEWS_LIMIT: u32 = 8 << 20;

/// The folder that is open, read-only.
#[derive(Clone, Debug)]
pub(crate) struct Selected {
    /// Its name, decoded.
    pub(crate) folder: Box<str>,
    pub(crate) uid_validity: u32,
    /// The next UID as far as it is known.
    pub(crate) uid_next: u32,
    /// Whether the server said it; else it follows from the last message.
    pub(crate) uid_next_exact: bool,
    /// How many messages it has, by the last that was heard.
    pub(crate) exists: u32,
    pub(crate) highest_modseq: Option<u64>,
    /// What the last look counted; `None` as soon as sequence numbers may have moved since.
    pub(crate) counted: Option<Counted>,
}

/// So many messages, all of them with a lower UID than this.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(crate) exists: u32,
    /// 0 while the look isn't over.
    pub(crate) uid_next: u32,
}

/// What outlives the parser: kept over [`crate::Parked`], small.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) capabilities: Capabilities,
    /// See [`Settings::idle`].
    allow_idle: bool,
    pub(crate) timeouts: Timeouts,
    pub(crate) preview_chars: usize,
    /// See [`Connection::set_content`].
    pub(crate) content: Content,
    pub(crate) handshake: Duration,
    pub(crate) selected: Option<Selected>,
    /// Something was announced that no [`Connection::look`] has taken into account.
    pub(crate) dirty: bool,
    /// When the first of it was read.
    pub(crate) noticed: Option<Instant>,
}

impl Session {
    pub(crate) fn new(
        capabilities: Capabilities,
        settings: &Settings,
        handshake: Duration,
    ) -> Self {
        Self {
            capabilities,
            allow_idle: settings.idle,
            timeouts: settings.timeouts,
            preview_chars: settings.preview_chars,
            content: Content::default(),
            handshake,
            selected: None,
            dirty: false,
            noticed: None,
        }
    }

    /// Whether it waits by IDLE.
    pub(crate) fn idles(&self) -> bool {
        self.allow_idle && self.capabilities.has(Capability::Idle)
    }

    /// Something is new that no look has seen.
    pub(crate) fn announced(&mut self) {
        self.dirty = true;
        self.noticed.get_or_insert_with(Instant::now);
    }

    /// A look begins: what was announced is taken into account.
    pub(crate) fn looked(&mut self) {
        self.dirty = false;
        self.noticed = None;
    }

    /// Most bytes that an honest server may say unasked, of every message of the open folder.
    pub(crate) fn news_limit(&self) -> usize {
        let exists = self.selected.as_ref().map_or(0, |selected| selected.exists);
        usize::try_from(exists.saturating_mul(NEWS_BYTES).min(NEWS_LIMIT)).unwrap_or(0)
    }

    /// The folder has this many messages now.
    pub(crate) fn on_exists(&mut self, exists: u32) {
        if let Some(selected) = &mut self.selected {
            if exists == selected.exists {
                return;
            }
            if exists < selected.exists {
                selected.counted = None;
            }
            selected.exists = exists;
        }
        // Also without a folder of ours: the server may have one open of which we have given up what we knew.
        self.announced();
    }

    /// A message is gone.
    pub(crate) fn on_expunge(&mut self) {
        if let Some(selected) = &mut self.selected {
            selected.exists = selected.exists.saturating_sub(1);
            selected.counted = None;
        }
        self.announced();
    }

    /// Messages are gone, nobody says how many.
    pub(crate) fn on_vanished(&mut self) {
        if let Some(selected) = &mut self.selected {
            selected.counted = None;
        }
        self.announced();
    }

    /// A look begins to count the messages of the open folder, of which there are so many.
    pub(crate) fn begin_count(&mut self, exists: u32) {
        if let Some(selected) = &mut self.selected {
            selected.counted = Some(Counted {
                exists,
                uid_next: 0,
            });
        }
    }

    /// A look is over: all that it counted have a lower UID than this, if it saw all of them.
    pub(crate) fn end_count(&mut self, uid_next: u32, complete: bool) {
        if let Some(selected) = &mut self.selected {
            selected.uid_next = selected.uid_next.max(uid_next);
            let counted = selected.counted.take().filter(|_| complete);
            selected.counted = counted.map(|counted| Counted {
                uid_next,
                ..counted
            });
        }
    }

    /// Takes note of what a server may say during any command. A FETCH without our asking is a change of flags; the
    /// commands that ask for FETCH look at it themselves.
    pub(crate) fn observe(&mut self, response: &Response<'_>) {
        match response {
            Response::MailboxData(MailboxDatum::Exists(exists)) => self.on_exists(*exists),
            Response::Expunge(_) => self.on_expunge(),
            _ => {}
        }
    }
}

/// A connection that is logged in. It never changes the mailbox: folders are opened with EXAMINE, messages read with
/// PEEK. [`crate::Canary`] does.
///
/// Its methods are not safe to cancel: a dropped future leaves an answer half read, and the next command fails. Bound
/// them by [`Timeouts`] only, or drop the connection along with the future. After an error other than
/// [`Error::NoSuchFolder`] and [`Error::InvalidInput`] the connection is of no more use.
#[derive(Debug)]
pub struct Connection {
    channel: Channel,
    pub(crate) session: Session,
    /// A command has not come to its end.
    broken: bool,
    /// What the last look read along.
    pub(crate) ahead: Option<Ahead>,
}

impl Connection {
    pub(crate) fn new(channel: Channel, session: Session) -> Self {
        Self {
            channel,
            session,
            broken: false,
            ahead: None,
        }
    }

    /// What the server can do, as announced after login.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.session.capabilities
    }

    /// Whether it waits by IDLE: the server has it, and [`Settings::idle`] allows it.
    #[must_use]
    pub fn idles(&self) -> bool {
        self.session.idles()
    }

    /// From the begin of connecting to the end of the login: what a reconnect costs.
    #[must_use]
    pub fn handshake(&self) -> Duration {
        self.session.handshake
    }

    /// Whether something was announced (arrivals, removals) since the last [`Connection::look`] began.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.session.dirty
    }

    /// Forgets what was announced: the caller has taken note of it and will look when it can. Until then the connection
    /// may wait for more.
    pub fn acknowledge(&mut self) {
        self.session.looked();
    }

    /// When the first of what was announced since the last [`Connection::look`] began was read from the server.
    #[must_use]
    pub fn noticed_at(&self) -> Option<Instant> {
        self.session.noticed
    }

    /// How many messages the open folder has, by the last that was heard.
    #[must_use]
    pub fn exists(&self) -> Option<u32> {
        self.session
            .selected
            .as_ref()
            .map(|selected| selected.exists)
    }

    /// Asks the server for news; says whether there are any since the last [`Connection::look`] began.
    ///
    /// # Errors
    /// When the connection ends or the server refuses.
    pub async fn noop(&mut self) -> Result<bool, Error> {
        let ending = self
            .run(Command::new("NOOP"), Limits::SMALL, &mut |_| {})
            .await?;
        if !ending.ok {
            return Err(crate::login::refused(&ending).unwrap_or(Error::Protocol("NOOP refused")));
        }
        Ok(self.session.dirty)
    }

    /// Logs out and closes, within [`Timeouts::logout`]. There is nothing to do about errors, so it tells none.
    pub async fn logout(self) {
        let Self {
            mut channel,
            session,
            broken,
            ..
        } = self;
        let _ = timeout(session.timeouts.logout, async {
            if !broken {
                let _ = channel
                    .run(Command::new("LOGOUT"), Limits::SMALL, &mut |_| {})
                    .await;
            }
            if let Ok(guard) = channel.guard() {
                let _ = guard.shutdown().await;
            }
        })
        .await;
    }

    /// Runs one command within its time. `on` sees all untagged responses; those about the open folder were noted.
    pub(crate) async fn run(
        &mut self,
        command: Command,
        limits: Limits,
        on: &mut (dyn FnMut(&Response<'_>) + Send),
    ) -> Result<Ending, Error> {
        self.start()?;
        let Self {
            channel, session, ..
        } = self;
        let limit = session.timeouts.command;
        let limits = limits.with_news(session.news_limit());
        let mut observer = |response: &Response<'_>| {
            session.observe(response);
            on(response);
        };
        let ending = timeout(limit, channel.run(command, limits, &mut observer)).await;
        self.finish(ending)
    }

    /// As [`Connection::run`], for EXAMINE: what is said is about the folder to be opened.
    pub(crate) async fn run_select(
        &mut self,
        command: Command,
        on: &mut (dyn FnMut(&Response<'_>) + Send),
    ) -> Result<Ending, Error> {
        self.start()?;
        // What is news of the folder that was open comes first.
        let limits = Limits::SMALL.with_news(self.session.news_limit());
        self.session.selected = None;
        self.ahead = None;
        let limit = self.session.timeouts.command;
        let ending = timeout(limit, self.channel.run(command, limits, on)).await;
        self.finish(ending)
    }

    fn start(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.broken, true) {
            Err(Error::Disconnected { bye: false })
        } else {
            Ok(())
        }
    }

    fn finish(&mut self, ending: Result<Result<Ending, Error>, Elapsed>) -> Result<Ending, Error> {
        let ending = ending.map_err(|_| Error::Timeout("command"))??;
        self.broken = false;
        Ok(ending)
    }

    /// Responses of the last command that were left out.
    pub(crate) fn skipped(&mut self) -> u32 {
        self.channel.skipped()
    }

    pub(crate) fn into_parts(self) -> (Channel, Session) {
        (self.channel, self.session)
    }
}
