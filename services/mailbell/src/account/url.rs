//! `imaps://user@host[:port]`

use std::{fmt, str::FromStr};

use mailbell_proto::admin::v1::{ImapServer, TlsMode};

/// A mailbox as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxUrl {
    user: String,
    host: String,
    /// 0: the usual one.
    port: u16,
    tls: TlsMode,
}

impl MailboxUrl {
    /// As the admin API wants it.
    #[must_use]
    pub fn server(&self) -> ImapServer {
        ImapServer {
            host: self.host.clone(),
            port: self.port.into(),
            tls: self.tls.into(),
            user: self.user.clone(),
        }
    }
}

/// For a person.
impl fmt::Display for MailboxUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.user, self.host)
    }
}

impl FromStr for MailboxUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write it as imaps://user@host, imap://user@host (STARTTLS) or imap+plaintext://user@host";
        let (scheme, rest) = text.split_once("://").ok_or(form)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "imaps" => TlsMode::Implicit,
            "imap" => TlsMode::Starttls,
            "imap+plaintext" => TlsMode::Plaintext,
            _ => return Err(form.to_owned()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // The last one: a user is often an address itself.
        let (user, server) = rest.rsplit_once('@').ok_or(form)?;
        if user.contains(':') {
            return Err(
                "leave the password out, others can see what is typed here; a colon in the user is written %3A".to_owned(),
            );
        }
        if server.contains('/') {
            return Err("name folders with --folder".to_owned());
        }
        let user = percent_decode(user).ok_or("the user has a broken %-escape")?;
        let (host, port) = split_port(server)?;
        if user.is_empty() || host.is_empty() {
            return Err(form.to_owned());
        }
        Ok(Self {
            user,
            host: host.to_owned(),
            port,
            tls,
        })
    }
}

fn split_port(server: &str) -> Result<(&str, u16), String> {
    let (host, port) = match server.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("an IPv6 address ends with ]")?;
            (
                host,
                port.strip_prefix(':')
                    .or(if port.is_empty() { None } else { Some("?") }),
            )
        }
        None => match server.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => {
                return Err("an IPv6 address stands in [brackets]".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (server, None),
        },
    };
    let port = match port {
        None => 0,
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or("a port is 1 to 65535")?,
    };
    Ok((host, port))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (String, String, u16, TlsMode) {
        let url: MailboxUrl = text.parse().unwrap();
        (url.user, url.host, url.port, url.tls)
    }

    #[test]
    fn mailboxes_as_people_type_them() {
        let same = |text: &str, user: &str, host: &str, port: u16, tls: TlsMode| {
            assert_eq!(
                parts(text),
                (user.to_owned(), host.to_owned(), port, tls),
                "{text}"
            );
        };
        same(
            "imaps://bob@mail.example.org",
            "bob",
            "mail.example.org",
            0,
            TlsMode::Implicit,
        );
        same(
            "imaps://bob@example.org@imap.example.org:1993/",
            "bob@example.org",
            "imap.example.org",
            1993,
            TlsMode::Implicit,
        );
        same("IMAP://b%40x%3Ay%25@h", "b@x:y%", "h", 0, TlsMode::Starttls);
        same(
            "imap+plaintext://a@[::1]:143",
            "a",
            "::1",
            143,
            TlsMode::Plaintext,
        );
        same(
            "imaps://a@[2001:db8::1]",
            "a",
            "2001:db8::1",
            0,
            TlsMode::Implicit,
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, said) in [
            ("bob@mail.example.org", "imaps://"),
            ("pop3://bob@h", "imaps://"),
            ("imaps://h", "imaps://"),
            ("imaps://@h", "imaps://"),
            ("imaps://a@", "imaps://"),
            ("imaps://a:secret@h", "leave the password out"),
            ("imaps://a@h/INBOX", "--folder"),
            ("imaps://a@h:0", "port"),
            ("imaps://a@h:99999", "port"),
            ("imaps://a@h:", "port"),
            ("imaps://a@::1", "[brackets]"),
            ("imaps://a@[::1", "]"),
            ("imaps://a@[::1]x", "port"),
            ("imaps://a%4@h", "escape"),
            ("imaps://a%zz@h", "escape"),
        ] {
            let error = text.parse::<MailboxUrl>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
            assert!(!error.contains("secret"));
        }
    }
}
