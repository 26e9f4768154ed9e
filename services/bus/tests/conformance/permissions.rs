//! What each role is refused.

use futures_util::StreamExt as _;
use mailbell_bus::{AppendOutcome, BusError, Refusal, Role, ShareOptions, state::Cas};
use mailbell_core::{checkpoint::Checkpoint, ids::Tenant};
use mailbell_proto::bus::v1::{AccountRecord, Issuer, SealedCredential, SealingKey, TokenRecord};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::world::{PASSWORD, World, account, api, append, event, soon};

fn denied<T: std::fmt::Debug>(result: Result<T, BusError>) {
    assert!(matches!(result, Err(BusError::Denied(_))), "{result:?}");
}

#[tokio::test]
async fn a_gateway_reads_no_secret_and_writes_no_record() {
    let world = World::start().await;
    let gateway = world.bus(Role::Gateway).await;
    let id = account(5, 0);
    denied(gateway.credentials().get(&id).await);
    denied(
        gateway
            .credentials()
            .put(&id, &SealedCredential::default())
            .await,
    );
    denied(gateway.checkpoints().load(&id).await);
    denied(gateway.checkpoints().load_group(id.group()).await);
    denied(
        gateway
            .accounts()
            .create(
                &id,
                &AccountRecord {
                    schema: 1,
                    ..Default::default()
                },
            )
            .await,
    );
    denied(gateway.statuses().delete(&id).await);
    denied(gateway.tokens().get(&Tenant::default(), "a").await);
    denied(gateway.tokens().list(None, 5, None).await);
    denied(
        gateway
            .issuers()
            .put(&Issuer {
                kid: "k".to_owned(),
                ..Default::default()
            })
            .await,
    );
    denied(
        gateway
            .revocations()
            .revoke(&Tenant::default(), "a", i64::MAX / 2)
            .await,
    );
    denied(gateway.setup().await);
    let logs = gateway.logs().await.unwrap();
    denied(logs.purge_account(&id).await);
    let outcome = logs.append(&event(&id, 1)).await;
    assert!(
        matches!(
            outcome,
            AppendOutcome::Refused {
                class: Refusal::Denied,
                ..
            }
        ),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_watcher_reads_no_tokens() {
    let world = World::start().await;
    let watcher = world.bus(Role::Watcher).await;
    let tenant = Tenant::default();
    denied(watcher.tokens().get(&tenant, "a").await);
    denied(
        watcher
            .tokens()
            .put(&TokenRecord {
                id: "a".to_owned(),
                tenant: "default".to_owned(),
                ..Default::default()
            })
            .await,
    );
    denied(watcher.external_ids().get(&tenant, "a").await);
    denied(
        watcher
            .external_ids()
            .claim(&tenant, "a", &account(5, 0))
            .await,
    );
    denied(
        watcher
            .revocations()
            .revoke(&tenant, "a", i64::MAX / 2)
            .await,
    );
    denied(watcher.issuers().delete("k").await);
    denied(watcher.setup().await);
}

#[tokio::test]
async fn who_owns_an_account_does_not_write_its_record() {
    let world = World::start().await;
    let watcher = world.bus(Role::Watcher).await;
    let id = account(5, 0);
    let record = AccountRecord {
        schema: 1,
        ..Default::default()
    };
    denied(watcher.accounts().create(&id, &record).await);
    denied(watcher.accounts().delete(&id).await);
    let admin = world.bus(Role::Admin).await;
    admin.accounts().create(&id, &record).await.unwrap();
    assert!(watcher.accounts().get(&id).await.unwrap().is_some());
}

/// Else it could name a key of its own, and read all passwords that come after.
#[tokio::test]
async fn only_a_watcher_offers_keys_to_seal_to() {
    let world = World::start().await;
    let key = SealingKey {
        schema: 1,
        key_id: "k".to_owned(),
        ..Default::default()
    };
    for role in [Role::Gateway, Role::Admin, Role::Setup] {
        let bus = world.bus(role).await;
        denied(bus.sealing_keys().put(&key).await);
        denied(bus.sealing_keys().delete("k").await);
    }
    let watcher = world.bus(Role::Watcher).await;
    watcher.sealing_keys().put(&key).await.unwrap();
}

#[tokio::test]
async fn an_admin_writes_credentials_and_reads_none() {
    let world = World::start().await;
    let admin = world.bus(Role::Admin).await;
    let id = account(5, 0);
    admin
        .credentials()
        .put(&id, &SealedCredential::default())
        .await
        .unwrap();
    denied(admin.credentials().get(&id).await);
    denied(admin.setup().await);
    let outcome = admin.logs().await.unwrap().append(&event(&id, 1)).await;
    assert!(
        matches!(
            outcome,
            AppendOutcome::Refused {
                class: Refusal::Denied,
                ..
            }
        ),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn setup_reads_no_records() {
    let world = World::start().await;
    let setup = world.bus(Role::Setup).await;
    let id = account(5, 0);
    denied(setup.credentials().get(&id).await);
    denied(setup.accounts().get(&id).await);
    denied(setup.tokens().list(None, 5, None).await);
    denied(setup.checkpoints().load(&id).await);
}

/// Around our own code, by what the protocol offers.
#[tokio::test]
async fn no_other_way_to_what_is_refused() {
    let world = World::start().await;
    let id = account(5, 0);
    let admin = world.bus(Role::Admin).await;
    admin
        .credentials()
        .put(
            &id,
            &SealedCredential {
                key_id: "here".to_owned(),
                ..Default::default()
            },
        )
        .await
        .unwrap();
    admin
        .tokens()
        .put(&TokenRecord {
            id: "a".to_owned(),
            tenant: "default".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
    append(&world.logs(Role::Watcher).await, &event(&id, 1)).await;
    let operator = world.operator().await;
    let info = api(&operator, "STREAM.INFO.MB_main_LOG_5", json!({})).await;
    let config = &info["config"];
    let checkpoint = Checkpoint::first([("INBOX".to_owned(), 1, 1)], 0);
    let checkpoints = admin.checkpoints();
    let stored = checkpoints.store(&id, &checkpoint, 0).await;
    assert!(matches!(stored, Ok(Cas::Stored(_))), "{stored:?}");
    let record = AccountRecord::default();
    let stored = admin.accounts().create(&id, &record).await;
    assert!(matches!(stored, Ok(Cas::Stored(_))), "{stored:?}");
    for bucket in ["CKPT", "STATE", "CRED"] {
        let stream = format!("KV_MB_main_{bucket}_5");
        let consumer =
            json!({ "stream_name": stream, "config": { "name": "x", "ack_policy": "none" } });
        api(&operator, &format!("CONSUMER.CREATE.{stream}.x"), consumer).await;
    }
    let all = "watcher gateway admin setup";
    let tries = [
        (
            "gateway admin setup",
            format!("$JS.API.DIRECT.GET.KV_MB_main_CRED_5.$KV.MB_main_CRED_5.5.{id}"),
            json!({}),
        ),
        (
            "gateway admin setup",
            "$JS.API.DIRECT.GET.KV_MB_main_CRED_5".to_owned(),
            json!({ "seq": 1, "batch": 5, "next_by_subj": ">" }),
        ),
        (
            "gateway admin setup",
            "$JS.API.STREAM.MSG.GET.KV_MB_main_CRED_5".to_owned(),
            json!({ "seq": 1 }),
        ),
        (
            "gateway watcher setup",
            "$JS.API.STREAM.MSG.GET.KV_MB_main_CTL".to_owned(),
            json!({ "seq": 1 }),
        ),
        (
            "gateway watcher setup",
            "$JS.API.DIRECT.GET.KV_MB_main_CTL".to_owned(),
            json!({ "seq": 1 }),
        ),
        (
            "gateway watcher setup",
            "$JS.API.CONSUMER.CREATE.KV_MB_main_CTL.x.$KV.MB_main_CTL.>".to_owned(),
            json!({ "stream_name": "KV_MB_main_CTL", "config": { "name": "x", "filter_subject": "$KV.MB_main_CTL.>" } }),
        ),
        (
            "gateway admin setup",
            "$JS.API.CONSUMER.MSG.NEXT.KV_MB_main_CKPT_5.x".to_owned(),
            json!({ "batch": 1, "no_wait": true }),
        ),
        (
            "gateway admin setup",
            "$JS.API.CONSUMER.MSG.NEXT.KV_MB_main_STATE_5.x".to_owned(),
            json!({ "batch": 1, "no_wait": true }),
        ),
        (
            all,
            "$JS.API.CONSUMER.MSG.NEXT.KV_MB_main_CRED_5.x".to_owned(),
            json!({ "batch": 1, "no_wait": true }),
        ),
        (
            all,
            "$JS.API.STREAM.SNAPSHOT.KV_MB_main_CRED_5".to_owned(),
            json!({ "deliver_subject": "mb.main.inbox.admin.x" }),
        ),
        (
            all,
            "$JS.API.STREAM.CREATE.COPY".to_owned(),
            json!({ "name": "COPY", "sources": [{ "name": "KV_MB_main_CRED_5" }] }),
        ),
        (
            "watcher gateway admin",
            "$JS.API.STREAM.CREATE.MB_main_LOG_5".to_owned(),
            config.clone(),
        ),
        (
            "watcher gateway admin",
            "$JS.API.STREAM.UPDATE.MB_main_LOG_5".to_owned(),
            config.clone(),
        ),
        (
            "gateway admin setup",
            "$KV.MB_main_LIVE.claim.5".to_owned(),
            json!({}),
        ),
        (
            "gateway admin setup",
            "$KV.MB_main_LIVE.member.a".to_owned(),
            json!({}),
        ),
        (
            "watcher gateway setup",
            "$KV.MB_main_LIVE.drain.a".to_owned(),
            json!({}),
        ),
        (
            // Setup looks whether older members live before it finishes an upgrade.
            "gateway",
            "$JS.API.DIRECT.GET.KV_MB_main_LIVE".to_owned(),
            json!({ "seq": 1, "batch": 5, "next_by_subj": ">" }),
        ),
        // Keys that nobody uses.
        (all, "$KV.MB_main_LIVE.other.a".to_owned(), json!({})),
        (all, "$KV.MB_main_CTL.tenant.a".to_owned(), json!({})),
        (all, "$KV.MB_main_CTL.admintoken.a".to_owned(), json!({})),
        (
            all,
            "$JS.API.STREAM.MSG.DELETE.MB_main_LOG_5".to_owned(),
            json!({ "seq": 1 }),
        ),
        (
            "gateway setup",
            "$JS.API.STREAM.PURGE.MB_main_LOG_5".to_owned(),
            json!({}),
        ),
        (
            all,
            "$JS.API.STREAM.DELETE.MB_main_LOG_5".to_owned(),
            json!({}),
        ),
    ];
    for (users, subject, question) in &tries {
        for user in users.split(' ') {
            let said = ask_raw(&world, user, subject, question).await;
            assert_eq!(said, Said::Denied, "{user} {subject}");
        }
    }
    // All of it would have worked: they are refused for who they are, not since nobody answers.
    for (_, subject, question) in &tries {
        let said = ask_raw(&world, "operator", subject, question).await;
        assert_eq!(said, Said::Done, "{subject}");
    }
    // A permitted subject with another filter in it: here JetStream refuses.
    let said = ask_raw(
        &world,
        "watcher",
        "$JS.API.CONSUMER.CREATE.KV_MB_main_CTL.x.$KV.MB_main_CTL.log.*",
        &json!({ "stream_name": "KV_MB_main_CTL", "config": { "name": "x", "filter_subject": "$KV.MB_main_CTL.token.>" } }),
    )
    .await;
    assert_eq!(said, Said::Refused(FILTER_MISMATCH));
}

/// "consumer create request did not match filtered subject from create subject".
const FILTER_MISMATCH: u64 = 10131;

/// What comes of a question.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// The server took it from nobody.
    Denied,
    /// JetStream refused, with this number.
    Refused(u64),
    Done,
}

/// Asks as this user, without Mailbell.
async fn ask_raw(world: &World, user: &str, subject: &str, question: &Value) -> Said {
    // A connection that asks once has few events.
    let (tx, mut events) = mpsc::channel(16);
    let raw = async_nats::ConnectOptions::new()
        .user_and_password(user.to_owned(), PASSWORD.to_owned())
        .custom_inbox_prefix(format!("mb.main.inbox.{user}.raw"))
        .event_callback(move |event| {
            let _ = tx.try_send(event.to_string());
            std::future::ready(())
        })
        .connect(world.server.url())
        .await
        .unwrap();
    let violation = format!("Permissions Violation for Publish to \"{subject}\"");
    let denied = async {
        while let Some(event) = events.recv().await {
            if event.contains(&violation) {
                return;
            }
        }
        panic!("the connection has ended");
    };
    // A subscription of its own: what a consumer gives keeps the subject that it was stored under.
    let inbox = raw.new_inbox();
    let mut answers = raw.subscribe(inbox.clone()).await.unwrap();
    raw.publish_with_reply(subject.to_owned(), inbox, question.to_string().into())
        .await
        .unwrap();
    let answer = tokio::select! {
        () = soon(denied) => return Said::Denied,
        answer = soon(answers.next()) => answer.unwrap(),
    };
    // What a direct get gives is a record, and its failure a status.
    assert_eq!(answer.status, None, "{user} {subject}");
    let said: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
    match said.get("error") {
        Some(error) => Said::Refused(error["err_code"].as_u64().unwrap()),
        None => Said::Done,
    }
}

#[tokio::test]
async fn nobody_listens_to_what_is_said_to_others() {
    let world = World::start().await;
    let gateway = world.raw("gateway").await;
    let mut heard = Vec::new();
    for subject in [
        "mb.main.inbox.watcher.>",
        "mb.main.inbox.>",
        "mb.main.log.>",
        "$KV.>",
        "$JS.API.>",
        ">",
        "mb.main.req.*",
    ] {
        heard.push(gateway.subscribe(subject).await.unwrap());
    }
    let mut own = gateway
        .subscribe("mb.main.inbox.gateway.mine")
        .await
        .unwrap();
    // Answered after the subscriptions.
    api(&gateway, "STREAM.INFO.MB_main_LOG_5", json!({})).await;
    let watcher = world.bus(Role::Watcher).await;
    let logs = watcher.logs().await.unwrap();
    append(&logs, &event(&account(5, 0), 1)).await;
    let mut shards = watcher.share(ShareOptions::new("a", "1")).unwrap();
    soon(shards.next()).await.unwrap();
    // What would have been heard comes before this.
    let operator = world.operator().await;
    let subject = "mb.main.inbox.gateway.mine";
    operator.publish(subject, "now".into()).await.unwrap();
    soon(own.next()).await.unwrap();
    for subscription in &mut heard {
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, subscription.next())
                .await
                .is_err()
        );
    }
}
