//! TLS by rustls with ring: certificates that are replaced without a restart, and the roots of a client.

mod reload;
mod shown;

use std::{path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::NoServerSessionStorage,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

pub use self::{reload::ReloadingCert, shown::shown};
use crate::Error;

/// A bundle of all public roots has some 250 KB.
const MAX_PEM_BYTES: u64 = 4 * 1024 * 1024;

/// The protocol name of HTTP/2, which gRPC needs.
pub const ALPN_H2: &[u8] = b"h2";

/// Makes ring the provider of everything in this process that does not choose one itself. To be called first; calling it again is harmless.
pub fn install_crypto_provider() {
    // The only error is that one is installed already: ours, as the workspace has no other.
    let _ = ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default()
        .cloned()
        .unwrap_or_else(|| Arc::new(ring::default_provider()))
}

/// A server's configuration, with the certificate in force at each handshake.
///
/// Resumption is by one stateless ticket: a device that reconnects skips the signature, and nothing is kept for one that does not.
///
/// # Errors
/// [`Error::Tls`].
pub fn server_config(cert: Arc<ReloadingCert>, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(cert);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ring::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// Whom a client trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roots<'a> {
    /// The roots of the system.
    System,
    /// Only those of this PEM file.
    File(&'a Path),
    /// The system's and those of this PEM file.
    SystemAnd(&'a Path),
    /// Those of this PEM file, and these.
    FileAnd(&'a Path, &'a [CertificateDer<'static>]),
}

/// Loads roots.
///
/// # Errors
/// [`Error::NoRoots`] when the system has none, [`Error::Read`] or [`Error::Certificate`] for the file.
pub fn roots(from: Roots<'_>) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    if let Roots::System | Roots::SystemAnd(_) = from {
        // One broken file among the system's hundreds is no reason to trust nobody; none at all is.
        let (added, _ignored) =
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if added == 0 {
            return Err(Error::NoRoots);
        }
    }
    if let Roots::File(path) | Roots::SystemAnd(path) | Roots::FileAnd(path, _) = from {
        add_all(&mut store, path, &read_bounded(path)?)?;
    }
    if let Roots::FileAnd(_, others) = from {
        store.add_parsable_certificates(others.iter().cloned());
    }
    Ok(store)
}

/// Whether a client can trust each root certificate of this PEM text, and there is one; `name`: what an error calls it.
///
/// # Errors
/// [`Error::Certificate`].
pub fn check_roots(name: &str, pem: &[u8]) -> Result<(), Error> {
    add_all(&mut RootCertStore::empty(), Path::new(name), pem)
}

fn add_all(store: &mut RootCertStore, path: &Path, pem: &[u8]) -> Result<(), Error> {
    for cert in parse_certificates(path, pem)? {
        store.add(cert).map_err(|error| Error::Certificate {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}

/// A client's configuration that trusts `from`.
///
/// # Errors
/// As [`roots`], and [`Error::Tls`].
pub fn client_config(from: Roots<'_>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(from)?)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// All certificates of this file, at least one.
///
/// # Errors
/// [`Error::Read`], [`Error::TooLarge`], [`Error::Certificate`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    parse_certificates(path, &read_bounded(path)?)
}

/// All certificates of a PEM text, at least one.
fn parse_certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |reason: String| Error::Certificate {
        path: path.to_owned(),
        reason,
    };
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(format!("not understood as PEM: {error}")))?;
    if certs.is_empty() {
        return Err(bad("no certificate in it".to_owned()));
    }
    Ok(certs)
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, Error> {
    crate::reload::read_bounded(path, MAX_PEM_BYTES)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ExitCode;

    #[test]
    fn roots_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        let one = rcgen::generate_simple_self_signed(["a.test".to_owned()])
            .unwrap()
            .cert
            .pem();
        let two = rcgen::generate_simple_self_signed(["b.test".to_owned()])
            .unwrap()
            .cert
            .pem();
        fs::write(&path, format!("# ours\n{one}\n{two}")).unwrap();
        assert_eq!(roots(Roots::File(&path)).unwrap().len(), 2);
        let others = certificates(&path).unwrap();
        fs::write(&path, &one).unwrap();
        let all = roots(Roots::FileAnd(&path, &others[1..])).unwrap();
        assert_eq!(all.len(), 2);
        assert!(client_config(Roots::File(&path), &[ALPN_H2]).is_ok());
        assert!(check_roots("theirs", one.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_no_bundle_of_roots_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("roots.pem");
        assert_eq!(
            roots(Roots::File(&path)).unwrap_err().exit_code(),
            ExitCode::NoInput
        );
        for content in [
            "",
            "hello",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "-----BEGIN CERTIFICATE-----\n!\n",
        ] {
            fs::write(&path, content).unwrap();
            let error = roots(Roots::File(&path)).unwrap_err();
            assert!(
                matches!(error, Error::Certificate { .. }),
                "{content:?}: {error}"
            );
            let error = check_roots("theirs", content.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("theirs: "), "{error}");
        }
        fs::File::create(&path)
            .unwrap()
            .set_len(MAX_PEM_BYTES + 1)
            .unwrap();
        assert!(matches!(
            roots(Roots::File(&path)),
            Err(Error::TooLarge { .. })
        ));
    }
}
