//! What every call has at hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::HeaderMap;
use mailbell_bus::Link;
use mailbell_core::delivery::LogState;
use mailbell_core::ids::{Group, PerGroup};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    Options,
    authority::{Authority, Credential, Refusal},
    clock::{millis, now_s},
    dispatcher::Command,
    metrics::{Metrics, StatusLabel, Why},
    source::Source,
    tails::Tails,
};

/// The header by which gRPC clients are told how long to wait; see gRFC A6.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Arc<Options>,
    pub(crate) metrics: Metrics,
    pub(crate) source: Arc<dyn Source>,
    pub(crate) link: watch::Receiver<Link>,
    pub(crate) tails: Arc<Tails>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) listings: Semaphore,
    draining: AtomicBool,
}

/// Try again, and not before this time.
pub(crate) fn unavailable(sentence: &'static str, after: Duration) -> Status {
    let mut status = Status::unavailable(sentence);
    let wait = MetadataValue::from(millis(after));
    status.metadata_mut().insert(PUSHBACK, wait);
    status
}

/// A gRPC status as a label: a closed set.
pub(crate) const fn status_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::InvalidArgument => "invalid-argument",
        Code::NotFound => "not-found",
        Code::PermissionDenied => "permission-denied",
        Code::ResourceExhausted => "resource-exhausted",
        Code::Aborted => "aborted",
        Code::Unimplemented => "unimplemented",
        Code::Unavailable => "unavailable",
        Code::Unauthenticated => "unauthenticated",
        Code::Internal => "internal",
        _ => "other",
    }
}

impl Shared {
    pub(crate) fn new(
        options: Arc<Options>,
        metrics: Metrics,
        source: Arc<dyn Source>,
        tails: Arc<Tails>,
        authority: Arc<Authority>,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        Self {
            listings: Semaphore::new(options.listings.min(Semaphore::MAX_PERMITS)),
            link: source.link(),
            options,
            metrics,
            source,
            tails,
            authority,
            commands,
            draining: AtomicBool::new(false),
        }
    }

    /// No call is served from now on.
    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether calls can be served now.
    pub(crate) fn check_serving(&self) -> Result<(), Status> {
        if self.draining.load(Ordering::Acquire) {
            return Err(draining());
        }
        match self.authority.missing() {
            Some(missing) => Err(unavailable(missing, Duration::from_secs(1))),
            None => Ok(()),
        }
    }

    /// Who calls, and what of that the installation lets them see.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Credential, Status> {
        let token = headers
            .get(http::header::AUTHORIZATION)
            .ok_or(Refusal::Missing)
            .and_then(|value| value.to_str().map_err(|_| Refusal::Malformed))
            .and_then(bearer);
        let mut credential = token
            .and_then(|token| self.authority.verify(token, now_s()))
            .map_err(|refusal| self.refuse(refusal))?;
        let grant = &mut credential.grant;
        grant.content = grant.content.min(self.options.most_content);
        Ok(credential)
    }

    /// Counts a token that is refused.
    pub(crate) fn refuse(&self, refusal: Refusal) -> Status {
        let why = refusal.word();
        let refused = &self.metrics.tokens_refused;
        refused.get_or_create(&Why { why }).inc();
        match refusal {
            Refusal::KeyNotYetKnown => unavailable(refusal.sentence(), Duration::from_secs(5)),
            _ => Status::unauthenticated(refusal.sentence()),
        }
    }

    /// Counts a call that is refused.
    pub(crate) fn count(&self, status: &Status) {
        let status = status_word(status.code());
        let refused = &self.metrics.refused;
        refused.get_or_create(&StatusLabel { status }).inc();
    }

    /// Asks the dispatcher.
    pub(crate) async fn command<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        // Waits while the dispatcher has much to do: a storm is served in its order.
        let sent = self.commands.send(command(reply)).await;
        sent.map_err(|_| draining())?;
        answer.await.map_err(|_| draining())
    }

    /// What the leaders say of these logs.
    pub(crate) async fn ask_leaders(
        &self,
        groups: &[Group],
        logs: &mut PerGroup<Option<LogState>>,
    ) -> Result<(), Status> {
        let answers =
            futures_util::future::join_all(groups.iter().map(|group| self.tails.now(*group)));
        for (group, answer) in groups.iter().zip(answers.await) {
            let away = |_| unavailable("the log does not answer", Duration::from_secs(2));
            logs[*group] = Some(answer.map_err(away)?);
        }
        Ok(())
    }
}

/// A call on a gateway that is about to end.
pub(crate) fn draining() -> Status {
    unavailable("this gateway ends: reconnect", Duration::ZERO)
}

/// A call that concerns a log which this gateway does not follow yet.
pub(crate) fn unjoined() -> Status {
    unavailable("the log is not joined yet", Duration::from_secs(1))
}

fn bearer(value: &str) -> Result<&str, Refusal> {
    let (scheme, token) = value.split_once(' ').ok_or(Refusal::Malformed)?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim())
        .filter(|token| !token.is_empty())
        .ok_or(Refusal::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bearer_is_taken() {
        assert_eq!(bearer("Bearer abc"), Ok("abc"));
        assert_eq!(bearer("bearer  abc "), Ok("abc"));
        for bad in ["", "abc", "Basic abc", "Bearer ", "Bearer"] {
            assert_eq!(bearer(bad), Err(Refusal::Malformed), "{bad:?}");
        }
    }

    #[test]
    fn unavailable_says_how_long_to_wait() {
        let status = unavailable("later", Duration::from_secs(2));
        assert_eq!(status.metadata().get(PUSHBACK).unwrap(), "2000");
    }
}
