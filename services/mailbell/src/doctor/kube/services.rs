//! By what an installation is reached from outside: what makes load balancers, and Gateways, are no part of it.

use k8s_openapi::api::core::v1::Service;
use kube::{
    Api, Client, ResourceExt as _,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use mailbell_operator::api::{Mailbell, ServiceType};
use serde_json::Value;

use super::{
    access::{Seen, seen},
    warnings,
};
use crate::doctor::Report;

/// What is told of a sentence.
const MAX_SENTENCE: usize = 300;

pub(super) async fn examine(
    report: &mut Report,
    client: &Client,
    namespace: &str,
    mailbell: &Mailbell,
) {
    let (name, spec) = (mailbell.name_any(), &mailbell.spec);
    for (part, wanted) in [
        ("gateway", &spec.gateways.service),
        ("admin", &spec.admin.service),
    ] {
        let kind = wanted.as_ref().and_then(|it| it.type_);
        if kind == Some(ServiceType::LoadBalancer) {
            let name = format!("{name}-{part}");
            balancer(report, client, namespace, &name).await;
        }
    }
    if spec.gateways.gateway_api.is_some() {
        route(report, client, namespace, &format!("{name}-gateway")).await;
    }
}

async fn balancer(report: &mut Report, client: &Client, namespace: &str, name: &str) {
    let finding = format!("service {name}");
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = match seen(api.get(name).await) {
        Seen::There(service) => service,
        // What its operator says of the installation says why.
        Seen::Missing => return,
        Seen::Denied(why) => return report.skipped(&finding, format!("you may not see it: {why}")),
        Seen::Failed(why) => return report.fail(&finding, why, "look again"),
    };
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    if kind != Some("LoadBalancer") {
        // Not yet.
        return;
    }
    let addresses = addresses(&service);
    if !addresses.is_empty() {
        return report.ok(&finding, format!("is reached by {}", addresses.join(", ")));
    }
    let warned = warnings::about(client, namespace, &service.metadata, None).await;
    let why = match warned {
        Ok(Some(warned)) => warned,
        Ok(None) => "nobody says why".to_owned(),
        Err(unseen) => unseen,
    };
    // It may be made in a moment, and where there is none devices may come in by another way.
    report.warn(
        &finding,
        format!("its load balancer has no address, so no device gets in by it: {why}"),
        format!(
            "see whether there is anything on this cluster that makes load balancers: kubectl --namespace {namespace} describe service {name}"
        ),
    );
}

fn addresses(service: &Service) -> Vec<String> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let all = balancer.and_then(|it| it.ingress.as_ref());
    let named = all.into_iter().flatten();
    named
        .filter_map(|it| it.hostname.clone().or_else(|| it.ip.clone()))
        .collect()
}

async fn route(report: &mut Report, client: &Client, namespace: &str, name: &str) {
    let finding = format!("route {name}");
    let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "GRPCRoute");
    let kind = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind);
    let route = match seen(api.get(name).await) {
        Seen::There(route) => route,
        Seen::Missing => return,
        Seen::Denied(why) => return report.skipped(&finding, format!("you may not see it: {why}")),
        Seen::Failed(why) => return report.fail(&finding, why, "look again"),
    };
    match untaken(&route.data) {
        None => report.ok(&finding, "its Gateways have taken it"),
        Some(said) => report.warn(
            &finding,
            said,
            format!(
                "see to what is named, and to the Gateway: kubectl --namespace {namespace} describe grpcroute {name}"
            ),
        ),
    }
}

/// By what those say who look after the Gateways that it names.
fn untaken(route: &Value) -> Option<String> {
    let list = |place: &str| route.pointer(place).and_then(Value::as_array);
    let field = |of: &Value, place: &str| {
        let text = of.pointer(place).and_then(Value::as_str);
        text.map(str::to_owned)
    };
    let told = || list("/status/parents").into_iter().flatten();
    for wanted in list("/spec/parentRefs").into_iter().flatten() {
        let gateway = field(wanted, "/name");
        let mut of_it = told().filter(|it| field(it, "/parentRef/name") == gateway);
        if of_it.next().is_none() {
            return Some(format!(
                "nobody who looks after the Gateway {} has seen it",
                gateway.unwrap_or_default()
            ));
        }
    }
    for parent in told() {
        let conditions = parent.get("conditions").and_then(Value::as_array);
        for condition in conditions.into_iter().flatten() {
            let kind = field(condition, "/type").unwrap_or_default();
            let is_of_use = ["Accepted", "ResolvedRefs"].contains(&kind.as_str());
            if is_of_use && field(condition, "/status").as_deref() == Some("False") {
                let why = field(condition, "/message").unwrap_or_default();
                let said = format!(
                    "the Gateway {} says of it that {kind} is False: {why}",
                    field(parent, "/parentRef/name").unwrap_or_default()
                );
                return Some(said.chars().take(MAX_SENTENCE).collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_load_balancer_has_addresses_or_names() {
        let service = |status: Value| {
            serde_json::from_value::<Service>(json!({ "metadata": {}, "status": status })).unwrap()
        };
        let two = json!([{ "ip": "192.0.2.1" }, { "hostname": "lb.example.org" }]);
        let both = service(json!({ "loadBalancer": { "ingress": two } }));
        assert_eq!(addresses(&both), ["192.0.2.1", "lb.example.org"]);
        let none = service(json!({ "loadBalancer": {} }));
        assert!(addresses(&none).is_empty());
    }

    #[test]
    fn a_route_is_taken_by_each_gateway_that_it_names() {
        let parent = |name: &str, accepted: &str, resolved: &str| {
            let conditions = json!([
                { "type": "Accepted", "status": accepted, "message": "no listener has this name" },
                { "type": "ResolvedRefs", "status": resolved, "message": "no such service" },
            ]);
            json!({ "parentRef": { "name": name }, "conditions": conditions })
        };
        let told = |parents: Value| {
            let refs = json!([{ "name": "one" }, { "name": "two" }]);
            untaken(&json!({ "spec": { "parentRefs": refs }, "status": { "parents": parents } }))
        };
        let good = parent("one", "True", "True");
        assert_eq!(told(json!([good, parent("two", "True", "True")])), None);
        for (parents, words) in [
            (json!([]), "looks after the Gateway one has seen it"),
            (json!([good]), "looks after the Gateway two has seen it"),
            (
                json!([good, parent("two", "False", "True")]),
                "Gateway two says of it that Accepted is False: no listener has this name",
            ),
            (
                json!([good, parent("two", "True", "False")]),
                "ResolvedRefs is False: no such service",
            ),
        ] {
            let said = told(parents).unwrap();
            assert!(said.contains(words), "{said}");
        }
    }
}
