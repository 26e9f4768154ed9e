//! MailProviders that the operator cannot read: all of them, or one.

use std::time::Duration;

use k8s_openapi::api::{authorization::v1::SubjectAccessReview, rbac::v1::Role};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
};
use mailbell_core::policy::Policy;
use mailbell_operator::api::MailProvider;
use serde_json::{Value, json};

use super::named;
use crate::{
    actors::{IMAGE, Operator},
    charts::MAILBELL as CHART,
    world::{World, mailbell, provider, with},
};

impl World {
    /// Until the server goes by the operator's role as it is, which it hears of a moment later.
    async fn until_may_list(&self, may: bool) {
        let review = json!({ "metadata": {}, "spec": {
            "user": format!("system:serviceaccount:{}:mailbell-operator", self.namespace),
            "resourceAttributes": {
                "namespace": self.namespace, "group": "mailbell.dev", "resource": "mailproviders", "verb": "list",
            },
        }});
        let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let look = || async {
            let answer = reviews.create(&PostParams::default(), &review).await;
            (answer.unwrap().status?.allowed == may).then_some(())
        };
        self.once(look, "the operator's role").await;
    }
}

/// As after an upgrade of the operator without its chart.
#[tokio::test]
async fn an_installation_waits_for_no_provider_that_cannot_be_read() {
    let Some(world) = World::new().await else {
        return;
    };
    let (installed, said) = world.helm(&["install", "mailbell", CHART]).await;
    assert!(installed, "{said}");
    let read = |verbs: Value| {
        let world = &world;
        let may = verbs.as_array().unwrap().contains(&json!("list"));
        let rule = json!({ "apiGroups": ["mailbell.dev"], "resources": ["mailproviders"], "verbs": verbs });
        async move {
            let (roles, name) = (world.api::<Role>(), "mailbell-operator");
            let mut role = roles.get(name).await.unwrap();
            let rules = role.rules.as_mut().unwrap();
            for rule in rules.iter_mut() {
                let of = rule.resources.iter_mut();
                of.for_each(|all| all.retain(|it| it != "mailproviders"));
            }
            rules.retain(|rule| rule.resources.as_ref().is_none_or(|all| !all.is_empty()));
            rules.push(serde_json::from_value(rule).unwrap());
            let params = PostParams::default();
            roles.replace(name, &params, &role).await.unwrap();
            world.until_may_list(may).await;
        }
    };
    read(json!(["watch"])).await;
    world
        .has(&with(&provider(), "/spec/paused", json!(true)))
        .await;
    let operator = Operator::start_as(&world, "one", Some("mailbell-operator"));
    let paused = json!(["acme"]);
    world
        .create(&with(&mailbell(), "/spec/watchers/pausedTenants", paused))
        .await;
    world.is_installed(IMAGE).await;
    // No pod of a watcher starts without.
    let policy = world.until_told("the tenant", |_| true).await;
    assert!(policy.paused_tenants.contains("acme") && policy.providers.is_empty());
    let denied = "True Impaired The policy: MailProviders of ";
    world.until_ready_says(denied).await;
    read(json!(["get", "list", "watch"])).await;
    world.until_ready_says("True Running").await;
    let told = world
        .until_told("the provider", |policy| policy.providers.len() == 1)
        .await;
    // What was told before stays, also with all that the look would have removed.
    read(json!(["watch"])).await;
    let nobody = json!({ "spec": { "watchers": { "pausedTenants": [] } } });
    world.change(nobody).await;
    world.until_ready_says(denied).await;
    assert_eq!(world.until_told("the same", |_| true).await, told);
    operator.stop().await;
}

/// Not even its installation is known. What watchers were told of it stays, and nobody else minds.
#[tokio::test]
async fn one_that_cannot_be_read_is_left_alone() {
    // Its own server: an operator of all namespaces would look after what other tests have.
    let Some(world) = World::alone_with_definitions().await else {
        return;
    };
    let elsewhere = world.beside().await;
    let start = |identity: &str| {
        Operator::start_told(&world, identity, None, |options| {
            options.namespace = None;
            // It has all looked at, where a watch should.
            options.look_every = Duration::from_secs(3600);
        })
    };
    let operator = start("one");
    for one in [&world, &elsewhere] {
        one.is_set_up().await;
        one.is_installed(IMAGE).await;
        one.has(&provider()).await;
        one.until_provider_says("example", "True InForce").await;
    }
    let broken = with(&provider(), "/metadata/name", json!("broken"));
    let broken = with(&broken, "/spec/hosts", json!(["other.test"]));
    world
        .has(&with(
            &broken,
            "/spec/limits",
            json!({ "loginsPerSecond": 2 }),
        ))
        .await;
    world.until_provider_says("broken", "True InForce").await;
    let told = world.until_told("both", |_| true).await;
    let limited = named(&told, "broken").unwrap().clone();
    let status = async |status: Value| {
        let (params, patch) = (PatchParams::default(), json!({ "status": status }));
        let providers: Api<PartialObjectMeta<MailProvider>> =
            Api::namespaced(world.client.clone(), &world.namespace);
        let patch = Patch::Merge(patch);
        providers
            .patch_status("broken", &params, &patch)
            .await
            .unwrap();
    };
    // A time for the API server, and for nobody else.
    let ready = json!({ "type": "Ready", "status": "True", "reason": "InForce", "message": "",
        "lastTransitionTime": "2024-01-01T00:00:00+99:00" });
    let unreadable = json!({ "conditions": [ready] });
    status(unreadable.clone()).await;
    assert!(world.providers().get("broken").await.is_err());
    let stays = "True Impaired The policy: the MailProvider broken cannot be read: what watchers were told of it stays.";
    world.until_ready_says(stays).await;
    let pause = async |one: &World, paused: bool| {
        let patch = Patch::Merge(json!({ "spec": { "paused": paused } }));
        let (providers, params) = (one.providers(), PatchParams::default());
        providers.patch("example", &params, &patch).await.unwrap();
        let is_so = |policy: &Policy| named(policy, "example").unwrap().paused == paused;
        one.until_told("the pause", is_so).await
    };
    let told = pause(&world, true).await;
    assert_eq!(named(&told, "broken"), Some(&limited));
    world.until_provider_says("example", "True Paused").await;
    pause(&elsewhere, true).await;
    // Whoever leads next finds it as it is.
    operator.stop().await;
    let operator = start("two");
    let lost = with(&provider(), "/metadata/name", json!("lost"));
    elsewhere
        .has(&with(&lost, "/spec/mailbell", json!("nowhere")))
        .await;
    elsewhere
        .until_provider_says("lost", "False NoInstallation")
        .await;
    pause(&elsewhere, false).await;
    let told = pause(&world, false).await;
    assert_eq!(named(&told, "broken"), Some(&limited));
    world.until_ready_says(stays).await;
    elsewhere.until_ready_says("True Running").await;
    // Once it can be read it is as it says.
    let go_on = Patch::Merge(json!({ "spec": { "limits": { "loginsPerSecond": 3 } } }));
    let providers: Api<PartialObjectMeta<MailProvider>> =
        Api::namespaced(world.client.clone(), &world.namespace);
    let params = PatchParams::default();
    providers.patch("broken", &params, &go_on).await.unwrap();
    let told = pause(&world, true).await;
    assert_eq!(named(&told, "broken"), Some(&limited));
    status(Value::Null).await;
    world.until_provider_says("broken", "True InForce").await;
    let rate = |policy: &Policy| named(policy, "broken").map(|it| it.limits.logins_per_second);
    let is_another = |policy: &Policy| rate(policy) == Some(Some(3));
    world.until_told("another limit", is_another).await;
    world.until_ready_says("True Running").await;
    // One that goes is gone.
    status(unreadable).await;
    pause(&world, false).await;
    world.has_no("broken").await;
    world
        .until_told("one fewer", |policy| rate(policy).is_none())
        .await;
    world.until_ready_says("True Running").await;
    operator.stop().await;
}
