//! What the API server takes, what it adds, and what it refuses with which words.

mod refusals;

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
                "lookedAt": "2026-01-01T00:00:00Z",
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
    // Behind all else, and how long ago that is.
    let mut lines = said.lines();
    let mut last = || lines.next().unwrap().split_whitespace().last().unwrap();
    assert_eq!(last(), "LOOKED", "{said}");
    let ago = last();
    assert!(ago.ends_with(['d', 'y']), "{said}");
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
