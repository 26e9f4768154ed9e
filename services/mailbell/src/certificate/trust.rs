//! Whether whom a certificate is shown to trusts it.

use std::{sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _, verify_server_name},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier},
};

use super::validity;

/// What is wrong, as the rest of a sentence about the certificate, and what to do.
pub type Fault = (String, &'static str);

/// Whether it has this name.
pub fn is_for(parsed: &ParsedCertificate<'_>, host: &str) -> bool {
    ServerName::try_from(host).is_ok_and(|name| verify_server_name(parsed, &name).is_ok())
}

/// As a role does when it connects to one of the NATS servers `hosts`, and a server to another one. Until when the last of `roots`, those in
/// their `ca.crt`, is good by whom it is trusted, in seconds since 1970.
///
/// # Errors
/// What keeps them from doing so.
pub fn by_nats(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'_>],
    hosts: &[String],
    now_s: i64,
    provider: &Arc<CryptoProvider>,
) -> Result<i64, Fault> {
    let trusted = "put into its ca.crt the certificate of who has made tls.crt";
    // One that cannot be used is as good as none.
    let can_be_used =
        |root: &&CertificateDer<'_>| RootCertStore::empty().add((*root).clone()).is_ok();
    let roots: Vec<CertificateDer<'_>> = roots.iter().filter(can_be_used).cloned().collect();
    if let Some(shown) = chain.first()
        && let Ok(parsed) = ParsedCertificate::try_from(shown)
        && let Some(host) = hosts.iter().find(|host| !is_for(&parsed, host))
    {
        return Err((
            format!("is not good for {host}: no role connects to that server"),
            "have one made with that name; *.<name>-nats.<namespace>.svc covers all servers",
        ));
    }
    if roots.is_empty() {
        let said = "its ca.crt has no certificate that can be read: no role connects";
        return Err((said.to_owned(), trusted));
    }
    let (Some((shown, between)), Some(host)) = (chain.split_first(), hosts.first()) else {
        return Ok(i64::MAX);
    };
    let until = as_server(chain, &roots, host, now_s, provider).map_err(|error| {
        let said = format!("is not trusted by its own ca.crt: no role connects ({error})");
        (said, trusted)
    })?;
    let as_client = |store| {
        let verifier = WebPkiClientVerifier::builder_with_provider(store, Arc::clone(provider));
        let verifier = verifier.build().map_err(other)?;
        let verified = verifier.verify_client_cert(shown, between, unix_time(now_s));
        verified.map(|_| ())
    };
    if hosts.len() > 1
        && let Err(error) = by(&roots, &as_client)
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

fn other(error: rustls::client::VerifierBuilderError) -> rustls::Error {
    rustls::Error::General(error.to_string())
}

fn unix_time(now_s: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now_s.try_into().unwrap_or_default()))
}

/// By one of these roots, each alone: of those that are left from before nothing depends any more. Until when the last one that does is good,
/// in seconds since 1970.
fn by(
    roots: &[CertificateDer<'_>],
    verify: &dyn Fn(Arc<RootCertStore>) -> Result<(), rustls::Error>,
) -> Result<i64, rustls::Error> {
    let mut last = rustls::Error::General("nobody is trusted".to_owned());
    let mut until = None;
    for root in roots {
        let mut store = RootCertStore::empty();
        let added = store.add(root.clone());
        match added.and_then(|()| verify(Arc::new(store))) {
            Ok(()) => until = until.max(validity(root).map(|(_, until)| until)),
            Err(error) => last = error,
        }
    }
    until.ok_or(last)
}

/// As a client of the server `host` does. Until when the last of `roots` is good by whom it is trusted, in seconds since 1970.
///
/// # Errors
/// Why none does.
pub fn as_server(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'_>],
    host: &str,
    now_s: i64,
    provider: &Arc<CryptoProvider>,
) -> Result<i64, rustls::Error> {
    let no_name = |_| rustls::Error::General(format!("{host} is no name"));
    let host = ServerName::try_from(host).map_err(no_name)?;
    let Some((shown, between)) = chain.split_first() else {
        return Err(rustls::Error::NoCertificatesPresented);
    };
    by(roots, &|store| {
        let verifier = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider));
        let verifier = verifier.build().map_err(other)?;
        let verified = verifier.verify_server_cert(shown, between, &host, &[], unix_time(now_s));
        verified.map(|_| ())
    })
}
