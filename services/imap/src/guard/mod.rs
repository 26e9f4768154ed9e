//! The guard between the network and the parser.
//!
//! imap-proto 0.17 recurses without a bound, panics on some input and fails a whole connection on items it doesn't
//! know; async-imap 0.12 buffers up to 512 MiB and parses an unfinished response anew with each read. So neither sees
//! a byte that has not passed here:
//!
//! 1. [`Framer`] cuts the stream into complete responses and bounds their lines and literals *while* they arrive. A
//!    FETCH response beyond its bounds is discarded up to its end and counted, where the command allows for it.
//! 2. [`canonical::rewrite`] reads each complete response itself and writes it anew: only kinds and items that this
//!    crate uses, in one fixed form, with bounded nesting. What can't be read is left out and counted.
//! 3. [`Guard`] hands the result to async-imap's `Client`, one response per permit, so a response that the parser
//!    rejects nevertheless can be dropped alone: the parser never holds a byte of the next one.

mod canonical;
mod framer;
mod token;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) use framer::{Framer, LINE_LIMIT};

use crate::transport::Stream;

/// Which bound a server has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// A response has more bytes outside of literals than any honest one.
    #[error("a line too long")]
    Line,
    /// A literal is larger than what was asked for.
    #[error("a literal too large")]
    Literal,
    /// The whole answer to a command is larger than what was asked for.
    #[error("an answer too large")]
    Answer,
    /// A response whose end can't be told.
    #[error("a response without a certain end")]
    Framing,
    /// The parser wants more than the complete response. Not the server's fault: the response is skipped.
    #[error("a response that the parser can't read")]
    Unparsed,
}

impl From<GuardError> for io::Error {
    fn from(error: GuardError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What the answer to one command may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Most bytes of all literals in one response.
    pub(crate) literals: usize,
    /// Most bytes of the whole answer, without the responses that are discarded.
    pub(crate) answer: usize,
    /// Most bytes of all FETCH responses that are discarded since they are too long; with 0 the first ends the
    /// connection.
    pub(crate) discard: usize,
}

impl Limits {
    /// For commands whose answer is a few lines.
    pub(crate) const SMALL: Self = Self {
        literals: 4 << 10,
        answer: 256 << 10,
        discard: 0,
    };

    /// The same, where as much may come unasked along with the answer.
    pub(crate) fn with_news(self, bytes: usize) -> Self {
        Self {
            answer: self.answer.saturating_add(bytes),
            ..self
        }
    }
}

/// The stream under async-imap's `Client`. Writes pass through.
pub(crate) struct Guard {
    stream: Stream,
    limits: Limits,
    framer: Framer,
    /// Bytes that were read and not framed yet.
    inbound: Vec<u8>,
    /// How much of `inbound` is used up.
    used: usize,
    /// The rewritten response that the parser reads.
    out: Vec<u8>,
    out_used: usize,
    /// The parser may have one more response.
    permit: bool,
    /// Bytes of the current command's answer, in complete responses.
    answered: usize,
    /// Bytes of the current command's answer in responses that were discarded.
    discarded: usize,
    /// Responses of the current command that were left out since they could not be read.
    skipped: u32,
    /// The stream below has failed or ended: an error was not the parser's.
    failed: bool,
}

impl Guard {
    /// Guards a stream from which `inbound` was read already.
    pub(crate) fn new(stream: Stream, inbound: Vec<u8>) -> Self {
        Self {
            stream,
            limits: Limits::SMALL,
            framer: Framer::default(),
            inbound,
            used: 0,
            out: Vec::new(),
            out_used: 0,
            permit: false,
            answered: 0,
            discarded: 0,
            skipped: 0,
            failed: false,
        }
    }

    /// A new command is sent: its limits hold from here.
    pub(crate) fn begin_command(&mut self, limits: Limits) {
        self.limits = limits;
        self.answered = 0;
        self.discarded = 0;
        self.skipped = 0;
    }

    /// Lets the parser read one response.
    pub(crate) fn permit(&mut self) {
        self.permit = true;
        self.out.clear();
        self.out_used = 0;
    }

    /// Counts a response that the parser could not read.
    pub(crate) fn skip(&mut self) {
        self.skipped = self.skipped.saturating_add(1);
    }

    /// Responses of this command that were left out since they could not be read.
    pub(crate) fn skipped(&self) -> u32 {
        self.skipped
    }

    /// Whether the stream below has failed or ended.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether bytes have arrived that no response was made of yet.
    pub(crate) fn has_buffered(&self) -> bool {
        self.used < self.inbound.len() || !self.framer.is_empty()
    }

    /// The bare stream, and the bytes of it that were read and not used; `None` in the middle of a response that is
    /// discarded, since its rest can't be framed without its begin.
    pub(crate) fn into_parts(mut self) -> Option<(Stream, Vec<u8>)> {
        if self.framer.is_discarding() {
            return None;
        }
        let mut rest = self.framer.take();
        rest.extend_from_slice(self.inbound.get(self.used..).unwrap_or_default());
        Some((self.stream, rest))
    }

    /// Frames from what was read; says whether a response is ready in `out`.
    fn frame(&mut self) -> io::Result<bool> {
        while let Some(rest) = self
            .inbound
            .get(self.used..)
            .filter(|rest| !rest.is_empty())
        {
            let discard = self.limits.discard.saturating_sub(self.discarded);
            let (taken, complete) = self.framer.push(rest, self.limits.literals, discard)?;
            self.used += taken;
            let (mut answered, mut discarded) = (self.answered, self.discarded);
            if self.framer.is_discarding() {
                discarded = discarded.saturating_add(self.framer.size());
            } else {
                answered = answered.saturating_add(self.framer.size());
            }
            if answered > self.limits.answer || discarded > self.limits.discard {
                return Err(GuardError::Answer.into());
            }
            if !complete {
                continue;
            }
            (self.answered, self.discarded) = (answered, discarded);
            let fate = self
                .framer
                .response()
                .map_or(canonical::Fate::Unreadable, |response| {
                    canonical::rewrite(response, &mut self.out)
                });
            match fate {
                canonical::Fate::Keep => {
                    self.framer.clear();
                    return Ok(true);
                }
                canonical::Fate::Ignore => {}
                canonical::Fate::Unreadable => self.skip(),
            }
            self.framer.clear();
            self.out.clear();
        }
        self.inbound.clear();
        self.used = 0;
        Ok(false)
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(rest) = this
                .out
                .get(this.out_used..)
                .filter(|rest| !rest.is_empty())
            {
                let count = rest.len().min(buf.remaining());
                buf.put_slice(rest.get(..count).unwrap_or_default());
                this.out_used += count;
                return Poll::Ready(Ok(()));
            }
            if !this.permit {
                return Poll::Ready(Err(GuardError::Unparsed.into()));
            }
            if this.frame()? {
                this.permit = false;
                continue;
            }
            let mut chunk = [0; 4096];
            let mut read = ReadBuf::new(&mut chunk);
            let result = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read));
            this.failed |= result.is_err() || read.filled().is_empty();
            result?;
            if read.filled().is_empty() {
                // Async-imap tells an end within a response by itself, but only of what it was given.
                return if this.framer.is_empty() {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
                };
            }
            this.inbound.extend_from_slice(read.filled());
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Says nothing of what is buffered: that is mail.
impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
