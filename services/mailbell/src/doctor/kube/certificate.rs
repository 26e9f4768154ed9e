//! Whether what is in the Secret of a certificate is good for whom it is shown to.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use rustls::{
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use super::some;
use crate::{
    certificate::{
        names,
        trust::{Fault, as_server, by_nats, is_for},
        validity,
    },
    doctor::{Report, Verdict},
};

/// cert-manager renews a certificate of 90 days 30 days before.
const SOON_S: i64 = 14 * DAY_S;
const DAY_S: i64 = 24 * 60 * 60;
/// As cert-manager notes in a Secret of which certificate of its it is.
const RENEWED_BY: &str = "cert-manager.io/certificate-name";

/// To whom it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// To devices, and callers of the admin API from outside, who know the installation by names of their own.
    Outside,
    /// To the operator.
    Operator {
        /// The name by which it calls the admin API.
        host: String,
        /// What is in `ca.crt` of the ConfigMap that says whom it trusts, in PEM. `None`: it trusts the usual ones, or that is not known.
        roots: Option<String>,
    },
    /// To roles and other NATS servers, who know the servers by these names and trust its `ca.crt`.
    Nats(Vec<String>),
}

/// Under which name something is told of the certificate in this Secret.
pub(super) fn finding(secret: &str) -> String {
    format!("certificate {secret}")
}

/// Says what is wrong first, if something is; until when the certificate is good, in seconds since 1970, if nothing is. `refill`: how the job
/// is run anew that fills it.
pub(super) fn judge(
    report: &mut Report,
    secret: &Secret,
    uses: &[Use],
    refill: &str,
    now_s: i64,
) -> Option<i64> {
    let finding = &finding(&secret.name_any());
    let data = secret.data.clone().unwrap_or_default();
    let mut fail = |said: &str, advice: &str| {
        report.fail(finding, said, advice);
        None
    };
    let is_nats = uses.iter().any(|it| matches!(it, Use::Nats(_)));
    let text = |key: &str| data.get(key).map_or(&[][..], |value| value.0.as_slice());
    if is_nats && data.values().all(|value| value.0.is_empty()) {
        return fail(
            "is empty: the job that fills it has not done so",
            &format!(
                "what is told of the installation and its pods says why; where it was done before, have it run anew: {refill}. One of your own, or with generateSecrets: false, is filled by you: docs/operating.md, Secrets of your own"
            ),
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
    let renew = renewal(secret, is_nats);
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
        return fail(lost, &renew);
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
    let good = until;
    let mut until = until;
    for it in uses {
        let trusted = it.check(&parsed, &chain, text("ca.crt"), now_s, &provider);
        if let Err((said, advice)) = trusted {
            // People reach it all the same.
            let is_mild = matches!(it, Use::Operator { .. });
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
    Some(good)
}

/// What to do about its end.
fn renewal(secret: &Secret, is_nats: bool) -> String {
    if is_nats {
        return "renew it: docs/operating.md, The certificate of the NATS servers".to_owned();
    }
    let name = secret.name_any();
    let kubectl = format!(
        "kubectl --namespace {}",
        secret.namespace().unwrap_or_default()
    );
    match secret.annotations().get(RENEWED_BY) {
        Some(certificate) => format!(
            "cert-manager renews it by itself: {kubectl} describe certificate {certificate} says why it has not"
        ),
        None => format!(
            "renew it: kubectl create secret generic {name} --from-file=tls.crt=FILE --from-file=tls.key=FILE --dry-run=client -o yaml | {kubectl} patch secret {name} --patch-file /dev/stdin"
        ),
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
            Self::Operator { host, .. } if !is_for(parsed, host) => Err((
                format!("is not good for {host}, by which the operator calls the admin API"),
                "add that name, or no MailAccount is registered, and the number of watchers follows no load",
            )),
            Self::Operator { roots: None, .. } => Ok(i64::MAX),
            Self::Operator {
                host,
                roots: Some(roots),
            } => is_called(chain, roots, host, now_s, provider).map(|()| i64::MAX),
            Self::Nats(hosts) => {
                let roots: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(authority)
                    .flatten()
                    .collect();
                by_nats(chain, &roots, hosts, now_s, provider)
            }
        }
    }
}

/// As the operator does when it calls the admin API, which takes no file with a part that cannot be read.
fn is_called(
    chain: &[CertificateDer<'static>],
    roots: &str,
    host: &str,
    now_s: i64,
    provider: &Arc<CryptoProvider>,
) -> Result<(), Fault> {
    let lost = |why: &str| {
        (
            format!(
                "is not trusted by admin.caConfigMap: the operator does not call the admin API ({why})"
            ),
            "put into ca.crt of that ConfigMap the certificate of who has made tls.crt",
        )
    };
    let roots = CertificateDer::pem_slice_iter(roots.as_bytes()).collect::<Result<Vec<_>, _>>();
    let roots = roots.map_err(|_| lost("its ca.crt has a part that cannot be read"))?;
    let trusted = as_server(chain, &roots, host, now_s, provider);
    trusted
        .map(|_| ())
        .map_err(|error| lost(&error.to_string()))
}

#[cfg(test)]
mod tests;
