//! How the operator calls an admin API: where it finds the token and the roots, and what it makes of whoever does not answer.

use kube::ResourceExt as _;
use mailbell_operator::controller::admin::{AdminError, Admins};
use mailbell_test_servers::Certificate;
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    fake_admin::{FakeAdmin, TOKEN},
    world::{World, mailbell, with},
};

impl World {
    pub(crate) async fn apply(&self, object: Value) {
        let (applied, said) = self
            .kubectl(&["apply", "-f", "-"], &object.to_string())
            .await;
        assert!(applied, "{said}");
    }

    pub(crate) async fn secret(&self, name: &str, content: Value) {
        let object = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": content });
        self.apply(object).await;
    }
}

/// The certificate is that of the service, whatever the address is.
#[tokio::test]
async fn what_a_call_needs_is_read_from_the_cluster() {
    let Some(world) = World::new().await else {
        return;
    };
    let host = format!("main-admin.{}.svc", world.namespace);
    let certificate = Certificate::for_names(&[&host]);
    let admin = FakeAdmin::start(Some(&certificate));
    let admins = Admins::new(world.client.clone(), Some(admin.url("https")));
    let object = with(&mailbell(), "/spec/admin/caConfigMap", json!("admin-ca"));
    world.create(&object).await;
    let main = world.mailbells().get("main").await.unwrap();
    let refused = async || match admins.of(&main).await {
        Ok(admin) => admin.shards().await.unwrap_err(),
        Err(error) => error,
    };
    let said = refused().await.to_string();
    assert!(said.contains("no Secret main-operator-token"), "{said}");
    // Of several tokens the first: the others are on their way out.
    let both = format!("\n{TOKEN}\nmba_another\n");
    world
        .secret("main-operator-token", json!({ "token": both }))
        .await;
    let said = refused().await.to_string();
    assert!(said.contains("no ConfigMap admin-ca"), "{said}");
    let roots = |certificate: &Certificate| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "admin-ca" },
            "data": { "ca.crt": certificate.authority_pem } })
    };
    world.apply(roots(&Certificate::localhost())).await;
    let error = refused().await;
    assert!(matches!(error, AdminError::Away(_)), "{error:?}");
    // It is asked with the same roots until somebody says that nobody answers.
    world.apply(roots(&certificate)).await;
    assert!(matches!(refused().await, AdminError::Away(_)));
    admins.note(&main, &error);
    let answer = admins.of(&main).await.unwrap().shards().await.unwrap();
    assert_eq!(answer.totals.unwrap().accounts, 7);

    // The same of a token that was replaced.
    admin.takes_token("mba_next");
    let error = refused().await;
    assert_eq!(error.code(), Some(Code::Unauthenticated), "{error:?}");
    assert!(!error.to_string().contains(TOKEN));
    world
        .secret("main-operator-token", json!({ "token": "mba_next" }))
        .await;
    admins.note(&main, &error);
    admins.of(&main).await.unwrap().shards().await.unwrap();
    // Nobody is taken for another installation.
    let mut other = main.clone();
    other.metadata.name = Some("other".to_owned());
    assert_eq!(other.name_any(), "other");
    let said = admins.of(&other).await.unwrap_err().to_string();
    assert!(said.contains("no Secret other-operator-token"), "{said}");
}

/// A connection that is taken and says nothing.
#[tokio::test]
async fn whoever_does_not_answer_is_not_waited_for_without_end() {
    let Some(world) = World::new().await else {
        return;
    };
    let admin = FakeAdmin::start(None);
    admin.is_silent(true);
    let admins = Admins::new(world.client.clone(), Some(admin.url("http")));
    world.create(&mailbell()).await;
    world
        .secret("main-operator-token", json!({ "token": TOKEN }))
        .await;
    let main = world.mailbells().get("main").await.unwrap();
    let silent = admins.of(&main).await.unwrap();
    let error = silent.shards().await.unwrap_err();
    assert!(matches!(error, AdminError::Away(_)), "{error:?}");
    assert_eq!(admin.calls(), ["shards"]);
    admin.is_silent(false);
    // The same connection, which has nothing left of that call.
    silent.shards().await.unwrap();
    assert_eq!(silent.account("default", "none").await.unwrap(), None);
}
