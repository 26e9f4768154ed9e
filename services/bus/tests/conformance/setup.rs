//! Making and verifying what an installation stores.

use std::time::Duration;

use futures_util::StreamExt as _;
use mailbell_bus::{Bus, BusError, BusOptions, Role, StorageLimits};
use mailbell_test_servers::{NatsOptions, NatsServer, proxy::Mode};
use serde_json::json;

use crate::world::{
    PASSWORD, World, account, api, append, bare_server, event, listen, options, soon,
};

async fn setup_bus(url: &str) -> Bus {
    Bus::connect(options(url, Role::Setup)).await.unwrap()
}

#[tokio::test]
async fn made_once_and_found_as_it_should_be() {
    let server = bare_server().await;
    let bus = setup_bus(&server.url()).await;
    assert!(matches!(bus.check_meta().await, Err(BusError::NotSetUp(_))));
    let missing = bus.verify().await.unwrap();
    assert_eq!(missing.drift.len(), 67);
    assert!(missing.drift[0].to_string().ends_with(" is missing"));
    let report = bus.setup().await.unwrap();
    assert_eq!((report.created.len(), report.changed.len()), (67, 0));
    let again = bus.setup().await.unwrap();
    assert_eq!((again.created.len(), again.changed.len()), (0, 0));
    assert_eq!(bus.verify().await.unwrap().drift, []);
    bus.check_meta().await.unwrap();
}

#[tokio::test]
async fn twice_at_once() {
    let server = bare_server().await;
    let (one, two) = (
        setup_bus(&server.url()).await,
        setup_bus(&server.url()).await,
    );
    let (first, second) = tokio::join!(one.setup(), two.setup());
    let made = |report: Result<mailbell_bus::SetupReport, BusError>| {
        let report = report.unwrap();
        assert_eq!(report.changed, []);
        report.created.len()
    };
    assert!(made(first) + made(second) >= 67);
    assert_eq!(one.verify().await.unwrap().drift, []);
    // One identity a log, whoever gave it.
    let watcher = Bus::connect(options(&server.url(), Role::Watcher))
        .await
        .unwrap();
    watcher.logs().await.unwrap();
}

#[tokio::test]
async fn drift_is_told_field_by_field_and_put_right() {
    let world = World::start().await;
    let operator = world.operator().await;
    let info = api(&operator, "STREAM.INFO.MB_main_LOG_3", json!({})).await;
    let right = info["config"].clone();
    let mut config = right.clone();
    config["max_age"] = json!(600_000_000_000u64);
    config["deny_delete"] = json!(true);
    config["allow_direct"] = json!(false);
    let updated = api(&operator, "STREAM.UPDATE.MB_main_LOG_3", config).await;
    // Some things cannot be taken back; the test must not use them.
    if updated.get("error").is_some() {
        panic!("{updated}");
    }
    let bus = world.bus(Role::Setup).await;
    let drift = bus.verify().await.unwrap().drift;
    let fields: Vec<_> = drift.iter().map(|drift| drift.field.as_str()).collect();
    assert_eq!(fields, ["allow_direct", "deny_delete", "max_age"]);
    let age = &drift[2];
    assert_eq!(
        (age.found.as_str(), age.wanted.as_str()),
        ("600000000000", right["max_age"].to_string().as_str())
    );
    assert_eq!(
        age.to_string(),
        "MB_main_LOG_3: max_age is 600000000000, should be 172800000000000"
    );
}

#[tokio::test]
async fn what_can_be_put_right_is() {
    let world = World::start().await;
    let operator = world.operator().await;
    let mut config =
        api(&operator, "STREAM.INFO.KV_MB_main_CTL", json!({})).await["config"].clone();
    config["max_bytes"] = json!(1_000_000);
    config["allow_direct"] = json!(false);
    let updated = api(&operator, "STREAM.UPDATE.KV_MB_main_CTL", config).await;
    assert!(updated.get("error").is_none(), "{updated}");
    let bus = world.bus(Role::Setup).await;
    let changed = bus.setup().await.unwrap().changed;
    let fields: Vec<_> = changed.iter().map(|drift| drift.field.as_str()).collect();
    assert_eq!(fields, ["allow_direct", "max_bytes"]);
    assert_eq!(bus.verify().await.unwrap().drift, []);
}

#[tokio::test]
async fn what_would_lose_data_is_refused_before_anything_is_changed() {
    let world = World::start().await;
    let logs = world.logs(Role::Watcher).await;
    for uid in 1..=20 {
        let mut event = event(&account(5, 0), uid);
        event.content = vec![b'x'; 4000].into();
        append(&logs, &event).await;
    }
    let smaller = StorageLimits {
        log_bytes: 32 * 1024,
        state_bytes: 1 << 20,
        ..StorageLimits::fitting(1 << 30)
    };
    let bus = Bus::connect(BusOptions {
        storage: smaller,
        ..world.options(Role::Setup)
    })
    .await
    .unwrap();
    let Err(BusError::WouldLoseData(what)) = bus.setup().await else {
        panic!("not refused")
    };
    assert!(
        what.starts_with("MB_main_LOG_5: max_bytes is ") && !what.contains(';'),
        "{what}"
    );
    assert!(
        bus.verify().await.unwrap().drift.len() >= 32,
        "nothing was changed"
    );
    assert_eq!(logs.tail(account(5, 0).group()).await.unwrap().first, 1);
}

#[tokio::test]
async fn another_layout_is_refused() {
    use prost::Message as _;
    let world = World::start().await;
    let meta = mailbell_proto::bus::v1::Meta {
        schema: 1,
        partitions: 512,
        groups: 16,
        write_version: 1,
    };
    let subject = "$KV.MB_main_CTL.meta";
    world
        .operator()
        .await
        .request(subject, meta.encode_to_vec().into())
        .await
        .unwrap();
    let layout = BusError::Layout {
        what: "partitions",
        found: 512,
        expected: 1024,
    };
    assert_eq!(
        world.bus(Role::Watcher).await.logs().await.unwrap_err(),
        layout
    );
    assert_eq!(
        world.bus(Role::Setup).await.setup().await.unwrap_err(),
        layout
    );
}

#[tokio::test]
async fn a_stream_that_does_not_answer_is_not_missing() {
    let world = World::start().await;
    let operator = world.operator().await;
    let stream = "KV_MB_main_CTL";
    let info = api(&operator, &format!("STREAM.INFO.{stream}"), json!({})).await;
    let mut config = info["config"].clone();
    // As without a leader: nobody listens to the question.
    config["allow_direct"] = json!(false);
    api(&operator, &format!("STREAM.UPDATE.{stream}"), config).await;
    let watcher = world.bus(Role::Watcher).await;
    let error = watcher.check_meta().await.unwrap_err();
    assert!(matches!(error, BusError::NoStream(_)), "{error:?}");
    assert!(error.is_retryable());
    api(&operator, &format!("STREAM.DELETE.{stream}"), json!({})).await;
    assert_eq!(
        watcher.check_meta().await.unwrap_err(),
        BusError::NotSetUp("main".to_owned())
    );
}

#[tokio::test]
async fn without_jetstream_setup_is_not_what_is_missing() {
    let user = format!("{{ user: setup, password: {PASSWORD:?} }}");
    let server = NatsServer::start(NatsOptions {
        config: format!("accounts {{ A {{ users: [ {user} ] }} }}"),
        ..NatsOptions::default()
    })
    .await
    .unwrap();
    let bus = setup_bus(&server.url()).await;
    for error in [
        bus.check_meta().await.unwrap_err(),
        bus.server_status().await.unwrap_err(),
    ] {
        assert!(error.is_retryable(), "{error:?}");
    }
}

#[tokio::test]
async fn an_installation_that_is_not_there() {
    let server = bare_server().await;
    let watcher = Bus::connect(options(&server.url(), Role::Watcher))
        .await
        .unwrap();
    assert_eq!(
        watcher.logs().await.unwrap_err(),
        BusError::NotSetUp("main".to_owned())
    );
}

/// As where the leader of the cluster changes meanwhile: nothing comes of what it was asked.
#[tokio::test]
async fn a_stream_whose_answer_is_lost_is_asked_for_again() {
    let world = World::bare().await;
    let (proxy, url) = world.proxy().await;
    let mut options = options(&url, Role::Setup);
    // Only making a stream is tried again: all else must be answered in this time.
    options.timing.ack_timeout = Duration::from_secs(3);
    let bus = Bus::connect(options).await.unwrap();
    let operator = world.operator().await;
    let mut asked = listen(&operator, "$JS.API.STREAM.CREATE.*").await;
    let lose_answers = async {
        let first = asked.next().await.unwrap().subject;
        proxy.set(Mode::STALLED_TO_CLIENT);
        while asked.next().await.unwrap().subject != first {}
        proxy.set(Mode::PASS);
    };
    let (report, ()) = soon(async { tokio::join!(bus.setup(), lose_answers) }).await;
    let report = report.unwrap();
    assert_eq!((report.created.len(), report.changed.len()), (67, 0));
    let near = world.bus(Role::Setup).await;
    assert_eq!(near.verify().await.unwrap().drift, []);
}
