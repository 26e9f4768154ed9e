//! What the user may do that has servers read their files again.

use async_nats::{ConnectOptions, Event};
use futures_util::StreamExt as _;
use mailbell_bus::{
    permissions::{SYSTEM_USER, system_inbox_prefix},
    server_config::system_config,
};
use mailbell_core::ids::Installation;
use mailbell_test_servers::{NatsOptions, NatsServer};
use tokio::{sync::mpsc, time::timeout};

use crate::world::{PASSWORD, SOON, users};

/// With all users of an installation, as servers have them that the operator runs.
async fn server() -> NatsServer {
    let options = NatsOptions {
        config: users() + &system_config(&Installation::default()),
        ..NatsOptions::default()
    };
    NatsServer::start(options).await.unwrap()
}

/// Neither what is said of others in `$SYS`, nor what can be done to them there, and nothing of any role.
#[tokio::test]
async fn it_has_servers_read_their_files_and_nothing_else() {
    let server = server().await;
    // Nor does a server with an account take whoever says no name.
    assert!(async_nats::connect(server.url()).await.is_err());
    let (told, mut events) = mpsc::channel(16);
    let client = ConnectOptions::with_user_and_password(SYSTEM_USER.into(), PASSWORD.into())
        .event_callback(move |event| {
            let told = told.clone();
            async move { drop(told.send(event).await) }
        })
        .connect(server.url())
        .await
        .unwrap();
    let mut denied = async |what: &str| {
        client.flush().await.unwrap();
        loop {
            let event = timeout(SOON, events.recv()).await.unwrap().unwrap();
            if let Event::ServerError(error) = event {
                let error = error.to_string();
                assert!(error.contains(&format!("to \"{what}")), "{what}: {error}");
                return;
            }
        }
    };
    let id = client.server_info().server_id;
    for subject in [
        "$SYS.REQ.SERVER.PING.CONNZ".to_owned(),
        format!("$SYS.REQ.SERVER.{id}.KICK"),
        format!("$SYS.REQ.SERVER.{id}.LDM"),
        "$SYS.REQ.ACCOUNT.$G.CONNZ".to_owned(),
        "$JS.API.SERVER.REMOVE".to_owned(),
        "mb.main.log.0".to_owned(),
    ] {
        client.publish(subject.clone(), "".into()).await.unwrap();
        denied(&subject).await;
    }
    for subject in ["$SYS.>", "_INBOX.>", "mb.main.inbox.admin.>"] {
        let _subscribed = client.subscribe(subject).await.unwrap();
        denied(subject).await;
    }
    let inbox = system_inbox_prefix(&Installation::default());
    let mut answers = client.subscribe(format!("{inbox}.x")).await.unwrap();
    let reload = format!("$SYS.REQ.SERVER.{id}.RELOAD");
    client
        .publish_with_reply(reload, format!("{inbox}.x"), "".into())
        .await
        .unwrap();
    let answer = timeout(SOON, answers.next());
    let answer = answer.await.unwrap().unwrap();
    assert!(!String::from_utf8_lossy(&answer.payload).contains("error"));
}
