//! What changes with three nodes.

use mailbell_bus::{Bus, BusOptions, Filter, Followed, Link, Metrics, Role, patiently};
use mailbell_core::ids::Group;
use mailbell_test_servers::{NatsCluster, NatsOptions, proxy::Mode};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

use crate::world::{PASSWORD, account, api, event, followed, insist, options, soon, uid, users};

async fn cluster() -> NatsCluster {
    let cluster = NatsCluster::start_with(
        3,
        NatsOptions {
            config: users(),
            ..NatsOptions::default()
        },
    )
    .await
    .unwrap();
    set_up(&connect(&cluster, Role::Setup).await).await;
    cluster
}

async fn set_up(setup: &Bus) {
    soon(async {
        // A cluster that has just begun places no stream.
        while let Err(error) = setup.setup().await {
            assert!(error.is_retryable(), "{error}");
        }
    })
    .await;
    let verified = soon(patiently(|| setup.verify())).await.unwrap();
    assert_eq!(verified.drift, []);
}

/// Servers that start together find each other within seconds, and until then there seem to be too few of them.
#[tokio::test]
async fn setup_waits_for_servers_that_may_still_come() {
    let options = NatsOptions {
        config: users(),
        ..NatsOptions::default()
    };
    let cluster = NatsCluster::start_with(2, options).await.unwrap();
    let mut registry = Registry::default();
    let options = BusOptions {
        replicas: 3,
        metrics: Metrics::register(&mut registry),
        ..crate::world::options(&cluster.url(), Role::Setup)
    };
    let setup = Bus::connect(options).await.unwrap();
    let refused = soon(setup.setup()).await.unwrap_err();
    assert!(refused.to_string().contains("peers"), "{refused}");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("bus_calls_failed_total{code=\"refused\"} "));
    // As many streams are tried at once.
    let count: u64 = count.unwrap().parse().unwrap();
    assert!(count > 16 * 2, "{count}");
}

#[tokio::test]
async fn copies_are_never_thinned_out() {
    let cluster = cluster().await;
    // As somebody who doesn't say how many.
    let single = Bus::connect(options(&cluster.url(), Role::Setup))
        .await
        .unwrap();
    assert_eq!(single.setup().await.unwrap().drift, []);
    let operator = operator(&cluster).await;
    let info: Value = api(&operator, "STREAM.INFO.MB_main_LOG_5", json!({})).await;
    assert_eq!(info["config"]["num_replicas"], 3);
}

async fn connect(cluster: &NatsCluster, role: Role) -> Bus {
    Bus::connect(BusOptions {
        replicas: 3,
        ..options(&cluster.url(), role)
    })
    .await
    .unwrap()
}

async fn operator(cluster: &NatsCluster) -> async_nats::Client {
    let options = async_nats::ConnectOptions::new()
        .user_and_password("operator".to_owned(), PASSWORD.to_owned());
    options
        .connect(
            cluster
                .url()
                .split(',')
                .map(ToOwned::to_owned)
                .collect::<Vec<_>>(),
        )
        .await
        .unwrap()
}

/// The node that leads a stream, once there is one.
async fn leader(cluster: &NatsCluster, stream: &str) -> usize {
    soon(async {
        loop {
            if let Some(leader) = cluster.stream_leader(stream).await {
                return leader;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_leader_is_killed() {
    let mut cluster = cluster().await;
    let watcher = connect(&cluster, Role::Watcher).await;
    let logs = watcher.logs().await.unwrap();
    let gateway = connect(&cluster, Role::Gateway).await.logs().await.unwrap();
    let group = account(5, 0).group();
    let id = logs.ids().get(group);
    let mut follower = gateway.follow(group, 1);
    for uid in 1..=50 {
        insist(&logs, &event(&account(5, 0), uid)).await;
    }
    let killed = leader(&cluster, "MB_main_LOG_5").await;
    cluster.nodes[killed].kill();
    for uid in 51..=100 {
        insist(&logs, &event(&account(5, 0), uid)).await;
    }
    // Every one, in order; one that was stored twice lies there twice.
    let mut seen = Vec::new();
    while seen.last() != Some(&100) {
        match followed(&mut follower).await {
            Followed::Entry(entry) => seen.push(uid(&entry.event.unwrap())),
            Followed::Made { log_id, .. } => assert_eq!(log_id, id, "the same history"),
            other => panic!("{other:?}"),
        }
    }
    seen.dedup();
    assert_eq!(seen, (1..=100).collect::<Vec<_>>());
    // The node comes back and may lag: reads are complete all the same.
    cluster.nodes[killed].restart().await.unwrap();
    insist(&logs, &event(&account(5, 0), 101)).await;
    for _ in 0..20 {
        let tail = soon(async {
            loop {
                if let Ok(tail) = gateway.tail(group).await {
                    return tail;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        let read = || async {
            let filter = Filter::Account(account(5, 0));
            gateway.read(group, filter, 0, tail.last).all().await
        };
        let read = soon(patiently(read)).await.unwrap();
        let mut uids: Vec<_> = read
            .iter()
            .map(|entry| uid(entry.event.as_ref().unwrap()))
            .collect();
        uids.dedup();
        assert_eq!(uids, (1..=101).collect::<Vec<_>>());
    }
    let checked = soon(patiently(|| logs.ids().check(group))).await.unwrap();
    assert_eq!(checked.0, id);
}

#[tokio::test]
async fn without_a_quorum_followers_say_that_they_hear_nothing() {
    let mut cluster = cluster().await;
    // The one node that stays: its connection is up all the time.
    let options = BusOptions {
        allow_plain: true,
        ..options(&cluster.nodes[0].url(), Role::Gateway)
    };
    let gateway = Bus::connect(options).await.unwrap();
    let logs = gateway.logs().await.unwrap();
    let mut following = tokio::task::JoinSet::new();
    for group in Group::all() {
        let mut follower = logs.follow(group, 1);
        assert!(matches!(
            followed(&mut follower).await,
            Followed::Made { .. }
        ));
        following.spawn(async move {
            while !matches!(follower.next().await.unwrap(), Followed::Lost { .. }) {}
            follower
        });
    }
    for node in [1, 2] {
        cluster.nodes[node].kill();
    }
    // Most consumers lived there.
    let mut lost = soon(following.join_next()).await.unwrap().unwrap();
    assert!(gateway.link().borrow().is_up());
    // At once: one of three that waits for another to be ready may wait long.
    let [_, one, other] = &mut cluster.nodes[..] else {
        panic!("not three nodes")
    };
    let (one, other) = tokio::join!(one.restart(), other.restart());
    one.and(other).unwrap();
    assert!(matches!(followed(&mut lost).await, Followed::Made { .. }));
}

/// Nodes pass nothing on for others: what the leader alone can answer is silence for as long as its route to this node stays so,
/// while all else goes on. NATS itself notices such a route after minutes. Without copies nobody else can lead.
#[tokio::test]
async fn a_server_without_a_way_to_the_leader_of_a_log_is_left() {
    let cluster = NatsCluster::start_cuttable(
        3,
        NatsOptions {
            config: users(),
            ..NatsOptions::default()
        },
    )
    .await
    .unwrap();
    let setup = Bus::connect(options(&cluster.url(), Role::Setup)).await;
    set_up(&setup.unwrap()).await;
    let account = account(5, 0);
    let stream = format!("MB_main_LOG_{}", account.partition().group());
    let leader = leader(&cluster, &stream).await;
    let nodes = cluster.nodes.iter().enumerate();
    let others: Vec<String> = nodes
        .filter(|(node, _)| *node != leader)
        .map(|(_, node)| node.url())
        .collect();
    let watcher = Bus::connect(options(&others.join(","), Role::Watcher)).await;
    let watcher = watcher.unwrap();
    let logs = watcher.logs().await.unwrap();
    let node = node_of(&cluster, "watcher").await;
    cluster.route(node, leader, Mode::STALLED).unwrap();
    insist(&logs, &event(&account, 1)).await;
    assert_ne!(node_of(&cluster, "watcher").await, node);
}

/// Where the only connection of a role's user is.
async fn node_of(cluster: &NatsCluster, user: &str) -> usize {
    for (number, node) in cluster.nodes.iter().enumerate() {
        let page = node.monitor("/connz?auth=true").await.unwrap();
        let connections = page["connections"].as_array().unwrap();
        if connections
            .iter()
            .any(|connection| connection["authorized_user"] == user)
        {
            return number;
        }
    }
    panic!("{user} is connected nowhere");
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_is_left() {
    let cluster = cluster().await;
    // It learns of the others from the one that will leave.
    let node = &cluster.nodes[0];
    let options = BusOptions {
        allow_plain: true,
        ..options(&node.url(), Role::Watcher)
    };
    let bus = Bus::connect(options).await.unwrap();
    let logs = bus.logs().await.unwrap();
    let mut link = bus.link();
    let Link::Up {
        since: first,
        lame_duck: false,
    } = *link.borrow_and_update()
    else {
        panic!("not up")
    };
    let pid = node.pid().unwrap().to_string();
    tokio::process::Command::new("kill")
        .args(["-USR2", &pid])
        .status()
        .await
        .unwrap();
    let noticed = *soon(link.wait_for(|link| {
        !matches!(
            link,
            Link::Up {
                lame_duck: false,
                ..
            }
        )
    }))
    .await
    .unwrap();
    assert_eq!(
        noticed,
        Link::Up {
            since: first,
            lame_duck: true
        }
    );
    assert!(!bus.ready());
    // The server would keep the connection for longer; it takes no new one.
    let elsewhere =
        |link: &Link| matches!(link, Link::Up { since, lame_duck: false } if *since != first);
    soon(link.wait_for(elsewhere)).await.unwrap();
    insist(&logs, &event(&account(5, 0), 1)).await;
}
