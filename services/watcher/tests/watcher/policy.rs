//! What the policy file says, on a real mail server.

use std::fs;

use mailbell_imap::TlsSettings;
use mailbell_proto::push::v1::Health;
use mailbell_test_servers::{Certificate, DovecotOptions};
use mailbell_watcher::PolicyFile;

use crate::world::{World, mail};

#[tokio::test]
async fn a_provider_is_paused_and_resumed_and_trusted_as_the_file_says() {
    let mut world = World::without_watcher(DovecotOptions::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.json");
    let write = |rest: &str| {
        let text = r#"{"providers": [{"name": "ours", "hosts": ["LOCALHOST"], "caFile": "roots.pem"REST}]}"#;
        fs::write(&path, text.replace("REST", rest)).unwrap();
    };
    // Whom the watcher trusts elsewhere did not sign this server's certificate: it connects by the roots of the provider alone.
    let other = Certificate::localhost().authority_pem;
    let trust = TlsSettings::only([other.as_bytes()]).unwrap();
    let authority = &world.dovecot.certificate().authority_pem;
    fs::write(dir.path().join("roots.pem"), authority).unwrap();
    write("");
    let file = PolicyFile::load(&path, trust.clone()).unwrap();
    world.trust = Some(trust);
    world.policy = Some(file.clone());
    world.start().await;
    let account = world.add(&["INBOX"]).await;
    world.until_watching(&account).await;

    write(r#", "paused": true"#);
    assert!(file.reload().unwrap());
    let code = |wanted: &'static str| {
        move |status: &mailbell_proto::bus::v1::StatusRecord, _| {
            status
                .state
                .as_ref()
                .is_some_and(|state| state.code == wanted)
        }
    };
    let paused = world.until_status(&account, code("provider-paused")).await;
    assert_eq!(paused.state.unwrap().health(), Health::Paused);
    world
        .dovecot
        .deliver_lmtp("alice", &mail("paused"))
        .await
        .unwrap();

    write(r#", "quirks": {"noIdle": true, "pollSeconds": 10}"#);
    assert!(file.reload().unwrap());
    assert_eq!(world.until_arrived(&account, 1).await, ["paused"]);
    let polled = |status: &mailbell_proto::bus::v1::StatusRecord, health| {
        health == Health::Watching
            && status
                .state
                .as_ref()
                .is_some_and(|state| state.mode == "poll")
    };
    world.until_status(&account, polled).await;
}
