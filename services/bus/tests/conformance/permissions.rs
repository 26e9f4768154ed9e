//! What each role is refused.

use futures_util::StreamExt as _;
use mailbell_bus::{AppendOutcome, BusError, Refusal, Role};
use mailbell_core::ids::{LogId, Tenant};
use mailbell_proto::bus::v1::{AccountRecord, Issuer, SealedCredential, TokenRecord};
use serde_json::json;

use crate::world::{World, account, api, append, event, soon};

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
    // Claims are none of its business either.
    let (claims, _lost) = gateway.claims("a", "1").await.unwrap();
    denied(claims.take(&[id.partition()]).await.remove(0).1);
    claims.flushed(id.partition(), LogId::default(), 1);
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
    let tries = [
        (
            "gateway",
            format!("$JS.API.DIRECT.GET.KV_MB_main_CRED_5.$KV.MB_main_CRED_5.5.{id}"),
            json!({}),
        ),
        (
            "gateway",
            "$JS.API.DIRECT.GET.KV_MB_main_CRED_5".to_owned(),
            json!({ "seq": 1, "batch": 5, "next_by_subj": ">" }),
        ),
        (
            "gateway",
            "$JS.API.STREAM.MSG.GET.KV_MB_main_CTL".to_owned(),
            json!({ "seq": 1 }),
        ),
        (
            "gateway",
            "$JS.API.DIRECT.GET.KV_MB_main_CTL".to_owned(),
            json!({ "seq": 1 }),
        ),
        (
            "gateway",
            "$JS.API.STREAM.DELETE.MB_main_LOG_5".to_owned(),
            json!({}),
        ),
        (
            "gateway",
            "$JS.API.STREAM.MSG.DELETE.MB_main_LOG_5".to_owned(),
            json!({ "seq": 1 }),
        ),
        (
            "gateway",
            "$JS.API.STREAM.CREATE.COPY".to_owned(),
            json!({ "name": "COPY", "sources": [{ "name": "KV_MB_main_CRED_5" }] }),
        ),
        (
            "watcher",
            "$JS.API.CONSUMER.CREATE.KV_MB_main_CTL.x.$KV.MB_main_CTL.>".to_owned(),
            json!({ "stream_name": "KV_MB_main_CTL", "config": { "name": "x", "filter_subject": "$KV.MB_main_CTL.>" } }),
        ),
        (
            // A permitted subject with another filter in it.
            "watcher",
            "$JS.API.CONSUMER.CREATE.KV_MB_main_CTL.x.$KV.MB_main_CTL.log.*".to_owned(),
            json!({ "stream_name": "KV_MB_main_CTL", "config": { "name": "x", "filter_subject": "$KV.MB_main_CTL.token.>" } }),
        ),
        (
            "admin",
            "$JS.API.STREAM.SNAPSHOT.KV_MB_main_CRED_5".to_owned(),
            json!({ "deliver_subject": "mb.main.inbox.admin.x" }),
        ),
        (
            "setup",
            "$JS.API.STREAM.DELETE.MB_main_LOG_5".to_owned(),
            json!({}),
        ),
    ];
    for (user, subject, question) in tries {
        let raw = world.raw(user).await;
        match raw
            .request(subject.clone(), question.to_string().into())
            .await
        {
            Err(_denied) => {}
            Ok(answer) => {
                // Refused by JetStream instead of the server.
                let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
                assert!(answer.get("error").is_some(), "{user} {subject}: {answer}");
            }
        }
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
    let (claims, _lost) = watcher.claims("a", "1").await.unwrap();
    claims
        .take(&[account(5, 0).partition()])
        .await
        .remove(0)
        .1
        .unwrap();
    // What would have been heard comes before this.
    let operator = world.operator().await;
    let subject = "mb.main.inbox.gateway.mine";
    operator.publish(subject, "now".into()).await.unwrap();
    operator.flush().await.unwrap();
    soon(own.next()).await.unwrap();
    for subscription in &mut heard {
        assert!(
            tokio::time::timeout(std::time::Duration::ZERO, subscription.next())
                .await
                .is_err()
        );
    }
}
