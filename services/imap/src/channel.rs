//! One command at a time over async-imap's `Client`, of which only `read_response` and `into_inner` are used.

use std::sync::atomic::{AtomicU32, Ordering};

use async_imap::Client;
use imap_proto::{Response, Status};
use tokio::io::AsyncWriteExt as _;

use crate::command::Command;
use crate::error::Error;
use crate::guard::{Guard, GuardError, Limits};
use crate::transport::Stream;

/// How a command ended. The text of a NO stays within this crate, where it is compared with known ones.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) ok: bool,
    pub(crate) bad: bool,
    /// Code and text as sent, printable ASCII only.
    pub(crate) text: String,
}

impl Ending {
    /// The response code in upper case, without its arguments.
    pub(crate) fn code(&self) -> String {
        code_of(&self.text)
    }
}

/// The response code at the begin of a status text, in upper case.
pub(crate) fn code_of(text: &str) -> String {
    let code = text
        .strip_prefix('[')
        .and_then(|rest| rest.split([']', ' ']).next());
    code.unwrap_or_default().to_ascii_uppercase()
}

/// The stream while commands run.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Taken out only to renew it.
    client: Option<Client<Guard>>,
    tag: u32,
}

/// Tags differ between the connections of a process, which helps a reader of a protocol log.
static TAGS: AtomicU32 = AtomicU32::new(0);

impl Channel {
    /// A channel over a stream from which `inbound` was read already.
    pub(crate) fn new(stream: Stream, inbound: Vec<u8>, tag: Option<u32>) -> Self {
        let tag = tag.unwrap_or_else(|| (TAGS.fetch_add(1, Ordering::Relaxed) % 1000) * 1_000_000);
        Self {
            client: Some(Client::new(Guard::new(stream, inbound))),
            tag,
        }
    }

    fn client(&mut self) -> Result<&mut Client<Guard>, Error> {
        self.client
            .as_mut()
            .ok_or(Error::Disconnected { bye: false })
    }

    pub(crate) fn guard(&mut self) -> Result<&mut Guard, Error> {
        Ok(self.client()?.get_mut())
    }

    /// Responses of the running command that were left out.
    pub(crate) fn skipped(&mut self) -> u32 {
        self.guard().map_or(0, |guard| guard.skipped())
    }

    /// The bare stream, what was read of it and not used, and the tag counter; `None` if there is no going on with it.
    pub(crate) fn into_parts(self) -> Option<(Stream, Vec<u8>, u32)> {
        let (stream, rest) = self.client?.into_inner().into_parts()?;
        Some((stream, rest, self.tag))
    }

    /// Makes the tag of a new command and sets its limits.
    pub(crate) fn begin(&mut self, limits: Limits) -> Result<String, Error> {
        self.tag = self.tag.wrapping_add(1);
        let tag = format!("M{}", self.tag);
        self.guard()?.begin_command(limits);
        Ok(tag)
    }

    /// Writes bytes and sees that they leave.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let guard = self.guard()?;
        guard
            .write_all(bytes)
            .await
            .map_err(|error| Error::from_io(&error))?;
        guard.flush().await.map_err(|error| Error::from_io(&error))
    }

    /// Gives the next response to `take`. Those that can't be read are skipped.
    ///
    /// Not safe to cancel: who drops this future has to drop the channel.
    pub(crate) async fn read<T>(
        &mut self,
        take: impl FnOnce(&Response<'_>) -> T,
    ) -> Result<T, Error> {
        self.read_or_skip(true, take).await
    }

    /// As [`Channel::read`], but the first response has to be good: what sends anything else isn't a mail server.
    pub(crate) async fn read_first<T>(
        &mut self,
        take: impl FnOnce(&Response<'_>) -> T,
    ) -> Result<T, Error> {
        self.read_or_skip(false, take).await
    }

    async fn read_or_skip<T>(
        &mut self,
        skip: bool,
        take: impl FnOnce(&Response<'_>) -> T,
    ) -> Result<T, Error> {
        loop {
            let client = self.client()?;
            client.get_mut().permit();
            // The error of a failed parse has the mail in it: it goes no further than this.
            match client.read_response().await {
                Ok(Some(response)) => return Ok(take(response.parsed())),
                Ok(None) => return Err(Error::Disconnected { bye: false }),
                Err(error) => {
                    let guard = error
                        .get_ref()
                        .and_then(|inner| inner.downcast_ref::<GuardError>());
                    match guard {
                        None | Some(GuardError::Unparsed) => {}
                        Some(limit) => return Err(Error::LimitExceeded(*limit)),
                    }
                    if self.guard()?.has_failed() {
                        return Err(Error::Disconnected { bye: false });
                    }
                    if !skip {
                        return Err(Error::Protocol("a response that isn't one"));
                    }
                }
            }
            // `Client` reads no more after an error; it held nothing but the bad response.
            let mut guard = self
                .client
                .take()
                .ok_or(Error::Disconnected { bye: false })?
                .into_inner();
            guard.skip();
            self.client = Some(Client::new(guard));
            tracing::debug!("skipped a response that can't be parsed");
        }
    }

    /// Sends a command and reads up to its tagged answer; `on` sees every other response.
    pub(crate) async fn run(
        &mut self,
        command: Command,
        limits: Limits,
        on: &mut (dyn FnMut(&Response<'_>) + Send),
    ) -> Result<Ending, Error> {
        let tag = self.begin(limits)?;
        let mut first = true;
        let parts = command.into_parts();
        let count = parts.len();
        for (number, part) in parts.into_iter().enumerate() {
            if first {
                let mut bytes =
                    zeroize::Zeroizing::new(Vec::with_capacity(tag.len() + 1 + part.len()));
                bytes.extend_from_slice(tag.as_bytes());
                bytes.push(b' ');
                bytes.extend_from_slice(&part);
                self.send(&bytes).await?;
                first = false;
            } else {
                self.send(&part).await?;
            }
            if number + 1 < count
                && let Some(ending) = self.until(&tag, true, on).await?
            {
                // Refused before it was complete.
                return Ok(ending);
            }
        }
        self.until(&tag, false, on)
            .await?
            .ok_or(Error::Protocol("a continuation that nobody asked for"))
    }

    /// Reads up to the tagged answer, or up to a continuation, which is `None`.
    pub(crate) async fn until(
        &mut self,
        tag: &str,
        continuation: bool,
        on: &mut (dyn FnMut(&Response<'_>) + Send),
    ) -> Result<Option<Ending>, Error> {
        loop {
            let step = self
                .read(|response| match response {
                    Response::Continue(_) if continuation => Ok(Some(None)),
                    Response::Continue(_) => {
                        Err(Error::Protocol("a continuation that nobody asked for"))
                    }
                    Response::Done { tag: done, .. } if done.0 != tag => {
                        Err(Error::Protocol("the answer to another command"))
                    }
                    Response::Done {
                        status, outcome, ..
                    } => {
                        on(response);
                        let text = outcome
                            .information
                            .as_deref()
                            .unwrap_or_default()
                            .to_owned();
                        let ending = Ending {
                            ok: *status == Status::Ok,
                            bad: *status == Status::Bad,
                            text,
                        };
                        Ok(Some(Some(ending)))
                    }
                    // The answer to LOGOUT comes behind its BYE, and nobody waits for it; else this is the end.
                    Response::Data {
                        status: Status::Bye,
                        outcome,
                    } => Err(crate::login::bye(
                        outcome.information.as_deref().unwrap_or_default(),
                    )),
                    other => {
                        on(other);
                        Ok(None)
                    }
                })
                .await??;
            if let Some(end) = step {
                return Ok(end);
            }
        }
    }
}
