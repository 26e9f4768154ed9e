//! How partitions are shared, as the API shows it. The watchers are records that the tests write.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use mailbell_admin::Service;
use mailbell_bus::{Bus, BusOptions, Role};
use mailbell_core::{
    ids::{AccountId, Partition},
    seal::KeyRing,
    timing::Timing,
};
use mailbell_proto::{
    admin::v1::{
        CreateAccountRequest, DrainMemberRequest, GetAccountRequest, GetShardsRequest,
        GetShardsResponse, MemberState, ShardMember, accounts_client::AccountsClient,
        get_account_request::By, shards_client::ShardsClient,
    },
    bus::v1::{Claim, DrainRequest, Member, MemberLoad, StatusRecord},
    push::v1::{AccountState, Health},
};
use mailbell_runtime::drain::Drain;
use mailbell_test_servers::{NatsOptions, NatsServer};
use prost::Message as _;
use tonic::{Code, service::interceptor::InterceptedService, transport::Channel};

use crate::world::{Bearer, TOKEN, request, service, until_ready};

const LIMIT: Duration = Duration::from_secs(60);

/// A member is dead after three seconds.
fn timing() -> Timing {
    Timing::default().faster(4)
}

struct Shared {
    nats: NatsServer,
    raw: async_nats::Client,
    watcher: Bus,
    shards: ShardsClient<InterceptedService<Channel, Bearer>>,
    accounts: AccountsClient<InterceptedService<Channel, Bearer>>,
    /// What renews, and how.
    alive: BTreeMap<String, Member>,
    drain: Drain,
    run: tokio::task::JoinHandle<Result<(), mailbell_admin::Error>>,
}

async fn connect(nats: &NatsServer, role: Role) -> Bus {
    let options = BusOptions {
        timing: timing(),
        ..BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role)
    };
    Bus::connect(options).await.unwrap()
}

fn member(id: &str) -> Member {
    Member {
        schema: 1,
        id: id.to_owned(),
        incarnation: "1".to_owned(),
        weight: 100,
        release: "0.1.0".to_owned(),
        load: Some(MemberLoad {
            watching: 7,
            waiting_pace: 2,
            ..MemberLoad::default()
        }),
        ..Member::default()
    }
}

impl Shared {
    async fn start() -> Self {
        let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
        connect(&nats, Role::Setup).await.setup().await.unwrap();
        let watcher = connect(&nats, Role::Watcher).await;
        let key = KeyRing::default().add(1, &mut rand::rng()).unwrap();
        watcher.sealing_keys().put(&key.to_record()).await.unwrap();
        let bus = connect(&nats, Role::Admin).await;
        let (service, health): (Service, _) = service(bus, Duration::from_secs(5));
        let addr: SocketAddr = service.addr();
        let (drain, handle) = Drain::new();
        let mut run = tokio::spawn(service.run(handle));
        until_ready(&mut run, &health).await;
        let channel = Channel::from_shared(format!("http://{addr}")).unwrap();
        let channel = channel.connect().await.unwrap();
        let raw = async_nats::connect(nats.url()).await.unwrap();
        Self {
            nats,
            raw,
            watcher,
            shards: ShardsClient::with_interceptor(channel.clone(), Bearer(TOKEN)),
            accounts: AccountsClient::with_interceptor(channel, Bearer(TOKEN)),
            alive: BTreeMap::new(),
            drain,
            run,
        }
    }

    async fn stop(self) {
        drop((self.shards, self.accounts));
        self.drain
            .drain_with_timeout(Duration::from_secs(10))
            .await
            .unwrap();
        self.run.await.unwrap().unwrap();
    }

    /// Writes as a watcher does.
    async fn put(&self, key: &str, value: Vec<u8>) {
        let subject = format!("$KV.MB_test_LIVE.{key}");
        let answer = self.raw.request(subject, value.into()).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer.payload).contains("error"));
    }

    /// It renews whenever somebody looks, from now on.
    async fn announce(&mut self, member: Member) {
        self.put(&format!("member.{}", member.id), member.encode_to_vec())
            .await;
        self.alive.insert(member.id.clone(), member);
    }

    async fn claim(&self, partition: Partition, id: &str) {
        let claim = Claim {
            schema: 1,
            member: id.to_owned(),
            incarnation: "1".to_owned(),
            owner_epoch: 1,
            ..Claim::default()
        };
        let key = format!("claim.{partition}");
        self.put(&key, claim.encode_to_vec()).await;
    }

    async fn look(&mut self) -> GetShardsResponse {
        for member in self.alive.values() {
            self.put(&format!("member.{}", member.id), member.encode_to_vec())
                .await;
        }
        let answer = self.shards.get_shards(GetShardsRequest {}).await;
        answer.unwrap().into_inner()
    }

    /// Looks until it is so.
    async fn until(&mut self, so: impl Fn(&GetShardsResponse) -> bool) -> GetShardsResponse {
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        let mut last = None;
        let wait = async {
            loop {
                tick.tick().await;
                let board = self.look().await;
                if so(&board) {
                    return board;
                }
                last = Some(board);
            }
        };
        let board = tokio::time::timeout(LIMIT, wait).await;
        board.unwrap_or_else(|_| panic!("it stays as it is: {last:?}"))
    }

    async fn account(&mut self) -> AccountId {
        let made = self
            .accounts
            .create_account(CreateAccountRequest {
                no_check: true,
                ..request("one")
            })
            .await;
        let made = made.unwrap().into_inner().account.unwrap();
        made.id.parse().unwrap()
    }

    async fn state(&mut self, id: &AccountId) -> AccountState {
        let by = Some(By::Id(id.to_string()));
        let account = self.accounts.get_account(GetAccountRequest { by }).await;
        account.unwrap().into_inner().state.unwrap()
    }
}

fn row<'a>(board: &'a GetShardsResponse, id: &str) -> &'a ShardMember {
    let mut members = board.members.iter();
    members.find(|member| member.id == id).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_what_is_shown_and_who_died_is_missed() {
    let mut world = Shared::start().await;
    let id = world.account().await;
    let board = world.look().await;
    assert!(board.members.is_empty());
    let totals = board.totals.unwrap();
    assert_eq!((totals.accounts, totals.accounts_unowned), (1, 1));

    world.announce(member("a")).await;
    world.claim(id.partition(), "a").await;
    let board = world.until(|board| board.steady).await;
    let a = row(&board, "a");
    assert_eq!(a.state(), MemberState::Live);
    assert_eq!((a.owned, a.wanted, a.accounts), (1, 1024, 1));
    assert_eq!((a.watching, a.waiting_pace), (7, 2));
    assert_eq!(board.totals.unwrap().accounts_unowned, 0);
    let status = StatusRecord {
        schema: 1,
        state: Some(AccountState {
            health: Health::Watching.into(),
            mode: "idle".to_owned(),
            ..AccountState::default()
        }),
        ..StatusRecord::default()
    };
    world.watcher.statuses().put(&id, &status).await.unwrap();
    assert_eq!(world.state(&id).await.health(), Health::Watching);

    // It dies, and nobody follows.
    world.alive.clear();
    let board = world
        .until(|board| board.totals.unwrap().accounts_unowned == 1)
        .await;
    assert_eq!(row(&board, "a").state(), MemberState::Dead);
    assert!(board.totals.unwrap().unowned_ms >= 3000);
    let state = world.state(&id).await;
    assert_eq!(
        (state.health(), state.code.as_str()),
        (Health::Retrying, "no-watcher")
    );
    assert!(state.since_ms > 0 && state.mode.is_empty());

    // Another one takes it.
    world.announce(member("b")).await;
    world.claim(id.partition(), "b").await;
    world
        .until(|board| board.totals.unwrap().accounts_unowned == 0)
        .await;
    assert_eq!(world.state(&id).await.health(), Health::Watching);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_lives_is_asked_to_drain() {
    let mut world = Shared::start().await;
    let ask = |member: &str, undo: bool| DrainMemberRequest {
        member: member.to_owned(),
        undo,
    };
    let refused = world.shards.drain_member(ask("a.b", false)).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    let refused = world
        .shards
        .drain_member(ask("a", false))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused
            .message()
            .contains("no watcher has announced itself")
    );

    let left = Member {
        left: true,
        ..member("gone")
    };
    for member in [member("a"), member("b"), left] {
        world.announce(member).await;
    }
    world.claim(Partition::new(7).unwrap(), "a").await;
    for wrong in ["c", "gone"] {
        let refused = world.shards.drain_member(ask(wrong, false)).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound);
        assert!(
            refused.message().ends_with(": a, b"),
            "{}",
            refused.message()
        );
    }
    for (undo, changed) in [(false, true), (false, false), (true, true), (true, false)] {
        let done = world.shards.drain_member(ask("a", undo)).await;
        let done = done.unwrap().into_inner();
        assert_eq!((done.changed, done.owned), (changed, 1), "undo {undo}");
        assert_eq!(done.incarnation, "1");
        let id = "a".parse().unwrap();
        let asked: DrainRequest = world
            .watcher
            .live()
            .drain_request(&id)
            .await
            .unwrap()
            .unwrap()
            .value;
        assert_eq!((asked.drain, asked.incarnation.as_str()), (!undo, "1"));
        // As the watcher would.
        world
            .announce(Member {
                draining: !undo,
                ..member("a")
            })
            .await;
        let board = world.look().await;
        let state = row(&board, "a").state();
        let expected = match undo {
            false => MemberState::Draining,
            true => MemberState::Live,
        };
        assert_eq!(state, expected);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_dead_for_who_cannot_read() {
    let mut world = Shared::start().await;
    let id = world.account().await;
    world.announce(member("a")).await;
    world.claim(id.partition(), "a").await;
    world.until(|board| board.steady).await;
    world.nats.kill();
    let failed = world.shards.get_shards(GetShardsRequest {}).await;
    assert_eq!(failed.unwrap_err().code(), Code::Unavailable);
    world.nats.restart().await.unwrap();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let again = async {
        loop {
            tick.tick().await;
            if let Ok(board) = world.shards.get_shards(GetShardsRequest {}).await {
                return board.into_inner();
            }
        }
    };
    let board = tokio::time::timeout(LIMIT, again).await.unwrap();
    let owned = board.totals.unwrap().accounts_unowned == 0;
    // The bucket's keys may have aged out meanwhile on a machine that is very busy: then there is nobody to be dead.
    assert!(owned || board.members.is_empty(), "{board:?}");
    world.stop().await;
}
