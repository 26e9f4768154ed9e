//! A connection that waits: the bare stream and a few words of state.
//!
//! No wake-up is lost between a look and the wait: whatever the server announces while a command runs makes the
//! connection dirty, and a dirty connection doesn't wait. What it announces behind its answer to IDLE is read here.

use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead as _, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};

use crate::channel::Channel;
use crate::connection::{Connection, Session};
use crate::error::Error;
use crate::guard::{Framer, GuardError, Limits};
use crate::login::bye;
use crate::transport::Stream;

/// Most bytes of one wait, besides what may be said of each message. A keep-alive line every second for half an hour is
/// far below.
const CHATTER_LIMIT: usize = 1 << 20;
/// Most bytes of literals in what is announced during a wait; honest servers send none.
const LITERAL_LIMIT: usize = 4 << 10;

/// Why a wait ended. The connection is good again in each case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Something was announced: look.
    Changed,
    /// [`Patience::until`] has come.
    Expired,
    /// The server said nothing for [`Patience::quiet`], but it still answers.
    Quiet,
    /// The caller's future is ready.
    Interrupted,
    /// The server has ended IDLE by itself.
    Ended,
}

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// When to end at the latest. Servers may log out who idles for 30 minutes, so before 29.
    pub until: Instant,
    /// How long the server may say nothing at all, keep-alive lines included, before the link is tried.
    pub quiet: Duration,
}

/// What the server is doing meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// It idles and tells what happens.
    Idle,
    /// Nothing: it has no IDLE.
    Still,
    /// Nothing: there was news already, so it was not asked to idle, or it has ended IDLE itself.
    Awake,
}

/// A connection between commands, of which only the stream is kept.
pub struct Parked {
    stream: Stream,
    session: Box<Session>,
    /// An unfinished line, without a buffer when there is none.
    framer: Framer,
    /// The tag of the IDLE command, which is the last tag that was used.
    tag: u32,
    mode: Mode,
    heard: usize,
}

impl Connection {
    /// Gets ready to wait, with IDLE if the server has it and [`crate::Settings::idle`] allows it.
    ///
    /// If something was announced since the last [`Connection::look`] began, the server isn't asked to idle, and
    /// [`Parked::wait`] returns at once with [`Wake::Changed`]. Without IDLE, and where the server refuses it, the
    /// connection waits all the same, so that a [`Connection::noop`] can follow ([`Parked::is_idling`] tells).
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn park(self) -> Result<Parked, Error> {
        let limit = self.session.timeouts.command;
        let (mut channel, mut session) = self.into_parts();
        let mode = if session.dirty {
            Mode::Awake
        } else if session.idles() {
            timeout(limit, idle(&mut channel, &mut session))
                .await
                .map_err(|_| Error::Timeout("begin of IDLE"))??
        } else {
            Mode::Still
        };
        let (stream, rest, tag) = channel
            .into_parts()
            .ok_or(Error::Disconnected { bye: false })?;
        let mut parked = Parked {
            stream,
            session: Box::new(session),
            framer: Framer::default(),
            tag,
            mode,
            heard: 0,
        };
        if parked.feed(&rest)? == Fed::Ended {
            parked.mode = Mode::Awake;
        }
        Ok(parked)
    }
}

/// Sends IDLE and waits for the server to say that it idles. What it announces before is news (Exchange Online does).
async fn idle(channel: &mut Channel, session: &mut Session) -> Result<Mode, Error> {
    let tag = channel.begin(Limits::SMALL.with_news(session.news_limit()))?;
    channel.send(format!("{tag} IDLE\r\n").as_bytes()).await?;
    match channel
        .until(&tag, true, &mut |response| session.observe(response))
        .await?
    {
        None => Ok(Mode::Idle),
        Some(_) => Ok(if session.dirty {
            Mode::Awake
        } else {
            Mode::Still
        }),
    }
}

/// What a chunk of bytes brought to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fed {
    Nothing,
    /// The IDLE command is over; what came behind is in the framer.
    Ended,
}

impl Parked {
    /// Whether the server idles and will tell what happens.
    #[must_use]
    pub fn is_idling(&self) -> bool {
        self.mode == Mode::Idle
    }

    /// Whether there is news already, so that a wait ends at once.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.session.dirty
    }

    /// Waits for news, for `interrupt`, or for as long as `patience` has it; then ends IDLE and gives the connection
    /// back. Ending takes [`crate::Timeouts::done`] at most, which is how a dead link is found.
    ///
    /// To end a wait early, make `interrupt` ready (`Notify::notified`, a oneshot receiver; [`std::future::pending`]
    /// for never): nothing is lost then. Dropping this future instead closes the connection.
    ///
    /// # Errors
    /// When the connection ends, or doesn't answer to the end of IDLE in time.
    pub async fn wait(
        mut self,
        patience: Patience,
        interrupt: impl Future<Output = ()>,
    ) -> Result<(Connection, Wake), Error> {
        self.heard = 0;
        let mut interrupt = std::pin::pin!(interrupt);
        let mut heard_at = Instant::now();
        let wake = loop {
            if self.session.dirty {
                break Wake::Changed;
            }
            if self.mode == Mode::Awake {
                break Wake::Ended;
            }
            let quiet = heard_at + patience.quiet;
            let end = patience.until.min(quiet);
            tokio::select! {
                // The caller first, so that a talkative server can't keep it waiting; what has come is read behind
                // DONE anyway. Then the server, so that news at the last moment is news. No arm holds bytes.
                biased;
                () = &mut interrupt => break Wake::Interrupted,
                fed = self.read() => {
                    heard_at = Instant::now();
                    if fed? == Fed::Ended {
                        self.mode = Mode::Awake;
                    }
                }
                () = sleep_until(end) => {
                    break if end == patience.until { Wake::Expired } else { Wake::Quiet };
                }
            }
        };
        let wake = self.finish(wake).await?;
        let rest = self.framer.take();
        Ok((
            Connection::new(
                Channel::new(self.stream, rest, Some(self.tag)),
                *self.session,
            ),
            wake,
        ))
    }

    /// Ends IDLE and logs out, within [`crate::Timeouts::logout`].
    pub async fn logout(self) {
        let limit = self.session.timeouts.logout;
        let patience = Patience {
            until: Instant::now(),
            quiet: limit,
        };
        if let Ok(Ok((connection, _))) = timeout(limit, self.wait(patience, pending())).await {
            connection.logout().await;
        }
    }

    /// Ends IDLE, if the server idles.
    async fn finish(&mut self, wake: Wake) -> Result<Wake, Error> {
        if self.mode == Mode::Idle {
            let limit = self.session.timeouts.done;
            timeout(limit, async {
                self.stream
                    .write_all(b"DONE\r\n")
                    .await
                    .map_err(|error| Error::from_io(&error))?;
                self.stream
                    .flush()
                    .await
                    .map_err(|error| Error::from_io(&error))?;
                while self.read().await? != Fed::Ended {}
                Ok::<_, Error>(())
            })
            .await
            .map_err(|_| Error::Timeout("end of IDLE"))??;
        }
        Ok(match wake {
            Wake::Expired | Wake::Quiet | Wake::Ended if self.session.dirty => Wake::Changed,
            wake => wake,
        })
    }

    /// Reads once. The buffer lives on the stack of one poll, not in the future.
    async fn read(&mut self) -> Result<Fed, Error> {
        poll_fn(|cx| {
            let mut chunk = [0; 2048];
            let mut buffer = ReadBuf::new(&mut chunk);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer));
            Poll::Ready(match read {
                Err(error) => Err(Error::from_io(&error)),
                Ok(()) if buffer.filled().is_empty() => Err(Error::Disconnected { bye: false }),
                Ok(()) => self.feed(buffer.filled()),
            })
        })
        .await
    }

    /// Takes what the server said.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<Fed, Error> {
        self.heard = self.heard.saturating_add(bytes.len());
        if self.heard > CHATTER_LIMIT.saturating_add(self.session.news_limit()) {
            return Err(Error::LimitExceeded(GuardError::Answer));
        }
        while !bytes.is_empty() {
            let (taken, complete) = self
                .framer
                .push(bytes, LITERAL_LIMIT, 0)
                .map_err(Error::LimitExceeded)?;
            bytes = bytes.get(taken..).unwrap_or_default();
            if complete {
                // Takes the buffer along: a connection that waits has none.
                let response = self.framer.take();
                if self.hear(&response)? == Fed::Ended {
                    // Not framed but kept: the next command reads it.
                    self.framer.hold(bytes);
                    return Ok(Fed::Ended);
                }
            }
        }
        Ok(Fed::Nothing)
    }

    /// Takes one response. Everything is a sign of life; few mean something.
    fn hear(&mut self, response: &[u8]) -> Result<Fed, Error> {
        let text = String::from_utf8_lossy(response);
        let mut words = text.split_ascii_whitespace();
        let (first, second, third) = (words.next(), words.next(), words.next());
        match (first, second.map(str::to_ascii_uppercase).as_deref()) {
            (Some("*"), Some("BYE")) => {
                return Err(bye(text.get(6..).unwrap_or_default().trim()));
            }
            (Some("*"), Some("VANISHED")) => self.session.on_vanished(),
            (Some("*"), Some(number)) => {
                if let Ok(number) = number.parse::<u32>() {
                    match third.map(str::to_ascii_uppercase).as_deref() {
                        Some("EXISTS") => self.session.on_exists(number),
                        Some("EXPUNGE") => self.session.on_expunge(),
                        Some("RECENT") if number > 0 => self.session.announced(),
                        _ => {}
                    }
                }
            }
            (Some(tag), Some("OK" | "NO" | "BAD"))
                if self.mode == Mode::Idle
                    && tag.strip_prefix('M') == Some(self.tag.to_string().as_str()) =>
            {
                return Ok(Fed::Ended);
            }
            _ => {}
        }
        Ok(Fed::Nothing)
    }
}

/// Says nothing of the mailbox.
impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parked")
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task can be spawned with each of them.
    fn is_send<T: Send>(_: impl FnOnce() -> T) {}

    #[test]
    fn futures_can_be_spawned() {
        use crate::{Endpoint, ListQuery, Login, Settings};
        fn all(endpoint: &Endpoint, login: &Login, settings: &Settings) {
            is_send(|| Connection::open(endpoint, login, settings));
            is_send(|| async {
                let mut connection = Connection::open(endpoint, login, settings).await?;
                connection.look("", 1, 1, true).await?;
                connection.fetch(&[1]).await?;
                connection.list("", ListQuery::Newest(1)).await?;
                connection.folders().await?;
                connection.existing(&[]).await?;
                let parked = connection.park().await?;
                let patience = Patience {
                    until: Instant::now(),
                    quiet: Duration::ZERO,
                };
                let (connection, _) = parked.wait(patience, pending()).await?;
                connection.logout().await;
                Ok::<_, Error>(())
            });
        }
        let _ = all;
    }

    #[test]
    fn is_small() {
        assert!(size_of::<Parked>() <= 96, "{}", size_of::<Parked>());
        assert!(size_of::<Session>() <= 256, "{}", size_of::<Session>());
    }
}
