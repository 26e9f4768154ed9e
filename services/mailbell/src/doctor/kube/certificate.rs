//! Whether what is in the Secret of a certificate is good for whom it is shown to.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::ByteString;
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _, verify_server_name},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{ParsedCertificate, WebPkiClientVerifier},
    sign::CertifiedKey,
};

use crate::{
    certificate::{names, validity},
    doctor::{Report, Verdict},
};

/// cert-manager renews a certificate of 90 days 30 days before.
const SOON_S: i64 = 14 * DAY_S;
const DAY_S: i64 = 24 * 60 * 60;
/// So many names are told.
const NAMED: usize = 5;

/// To whom it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// To devices, and callers of the admin API from outside, who know the installation by names of their own.
    Outside,
    /// To the operator, which calls the admin API by this name.
    Operator(String),
    /// To roles and other NATS servers, who know the servers by these names and trust its `ca.crt`.
    Nats(Vec<String>),
}

/// Says what is wrong first, if something is. When nothing is, from when on it is good, in seconds since 1970.
pub(super) fn judge(
    report: &mut Report,
    finding: &str,
    data: &BTreeMap<String, ByteString>,
    uses: &[Use],
    now_s: i64,
) -> Option<i64> {
    let mut fail = |said: &str, advice: &str| {
        report.fail(finding, said, advice);
        None
    };
    let is_nats = uses.iter().any(|it| matches!(it, Use::Nats(_)));
    let text = |key: &str| data.get(key).map_or(&[][..], |value| value.0.as_slice());
    if is_nats && data.values().all(|value| value.0.is_empty()) {
        return fail(
            "is empty: the job that fills it has not done so",
            "what is told of the installation and its pods says why; one of your own, or with generateSecrets: false, is filled by you: docs/operating.md, Secrets of your own",
        );
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(text("tls.crt"))
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    let shown = chain.first().and_then(|shown| {
        let (from, until) = validity(shown)?;
        Some((ParsedCertificate::try_from(shown).ok()?, from, until))
    });
    let (Some((parsed, from, until)), Some(der)) = (shown, chain.first()) else {
        return fail(
            "its tls.crt has no certificate that can be read",
            "put the certificate in PEM there, the server's own first",
        );
    };
    let renew = if is_nats {
        "renew it, and start the servers anew: docs/operating.md, The certificate of the NATS servers"
    } else {
        "renew it; cert-manager does so by itself: kubectl describe certificate says why it has not"
    };
    if now_s < from {
        return fail(
            "is not good yet",
            "see whether the clocks of this machine and of who made it are right",
        );
    }
    if now_s >= until {
        let lost = if is_nats {
            "has expired: nobody reaches NATS who connects anew"
        } else {
            "has expired: nobody connects who checks it"
        };
        return fail(lost, renew);
    }
    let provider = Arc::new(ring::default_provider());
    if let Err(said) = key_of(&chain, text("tls.key"), &provider) {
        return fail(
            said,
            "put the private key of this certificate there, in PEM; what runs goes on with the pair before, and what starts does not",
        );
    }
    let named = names(der);
    if named.is_empty() {
        return fail(
            "is good for no name: it has no subject alternative name",
            "have one made with the names by which it is reached",
        );
    }
    let mut until = until;
    for it in uses {
        let trusted = it.check(&parsed, &chain, text("ca.crt"), now_s, &provider);
        if let Err((said, advice)) = trusted {
            // People reach it all the same.
            let is_mild = matches!(it, Use::Operator(_));
            let verdict = if is_mild {
                Verdict::Warn
            } else {
                Verdict::Fail
            };
            report.add(finding, verdict, said, advice.to_owned());
            return None;
        }
        until = until.min(trusted.unwrap_or(until));
    }
    let left = until.saturating_sub(now_s);
    let said = format!("good for {} days, for {}", left / DAY_S, some(&named));
    if left <= 0 {
        // Roles trust it all the same, and the servers, written in Go, do not.
        report.fail(
            finding,
            "its authority in ca.crt has expired: no server that starts meets the others",
            renew,
        );
        return None;
    }
    if left < SOON_S {
        report.warn(finding, said, renew);
    } else {
        report.ok(finding, said);
    }
    Some(from)
}

fn some(names: &[String]) -> String {
    let told: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    match names.len().saturating_sub(NAMED) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

fn key_of(
    chain: &[CertificateDer<'static>],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<(), &'static str> {
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| "its tls.key has no key that can be read")?;
    match CertifiedKey::from_der(chain.to_vec(), key, provider) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err("its tls.key is that of another certificate")
        }
        Err(_) => Err("its tls.key is of no kind that can be used"),
    }
}

type Fault = (String, &'static str);

impl Use {
    /// Until when whom it is shown to trusts it, in seconds since 1970, where that does not depend on the certificate alone.
    fn check(
        &self,
        parsed: &ParsedCertificate<'_>,
        chain: &[CertificateDer<'static>],
        authority: &[u8],
        now_s: i64,
        provider: &Arc<CryptoProvider>,
    ) -> Result<i64, Fault> {
        match self {
            Self::Outside => Ok(i64::MAX),
            Self::Operator(host) if is_for(parsed, host) => Ok(i64::MAX),
            Self::Operator(host) => Err((
                format!("is not good for {host}, by which the operator calls the admin API"),
                "add that name, or no MailAccount is registered, and the number of watchers follows no load",
            )),
            Self::Nats(hosts) => {
                if let Some(host) = hosts.iter().find(|host| !is_for(parsed, host)) {
                    return Err((
                        format!("is not good for {host}: no role connects to that server"),
                        "have one made with that name; *.<name>-nats.<namespace>.svc covers all servers",
                    ));
                }
                trust(chain, authority, hosts, now_s, provider)
            }
        }
    }
}

fn is_for(parsed: &ParsedCertificate<'_>, host: &str) -> bool {
    ServerName::try_from(host).is_ok_and(|name| verify_server_name(parsed, &name).is_ok())
}

/// As a role does when it connects, and a server to another one. Until when the last of those in `authority` is good by whom it is trusted,
/// in seconds since 1970.
fn trust(
    chain: &[CertificateDer<'static>],
    authority: &[u8],
    hosts: &[String],
    now_s: i64,
    provider: &Arc<CryptoProvider>,
) -> Result<i64, Fault> {
    let trusted = "put into its ca.crt the certificate of who has made tls.crt";
    let roots: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(authority)
        .flatten()
        // One that cannot be used is as good as none.
        .filter(|root| RootCertStore::empty().add(root.clone()).is_ok())
        .collect();
    if roots.is_empty() {
        let said = "its ca.crt has no certificate that can be read: no role connects";
        return Err((said.to_owned(), trusted));
    }
    let now = Duration::from_secs(now_s.try_into().unwrap_or_default());
    let now = UnixTime::since_unix_epoch(now);
    let host = hosts
        .first()
        .and_then(|host| ServerName::try_from(host.as_str()).ok());
    let (Some((shown, between)), Some(host)) = (chain.split_first(), host) else {
        return Ok(i64::MAX);
    };
    // Each alone: of those that are left from before nothing depends any more.
    let by = |verify: &dyn Fn(Arc<RootCertStore>) -> Result<(), rustls::Error>| {
        let mut last = rustls::Error::General("nobody is trusted".to_owned());
        let mut until = None;
        for root in &roots {
            let mut store = RootCertStore::empty();
            match store
                .add(root.clone())
                .and_then(|()| verify(Arc::new(store)))
            {
                Ok(()) => until = until.max(validity(root).map(|(_, until)| until)),
                Err(error) => last = error,
            }
        }
        until.ok_or(last)
    };
    let other =
        |error: rustls::client::VerifierBuilderError| rustls::Error::General(error.to_string());
    let as_server = |store| {
        let verifier = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider));
        let verifier = verifier.build().map_err(other)?;
        let verified = verifier.verify_server_cert(shown, between, &host, &[], now);
        verified.map(|_| ())
    };
    let as_client = |store| {
        let verifier = WebPkiClientVerifier::builder_with_provider(store, Arc::clone(provider));
        let verifier = verifier.build().map_err(other)?;
        verifier.verify_client_cert(shown, between, now).map(|_| ())
    };
    let until = by(&as_server).map_err(|error| {
        let said = format!("is not trusted by its own ca.crt: no role connects ({error})");
        (said, trusted)
    })?;
    if hosts.len() > 1
        && let Err(error) = by(&as_client)
    {
        return Err((
            format!(
                "is none for a client, as which a server shows it to the others: they do not meet ({error})"
            ),
            "have it made for both, server and client: docs/operating.md, The certificate of the NATS servers",
        ));
    }
    Ok(until)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

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

    fn at(data: &Data, uses: &[Use], day: i64) -> (Verdict, String, String) {
        let begin = params(&[]).not_before.unix_timestamp();
        let mut report = Report::default();
        judge(&mut report, "x", data, uses, begin + day * DAY_S);
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

    #[test]
    fn the_operator_needs_a_name_of_its_own() {
        let uses = [
            Use::Outside,
            Use::Operator("main-admin.mail.svc".to_owned()),
        ];
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
}
