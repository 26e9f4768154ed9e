use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;

const HOST: &str = "main-nats-0.main-nats.mail.svc";

type Data = BTreeMap<String, ByteString>;

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 4, 1);
    params
}

fn secret(parts: &[(&str, &str)]) -> Data {
    let parts = parts.iter();
    parts
        .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
        .collect()
}

fn made(names: &[&str]) -> Data {
    let key = KeyPair::generate().unwrap();
    let pem = params(names).self_signed(&key).unwrap().pem();
    secret(&[("tls.crt", &pem), ("tls.key", &key.serialize_pem())])
}

/// Of an authority whose own certificate ends then.
fn issued(names: &[&str], ends: (i32, u8, u8)) -> Data {
    issued_for(names, ends, &[])
}

fn issued_for(names: &[&str], ends: (i32, u8, u8), usages: &[ExtendedKeyUsagePurpose]) -> Data {
    let mut authority = params(&[]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.not_after = rcgen::date_time_ymd(ends.0, ends.1, ends.2);
    let key = KeyPair::generate().unwrap();
    let root = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate().unwrap();
    let mut params = params(names);
    params.extended_key_usages = usages.to_vec();
    let pem = params.signed_by(&key, &issuer).unwrap().pem();
    secret(&[
        ("tls.crt", &pem),
        ("tls.key", &key.serialize_pem()),
        ("ca.crt", &root),
    ])
}

fn named(data: &Data, annotations: &[(&str, &str)]) -> Secret {
    let annotations = annotations.iter();
    let annotations = annotations.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let mut secret = Secret {
        data: Some(data.clone()),
        ..Secret::default()
    };
    secret.metadata.name = Some("tls".to_owned());
    secret.metadata.namespace = Some("mail".to_owned());
    secret.metadata.annotations = Some(annotations.collect());
    secret
}

fn at(data: &Data, uses: &[Use], day: i64) -> (Verdict, String, String) {
    let begin = params(&[]).not_before.unix_timestamp();
    let mut report = Report::default();
    judge(
        &mut report,
        &named(data, &[]),
        uses,
        "delete it",
        begin + day * DAY_S,
    );
    let [finding] = <[_; 1]>::try_from(report.findings).unwrap();
    (finding.verdict, finding.said, finding.advice)
}

fn said(data: &Data, uses: &[Use], verdict: Verdict, words: &str) {
    let (found, said, advice) = at(data, uses, 1);
    assert_eq!(found, verdict, "{said}");
    assert!(said.contains(words), "{words}: {said}");
    assert_eq!(advice.is_empty(), verdict == Verdict::Ok, "{said}");
}

#[test]
fn a_certificate_is_good_for_some_days_and_then_no_longer() {
    let data = made(&["push.example.org"]);
    for (day, verdict, words) in [
        (-1, Verdict::Fail, "not good yet"),
        (0, Verdict::Ok, "good for 90 days, for push.example.org"),
        (76, Verdict::Ok, "good for 14 days"),
        (77, Verdict::Warn, "good for 13 days"),
        (89, Verdict::Warn, "good for 1 days"),
        (90, Verdict::Fail, "has expired"),
    ] {
        let (found, said, _) = at(&data, &[Use::Outside], day);
        assert_eq!(found, verdict, "{day}: {said}");
        assert!(said.contains(words), "{day}: {said}");
    }
}

#[test]
fn the_key_is_that_of_the_certificate_and_the_names_are_there() {
    let mut data = made(&["a.test", "b.test", "c.test", "d.test", "e.test", "f.test"]);
    let outside = [Use::Outside];
    said(
        &data,
        &outside,
        Verdict::Ok,
        "for a.test, b.test, c.test, d.test, e.test and 1 more",
    );
    data.insert("tls.key".to_owned(), made(&["a.test"])["tls.key"].clone());
    said(
        &data,
        &outside,
        Verdict::Fail,
        "that of another certificate",
    );
    data.remove("tls.key");
    said(&data, &outside, Verdict::Fail, "no key that can be read");
    said(&made(&[]), &outside, Verdict::Fail, "good for no name");
    let nothing = secret(&[("tls.crt", "nothing")]);
    said(
        &nothing,
        &outside,
        Verdict::Fail,
        "no certificate that can be read",
    );
}

fn operator(roots: Option<&str>) -> Use {
    Use::Operator {
        host: "main-admin.mail.svc".to_owned(),
        roots: roots.map(str::to_owned),
    }
}

#[test]
fn the_operator_calls_whom_the_roots_trust_that_it_is_given() {
    let names = ["main-admin.mail.svc"];
    let [theirs, another] = [(), ()].map(|()| issued(&names, (2027, 1, 1)));
    let roots = |data: &Data| String::from_utf8(data["ca.crt"].0.clone()).unwrap();
    let both = roots(&another) + &roots(&theirs);
    for good in [None, Some(roots(&theirs)), Some(both.clone())] {
        let uses = [operator(good.as_deref())];
        said(&theirs, &uses, Verdict::Ok, "good for 89 days");
    }
    // The whole file is refused for it.
    let broken = both + "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    for (bad, words) in [
        (roots(&another), "not trusted by admin.caConfigMap"),
        (String::new(), "not trusted by admin.caConfigMap"),
        (broken, "a part that cannot be read"),
    ] {
        said(&theirs, &[operator(Some(&bad))], Verdict::Warn, words);
    }
}

#[test]
fn who_renews_a_certificate_is_named_as_its_secret_has_it() {
    let data = made(&["push.example.org"]);
    let advice = |annotations| {
        let mut report = Report::default();
        let secret = named(&data, annotations);
        judge(
            &mut report,
            &secret,
            &[Use::Outside],
            "",
            i64::from(i32::MAX),
        );
        report.findings.remove(0).advice
    };
    let by_hand = "kubectl create secret generic tls --from-file=tls.crt=FILE --from-file=tls.key=FILE --dry-run=client -o yaml | kubectl --namespace mail patch secret tls --patch-file /dev/stdin";
    assert_eq!(advice(&[]), format!("renew it: {by_hand}"));
    let by_itself = advice(&[(RENEWED_BY, "push")]);
    assert!(
        by_itself.contains("kubectl --namespace mail describe certificate push"),
        "{by_itself}"
    );
}

#[test]
fn the_operator_needs_a_name_of_its_own() {
    let uses = [Use::Outside, operator(None)];
    let words = "not good for main-admin.mail.svc";
    said(&made(&["push.example.org"]), &uses, Verdict::Warn, words);
    let both = made(&["push.example.org", "main-admin.mail.svc"]);
    said(&both, &uses, Verdict::Ok, "good for 89 days");
}

#[test]
fn nats_servers_are_known_by_name_and_by_their_authority() {
    let uses = [Use::Nats(vec![HOST.to_owned()])];
    let names = ["*.main-nats.mail.svc"];
    let good = issued(&names, (2027, 1, 1));
    said(
        &good,
        &uses,
        Verdict::Ok,
        "good for 89 days, for *.main-nats.mail.svc",
    );
    let soon = issued(&names, (2026, 1, 12));
    said(&soon, &uses, Verdict::Warn, "good for 10 days");
    let other = issued(&["*.other-nats.mail.svc"], (2027, 1, 1));
    said(&other, &uses, Verdict::Fail, HOST);
    let mut strange = good.clone();
    strange.insert("ca.crt".to_owned(), other["ca.crt"].clone());
    said(
        &strange,
        &uses,
        Verdict::Fail,
        "not trusted by its own ca.crt",
    );
    strange.remove("ca.crt");
    said(&strange, &uses, Verdict::Fail, "ca.crt has no certificate");
    let ended = issued(&names, (2026, 1, 1));
    said(
        &ended,
        &uses,
        Verdict::Fail,
        "authority in ca.crt has expired",
    );
    for empty in [Data::new(), secret(&[("tls.crt", "")])] {
        said(&empty, &uses, Verdict::Fail, "is empty: the job");
    }
}

#[test]
fn nats_servers_show_it_to_each_other_as_clients() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let hosts = [HOST.to_owned(), "main-nats-1.main-nats.mail.svc".to_owned()];
    let of = |usages| issued_for(&["*.main-nats.mail.svc"], (2027, 1, 1), usages);
    let [one, two] = [&hosts[..1], &hosts].map(|hosts| [Use::Nats(hosts.to_vec())]);
    let half = of(&[ServerAuth]);
    said(&half, &two, Verdict::Fail, "is none for a client");
    said(&half, &one, Verdict::Ok, "good for 89 days");
    let both = of(&[ServerAuth, ClientAuth]);
    said(&both, &two, Verdict::Ok, "good for 89 days");
}

#[test]
fn an_authority_that_has_nothing_to_do_with_it_prolongs_nothing() {
    let uses = [Use::Nats(vec![HOST.to_owned()])];
    let names = ["*.main-nats.mail.svc"];
    let mut soon = issued(&names, (2026, 1, 12));
    let other = issued(&names, (2027, 1, 1));
    let both = [&soon, &other]
        .map(|data| data["ca.crt"].0.clone())
        .concat();
    soon.insert("ca.crt".to_owned(), ByteString(both));
    said(&soon, &uses, Verdict::Warn, "good for 10 days");
}
