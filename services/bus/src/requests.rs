//! Requests to the owner of an account.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::{Message, Subject, Subscriber};
use futures_util::StreamExt as _;
use mailbell_core::{
    ids::{AccountId, Partition},
    schema::WriteVersion,
};
use mailbell_proto::bus::v1::{OwnerError, OwnerRequest, OwnerResponse, owner_response::Response};
use prost::Message as _;
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Bus, BusError, names::Names, wire::Wire};

/// How often an owner says that it works on a request, as a part of the patience of a call.
const SIGNS: u32 = 3;
/// What may wait for an asker to read it: signs for [`LONGEST`], and the answer.
const MOST_ANSWERS: usize = 256;

/// No request is worked on for longer than this, whatever its asker says.
const LONGEST: Duration = Duration::from_secs(300);

/// Why an owner did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody owns the account's partition now. Try again.
    #[error("nobody owns the account now")]
    NoOwner,
    /// No answer in time.
    #[error("the account's owner does not answer")]
    Timeout,
    /// Not connected to NATS.
    #[error("not connected to NATS")]
    Disconnected,
    /// This role may not ask.
    #[error("not allowed to ask")]
    Denied,
    /// The request is larger than the server takes.
    #[error("the request is too large")]
    TooLarge,
    /// The answer cannot be read.
    #[error("the answer cannot be read")]
    Garbled,
    /// The bus was closed.
    #[error("the bus is closed")]
    Closed,
}

/// How requests are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOptions {
    /// How many run at once. Default 64.
    pub concurrency: usize,
    /// How many more may wait; beyond that the answer is `busy`. Default 256.
    pub queue: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            concurrency: 64,
            queue: 256,
        }
    }
}

/// An answer that says no, as [`Bus::serve`] itself gives it and handlers may.
#[must_use]
pub fn refuse(code: &str, sentence: &str, retry: bool) -> OwnerResponse {
    let error = OwnerError {
        code: code.to_owned(),
        sentence: sentence.to_owned(),
        retry,
    };
    OwnerResponse {
        response: Some(Response::Error(error)),
    }
}

/// Serves requests for the partitions it is told to own. Ends when dropped; what has begun is finished.
#[derive(Debug)]
pub struct OwnerService {
    /// A service is a handle to the bus too.
    _bus: Bus,
    shared: Arc<Shared>,
    serving: Mutex<HashMap<Partition, Serving>>,
    _end: DropGuard,
    end: CancellationToken,
}

/// One partition that is served.
#[derive(Debug)]
struct Serving {
    stop: CancellationToken,
    stopped: oneshot::Receiver<()>,
}

type Handler = dyn Fn(AccountId, OwnerRequest) -> Pin<Box<dyn Future<Output = OwnerResponse> + Send>>
    + Send
    + Sync;

struct Shared {
    wire: Arc<Wire>,
    names: Names,
    handler: Box<Handler>,
    /// Requests that may run or wait.
    places: Arc<Semaphore>,
    /// Requests that may run.
    running: Arc<Semaphore>,
    /// Where those that run or wait are to be answered. The same one comes again if its asker has heard nothing for a while.
    under_way: Mutex<HashSet<String>>,
}

/// A request that is worked on, or waits.
struct UnderWay {
    shared: Arc<Shared>,
    reply: String,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.shared.under_way().remove(&self.reply);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnerService")
            .field("free_places", &self.places.available_permits())
            .finish_non_exhaustive()
    }
}

fn ask_error(error: BusError) -> AskError {
    match error {
        BusError::NoStream(_) => AskError::NoOwner,
        BusError::Disconnected => AskError::Disconnected,
        BusError::Denied(_) => AskError::Denied,
        BusError::TooLarge(_) => AskError::TooLarge,
        BusError::Closed => AskError::Closed,
        _ => AskError::Timeout,
    }
}

impl Bus {
    /// Asks the owner of an account; the request's `account`, `timeout_ms` and `signs` are filled in here. An owner that dies,
    /// hangs or loses NATS in the middle falls silent, and whoever owns the account then is asked, as long as there is time: by
    /// where it is to be answered an owner knows a request that it works on already. Where owners of the release before may live,
    /// which give no signs, the first one is waited for.
    ///
    /// # Errors
    /// [`AskError`]. An answer of the owner that says no is no error here but an [`OwnerResponse`] with an error in it.
    pub async fn ask(
        &self,
        account: &AccountId,
        request: OwnerRequest,
        timeout: Duration,
    ) -> Result<OwnerResponse, AskError> {
        let subject = self.names().request_subject(account.partition());
        let deadline = Instant::now() + timeout;
        let mut request = OwnerRequest {
            account: account.to_string(),
            signs: self.write_version().has_signs(),
            ..request
        };
        let silence = request.signs.then(|| self.wire().patience());
        let mut payload = || {
            let left = deadline.saturating_duration_since(Instant::now());
            request.timeout_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            request.encode_to_vec().into()
        };
        let wire = self.wire();
        let answers = wire.call_many(&subject, payload(), MOST_ANSWERS).await;
        let mut answers = answers.map_err(ask_error)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let within = silence.unwrap_or(left).min(left);
            let answer = match answers.next(within).await {
                Ok(answer) => answer,
                Err(BusError::Timeout(_)) if within < left => {
                    answers.ask_again(payload()).await.map_err(ask_error)?;
                    continue;
                }
                Err(error) => return Err(ask_error(error)),
            };
            let response = OwnerResponse::decode(answer.payload).map_err(|_| AskError::Garbled)?;
            // One that is empty is a sign.
            if response.response.is_some() {
                return Ok(response);
            }
        }
    }

    /// Serves requests for partitions, of which there are none at first. The handler's future is dropped when the asker has
    /// given up.
    #[must_use]
    pub fn serve<H, F>(&self, options: ServeOptions, handler: H) -> OwnerService
    where
        H: Fn(AccountId, OwnerRequest) -> F + Send + Sync + 'static,
        F: Future<Output = OwnerResponse> + Send + 'static,
    {
        let running = options.concurrency.max(1);
        let end = self.wire().closed().child_token();
        OwnerService {
            _bus: self.clone(),
            shared: Arc::new(Shared {
                wire: Arc::clone(&self.inner.wire),
                names: self.names().clone(),
                handler: Box::new(move |account, request| Box::pin(handler(account, request))),
                places: Arc::new(Semaphore::new(running + options.queue)),
                running: Arc::new(Semaphore::new(running)),
                under_way: Mutex::default(),
            }),
            serving: Mutex::default(),
            _end: end.clone().drop_guard(),
            end,
        }
    }
}

impl OwnerService {
    fn serving(&self) -> MutexGuard<'_, HashMap<Partition, Serving>> {
        // Nothing that holds the lock can leave it half changed.
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to answer for these partitions. Others may answer only once [`OwnerService::disown`] was called here.
    ///
    /// # Errors
    /// Why NATS did not take the subscriptions.
    pub async fn own(&self, partitions: &[Partition]) -> Result<(), BusError> {
        for &partition in partitions {
            if self.serving().contains_key(&partition) {
                continue;
            }
            let requests = self
                .shared
                .wire
                .subscribe(self.shared.names.request_subject(partition))
                .await?;
            let stop = self.end.child_token();
            let (done, stopped) = oneshot::channel();
            self.serving().insert(
                partition,
                Serving {
                    stop: stop.clone(),
                    stopped,
                },
            );
            tokio::spawn(serve(
                Arc::clone(&self.shared),
                partition,
                requests,
                stop,
                done,
            ));
        }
        // The server works in order: once it answers this, it has the subscriptions.
        self.shared.wire.round_trip().await
    }

    /// Takes no more requests for these partitions; what has begun is finished. Bounded: where NATS is away it ends at once.
    pub async fn disown(&self, partitions: &[Partition]) {
        let stopping: Vec<Serving> = {
            let mut serving = self.serving();
            partitions
                .iter()
                .filter_map(|partition| serving.remove(partition))
                .collect()
        };
        for serving in &stopping {
            serving.stop.cancel();
        }
        for serving in stopping {
            let _ = serving.stopped.await;
        }
    }
}

/// The task of one partition.
async fn serve(
    shared: Arc<Shared>,
    partition: Partition,
    mut requests: Subscriber,
    stop: CancellationToken,
    done: oneshot::Sender<()>,
) {
    loop {
        tokio::select! {
            // In this order, so that a flood cannot put off the end.
            biased;
            () = stop.cancelled() => break,
            message = requests.next() => match message {
                Some(message) => shared.on_request(partition, message).await,
                None => break,
            },
        }
    }
    tokio::select! {
        biased;
        // First: the client reads no command while it is not connected, so that draining would not even begin.
        () = shared.wire.until_down() => {}
        _ = tokio::time::timeout(shared.wire.patience(), shared.drain(&mut requests)) => {}
    }
    let _ = done.send(());
}

impl Shared {
    fn under_way(&self) -> MutexGuard<'_, HashSet<String>> {
        // As above.
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it is worked on already.
    fn take_up(self: &Arc<Self>, reply: &Subject) -> Option<UnderWay> {
        let reply = reply.to_string();
        let is_new = self.under_way().insert(reply.clone());
        is_new.then(|| UnderWay {
            shared: Arc::clone(self),
            reply,
        })
    }

    /// Not `unsubscribe`, which would drop what is on its way. What had come is told so at once, instead of being waited for.
    async fn drain(&self, requests: &mut Subscriber) {
        if requests.drain().await.is_err() {
            return;
        }
        while let Some(message) = requests.next().await {
            let reply = message.reply.as_ref();
            if reply.is_some_and(|reply| self.under_way().contains(reply.as_str())) {
                // It has begun, so it is finished.
                continue;
            }
            self.answer(
                &message,
                &refuse("not-owner", "The account has another owner now.", true),
            )
            .await;
        }
    }

    async fn answer(&self, message: &Message, response: &OwnerResponse) {
        let Some(reply) = &message.reply else { return };
        let sent = self
            .wire
            .publish(reply, None, response.encode_to_vec().into())
            .await;
        if let Err(BusError::TooLarge(_)) = sent {
            let refusal = refuse(
                "too-large",
                "The answer is larger than NATS takes. Ask for less.",
                false,
            );
            let _ = self
                .wire
                .publish(reply, None, refusal.encode_to_vec().into())
                .await;
        }
    }

    /// Says again and again that the request is worked on, if its asker takes that. Never ends.
    async fn give_signs(&self, message: &Message, signs: bool) -> std::convert::Infallible {
        if !signs {
            return std::future::pending().await;
        }
        let mut tick = tokio::time::interval(self.wire.patience() / SIGNS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.answer(message, &OwnerResponse::default()).await;
        }
    }

    async fn on_request(self: &Arc<Self>, partition: Partition, message: Message) {
        let metrics = self.wire.metrics();
        let received = Instant::now();
        let Ok(request) = OwnerRequest::decode(message.payload.clone()) else {
            metrics.owner_request("unreadable");
            self.answer(
                &message,
                &refuse("unreadable", "The request cannot be read.", false),
            )
            .await;
            return;
        };
        let account = request
            .account
            .parse::<AccountId>()
            .ok()
            .filter(|account| account.partition() == partition);
        let Some(account) = account else {
            metrics.owner_request("unreadable");
            self.answer(
                &message,
                &refuse(
                    "no-such-account",
                    "The request names no account of this partition.",
                    false,
                ),
            )
            .await;
            return;
        };
        let Some(reply) = message.reply.clone() else {
            metrics.owner_request("unreadable");
            return;
        };
        let Some(under_way) = self.take_up(&reply) else {
            metrics.owner_request("repeated");
            return;
        };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            metrics.owner_request("busy");
            self.answer(
                &message,
                &refuse("busy", "The account's owner has too many requests.", true),
            )
            .await;
            return;
        };
        let deadline = received + Duration::from_millis(request.timeout_ms.into()).min(LONGEST);
        let this = Arc::clone(self);
        let signs = request.signs && WriteVersion::NEWEST.has_signs();
        metrics.owner_requests_running.inc();
        tokio::spawn(async move {
            let work = async {
                let _running = this.running.acquire().await.ok()?;
                let response = (this.handler)(account, request).await;
                this.answer(&message, &response).await;
                Some(())
            };
            let outcome = tokio::select! {
                // Past its time nobody waits for the answer.
                outcome = tokio::time::timeout_at(deadline, work) => outcome,
                never = this.give_signs(&message, signs) => match never {},
            };
            this.wire.metrics().owner_requests_running.dec();
            this.wire
                .metrics()
                .owner_request(if outcome.is_ok() { "answered" } else { "late" });
            drop((place, under_way));
        });
    }
}
