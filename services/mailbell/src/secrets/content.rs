//! What is in each Secret. Pure, but for what is random.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};
use mailbell_admin::SigningKey;
use mailbell_bus::{Role, server_config::user_name};
use mailbell_core::{ids::Installation, seal::KeyRing};
use rand::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use zeroize::Zeroizing;

/// How long certificates of NATS servers last. Their authority's key is forgotten, so that nobody can make others; whoever wants them
/// short has an issuer of his own make them.
const CERTIFICATE_YEARS: i64 = 10;
/// The keys of a certificate, which go together.
const CERTIFICATE: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

/// A Secret of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// Passwords of the roles' users on NATS servers that the operator runs
    NatsUsers,
    /// Certificate of these servers, and whom clients trust
    NatsTls,
    /// Token of the admin API: `token`, and the list of those that are valid
    AdminToken,
    /// Token by which the operator calls the admin API
    OperatorToken,
    /// Key that signs device tokens
    SigningKey,
    /// Keys that open stored passwords, for watchers only
    KeyRing,
}

/// What its name tells.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The installation.
    pub installation: &'a Installation,
    /// Where its pods are.
    pub namespace: &'a str,
}

/// A key and its content.
pub type Made = (&'static str, Zeroizing<Vec<u8>>);

impl What {
    /// As it ends the name of the Secret.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NatsUsers => "nats-users",
            Self::NatsTls => "nats-tls",
            Self::AdminToken => "admin-token",
            Self::OperatorToken => "operator-token",
            Self::SigningKey => "signing-key",
            Self::KeyRing => "key-ring",
        }
    }
}

/// What a Secret needs beside what it has. An empty value is none.
///
/// # Errors
/// When what is there cannot be completed: what is wrong, and what to do.
pub fn missing(
    what: What,
    names: Names<'_>,
    there: &BTreeMap<String, Vec<u8>>,
) -> Result<Vec<Made>, String> {
    let has = |key: &str| there.get(key).is_some_and(|value| !value.is_empty());
    let one = |key: &'static str, make: fn() -> Result<Zeroizing<Vec<u8>>, String>| {
        if has(key) {
            Ok(Vec::new())
        } else {
            Ok(vec![(key, make()?)])
        }
    };
    match what {
        What::NatsUsers => {
            let users = Role::ALL.map(user_name).into_iter();
            Ok(users
                .filter(|user| !has(user))
                .map(|user| (user, password()))
                .collect())
        }
        What::NatsTls => match CERTIFICATE.iter().filter(|key| has(key)).count() {
            0 => certificate(names).map_err(|error| error.to_string()),
            3 => Ok(Vec::new()),
            _ => Err(format!(
                "it has some of {}: it needs all of them, or none, and all are made then",
                CERTIFICATE.join(", ")
            )),
        },
        What::AdminToken if has("tokens") => Ok(Vec::new()),
        What::AdminToken => {
            let new = token()?;
            let known = there.get("token").filter(|token| !token.is_empty());
            let list = known.cloned().map_or_else(|| new.clone(), Zeroizing::new);
            let token = ("token", new);
            let list = ("tokens", list);
            Ok(match known {
                Some(_) => vec![list],
                None => vec![token, list],
            })
        }
        What::OperatorToken => one("token", token),
        What::SigningKey => one("signing.pem", || {
            let key = SigningKey::generate(&mut rand::rng()).map_err(|error| error.to_string())?;
            Ok(Zeroizing::new(key.to_pem().as_bytes().to_vec()))
        }),
        What::KeyRing => one("key.ring", || {
            let mut ring = KeyRing::default();
            let made = ring.add(Timestamp::now().as_millisecond(), &mut rand::rng());
            made.ok_or("no key could be made")?;
            Ok(Zeroizing::new(ring.to_text().as_bytes().to_vec()))
        }),
    }
}

/// Of letters, digits, `-` and `_`, which need no quotes in a server's configuration, and begin with a letter, since such a word is no number.
fn password() -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(bytes.as_mut_slice());
    let mut text = Zeroizing::new(String::with_capacity(64));
    text.push('n');
    BASE64_URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut text);
    Zeroizing::new(text.as_bytes().to_vec())
}

fn token() -> Result<Zeroizing<Vec<u8>>, String> {
    let token = mailbell_admin::new_token(&mut rand::rng());
    Ok(Zeroizing::new(token.as_bytes().to_vec()))
}

/// Of a server, and of a client, since servers show it to one another.
fn certificate(names: Names<'_>) -> Result<Vec<Made>, rcgen::Error> {
    let Names {
        installation,
        namespace,
    } = names;
    let now = Timestamp::now();
    let today = now.to_zoned(TimeZone::UTC).date();
    let number = |value: i8| u8::try_from(value).unwrap_or(1);
    let day = |date: Date| {
        rcgen::date_time_ymd(date.year().into(), number(date.month()), number(date.day()))
    };
    let dated = |mut params: CertificateParams, name: String| {
        params.distinguished_name.push(DnType::CommonName, name);
        // Clocks need not agree to the day.
        params.not_before = day(today.saturating_sub(1.day()));
        // To the second: by its end it is told from one that is made later.
        let of_day = now.as_second().rem_euclid(24 * 3600).unsigned_abs();
        params.not_after =
            day(today.saturating_add(CERTIFICATE_YEARS.years())) + Duration::from_secs(of_day);
        params
    };
    let mut authority = dated(
        CertificateParams::new(Vec::new())?,
        format!("authority of {installation}-nats"),
    );
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);
    let mut server = dated(
        CertificateParams::new(vec![format!("*.{installation}-nats.{namespace}.svc")])?,
        format!("{installation}-nats"),
    );
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let server_pem = server.signed_by(&key, &issuer)?.pem();
    let key_pem = Zeroizing::new(key.serialize_pem());
    let [ca, certificate, private] = CERTIFICATE;
    Ok(vec![
        (ca, Zeroizing::new(authority_pem.into_bytes())),
        (certificate, Zeroizing::new(server_pem.into_bytes())),
        (private, Zeroizing::new(key_pem.as_bytes().to_vec())),
    ])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mailbell_admin::TokenHash;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
        server::WebPkiClientVerifier,
        sign::CertifiedKey,
    };

    use super::*;
    use crate::certificate::validity;

    const ALL: [What; 6] = [
        What::NatsUsers,
        What::NatsTls,
        What::AdminToken,
        What::OperatorToken,
        What::SigningKey,
        What::KeyRing,
    ];

    type Data = BTreeMap<String, Vec<u8>>;

    fn made(what: What, there: &Data) -> Result<Data, String> {
        let installation = "main".parse().unwrap();
        let names = Names {
            installation: &installation,
            namespace: "mail",
        };
        let made = missing(what, names, there)?.into_iter();
        Ok(made
            .map(|(key, value)| (key.to_owned(), value.to_vec()))
            .collect())
    }

    fn text(data: &Data, key: &str) -> String {
        String::from_utf8(data[key].clone()).unwrap()
    }

    #[test]
    fn what_is_complete_is_left_alone_and_two_are_never_the_same() {
        for what in ALL {
            let first = made(what, &Data::new()).unwrap();
            assert!(!first.is_empty(), "{what:?}");
            assert_eq!(made(what, &first).unwrap(), Data::new(), "{what:?}");
            let second = made(what, &Data::new()).unwrap();
            for (key, value) in &first {
                assert_ne!(second[key], *value, "{what:?} {key}");
            }
        }
    }

    #[test]
    fn a_user_whose_password_is_missing_gets_one_and_the_others_keep_theirs() {
        let mut there = made(What::NatsUsers, &Data::new()).unwrap();
        assert_eq!(there.len(), Role::ALL.len());
        there.insert("watcher".to_owned(), Vec::new());
        there.remove("admin");
        let more = made(What::NatsUsers, &there).unwrap();
        assert_eq!(Vec::from_iter(more.keys()), ["admin", "watcher"]);
    }

    #[test]
    fn a_token_that_is_known_becomes_the_list() {
        let new = made(What::AdminToken, &Data::new()).unwrap();
        assert_eq!(new["token"], new["tokens"]);
        TokenHash::parse(&text(&new, "tokens")).unwrap();
        let known = Data::from([("token".to_owned(), b"mine".to_vec())]);
        let list = made(What::AdminToken, &known).unwrap();
        assert_eq!(list, Data::from([("tokens".to_owned(), b"mine".to_vec())]));
        let list = Data::from([("tokens".to_owned(), b"mine".to_vec())]);
        assert_eq!(made(What::AdminToken, &list).unwrap(), Data::new());
    }

    #[test]
    fn keys_are_read_by_those_that_use_them() {
        let ring = made(What::KeyRing, &Data::new()).unwrap();
        let ring = KeyRing::from_text(&text(&ring, "key.ring")).unwrap();
        assert_eq!(ring.public_keys().count(), 1);
        let key = made(What::SigningKey, &Data::new()).unwrap();
        SigningKey::from_pem(&text(&key, "signing.pem")).unwrap();
        let token = made(What::OperatorToken, &Data::new()).unwrap();
        TokenHash::parse(&text(&token, "token")).unwrap();
    }

    /// Somebody's certificate beside an authority of ours would be trusted by nobody.
    #[test]
    fn half_a_certificate_is_not_completed() {
        let mut there = made(What::NatsTls, &Data::new()).unwrap();
        there.remove("ca.crt");
        let why = made(What::NatsTls, &there).unwrap_err();
        assert!(why.contains("all of them, or none"), "{why}");
    }

    #[test]
    fn servers_of_the_installation_are_trusted_as_servers_and_as_clients_and_no_others() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let data = made(What::NatsTls, &Data::new()).unwrap();
        let authority = CertificateDer::from_pem_slice(&data["ca.crt"]).unwrap();
        let shown = CertificateDer::from_pem_slice(&data["tls.crt"]).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&data["tls.key"]).unwrap();
        CertifiedKey::from_der(vec![shown.clone()], key, &provider).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority).unwrap();
        let roots = Arc::new(roots);
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let servers = servers.build().unwrap();
        let later = |days: u64| {
            let now = UnixTime::now().as_secs();
            UnixTime::since_unix_epoch(Duration::from_secs(now + days * 86_400))
        };
        let (_, until) = validity(&shown).unwrap();
        let now = Timestamp::now().to_zoned(TimeZone::UTC);
        let ends = now.saturating_add(CERTIFICATE_YEARS.years());
        assert!((ends.timestamp().as_second() - until).abs() < 60, "{until}");
        let is_trusted = |name: &str, days: u64| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let trusted = servers.verify_server_cert(&shown, &[], &name, &[], later(days));
            trusted.is_ok()
        };
        assert!(is_trusted("main-nats-0.main-nats.mail.svc", 0));
        assert!(is_trusted("main-nats-2.main-nats.mail.svc", 3_600));
        assert!(!is_trusted("main-nats-2.main-nats.mail.svc", 3_700));
        assert!(!is_trusted("main-nats-0.main-nats.other.svc", 0));
        assert!(!is_trusted("other.mail.svc", 0));
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider);
        let clients = clients.build().unwrap();
        assert!(clients.verify_client_cert(&shown, &[], later(0)).is_ok());
    }
}
