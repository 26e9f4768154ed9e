//! MailProviders on a real API server: what watchers are told, and what each of them says.

mod unreadable;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Event},
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use mailbell_core::policy::{Policy, Provider};
use mailbell_test_servers::Certificate;
use serde_json::{Value, json};

use crate::{
    actors::Operator,
    definitions::refused,
    world::{World, mailbell, provider, with},
};

impl World {
    /// One of this name.
    async fn has_provider(&self, name: &str, hosts: &[&str]) {
        let object = with(&provider(), "/metadata/name", json!(name));
        self.has(&with(&object, "/spec/hosts", json!(hosts))).await;
    }

    pub(crate) async fn has(&self, provider: &Value) {
        let object = serde_json::from_value(provider.clone()).unwrap();
        let params = PostParams::default();
        self.providers().create(&params, &object).await.unwrap();
    }

    async fn has_no(&self, provider: &str) {
        let (api, params) = (self.providers(), DeleteParams::default());
        api.delete(provider, &params).await.unwrap();
    }

    async fn has_no_config(&self, name: &str) {
        let (configs, params) = (self.api::<ConfigMap>(), DeleteParams::default());
        configs.delete(name, &params).await.unwrap();
    }

    /// What `kubectl get` shows of it.
    pub(crate) async fn until_provider_says(&self, name: &str, expected: &str) {
        let look = || async {
            let status = self.providers().get(name).await.unwrap().status?;
            let ready = status.conditions.first()?;
            let said = format!("{} {} {}", ready.status, ready.reason, ready.message);
            said.contains(expected).then_some(())
        };
        self.once(look, &format!("{name}: {expected}")).await;
    }

    /// Until watchers are told something that is so.
    async fn until_told(&self, what: &str, is_so: impl Fn(&Policy) -> bool) -> Policy {
        let look = || async {
            let configs = self.api::<ConfigMap>();
            let data = configs.get_opt("main-policy").await.unwrap()?.data?;
            let policy: Policy = serde_json::from_str(data.get("policy.json")?).ok()?;
            policy.check().unwrap();
            is_so(&policy).then_some(policy)
        };
        self.once(look, what).await
    }

    /// Puts this into a ConfigMap of its own, in place of what was there.
    async fn roots_are(&self, name: &str, pem: &str) {
        let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "ca.crt": pem } });
        let (params, patch) = (PatchParams::apply("tests"), Patch::Apply(object));
        let configs = self.api::<ConfigMap>();
        configs.patch(name, &params, &patch).await.unwrap();
    }
}

fn named<'a>(policy: &'a Policy, name: &str) -> Option<&'a Provider> {
    policy.providers.iter().find(|it| it.name == name)
}

#[tokio::test]
async fn watchers_are_told_and_none_of_them_is_started_anew() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = world.with_installation().await;
    // Before there is anything to be told: the first word needs no other pods.
    world
        .until_told("nothing", |policy| *policy == Policy::default())
        .await;
    let set: StatefulSet = world.there("main-watcher").await;
    let object = with(&provider(), "/spec/paused", json!(true));
    let object = with(&object, "/spec/limits", json!({ "loginsPerSecond": 2 }));
    world.has(&object).await;
    let policy = world
        .until_told("the provider", |policy| !policy.providers.is_empty())
        .await;
    let one = named(&policy, "example").unwrap();
    assert_eq!(one.hosts, ["imap.example.org", "*.example.net"]);
    assert_eq!(one.limits.logins_per_second, Some(2));
    assert!(one.paused);
    world
        .until_provider_says(
            "example",
            "True Paused Watchers are told within some minutes: nobody connects to its 2 hosts.",
        )
        .await;
    let go_on = Patch::Merge(json!({ "spec": { "paused": false } }));
    let (providers, params) = (world.providers(), PatchParams::default());
    providers.patch("example", &params, &go_on).await.unwrap();
    world
        .until_provider_says(
            "example",
            "True InForce Watchers are told within some minutes: in force for its 2 hosts.",
        )
        .await;
    world
        .change(json!({ "spec": { "watchers": { "pausedTenants": ["acme"] } } }))
        .await;
    let policy = world
        .until_told("the tenant", |policy| !policy.paused_tenants.is_empty())
        .await;
    assert!(policy.paused_tenants.contains("acme"));
    assert!(!named(&policy, "example").unwrap().paused);
    // What somebody else makes of it is put right.
    let theirs = Patch::Merge(json!({ "data": { "policy.json": "{}" } }));
    let configs = world.api::<ConfigMap>();
    configs
        .patch("main-policy", &params, &theirs)
        .await
        .unwrap();
    world
        .until_told("all of it again", |again| *again == policy)
        .await;
    world.has_no("example").await;
    world
        .until_told("no provider", |policy| policy.providers.is_empty())
        .await;
    // Their template is as it was; the status of a set is no other generation.
    let after: StatefulSet = world.there("main-watcher").await;
    assert_eq!(after.metadata.generation, set.metadata.generation);
    // One event for each change of what is said.
    let events = || async {
        let (events, params) = (world.api::<Event>(), ListParams::default());
        let events = events.list(&params).await.unwrap().items.into_iter();
        let of_us = events.filter(|it| it.involved_object.kind.as_deref() == Some("MailProvider"));
        let mut reasons: Vec<_> = of_us.map(|it| (it.reason, it.series.is_none())).collect();
        reasons.sort();
        let expected = ["InForce", "Paused"].map(|reason| (Some(reason.to_owned()), true));
        (reasons == expected).then_some(())
    };
    world.once(events, "an event a change").await;
    operator.stop().await;
}

#[tokio::test]
async fn a_host_that_two_name_is_the_older_ones_and_goes_on_to_the_other() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world
        .has_provider("a-older", &["imap.example.org", "a.test"])
        .await;
    world.until_provider_says("a-older", "True InForce").await;
    world
        .has_provider("b-younger", &["IMAP.example.org", "b.test"])
        .await;
    world
        .until_provider_says(
            "b-younger",
            "False HostTaken IMAP.example.org belongs to the older MailProvider a-older, and its other hosts are in force.",
        )
        .await;
    let hosts = |policy: &Policy| named(policy, "b-younger").map(|it| it.hosts.clone());
    world
        .until_told("the other host", |policy| {
            hosts(policy) == Some(vec!["b.test".to_owned()])
                && named(policy, "a-older").is_some_and(|it| it.hosts.len() == 2)
        })
        .await;
    world.has_no("a-older").await;
    world.until_provider_says("b-younger", "True InForce").await;
    let policy = world
        .until_told("both", |policy| named(policy, "a-older").is_none())
        .await;
    assert_eq!(hosts(&policy).unwrap(), ["IMAP.example.org", "b.test"]);
    operator.stop().await;
}

#[tokio::test]
async fn root_certificates_are_those_that_their_config_map_has() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.has_provider("plain", &["plain.test"]).await;
    world
        .has(&with(
            &provider(),
            "/spec/caConfigMap",
            json!("example-roots"),
        ))
        .await;
    let ca = |policy: &Policy| named(policy, "example").and_then(|it| it.ca.clone());
    let missing = "False NoCertificates All but its root certificates is in force: there is no ConfigMap example-roots";
    world.until_provider_says("example", missing).await;
    let policy = world
        .until_told("both", |policy| policy.providers.len() == 2)
        .await;
    assert_eq!(ca(&policy), None);
    let [first, second] = [(); 2].map(|()| Certificate::localhost().authority_pem);
    for pem in [&first, &second] {
        world.roots_are("example-roots", pem).await;
        world
            .until_told("the roots", |policy| ca(policy).as_ref() == Some(pem))
            .await;
        world.until_provider_says("example", "True InForce").await;
    }
    // What watchers would refuse is kept from them, and the other provider stays in force.
    world.roots_are("example-roots", "none").await;
    world
        .until_provider_says(
            "example",
            "ca.crt of the ConfigMap example-roots: no certificate in it.",
        )
        .await;
    let policy = world
        .until_told("no roots", |policy| ca(policy).is_none())
        .await;
    assert_eq!(policy.providers.len(), 2);
    world.roots_are("example-roots", &first).await;
    world.until_provider_says("example", "True InForce").await;
    world.has_no_config("example-roots").await;
    world.until_provider_says("example", missing).await;
    world.until_provider_says("plain", "True InForce").await;
    operator.stop().await;
}

#[tokio::test]
async fn one_whose_installation_is_not_there_says_so_until_it_is() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.has(&provider()).await;
    world
        .until_provider_says(
            "example",
            "False NoInstallation Not in force: there is no Mailbell main in this namespace.",
        )
        .await;
    world.create(&mailbell()).await;
    world.until_provider_says("example", "True InForce").await;
    operator.stop().await;
}

#[tokio::test]
async fn one_of_another_installation_is_not_told_to_watchers_of_this_one() {
    let Some(world) = World::new().await else {
        return;
    };
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    let other = with(&provider(), "/metadata/name", json!("other"));
    world
        .has(&with(&other, "/spec/mailbell", json!("other")))
        .await;
    world.has(&provider()).await;
    world
        .until_provider_says("other", "False NoInstallation")
        .await;
    world.until_provider_says("example", "True InForce").await;
    let policy = world
        .until_told("one", |policy| !policy.providers.is_empty())
        .await;
    assert_eq!(policy.providers.len(), 1);
    operator.stop().await;
}

/// Nobody is told that something is in force which watchers do not hear of.
#[tokio::test]
async fn a_file_that_the_server_refuses_is_said() {
    let Some(world) = World::new().await else {
        return;
    };
    // One of an installation before, which somebody has locked.
    let labels = json!({ "app.kubernetes.io/managed-by": "mailbell-operator", "app.kubernetes.io/instance": "main" });
    let locked = json!({ "metadata": { "name": "main-policy", "labels": labels }, "immutable": true, "data": { "policy.json": "{}" } });
    let locked: ConfigMap = serde_json::from_value(locked).unwrap();
    let configs = world.api::<ConfigMap>();
    let params = PostParams::default();
    configs.create(&params, &locked).await.unwrap();
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world.has(&provider()).await;
    world
        .until_provider_says(
            "example",
            "False Refused Changes are not in force: ConfigMap main-policy: ",
        )
        .await;
    world
        .until_ready_says("False Failed The policy: ConfigMap main-policy: ")
        .await;
    world.has_no_config("main-policy").await;
    world.until_provider_says("example", "True InForce").await;
    operator.stop().await;
}

/// Of more than one answer of the server.
#[tokio::test]
async fn watchers_are_told_of_hundreds() {
    let Some(world) = World::new().await else {
        return;
    };
    for n in 0..205 {
        let host = format!("h{n}.test");
        world.has_provider(&format!("p{n:03}"), &[&host]).await;
    }
    let operator = Operator::start(&world, "one");
    world.create(&mailbell()).await;
    world
        .until_told("all of them", |policy| policy.providers.len() == 205)
        .await;
    operator.stop().await;
}

/// The bounds are those of `mailbell_core::policy`, and what that refuses the server does.
#[tokio::test]
async fn what_watchers_would_refuse_of_a_provider_is_refused_with_a_sentence() {
    let Some(world) = World::new().await else {
        return;
    };
    let good = provider();
    let hosts = |hosts: Value| with(&good, "/spec/hosts", hosts);
    let host = |host: &str| hosts(json!([host]));
    let (long, label) = ("a".repeat(253), "a".repeat(251));
    for taken in [
        good.clone(),
        host("2001:db8::1"),
        host("::1"),
        host("192.0.2.1"),
        host("imap_1.EXAMPLE.org"),
        host(&long),
        host(&format!("*.{label}.b")),
        hosts((0..100).map(|n| format!("h{n}.example.org")).collect()),
    ] {
        assert_eq!(refused(&world, &taken).await, None, "{}", taken["spec"]);
    }
    let neither = "ports and brackets do not belong to it";
    let mut bad = vec![
        (hosts(json!([])), "at least 1 items".to_owned()),
        (
            hosts((0..101).map(|n| format!("h{n}")).collect()),
            "at most 100 items".to_owned(),
        ),
        (hosts(json!(["a", "a"])), "Duplicate value".to_owned()),
        (
            hosts(json!(["a.test", "A.test"])),
            "one of hosts stands there twice".to_owned(),
        ),
        (
            with(&good, "/spec/mailbell", Value::Null),
            "spec.mailbell: Required value".to_owned(),
        ),
        (
            with(&good, "/spec/caConfigMap", json!("")),
            "at least 1 chars".to_owned(),
        ),
        (
            with(
                &good,
                "/spec/quirks",
                json!({ "noIdle": true, "idleMinutes": 9 }),
            ),
            "idleMinutes is of use only where there is IDLE: leave out either".to_owned(),
        ),
        (
            with(&mailbell(), "/spec/watchers/pausedTenants", json!(["A"])),
            "should match".to_owned(),
        ),
        (
            with(
                &mailbell(),
                "/spec/watchers/pausedTenants",
                json!(["a", "a"]),
            ),
            "Duplicate value".to_owned(),
        ),
    ];
    for name in [
        "imap.example.org:993",
        "[2001:db8::1]",
        "[2001:db8::1]:993",
        "*.2001:db8::1",
        "*",
        "*.",
        "*.*.org",
        "a*.org",
        ".org",
        "a..b",
        "a.",
        "a b",
        "imaps://a",
        &"a".repeat(254),
    ] {
        bad.push((host(name), neither.to_owned()));
    }
    for (field, least, most) in [
        ("limits/connectsPerSecond", 1, 100_000),
        ("limits/loginsPerSecond", 1, 100_000),
        ("limits/connections", 1, 10_000),
        ("quirks/idleMinutes", 1, 29),
        ("quirks/pollSeconds", 10, 1740),
    ] {
        let place = format!("/spec/{field}");
        for value in [least, most] {
            let object = with(&good, &place, json!(value));
            assert_eq!(refused(&world, &object).await, None, "{field}: {value}");
        }
        let least_said = format!("greater than or equal to {least}");
        bad.push((with(&good, &place, json!(least - 1)), least_said));
        let most_said = format!("less than or equal to {most}");
        bad.push((with(&good, &place, json!(most + 1)), most_said));
    }
    for (object, sentence) in bad {
        let said = refused(&world, &object).await;
        let said = said.unwrap_or_else(|| panic!("taken, though: {sentence}"));
        assert!(said.contains(&sentence), "{said}\n  instead of: {sentence}");
    }
}
