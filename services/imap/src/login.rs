//! From the greeting to a connection that is logged in.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imap_proto::{Response, ResponseCode, Status};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use crate::capability::{Capabilities, Capability};
use crate::channel::{Channel, Ending, code_of};
use crate::command::{Command, check};
use crate::connection::{Connection, Session};
use crate::error::{Error, LoginFault, TlsFault};
use crate::guard::Limits;
use crate::settings::{Endpoint, Login, Settings, TlsMode};
use crate::transport::{Stream, dial, secure};

impl Connection {
    /// Connects, sets up TLS and logs in.
    ///
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// See [`crate::Class`]: everything from an unknown host to a wrong password.
    pub async fn open(
        endpoint: &Endpoint,
        login: &Login,
        settings: &Settings,
    ) -> Result<Self, Error> {
        let start = Instant::now();
        let stream = dial(endpoint, settings).await?;
        Self::over(stream, endpoint, login, settings, start.elapsed()).await
    }

    /// Logs in over a stream that is there already: a tunnel, a test. With [`TlsMode::Implicit`] the stream must be
    /// secure as it is; [`TlsMode::StartTls`] sets up TLS over it.
    ///
    /// # Errors
    /// As for [`Connection::open`].
    pub async fn over(
        stream: Stream,
        endpoint: &Endpoint,
        login: &Login,
        settings: &Settings,
        spent: Duration,
    ) -> Result<Self, Error> {
        if endpoint.tls == TlsMode::Plain && !settings.allow_plaintext {
            return Err(Error::PlaintextNotAllowed);
        }
        check(login.user.as_bytes())?;
        check(&login.secret)?;
        let start = Instant::now();
        let (channel, capabilities) = timeout(
            settings.timeouts.login,
            handshake(stream, endpoint, login, settings),
        )
        .await
        .map_err(|_| Error::Timeout("login"))??;
        let session = Session::new(capabilities, settings, spent + start.elapsed());
        Ok(Self::new(channel, session))
    }
}

async fn handshake(
    stream: Stream,
    endpoint: &Endpoint,
    login: &Login,
    settings: &Settings,
) -> Result<(Channel, Capabilities), Error> {
    let mut channel = Channel::new(stream, Vec::new(), None);
    let (mut known, mut authenticated) =
        timeout(settings.timeouts.greeting, greeting(&mut channel))
            .await
            .map_err(|_| Error::Timeout("greeting"))??;
    if endpoint.tls == TlsMode::StartTls {
        if authenticated {
            // Logged in before TLS: by whom, nobody can say.
            return Err(Error::Tls(TlsFault::Injection));
        }
        channel = start_tls(channel, known, endpoint, settings).await?;
        // What was said before TLS is forgotten.
        known = None;
        authenticated = false;
    }
    if !authenticated {
        let before = match known {
            Some(known) => known,
            None => ask(&mut channel).await?,
        };
        known = log_in(&mut channel, before, login).await?;
    }
    let capabilities = match known {
        Some(known) => known,
        None => ask(&mut channel).await?,
    };
    if let Some((name, version)) = settings.identity
        && capabilities.has(Capability::Id)
    {
        let command = Command::new("ID (\"name\"")
            .string(name.as_bytes(), capabilities)?
            .text(" \"version\"")
            .string(version.as_bytes(), capabilities)?
            .text(")");
        // A courtesy; whatever the answer is.
        channel.run(command, Limits::SMALL, &mut |_| {}).await?;
    }
    Ok((channel, capabilities))
}

/// The greeting: capabilities, if it has them, and whether we are logged in already.
async fn greeting(channel: &mut Channel) -> Result<(Option<Capabilities>, bool), Error> {
    let greeting = channel.read_first(|response| match response {
        Response::Data {
            status: status @ (Status::Ok | Status::PreAuth),
            outcome,
        } => Ok((
            code_capabilities(outcome.code.as_ref()),
            *status == Status::PreAuth,
        )),
        Response::Data {
            status: Status::Bye,
            outcome,
        } => Err(bye(outcome.information.as_deref().unwrap_or_default())),
        _ => Err(Error::Protocol("no IMAP greeting")),
    });
    match greeting.await {
        // Something else than IMAP speaks there.
        Err(Error::LimitExceeded(_)) => Err(Error::Protocol("no IMAP greeting")),
        Err(error) => Err(error),
        Ok(greeting) => greeting,
    }
}

fn code_capabilities(code: Option<&ResponseCode<'_>>) -> Option<Capabilities> {
    match code {
        Some(ResponseCode::Capabilities(list)) => Some(Capabilities::from_response(list)),
        _ => None,
    }
}

/// Capabilities from any response that has them.
fn note_capabilities(response: &Response<'_>, known: &mut Option<Capabilities>) {
    let found = match response {
        Response::Capabilities(list) => Some(Capabilities::from_response(list)),
        Response::Data { outcome, .. } | Response::Done { outcome, .. } => {
            code_capabilities(outcome.code.as_ref())
        }
        _ => None,
    };
    *known = found.or(*known);
}

async fn ask(channel: &mut Channel) -> Result<Capabilities, Error> {
    let mut known = None;
    let ending = channel
        .run(Command::new("CAPABILITY"), Limits::SMALL, &mut |response| {
            note_capabilities(response, &mut known)
        })
        .await?;
    if !ending.ok {
        return Err(refused(&ending).unwrap_or(Error::Protocol("CAPABILITY refused")));
    }
    known.ok_or(Error::Protocol("no capabilities"))
}

async fn start_tls(
    mut channel: Channel,
    known: Option<Capabilities>,
    endpoint: &Endpoint,
    settings: &Settings,
) -> Result<Channel, Error> {
    let known = match known {
        Some(known) => known,
        None => ask(&mut channel).await?,
    };
    if !known.has(Capability::StartTls) {
        return Err(Error::Tls(TlsFault::NotOffered));
    }
    let ending = channel
        .run(Command::new("STARTTLS"), Limits::SMALL, &mut |_| {})
        .await?;
    if !ending.ok {
        return Err(refused(&ending).unwrap_or(Error::Tls(TlsFault::NotOffered)));
    }
    // Whoever can write into the plain stream would have his words taken for the server's.
    if channel.guard()?.has_buffered() {
        return Err(Error::Tls(TlsFault::Injection));
    }
    let (stream, _, tag) = channel
        .into_parts()
        .ok_or(Error::Disconnected { bye: false })?;
    let stream = secure(stream, endpoint, settings).await?;
    Ok(Channel::new(stream, Vec::new(), Some(tag)))
}

/// Logs in; returns the capabilities if the answer has them.
async fn log_in(
    channel: &mut Channel,
    before: Capabilities,
    login: &Login,
) -> Result<Option<Capabilities>, Error> {
    let user = login.user.as_bytes();
    let command = if before.has(Capability::AuthPlain) {
        let mut plain = Zeroizing::new(Vec::with_capacity(user.len() + login.secret.len() + 2));
        plain.push(0);
        plain.extend_from_slice(user);
        plain.push(0);
        plain.extend_from_slice(&login.secret);
        let encoded = Zeroizing::new(STANDARD.encode(&*plain));
        if before.has(Capability::SaslIr) {
            Command::new("AUTHENTICATE PLAIN ").text(&encoded)
        } else {
            Command::new("AUTHENTICATE PLAIN").then(Zeroizing::new(encoded.as_bytes().to_vec()))
        }
    } else if before.has(Capability::LoginDisabled) {
        return Err(Error::LoginDisabled);
    } else {
        Command::new("LOGIN")
            .string(user, before)?
            .string(&login.secret, before)?
    };
    let mut known = None;
    let ending = channel
        .run(command, Limits::SMALL, &mut |response| {
            note_capabilities(response, &mut known)
        })
        .await?;
    if ending.ok {
        Ok(known)
    } else {
        Err(login_refused(&ending))
    }
}

fn login_refused(ending: &Ending) -> Error {
    let text = ending.text.to_ascii_lowercase();
    let code = ending.code();
    let not_now = match code.as_str() {
        // The code names what is wrong, and only clear words say otherwise.
        "AUTHENTICATIONFAILED" | "AUTHORIZATIONFAILED" | "EXPIRED" => {
            CLEARLY_LATER.iter().any(|known| text.contains(known))
        }
        _ => later(&ending.text),
    };
    if not_now {
        return Error::Throttled;
    }
    match code.as_str() {
        "EXPIRED" => Error::BadCredentials(LoginFault::Expired),
        "AUTHORIZATIONFAILED" => Error::BadCredentials(LoginFault::NotAuthorized),
        "WEBALERT" => Error::BadCredentials(LoginFault::AppPassword),
        "PRIVACYREQUIRED" => Error::LoginDisabled,
        // Gmail; Yahoo and iCloud say the same with other words.
        _ if [
            "application-specific password",
            "app password",
            "app-specific",
            "via your web browser",
        ]
        .iter()
        .any(|known| text.contains(known)) =>
        {
            Error::BadCredentials(LoginFault::AppPassword)
        }
        // Exchange Online where basic authentication is off.
        _ if text.contains("basic authentication is disabled")
            || text.contains("basicauthblocked") =>
        {
            Error::LoginDisabled
        }
        "AUTHENTICATIONFAILED" => Error::BadCredentials(LoginFault::Refused),
        _ if ending.bad => Error::Protocol("login not understood"),
        _ => Error::BadCredentials(LoginFault::Refused),
    }
}

/// Texts with which servers say "not now", in lower case. Each was seen, or stands in a server's source.
const LATER: [&str; 19] = [
    "too many",                        // Gmail, Dovecot, Courier, Yahoo
    "maximum number of connections",   // Dovecot mail_max_userip_connections
    "exceeded command or bandwidth",   // Gmail
    "rate limit",                      // Yahoo, Fastmail, Zoho
    "ratelimit",                       //
    "try again later", // Dovecot, Cyrus, Yahoo; without "later" it may be said of a typing error
    "temporar",        // Dovecot "Temporary authentication failure", Exchange
    "server unavailable", // Exchange Online "Server Unavailable. 15"
    "authenticated but not connected", // Exchange Online
    "server busy",     // iCloud
    "service not available", //
    "service unavailable", //
    "internal error",  // Dovecot, with a time for the log
    "internal server error", // Yahoo "AUTHENTICATE Server error"
    "server error",    // Yahoo
    "connection limit", // Cyrus
    "system error",    // Gmail "System Error (Failure)"
    "backend",         // Exchange, proxies
    "lookup failed",   // Gmail "Lookup failed"
];

/// Those of them that mean so even beside a code that says that the password is wrong.
const CLEARLY_LATER: [&str; 5] = ["too many", "temporar", "rate limit", "ratelimit", "later"];

/// When a NO is not about the command but about the moment.
pub(crate) fn refused(ending: &Ending) -> Option<Error> {
    later(&ending.text).then_some(Error::Throttled)
}

fn later(text: &str) -> bool {
    if matches!(
        code_of(text).as_str(),
        "UNAVAILABLE" | "LIMIT" | "INUSE" | "SERVERBUG" | "CONTACTADMIN" | "OVERQUOTA"
    ) {
        return true;
    }
    let text = text.to_ascii_lowercase();
    LATER.iter().any(|known| text.contains(known))
}

/// What a BYE means.
pub(crate) fn bye(text: &str) -> Error {
    if later(text) {
        Error::Throttled
    } else {
        Error::Disconnected { bye: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn class_of(text: &str) -> Class {
        login_refused(&Ending {
            ok: false,
            bad: false,
            text: text.to_owned(),
        })
        .class()
    }

    #[test]
    fn refusals_of_known_servers_are_told_apart() {
        for (text, class) in [
            (
                "[AUTHENTICATIONFAILED] Authentication failed.",
                Class::BadCredentials,
            ),
            (
                "[AUTHENTICATIONFAILED] Invalid credentials (Failure)",
                Class::BadCredentials,
            ),
            (
                "[AUTHENTICATIONFAILED] Invalid credentials, please try again",
                Class::BadCredentials,
            ),
            (
                "[AUTHENTICATIONFAILED] The backend does not know this user",
                Class::BadCredentials,
            ),
            (
                "[AUTHORIZATIONFAILED] No access: choose another user and try again",
                Class::BadCredentials,
            ),
            (
                "[EXPIRED] Set a new password and try again",
                Class::BadCredentials,
            ),
            (
                "Wrong user or password, please try again.",
                Class::BadCredentials,
            ),
            (
                "[AUTHENTICATIONFAILED] Too many failed logins",
                Class::Throttled,
            ),
            ("[AUTHENTICATIONFAILED] Temporary failure", Class::Throttled),
            (
                "[SERVERBUG] LOGIN Server error - Please try again later",
                Class::Throttled,
            ),
            ("LOGIN failed.", Class::BadCredentials),
            ("", Class::BadCredentials),
            (
                "[ALERT] Application-specific password required (Failure)",
                Class::BadCredentials,
            ),
            (
                "[ALERT] Too many simultaneous connections. (Failure)",
                Class::Throttled,
            ),
            (
                "[UNAVAILABLE] Temporary authentication failure. [host:2026-01-01]",
                Class::Throttled,
            ),
            (
                "[UNAVAILABLE] Maximum number of connections from user+IP exceeded",
                Class::Throttled,
            ),
            ("[INUSE] Too many", Class::Throttled),
            ("[LIMIT] x", Class::Throttled),
            ("User is authenticated but not connected.", Class::Throttled),
            ("Server Unavailable. 15", Class::Throttled),
            (
                "[PRIVACYREQUIRED] Plaintext authentication disallowed",
                Class::LoginDisabled,
            ),
            (
                "[EXPIRED] That password isn't valid any more",
                Class::BadCredentials,
            ),
        ] {
            assert_eq!(class_of(text), class, "{text}");
        }
        assert_eq!(
            bye("[ALERT] too many connections").class(),
            Class::Throttled
        );
        assert_eq!(bye("Logging out").class(), Class::Disconnected);
    }
}
