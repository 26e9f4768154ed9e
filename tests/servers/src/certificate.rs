//! A certificate authority made for one test.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// An authority and a certificate it gave to one server.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The authority's certificate: what clients trust.
    pub authority_pem: String,
    /// The server's certificate.
    pub certificate_pem: String,
    /// The server's private key.
    pub key_pem: String,
}

impl Certificate {
    /// A certificate for `localhost` and `127.0.0.1`.
    ///
    /// # Panics
    /// Never in practice: all parameters are fixed.
    #[must_use]
    pub fn localhost() -> Self {
        Self::for_names(&["localhost", "127.0.0.1"])
    }

    /// A certificate for other names, with which a client must refuse a server on loopback.
    ///
    /// # Panics
    /// When a name isn't valid in a certificate.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "test support: a certificate that can't be made ends the test"
    )]
    pub fn for_names(names: &[&str]) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority_pem = params.self_signed(&key).expect("an authority").pem();
        let issuer = Issuer::new(params, key);
        let params =
            CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())
                .expect("the names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Self {
            authority_pem,
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    /// A certificate for `localhost` whose time is over.
    ///
    /// # Panics
    /// Never in practice: all parameters are fixed.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "test support: a certificate that can't be made ends the test"
    )]
    pub fn expired() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority_pem = params.self_signed(&key).expect("an authority").pem();
        let issuer = Issuer::new(params, key);
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
                .expect("the names");
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        Self {
            authority_pem,
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }
}
