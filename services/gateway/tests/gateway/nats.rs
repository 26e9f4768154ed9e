//! The same on a real NATS server.

use std::{sync::Arc, time::Duration};

use mailbell_bus::{
    AppendOutcome, Auth, Bus, BusOptions, Logs, Role, Secret, ServeOptions,
    permissions::permissions,
    server_config::{permissions_text, user_name},
};
use mailbell_core::{
    delivery::WindowLimits,
    event::Event,
    ids::{Installation, Partition},
    timing::Timing,
};
use mailbell_gateway::{Options, source::BusSource};
use mailbell_proto::{
    bus::v1::{AccountRecord, OwnerResponse, PageResult, owner_response::Response as Answer},
    push::v1::{ListMessagesRequest, ResyncReason, SubscribeRequest},
};
use mailbell_test_servers::nats::{NatsOptions, NatsServer};
use tonic::Code;

use crate::support::{Minter, Running, account, arrival, bearer, now_s, options};

const PASSWORD: &str = "not-a-secret";

struct World {
    server: NatsServer,
    watcher: Bus,
    admin: Bus,
    logs: Logs,
    gateway: Running,
}

/// Every role with its own user and no more rights than it has in production, and one who may do anything.
fn users() -> String {
    let user = |role: Role| {
        let name = user_name(role);
        let rights = permissions_text(&permissions(role, &Installation::default()));
        format!("{{ user: {name}, password: {PASSWORD}, permissions: {rights} }}\n")
    };
    let users: String = Role::ALL.into_iter().map(user).collect();
    format!("authorization {{ users: [\n{users}{{ user: root, password: {PASSWORD} }}\n] }}\n")
}

async fn connect(server: &NatsServer, role: Role) -> Bus {
    // Short waits are the gateway's; to the others nothing is to happen here, however busy the machine is.
    let timing = match role {
        Role::Gateway => options().timing,
        _ => Timing::default(),
    };
    let options = BusOptions {
        auth: Auth::UserPassword {
            user: user_name(role).to_owned(),
            password: Secret::new(PASSWORD),
        },
        timing,
        ..BusOptions::new(vec![server.url()], Installation::default(), role)
    };
    Bus::connect(options).await.unwrap()
}

impl World {
    async fn start() -> Self {
        let options = NatsOptions {
            config: users(),
            ..NatsOptions::default()
        };
        let server = NatsServer::start(options).await.unwrap();
        connect(&server, Role::Setup).await.setup().await.unwrap();
        let watcher = connect(&server, Role::Watcher).await;
        let admin = connect(&server, Role::Admin).await;
        let minter = Minter::new("k1");
        admin.issuers().put(&minter.issuer()).await.unwrap();
        let record = AccountRecord::default();
        admin.accounts().create(&account(0), &record).await.unwrap();
        let logs = watcher.logs().await.unwrap();
        let gateway = start_gateway(&server, minter).await;
        gateway.ready().await;
        Self {
            server,
            watcher,
            admin,
            logs,
            gateway,
        }
    }

    async fn append(&self, uids: std::ops::RangeInclusive<u32>) {
        for uid in uids {
            append(&self.logs, &arrival(&account(0), uid)).await;
        }
    }
}

async fn start_gateway(server: &NatsServer, minter: Minter) -> Running {
    let bus = connect(server, Role::Gateway).await;
    let source = Arc::new(BusSource::new(bus).await.unwrap());
    let options = Options {
        window: WindowLimits {
            entries: 8,
            bytes: 1024 * 1024,
        },
        ..options()
    };
    Running::start(source, minter, options)
}

/// Appends as an owner does: again until it is stored.
async fn append(logs: &Logs, event: &Event) {
    loop {
        match logs.append(event).await {
            AppendOutcome::Stored { .. } => return,
            AppendOutcome::NoAnswer | AppendOutcome::Disconnected => {}
            refused @ AppendOutcome::Refused { .. } => panic!("{refused:?}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_replayed_and_over_a_restart_of_the_server() {
    let mut world = World::start().await;
    let mut device = world.gateway.device(&[account(0)]).await;
    device.live().await;
    world.append(1..=3).await;
    assert_eq!(device.uids(3).await, [1, 2, 3]);
    device.cursor_at(&account(0), 3).await;
    let before = device;

    world.append(4..=60).await;
    let received = || world.gateway.value("received_total") == 60.0;
    world.gateway.until("received", received).await;
    let mut device = world.gateway.again(&before, &[account(0)]).await;
    let expected: Vec<u32> = (4..=60).collect();
    assert_eq!(device.uids(57).await, expected);
    device.live().await;

    let minter = Minter::new("k2");
    let issuer = minter.issuer();
    world.admin.issuers().put(&issuer).await.unwrap();
    world.server.kill();
    while device.silent_since_ms == 0 {
        device.try_next().await.unwrap();
    }
    world.server.restart().await.unwrap();
    world.append(61..=80).await;
    let expected: Vec<u32> = (61..=80).collect();
    assert_eq!(device.uids(20).await, expected);

    // Another gateway, whose window holds nothing of it.
    let other = start_gateway(&world.server, minter).await;
    other.ready().await;
    let mut device = other.again(&before, &[account(0)]).await;
    let expected: Vec<u32> = (4..=80).collect();
    assert_eq!(device.uids(77).await, expected);
    device.live().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_accounts_are_those_of_the_bus() {
    let world = World::start().await;
    let token = world.gateway.minter.token(&[account(0), account(1)]);
    let missing = SubscribeRequest {
        accounts: vec![account(1).to_string()],
        ..SubscribeRequest::default()
    };
    assert_eq!(world.gateway.refused(missing, &token).await, Code::NotFound);
    let mut device = world.gateway.device(&[account(0)]).await;
    device.live().await;
    let tenant = "t".parse().unwrap();
    let expires = (now_s() + 3600) * 1000;
    let revocations = world.admin.revocations();
    revocations.revoke(&tenant, "t1", expires).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), device.rest());
    assert_eq!(ended.await.unwrap().1.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_lost_is_a_resync() {
    let world = World::start().await;
    let mut device = world.gateway.device(&[account(0)]).await;
    device.live().await;
    world.append(1..=5).await;
    device.uids(5).await;
    device.cursor_at(&account(0), 5).await;
    let group = account(0).group();
    delete_log(&world.server, group.number()).await;
    connect(&world.server, Role::Setup)
        .await
        .setup()
        .await
        .unwrap();
    // Whoever looks finds that the history is another.
    world.logs.ids().check(group).await.unwrap();
    assert_eq!(device.resync().await.reason(), ResyncReason::LogChanged);
    world.append(6..=6).await;
    assert_eq!(device.uids(1).await, [6]);
    device.cursor.clear();
    device.cursor_at(&account(0), 1).await;
    // The cursor of the new history is good: no second resync.
    let mut again = world.gateway.again(&device, &[account(0)]).await;
    again.live().await;
}

/// Deletes a stream as an operator might, over a connection of our own.
async fn delete_log(server: &NatsServer, group: u8) {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port()))
        .await
        .unwrap();
    let (read, mut write) = stream.into_split();
    let subject = format!("$JS.API.STREAM.DELETE.MB_main_LOG_{group}");
    let said = format!(
        "CONNECT {{\"verbose\":false,\"user\":\"root\",\"pass\":\"{PASSWORD}\"}}\r\nSUB answer 1\r\nPUB {subject} answer 0\r\n\r\n"
    );
    write.write_all(said.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("\"success\":true") {
            return;
        }
    }
    panic!("the stream was not deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_through_the_owner() {
    let world = World::start().await;
    let token = world.gateway.minter.token(&[account(0)]);
    let request = || {
        let request = ListMessagesRequest {
            account: account(0).to_string(),
            ..ListMessagesRequest::default()
        };
        bearer(request, &token)
    };
    let mut client = world.gateway.client().await;
    let nobody = client.list_messages(request()).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unavailable);
    let service = world.watcher.serve(ServeOptions::default(), |_, _| async {
        OwnerResponse {
            response: Some(Answer::Page(PageResult {
                generation: 3,
                exists: 9,
                ..PageResult::default()
            })),
        }
    });
    let partitions: Vec<Partition> = vec![account(0).partition()];
    service.own(&partitions).await.unwrap();
    let page = client.list_messages(request()).await.unwrap().into_inner();
    assert_eq!((page.generation, page.exists), (3, 9));
}
