//! What can go wrong, told apart by what has to be done about it.

use std::fmt;
use std::io;

use crate::guard::GuardError;

/// What to do about an error; also good as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// The host name has no address.
    Dns,
    /// Nothing listens there, or the network says no.
    Refused,
    /// No connection in time.
    ConnectTimeout,
    /// This machine lets us open no more connections.
    LocalLimit,
    /// TLS could not be set up.
    Tls,
    /// The account asks for plain text and the operator doesn't allow it.
    PlaintextNotAllowed,
    /// The server takes no password on this connection.
    LoginDisabled,
    /// The server says that user or password are wrong.
    BadCredentials,
    /// The server has enough of us for now.
    Throttled,
    /// The folder can't be opened.
    NoSuchFolder,
    /// The server does something else than the protocol says.
    Protocol,
    /// The server sends more than an honest one would.
    LimitExceeded,
    /// The server didn't answer in time.
    Timeout,
    /// The connection is gone.
    Disconnected,
    /// A value of ours can't be sent over IMAP.
    InvalidInput,
}

impl Class {
    /// A short name that never changes.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::LocalLimit => "local-limit",
            Self::Tls => "tls",
            Self::PlaintextNotAllowed => "plaintext-not-allowed",
            Self::LoginDisabled => "login-disabled",
            Self::BadCredentials => "bad-credentials",
            Self::Throttled => "throttled",
            Self::NoSuchFolder => "no-such-folder",
            Self::Protocol => "protocol",
            Self::LimitExceeded => "limit-exceeded",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::InvalidInput => "invalid-input",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why TLS could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFault {
    /// Nobody we trust has signed the certificate.
    UnknownIssuer,
    /// The certificate's time is over, or not yet come; or our clock is wrong.
    Expired,
    /// The certificate is for another name.
    WrongName,
    /// The certificate is broken or revoked.
    BadCertificate,
    /// What answers there doesn't speak TLS.
    NotTls,
    /// STARTTLS is asked for and the server doesn't offer it.
    NotOffered,
    /// Somebody put plain text behind STARTTLS, to have it taken for the server's words under TLS.
    Injection,
    /// Anything else: versions, ciphers, an alert.
    Handshake,
}

/// What a server says in a code beside its NO to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginFault {
    /// No reason, or `AUTHENTICATIONFAILED`.
    Refused,
    /// `EXPIRED`: the password was good once.
    Expired,
    /// `AUTHORIZATIONFAILED`: the password may be good, but not for this mailbox.
    NotAuthorized,
    /// The provider wants a password made for this application, or a look into a browser first.
    AppPassword,
}

/// An error of a connection. After any of them but [`Error::NoSuchFolder`] and [`Error::InvalidInput`] the connection
/// is of no more use. Never holds text of the server, an address or a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// See [`Class::Dns`].
    #[error("the host name can't be resolved")]
    Dns,
    /// See [`Class::Refused`].
    #[error("the connection was refused: {0}")]
    Refused(io::ErrorKind),
    /// See [`Class::ConnectTimeout`].
    #[error("no connection in time")]
    ConnectTimeout,
    /// See [`Class::LocalLimit`].
    #[error("no file or port is left for a connection")]
    LocalLimit,
    /// See [`Class::Tls`].
    #[error("TLS failed: {0:?}")]
    Tls(TlsFault),
    /// See [`Class::PlaintextNotAllowed`].
    #[error("plain text is not allowed")]
    PlaintextNotAllowed,
    /// See [`Class::LoginDisabled`].
    #[error("the server takes no password on this connection")]
    LoginDisabled,
    /// See [`Class::BadCredentials`].
    #[error("the login was refused: {0:?}")]
    BadCredentials(LoginFault),
    /// See [`Class::Throttled`].
    #[error("the server asks to come back later")]
    Throttled,
    /// See [`Class::NoSuchFolder`].
    #[error("the folder can't be opened")]
    NoSuchFolder,
    /// See [`Class::Protocol`].
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    /// See [`Class::LimitExceeded`].
    #[error("the server sent too much: {0}")]
    LimitExceeded(GuardError),
    /// See [`Class::Timeout`].
    #[error("no answer in time: {0}")]
    Timeout(&'static str),
    /// See [`Class::Disconnected`]; whether the server said BYE.
    #[error("disconnected (BYE: {bye})")]
    Disconnected {
        /// The server has announced it.
        bye: bool,
    },
    /// See [`Class::InvalidInput`].
    #[error("can't be sent over IMAP: {0}")]
    InvalidInput(&'static str),
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Dns => Class::Dns,
            Self::Refused(_) => Class::Refused,
            Self::ConnectTimeout => Class::ConnectTimeout,
            Self::LocalLimit => Class::LocalLimit,
            Self::Tls(_) => Class::Tls,
            Self::PlaintextNotAllowed => Class::PlaintextNotAllowed,
            Self::LoginDisabled => Class::LoginDisabled,
            Self::BadCredentials(_) => Class::BadCredentials,
            Self::Throttled => Class::Throttled,
            Self::NoSuchFolder => Class::NoSuchFolder,
            Self::Protocol(_) => Class::Protocol,
            Self::LimitExceeded(_) => Class::LimitExceeded,
            Self::Timeout(_) => Class::Timeout,
            Self::Disconnected { .. } => Class::Disconnected,
            Self::InvalidInput(_) => Class::InvalidInput,
        }
    }

    /// Whether trying again is of no use until a person changes something. A hint: even "wrong password" is said by
    /// servers that are merely in trouble, so believe it when it comes twice.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        matches!(
            self.class(),
            Class::PlaintextNotAllowed
                | Class::LoginDisabled
                | Class::BadCredentials
                | Class::NoSuchFolder
                | Class::InvalidInput
        )
    }

    /// One sentence for the owner of the account: what is wrong and what to do.
    #[must_use]
    pub fn user_sentence(&self) -> &'static str {
        match self {
            Self::Dns => "The mail server's host name is not known: check its spelling.",
            Self::Refused(_) => {
                "Nothing answers at the mail server's host and port: check both, and whether a firewall is between."
            }
            Self::ConnectTimeout => {
                "The mail server can't be reached in time: check host and port, and whether a firewall is between."
            }
            Self::LocalLimit => {
                "The machine that runs Mailbell has no open file or local port left for this connection: raise its limit of open files (see `mailbell doctor`)."
            }
            Self::Tls(fault) => match fault {
                TlsFault::UnknownIssuer => {
                    "The mail server's certificate comes from an authority that is not trusted here: start Mailbell with --imap-ca and that authority's certificate."
                }
                TlsFault::Expired => {
                    "The mail server's certificate has expired, or the clock here is wrong: ask the provider or set the clock."
                }
                TlsFault::WrongName => {
                    "The mail server's certificate is for another host name: use the name that the provider documents."
                }
                TlsFault::BadCertificate => {
                    "The mail server's certificate is not valid: ask the provider."
                }
                TlsFault::NotTls => {
                    "What answers at this port does not speak TLS: use the provider's TLS port (usually 993), or STARTTLS (usually 143)."
                }
                TlsFault::NotOffered => {
                    "The mail server does not offer STARTTLS at this port: use its TLS port (usually 993)."
                }
                TlsFault::Injection => {
                    "Somebody tampers with the connection to the mail server: use its TLS port (usually 993) and check the network."
                }
                TlsFault::Handshake => {
                    "No TLS connection to the mail server came about: check the port, ask the provider for TLS 1.2 or newer, and see whether a firewall is between."
                }
            },
            Self::PlaintextNotAllowed => {
                "A connection without TLS would show the password to anybody on the way: use TLS or STARTTLS, or have plain text allowed explicitly."
            }
            Self::LoginDisabled => {
                "The mail server takes no password on this connection: use TLS, or see whether the provider allows IMAP with a password."
            }
            Self::BadCredentials(fault) => match fault {
                LoginFault::Refused => {
                    "The mail server refuses user name or password: check both; many providers want a password made for applications."
                }
                LoginFault::Expired => {
                    "The mail server says that the password has expired: set a new one at the provider, then here."
                }
                LoginFault::NotAuthorized => {
                    "The mail server knows the user but does not give access to this mailbox: ask the provider."
                }
                LoginFault::AppPassword => {
                    "The provider wants a password made for applications (or a login in a browser first): make one there and enter it here."
                }
            },
            Self::Throttled => {
                "The mail server asks to come back later, often because of too many connections: nothing to do, it is tried again."
            }
            Self::NoSuchFolder => "The folder does not exist or can't be opened: check its name.",
            Self::Protocol(_) => {
                "The mail server answers in an unexpected way: check that host and port are those of an IMAP server."
            }
            Self::LimitExceeded(_) => {
                "The mail server sends more than is reasonable and was cut off: check that it is the right server."
            }
            Self::Timeout("greeting") => {
                "The mail server says nothing: a TLS port (usually 993) needs TLS from the start; check port and TLS mode."
            }
            Self::Timeout(_) => {
                "The mail server does not answer in time: nothing to do, it is tried again."
            }
            Self::Disconnected { .. } => {
                "The mail server has closed the connection: nothing to do, it is tried again."
            }
            Self::InvalidInput(_) => {
                "User name, password or folder contains a character that can't be sent to a mail server: correct it."
            }
        }
    }

    /// An error while a command runs.
    pub(crate) fn from_io(error: &io::Error) -> Self {
        if let Some(guard) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<GuardError>())
        {
            return Self::LimitExceeded(*guard);
        }
        Self::Disconnected { bye: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_what_is_wrong_and_what_to_do() {
        for (error, wrong, advice) in [
            (Error::Dns, "host name is not known", "check its spelling"),
            (
                Error::Refused(io::ErrorKind::ConnectionRefused),
                "Nothing answers",
                "check both",
            ),
            (
                Error::ConnectTimeout,
                "can't be reached",
                "check host and port",
            ),
            (
                Error::Tls(TlsFault::UnknownIssuer),
                "an authority that is not trusted here",
                "--imap-ca",
            ),
            (
                Error::Tls(TlsFault::Expired),
                "has expired, or the clock here is wrong",
                "set the clock",
            ),
            (
                Error::Tls(TlsFault::WrongName),
                "for another host name",
                "use the name that the provider documents",
            ),
            (
                Error::Tls(TlsFault::BadCertificate),
                "certificate is not valid",
                "ask the provider",
            ),
            (
                Error::Tls(TlsFault::NotTls),
                "does not speak TLS",
                "TLS port (usually 993), or STARTTLS (usually 143)",
            ),
            (
                Error::Tls(TlsFault::NotOffered),
                "does not offer STARTTLS",
                "TLS port (usually 993)",
            ),
            (
                Error::Tls(TlsFault::Injection),
                "tampers with the connection",
                "check the network",
            ),
            (
                Error::Tls(TlsFault::Handshake),
                "No TLS connection",
                "ask the provider for TLS 1.2 or newer",
            ),
            (
                Error::Timeout("greeting"),
                "says nothing",
                "check port and TLS mode",
            ),
            (
                Error::PlaintextNotAllowed,
                "would show the password",
                "use TLS or STARTTLS",
            ),
        ] {
            let sentence = error.user_sentence();
            let (said, to_do) = sentence.split_once(": ").unwrap_or_default();
            assert!(said.contains(wrong), "{error:?}: {sentence}");
            assert!(to_do.contains(advice), "{error:?}: {sentence}");
            assert!(
                to_do.ends_with('.') && !sentence.contains('\n'),
                "{sentence}"
            );
        }
    }

    #[test]
    fn what_only_a_person_can_mend_is_permanent() {
        for error in [
            Error::BadCredentials(LoginFault::Refused),
            Error::LoginDisabled,
            Error::NoSuchFolder,
        ] {
            assert!(error.is_permanent(), "{error:?}");
        }
        // A name server or a certificate may be mended by somebody else.
        for error in [Error::Dns, Error::Tls(TlsFault::Expired), Error::Throttled] {
            assert!(!error.is_permanent(), "{error:?}");
        }
    }
}
