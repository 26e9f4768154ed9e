use proptest::prelude::*;

use super::{hosts::ANY, *};

fn parse(json: &str) -> Result<Policy, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn provider(name: &str, hosts: &[&str]) -> Provider {
    Provider {
        name: name.to_owned(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..Provider::default()
    }
}

/// What a person reads of this list.
fn refused(providers: Vec<Provider>) -> String {
    let list = Policy {
        providers,
        ..Policy::default()
    };
    list.check().unwrap_err().to_string()
}

#[test]
fn a_list_says_all_there_is_and_comes_back_as_it_was() {
    let list = parse(
        r#"{"pausedTenants": ["b", "a"], "providers": [{
            "name": "example", "hosts": ["imap.example.org", "*.example.net"],
            "limits": {"connectsPerSecond": 5, "loginsPerSecond": 2, "connections": 10},
            "quirks": {"idleMinutes": 9, "noIdle": true, "pollSeconds": 60},
            "caFile": "roots.pem", "paused": true
        }, {"name": "plain", "hosts": ["mail.test"], "ca": "PEM"}]}"#,
    )
    .unwrap();
    assert!(list.check().is_ok());
    let [example, plain] = list.providers.as_slice() else {
        panic!("{list:?}");
    };
    assert_eq!(example.limits.logins_per_second, Some(2));
    assert_eq!(example.quirks.idle_minutes, Some(9));
    assert!(example.paused && !plain.paused);
    assert!(list.paused_tenants.contains("a"));
    let text = serde_json::to_string(&list).unwrap();
    assert!(text.starts_with(r#"{"pausedTenants":["a","b"],"#), "{text}");
    assert_eq!(parse(&text).unwrap(), list);
    assert!(text.ends_with(r#"{"name":"plain","hosts":["mail.test"],"ca":"PEM"}]}"#));
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    for (json, part) in [
        (
            "{\"providers\": [\n{\"name\": \"a\", \"host\": []}]}",
            "unknown field `host`",
        ),
        (
            "{\"providers\": [\n{\"name\": \"a\", \"hosts\": [], \"quirks\": {\"idle\": 1}}]}",
            "unknown field `idle`",
        ),
        (
            "{\"providers\": [\n{\"name\": \"a\"}]}",
            "missing field `hosts`",
        ),
    ] {
        let error = parse(json).unwrap_err();
        assert!(error.contains(part) && error.contains("line 2"), "{error}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_a_sentence() {
    let many = |count| (0..count).map(|n| provider(&format!("p{n}"), &[&format!("h{n}")]));
    assert!(refused(many(1001).collect()).contains("1001 providers: at most 1000"));
    let most = Policy {
        providers: many(1000).collect(),
        ..Policy::default()
    };
    assert!(most.check().is_ok());
    assert!(refused(vec![provider("", &["a"])]).contains("provider number 1"));
    let twice = vec![provider("a", &["x"]), provider("a", &["y"])];
    assert!(refused(twice).contains("two providers have the name \"a\""));
    assert!(refused(vec![provider("a", &[])]).contains("hosts: name 1 to 100"));
    assert!(refused(vec![provider("a", &["x"; 101])]).contains("not 101"));
    for host in [
        "",
        "*",
        "*.",
        "a b",
        "*.*.org",
        "a*.org",
        ".org",
        "a..b",
        "a.",
        "imap://a",
        "imap.example.org:993",
        "[2001:db8::1]",
        "[2001:db8::1]:993",
        "2001:db8::1::2",
        "*.2001:db8::1",
    ] {
        assert!(
            refused(vec![provider("a", &[host])]).contains("is neither a host"),
            "{host}"
        );
    }
    assert!(refused(vec![provider("a", &["x", "X"])]).contains("\"X\" stands there twice"));
    let both = vec![provider("a", &["*.x.org"]), provider("b", &["*.X.org"])];
    assert_eq!(
        refused(both),
        "providers \"a\" and \"b\" both have the host \"*.X.org\": a host belongs to one provider"
    );
    let mut authorities = provider("a", &["x"]);
    authorities.ca = Some("PEM".to_owned());
    authorities.ca_file = Some("roots.pem".to_owned());
    assert!(refused(vec![authorities]).contains("caFile and ca: give one"));
}

#[test]
fn whose_accounts_rest_is_bounded_and_names_tenants() {
    let check = |tenants: Vec<String>| {
        let policy = Policy {
            paused_tenants: tenants.into_iter().collect(),
            ..Policy::default()
        };
        policy.check().map(drop).map_err(|error| error.to_string())
    };
    let many = |count| (0..count).map(|n| format!("t{n}")).collect();
    assert_eq!(check(many(1000)), Ok(()));
    assert!(check(many(1001)).unwrap_err().contains("at most 1000"));
    for bad in ["", "A", "a.b", &"a".repeat(64)] {
        let said = check(vec![bad.to_owned()]).unwrap_err();
        assert!(said.contains("is no tenant"), "{said}");
    }
    assert_eq!(parse("{}").unwrap(), Policy::default());
}

#[test]
fn an_address_of_ipv6_is_a_host_as_it_stands() {
    let one = provider("a", &["2001:db8::1", "::1", "192.0.2.1"]);
    assert_eq!(one.check(), Ok(()));
    // Two spellings of one address.
    let twice = vec![provider("a", &["::1", "0:0::1"])];
    assert!(refused(twice).contains("stands there twice"));
}

#[test]
fn numbers_have_bounds() {
    let with = |change: &dyn Fn(&mut Provider, u32), value| {
        let mut one = provider("a", &["x"]);
        change(&mut one, value);
        let list = Policy {
            providers: vec![one],
            ..Policy::default()
        };
        list.check().map(|_| ()).map_err(|error| error.to_string())
    };
    type Change = fn(&mut Provider, u32);
    let fields: [(&str, Change, u32, u32); 5] = [
        (
            "limits.connectsPerSecond",
            |p, n| p.limits.connects_per_second = Some(n),
            1,
            100_000,
        ),
        (
            "limits.loginsPerSecond",
            |p, n| p.limits.logins_per_second = Some(n),
            1,
            100_000,
        ),
        (
            "limits.connections",
            |p, n| p.limits.connections = Some(n),
            1,
            10_000,
        ),
        (
            "quirks.idleMinutes",
            |p, n| p.quirks.idle_minutes = Some(n),
            1,
            29,
        ),
        (
            "quirks.pollSeconds",
            |p, n| p.quirks.poll_seconds = Some(n),
            10,
            1740,
        ),
    ];
    for (field, change, least, most) in fields {
        assert!(
            with(&change, least).is_ok() && with(&change, most).is_ok(),
            "{field}"
        );
        for value in [least - 1, most + 1] {
            let error = with(&change, value).unwrap_err();
            let said =
                format!("provider \"a\": {field}: {value} is not between {least} and {most}");
            assert_eq!(error, said);
        }
    }
}

#[test]
fn the_longest_that_stands_for_a_host_counts() {
    let mut hosts = Hosts::default();
    for host in [
        "*.org",
        "*.Example.org",
        "imap.example.org",
        "127.0.0.1",
        "2001:DB8:0::1",
    ] {
        assert_eq!(hosts.insert(host, host), None);
    }
    for (host, found) in [
        ("imap.example.org", Some("imap.example.org")),
        ("IMAP.example.ORG.", Some("imap.example.org")),
        ("pop.example.org", Some("*.Example.org")),
        ("a.b.example.org", Some("*.Example.org")),
        ("below.imap.example.org", Some("*.Example.org")),
        ("example.org", Some("*.org")),
        ("notexample.org", Some("*.org")),
        ("org", None),
        ("127.0.0.1", Some("127.0.0.1")),
        ("2001:db8::1", Some("2001:DB8:0::1")),
        ("2001:db8::2", None),
        ("example.net", None),
        ("", None),
    ] {
        assert_eq!(hosts.find(host).copied(), found, "{host}");
    }
    assert_eq!(hosts.map(|host| host.len()).find("x.org"), Some(&5));
}

proptest! {
    /// As one would say it: of all that stand for the host, the longest.
    #[test]
    fn finding_is_what_the_rule_says(
        patterns in prop::collection::hash_set("(\\*\\.)?[ab](\\.[ab]){0,2}", 0..8),
        host in "[ab](\\.[ab]){0,3}",
    ) {
        let mut hosts = Hosts::default();
        for pattern in &patterns {
            hosts.insert(pattern, pattern.clone());
        }
        let stands = |pattern: &&String| match pattern.strip_prefix("*.") {
            Some(above) => host.ends_with(&format!(".{above}")),
            None => **pattern == host,
        };
        // One that names the host itself may be no longer than one with `*.` before the name above it.
        let longest = patterns.iter().filter(stands).max_by_key(|pattern| {
            (!pattern.starts_with(ANY), pattern.len())
        });
        prop_assert_eq!(hosts.find(&host), longest);
    }
}
