//! A gateway on loopback, tokens for it, and a device that looks at each frame.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use mailbell_core::{
    cursor::Cursor as Place,
    event::{Event, Fact},
    ids::AccountId,
    timing::Timing,
    token::{AUDIENCE, Claims},
};
use mailbell_gateway::{
    Error, Gateway, Metrics, Options, Parts,
    source::{Source, memory::MemorySource},
};
use mailbell_proto::{
    bus::v1::{AccountRecord, Issuer},
    push::v1::{
        self as push, Cursor, Hello, Message, Resync, ServerFrame, SubscribeRequest,
        push_client::PushClient, server_frame::Frame,
    },
};
use mailbell_runtime::{
    drain::Drain, health::Health, incoming::IncomingMetrics, listen, metrics, tls::ReloadingCert,
};
use prost::Message as _;
use tokio::{task::JoinHandle, time::timeout};
use tonic::{Code, Request, Status, Streaming, transport::Channel};

/// Only ends a test that has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn account(n: u32) -> AccountId {
    AccountId::new("t".parse().unwrap(), ulid(n))
}

fn ulid(n: u32) -> ulid::Ulid {
    ulid::Ulid::from_parts(1_700_000_000_000, u128::from(n))
}

/// The first account after `n` whose events lie in the same log as those of account 0.
pub(crate) fn neighbour(n: u32) -> AccountId {
    let group = account(0).group();
    let mut others = (n + 1..).map(account);
    others.find(|account| account.group() == group).unwrap()
}

/// An arrival.
pub(crate) fn arrival(account: &AccountId, uid: u32) -> Event {
    let message = Message {
        uid,
        subject: format!("message {uid}"),
        preview: "dear reader".to_owned(),
        ..Message::default()
    };
    Event {
        account: account.clone(),
        folder: 1,
        generation: 7,
        fact: Fact::Arrived { uid, digest: 0 },
        alert: true,
        owner_epoch: 1,
        traceparent: String::new(),
        detected_us: 1_700_000_000_000_000,
        fetched_us: 0,
        folder_name: "INBOX".to_owned(),
        content: message.encode_to_vec().into(),
    }
}

/// An arrival of nearly the largest size.
pub(crate) fn large(uid: u32) -> Event {
    let message = Message {
        uid,
        preview: "x".repeat(6000),
        ..Message::default()
    };
    Event {
        content: message.encode_to_vec().into(),
        ..arrival(&account(0), uid)
    }
}

pub(crate) fn now_s() -> i64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Signs tokens.
pub(crate) struct Minter {
    key: SigningKey,
    kid: &'static str,
}

impl Minter {
    pub(crate) fn new(kid: &'static str) -> Self {
        let key = SigningKey::from_bytes(&rand::random());
        Self { key, kid }
    }

    pub(crate) fn issuer(&self) -> Issuer {
        Issuer {
            schema: 1,
            kid: self.kid.to_owned(),
            tenant: String::new(),
            ed25519_public_key: self.key.verifying_key().to_bytes().to_vec().into(),
        }
    }

    pub(crate) fn sign(&self, claims: &Claims) -> String {
        let der = self.key.to_pkcs8_der().unwrap();
        let header = Header {
            kid: Some(self.kid.to_owned()),
            ..Header::new(Algorithm::EdDSA)
        };
        encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap()
    }

    /// A token for these accounts, named `t1`.
    pub(crate) fn token(&self, accounts: &[AccountId]) -> String {
        self.sign(&claims(accounts))
    }
}

pub(crate) fn claims(accounts: &[AccountId]) -> Claims {
    Claims {
        jti: "t1".to_owned(),
        aud: AUDIENCE.to_owned(),
        iss: "main".to_owned(),
        tenant: "t".to_owned(),
        accounts: accounts.iter().map(ToString::to_string).collect(),
        whole_tenant: accounts.is_empty(),
        content: "preview".to_owned(),
        iat: now_s(),
        exp: now_s() + 3600,
    }
}

/// Periods 50 times as fast: a cursor after 20 ms, a heartbeat every 600 ms, a drain of 400 ms.
pub(crate) fn options() -> Options {
    Options {
        timing: Timing::default().faster(50),
        ..Options::default()
    }
}

/// A running gateway. Ends with the value.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) minter: Minter,
    pub(crate) health: Health,
    pub(crate) metrics: metrics::Metrics,
    pub(crate) drain: Drain,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A gateway on a twin of the bus, with accounts 0 to 99.
pub(crate) struct World {
    pub(crate) source: MemorySource,
    pub(crate) gateway: Running,
}

impl std::ops::Deref for World {
    type Target = Running;
    fn deref(&self) -> &Running {
        &self.gateway
    }
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(options()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let source = MemorySource::new();
        for n in 0..100 {
            source.put_account(&account(n), AccountRecord::default());
        }
        Self::on(source, options).await
    }

    pub(crate) async fn on(source: MemorySource, options: Options) -> Self {
        let minter = Minter::new("k1");
        source.put_issuer(minter.issuer());
        let gateway = Running::start(Arc::new(source.clone()), minter, options);
        gateway.ready().await;
        Self { source, gateway }
    }
}

impl Running {
    pub(crate) fn start(source: Arc<dyn Source>, minter: Minter, options: Options) -> Self {
        Self::start_with(source, minter, options, None)
    }

    pub(crate) fn start_tls(
        source: Arc<dyn Source>,
        minter: Minter,
        options: Options,
        tls: Arc<ReloadingCert>,
    ) -> Self {
        Self::start_with(source, minter, options, Some(tls))
    }

    fn start_with(
        source: Arc<dyn Source>,
        minter: Minter,
        options: Options,
        tls: Option<Arc<ReloadingCert>>,
    ) -> Self {
        let (drain, handle) = Drain::new();
        let mut metrics = metrics::Metrics::new("gateway");
        let health = Health::new();
        let listener = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--listen").unwrap();
        let parts = Parts {
            listener,
            tls,
            source,
            health: health.clone(),
            metrics: Metrics::register(metrics.registry()),
            incoming: IncomingMetrics::register(metrics.registry()),
        };
        let (gateway, seen) = Gateway::new(options, parts).unwrap();
        Self {
            addr: seen.addr(),
            minter,
            health,
            metrics,
            drain,
            task: tokio::spawn(gateway.run(handle)),
        }
    }

    pub(crate) async fn ready(&self) {
        self.until("ready", || self.health.readiness().ok).await;
    }

    pub(crate) async fn until(&self, what: &str, reached: impl Fn() -> bool) {
        let looks = async {
            // What is looked at has no event of its own.
            let mut look = tokio::time::interval(Duration::from_millis(5));
            while !reached() {
                look.tick().await;
            }
        };
        if timeout(LIMIT, looks).await.is_err() {
            panic!("not {what} in time: {}", self.metrics.encode().unwrap());
        }
    }

    /// The value of a metric by the beginning of its line.
    pub(crate) fn value(&self, name: &str) -> f64 {
        let text = self.metrics.encode().unwrap();
        let line = format!("mailbell_{name} ");
        let value = text.lines().find_map(|l| l.strip_prefix(line.as_str()));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    pub(crate) async fn client(&self) -> PushClient<Channel> {
        // Small windows, as on a phone: what does not fit waits at the gateway.
        let endpoint = Channel::from_shared(format!("http://{}", self.addr))
            .unwrap()
            .initial_stream_window_size(64 * 1024)
            .initial_connection_window_size(64 * 1024);
        PushClient::new(endpoint.connect().await.unwrap())
    }

    /// A device for these accounts.
    pub(crate) async fn device(&self, accounts: &[AccountId]) -> Device {
        let token = self.minter.token(accounts);
        self.subscribe(SubscribeRequest::default(), &token)
            .await
            .unwrap()
    }

    /// The same device again, with the cursor that it stored.
    pub(crate) async fn again(&self, before: &Device, accounts: &[AccountId]) -> Device {
        let token = self.minter.token(accounts);
        self.subscribe(before.resume(), &token).await.unwrap()
    }

    pub(crate) async fn subscribe(
        &self,
        request: SubscribeRequest,
        token: &str,
    ) -> Result<Device, Status> {
        let mut client = self.client().await;
        let stream = client.subscribe(bearer(request, token)).await?;
        Ok(Device::new(stream.into_inner()).await)
    }

    pub(crate) async fn refused(&self, request: SubscribeRequest, token: &str) -> Code {
        match self.subscribe(request, token).await {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        }
    }
}

pub(crate) fn bearer<T>(request: T, token: &str) -> Request<T> {
    let mut request = Request::new(request);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// A device after its Hello.
pub(crate) struct Device {
    pub(crate) stream: Streaming<ServerFrame>,
    pub(crate) hello: Hello,
    /// The newest cursor.
    pub(crate) cursor: Bytes,
    pub(crate) silent_since_ms: i64,
}

impl Device {
    pub(crate) async fn new(mut stream: Streaming<ServerFrame>) -> Self {
        let first = timeout(LIMIT, stream.message()).await.unwrap().unwrap();
        let Some(Frame::Hello(hello)) = first.unwrap().frame else {
            panic!("the first frame is no Hello");
        };
        Self {
            stream,
            hello,
            cursor: Bytes::new(),
            silent_since_ms: 0,
        }
    }

    pub(crate) fn resume(&self) -> SubscribeRequest {
        SubscribeRequest {
            cursor: self.cursor.clone(),
            digest: self.hello.digest.clone(),
            ..SubscribeRequest::default()
        }
    }

    /// The next frame, or how the stream ends.
    pub(crate) async fn try_next(&mut self) -> Result<Frame, Status> {
        let frame = timeout(LIMIT, self.stream.message()).await;
        let Some(frame) = frame.unwrap()? else {
            return Err(Status::ok("the end"));
        };
        let frame = frame.frame.unwrap();
        if let Frame::Cursor(Cursor {
            token,
            log_silent_since_ms,
        }) = &frame
        {
            self.cursor = token.clone();
            self.silent_since_ms = *log_silent_since_ms;
        }
        Ok(frame)
    }

    /// The next frame but for cursors.
    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            match self.try_next().await.unwrap() {
                Frame::Cursor(_) => {}
                frame => return frame,
            }
        }
    }

    pub(crate) async fn live(&mut self) {
        let frame = self.next().await;
        assert!(matches!(frame, Frame::Live(_)), "{frame:?}");
    }

    pub(crate) async fn event(&mut self) -> push::Event {
        match self.next().await {
            Frame::Event(event) => event,
            other => panic!("{other:?}"),
        }
    }

    /// The UIDs of the next events.
    pub(crate) async fn uids(&mut self, count: usize) -> Vec<u32> {
        let mut uids = Vec::new();
        for _ in 0..count {
            uids.push(self.event().await.key.unwrap().uid);
        }
        uids
    }

    pub(crate) async fn resync(&mut self) -> Resync {
        match self.next().await {
            Frame::Resync(resync) => resync,
            other => panic!("{other:?}"),
        }
    }

    /// Reads on until the cursor says that everything up to here has come.
    pub(crate) async fn cursor_at(&mut self, account: &AccountId, position: u64) {
        loop {
            if !self.cursor.is_empty() {
                let place = Place::decode(&self.cursor).unwrap().0[account.group()];
                if place.position >= position {
                    assert_eq!(place.position, position);
                    return;
                }
            }
            match self.try_next().await.unwrap() {
                Frame::Cursor(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Everything that still comes, and how it ends.
    pub(crate) async fn rest(&mut self) -> (Vec<Frame>, Status) {
        let mut frames = Vec::new();
        loop {
            match self.try_next().await {
                Ok(Frame::Cursor(_)) => {}
                Ok(frame) => frames.push(frame),
                Err(status) => return (frames, status),
            }
        }
    }
}
