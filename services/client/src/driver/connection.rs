//! One stream from the gateway, and what belongs to it.

use std::{future::pending, time::Duration};

use mailbell_proto::push::v1::{
    Ack, ClientFrame, EventKey, Hello, Reauthenticate, ServerFrame, SubscribeRequest,
    client_frame::Frame, push_client::PushClient,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, transport::Channel};

use super::listing::{self, Answer};
use crate::{
    client::{Config, MOST_MESSAGE, Timing},
    session::ListRequest,
    status::MOST_WAIT,
    token::{self, Token, TokenError, TokenSource},
};

/// If the server names no heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(30);
const MOST_HEARTBEAT: Duration = Duration::from_secs(600);

/// What happened on a connection.
pub(super) enum Occurrence {
    Frame(Box<Result<Option<ServerFrame>, Status>>),
    Listed(Answer),
    /// It is time to acknowledge.
    Acks,
    /// It is time for a listing.
    Wake,
    /// Nothing came for too long.
    Silent,
    /// The server wanted us to be gone by now.
    Away,
    /// Another token is here.
    Renewed(Token),
}

pub(super) struct Connection {
    frames: Streaming<ServerFrame>,
    to_server: Option<mpsc::Sender<ClientFrame>>,
    client: PushClient<Channel>,
    token: Token,
    content: i32,
    timing: Timing,
    listings: JoinSet<Answer>,
    opened: Instant,
    heard: Instant,
    silence: Duration,
    acked: Instant,
    away: Option<Instant>,
    renewal: Renewal,
    greeted: bool,
}

/// When and how to get the next token.
struct Renewal {
    at: Option<Instant>,
    every: Duration,
    asked: Option<token::Answer>,
}

pub(super) fn authorized<T>(message: T, token: &Token) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let mut value: tonic::metadata::AsciiMetadataValue = format!("Bearer {}", token.reveal())
        .parse()
        .map_err(|_| Status::unauthenticated("the token holds what no token holds"))?;
    value.set_sensitive(true);
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}

impl Connection {
    pub(super) async fn open(
        channel: Channel,
        token: Token,
        subscribe: SubscribeRequest,
        acks: bool,
        timing: Timing,
    ) -> Result<Self, Status> {
        let mut client = PushClient::new(channel).max_decoding_message_size(MOST_MESSAGE);
        let content = subscribe.content;
        let opening = async {
            if !acks {
                let answer = client.subscribe(authorized(subscribe, &token)?).await?;
                return Ok((answer.into_inner(), None));
            }
            let (to_server, frames) = mpsc::channel(8);
            let first = ClientFrame {
                frame: Some(Frame::Subscribe(subscribe)),
            };
            let _ = to_server.try_send(first);
            let request = authorized(ReceiverStream::new(frames), &token)?;
            let answer = client.connect(request).await?;
            Ok::<_, Status>((answer.into_inner(), Some(to_server)))
        };
        let (frames, to_server) = timeout(timing.open, opening)
            .await
            .map_err(|_| Status::deadline_exceeded("no answer in time"))??;
        let now = Instant::now();
        Ok(Self {
            frames,
            to_server,
            client,
            token,
            content,
            timing,
            listings: JoinSet::new(),
            opened: now,
            heard: now,
            silence: timing.open,
            acked: now,
            away: None,
            renewal: Renewal {
                at: None,
                every: Duration::ZERO,
                asked: None,
            },
            greeted: false,
        })
    }

    /// The next thing that happens. Cancel-safe. With `reading` false nothing is read: the app is behind, and the server will
    /// notice by the full window of the stream.
    pub(super) async fn next(
        &mut self,
        reading: bool,
        acks: bool,
        wake: Option<Instant>,
    ) -> Occurrence {
        if !reading {
            // Not the server's fault.
            self.heard = Instant::now();
        }
        loop {
            let silent = self.heard + self.silence;
            let renew = self.renewal.at.filter(|_| self.renewal.asked.is_none());
            tokio::select! {
                // Rare things first, so that a busy stream doesn't keep them waiting; a frame before the verdict that there is none.
                biased;
                () = at(self.away) => return Occurrence::Away,
                Some(listed) = self.listings.join_next(), if reading && !self.listings.is_empty() => {
                    if let Ok(answer) = listed {
                        return Occurrence::Listed(answer);
                    }
                }
                asked = self.renewal.answer() => if let Some(token) = self.renewed(asked) {
                    return Occurrence::Renewed(token);
                },
                () = sleep_until(self.acked + self.timing.acks), if acks => return Occurrence::Acks,
                () = at(wake) => return Occurrence::Wake,
                frame = self.frames.message(), if reading => {
                    self.heard = Instant::now();
                    return Occurrence::Frame(Box::new(frame));
                }
                () = sleep_until(silent), if reading => return Occurrence::Silent,
                () = at(renew) => return Occurrence::Wake,
            }
        }
    }

    /// The first frame is here.
    pub(super) fn on_hello(&mut self, hello: &Hello, wall_ms: i64, tokens: &TokenSource) {
        self.greeted = true;
        let heartbeat = match hello.heartbeat_ms {
            0 => HEARTBEAT,
            heartbeat => Duration::from_millis(heartbeat.into()).min(MOST_HEARTBEAT),
        };
        self.silence = heartbeat * 2;
        let left = hello.token_expires_at_ms.saturating_sub(wall_ms);
        if self.to_server.is_some()
            && !tokens.is_fixed()
            && let Ok(left) = u64::try_from(left)
            && left > 0
        {
            // With a fifth of its life left; the next one is likely to live as long.
            self.renewal.every = Duration::from_millis(left).mul_f64(0.8);
            self.renewal.at = Some(Instant::now() + self.renewal.every);
        }
    }

    /// Asks for a token if it is time to.
    pub(super) fn renew(&mut self, tokens: &TokenSource) {
        let due = self.renewal.at.is_some_and(|at| at <= Instant::now());
        if due && self.renewal.asked.is_none() {
            self.renewal.at = None;
            self.renewal.asked = Some(tokens.ask());
        }
    }

    /// A listing was refused for its token: get another one now.
    pub(super) fn on_token_refused(&mut self, tokens: &TokenSource) {
        if !tokens.is_fixed() && self.renewal.asked.is_none() {
            self.renewal.asked = Some(tokens.ask());
        }
    }

    fn renewed(&mut self, asked: Result<Token, TokenError>) -> Option<Token> {
        self.renewal.asked = None;
        let (wait, token) = match asked {
            Ok(token) => (self.renewal.every, Some(token)),
            // The stream ends when the old one expires, and the token is asked for again then.
            Err(_) => (self.renewal.every / 10, None),
        };
        self.renewal.at = (!wait.is_zero()).then(|| Instant::now() + wait);
        let token = token?;
        self.token = token.clone();
        self.send(Frame::Reauthenticate(Reauthenticate {
            token: token.reveal().to_owned(),
        }));
        Some(token)
    }

    pub(super) fn acknowledge(&mut self, keys: Vec<EventKey>) {
        self.acked = Instant::now();
        if !keys.is_empty() {
            self.send(Frame::Ack(Ack { keys }));
        }
    }

    fn send(&self, frame: Frame) {
        if let Some(to_server) = &self.to_server {
            // Full: the server does not read. Acknowledgements only measure, and a token that expires ends the stream.
            let _ = to_server.try_send(ClientFrame { frame: Some(frame) });
        }
    }

    pub(super) fn can_acknowledge(&self) -> bool {
        self.to_server.is_some()
    }

    pub(super) fn go_away(&mut self, after: Duration) {
        self.away = Some(Instant::now() + after.min(MOST_WAIT));
    }

    /// The server said that it goes: until when we were to wait.
    pub(super) fn away(&self) -> Option<Duration> {
        let at = self.away?;
        Some(at.saturating_duration_since(Instant::now()))
    }

    pub(super) fn list(&mut self, request: ListRequest) {
        self.listings.spawn(listing::list(
            self.client.clone(),
            self.token.clone(),
            self.content,
            request,
            self.timing.page,
        ));
    }

    /// Whether it lasted so long that the next failure is not one more of the same kind.
    pub(super) fn was_good(&self) -> bool {
        self.greeted && self.opened.elapsed() >= self.timing.healthy
    }
}

impl Renewal {
    async fn answer(&mut self) -> Result<Token, TokenError> {
        match &mut self.asked {
            Some(asked) => asked.await,
            None => pending().await,
        }
    }
}

/// Waits until then; for ever, if there is no then.
pub(super) async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => pending().await,
    }
}

/// What a stream is to be about.
pub(super) fn subscription(
    config: &Config,
    (cursor, digest): (bytes::Bytes, bytes::Bytes),
) -> SubscribeRequest {
    SubscribeRequest {
        cursor,
        digest,
        ..config.request.clone()
    }
}
