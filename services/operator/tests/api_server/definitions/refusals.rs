//! What it refuses, with a sentence.

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{objects, refused};
use crate::world::{World, account, mailbell, provider, with};

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
    let roots_in_the_clear = json!({ "external": {
        "urls": ["nats://a:4222", "nats://b:4222"],
        "usersSecret": "nats",
        "allowPlaintext": true,
        "caConfigMap": "roots",
    } });
    let mut mixed = roots_in_the_clear.clone();
    mixed["external"]["urls"][1] = "tls://b:4222".into();
    let mixed = with(&good, "/spec/nats", mixed);
    assert_eq!(refused(&world, &mixed).await, None);
    let two =
        json!({ "external": { "urls": ["tls://a:4222,tls://b:4222"], "usersSecret": "nats" } });
    let twice =
        json!({ "external": { "urls": ["tls://a:4222"], "usersSecret": "nats", "replicas": 2 } });
    let room = json!({ "limits": { "memory": "4Gi" } });
    let told = with(&good, "/spec/nats/managed/resources", room.clone());
    let told_elsewhere = with(&good, "/spec/nats/managed/pods/resources", room.clone());
    let twice_told = with(&told, "/spec/nats/managed/pods/resources", room);
    for object in [&told, &told_elsewhere] {
        assert_eq!(refused(&world, object).await, None);
    }
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
        (
            with(&good, "/spec/nats", roots_in_the_clear),
            "caConfigMap is for TLS, which no address asks for",
        ),
        (with(&good, "/spec/nats", two), "should match"),
        (
            with(&good, "/spec/nats", twice),
            "replicas must be 1, 3 or 5",
        ),
        (twice_told, "say what NATS servers get once"),
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
