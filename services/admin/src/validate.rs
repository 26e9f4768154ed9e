//! Bounds of everything that a caller may say. Each refusal is one sentence that names the field.

use std::net::IpAddr;

use mailbell_core::{
    ids::{AccountId, Tenant},
    seal,
};
use mailbell_proto::admin::v1::{ImapServer, TlsMode};

use crate::Error;

/// A DNS name has at most 253 characters (RFC 1035, less the length bytes).
const MAX_HOST: usize = 253;
const MAX_USER: usize = 320;
const MAX_EXTERNAL_ID: usize = 256;
/// Folders of one account.
pub(crate) const MAX_FOLDERS: usize = 16;
const MAX_FOLDER: usize = 255;
const MAX_LABEL: usize = 64;
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
const DAY: u64 = 24 * 3600;
const TOKEN_TTL: u64 = 90 * DAY;
const MAX_TOKEN_TTL: u64 = 400 * DAY;

/// What an installation allows. Watchers connect to whatever host an account names, so whoever holds an admin token can make them
/// speak IMAP to any address they reach (SSRF). On one's own machine that is wanted (a mail server on loopback); where strangers
/// add accounts, it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Allows mail servers without TLS.
    pub plaintext: bool,
    /// Allows loopback, private and link-local addresses and names that are only known locally. Refusing them here looks at what is
    /// written, not at what a name resolves to: a network policy of the watchers must do the rest.
    pub private_hosts: bool,
}

/// A mail server, complete and in one spelling.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u32,
    pub(crate) tls: TlsMode,
    pub(crate) user: String,
}

fn invalid<T>(sentence: impl Into<String>) -> Result<T, Error> {
    Err(Error::Invalid(sentence.into()))
}

fn clean(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

pub(crate) fn tenant(text: &str) -> Result<Tenant, Error> {
    if text.is_empty() {
        return Ok(Tenant::default());
    }
    text.parse()
        .map_err(|error| Error::Invalid(format!("tenant: {error}.")))
}

pub(crate) fn tenant_filter(text: &str) -> Result<Option<Tenant>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    tenant(text).map(Some)
}

pub(crate) fn account(text: &str) -> Result<AccountId, Error> {
    text.parse()
        .map_err(|error| Error::Invalid(format!("id: {error}.")))
}

pub(crate) fn external_id(text: &str) -> Result<(), Error> {
    if text.len() > MAX_EXTERNAL_ID || !clean(text) {
        return invalid(format!(
            "external_id: it has at most {MAX_EXTERNAL_ID} bytes and no control characters."
        ));
    }
    Ok(())
}

/// A custom resource on Kubernetes that declares an account.
pub(crate) struct MailAccount<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

impl<'a> MailAccount<'a> {
    /// How it is written.
    pub(crate) const FORM: &'static str = "it is `mailaccount/<namespace>/<name>`, of names as Kubernetes has them, and at most 256 bytes";

    /// From how it is written. It is an external id too, so it has no more bytes.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        let (kind, namespace, name) = (parts.next()?, parts.next()?, parts.next()?);
        let good = kind == "mailaccount"
            && parts.next().is_none()
            && text.len() <= MAX_EXTERNAL_ID
            && is_label(namespace)
            && name.split('.').all(is_label);
        good.then_some(Self { namespace, name })
    }
}

/// RFC 1123, in small letters: of such is a name in Kubernetes.
fn is_label(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(known)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

pub(crate) fn server(given: Option<ImapServer>, policy: Policy) -> Result<Server, Error> {
    let Some(given) = given else {
        return invalid("server: name the mail server's host and user.");
    };
    let tls = match given.tls() {
        // An unknown number reads as unspecified too, and must not silently become another mode.
        TlsMode::Unspecified if given.tls != 0 => {
            return invalid("server.tls: this TLS mode is not known here.");
        }
        TlsMode::Unspecified => TlsMode::Implicit,
        TlsMode::Plaintext if !policy.plaintext => {
            return invalid(
                "server.tls: this installation does not allow mail servers without TLS; use IMPLICIT or STARTTLS.",
            );
        }
        mode => mode,
    };
    let port = match given.port {
        0 if tls == TlsMode::Implicit => 993,
        0 => 143,
        port @ 1..=65_535 => port,
        _ => return invalid("server.port: a port is 1 to 65535."),
    };
    if given.user.is_empty() || given.user.len() > MAX_USER || !clean(&given.user) {
        return invalid(format!(
            "server.user: it has 1 to {MAX_USER} bytes and no control characters."
        ));
    }
    Ok(Server {
        host: host(&given.host, policy)?,
        port,
        tls,
        user: given.user,
    })
}

fn host(text: &str, policy: Policy) -> Result<String, Error> {
    let host = text.to_ascii_lowercase();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let private = if let Ok(address) = bare.parse::<IpAddr>() {
        if address.is_unspecified() || address.is_multicast() {
            return invalid("server.host: this address names no host.");
        }
        is_private(address)
    } else if is_name(&host) {
        // A name without a dot, or below these, is only known to a local resolver.
        let local = [
            "localhost",
            "local",
            "internal",
            "lan",
            "home",
            "arpa",
            "svc",
        ];
        let last = host.rsplit('.').next().unwrap_or_default();
        !host.contains('.') || local.contains(&last)
    } else if !host.is_ascii() {
        return invalid("server.host: write an international name in its xn-- form.");
    } else {
        return invalid("server.host: it is a name such as imap.example.org, or an address.");
    };
    if private && !policy.private_hosts {
        return invalid(
            "server.host: this installation does not allow mail servers on private or local addresses.",
        );
    }
    Ok(bare.to_owned())
}

fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let numeric = host
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    // A name whose last label is a number is an address that somebody mistyped, or one in a form that only some parsers read.
    host.len() <= MAX_HOST && !numeric && host.split('.').all(label)
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64;
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.octets()[0] == 0
                || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

pub(crate) fn password(text: &str) -> Result<(), Error> {
    if text.is_empty() || text.len() > seal::MAX_SECRET {
        return invalid(format!("password: it has 1 to {} bytes.", seal::MAX_SECRET));
    }
    if text.contains(['\0', '\r', '\n']) {
        return invalid("password: it holds no line break and no NUL character.");
    }
    Ok(())
}

/// Unset: INBOX alone.
pub(crate) fn folders(given: Vec<String>) -> Result<Vec<String>, Error> {
    if given.is_empty() {
        return Ok(vec!["INBOX".to_owned()]);
    }
    if given.len() > MAX_FOLDERS {
        return invalid(format!(
            "folders: at most {MAX_FOLDERS} folders are watched."
        ));
    }
    let mut folders: Vec<String> = Vec::with_capacity(given.len());
    for name in given {
        if name.is_empty() || name.len() > MAX_FOLDER || !clean(&name) {
            return invalid(format!(
                "folders: a name has 1 to {MAX_FOLDER} bytes and no control characters."
            ));
        }
        // RFC 9051, 5.1: INBOX in any case is the one inbox.
        let name = if name.eq_ignore_ascii_case("INBOX") {
            "INBOX".to_owned()
        } else {
            name
        };
        if folders.contains(&name) {
            return invalid("folders: each folder is named once.");
        }
        folders.push(name);
    }
    Ok(folders)
}

pub(crate) fn page_size(given: u32) -> usize {
    let size = match given {
        0 => PAGE,
        size => size.min(MAX_PAGE),
    };
    usize::try_from(size).unwrap_or(1)
}

/// In milliseconds.
pub(crate) fn token_ttl(seconds: u64) -> Result<i64, Error> {
    let seconds = match seconds {
        0 => TOKEN_TTL,
        seconds if seconds <= MAX_TOKEN_TTL => seconds,
        _ => return invalid("ttl_seconds: a token lives at most 400 days."),
    };
    Ok(i64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

pub(crate) fn label(text: &str) -> Result<(), Error> {
    if text.len() > MAX_LABEL || !clean(text) {
        return invalid(format!(
            "label: it has at most {MAX_LABEL} bytes and no control characters."
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Policy = Policy {
        plaintext: true,
        private_hosts: true,
    };
    const CLOSED: Policy = Policy {
        plaintext: false,
        private_hosts: false,
    };

    fn given(host: &str) -> ImapServer {
        ImapServer {
            host: host.to_owned(),
            port: 0,
            tls: 0,
            user: "alice".to_owned(),
        }
    }

    fn sentence<T>(result: Result<T, Error>) -> String {
        match result {
            Err(Error::Invalid(sentence)) => sentence,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("not refused"),
        }
    }

    #[test]
    fn defaults_and_one_spelling() {
        let one = server(Some(given("IMAP.Example.ORG")), CLOSED)
            .ok()
            .unwrap();
        assert_eq!(
            (one.host.as_str(), one.port, one.tls),
            ("imap.example.org", 993, TlsMode::Implicit)
        );
        let start = ImapServer {
            tls: TlsMode::Starttls.into(),
            ..given("a.b")
        };
        assert_eq!(server(Some(start), CLOSED).ok().unwrap().port, 143);
        assert_eq!(
            server(Some(given("[2001:DB8::1]")), CLOSED)
                .ok()
                .unwrap()
                .host,
            "2001:db8::1"
        );
    }

    #[test]
    fn hosts_that_are_none() {
        for host in [
            "",
            " ",
            "a b",
            "a@b",
            "a/b",
            "a..b",
            "-a.b",
            "a.b:993",
            "127.0.0.1:993",
            "1.2.3",
            "0x7f.1",
            "127.1",
            "a.b\n",
            "bücher.example",
            "0.0.0.0",
            "::",
            "224.0.0.1",
        ] {
            assert!(
                sentence(server(Some(given(host)), OPEN)).starts_with("server.host: "),
                "{host}"
            );
        }
        let long = format!("{}.example.org", "a".repeat(64));
        assert!(server(Some(given(&long)), OPEN).is_err());
        assert!(sentence(server(None, OPEN)).starts_with("server: "));
    }

    #[test]
    fn private_hosts_only_where_they_are_allowed() {
        for host in [
            "localhost",
            "dovecot",
            "mail.svc",
            "nas.local",
            "127.0.0.1",
            "10.1.2.3",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.1.2.3",
            "::1",
            "[::1]",
            "fd00::1",
            "fe80::1",
            "::ffff:127.0.0.1",
        ] {
            assert!(
                sentence(server(Some(given(host)), CLOSED)).contains("does not allow"),
                "{host}"
            );
            assert!(server(Some(given(host)), OPEN).is_ok(), "{host}");
        }
        assert!(server(Some(given("100.128.0.1")), CLOSED).is_ok());
        assert!(server(Some(given("192.0.2.1")), CLOSED).is_ok());
    }

    #[test]
    fn tls_ports_and_users() {
        let plain = ImapServer {
            tls: TlsMode::Plaintext.into(),
            ..given("a.b")
        };
        assert!(sentence(server(Some(plain.clone()), CLOSED)).contains("without TLS"));
        assert!(server(Some(plain), OPEN).is_ok());
        let unknown = ImapServer {
            tls: 9,
            ..given("a.b")
        };
        assert!(sentence(server(Some(unknown), OPEN)).starts_with("server.tls: "));
        let port = ImapServer {
            port: 65_536,
            ..given("a.b")
        };
        assert!(sentence(server(Some(port), OPEN)).starts_with("server.port: "));
        for user in ["", "a\r\nb", "\0", &"x".repeat(321)] {
            let wrong = ImapServer {
                user: user.to_owned(),
                ..given("a.b")
            };
            assert!(sentence(server(Some(wrong), OPEN)).starts_with("server.user: "));
        }
    }

    #[test]
    fn folders_are_bounded_and_named_once() {
        assert_eq!(folders(Vec::new()).ok().unwrap(), ["INBOX"]);
        let names = |names: &[&str]| folders(names.iter().map(|&name| name.to_owned()).collect());
        assert_eq!(names(&["inbox", "Work"]).ok().unwrap(), ["INBOX", "Work"]);
        assert!(sentence(names(&["INBOX", "inbox"])).contains("once"));
        assert!(names(&[""]).is_err() && names(&["a\r\nb"]).is_err() && names(&["a"; 17]).is_err());
    }

    #[test]
    fn who_manages_an_account_is_named_as_on_kubernetes() {
        let parsed = MailAccount::parse("mailaccount/mail/alice.example-org").unwrap();
        assert_eq!(
            (parsed.namespace, parsed.name),
            ("mail", "alice.example-org")
        );
        let long = |bytes: usize| {
            let name = format!("{}.{}.", "a".repeat(63), "b".repeat(63));
            let text = format!("mailaccount/{}/{name}", "n".repeat(60));
            let rest = "c".repeat(bytes - text.len());
            MailAccount::parse(&(text + &rest)).is_some()
        };
        assert!(long(256) && !long(257));
        for bad in [
            "",
            "mailaccount",
            "mailaccount/mail",
            "mailaccount/mail/",
            "mailaccount//alice",
            "mailaccount/mail/alice/more",
            "other/mail/alice",
            "mailaccount/mail/Alice",
            "mailaccount/mail/a b",
            "mailaccount/mail/a..b",
            "mailaccount/mail/-a",
            "mailaccount/ma.il/a",
            "mailaccount/mail/a\n",
        ] {
            assert!(MailAccount::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_small_ones() {
        assert_eq!(
            (page_size(0), page_size(7), page_size(5000)),
            (100, 7, 1000)
        );
        assert_eq!(token_ttl(0).ok().unwrap(), 90 * 24 * 3600 * 1000);
        assert!(token_ttl(401 * 24 * 3600).is_err());
        assert!(label(&"x".repeat(65)).is_err() && label("Pixel").is_ok());
        assert!(
            password("").is_err() && password("a\nb").is_err() && password("pass wörd").is_ok()
        );
        assert!(tenant("A").is_err() && tenant_filter("").ok().unwrap().is_none());
        assert!(account("default.x").is_err() && external_id(&"x".repeat(257)).is_err());
    }
}
