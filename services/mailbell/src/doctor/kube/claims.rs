//! The disks of NATS servers that the operator runs.

use k8s_openapi::api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, ObjectList},
};
use mailbell_operator::api::Mailbell;

use super::{
    MOST,
    access::{Seen, listed, seen},
    warnings,
};
use crate::doctor::Report;

/// By which a class says that it is taken where none is named.
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
    params: &ListParams,
) {
    let Some(managed) = &mailbell.spec.nats.managed else {
        return;
    };
    let finding = format!("disks {}", mailbell.name_any());
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let Some(all) = listed(report, &finding, &api, params).await else {
        return;
    };
    let is = |claim: &&PersistentVolumeClaim, phase: &str| {
        let status = claim.status.as_ref();
        status.and_then(|status| status.phase.as_deref()) == Some(phase)
    };
    let wanted = usize::try_from(managed.nodes).unwrap_or_default();
    if let Some(claim) = all.iter().find(|claim| is(claim, "Lost")) {
        let name = claim.name_any();
        let (said, advice) = lost(&name, managed.nodes, namespace);
        report.fail(&finding, said, advice);
    }
    let unbound: Vec<_> = all
        .iter()
        .filter(|claim| !is(claim, "Bound") && !is(claim, "Lost"))
        .collect();
    if let Some(claim) = unbound.first() {
        let class = class_name(claim);
        let asked = match class {
            Some(name) => class_named(client, name).await,
            None => default_class(client).await,
        };
        let name = claim.name_any();
        let warned = warnings::about(client, namespace, &claim.metadata, None).await;
        let (why, advice) = unbound_why(class, &asked, warned);
        let others = match unbound.len() - 1 {
            0 => String::new(),
            more => format!(", nor have {more} others"),
        };
        report.fail(
            &finding,
            format!("{name} has no volume yet{others}: {why}"),
            format!("{advice}: kubectl --namespace {namespace} describe pvc {name}"),
        );
    } else if all.len() < wanted {
        report.fail(
            &finding,
            format!("{} of {wanted} are there", all.len()),
            "they come with the pods of the NATS servers: see what is told of those",
        );
    } else if !all.iter().any(|claim| is(&claim, "Lost")) {
        report.ok(&finding, format!("all {} have their volume", all.len()));
    }
}

/// Of a claim whose volume is gone.
fn lost(claim: &str, nodes: i32, namespace: &str) -> (String, String) {
    if nodes < 2 {
        return (
            format!("{claim} has lost its volume, and nobody else has what was on it"),
            "bring the volume back; if it is gone for good, make the installation anew: docs/operating.md, What to do when, All disks are lost".to_owned(),
        );
    }
    let pod = claim.strip_prefix("data-").unwrap_or(claim);
    // A claim is there as long as its pod is.
    (
        format!("{claim} has lost its volume"),
        format!(
            "if it is gone for good, let the server begin anew, which fetches its copy from the others: kubectl --namespace {namespace} delete pvc {claim} --wait=false, then kubectl --namespace {namespace} delete pod {pod}"
        ),
    )
}

fn class_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref();
    spec.and_then(|spec| spec.storage_class_name.as_deref())
}

async fn class_named(client: &Client, name: &str) -> Seen<StorageClass> {
    let api: Api<StorageClass> = Api::all(client.clone());
    seen(api.get(name).await)
}

async fn default_class(client: &Client) -> Seen<StorageClass> {
    let api: Api<StorageClass> = Api::all(client.clone());
    match seen(api.list(&ListParams::default().limit(MOST)).await) {
        Seen::There(ObjectList { items, .. }) => {
            let is_default =
                |it: &StorageClass| it.annotations().get(DEFAULT).is_some_and(|is| is == "true");
            items
                .into_iter()
                .find(is_default)
                .map_or(Seen::Missing, Seen::There)
        }
        Seen::Missing => Seen::Missing,
        Seen::Denied(why) => Seen::Denied(why),
        Seen::Failed(why) => Seen::Failed(why),
    }
}

/// What is known of the reason, and what to look at.
fn unbound_why(
    class: Option<&str>,
    asked: &Seen<StorageClass>,
    warned: Result<Option<String>, String>,
) -> (String, &'static str) {
    let (warned, unseen) = match warned {
        Ok(warned) => (warned, None),
        Err(unseen) => (None, Some(unseen)),
    };
    let named = class.map_or("the default storage class".to_owned(), |name| {
        format!("the storage class {name}")
    });
    match asked {
        Seen::Missing if class == Some("") => (
            "it asks for no storage class, and no volume of that kind is free".to_owned(),
            "name a class in nats.managed.storage.className of a new installation, or make a volume",
        ),
        Seen::Missing if class.is_some() => (
            format!("{named} does not exist"),
            "make that storage class; another name needs the Mailbell made anew",
        ),
        Seen::Missing => (
            "it names no storage class, and the cluster has no default one".to_owned(),
            "make a storage class the default one; naming one needs the Mailbell made anew",
        ),
        _ if warned.is_some() => (
            warned.unwrap_or_default(),
            "see to what is named; it is tried again by itself",
        ),
        Seen::There(it) if it.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => (
            format!("{named} makes one when its pod gets a node"),
            "see what is told of the pods",
        ),
        _ => (
            format!(
                "{named} has not made one, and {}",
                unseen.as_deref().unwrap_or("nobody says why")
            ),
            "see whether what makes volumes of this class works",
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn why_a_claim_waits_is_said_as_far_as_it_is_known() {
        let class = |mode: &str| {
            let class = json!({ "metadata": { "name": "fast" }, "provisioner": "x", "volumeBindingMode": mode });
            Seen::There(serde_json::from_value::<StorageClass>(class).unwrap())
        };
        let denied = || Seen::Denied("no".to_owned());
        let warned = || Ok(Some("the disk quota is used up".to_owned()));
        let unseen = || Err("you may not see the events".to_owned());
        for (named, asked, warned, words, todo) in [
            (
                Some("fast"),
                Seen::Missing,
                warned(),
                "the storage class fast does not exist",
                "another name needs the Mailbell made anew",
            ),
            (
                None,
                Seen::Missing,
                Ok(None),
                "the cluster has no default one",
                "make a storage class the default one",
            ),
            (
                Some(""),
                Seen::Missing,
                Ok(None),
                "no volume of that kind",
                "make a volume",
            ),
            (
                Some("fast"),
                class("Immediate"),
                warned(),
                "quota is used up",
                "by itself",
            ),
            (
                Some("fast"),
                denied(),
                warned(),
                "quota is used up",
                "by itself",
            ),
            (
                Some("fast"),
                class("WaitForFirstConsumer"),
                unseen(),
                "when its pod gets a node",
                "told of the pods",
            ),
            (
                Some("fast"),
                class("Immediate"),
                Ok(None),
                "nobody says why",
                "works",
            ),
            (
                Some("fast"),
                class("Immediate"),
                unseen(),
                "has not made one, and you may not see the events",
                "works",
            ),
            (
                None,
                denied(),
                Ok(None),
                "the default storage class has not made one",
                "works",
            ),
        ] {
            let (said, advice) = unbound_why(named, &asked, warned);
            assert!(said.contains(words), "{words}: {said}");
            assert!(advice.contains(todo), "{todo}: {advice}");
        }
    }

    #[test]
    fn what_is_lost_with_a_volume_is_said_and_how_its_server_begins_anew() {
        let (said, advice) = lost("data-main-nats-1", 3, "mail");
        assert_eq!(said, "data-main-nats-1 has lost its volume");
        assert!(advice.contains("from the others"), "{advice}");
        let anew = "kubectl --namespace mail delete pvc data-main-nats-1 --wait=false, then kubectl --namespace mail delete pod main-nats-1";
        assert!(advice.ends_with(anew), "{advice}");
        let (said, advice) = lost("data-main-nats-0", 1, "mail");
        assert!(said.contains("nobody else has what was on it"), "{said}");
        assert!(!advice.contains("from the others"), "{advice}");
        assert!(advice.contains("make the installation anew"), "{advice}");
    }
}
