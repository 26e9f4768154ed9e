//! What the API server takes, what it adds, and what it refuses with which words.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use mailbell_operator::{
    api::{Content, GROUP, MailAccount, MailProvider, Mailbell, ProviderLimits, TlsMode},
    crds,
};
use serde_json::{Value, json};

use tokio::time::sleep;

use crate::world::{World, account, mailbell, provider, soon, with};

/// Objects of any kind of ours, as JSON.
fn objects(world: &World, of: &Value) -> Api<DynamicObject> {
    let kind = of["kind"].as_str().unwrap();
    let kind = GroupVersionKind::gvk(GROUP, "v1alpha1", kind);
    let resource = ApiResource::from_gvk(&kind);
    Api::namespaced_with(world.client.clone(), &world.namespace, &resource)
}

/// Why it was refused; `None`: it was taken.
pub(crate) async fn refused(world: &World, object: &Value) -> Option<String> {
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let object_of = serde_json::from_value(object.clone()).unwrap();
    match objects(world, object).create(&params, &object_of).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message),
        Err(error) => panic!("{error}"),
    }
}

/// Why a change was refused.
async fn change_refused(world: &World, before: &Value, after: &Value) -> Option<String> {
    let api = objects(world, before);
    let name = before["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("tests").force();
    api.patch(name, &params, &Patch::Apply(before))
        .await
        .unwrap();
    let params = PatchParams {
        dry_run: true,
        ..params
    };
    match api.patch(name, &params, &Patch::Apply(after)).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn the_definitions_are_structural_and_small_enough_for_any_way_of_applying_them() {
    let Some(world) = World::new().await else {
        return;
    };
    let api: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    for definition in crds::definitions() {
        let name = definition.metadata.name.as_deref().unwrap();
        let stored = api.get(name).await.unwrap();
        let conditions = stored.status.unwrap().conditions.unwrap();
        let not_structural = conditions
            .iter()
            .find(|it| it.type_ == "NonStructuralSchema");
        assert_eq!(not_structural, None);
        // `kubectl apply` notes all of it in an annotation, which holds 256 KiB; half of that is room to grow.
        let size = serde_json::to_string(&definition).unwrap().len();
        assert!(size < 128 * 1024, "{name}: {size}");
    }
    let mut all = String::new();
    for definition in crds::definitions() {
        all += "---\n";
        all += &crds::yaml(&definition).unwrap();
    }
    let (applied, said) = world.kubectl(&["apply", "-f", "-"], &all).await;
    assert!(applied, "{said}");
}

#[tokio::test]
async fn what_is_left_out_has_a_default() {
    let Some(world) = World::new().await else {
        return;
    };
    let object: Mailbell = serde_json::from_value(mailbell()).unwrap();
    let params = PostParams::default();
    let stored = world
        .mailbells()
        .create(&params, &object)
        .await
        .unwrap()
        .spec;
    assert_eq!(
        (stored.watchers.scale.min, stored.watchers.scale.max),
        (2, 10)
    );
    assert_eq!(stored.nats.managed.unwrap().nodes, 3);
    assert_eq!(stored.nats.external, None);
    assert!(!stored.paused && !stored.finish_upgrade);
    assert_eq!(stored.content, Content::Preview);
    let object: MailAccount = serde_json::from_value(account()).unwrap();
    let stored = world
        .accounts()
        .create(&params, &object)
        .await
        .unwrap()
        .spec;
    assert_eq!(stored.tenant, "default");
    assert_eq!(stored.folders, ["INBOX"]);
    assert_eq!(stored.server.tls, TlsMode::Implicit);
    assert_eq!(stored.content, Content::Preview);
    assert_eq!(stored.password.key, None);
    let object = with(&account(), "/metadata/name", json!("carol"));
    let object = with(&object, "/spec/password", Value::Null);
    let object: MailAccount = serde_json::from_value(object).unwrap();
    let stored = world.accounts().create(&params, &object).await.unwrap();
    assert_eq!(stored.spec.password.secret_name, "mail-passwords");
    let object: MailProvider = serde_json::from_value(provider()).unwrap();
    let stored = world.providers().create(&params, &object).await.unwrap();
    assert!(!stored.spec.paused && !stored.spec.quirks.no_idle);
    assert_eq!(stored.spec.limits, ProviderLimits::default());
}

/// What the types take and what the server stores are the same.
#[tokio::test]
async fn what_is_null_is_as_good_as_left_out() {
    let Some(world) = World::new().await else {
        return;
    };
    let mut object = mailbell();
    object["spec"]["nats"]["external"] = Value::Null;
    object["spec"]["image"] = Value::Null;
    object["spec"]["gateways"]["tls"]["insecurePlaintext"] = Value::Null;
    assert_eq!(refused(&world, &object).await, None);
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_with_a_sentence() {
    let Some(world) = World::new().await else {
        return;
    };
    let (good, whose) = (mailbell(), account());
    assert_eq!(refused(&world, &good).await, None);
    assert_eq!(refused(&world, &whose).await, None);
    for level in ["key", "headers", "preview"] {
        for object in [&good, &whose] {
            let object = with(object, "/spec/content", json!(level));
            assert_eq!(refused(&world, &object).await, None);
        }
    }
    let long = "a".repeat(33);
    let external = json!({ "urls": ["tls://nats:4222"], "usersSecret": "nats" });
    let scale = json!({ "min": 3, "max": 2 });
    let routes = json!({ "parentRefs": [{ "name": "edge" }] });
    let plain = json!({ "insecurePlaintext": true });
    let ranges = json!({ "loadBalancerSourceRanges": ["192.0.2.0/24"] });
    let no_ranges = json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0"] });
    let in_the_clear =
        json!({ "external": { "urls": ["nats://nats:4222"], "usersSecret": "nats" } });
    let two =
        json!({ "external": { "urls": ["tls://a:4222,tls://b:4222"], "usersSecret": "nats" } });
    let twice =
        json!({ "external": { "urls": ["tls://a:4222"], "usersSecret": "nats", "replicas": 2 } });
    let bad = [
        (
            with(
                &with(&good, "/spec/admin/tls", plain.clone()),
                "/spec/admin/caConfigMap",
                json!("roots"),
            ),
            "caConfigMap is of use with a certificate only",
        ),
        (
            with(&good, "/metadata/name", json!(long)),
            "at most 31 letters",
        ),
        (
            with(&good, "/metadata/name", json!("a.b")),
            "a letter, then",
        ),
        (
            with(&good, "/metadata/name", json!("2024")),
            "a letter, then",
        ),
        (
            with(&good, "/spec/nats/external", external),
            "either nats.external",
        ),
        (with(&good, "/spec/nats", json!({})), "either nats.external"),
        (
            with(&good, "/spec/nats/managed/nodes", json!(2)),
            "nodes must be 1 or 3",
        ),
        (
            with(&good, "/spec/nats/managed/storage/size", json!("1Gi")),
            "at least 8Gi",
        ),
        (
            with(&good, "/spec/nats/managed/storage/size", json!("much")),
            "at least 8Gi",
        ),
        (
            with(&good, "/spec/watchers/scale", scale.clone()),
            "min must not be larger than max",
        ),
        (
            with(&good, "/spec/gateways/scale", scale),
            "min must not be larger than max",
        ),
        (
            with(&good, "/spec/watchers/mailboxesPerPod", json!(0)),
            "greater than or equal to 1",
        ),
        (
            with(&good, "/spec/gateways/tls", json!({})),
            "insecurePlaintext: true",
        ),
        (
            with(&good, "/spec/admin/tls/insecurePlaintext", json!(true)),
            "insecurePlaintext: true",
        ),
        (
            with(
                &with(
                    &with(&good, "/spec/gateways/gatewayApi", routes),
                    "/spec/gateways/tls",
                    plain,
                ),
                "/spec/gateways/service/type",
                json!("LoadBalancer"),
            ),
            "leave service.type out",
        ),
        (
            with(
                &good,
                "/spec/gateways/gatewayApi",
                json!({ "parentRefs": [{ "name": "edge" }] }),
            ),
            "the Gateway has the certificate",
        ),
        (
            with(&good, "/spec/gateways/service", ranges),
            "of use with type: LoadBalancer only",
        ),
        (
            with(&good, "/spec/admin/service", no_ranges),
            "networks such as 192.0.2.0/24",
        ),
        (
            with(&good, "/spec/nats", in_the_clear),
            "allowPlaintext: true",
        ),
        (with(&good, "/spec/nats", two), "should match"),
        (
            with(&good, "/spec/nats", twice),
            "replicas must be 1, 3 or 5",
        ),
        (
            with(&good, "/spec/nats/managed/tls", json!({})),
            "tls.secretName: Required value",
        ),
        (
            with(&good, "/spec/watchers/keyRingSecret", json!("")),
            "at least 1 chars",
        ),
        (
            with(&good, "/spec/watchers/scale", json!({ "max": 1 })),
            "scale.min: Required value",
        ),
        (
            with(&good, "/spec/telemetry/otlpSample", json!(0.1)),
            "with otlpEndpoint only",
        ),
        (with(&whose, "/spec/folders", json!([])), "at least 1 items"),
        (
            with(&whose, "/spec/folders", json!(["INBOX", "INBOX"])),
            "Duplicate value",
        ),
        (
            with(&whose, "/spec/server/port", json!(70000)),
            "less than or equal to 65535",
        ),
        (
            with(&whose, "/spec/server/host", json!("imap.example.org/x")),
            "should match",
        ),
        (with(&whose, "/spec/server/tls", json!("None")), "Implicit"),
        (with(&whose, "/spec/tenant", json!("A B")), "should match"),
        // The words of tokens, and no others.
        (with(&whose, "/spec/content", json!("Key")), "\"headers\""),
        (with(&good, "/spec/content", json!("all")), "\"headers\""),
        (
            with(&whose, "/spec/server/user", Value::Null),
            "spec.server.user: Required value",
        ),
        (
            with(&whose, "/spec/server", Value::Null),
            "spec.server: Required value",
        ),
        (
            with(&whose, "/metadata/name", json!("a".repeat(181))),
            "the name has at most 180 characters",
        ),
    ];
    for (object, sentence) in bad {
        let said = refused(&world, &object).await;
        let said = said.unwrap_or_else(|| panic!("taken, though: {sentence}"));
        assert!(said.contains(sentence), "{said}\n  instead of: {sentence}");
    }
}

#[tokio::test]
async fn what_cannot_be_changed_is_not() {
    let Some(world) = World::new().await else {
        return;
    };
    let (good, whose) = (mailbell(), account());
    let good = with(&good, "/spec/nats/managed/storage/className", json!("fast"));
    let external = json!({ "external": { "urls": ["tls://nats:4222"], "usersSecret": "nats" } });
    let other_class = json!("slow");
    for (before, after, sentence) in [
        (
            &good,
            with(&good, "/spec/nats/managed/nodes", json!(1)),
            "number of NATS servers",
        ),
        (
            &good,
            with(&good, "/spec/nats/managed/storage/size", json!("10Gi")),
            "cannot be changed here",
        ),
        (
            &good,
            with(&good, "/spec/nats/managed/storage/size", json!("30Gi")),
            "cannot be changed here",
        ),
        (
            &good,
            with(&good, "/spec/nats/managed/storage/className", other_class),
            "storage class",
        ),
        (
            &good,
            with(&good, "/spec/nats", external),
            "make another installation",
        ),
        (
            &whose,
            with(&whose, "/spec/tenant", json!("other")),
            "another tenant",
        ),
        (
            &whose,
            with(&whose, "/spec/mailbell", json!("other")),
            "another installation",
        ),
        (
            &provider(),
            with(&provider(), "/spec/mailbell", json!("other")),
            "another installation",
        ),
    ] {
        let said = change_refused(&world, before, &after).await;
        let said = said.unwrap_or_else(|| panic!("changed, though: {sentence}"));
        assert!(said.contains(sentence), "{said}\n  instead of: {sentence}");
    }
    for (before, after) in [
        (
            &good,
            with(&good, "/spec/nats/managed/image", json!("nats:2.14")),
        ),
        // The same keys in another place.
        (
            &good,
            with(&good, "/spec/watchers/keyRingSecret", json!("own-ring")),
        ),
        (
            &whose,
            with(&whose, "/spec/server/host", json!("mail.example.org")),
        ),
    ] {
        assert_eq!(change_refused(&world, before, &after).await, None);
    }
}

/// A misspelled field would else be dropped without a word.
#[tokio::test]
async fn a_misspelled_field_is_named() {
    let Some(world) = World::new().await else {
        return;
    };
    let object = with(&mailbell(), "/spec/watchers/scale/mim", json!(1));
    let (applied, said) = world
        .kubectl(&["apply", "-f", "-"], &object.to_string())
        .await;
    assert!(
        !applied && said.contains(r#"unknown field "spec.watchers.scale.mim""#),
        "{said}"
    );
}

#[tokio::test]
async fn a_list_tells_whether_all_is_well() {
    let Some(world) = World::new().await else {
        return;
    };
    let condition = |status, message| {
        json!({ "type": "Ready", "status": status, "reason": "X", "message": message,
            "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    let params = PatchParams::apply("tests").force();
    for (object, status) in [
        (
            mailbell(),
            json!({
                "conditions": [condition("True", "All 1200 mailboxes are watched.")],
                "counts": { "mailboxes": 1200, "watched": 1199, "devices": 57 },
                "versions": { "running": "0.1.0" },
            }),
        ),
        (
            account(),
            json!({
                "conditions": [condition("False", "The password is wrong.")],
                "mode": "Poll", "account": "default.01ARZ3NDEKTSV4RRFFQ69G5FAV",
                "lastArrival": "2026-01-01T00:00:00Z",
            }),
        ),
        (
            with(&provider(), "/spec/paused", json!(true)),
            json!({ "conditions": [condition("Unknown", "Nobody connects.")] }),
        ),
    ] {
        let api = objects(&world, &object);
        let name = object["metadata"]["name"].as_str().unwrap();
        api.patch(name, &params, &Patch::Apply(&object))
            .await
            .unwrap();
        let status = with(&object, "/status", status);
        let status = with(&status, "/spec", Value::Null);
        api.patch_status(name, &params, &Patch::Apply(&status))
            .await
            .unwrap();
    }
    let (worked, said) = world.kubectl(&["get", "mailbells,mailaccounts"], "").await;
    assert!(worked, "{said}");
    for word in [
        "True",
        "1200",
        "1199",
        "57",
        "0.1.0",
        "All 1200 mailboxes are watched.",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    for word in ["False", "Poll", "The password is wrong."] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let (worked, said) = world.kubectl(&["get", "mailproviders"], "").await;
    let words = [
        "Unknown",
        "true",
        r#"["imap.example.org","*.example.net"]"#,
        "Nobody connects.",
    ];
    for word in words {
        assert!(worked && said.contains(word), "{word}: {said}");
    }
}

#[tokio::test]
async fn what_a_field_means_is_explained() {
    let Some(world) = World::new().await else {
        return;
    };
    let explained = async || {
        let field = "mailbells.spec.nats.managed.nodes";
        let (worked, said) = world.kubectl(&["explain", field], "").await;
        worked && said.contains("3 lose nothing when one of them does")
    };
    // The server tells it some seconds after the definitions are there.
    soon(async {
        while !explained().await {
            sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
}
