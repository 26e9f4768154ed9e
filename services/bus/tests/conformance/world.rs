//! A server with the users of all roles, and what tests need again and again.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use mailbell_bus::{
    AppendOutcome, Auth, Bus, BusOptions, Followed, Follower, Logs, Refusal, Role, Secret,
    StorageLimits,
    server_config::{password_variable, user_name, users_config},
};
use mailbell_core::{
    event::{Event, Fact},
    ids::{AccountId, Installation, Partition, Position, Tenant},
};
use mailbell_test_servers::{NatsOptions, NatsServer, Proxy};

/// The password of every role's user.
pub(crate) const PASSWORD: &str = "for-tests-only";
/// The user who may everything, for what only an operator does.
const OPERATOR: &str = "operator";

/// How long a test waits for what must come.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The users as `mailbell setup --print-permissions` prints them, and the operator.
pub(crate) fn users() -> String {
    let mut text = String::new();
    for role in Role::ALL {
        let _ = writeln!(text, "{}: {PASSWORD:?}", password_variable(role));
    }
    let operator = format!("users: [\n    {{ user: {OPERATOR:?}, password: {PASSWORD:?} }}");
    let printed = users_config(&Installation::default());
    text.push_str(&printed.replacen("users: [", &operator, 1));
    text
}

pub(crate) fn options(url: &str, role: Role) -> BusOptions {
    let urls = url.split(',').map(ToOwned::to_owned).collect();
    BusOptions {
        auth: Auth::UserPassword {
            user: user_name(role).to_owned(),
            password: Secret::new(PASSWORD),
        },
        storage: StorageLimits::fitting(1 << 30),
        ..BusOptions::new(urls, Installation::default(), role)
    }
}

/// One server, set up.
pub(crate) struct World {
    pub(crate) server: NatsServer,
    /// Changes what every connection is made with.
    change: fn(&mut BusOptions),
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Not set up.
    pub(crate) async fn bare() -> Self {
        Self {
            server: bare_server().await,
            change: |_| {},
        }
    }

    pub(crate) async fn start_with(change: fn(&mut BusOptions)) -> Self {
        let world = Self {
            server: bare_server().await,
            change,
        };
        world.bus(Role::Setup).await.setup().await.unwrap();
        world
    }

    pub(crate) fn options(&self, role: Role) -> BusOptions {
        let mut options = options(&self.server.url(), role);
        (self.change)(&mut options);
        options
    }

    /// A way to the server that can be cut, and its URL.
    pub(crate) async fn proxy(&self) -> (Proxy, String) {
        let server = ([127, 0, 0, 1], self.server.port()).into();
        let proxy = Proxy::start(server).await.unwrap();
        let url = format!("nats://{}", proxy.address());
        (proxy, url)
    }

    pub(crate) async fn bus(&self, role: Role) -> Bus {
        Bus::connect(self.options(role)).await.unwrap()
    }

    pub(crate) async fn logs(&self, role: Role) -> Logs {
        self.bus(role).await.logs().await.unwrap()
    }

    /// A connection without Mailbell and without limits.
    pub(crate) async fn operator(&self) -> async_nats::Client {
        self.raw(OPERATOR).await
    }

    /// A connection as a role's user, without Mailbell.
    pub(crate) async fn raw(&self, user: &str) -> async_nats::Client {
        async_nats::ConnectOptions::new()
            .user_and_password(user.to_owned(), PASSWORD.to_owned())
            .custom_inbox_prefix(format!("mb.main.inbox.{user}.raw"))
            .request_timeout(Some(SOON))
            .connect(self.server.url())
            .await
            .unwrap()
    }
}

pub(crate) async fn bare_server() -> NatsServer {
    NatsServer::start(NatsOptions {
        config: users(),
        ..NatsOptions::default()
    })
    .await
    .unwrap()
}

/// Asks JetStream as the operator does.
pub(crate) async fn api(
    client: &async_nats::Client,
    call: &str,
    question: serde_json::Value,
) -> serde_json::Value {
    let answer = client
        .request(format!("$JS.API.{call}"), question.to_string().into())
        .await
        .unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

/// Account number `number` of a partition.
pub(crate) fn account(partition: u16, number: usize) -> AccountId {
    account_of(&Tenant::default(), partition, number)
}

pub(crate) fn account_of(tenant: &Tenant, partition: u16, number: usize) -> AccountId {
    all_of(tenant, partition).nth(number).unwrap()
}

/// So many accounts of a partition.
pub(crate) fn accounts_of(partition: u16, count: usize) -> Vec<AccountId> {
    all_of(&Tenant::default(), partition).take(count).collect()
}

fn all_of(tenant: &Tenant, partition: u16) -> impl Iterator<Item = AccountId> {
    (0u64..)
        .map(move |n| {
            format!("{tenant}.{}", ulid_text(n))
                .parse::<AccountId>()
                .unwrap()
        })
        .filter(move |account| account.partition().number() == partition)
}

fn ulid_text(n: u64) -> String {
    format!("01ARZ3NDEKTSV4{n:012}")
}

pub(crate) fn partition(number: u16) -> Partition {
    Partition::new(number).unwrap()
}

/// The arrival of this UID.
pub(crate) fn event(account: &AccountId, uid: u32) -> Event {
    Event {
        account: account.clone(),
        folder: 1,
        generation: 7,
        fact: Fact::Arrived {
            uid,
            digest: u64::from(uid),
        },
        alert: true,
        owner_epoch: 1,
        traceparent: String::new(),
        detected_us: 1,
        fetched_us: 2,
        folder_name: "INBOX".to_owned(),
        content: Bytes::from(format!("message {uid}")),
    }
}

pub(crate) fn uid(event: &Event) -> u32 {
    match event.fact {
        Fact::Arrived { uid, .. } => uid,
        ref other => panic!("{other:?}"),
    }
}

/// Appends, and insists on it.
pub(crate) async fn append(logs: &Logs, event: &Event) -> Position {
    match logs.append(event).await {
        AppendOutcome::Stored { position, .. } => position,
        other => panic!("{other:?}"),
    }
}

/// Appends the UIDs of a range.
pub(crate) async fn append_all(
    logs: &Logs,
    account: &AccountId,
    uids: std::ops::RangeInclusive<u32>,
) {
    for uid in uids {
        append(logs, &event(account, uid)).await;
    }
}

/// Appends the same again until it is stored, as a watcher does.
pub(crate) async fn insist(logs: &Logs, event: &Event) -> AppendOutcome {
    soon(async {
        loop {
            match logs.append(event).await {
                stored @ AppendOutcome::Stored { .. } => return stored,
                AppendOutcome::Refused {
                    class: Refusal::NoStream,
                    ..
                }
                | AppendOutcome::NoAnswer
                | AppendOutcome::Disconnected => tokio::task::yield_now().await,
                refused => panic!("{refused:?}"),
            }
        }
    })
    .await
}

/// Waits for what must come.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap()
}

/// Subscribes, and the server knows of it: `flush` of the client says only that it was sent, and what another connection publishes
/// then may come before it.
pub(crate) async fn listen(client: &async_nats::Client, subject: &str) -> async_nats::Subscriber {
    let heard = client.subscribe(subject.to_owned()).await.unwrap();
    let echo = client.new_inbox();
    let mut echoed = client.subscribe(echo.clone()).await.unwrap();
    client.publish(echo, "".into()).await.unwrap();
    soon(echoed.next()).await.unwrap();
    heard
}

/// What comes next, but for a consumer that was lost: the one that is made anew tells of that.
pub(crate) async fn followed(follower: &mut Follower) -> Followed {
    loop {
        match soon(follower.next()).await.unwrap() {
            Followed::Lost { .. } => {}
            followed => return followed,
        }
    }
}

/// The UID of the next entry, past whatever else the follower tells.
pub(crate) async fn next_uid(follower: &mut Follower) -> u32 {
    loop {
        if let Followed::Entry(entry) = followed(follower).await {
            return uid(&entry.event.unwrap());
        }
    }
}
