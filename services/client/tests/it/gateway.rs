//! A gateway that does what a test says.

use std::{sync::Arc, time::Duration};

use mailbell_client::{
    AppEvent, Builder, Client, Events,
    proto::{
        AccountState, Arrived, ClientFrame, Cursor, Event, EventKey, EventKind,
        FetchMessageRequest, FetchMessageResponse, Hello, ListMessagesRequest,
        ListMessagesResponse, Live, Message, Resync, ServerFrame, SubscribeRequest, client_frame,
        event::Body,
        push_server::{Push, PushServer},
        resync::Scope,
        server_frame::Frame,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    sync::{Mutex, mpsc, oneshot},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server, server::Connected},
};

pub(crate) const ACCOUNT: &str = "default.01ARZ3NDEKTSV4RRFFQ69G5FAV";

/// How a call to `Connect` or `Subscribe` is answered.
type Verdict = Result<mpsc::Receiver<Result<ServerFrame, Status>>, Status>;

/// A client is here.
pub(crate) struct Visitor {
    pub(crate) request: SubscribeRequest,
    pub(crate) authorization: String,
    /// By `Subscribe` there is nothing more.
    pub(crate) from_client: Option<Streaming<ClientFrame>>,
    answer: oneshot::Sender<Verdict>,
}

/// An open stream.
pub(crate) struct Open {
    frames: mpsc::Sender<Result<ServerFrame, Status>>,
    pub(crate) from_client: Option<Streaming<ClientFrame>>,
}

impl Visitor {
    pub(crate) fn accept(self) -> Open {
        let (frames, queue) = mpsc::channel(1);
        let _ = self.answer.send(Ok(queue));
        Open {
            frames,
            from_client: self.from_client,
        }
    }

    pub(crate) async fn greet(self) -> Open {
        let open = self.accept();
        open.send(Frame::Hello(hello())).await;
        open
    }

    pub(crate) fn refuse(self, status: Status) {
        let _ = self.answer.send(Err(status));
    }
}

impl Open {
    pub(crate) async fn send(&self, frame: Frame) {
        let frame = ServerFrame { frame: Some(frame) };
        self.frames
            .send(Ok(frame))
            .await
            .expect("the stream is open");
    }

    pub(crate) async fn end(self, status: Status) {
        let _ = self.frames.send(Err(status)).await;
    }

    /// The client has ended the stream.
    pub(crate) async fn closed(&self) {
        self.frames.closed().await;
    }

    /// The next frame of the client.
    pub(crate) async fn heard(&mut self) -> client_frame::Frame {
        let from_client = self.from_client.as_mut().unwrap();
        from_client.message().await.unwrap().unwrap().frame.unwrap()
    }
}

/// A listing is asked for.
pub(crate) struct Asked {
    pub(crate) request: ListMessagesRequest,
    pub(crate) authorization: String,
    answer: oneshot::Sender<Result<ListMessagesResponse, Status>>,
}

impl Asked {
    pub(crate) fn answer(self, answer: Result<ListMessagesResponse, Status>) {
        let _ = self.answer.send(answer);
    }
}

pub(crate) struct Gateway {
    visitors: mpsc::Receiver<Visitor>,
    asked: mpsc::Receiver<Asked>,
    pub(crate) channel: Channel,
}

impl Gateway {
    pub(crate) fn start() -> Self {
        let (connections, incoming) = mpsc::channel::<Result<DuplexStream, std::io::Error>>(8);
        let (service, visitors, asked) = service();
        tokio::spawn(serve(
            Server::builder(),
            service,
            ReceiverStream::new(incoming),
        ));
        let connector = tower::service_fn(move |_| {
            let connections = connections.clone();
            async move {
                let (ours, theirs) = duplex(16 * 1024);
                connections
                    .send(Ok(theirs))
                    .await
                    .map_err(|_| std::io::Error::other("gone"))?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(ours))
            }
        });
        // The windows of a real connection of the client.
        let channel = Endpoint::from_static("http://gateway")
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(512 * 1024)
            .connect_with_connector_lazy(connector);
        Self {
            visitors,
            asked,
            channel,
        }
    }

    pub(crate) fn client(&self) -> Builder {
        Client::builder("http://gateway")
            .channel(self.channel.clone())
            .token("secret")
    }

    pub(crate) async fn visitor(&mut self) -> Visitor {
        self.visitors.recv().await.unwrap()
    }

    pub(crate) async fn asked(&mut self) -> Asked {
        self.asked.recv().await.unwrap()
    }
}

pub(crate) async fn serve<S>(
    mut server: Server,
    service: Service,
    incoming: impl tokio_stream::Stream<Item = Result<S, std::io::Error>>,
) where
    S: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let router = server.add_service(PushServer::new(service));
    router.serve_with_incoming(incoming).await.unwrap();
}

pub(crate) fn service() -> (Service, mpsc::Receiver<Visitor>, mpsc::Receiver<Asked>) {
    let (to_visitors, visitors) = mpsc::channel(8);
    let (to_asked, asked) = mpsc::channel(8);
    let service = Service {
        visitors: to_visitors,
        asked: Arc::new(Mutex::new(to_asked)),
    };
    (service, visitors, asked)
}

pub(crate) struct Service {
    visitors: mpsc::Sender<Visitor>,
    asked: Arc<Mutex<mpsc::Sender<Asked>>>,
}

type Frames = ReceiverStream<Result<ServerFrame, Status>>;

fn authorization<T>(request: &Request<T>) -> String {
    let value = request.metadata().get("authorization").unwrap();
    value.to_str().unwrap().to_owned()
}

impl Service {
    async fn visit(
        &self,
        request: SubscribeRequest,
        authorization: String,
        from_client: Option<Streaming<ClientFrame>>,
    ) -> Result<Response<Frames>, Status> {
        let (answer, answered) = oneshot::channel();
        let visitor = Visitor {
            request,
            authorization,
            from_client,
            answer,
        };
        self.visitors.send(visitor).await.unwrap();
        match answered.await {
            Ok(verdict) => Ok(Response::new(ReceiverStream::new(verdict?))),
            Err(_) => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl Push for Service {
    type SubscribeStream = Frames;
    type ConnectStream = Frames;
    type FetchMessageStream = ReceiverStream<Result<FetchMessageResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Frames>, Status> {
        let authorization = authorization(&request);
        self.visit(request.into_inner(), authorization, None).await
    }

    async fn connect(
        &self,
        request: Request<Streaming<ClientFrame>>,
    ) -> Result<Response<Frames>, Status> {
        let authorization = authorization(&request);
        let mut from_client = request.into_inner();
        let first = from_client.next().await.unwrap()?.frame;
        let Some(client_frame::Frame::Subscribe(subscribe)) = first else {
            panic!("the first frame is to subscribe");
        };
        self.visit(subscribe, authorization, Some(from_client))
            .await
    }

    async fn list_messages(
        &self,
        request: Request<ListMessagesRequest>,
    ) -> Result<Response<ListMessagesResponse>, Status> {
        let authorization = authorization(&request);
        let (answer, answered) = oneshot::channel();
        let asked = Asked {
            request: request.into_inner(),
            authorization,
            answer,
        };
        self.asked.lock().await.send(asked).await.unwrap();
        answered
            .await
            .unwrap_or_else(|_| Err(Status::unavailable("")))
            .map(Response::new)
    }

    async fn fetch_message(
        &self,
        _: Request<FetchMessageRequest>,
    ) -> Result<Response<Self::FetchMessageStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

pub(crate) fn hello() -> Hello {
    Hello {
        heartbeat_ms: 10_000,
        digest: b"digest"[..].into(),
        accounts: vec![AccountState {
            account: ACCOUNT.to_owned(),
            ..AccountState::default()
        }],
        ..Hello::default()
    }
}

pub(crate) fn key(uid: u32) -> EventKey {
    EventKey {
        account: ACCOUNT.to_owned(),
        folder: 1,
        generation: 7,
        uid,
        kind: EventKind::Arrived.into(),
        modseq: 0,
    }
}

pub(crate) fn message(uid: u32) -> Message {
    Message {
        uid,
        subject: format!("message {uid}"),
        message_id: format!("{uid}@example.org"),
        ..Message::default()
    }
}

pub(crate) fn arrived(uid: u32) -> Frame {
    Frame::Event(Event {
        key: Some(key(uid)),
        alert: true,
        body: Some(Body::Arrived(Arrived {
            message: Some(message(uid)),
        })),
        ..Event::default()
    })
}

pub(crate) fn cursor(token: &str) -> Frame {
    Frame::Cursor(Cursor {
        token: token.to_owned().into(),
        log_silent_since_ms: 0,
    })
}

pub(crate) fn live() -> Frame {
    Frame::Live(Live {})
}

pub(crate) fn resync_inbox() -> Frame {
    Frame::Resync(Resync {
        scope: Some(Scope {
            account: ACCOUNT.to_owned(),
            folder: 1,
            ..Scope::default()
        }),
        ..Resync::default()
    })
}

pub(crate) fn page(uids: impl IntoIterator<Item = u32>, next: &str) -> ListMessagesResponse {
    ListMessagesResponse {
        messages: uids.into_iter().map(message).collect(),
        next_page_token: next.to_owned(),
        generation: 7,
        exists: 4,
        ..ListMessagesResponse::default()
    }
}

/// The next event that is not only about the connection.
pub(crate) async fn fact(events: &mut Events) -> AppEvent {
    loop {
        match events.recv().await.unwrap().unwrap() {
            AppEvent::Connected(_)
            | AppEvent::Disconnected { .. }
            | AppEvent::Live
            | AppEvent::AccountState(_) => {}
            event => return event,
        }
    }
}

/// The UIDs of the next arrivals.
pub(crate) async fn uids(events: &mut Events, many: usize) -> Vec<u32> {
    let mut uids = Vec::new();
    while uids.len() < many {
        match fact(events).await {
            AppEvent::Arrived(arrived) => uids.push(arrived.key.uid),
            other => panic!("{other:?}"),
        }
    }
    uids
}

/// Nothing comes for a while. The clock is paused: no time is lost.
pub(crate) async fn nothing<T: std::fmt::Debug>(coming: impl Future<Output = T>, seconds: u64) {
    let came = tokio::time::timeout(Duration::from_secs(seconds), coming).await;
    assert!(came.is_err(), "{came:?}");
}
