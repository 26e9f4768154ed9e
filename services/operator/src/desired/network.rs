//! Who may speak to whom. Where a cluster's network enforces no policies, these change nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Part, Wanted, merge,
    nats::{CLIENT_PORT, ROUTE_PORT},
    pod::HTTP_PORT,
    roles::{ADMIN_PORT, PUSH_PORT},
};

/// Names: of the service, and of the pods behind it on some clusters, since most networks judge what a service has become.
const DNS_PORTS: [i32; 2] = [53, 5353];
/// Mail servers, with TLS from the first byte and without.
const IMAP_PORTS: [i32; 2] = [993, 143];

/// Of a node and its neighbours; metadata services of clouds are there, which give credentials to whoever asks: IPv4 and IPv6.
const LINK_LOCAL: [&[&str]; 2] = [&["169.254.0.0/16"], &["fe80::/10"]];
/// Networks of the cluster and of whoever runs it. An IPv6 metadata service may be there too: it is kept out by the ports.
const PRIVATE: [&[&str]; 2] = [
    &[
        "10.0.0.0/8",
        "100.64.0.0/10",
        "172.16.0.0/12",
        "192.168.0.0/16",
    ],
    &["fc00::/7"],
];

/// The annotation that says of each rule by which a pod goes out what for, in their order.
const EGRESS: &str = "mailbell.dev/egress";

/// A rule by which a pod goes out.
struct Out {
    /// What it is for, and how far it goes.
    why: String,
    rule: Value,
}

pub(super) fn objects(wanted: &Wanted<'_>) -> Vec<Value> {
    let mut objects = vec![
        policy(wanted, Part::Gateway, &[HTTP_PORT, PUSH_PORT], None),
        policy(wanted, Part::Admin, &[HTTP_PORT, ADMIN_PORT], None),
        policy(
            wanted,
            Part::Watcher,
            &[HTTP_PORT],
            Some(to_mail_servers(wanted)),
        ),
        policy(wanted, Part::Setup, &[], None),
    ];
    if wanted.mailbell.spec.generate_secrets {
        let egress = [to_names(), to_api_server(wanted)];
        objects.push(one(wanted, Part::Secrets, &[], &egress));
    }
    if wanted.mailbell.spec.nats.managed.is_some() {
        objects.push(nats(wanted));
    }
    objects
}

/// Of a part of Mailbell itself: in, what it serves to anybody; out, names and NATS, traces of what serves, and what it has beside.
fn policy(wanted: &Wanted<'_>, part: Part, serves: &[i32], more_out: Option<Out>) -> Value {
    let ingress: Vec<Value> = serves.iter().copied().map(from_anywhere).collect();
    let mut egress = vec![to_names(), to_nats(wanted)];
    if !serves.is_empty() && wanted.mailbell.spec.telemetry.otlp_endpoint.is_some() {
        egress.push(to_collector(wanted));
    }
    egress.extend(more_out);
    one(wanted, part, &ingress, &egress)
}

fn one(wanted: &Wanted<'_>, part: Part, ingress: &[Value], egress: &[Out]) -> Value {
    let why: Vec<&str> = egress.iter().map(|out| out.why.as_str()).collect();
    let egress: Vec<&Value> = egress.iter().map(|out| &out.rule).collect();
    let mut content = json!({
        "metadata": { "annotations": { EGRESS: why.join("; ") } },
        "spec": {
            "podSelector": { "matchLabels": wanted.selector(part) },
            "policyTypes": ["Ingress", "Egress"],
            "egress": egress,
        },
    });
    // The server drops a list that is empty, so each time that it is applied would be a change, which is seen, and applied again.
    if !ingress.is_empty() {
        merge(&mut content, json!({ "spec": { "ingress": ingress } }));
    }
    let api = "networking.k8s.io/v1";
    wanted.object(api, "NetworkPolicy", &wanted.name(part), part, content)
}

/// The servers among themselves, and the roles. Not what they say of themselves, in which ids of tenants and accounts are: only the
/// kubelet of their node asks for that, which no policy keeps out.
fn nats(wanted: &Wanted<'_>) -> Value {
    let servers = json!([{ "podSelector": { "matchLabels": wanted.selector(Part::Nats) } }]);
    let parts = [Part::Watcher, Part::Gateway, Part::Admin, Part::Setup];
    let clients: Vec<Value> = parts
        .iter()
        .map(|part| json!({ "podSelector": { "matchLabels": wanted.selector(*part) } }))
        .collect();
    let ingress = [
        json!({ "from": clients, "ports": [tcp(CLIENT_PORT)] }),
        json!({ "from": servers, "ports": [tcp(ROUTE_PORT)] }),
    ];
    let egress = [
        to_names(),
        Out {
            why: "the NATS servers among themselves".to_owned(),
            rule: json!({ "to": servers, "ports": [tcp(ROUTE_PORT)] }),
        },
    ];
    one(wanted, Part::Nats, &ingress, &egress)
}

fn tcp(port: i32) -> Value {
    json!({ "protocol": "TCP", "port": port })
}

/// Devices, load balancers, kubelets and whoever reads metrics: none of them is a pod with known labels.
fn from_anywhere(port: i32) -> Value {
    json!({ "ports": [tcp(port)] })
}

/// Wherever they are answered: a cluster's DNS is in another namespace, with other labels on each, or on the node.
fn to_names() -> Out {
    let udp = |port: i32| json!({ "protocol": "UDP", "port": port });
    let ports: Vec<Value> = DNS_PORTS
        .map(udp)
        .into_iter()
        .chain(DNS_PORTS.map(tcp))
        .collect();
    Out {
        why: "names".to_owned(),
        rule: json!({ "ports": ports }),
    }
}

fn to_nats(wanted: &Wanted<'_>) -> Out {
    let nats = &wanted.mailbell.spec.nats;
    match &nats.external {
        // An address may be a name, and a name anything.
        Some(external) => anywhere("NATS", external.urls.iter().map(|url| port(url))),
        // Those that the operator runs are pods with known labels.
        None => Out {
            why: "NATS".to_owned(),
            rule: json!({
                "to": [{ "podSelector": { "matchLabels": wanted.selector(Part::Nats) } }],
                "ports": [tcp(CLIENT_PORT)],
            }),
        },
    }
}

/// It is no pod, and its address is another one on each cluster.
fn to_api_server(wanted: &Wanted<'_>) -> Out {
    let ports = wanted.api_server_ports.iter();
    anywhere("the API server", ports.map(|port| i32::from(*port)))
}

/// Its address may be a name, of a pod here or of a service of somebody else's.
fn to_collector(wanted: &Wanted<'_>) -> Out {
    let endpoint = wanted.mailbell.spec.telemetry.otlp_endpoint.as_deref();
    let endpoint = endpoint.unwrap_or_default();
    let explicit = endpoint.rsplit_once(':').and_then(|(_, port)| {
        let port = port.trim_end_matches('/');
        port.parse().ok()
    });
    let usual = if endpoint.starts_with("https:") {
        443
    } else {
        80
    };
    let port = explicit.unwrap_or(usual);
    anywhere("the collector of traces", [port].into_iter())
}

/// Wherever it is: only its ports are known.
fn anywhere(what: &str, ports: impl Iterator<Item = i32>) -> Out {
    let ports: BTreeSet<i32> = ports.collect();
    let named: Vec<String> = ports.iter().map(i32::to_string).collect();
    let ports: Vec<Value> = ports.into_iter().map(tcp).collect();
    Out {
        why: format!("{what} on {}, wherever it is", named.join(" and ")),
        rule: json!({ "ports": ports }),
    }
}

fn port(url: &str) -> i32 {
    let port = url.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    port.unwrap_or(CLIENT_PORT)
}

/// Mail servers are anywhere, but where the user does not allow them: an account names a host, and a name may lead anywhere. Ports of
/// IMAP only: others are left to the user's own policies.
fn to_mail_servers(wanted: &Wanted<'_>) -> Out {
    let private = !wanted.mailbell.spec.watchers.allow_private_hosts;
    let block = |all: &str, version: usize| {
        let mut except = LINK_LOCAL
            .get(version)
            .copied()
            .unwrap_or_default()
            .to_vec();
        if private {
            except.extend(PRIVATE.get(version).copied().unwrap_or_default());
        }
        json!({ "ipBlock": { "cidr": all, "except": except } })
    };
    let [tls, plain] = IMAP_PORTS;
    let excepted = if private {
        "link-local addresses and private networks"
    } else {
        "link-local addresses"
    };
    Out {
        why: format!("mail servers on {tls} and {plain}, {excepted} excepted"),
        rule: json!({ "to": [block("0.0.0.0/0", 0), block("::/0", 1)], "ports": IMAP_PORTS.map(tcp) }),
    }
}
