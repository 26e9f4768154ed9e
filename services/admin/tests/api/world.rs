//! A store, an owner that answers as it is told, and the service over them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use mailbell_admin::{Options, Policy, Service, SigningKey, TokenHash};
use mailbell_bus::{Bus, BusOptions, OwnerService, Role, ServeOptions};
use mailbell_core::{
    ids::{AccountId, Partition},
    seal::KeyRing,
};
use mailbell_proto::{
    admin::v1::{
        CreateAccountRequest, ImapServer, TlsMode, accounts_client::AccountsClient,
        tokens_client::TokensClient,
    },
    bus::v1::{
        CheckLogin, CheckResult, FolderResult, LoginBegun, Meta, OwnerResponse, owner_request,
        owner_response,
    },
};
use mailbell_runtime::{
    drain::Drain, health::Health, incoming::IncomingMetrics, listen, metrics::Metrics,
};
use mailbell_test_servers::{NatsOptions, NatsServer};
use prost::Message as _;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

pub(crate) const TOKEN: &str = "mba_test";
const OPERATOR: &str = "mba_operator";

/// What the owner was asked, and how it answers.
#[derive(Clone)]
pub(crate) struct Owner {
    pub(crate) asked: Arc<Mutex<Vec<(AccountId, CheckLogin)>>>,
    pub(crate) answer: Arc<Mutex<CheckResult>>,
    pub(crate) hurried: Arc<Mutex<Vec<AccountId>>>,
}

type Run = tokio::task::JoinHandle<Result<(), mailbell_admin::Error>>;

pub(crate) struct World {
    pub(crate) bus: Bus,
    pub(crate) owner: Owner,
    pub(crate) ring: KeyRing,
    pub(crate) addr: SocketAddr,
    pub(crate) accounts: AccountsClient<InterceptedService<Channel, Bearer>>,
    pub(crate) tokens: TokensClient<InterceptedService<Channel, Bearer>>,
    /// With the operator's token.
    pub(crate) operator: Operator,
    pub(crate) service: Option<OwnerService>,
    drain: Drain,
    run: Run,
    _nats: NatsServer,
}

/// The operator's clients.
pub(crate) struct Operator {
    pub(crate) accounts: AccountsClient<InterceptedService<Channel, Bearer>>,
    pub(crate) tokens: TokensClient<InterceptedService<Channel, Bearer>>,
}

#[derive(Clone)]
pub(crate) struct Bearer(pub(crate) &'static str);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {}", self.0).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

pub(crate) fn good(folders: &[&str]) -> CheckResult {
    CheckResult {
        ok: true,
        code: "ok".to_owned(),
        sentence: "All is well.".to_owned(),
        handshake_ms: 12,
        capabilities: vec!["IDLE".to_owned()],
        folders: folders
            .iter()
            .map(|name| FolderResult {
                name: (*name).to_owned(),
                exists: true,
                messages: 3,
                generation: 7,
                uid_next: 42,
            })
            .collect(),
    }
}

pub(crate) async fn connect(nats: &NatsServer, role: Role) -> Bus {
    let options = BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role);
    Bus::connect(options).await.unwrap()
}

/// The service on this connection, on an address of its own.
pub(crate) fn service(bus: Bus, owner_timeout: Duration) -> (Service, Health) {
    let listener = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--admin-listen").unwrap();
    let signing = SigningKey::generate(&mut rand::rng()).unwrap();
    let mut options = Options::new(listener, vec![TokenHash::of(TOKEN)], signing);
    options.callers.set_operators(vec![TokenHash::of(OPERATOR)]);
    options.owner_timeout = owner_timeout;
    options.policy = Policy {
        plaintext: true,
        private_hosts: true,
    };
    let mut metrics = Metrics::new("admin");
    let incoming = IncomingMetrics::register(metrics.registry());
    let health = Health::new();
    let service = Service::new(options, bus, metrics.registry(), incoming, health.clone());
    (service, health)
}

/// Waits for a service that runs.
pub(crate) async fn until_ready(run: &mut Run, health: &Health) {
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    let wait = async {
        while !health.readiness().ok {
            assert!(!run.is_finished(), "it ended: {:?}", run.await);
            tick.tick().await;
        }
    };
    let ready = tokio::time::timeout(Duration::from_secs(60), wait).await;
    assert!(ready.is_ok(), "not ready: {:?}", health.readiness());
}

async fn set_up() -> NatsServer {
    let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
    connect(&nats, Role::Setup).await.setup().await.unwrap();
    nats
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Duration::from_secs(20)).await
    }

    pub(crate) async fn start_with(owner_timeout: Duration) -> Self {
        Self::on(set_up().await, owner_timeout).await
    }

    /// On an installation whose upgrade from the first release is not finished.
    pub(crate) async fn unfinished() -> Self {
        let nats = set_up().await;
        let meta = Meta {
            schema: 1,
            partitions: 1024,
            groups: 16,
            write_version: 1,
        };
        let operator = async_nats::connect(nats.url()).await.unwrap();
        let written = operator.request("$KV.MB_test_CTL.meta", meta.encode_to_vec().into());
        written.await.unwrap();
        Self::on(nats, Duration::from_secs(20)).await
    }

    async fn on(nats: NatsServer, owner_timeout: Duration) -> Self {
        let bus = connect(&nats, Role::Watcher).await;
        let mut ring = KeyRing::default();
        let key = ring.add(1, &mut rand::rng()).unwrap();
        bus.sealing_keys().put(&key.to_record()).await.unwrap();

        let owner = Owner {
            asked: Arc::default(),
            hurried: Arc::default(),
            answer: Arc::new(Mutex::new(good(&["INBOX"]))),
        };
        let scripted = owner.clone();
        let service = bus.serve(ServeOptions::default(), move |account, request| {
            let response = match request.request {
                Some(owner_request::Request::Check(check)) => {
                    scripted.asked.lock().unwrap().push((account, check));
                    let result = scripted.answer.lock().unwrap().clone();
                    owner_response::Response::Check(result)
                }
                Some(owner_request::Request::Login(_)) => {
                    scripted.hurried.lock().unwrap().push(account);
                    owner_response::Response::Login(LoginBegun {})
                }
                other => panic!("{other:?}"),
            };
            std::future::ready(OwnerResponse {
                response: Some(response),
            })
        });
        let all: Vec<_> = Partition::all().collect();
        service.own(&all).await.unwrap();

        let admin = connect(&nats, Role::Admin).await;
        let service_bus = admin.clone();
        let (admin, health) = self::service(admin, owner_timeout);
        let addr = admin.addr();
        let (drain, handle) = Drain::new();
        let mut run = tokio::spawn(admin.run(handle));
        until_ready(&mut run, &health).await;
        // `/healthz` means something: whether it is stuck.
        let alive = health.liveness();
        assert!(alive.ok && alive.checks.iter().any(|check| check.name == "admin"));
        drop(service_bus);
        let channel = Endpoint::from_shared(format!("http://{addr}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        Self {
            bus,
            owner,
            ring,
            addr,
            accounts: AccountsClient::with_interceptor(channel.clone(), Bearer(TOKEN)),
            tokens: TokensClient::with_interceptor(channel.clone(), Bearer(TOKEN)),
            operator: Operator {
                accounts: AccountsClient::with_interceptor(channel.clone(), Bearer(OPERATOR)),
                tokens: TokensClient::with_interceptor(channel, Bearer(OPERATOR)),
            },
            service: Some(service),
            drain,
            run,
            _nats: nats,
        }
    }

    /// The accounts that were told to log in at once.
    pub(crate) fn hurried(&self) -> Vec<AccountId> {
        self.owner.hurried.lock().unwrap().clone()
    }

    pub(crate) fn asked(&self) -> Vec<(AccountId, CheckLogin)> {
        std::mem::take(&mut self.owner.asked.lock().unwrap())
    }

    pub(crate) fn answer(&self, result: CheckResult) {
        *self.owner.answer.lock().unwrap() = result;
    }

    /// Ends the service in order.
    pub(crate) async fn stop(self) {
        drop((self.accounts, self.tokens, self.operator));
        self.drain
            .drain_with_timeout(Duration::from_secs(10))
            .await
            .unwrap();
        self.run.await.unwrap().unwrap();
    }
}

pub(crate) fn request(external_id: &str) -> CreateAccountRequest {
    CreateAccountRequest {
        external_id: external_id.to_owned(),
        server: Some(ImapServer {
            host: "Mail.Example.org".to_owned(),
            port: 0,
            tls: TlsMode::Implicit.into(),
            user: "alice".to_owned(),
        }),
        password: "secret".to_owned(),
        ..CreateAccountRequest::default()
    }
}
