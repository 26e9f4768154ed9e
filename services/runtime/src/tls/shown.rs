//! The certificate that somebody shows.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::provider;
use crate::Error;

/// What a server that is called `host` shows over this connection, trusted or not: one that has expired is looked at too. It holds the key
/// of it, and nothing is said to it. How long it may take is for the caller to say.
///
/// # Errors
/// [`Error::Tls`] if no TLS comes of it, or it shows none.
pub async fn shown(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
) -> Result<CertificateDer<'static>, Error> {
    let host = ServerName::try_from(host.to_owned())
        .map_err(|_| TlsError::General(format!("{host:?} is no name of a server")))?;
    let provider = provider();
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Whoever(provider)))
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let connected = connector.connect(host, stream).await;
    // In it is the one of rustls.
    let mut connected = connected.map_err(|error| TlsError::General(error.to_string()))?;
    let (_, session) = connected.get_ref();
    let mut chain = session.peer_certificates().into_iter().flatten();
    let first = chain.next().map(|first| first.clone().into_owned());
    // It was no more than a look, and whether they hear of its end is the same to us.
    let _ = connected.shutdown().await;
    Ok(first.ok_or(TlsError::NoCertificatesPresented)?)
}

/// Trusts everybody, of whom nothing is wanted but a look at the certificate.
#[derive(Debug)]
struct Whoever(Arc<CryptoProvider>);

impl ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
