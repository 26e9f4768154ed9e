//! An operator of all namespaces, with the rights that its chart gives it there.

use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use kube::{ResourceExt as _, api::DeleteParams};
use serde_json::json;

use crate::{
    actors::{IMAGE, Operator},
    charts::MAILBELL,
    fake_admin::FakeAdmin,
    mail_accounts::{declared, tell},
    rights,
    world::{World, mailbell},
};

impl World {
    /// Removes the service of the gateways; answers which one it was.
    async fn loses_its_service(&self) -> Option<String> {
        let (services, params) = (self.api::<Service>(), DeleteParams::default());
        let service = services.get("main-gateway").await.unwrap();
        services.delete("main-gateway", &params).await.unwrap();
        service.uid()
    }

    async fn until_service_is_another_than(&self, before: Option<String>) {
        let another = || async {
            let service = self
                .api::<Service>()
                .get_opt("main-gateway")
                .await
                .unwrap()?;
            (service.uid() != before).then_some(())
        };
        self.once(another, "the service").await;
    }
}

/// What happens to one of two installations is nothing to the other, though both have the same name.
#[tokio::test]
async fn an_operator_of_all_namespaces_keeps_their_installations_apart() {
    // Its own server: it would look after what other tests have.
    let Some(world) = World::alone_with_definitions().await else {
        return;
    };
    let (second, unnamed) = (world.beside().await, world.beside().await);
    let named = format!("installations={{main,{}/main}}", second.namespace);
    let install = [
        "install",
        "mailbell",
        MAILBELL,
        "--set",
        "watchAllNamespaces=true",
        "--set",
        &named,
    ];
    let (installed, said) = world.helm(&install).await;
    assert!(installed, "{said}");
    let admin = FakeAdmin::start(None);
    let operator = Operator::start_told(&world, "one", Some("mailbell-operator"), |options| {
        tell(&admin)(options);
        options.namespace = None;
    });
    for one in [&world, &second] {
        one.is_set_up().await;
        one.apply(declared("bob")).await;
    }
    for one in [&world, &second] {
        one.is_installed(IMAGE).await;
        one.until_ready_says("True Running").await;
        one.until_says("bob", "True Watching").await;
    }
    // Of one that the chart does not name it may read no Secret, and says so.
    unnamed.create(&mailbell()).await;
    unnamed.apply(declared("bob")).await;
    unnamed
        .until_says(
            "bob",
            "False SecretForbidden the operator may not read the Secret mail-passwords",
        )
        .await;

    // What is lost comes back, and what is wanted no longer goes, where that is so.
    let lost = second.loses_its_service().await;
    second.until_service_is_another_than(lost).await;
    world
        .change(json!({ "spec": { "generateSecrets": false } }))
        .await;
    let gone = || async {
        let account = world
            .api::<ServiceAccount>()
            .get_opt("main-secrets")
            .await
            .unwrap();
        account.is_none().then_some(())
    };
    world
        .once(gone, "the end of an account that nobody needs")
        .await;
    let _: ServiceAccount = second.api().get("main-secrets").await.unwrap();
    world.delete("bob").await;
    world.until_gone("bob").await;
    assert_eq!(admin.account(&world.id("bob")), None);
    assert!(admin.account(&second.id("bob")).is_some());

    // Of one that is deleted the cluster takes all objects, and nobody makes them again.
    world.is_looked_at().await;
    let params = DeleteParams::default();
    world.mailbells().delete("main", &params).await.unwrap();
    // What it hears of Mailbells it hears in order.
    let paused = json!({ "spec": { "watchers": { "pausedTenants": ["acme"] } } });
    second.change(paused).await;
    second.is_looked_at().await;
    world.loses_its_service().await;
    let lost = second.loses_its_service().await;
    second.until_service_is_another_than(lost).await;
    second.until_ready_says("True Running").await;
    second.until_says("bob", "True Watching").await;
    assert!(
        world
            .api::<Service>()
            .get_opt("main-gateway")
            .await
            .unwrap()
            .is_none()
    );
    operator.stop().await;
    rights::are_as_written(&world, &[(rights::ALL, "mailbell-operator")], &unnamed).await;
    rights::are_as_written_where_named(&world, "mailbell-operator", &second).await;
    let accounts = rights::OF_PODS.map(|made| (made, made));
    rights::are_as_written(&second, &accounts, &unnamed).await;
}
