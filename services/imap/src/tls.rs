//! TLS by rustls with ring: whom to trust, and why a handshake failed.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

use crate::error::{Error, TlsFault};
use crate::transport::Stream;

/// Whom to trust; made once a process, cheap to clone. Sessions are resumed where a server allows it.
#[derive(Clone)]
pub struct TlsSettings {
    config: Arc<ClientConfig>,
    roots: Arc<RootCertStore>,
}

/// Trust that can't be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSettingsError {
    /// A text with extra authorities isn't PEM or has no certificate that can be an authority.
    #[error("no usable certificate in the PEM text of extra authorities")]
    Authority,
    /// There is nobody to trust: the system has no root certificates and none were given.
    #[error("no root certificates: install the system's (package ca-certificates) or name a file")]
    NoRoots,
    /// rustls refuses its own defaults.
    #[error("TLS can't be configured")]
    Provider,
}

impl TlsSettings {
    /// Trusts the system's authorities, and those in the given PEM texts.
    ///
    /// # Errors
    /// When a text has no certificate, or there is nobody to trust at all.
    pub fn system<'a>(extra: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, TlsSettingsError> {
        let mut roots = RootCertStore::empty();
        // Single certificates that can't be read are of no interest as long as there are others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Self::with_roots(roots, extra)
    }

    /// Trusts only the authorities in the given PEM texts.
    ///
    /// # Errors
    /// When a text has no certificate, or there is nobody to trust at all.
    pub fn only<'a>(
        authorities: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, TlsSettingsError> {
        Self::with_roots(RootCertStore::empty(), authorities)
    }

    /// Trusts the same authorities, and those in the given PEM text.
    ///
    /// # Errors
    /// When the text has no certificate.
    pub fn with(&self, extra: &[u8]) -> Result<Self, TlsSettingsError> {
        Self::with_roots(RootCertStore::clone(&self.roots), [extra])
    }

    fn with_roots<'a>(
        mut roots: RootCertStore,
        extra: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, TlsSettingsError> {
        for pem in extra {
            let before = roots.len();
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|_| TlsSettingsError::Authority)?;
                roots
                    .add(certificate)
                    .map_err(|_| TlsSettingsError::Authority)?;
            }
            if roots.len() == before {
                return Err(TlsSettingsError::Authority);
            }
        }
        if roots.is_empty() {
            return Err(TlsSettingsError::NoRoots);
        }
        let roots = Arc::new(roots);
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| TlsSettingsError::Provider)?
            .with_root_certificates(Arc::clone(&roots))
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
            roots,
        })
    }

    /// Does the handshake. The caller bounds its time.
    pub(crate) async fn connect(&self, host: &str, stream: Stream) -> Result<Stream, Error> {
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_| Error::InvalidInput("host name"))?;
        match TlsConnector::from(Arc::clone(&self.config))
            .connect(name, stream)
            .await
        {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(Error::Tls(fault(&error))),
        }
    }
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings").finish_non_exhaustive()
    }
}

/// What a person should hear about a failed handshake.
fn fault(error: &io::Error) -> TlsFault {
    let Some(error) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return TlsFault::Handshake;
    };
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            // An authority made anew has the name of the old one, and another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                TlsFault::UnknownIssuer
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => TlsFault::Expired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFault::WrongName
            }
            _ => TlsFault::BadCertificate,
        },
        // What a server says that greets in plain text, read as TLS.
        rustls::Error::InvalidMessage(_) => TlsFault::NotTls,
        _ => TlsFault::Handshake,
    }
}
