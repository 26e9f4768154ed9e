//! Drives a session: connects, reads, lists, stores, and hands events to the app.

mod connection;
mod keeper;
mod listing;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mailbell_core::backoff::Backoff;
use mailbell_proto::push::v1::{ServerFrame, server_frame::Frame};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    client::Config,
    error::Error,
    event::{DisconnectReason, Handed},
    events::{Events, Taken},
    session::{ClientSession, Now, Output},
    status::{self, Verdict},
    token::{Token, TokenError},
};
use connection::{Connection, Occurrence, at};
use keeper::Keeper;

/// A source whose tokens are refused so often, without a good stream between, has none that are good.
const MOST_REFUSALS: u32 = 5;

type Queue = mpsc::Sender<Result<Handed, Error>>;

/// Starts a client in a task of its own.
pub(crate) fn start(config: Config) -> Events {
    let (to, from) = mpsc::channel(config.queue);
    let taken = Arc::new(Taken::default());
    let closing = CancellationToken::new();
    let explicit = config.explicit;
    let task = tokio::spawn(run(config, to, Arc::clone(&taken), closing.clone()));
    Events::new(from, taken, explicit, closing, task)
}

async fn run(config: Config, to: Queue, taken: Arc<Taken>, closing: CancellationToken) {
    let keeper = Keeper::new(Arc::clone(&config.store), config.timing);
    let state = match keeper.load().await {
        Ok(state) => state,
        Err(error) => {
            let _ = to.send(Err(error.into())).await;
            return;
        }
    };
    let timing = config.timing;
    let mut driver = Driver {
        session: ClientSession::new(config.session.clone(), state, rand::random()),
        outbox: VecDeque::new(),
        taken,
        closing,
        keeper,
        started: Instant::now(),
        backoff: Backoff::new(
            timing.backoff_floor,
            timing.backoff_first,
            timing.backoff_most,
        ),
        rng: SmallRng::seed_from_u64(rand::random()),
        token: None,
        refusals: 0,
        config,
    };
    if let Stop::Failed(error) = driver.live(&to).await {
        driver.fail(to, error).await;
    }
    driver.finish().await;
}

/// Why a client ends.
enum Stop {
    /// The app wants no more.
    Closed,
    /// For good.
    Failed(Error),
}

/// Why a stream ended.
enum End {
    Stop(Stop),
    Status(Status),
    /// With the time after which to reconnect.
    Away(Duration),
    Lost(DisconnectReason),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

struct Driver {
    config: Config,
    session: ClientSession,
    /// What the session has handed and the app's queue has no room for yet. While it holds anything, nothing is read.
    outbox: VecDeque<Handed>,
    taken: Arc<Taken>,
    closing: CancellationToken,
    keeper: Keeper,
    started: Instant,
    backoff: Backoff,
    rng: SmallRng,
    token: Option<Token>,
    /// Since the last good stream. That a gateway says Hello proves nothing: it may refuse the token a moment later.
    refusals: u32,
}

impl Driver {
    async fn live(&mut self, to: &Queue) -> Stop {
        loop {
            // Who is behind needs no stream: without this, an app that takes nothing is kept a `Disconnected` for each attempt.
            while !self.reading() {
                if let Some(stop) = self.turn(to).await {
                    return stop;
                }
            }
            let mut good = false;
            let end = match self.open(to).await {
                Ok(mut connection) => {
                    let end = self.follow(to, &mut connection).await;
                    good = connection.was_good();
                    match (end, connection.away()) {
                        (End::Status(status), Some(wait)) => match status::of_stream(&status) {
                            Verdict::Reconnect(..) => End::Away(wait),
                            _ => End::Status(status),
                        },
                        (end, _) => end,
                    }
                }
                Err(end) => end,
            };
            if good {
                self.backoff.reset();
                self.refusals = 0;
            }
            let (reason, retry_in) = match self.judge(end, good) {
                Ok(verdict) => verdict,
                Err(stop) => return stop,
            };
            tracing::debug!(%reason, ?retry_in, "disconnected");
            let out = self.session.on_disconnected(reason, retry_in);
            if let Err(stop) = self.output(out).await {
                return stop;
            }
            if let Err(stop) = self.meanwhile(to, sleep(retry_in)).await {
                return stop;
            }
        }
    }

    /// When to reconnect, if at all. After a stream that was not `good` never without back-off, whatever the server says: one
    /// that greets everybody and sends them away would be hammered.
    fn judge(&mut self, end: End, good: bool) -> Result<(DisconnectReason, Duration), Stop> {
        let (reason, floor) = match end {
            End::Stop(stop) => return Err(stop),
            End::Away(wait) if good => return Ok((DisconnectReason::GoAway, wait)),
            End::Away(wait) => {
                // The wait differs from stream to stream by itself.
                let backoff = self.backoff.next(&mut self.rng);
                return Ok((DisconnectReason::GoAway, backoff.max(wait)));
            }
            End::Lost(reason) => (reason, Duration::ZERO),
            End::Status(status) => match status::of_stream(&status) {
                Verdict::Reconnect(reason, floor) => (reason, floor),
                Verdict::Fatal(error) => return Err(Stop::Failed(error)),
                Verdict::Renew(message) => {
                    self.token = None;
                    self.refusals += 1;
                    if self.config.tokens.is_fixed() || self.refusals >= MOST_REFUSALS {
                        return Err(Stop::Failed(Error::Unauthenticated(message)));
                    }
                    if self.refusals == 1 {
                        return Ok((DisconnectReason::TokenRefused, Duration::ZERO));
                    }
                    (DisconnectReason::TokenRefused, Duration::ZERO)
                }
            },
        };
        // Who was told the same wait does not come back at the same moment.
        let floor = floor.mul_f64(1.0 + self.rng.random::<f64>() / 4.0);
        Ok((reason, self.backoff.next(&mut self.rng).max(floor)))
    }

    async fn open(&mut self, to: &Queue) -> Result<Connection, End> {
        let token = match self.token.clone() {
            Some(token) => token,
            None => {
                let asked = self.config.tokens.ask();
                match self.meanwhile(to, asked).await? {
                    Ok(token) => self.token.insert(token).clone(),
                    Err(TokenError::Retry(_)) => return Err(End::Lost(DisconnectReason::NoToken)),
                    Err(TokenError::Never(why)) => {
                        return Err(Stop::Failed(Error::NoToken(why)).into());
                    }
                }
            }
        };
        let subscribe = connection::subscription(&self.config, self.session.resume_point());
        let opening = Connection::open(
            self.config.connections.channel(),
            token,
            subscribe,
            self.config.acks,
            self.config.timing,
        );
        self.meanwhile(to, opening).await?.map_err(End::Status)
    }

    async fn follow(&mut self, to: &Queue, connection: &mut Connection) -> End {
        loop {
            connection.renew(&self.config.tokens);
            let reading = self.reading();
            if reading && let Some(request) = self.session.start_listing(self.now()) {
                connection.list(request);
                continue;
            }
            let acks = connection.can_acknowledge() && self.session.has_acks();
            let wake = self
                .session
                .next_listing_at()
                .filter(|_| reading)
                .map(|at| self.started + at);
            let occurrence = tokio::select! {
                // What the app takes and what is stored comes before what is new.
                biased;
                stop = self.turn(to) => match stop {
                    Some(stop) => return stop.into(),
                    None => continue,
                },
                occurrence = connection.next(reading, acks, wake) => occurrence,
            };
            let out = match occurrence {
                Occurrence::Frame(frame) => match *frame {
                    Ok(Some(frame)) => self.on_frame(frame, connection),
                    Ok(None) => return End::Status(Status::ok("")),
                    Err(status) => return End::Status(status),
                },
                Occurrence::Listed(answer) => {
                    if answer.refused {
                        connection.on_token_refused(&self.config.tokens);
                    }
                    let now = self.now();
                    self.session.on_listed(answer.ticket, answer.listing, now)
                }
                Occurrence::Acks => {
                    connection.acknowledge(self.session.take_acks());
                    continue;
                }
                Occurrence::Wake => continue,
                Occurrence::Silent => return End::Lost(DisconnectReason::Silent),
                Occurrence::Away => return End::Away(Duration::ZERO),
                Occurrence::Renewed(token) => {
                    self.token = Some(token);
                    continue;
                }
            };
            for output in &out {
                match output {
                    Output::GoAway(after) => connection.go_away(*after),
                    Output::Violation => return End::Lost(DisconnectReason::Protocol),
                    Output::Hand(_) | Output::Persist => {}
                }
            }
            self.taken.count(self.session.counters());
            if let Err(stop) = self.output(out).await {
                return stop.into();
            }
        }
    }

    fn on_frame(&mut self, frame: ServerFrame, connection: &mut Connection) -> Vec<Output> {
        let now = self.now();
        if let Some(Frame::Hello(hello)) = &frame.frame {
            tracing::debug!(session = hello.session, "connected");
            connection.on_hello(hello, now.wall_ms, &self.config.tokens);
        }
        self.session.on_frame(frame, now)
    }

    /// Whether the app keeps up: it reads, and says what it is done with.
    fn reading(&self) -> bool {
        self.outbox.is_empty() && self.session.has_room()
    }

    async fn output(&mut self, out: Vec<Output>) -> Result<(), Stop> {
        for output in out {
            match output {
                Output::Hand(handed) => self.outbox.push_back(handed),
                Output::Persist => {
                    // If a state cannot be kept from the start, whoever asked for one must know.
                    let stored = self.keeper.now(&mut self.session).await;
                    stored.map_err(|error| Stop::Failed(error.into()))?;
                }
                Output::GoAway(_) | Output::Violation => {}
            }
        }
        Ok(())
    }

    /// Waits for `work`, and does what is always to be done beside it.
    async fn meanwhile<T>(&mut self, to: &Queue, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                stop = self.turn(to) => if let Some(stop) = stop {
                    return Err(stop);
                },
            }
        }
    }

    /// One of the things that are always to be done. Cancel-safe.
    async fn turn(&mut self, to: &Queue) -> Option<Stop> {
        let due = self.keeper.due(self.session.unsaved());
        tokio::select! {
            // The end first; then what the app has taken, so that the next store knows it.
            biased;
            () = self.closing.cancelled() => return Some(Stop::Closed),
            () = self.taken.changed.notified() => self.session.on_taken(self.taken.position()),
            permit = to.reserve(), if !self.outbox.is_empty() => match permit {
                Ok(permit) => if let Some(handed) = self.outbox.pop_front() {
                    permit.send(Ok(handed));
                },
                Err(_) => return Some(Stop::Closed),
            },
            () = to.closed(), if self.outbox.is_empty() => return Some(Stop::Closed),
            result = self.keeper.finished() => self.keeper.on_finished(result, &mut self.session),
            () = at(due) => self.keeper.begin(&mut self.session),
        }
        None
    }

    /// Tells the app why there is no more, after all that came before, and waits until it has heard.
    async fn fail(&mut self, to: Queue, error: Error) {
        while !self.outbox.is_empty() {
            if self.turn(&to).await.is_some() {
                return;
            }
        }
        let told = async {
            let _ = to.send(Err(error)).await;
        };
        if self.meanwhile(&to, told).await.is_err() {
            return;
        }
        // Without the queue the app's stream ends. What it takes until it drops the stream is still stored.
        drop(to);
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                () = self.taken.changed.notified() => self.session.on_taken(self.taken.position()),
            }
        }
    }

    async fn finish(&mut self) {
        self.session.on_taken(self.taken.position());
        if let Err(error) = self.keeper.now(&mut self.session).await {
            tracing::warn!(%error, "the state cannot be stored; more is told again after the next start");
        }
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Now {
            elapsed: self.started.elapsed(),
            wall_ms: wall
                .ok()
                .and_then(|wall| i64::try_from(wall.as_millis()).ok())
                .unwrap_or_default(),
        }
    }
}
