//! What other processes ask of the owner of an account.

use mailbell_core::ids::{AccountId, Tenant};
use mailbell_proto::bus::v1::{CheckLogin, ListPage};
use ulid::Ulid;

use crate::world::{World, mail};

fn newest(limit: u32) -> ListPage {
    ListPage {
        folder: 1,
        limit,
        newest: true,
        ..ListPage::default()
    }
}

#[tokio::test]
async fn pages_come_from_the_mailbox_and_idle_goes_on() {
    let world = World::new().await;
    let messages: Vec<_> = (1..=130)
        .map(|number| mail(&format!("n{number}")))
        .collect();
    world
        .dovecot
        .deliver_many("alice", messages.iter().map(Vec::as_slice))
        .await
        .unwrap();
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let page = world.list(&account, newest(100)).await.unwrap();
    let uids: Vec<u32> = page.messages.iter().map(|message| message.uid).collect();
    assert_eq!(uids, (31..=130).collect::<Vec<_>>());
    assert!(page.more && page.exists == 130 && page.uid_next == 131 && page.generation > 0);
    assert_eq!(page.folder_name, "INBOX");
    assert_eq!(page.messages[99].subject, "n130");
    assert_eq!(page.messages[99].preview, "Hello from n130");
    let next = ListPage {
        last_uid: 30,
        generation: page.generation,
        ..newest(100)
    };
    let rest = world.list(&account, next).await.unwrap();
    assert_eq!((rest.messages.len(), rest.more), (30, false));
    let stale = ListPage {
        generation: page.generation + 1,
        ..newest(1)
    };
    let error = world.list(&account, stale).await.unwrap_err();
    assert_eq!(error.code, "generation-changed");
    // The connection idles again: what comes now is told, and a page has it.
    world
        .dovecot
        .deliver_lmtp("alice", &mail("new"))
        .await
        .unwrap();
    let told = world.until_arrived(&account, 1).await;
    assert_eq!(told, ["new"]);
    let page = world.list(&account, newest(1)).await.unwrap();
    assert_eq!(page.messages[0].subject, "new");
    let events = world.events(&account).await;
    let message: mailbell_proto::push::v1::Message =
        prost::Message::decode(events.last().unwrap().1.content.clone()).unwrap();
    assert_eq!(message.content_id, page.messages[0].content_id);
    assert_eq!(
        world.metric("mailbell_watcher_logins_total{outcome=\"ok\"}"),
        2.0
    );
}

#[tokio::test]
async fn what_cannot_be_listed_is_refused_with_a_reason() {
    let mut world = World::new().await;
    let nobody = AccountId::new(Tenant::default(), Ulid::generate());
    let error = world.list(&nobody, newest(1)).await.unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.retry),
        ("no-such-account", false)
    );
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;
    let page = ListPage {
        folder: 7,
        ..newest(1)
    };
    let error = world.list(&account, page).await.unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.retry),
        ("no-such-folder", false)
    );
    world.dovecot.stop().await;
    world
        .until_status(&account, |_, health| {
            health == mailbell_proto::push::v1::Health::Retrying
        })
        .await;
    let error = world.list(&account, newest(1)).await.unwrap_err();
    assert!(error.retry, "{error:?}");
    assert!(!error.sentence.is_empty());
}

#[tokio::test]
async fn a_check_says_what_is_wrong() {
    let world = World::new().await;
    let account = AccountId::new(Tenant::default(), Ulid::generate());
    let good = world.record(&["INBOX", "Sent"]);
    let check = |record: &mailbell_proto::bus::v1::AccountRecord, password: &str| CheckLogin {
        account: Some(record.clone()),
        credential: Some(world.sealed(&account, record, password)),
    };
    let result = world.check(&account, check(&good, "secret")).await.unwrap();
    assert!(
        result.ok && result.capabilities.contains(&"IDLE".to_owned()),
        "{result:?}"
    );
    assert!(
        result
            .folders
            .iter()
            .all(|folder| folder.exists && folder.uid_next == 1)
    );
    assert!(result.folders.iter().all(|folder| folder.generation > 0));

    let code = async |record, password: &str| {
        let result = world
            .check(&account, check(&record, password))
            .await
            .unwrap();
        assert!(!result.ok && result.sentence.ends_with('.'), "{result:?}");
        result.code
    };
    let mut unknown = good.clone();
    unknown.host = "no-such-host.invalid".to_owned();
    let mut closed = good.clone();
    closed.port = 1;
    let mut not_tls = good.clone();
    not_tls.port = world.dovecot.imap_port().into();
    assert_eq!(code(good.clone(), "wrong").await, "bad-credentials");
    assert_eq!(code(unknown, "secret").await, "dns");
    assert_eq!(code(closed, "secret").await, "refused");
    assert_eq!(code(not_tls, "secret").await, "tls");
    let missing = world.record(&["INBOX", "Nowhere"]);
    assert_eq!(code(missing, "secret").await, "no-such-folder");

    // A credential of another account, and what was never stored.
    let other = AccountId::new(Tenant::default(), Ulid::generate());
    let foreign = CheckLogin {
        account: Some(good.clone()),
        credential: Some(world.sealed(&other, &good, "secret")),
    };
    let result = world.check(&account, foreign).await.unwrap();
    assert_eq!(result.code, "credential-mismatch");
    let error = world
        .check(&account, CheckLogin::default())
        .await
        .unwrap_err();
    assert_eq!(error.code, "no-such-account");

    let stored = world.add(&["INBOX"]).await;
    let result = world.check(&stored, CheckLogin::default()).await.unwrap();
    assert!(result.ok, "{result:?}");
}
