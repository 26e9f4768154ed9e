//! Calls over one NATS connection: every wait is bounded, every answer finds the one who asked.
//!
//! Answers come to one wildcard inbox and are handed out here instead of by the client's own multiplexer, for three reasons: a
//! batch read has many answers to one question; whoever gives up is forgotten (the client keeps it for ever); and a denied
//! publish, which the server reports only as an event of the connection, finds the call that it belongs to.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, HeaderMap, Message, PublishErrorKind, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    BusError, BusOptions, Link, Metrics,
    permissions::inbox_prefix,
    reach::{Others, Reach},
};

/// How long a call that has failed may take the longer to leave a server.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// One answer, or why there will be none.
type Answer = Result<Message, Failure>;

/// Why a call that was sent has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Denied,
    Disconnected,
    Overrun,
}

enum Waiter {
    One(oneshot::Sender<Answer>),
    Many(mpsc::Sender<Answer>),
}

/// Everybody who waits for an answer.
#[derive(Default)]
pub(crate) struct Pending {
    waiting: Mutex<HashMap<u64, (String, Waiter)>>,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("waiting", &self.lock().len())
            .finish()
    }
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (String, Waiter)>> {
        // Nothing that holds the lock can leave the map half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is gone: no answer to anything asked on it will come.
    pub(crate) fn fail_all(&self) {
        let all = std::mem::take(&mut *self.lock());
        for (_subject, waiter) in all.into_values() {
            waiter.send_last(Err(Failure::Disconnected));
        }
    }

    /// The server refused to take something published to this subject.
    pub(crate) fn deny(&self, subject: &str) {
        let mut waiting = self.lock();
        let denied: Vec<u64> = waiting
            .iter()
            .filter(|(_, (asked, _))| asked == subject)
            .map(|(token, _)| *token)
            .collect();
        for token in denied {
            if let Some((_subject, waiter)) = waiting.remove(&token) {
                waiter.send_last(Err(Failure::Denied));
            }
        }
    }

    fn answer(&self, token: u64, message: Message) {
        let mut waiting = self.lock();
        match waiting.remove(&token) {
            Some((_, Waiter::One(tx))) => {
                let _ = tx.send(Ok(message));
            }
            Some((subject, Waiter::Many(tx))) => match tx.try_send(Ok(message)) {
                Ok(()) => {
                    waiting.insert(token, (subject, Waiter::Many(tx)));
                }
                // More answers than were asked for, or nobody reads them: the reader sees the end of the channel.
                Err(_full_or_closed) => tracing::debug!("answers overran their reader"),
            },
            // Who asked has given up.
            None => {}
        }
    }
}

impl Waiter {
    fn send_last(self, answer: Answer) {
        match self {
            Self::One(tx) => {
                let _ = tx.send(answer);
            }
            Self::Many(tx) => {
                let _ = tx.try_send(answer);
            }
        }
    }
}

/// Forgets a call when whoever made it is done, in whatever way.
struct Ticket<'a> {
    wire: &'a Wire,
    token: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.wire.pending.lock().remove(&self.token);
        self.wire.metrics.pending.dec();
    }
}

/// Several answers to one call.
pub(crate) struct Answers<'a> {
    rx: mpsc::Receiver<Answer>,
    subject: String,
    reply: String,
    /// When it was asked, or last answered.
    asked: Instant,
    ticket: Ticket<'a>,
}

impl Answers<'_> {
    /// Asks whoever listens there now. Who was asked before knows it by where it is to be answered, and may answer still.
    pub(crate) async fn ask_again(&mut self, payload: Bytes) -> Result<(), BusError> {
        let wire = self.ticket.wire;
        wire.check_up()?;
        self.asked = Instant::now();
        let deadline = self.asked + wire.patience;
        let reply = Some(self.reply.clone());
        wire.send(&self.subject, reply, None, payload, deadline)
            .await
    }

    /// The next answer, waited for at most `within`.
    pub(crate) async fn next(&mut self, within: Duration) -> Result<Message, BusError> {
        let wire = self.ticket.wire;
        let answer = match tokio::time::timeout(within, self.rx.recv()).await {
            Err(_elapsed) => Err(wire.failed(BusError::Timeout(within))),
            Ok(None) => wire.judge(Err(Failure::Overrun), &self.subject),
            Ok(Some(answer)) => wire.judge(answer, &self.subject),
        };
        wire.note(&self.subject, self.asked, &answer).await;
        self.asked = Instant::now();
        answer
    }
}

/// See [`Wire::failures`].
pub(crate) struct Failures<'a> {
    rx: oneshot::Receiver<Answer>,
    subject: String,
    ticket: Ticket<'a>,
}

impl Failures<'_> {
    /// Waits for one. To be asked again only if that was cancelled.
    pub(crate) async fn next(&mut self) -> BusError {
        let said = (&mut self.rx).await;
        let said = said.unwrap_or(Err(Failure::Disconnected));
        match self.ticket.wire.judge(said, &self.subject) {
            Err(error) => error,
            // Nobody is told where.
            Ok(_) => BusError::Garbled("an answer that was not asked for"),
        }
    }
}

/// A connection and what waits on it.
#[derive(Debug)]
pub(crate) struct Wire {
    client: Client,
    inbox: String,
    next: AtomicU64,
    pending: Arc<Pending>,
    link: watch::Receiver<Link>,
    closed: CancellationToken,
    /// How long an answer is waited for where nothing else is said.
    patience: Duration,
    metrics: Metrics,
    reach: Reach,
    others: Others,
}

impl Wire {
    /// Subscribes to the inbox and hands out answers until `closed`.
    pub(crate) async fn start(
        client: Client,
        options: &BusOptions,
        others: Others,
        pending: Arc<Pending>,
        link: watch::Receiver<Link>,
        closed: CancellationToken,
    ) -> Result<Self, BusError> {
        let prefix = inbox_prefix(options.role, &options.installation);
        let inbox = format!("{prefix}.{:016x}", rand::random::<u64>());
        let answers = client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|_| BusError::Closed)?;
        tokio::spawn(hand_out(answers, Arc::clone(&pending), closed.clone()));
        Ok(Self {
            client,
            inbox,
            next: AtomicU64::new(0),
            pending,
            link,
            closed,
            patience: options.timing.ack_timeout,
            metrics: options.metrics.clone(),
            reach: Reach::new(options.timing.member_dead, rand::random_range(1.0..1.5)),
            others,
        })
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub(crate) fn server_version(&self) -> String {
        self.client.server_info().version
    }

    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    pub(crate) fn is_up(&self) -> bool {
        self.link.borrow().is_up()
            && self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// A subject of our own that nobody else can guess and everybody of this role may use.
    pub(crate) fn new_subject(&self) -> String {
        // Beside the inbox of answers, which has one token less.
        format!(
            "{}.{}.d",
            self.inbox,
            self.next.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Counts a failure on its way out.
    pub(crate) fn failed(&self, error: BusError) -> BusError {
        self.metrics.call_failed(error.code());
        error
    }

    fn check_up(&self) -> Result<(), BusError> {
        if self.closed.is_cancelled() {
            Err(BusError::Closed)
        } else if self.is_up() {
            Ok(())
        } else {
            // What is given to the client now would be sent after the reconnect, when its caller has long given up.
            Err(self.failed(BusError::Disconnected))
        }
    }

    fn register(&self, subject: &str, waiter: Waiter) -> (Ticket<'_>, String) {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        self.pending
            .lock()
            .insert(token, (subject.to_owned(), waiter));
        self.metrics.pending.inc();
        (
            Ticket { wire: self, token },
            format!("{}.{token}", self.inbox),
        )
    }

    async fn send(
        &self,
        subject: &str,
        reply: Option<String>,
        headers: Option<HeaderMap>,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<(), BusError> {
        let subject_owned = subject.to_owned();
        let sent = match (reply, headers) {
            (Some(reply), Some(headers)) => {
                timeout_at(
                    deadline,
                    self.client.publish_with_reply_and_headers(
                        subject_owned,
                        reply,
                        headers,
                        payload,
                    ),
                )
                .await
            }
            (Some(reply), None) => {
                timeout_at(
                    deadline,
                    self.client
                        .publish_with_reply(subject_owned, reply, payload),
                )
                .await
            }
            (None, Some(headers)) => {
                timeout_at(
                    deadline,
                    self.client
                        .publish_with_headers(subject_owned, headers, payload),
                )
                .await
            }
            (None, None) => timeout_at(deadline, self.client.publish(subject_owned, payload)).await,
        };
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.kind() == PublishErrorKind::MaxPayloadExceeded => Err(self
                .failed(BusError::TooLarge(format!(
                    "the server takes {} bytes",
                    self.client.max_payload()
                )))),
            Ok(Err(error)) if error.kind() == PublishErrorKind::InvalidSubject => {
                Err(self.failed(BusError::Options(format!("{subject:?} is no subject"))))
            }
            Ok(Err(_gone)) => Err(BusError::Closed),
            Err(_elapsed) => Err(self.failed(BusError::Busy)),
        }
    }

    fn judge(&self, answer: Answer, subject: &str) -> Result<Message, BusError> {
        let error = match answer {
            Ok(message) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                BusError::NoStream(subject.to_owned())
            }
            Ok(message) => return Ok(message),
            Err(Failure::Denied) => BusError::Denied(subject.to_owned()),
            Err(Failure::Disconnected) => BusError::Disconnected,
            Err(Failure::Overrun) => BusError::Garbled("more answers than were asked for"),
        };
        Err(self.failed(error))
    }

    /// Asks and waits for one answer. "Nobody listens there" is [`BusError::NoStream`] with the subject.
    pub(crate) async fn call(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Message, BusError> {
        self.check_up()?;
        let asked = Instant::now();
        let deadline = asked + patience;
        let (tx, rx) = oneshot::channel();
        let (_ticket, reply) = self.register(subject, Waiter::One(tx));
        self.send(subject, Some(reply), headers, payload, deadline)
            .await?;
        let answer = match timeout_at(deadline, rx).await {
            Ok(answer) => self.judge(answer.unwrap_or(Err(Failure::Disconnected)), subject),
            Err(_elapsed) => Err(self.failed(BusError::Timeout(patience))),
        };
        // What may take longer than others says nothing of the way.
        if patience <= self.patience {
            self.note(subject, asked, &answer).await;
        }
        answer
    }

    /// Keeps the books of what is answered over this connection.
    async fn note(&self, subject: &str, asked: Instant, answer: &Result<Message, BusError>) {
        match answer {
            // Nobody listens where this server has a way to.
            Err(BusError::Timeout(_) | BusError::NoStream(_)) => {
                if self.reach.unanswered(subject, asked, Instant::now()) {
                    self.reconnect(subject).await;
                }
            }
            Ok(_) => self.reach.answered(subject),
            Err(_) => {}
        }
    }

    /// Little is made anew when another server is gone to.
    pub(crate) fn is_light(&self) {
        self.reach.is_light();
    }

    /// Everything that is asked over this connection is answered.
    pub(crate) fn all_is_well(&self) {
        self.reach.all_is_well();
    }

    /// Tries another server, unless there is none or the last time is too near. Returns when this one is left.
    pub(crate) async fn reconnect(&self, why: &str) {
        let others = self.others.count(&self.client);
        if others == 0 || !self.is_up() || !self.reach.may_move(Instant::now(), others) {
            return;
        }
        tracing::warn!(
            why,
            "this NATS server does not answer, or has no way to the one that would: trying another"
        );
        self.metrics.detours.inc();
        let left = async {
            let _ = self.client.force_reconnect().await;
            self.until_down().await;
        };
        // One that is stuck is left when its pings are not answered.
        let _ = tokio::time::timeout(LEAVE_LIMIT, left).await;
    }

    /// Asks and waits for up to `most` answers.
    pub(crate) async fn call_many(
        &self,
        subject: &str,
        payload: Bytes,
        most: usize,
    ) -> Result<Answers<'_>, BusError> {
        let (tx, rx) = mpsc::channel(most.max(1));
        let (ticket, reply) = self.register(subject, Waiter::Many(tx));
        let mut answers = Answers {
            rx,
            subject: subject.to_owned(),
            reply,
            asked: Instant::now(),
            ticket,
        };
        answers.ask_again(payload).await?;
        Ok(answers)
    }

    /// Publishes without waiting for anything but room in the client's queue.
    pub(crate) async fn publish(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.check_up()?;
        self.send(
            subject,
            None,
            headers,
            payload,
            Instant::now() + self.patience,
        )
        .await
    }

    /// The same, for answers that come to a subscription.
    pub(crate) async fn publish_with_reply(
        &self,
        subject: &str,
        reply: &str,
        payload: Bytes,
    ) -> Result<(), BusError> {
        self.check_up()?;
        let deadline = Instant::now() + self.patience;
        self.send(subject, Some(reply.to_owned()), None, payload, deadline)
            .await
    }

    /// Hears why nothing will come of what is published to a subject from now on, for answers that come to a subscription.
    pub(crate) fn failures(&self, subject: &str) -> Failures<'_> {
        let (tx, rx) = oneshot::channel();
        let (ticket, _reply) = self.register(subject, Waiter::One(tx));
        Failures {
            rx,
            subject: subject.to_owned(),
            ticket,
        }
    }

    /// Subscribes. The subscription outlives reconnects.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, BusError> {
        match tokio::time::timeout(self.patience, self.client.subscribe(subject)).await {
            Ok(Ok(subscriber)) => Ok(subscriber),
            Ok(Err(_)) => Err(BusError::Closed),
            Err(_elapsed) => Err(self.failed(BusError::Busy)),
        }
    }

    /// Waits until the server has worked off all that was sent before: it does so in order, and this comes back from it.
    pub(crate) async fn round_trip(&self) -> Result<(), BusError> {
        self.check_up()?;
        let deadline = Instant::now() + self.patience;
        let subject = format!("{}.echo", self.inbox);
        let mut echo = self.subscribe(subject.clone()).await?;
        self.send(&subject, None, None, Bytes::new(), deadline)
            .await?;
        match timeout_at(deadline, echo.next()).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(BusError::Closed),
            Err(_elapsed) => Err(self.failed(BusError::Timeout(self.patience))),
        }
    }

    /// Waits until the connection is up. Returns false once the bus is closed.
    pub(crate) async fn wait_up(&self) -> bool {
        let mut link = self.link.clone();
        tokio::select! {
            biased;
            () = self.closed.cancelled() => false,
            up = link.wait_for(Link::is_up) => up.is_ok(),
        }
    }

    /// Waits until the connection is down, or the bus is closed.
    pub(crate) async fn until_down(&self) {
        let mut link = self.link.clone();
        tokio::select! {
            biased;
            () = self.closed.cancelled() => {}
            _ = link.wait_for(|link| !link.is_up()) => {}
        }
    }

    /// Sends what is queued, at most for this long.
    pub(crate) async fn flush(&self, within: Duration) {
        let _ = tokio::time::timeout(within, self.client.flush()).await;
    }
}

async fn hand_out(mut answers: Subscriber, pending: Arc<Pending>, closed: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = closed.cancelled() => break,
            message = answers.next() => {
                let Some(message) = message else { break };
                let token = message.subject.rsplit('.').next().and_then(|token| token.parse().ok());
                if let Some(token) = token {
                    pending.answer(token, message);
                }
            }
        }
    }
    pending.fail_all();
}
