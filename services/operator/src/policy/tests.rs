use mailbell_test_servers::Certificate;
use serde_json::{Value, json};

use super::*;

/// An object that was made at this second.
fn object(name: &str, second: u8, spec: &Value) -> MailProvider {
    let mut object = json!({
        "apiVersion": "mailbell.dev/v1alpha1",
        "kind": "MailProvider",
        "metadata": {
            "name": name, "namespace": "mail", "generation": 3,
            "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        },
        "spec": { "mailbell": "main" },
    });
    let fields = spec.as_object().unwrap().clone();
    object["spec"].as_object_mut().unwrap().extend(fields);
    serde_json::from_value(object).unwrap()
}

/// With this host alone.
fn with_host(provider: &MailProvider, host: &str) -> MailProvider {
    let mut provider = provider.clone();
    provider.spec.hosts = vec![host.to_owned()];
    provider
}

/// With these hosts.
fn at(name: &str, second: u8, hosts: &[&str]) -> MailProvider {
    object(name, second, &json!({ "hosts": hosts }))
}

/// Whatever comes of it, watchers take it.
fn made(tenants: &[&str], providers: Vec<(MailProvider, Option<String>)>) -> (Policy, Made) {
    let tenants: Vec<String> = tenants.iter().map(|name| (*name).to_owned()).collect();
    let mut objects: Vec<MailProvider> = providers.iter().map(|(it, _)| it.clone()).collect();
    sort(&mut objects);
    let mut maker = Maker::new(&tenants).unwrap();
    for object in objects {
        let roots = providers
            .iter()
            .find(|(it, _)| it.name_any() == object.name_any());
        let roots = roots.and_then(|(_, roots)| roots.clone());
        maker.add(object, roots).unwrap();
    }
    let made = maker.finish().unwrap();
    assert!(made.text.len() <= MAX_BYTES, "{}", made.text.len());
    let policy: Policy = serde_json::from_str(&made.text).unwrap();
    policy.check().unwrap();
    (policy, made)
}

fn without_roots(providers: Vec<MailProvider>) -> (Policy, Made) {
    made(&[], providers.into_iter().map(|it| (it, None)).collect())
}

/// Name, reason, and what is said.
fn told(made: &Made) -> Vec<(String, &'static str, String)> {
    let all = made.verdicts.iter();
    let told = all.map(|(it, verdict)| (it.name_any(), verdict.reason, verdict.message.clone()));
    told.collect()
}

fn hosts(policy: &Policy) -> Vec<(&str, Vec<&str>)> {
    let all = policy.providers.iter();
    all.map(|it| {
        (
            it.name.as_str(),
            it.hosts.iter().map(String::as_str).collect(),
        )
    })
    .collect()
}

#[test]
fn all_that_an_object_says_is_in_the_file_and_the_same_objects_make_the_same() {
    let one = object(
        "one",
        1,
        &json!({
            "hosts": ["imap.example.org", "*.example.net"],
            "limits": { "connectsPerSecond": 5, "loginsPerSecond": 2, "connections": 10 },
            "quirks": { "idleMinutes": 9, "noIdle": true, "pollSeconds": 60 },
            "paused": true,
        }),
    );
    let two = at("two", 2, &["mail.test"]);
    let (policy, first) = made(&["b", "a"], vec![(one.clone(), None), (two.clone(), None)]);
    assert_eq!(
        first.text,
        r#"{"pausedTenants":["a","b"],"providers":[{"name":"one","hosts":["imap.example.org","*.example.net"],"limits":{"connectsPerSecond":5,"loginsPerSecond":2,"connections":10},"quirks":{"idleMinutes":9,"noIdle":true,"pollSeconds":60},"paused":true},{"name":"two","hosts":["mail.test"]}]}"#
    );
    assert_eq!(policy.providers.len(), 2);
    let (_, second) = made(&["a", "b"], vec![(two, None), (one, None)]);
    assert_eq!(first, second);
    let sentence = |text: &str| text.to_owned();
    assert_eq!(
        told(&first),
        [
            (
                "one".to_owned(),
                "Paused",
                sentence("Watchers are told within some minutes: nobody connects to its 2 hosts.")
            ),
            (
                "two".to_owned(),
                "InForce",
                sentence("Watchers are told within some minutes: in force for its host.")
            ),
        ]
    );
    assert_eq!(
        without_roots(Vec::new()).1.text,
        r#"{"pausedTenants":[],"providers":[]}"#
    );
}

#[test]
fn a_host_belongs_to_the_oldest_and_the_others_keep_what_is_theirs() {
    let (policy, made) = without_roots(vec![
        at("young", 3, &["IMAP.a.test", "imap.b.test", "0:0::1"]),
        // Of the same second: by name.
        at("late", 2, &["imap.a.test", "*.c.test"]),
        at("early", 2, &["imap.a.test", "::1"]),
        at("nothing", 4, &["imap.b.test"]),
        // All below a name is not that name.
        at("below", 5, &["c.test", "*.a.test"]),
    ]);
    assert_eq!(
        hosts(&policy),
        [
            ("early", vec!["imap.a.test", "::1"]),
            ("late", vec!["*.c.test"]),
            ("young", vec!["imap.b.test"]),
            ("below", vec!["c.test", "*.a.test"]),
        ]
    );
    let told = told(&made);
    let of = |name: &str| {
        let (_, reason, message) = told.iter().find(|(it, ..)| it == name).unwrap();
        (*reason, message.as_str())
    };
    assert_eq!(
        of("late"),
        (
            "HostTaken",
            "imap.a.test belongs to the older MailProvider early, and its other hosts are in force."
        )
    );
    assert_eq!(
        of("young").1,
        "IMAP.a.test belongs to the older MailProvider early, 0:0::1 belongs to the older MailProvider early, and its other hosts \
         are in force."
    );
    assert_eq!(
        of("nothing"),
        (
            "HostTaken",
            "imap.b.test belongs to the older MailProvider young, and it has no other host."
        )
    );
    assert_eq!(of("below").0, "InForce");
}

#[test]
fn a_sentence_names_few_of_many_hosts() {
    let hosts = ["a.test", "b.test", "c.test", "d.test", "e.test"];
    let (_, made) = without_roots(vec![at("a", 1, &hosts), at("b", 2, &hosts)]);
    let (_, _, message) = &told(&made)[1];
    assert!(
        message.contains("c.test belongs") && message.contains("2 more to others"),
        "{message}"
    );
    assert!(!message.contains("d.test"), "{message}");
}

/// Such objects pass no API server, unless by the definition of another release.
#[test]
fn what_watchers_would_refuse_keeps_no_other_from_being_in_force() {
    let limits = |number: i32| json!({ "hosts": ["a.test"], "limits": { "connections": number } });
    let (policy, made) = without_roots(vec![
        object("large", 1, &limits(10_001)),
        object("below", 2, &limits(-1)),
        at("port", 3, &["a.test:993"]),
        at("none", 4, &[]),
        // The same host twice is the same host.
        at("good", 5, &["a.test", "A.test"]),
    ]);
    // Who is not in force takes no host.
    assert_eq!(hosts(&policy), [("good", vec!["a.test"])]);
    let told = told(&made);
    let reasons: Vec<_> = told.iter().map(|(_, reason, _)| *reason).collect();
    assert_eq!(
        reasons,
        ["Invalid", "Invalid", "Invalid", "Invalid", "InForce"]
    );
    assert!(
        told[0]
            .2
            .contains("limits.connections: 10001 is not between 1 and 10000"),
        "{}",
        told[0].2
    );
    assert!(told[2].2.contains("ports and brackets"), "{}", told[2].2);
}

#[test]
fn root_certificates_come_along_and_where_they_cannot_the_rest_counts() {
    let roots = Certificate::localhost().authority_pem;
    let named = |name: &str, second| {
        let host = format!("{name}.test");
        object(
            name,
            second,
            &json!({ "hosts": [host], "caConfigMap": name, "paused": true }),
        )
    };
    let (policy, made) = made(
        &[],
        vec![
            (named("good", 1), Some(roots.clone())),
            (named("missing", 2), None),
            (named("broken", 3), Some("none".to_owned())),
        ],
    );
    let ca: Vec<_> = policy
        .providers
        .iter()
        .map(|it| (it.paused, it.ca.as_deref()))
        .collect();
    assert_eq!(
        ca,
        [(true, Some(roots.as_str())), (true, None), (true, None)]
    );
    let told = told(&made);
    assert_eq!(told[0].1, "Paused");
    assert_eq!(
        (told[1].1, told[1].2.as_str()),
        (
            "NoCertificates",
            "All but its root certificates is in force: there is no ConfigMap missing with a ca.crt in this namespace."
        )
    );
    assert_eq!(
        (told[2].1, told[2].2.as_str()),
        (
            "NoCertificates",
            "All but its root certificates is in force: ca.crt of the ConfigMap broken: no certificate in it."
        )
    );
}

/// The oldest count first, and one that does not fit makes room for a smaller one.
#[test]
fn what_does_not_fit_is_said_and_the_rest_is_in_force() {
    let roots = Certificate::localhost().authority_pem;
    let comment = "# As large as a ConfigMap can be.\n";
    let large = |bytes: usize| Some(comment.repeat(bytes / comment.len()) + &roots);
    let named = |name: &str, second| {
        let host = format!("{name}.test");
        object(
            name,
            second,
            &json!({ "hosts": [host], "caConfigMap": name }),
        )
    };
    let (policy, made) = made(
        &["acme"],
        vec![
            (named("one", 1), large(600_000)),
            (named("two", 2), large(600_000)),
            (named("three", 3), large(300_000)),
        ],
    );
    let names: Vec<_> = policy.providers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["one", "two", "three"]);
    let ca: Vec<_> = policy.providers.iter().map(|it| it.ca.is_some()).collect();
    assert_eq!(ca, [true, false, true]);
    let (_, reason, message) = &told(&made)[1];
    assert_eq!(
        (*reason, message.as_str()),
        (
            "NoCertificates",
            "All but its root certificates is in force: there is no room for them in the 1024 KiB that watchers are told."
        )
    );
    assert!(policy.paused_tenants.contains("acme"));

    let many: Vec<MailProvider> = (0..=MAX_PROVIDERS)
        .map(|n| at(&format!("p{n:04}"), 1, &[&format!("h{n}.test")]))
        .collect();
    let (policy, made) = without_roots(many);
    assert_eq!(policy.providers.len(), MAX_PROVIDERS);
    let last = made.verdicts.last().unwrap();
    assert_eq!(
        (last.0.name_any().as_str(), last.1.reason),
        ("p1000", "NoRoom")
    );
}

/// Who has that many hosts has none of them, and a smaller one after it has.
#[test]
fn hosts_that_have_no_room_are_said() {
    let label = "a".repeat(240);
    let wide = |name: &str| {
        let hosts: Vec<String> = (0..100).map(|n| format!("{label}.{name}-{n}")).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        at(name, 1, &hosts)
    };
    let many = (0..50).map(|n| wide(&format!("p{n:02}")));
    let (policy, made) = without_roots(many.chain([at("q", 1, &["q.test"])]).collect());
    assert!((30..50).contains(&policy.providers.len()));
    assert_eq!(policy.providers.last().unwrap().name, "q");
    let (_, reason, message) = &told(&made)[49];
    assert_eq!(*reason, "NoRoom");
    assert!(message.contains("1024 KiB at most"), "{message}");
}

/// What is known of a ConfigMap is not asked again, and nothing is known of one that nothing came of.
#[test]
fn many_go_by_one_config_map() {
    let roots = Certificate::localhost().authority_pem;
    let named = |name: &str, config: &str| {
        let hosts = [format!("{name}.test")];
        object(name, 1, &json!({ "hosts": hosts, "caConfigMap": config }))
    };
    let mut maker = Maker::new(&[]).unwrap();
    let double = with_host(&named("none", "unused"), ":");
    maker.add(double, Some(roots.clone())).unwrap();
    assert!(!maker.knows("unused"));
    for (config, read) in [
        ("theirs", Some(roots.clone())),
        ("bad", Some("none".to_owned())),
        ("gone", None),
        ("large", Some("#\n".repeat(MAX_BYTES / 2) + &roots)),
    ] {
        assert!(!maker.knows(config), "{config}");
        maker
            .add(named(&format!("{config}-1"), config), read)
            .unwrap();
        assert!(maker.knows(config), "{config}");
        maker
            .add(named(&format!("{config}-2"), config), None)
            .unwrap();
    }
    let made = maker.finish().unwrap();
    let policy: Policy = serde_json::from_str(&made.text).unwrap();
    let ca = policy.providers.iter().map(|it| it.ca.as_ref());
    let with_roots: Vec<_> = ca.map(|ca| ca == Some(&roots)).collect();
    let rest = [false; 6];
    assert_eq!(with_roots, [&[true; 2][..], &rest].concat());
    let told = told(&made);
    let pairs = told[1..].chunks(2).map(|pair| (&pair[0], &pair[1]));
    for (first, second) in pairs {
        assert_eq!((first.1, &first.2), (second.1, &second.2));
    }
    let said: Vec<_> = [1, 3, 5, 7].map(|n: usize| told[n].2.as_str()).to_vec();
    for (message, part) in
        said.iter()
            .zip(["its host", "no certificate", "no ConfigMap gone", "no room"])
    {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn hosts_of_others_and_missing_certificates_are_both_said() {
    let both = object(
        "late",
        2,
        &json!({ "hosts": ["a.test", "b.test"], "caConfigMap": "theirs" }),
    );
    let (policy, made) = without_roots(vec![at("early", 1, &["a.test"]), both]);
    assert_eq!(hosts(&policy)[1], ("late", vec!["b.test"]));
    let (_, reason, message) = &told(&made)[1];
    assert_eq!(
        (*reason, message.as_str()),
        (
            "NoCertificates",
            "a.test belongs to the older MailProvider early, and its other hosts are in force. Its root certificates are not: there is \
             no ConfigMap theirs with a ca.crt in this namespace."
        )
    );
}

/// Where there is a file already, what it says goes on to hold.
#[test]
fn what_the_server_refuses_takes_nothing_out_of_force() {
    let said = |before| refused("so", before).message;
    assert_eq!(said(true), "Changes are not in force: so.");
    assert_eq!(said(false), "Not in force: so.");
}

/// To the byte.
#[test]
fn the_bound_of_the_file_is_exact() {
    let roots = Certificate::localhost().authority_pem;
    let filled = |bytes: usize| {
        let provider = object(
            "one",
            1,
            &json!({ "hosts": ["one.test"], "caConfigMap": "theirs" }),
        );
        let comment = "x".repeat(bytes);
        made(&[], vec![(provider, Some(format!("{comment}\n{roots}")))])
    };
    // A comma would stand before it if it were not the first.
    let rest = MAX_BYTES - filled(0).1.text.len() - 1;
    let (policy, full) = filled(rest);
    assert_eq!(
        (policy.providers.len(), full.text.len()),
        (1, MAX_BYTES - 1)
    );
    let (policy, over) = filled(rest + 1);
    assert_eq!(policy.providers[0].ca, None);
    assert_eq!(told(&over)[0].1, "NoCertificates");
}

#[test]
fn a_status_keeps_the_time_of_the_last_change() {
    let mut provider = at("a", 1, &["a.test"]);
    let at = |second| Timestamp::from_second(second).unwrap();
    let told = good("InForce", "In force.".to_owned());
    let first = status(&provider, &told, at(1));
    assert_eq!(first.observed_generation, Some(3));
    let condition = ready(Some(&first)).unwrap();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        ("True", "InForce")
    );
    provider.status = Some(first.clone());
    assert_eq!(status(&provider, &told, at(2)), first);
    let gone = no_installation("main");
    let second = status(&provider, &gone, at(3));
    let condition = ready(Some(&second)).unwrap();
    assert_eq!(condition.status, "False");
    assert_eq!(condition.last_transition_time, Time(at(3)));
    assert_eq!(
        condition.message,
        "Not in force: there is no Mailbell main in this namespace."
    );
}

/// It is in force as it was, and all others as they are.
#[test]
fn one_that_cannot_be_read_stays_as_watchers_were_told_of_it() {
    let authority = Certificate::for_names(&["imap.example.org"]).authority_pem;
    let broken = object(
        "broken",
        5,
        &json!({ "hosts": ["a.test", "b.test"], "paused": true, "caConfigMap": "roots",
            "limits": { "loginsPerSecond": 2 } }),
    );
    let others = vec![at("old", 1, &["c.test"]), at("young", 9, &["d.test"])];
    let with_roots = (broken, Some(authority.clone()));
    let all = others.clone().into_iter().map(|it| (it, None));
    let (before, first) = made(&[], all.chain([with_roots]).collect());
    let kept = |file: &str, others: Vec<MailProvider>| {
        let mut maker = Maker::new(&["acme".to_owned()]).unwrap();
        let (older, younger) = others.split_at(1);
        for other in older {
            maker.add(other.clone(), None).unwrap();
        }
        let before = entries(file).remove("broken");
        maker.keep("broken".to_owned(), before).unwrap();
        for other in younger {
            maker.add(other.clone(), None).unwrap();
        }
        let made = maker.finish().unwrap();
        let policy: Policy = serde_json::from_str(&made.text).unwrap();
        policy.check().unwrap();
        (policy, made)
    };
    let (policy, made) = kept(&first.text, others.clone());
    assert_eq!(policy.providers, before.providers);
    assert_eq!(policy.providers[1].ca.as_ref(), Some(&authority));
    assert!(policy.paused_tenants.contains("acme"));
    let names = told(&made)
        .into_iter()
        .map(|(name, reason, _)| (name, reason));
    let names: Vec<_> = names.collect();
    assert_eq!(
        names,
        [
            ("old".to_owned(), "InForce"),
            ("young".to_owned(), "InForce")
        ]
    );
    assert_eq!(
        made.unread().unwrap(),
        "the MailProvider broken cannot be read: what watchers were told of it stays"
    );
    // A host that two name is the older one's, as ever.
    let two = vec![
        at("old", 1, &["c.test", "B.test"]),
        at("young", 9, &["a.test", "d.test"]),
    ];
    let (policy, _) = kept(&first.text, two);
    let one = |name, host| (name, vec![host]);
    assert_eq!(
        hosts(&policy)[1..],
        [one("broken", "a.test"), one("young", "d.test")]
    );
    // Of one that was not in force nothing is.
    let (policy, made) = kept("{}", others.clone());
    assert_eq!(hosts(&policy).len(), 2);
    assert_eq!(
        made.unread().unwrap(),
        "the MailProvider broken cannot be read: if it is for this installation, watchers are told nothing of it"
    );
    // What somebody has made of the file keeps nobody else from being in force.
    let mut file: Value = serde_json::from_str(&first.text).unwrap();
    file["providers"][1]["ca"] = json!("nothing");
    let (policy, _) = kept(&file.to_string(), others.clone());
    assert_eq!(
        (policy.providers[1].ca.as_deref(), policy.providers.len()),
        (None, 3)
    );
    file["providers"][1]["ca"] = Value::Null;
    file["providers"][1]["caFile"] = json!("/etc/passwd");
    let (policy, _) = kept(&file.to_string(), others.clone());
    assert_eq!(policy.providers[1].ca_file, None);
    for bad in [json!({ "hosts": ["no host"] }), json!({ "newer": 1 })] {
        let mut file: Value = serde_json::from_str(&first.text).unwrap();
        let entry = file["providers"][1].as_object_mut().unwrap();
        entry.extend(bad.as_object().unwrap().clone());
        let (policy, _) = kept(&file.to_string(), others.clone());
        assert_eq!(hosts(&policy).len(), 2, "{bad}");
    }
    assert!(entries("no file").is_empty());
    // The file is full of what an older one has meanwhile: its root certificates go, and its limits and its pause stay.
    let large = authority.repeat(MAX_BYTES * 2 / 3 / authority.len());
    let older = object(
        "old",
        1,
        &json!({ "hosts": ["c.test"], "caConfigMap": "large" }),
    );
    let mut maker = Maker::new(&[]).unwrap();
    maker.add(older, Some(large.clone())).unwrap();
    let mut entry = before.providers[1].clone();
    entry.ca = Some(large);
    maker
        .keep("broken".to_owned(), Some(entry.clone()))
        .unwrap();
    let made = maker.finish().unwrap();
    let policy: Policy = serde_json::from_str(&made.text).unwrap();
    policy.check().unwrap();
    entry.ca = None;
    assert!(policy.providers[0].ca.is_some());
    assert_eq!(policy.providers[1], entry);
    assert_eq!(made.unreadable, [("broken".to_owned(), true)]);
}

#[test]
fn the_first_of_many_that_cannot_be_read_are_named() {
    let unread = |count: usize| {
        let mut maker = Maker::new(&[]).unwrap();
        for n in 0..count {
            maker.keep(format!("p{n}"), None).unwrap();
        }
        maker.finish().unwrap().unread()
    };
    assert_eq!(unread(0), None);
    let said = unread(5).unwrap();
    assert_eq!(said.matches("cannot be read").count(), 3);
    assert!(said.ends_with("; and 2 more"), "{said}");
}
