//! A certificate authority made for one test.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

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
    pub fn for_names(names: &[&str]) -> Self {
        Authority::new().certificate(names)
    }

    /// A certificate for `localhost` whose time is over.
    ///
    /// # Panics
    /// Never in practice: all parameters are fixed.
    #[must_use]
    pub fn expired() -> Self {
        Authority::new().sign(&["localhost", "127.0.0.1"], |params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        })
    }
}

/// Gives certificates to several servers and clients that trust one another.
#[derive(Debug)]
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new one, which nobody trusts yet.
    ///
    /// # Panics
    /// Never in practice: all parameters are fixed.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "test support: a certificate that can't be made ends the test"
    )]
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("an authority").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    /// A server's.
    ///
    /// # Panics
    /// When a name isn't valid in a certificate.
    #[must_use]
    pub fn certificate(&self, names: &[&str]) -> Certificate {
        self.sign(names, |_| ())
    }

    /// A client's, whose user and group Kubernetes reads from it.
    ///
    /// # Panics
    /// When one of them isn't valid in a certificate.
    #[must_use]
    pub fn client(&self, user: &str, group: &str) -> Certificate {
        self.sign(&[], |params| {
            params.distinguished_name.push(DnType::CommonName, user);
            params
                .distinguished_name
                .push(DnType::OrganizationName, group);
        })
    }

    #[expect(
        clippy::expect_used,
        reason = "test support: a certificate that can't be made ends the test"
    )]
    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).expect("the names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer);
        Certificate {
            authority_pem: self.pem.clone(),
            certificate_pem: certificate.expect("a certificate").pem(),
            key_pem: key.serialize_pem(),
        }
    }
}
