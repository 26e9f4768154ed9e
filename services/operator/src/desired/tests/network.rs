//! The network policies, judged as a network that enforces them does: what a pod needs passes, and nothing else.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use super::{installations, objects, templates};

/// One end of a connection.
#[derive(Debug, Clone)]
struct End {
    name: String,
    /// Of a pod of the namespace.
    labels: Option<Value>,
    address: IpAddr,
}

/// Who begins, with whom, and by which port.
type Connection = (String, String, String);

/// Whoever is no pod of the installation. Names are looked up at any of them.
const OUTSIDE: [(&str, &str); 7] = [
    ("another pod", "10.244.1.9"),
    ("the internet", "203.0.113.9"),
    ("the internet by IPv6", "2001:db8::9"),
    ("a private network", "192.168.1.9"),
    ("a private network by IPv6", "fd12::9"),
    ("a metadata service", "169.254.169.254"),
    ("a neighbour by IPv6", "fe80::9"),
];

/// Ports of all that is served here, and of others that somebody would like to reach.
const PORTS: [&str; 20] = [
    "TCP 22", "TCP 25", "TCP 53", "UDP 53", "TCP 80", "TCP 143", "TCP 443", "TCP 993", "TCP 2379",
    "TCP 4222", "TCP 4317", "TCP 4333", "TCP 5353", "UDP 5353", "TCP 6222", "TCP 6443", "TCP 7443",
    "TCP 7444", "TCP 7445", "TCP 8222",
];

fn ends(spec: &Value) -> Vec<End> {
    let outside = OUTSIDE.map(|(name, address)| End {
        name: name.to_owned(),
        labels: (name == "another pod").then(|| serde_json::json!({ "app": "other" })),
        address: address.parse().unwrap(),
    });
    let own = templates(spec).into_iter().map(|(name, template)| End {
        name,
        labels: Some(template["metadata"]["labels"].clone()),
        address: "10.244.1.1".parse().unwrap(),
    });
    outside.into_iter().chain(own).collect()
}

fn list<'a>(object: &'a Value, place: &str) -> &'a [Value] {
    object
        .pointer(place)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Of `app: other, ...`, each of which a pod must have.
fn selects(selector: &Value, end: &End) -> bool {
    let wanted = selector.as_object().unwrap();
    assert!(wanted.keys().all(|key| key == "matchLabels"), "{selector}");
    let wanted = selector["matchLabels"].as_object().unwrap();
    let labels = end.labels.as_ref();
    labels.is_some_and(|labels| wanted.iter().all(|(name, value)| labels[name] == *value))
}

/// Of `10.0.0.0/8`.
fn is_in(address: IpAddr, network: &str) -> bool {
    let (network, bits) = network.split_once('/').unwrap();
    let bits: u32 = bits.parse().unwrap();
    match (address, network.parse().unwrap()) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (address.to_bits() ^ network.to_bits()).leading_zeros() >= bits
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            (address.to_bits() ^ network.to_bits()).leading_zeros() >= bits
        }
        _ => false,
    }
}

/// One of the peers of a rule.
fn is_peer(peer: &Value, end: &End) -> bool {
    let fields: Vec<&str> = peer
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    match fields[..] {
        ["podSelector"] => selects(&peer["podSelector"], end),
        ["ipBlock"] => {
            let block = &peer["ipBlock"];
            let within = |network: &Value| is_in(end.address, network.as_str().unwrap());
            within(&block["cidr"]) && !list(block, "/except").iter().any(within)
        }
        _ => panic!("{peer}"),
    }
}

/// Whether the policies of one end let it speak with the other; `direction` is `Ingress` or `Egress`.
fn passes(policies: &[Value], direction: &str, of: &End, with: &End, port: &str) -> bool {
    let (rules, peers) = match direction {
        "Ingress" => ("/spec/ingress", "/from"),
        _ => ("/spec/egress", "/to"),
    };
    let of_it = policies.iter().filter(|policy| {
        let is_of = list(policy, "/spec/policyTypes")
            .iter()
            .any(|it| it == direction);
        is_of && selects(&policy["spec"]["podSelector"], of)
    });
    let of_it: Vec<&Value> = of_it.collect();
    // Whom no policy selects may all.
    of_it.is_empty()
        || of_it
            .iter()
            .flat_map(|policy| list(policy, rules))
            .any(|rule| {
                let is_port = |it: &Value| {
                    format!("{} {}", it["protocol"].as_str().unwrap(), it["port"]) == port
                };
                let (to, ports) = (list(rule, peers), list(rule, "/ports"));
                (ports.is_empty() || ports.iter().any(is_port))
                    && (to.is_empty() || to.iter().any(|peer| is_peer(peer, with)))
            })
}

/// Every connection that the policies let pass, but those between others.
fn allowed(spec: &Value) -> BTreeSet<Connection> {
    let policies: Vec<Value> = objects(spec);
    let policies: Vec<Value> = policies
        .into_iter()
        .filter(|it| it["kind"] == "NetworkPolicy")
        .collect();
    let ends = ends(spec);
    let mut all = BTreeSet::new();
    for from in &ends {
        for to in &ends {
            let outside = |end: &End| OUTSIDE.iter().any(|(name, _)| *name == end.name);
            if outside(from) && outside(to) {
                continue;
            }
            for port in PORTS {
                if passes(&policies, "Egress", from, to, port)
                    && passes(&policies, "Ingress", to, from, port)
                {
                    all.insert((from.name.clone(), to.name.clone(), port.to_owned()));
                }
            }
        }
    }
    all
}

/// What the settings of each pod name, and the ports that it serves.
fn needed(spec: &Value) -> BTreeSet<Connection> {
    let templates = templates(spec);
    let is_nats = |name: &str| name == "main-nats";
    let has_nats = templates.iter().any(|(name, _)| is_nats(name));
    let mut all = BTreeSet::new();
    for (name, template) in &templates {
        let container = &template["spec"]["containers"][0];
        let setting = |wanted: &str| {
            let mut settings = list(container, "/env").iter();
            let setting = settings.find(|it| it["name"] == wanted);
            setting.map(|it| it["value"].as_str().unwrap_or_default().to_owned())
        };
        let mut reach =
            |to: &str, port: &str| all.insert((name.clone(), to.to_owned(), port.to_owned()));
        let of_url = |url: &str| {
            let (_, port) = url.rsplit_once(':').unwrap();
            format!("TCP {port}")
        };
        // Whoever is named may be anywhere, and so may who knows the name.
        let mut anywhere: Vec<String> = ["TCP 53", "UDP 53", "TCP 5353", "UDP 5353"]
            .map(String::from)
            .into();
        anywhere.extend(setting("MAILBELL_OTLP_ENDPOINT").map(|url| of_url(&url)));
        for url in setting("MAILBELL_NATS_URL")
            .iter()
            .flat_map(|urls| urls.split(','))
        {
            if has_nats {
                reach("main-nats", &of_url(url));
            } else {
                anywhere.push(of_url(url));
            }
        }
        if template["spec"]["automountServiceAccountToken"] == true {
            anywhere.extend(["TCP 443", "TCP 6443"].map(String::from));
        }
        for (outside, _) in OUTSIDE {
            for port in &anywhere {
                reach(outside, port);
            }
        }
        if name == "main-watcher" {
            let private = spec.pointer("/watchers/allowPrivateHosts").is_some();
            for (outside, _) in OUTSIDE {
                let is_open = match outside {
                    "the internet" | "the internet by IPv6" => true,
                    "a metadata service" | "a neighbour by IPv6" => false,
                    _ => private,
                };
                if is_open {
                    reach(outside, "TCP 993");
                    reach(outside, "TCP 143");
                }
            }
        }
        if is_nats(name) {
            reach("main-nats", "TCP 6222");
            continue;
        }
        // Devices, load balancers, and whoever reads metrics.
        for port in list(container, "/ports") {
            for (outside, _) in OUTSIDE {
                all.insert((
                    outside.to_owned(),
                    name.clone(),
                    format!("TCP {}", port["containerPort"]),
                ));
            }
        }
    }
    all
}

#[test]
fn what_a_pod_needs_passes_the_policies_and_nothing_else() {
    for (name, spec) in installations() {
        let (allowed, needed) = (allowed(&spec), needed(&spec));
        let missing: Vec<_> = needed.difference(&allowed).collect();
        assert!(
            missing.is_empty(),
            "{name}: kept out though needed: {missing:#?}"
        );
        let beyond: Vec<_> = allowed.difference(&needed).collect();
        assert!(
            beyond.is_empty(),
            "{name}: let pass though nobody needs it: {beyond:#?}"
        );
    }
}

/// Whoever reads a policy is told of each rule what it is for, and nothing of it that is not so.
#[test]
fn each_way_out_says_what_it_is_for() {
    let mut seen = BTreeSet::new();
    for (name, spec) in installations() {
        let policies = objects(&spec).into_iter();
        for policy in policies.filter(|it| it["kind"] == "NetworkPolicy") {
            let said = policy["metadata"]["annotations"]["mailbell.dev/egress"].as_str();
            let said: Vec<&str> = said.unwrap().split("; ").collect();
            let rules = list(&policy, "/spec/egress");
            assert_eq!(said.len(), rules.len(), "{name}: {said:?}");
            for (why, rule) in said.into_iter().zip(rules) {
                let has_port = |port: &str| {
                    let (port, mut ports) = (port.parse().ok(), list(rule, "/ports").iter());
                    ports.any(|it| it["port"].as_u64() == port)
                };
                assert_eq!(why == "names", has_port("53"), "{why}: {rule}");
                let words: Vec<&str> = why.split([' ', ',']).collect();
                let mut numbers = words.into_iter().filter(|it| it.parse::<u16>().is_ok());
                assert!(numbers.all(has_port), "{why}: {rule}");
                let is_anywhere = why == "names" || why.ends_with("wherever it is");
                assert_eq!(is_anywhere, list(rule, "/to").is_empty(), "{why}: {rule}");
                let excepted = list(rule, "/to/0/ipBlock/except").iter();
                let excepted: Vec<&str> = excepted.map(|it| it.as_str().unwrap()).collect();
                let link_local = excepted.contains(&"169.254.0.0/16");
                assert_eq!(why.contains("link-local"), link_local, "{why}: {rule}");
                let private = excepted.contains(&"10.0.0.0/8");
                assert_eq!(why.contains("private networks"), private, "{why}: {rule}");
                seen.insert(why.to_owned());
            }
        }
    }
    let expected = [
        "NATS",
        "NATS on 4222 and 4333, wherever it is",
        "NATS on 4222, wherever it is",
        "mail servers on 993 and 143, link-local addresses and private networks excepted",
        "mail servers on 993 and 143, link-local addresses excepted",
        "names",
        "the API server on 443 and 6443, wherever it is",
        "the NATS servers among themselves",
        "the collector of traces on 4317, wherever it is",
    ];
    assert_eq!(seen, expected.map(String::from).into());
}
