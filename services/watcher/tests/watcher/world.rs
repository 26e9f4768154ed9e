//! A real Dovecot, a real nats-server, and a watcher between them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use mailbell_bus::{Bus, BusOptions, Role, state::Cas};
use mailbell_core::{
    checkpoint::Checkpoint,
    ids::{AccountId, Group, Tenant},
    seal::{Binding, KeyRing, PublicKey, seal},
    timing::Timing,
};
use mailbell_imap::{Settings, TlsSettings};
use mailbell_proto::{
    admin::v1::TlsMode,
    bus::v1::{
        AccountRecord, CheckLogin, CheckResult, ListPage, OwnerError, OwnerRequest, PageResult,
        SealedCredential, owner_request::Request, owner_response::Response,
    },
};
use mailbell_runtime::{
    drain::{Drain, Undrained},
    health::Health as ProcessHealth,
    metrics::Metrics as Registry,
};
use mailbell_test_servers::{Dovecot, DovecotOptions, NatsOptions, NatsServer};
use mailbell_watcher::{Error, Handle, Metrics, Options, PolicyFile, Watcher};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use ulid::Ulid;

// By its path, since a test beside this folder has this file as a module too.
#[path = "world/told.rs"]
pub(crate) mod told;

/// Two cores are shared with many other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const USER: &str = "alice";

pub(crate) struct World {
    pub(crate) nats: NatsServer,
    pub(crate) dovecot: Dovecot,
    /// Does what the admin API and the gateway do.
    pub(crate) admin: Bus,
    gateway: Bus,
    ring: String,
    key: PublicKey,
    pub(crate) timing: Timing,
    running: Option<Running>,
    incarnation: u32,
    /// What watchers that start from now on are told by their operator.
    pub(crate) policy: Option<Arc<PolicyFile>>,
    /// Whom they trust everywhere, if it is not who signed Dovecot's certificate.
    pub(crate) trust: Option<TlsSettings>,
}

/// A watcher.
pub(crate) struct Running {
    drain: Drain,
    task: JoinHandle<Result<(), Error>>,
    handle: Handle,
    registry: Arc<Registry>,
    health: ProcessHealth,
}

impl Running {
    /// As [`World::crash`].
    pub(crate) async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// How many partitions it watches.
    pub(crate) fn partitions(&self) -> usize {
        self.handle.progress().partitions
    }

    /// The value of a line of the metrics that begins so.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.registry.encode().unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0.0)
    }
}

/// What was asked of JetStream, in order; noted until it is dropped.
pub(crate) struct Calls {
    group: Group,
    calls: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Calls {
    /// Where in the order claims were written, and of which partitions.
    pub(crate) fn claims(&self) -> Vec<(usize, u16)> {
        let calls = self.calls.lock().unwrap();
        let claims = calls.iter().enumerate().filter_map(|(place, call)| {
            let (_, partition) = call.split_once("_LIVE.claim.")?;
            Some((place, partition.parse().unwrap()))
        });
        claims.collect()
    }

    /// Where in the order this call, as `STREAM.INFO`, was made of a stream of the group: `LOG`, `CKPT` or `STATE`.
    pub(crate) fn of(&self, call: &str, stream: &str) -> Vec<usize> {
        let log = if stream == "LOG" { "" } else { "KV_" };
        let asked = format!("{call}.{log}MB_test_{stream}_{}", self.group);
        let calls = self.calls.lock().unwrap();
        let places = calls
            .iter()
            .enumerate()
            .filter(|(_, call)| {
                call.strip_prefix(&asked)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
            .map(|(place, _)| place);
        places.collect()
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// As a mail server would deliver it.
pub(crate) fn mail(subject: &str) -> Vec<u8> {
    format!(
        "From: Bob <bob@example.org>\r\nTo: alice@example.org\r\nSubject: {subject}\r\n\
         Message-ID: <{}@example.org>\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\n\r\nHello from {subject}\r\n",
        Ulid::generate()
    )
    .into_bytes()
}

/// The first number of this name in a JSON text.
fn number<'a>(json: &'a str, name: &str) -> &'a str {
    let (_, rest) = json.split_once(&format!("\"{name}\":")).unwrap();
    rest.split_once([',', '}']).unwrap().0
}

async fn connect(nats: &NatsServer, role: Role, timing: Timing) -> Bus {
    let mut options = BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role);
    options.timing = timing;
    Bus::connect(options).await.unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(DovecotOptions::default()).await
    }

    pub(crate) async fn with(options: DovecotOptions) -> Self {
        let mut world = Self::without_watcher(options).await;
        world.start().await;
        world
    }

    /// The servers alone.
    pub(crate) async fn without_watcher(options: DovecotOptions) -> Self {
        let timing = Timing {
            checkpoint_delay: Duration::from_millis(200),
            claim_refresh: Duration::from_secs(2),
            member_renew: Duration::from_millis(500),
            member_dead: Duration::from_secs(2),
            ..Timing::default()
        };
        let (nats, dovecot) = tokio::join!(
            NatsServer::start(NatsOptions::default()),
            Dovecot::start(options)
        );
        let (nats, dovecot) = (nats.unwrap(), dovecot.unwrap());
        let setup = connect(&nats, Role::Setup, timing).await;
        setup.setup().await.unwrap();
        let mut ring = KeyRing::default();
        let key = ring.add(0, &mut rand::rng()).unwrap();
        Self {
            admin: connect(&nats, Role::Admin, timing).await,
            gateway: connect(&nats, Role::Gateway, timing).await,
            nats,
            dovecot,
            ring: ring.to_text().to_string(),
            key,
            timing,
            running: None,
            incarnation: 0,
            policy: None,
            trust: None,
        }
    }

    /// Starts a watcher: always the same member, each time another incarnation.
    pub(crate) async fn start(&mut self) {
        self.start_with(|_| {}).await;
    }

    /// The same with other options.
    pub(crate) async fn start_with(&mut self, change: impl FnOnce(&mut Options)) {
        self.running = Some(self.begin("pod-0", change).await);
        let running = self.until_ready(1024).await;
        assert!(running.health.readiness().ok);
    }

    /// Starts a watcher that will not find everything that it needs, and waits for this many partitions; how many it has then.
    pub(crate) async fn start_in_part(&mut self, partitions: usize) -> usize {
        self.running = Some(self.begin("pod-0", |_| {}).await);
        self.until_ready(partitions).await.partitions()
    }

    /// Waits until the running watcher is ready and has at least this many partitions.
    async fn until_ready(&mut self, partitions: usize) -> &Running {
        let running = self.running.as_mut().unwrap();
        let ready = timeout(LIMIT, running.handle.ready()).await;
        assert_eq!(ready, Ok(true), "{:?}", running.handle.progress());
        // On a machine that is busy for ten seconds, the last of them come after it is ready.
        let all = async {
            while running.partitions() < partitions {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let all = timeout(LIMIT, all).await;
        assert_eq!(all, Ok(()), "{:?}", running.handle.progress());
        running
    }

    /// Makes again what an operator has deleted.
    pub(crate) async fn set_up_again(&self) {
        let setup = self.bus(Role::Setup).await;
        setup.setup().await.unwrap();
    }

    /// Publishes as an operator does, around all of our own code.
    pub(crate) async fn publish(&self, subject: &str, payload: &[u8]) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.nats.port()))
            .await
            .unwrap();
        let head = format!(
            "CONNECT {{\"verbose\":false}}\r\nPUB {subject} {}\r\n",
            payload.len()
        );
        let bytes = [head.as_bytes(), payload, b"\r\nPING\r\n"].concat();
        stream.write_all(&bytes).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            assert!(!line.starts_with("-ERR"), "{line}");
            if line == "PONG" {
                return;
            }
        }
    }

    /// Asks the API of JetStream as an operator does; the answer's text.
    pub(crate) async fn api(&self, call: &str, question: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.nats.port()))
            .await
            .unwrap();
        let request = format!(
            "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB $JS.API.{call} answer {}\r\n{question}\r\n",
            question.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            assert!(!line.starts_with("-ERR"), "{line}");
            if line.starts_with("MSG answer ") {
                return lines.next_line().await.unwrap().unwrap();
            }
        }
    }

    /// Notes what everybody asks JetStream about the streams of this group, and writes as claims, from now on, as an operator may look
    /// on.
    pub(crate) async fn note_calls(&self, group: Group) -> Calls {
        let mut stream = TcpStream::connect(("127.0.0.1", self.nats.port()))
            .await
            .unwrap();
        stream
            .write_all(b"CONNECT {\"verbose\":false}\r\nSUB $JS.API.> 1\r\nSUB $KV.MB_test_LIVE.claim.> 2\r\nPING\r\n")
            .await
            .unwrap();
        // What is written is no text.
        let mut lines = BufReader::new(stream).split(b'\n');
        while lines.next_segment().await.unwrap().unwrap() != b"PONG\r" {}
        let calls = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&calls);
        let task = tokio::spawn(async move {
            while let Some(line) = lines.next_segment().await.unwrap() {
                let line = String::from_utf8_lossy(&line);
                let what = line.strip_prefix("MSG ").and_then(|what| {
                    let api = what.strip_prefix("$JS.API.");
                    api.or_else(|| what.strip_prefix("$KV."))
                });
                if let Some(call) = what {
                    let call = call.split(' ').next().unwrap();
                    noted.lock().unwrap().push(call.to_owned());
                }
            }
        });
        Calls { group, calls, task }
    }

    /// Leaves the log of this group no room for anything more; its configuration before that.
    pub(crate) async fn fill_log(&self, group: Group) -> String {
        let stream = format!("MB_test_LOG_{group}");
        let (info, config) = self.stream(&stream).await;
        let (stored, most) = (number(&info, "bytes"), number(&config, "max_bytes"));
        let full = config
            .replace(
                &format!("\"max_bytes\":{most}"),
                &format!("\"max_bytes\":{stored}"),
            )
            .replace("\"discard\":\"old\"", "\"discard\":\"new\"");
        self.update_stream(&stream, &full).await;
        config
    }

    /// Lets a stream take nothing any more; its configuration before that.
    pub(crate) async fn refuse_all(&self, stream: &str) -> String {
        let (_, config) = self.stream(stream).await;
        let most = number(&config, "max_msg_size");
        let nothing = config.replace(&format!("\"max_msg_size\":{most}"), "\"max_msg_size\":1");
        self.update_stream(stream, &nothing).await;
        config
    }

    /// What JetStream tells of a stream, and of that its configuration.
    async fn stream(&self, stream: &str) -> (String, String) {
        let info = self.api(&format!("STREAM.INFO.{stream}"), "").await;
        let (_, config) = info.split_once("\"config\":").unwrap();
        let (config, _) = config.split_once(",\"created\":").unwrap();
        let config = config.to_owned();
        (info, config)
    }

    /// Gives a stream another configuration.
    pub(crate) async fn update_stream(&self, stream: &str, config: &str) {
        let call = format!("STREAM.UPDATE.{stream}");
        let answer = self.api(&call, config).await;
        assert!(!answer.contains("\"error\""), "{answer}");
    }

    /// Deletes a stream as an operator may.
    pub(crate) async fn delete_stream(&self, name: &str) {
        self.publish(&format!("$JS.API.STREAM.DELETE.{name}"), b"")
            .await;
    }

    /// Starts another watcher, or the same member with other options.
    pub(crate) async fn begin(
        &mut self,
        member: &str,
        change: impl FnOnce(&mut Options),
    ) -> Running {
        self.incarnation += 1;
        let bus = connect(&self.nats, Role::Watcher, self.timing).await;
        let mut options = Options::new(member, format!("start-{}", self.incarnation));
        options.limits.poll_least = Duration::from_millis(500);
        options.limits.tell_after = Duration::from_secs(2);
        options.limits.sweep = Duration::from_secs(2);
        options.limits.permanent_retry = Duration::from_secs(5);
        options.limits.reconnect_most = Duration::from_secs(3);
        options.limits.unread_age = Duration::from_secs(1);
        options.limits.append_most = Duration::from_secs(2);
        change(&mut options);
        let authority = self.dovecot.certificate().authority_pem.clone();
        let known = || TlsSettings::only([authority.as_bytes()]).unwrap();
        let mut imap = Settings::new(self.trust.clone().unwrap_or_else(known));
        imap.allow_plaintext = true;
        let mut registry = Registry::new("watcher");
        let metrics = Metrics::register(registry.registry());
        let health = ProcessHealth::new();
        let ring = KeyRing::from_text(&self.ring).unwrap();
        let (mut watcher, handle) =
            Watcher::new(options, bus, imap, ring, metrics, health.clone()).unwrap();
        if let Some(file) = &self.policy {
            watcher = watcher.with_policy(file);
        }
        let (drain, drained) = Drain::new();
        let task = tokio::spawn(watcher.run(drained));
        Running {
            drain,
            task,
            handle,
            registry: Arc::new(registry),
            health,
        }
    }

    /// As SIGTERM does.
    pub(crate) async fn drain(&mut self, window: Duration) -> Result<(), Undrained> {
        let running = self.running.take().unwrap();
        let drained = running.drain.drain_with_timeout(window).await;
        if drained.is_ok() {
            timeout(LIMIT, running.task)
                .await
                .unwrap()
                .unwrap()
                .unwrap();
        }
        drained
    }

    /// As a crash does: nothing is stored, nothing is released, the connections to the mail server break.
    pub(crate) async fn crash(&mut self) {
        self.running.take().unwrap().crash().await;
    }

    /// Waits until a metric has this value.
    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        let begun = Instant::now();
        while self.metric(name) != value {
            assert!(begun.elapsed() < LIMIT, "{name}\n{}", self.metrics());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Another connection.
    pub(crate) async fn bus(&self, role: Role) -> Bus {
        connect(&self.nats, role, self.timing).await
    }

    /// Leaves the running watcher to itself; its end.
    pub(crate) fn leave(&mut self) -> JoinHandle<Result<(), Error>> {
        let Running { drain, task, .. } = self.running.take().unwrap();
        tokio::spawn(async move {
            let _held = drain;
            task.await.unwrap()
        })
    }

    pub(crate) fn metrics(&self) -> String {
        self.running.as_ref().unwrap().registry.encode().unwrap()
    }

    /// As [`Running::metric`].
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.running.as_ref().unwrap().metric(name)
    }

    pub(crate) fn record(&self, folders: &[&str]) -> AccountRecord {
        AccountRecord {
            schema: 1,
            host: "localhost".to_owned(),
            port: self.dovecot.imaps_port().into(),
            tls: TlsMode::Implicit.into(),
            user: USER.to_owned(),
            folders: folders.iter().map(|name| (*name).to_owned()).collect(),
            credential_version: 1,
            ..AccountRecord::default()
        }
    }

    pub(crate) fn sealed(
        &self,
        account: &AccountId,
        record: &AccountRecord,
        password: &str,
    ) -> SealedCredential {
        let binding = Binding::of(account, record);
        seal(&self.key, &binding, password.as_bytes(), &mut rand::rng()).unwrap()
    }

    /// Adds an account as the admin API does: the login is checked first, and what was found is the first checkpoint.
    pub(crate) async fn add(&self, folders: &[&str]) -> AccountId {
        let account = AccountId::new(Tenant::default(), Ulid::generate());
        let record = self.record(folders);
        let sealed = self.sealed(&account, &record, "secret");
        let check = CheckLogin {
            account: Some(record.clone()),
            credential: Some(sealed.clone()),
        };
        let result = self.check(&account, check).await.unwrap();
        assert!(result.ok, "{result:?}");
        let looked = result
            .folders
            .into_iter()
            .map(|folder| (folder.name, folder.generation, folder.uid_next));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now_us = i64::try_from(now.unwrap().as_micros()).unwrap();
        let checkpoint = Checkpoint::first(looked, now_us);
        let stored = self
            .admin
            .checkpoints()
            .store(&account, &checkpoint, 0)
            .await;
        assert!(matches!(stored, Ok(Cas::Stored(_))), "{stored:?}");
        self.write(&account, record, Some(sealed)).await;
        account
    }

    /// Writes credential and record, whatever was there.
    pub(crate) async fn write(
        &self,
        account: &AccountId,
        record: AccountRecord,
        sealed: Option<SealedCredential>,
    ) {
        if let Some(sealed) = sealed {
            self.admin
                .credentials()
                .put(account, &sealed)
                .await
                .unwrap();
        }
        let accounts = self.admin.accounts();
        let written = match accounts.get(account).await.unwrap() {
            Some(found) => accounts.update(account, &record, found.revision).await,
            None => accounts.create(account, &record).await,
        };
        assert!(matches!(written, Ok(Cas::Stored(_))), "{written:?}");
    }

    pub(crate) async fn check(
        &self,
        account: &AccountId,
        check: CheckLogin,
    ) -> Result<CheckResult, OwnerError> {
        match self.ask(&self.admin, account, Request::Check(check)).await {
            Response::Check(result) => Ok(result),
            Response::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn list(
        &self,
        account: &AccountId,
        page: ListPage,
    ) -> Result<PageResult, OwnerError> {
        match self.ask(&self.gateway, account, Request::List(page)).await {
            Response::Page(page) => Ok(page),
            Response::Error(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    async fn ask(&self, bus: &Bus, account: &AccountId, request: Request) -> Response {
        let request = OwnerRequest {
            request: Some(request),
            ..OwnerRequest::default()
        };
        let answer = bus.ask(account, request, LIMIT).await.unwrap();
        answer.response.unwrap()
    }
}
