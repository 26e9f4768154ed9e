//! What can go wrong, in one table: a stable word for programs, one sentence for a person, and what it means for a session.

use mailbell_bus::{BusError, Code, Refusal};
use mailbell_core::{
    pace::Outcome,
    seal::SealError,
    session::{Failure, Pause, Severity},
};
use mailbell_imap as imap;
use mailbell_proto::bus::v1::OwnerError;

/// Every code that a watcher gives to a status, an `AccountState` or a refused request, with what it means. For docs/protocol.md.
pub const CODES: &[(&str, &str)] = &[
    ("starting", "about to log in for the first time"),
    ("watching", "new mail is told at once, or at the next poll"),
    (Pause::Owner.code(), "paused by its owner"),
    (
        Pause::Tenant.code(),
        "whoever runs Mailbell lets nobody connect for the account's tenant now",
    ),
    (
        Pause::Provider.code(),
        "whoever runs Mailbell lets nobody connect to the account's mail provider now",
    ),
    ("removed", "the account was removed"),
    ("dns", "the mail server's host name is not known"),
    (
        "refused",
        "nothing answers at the mail server's host and port",
    ),
    (
        "connect-timeout",
        "no connection to the mail server in time",
    ),
    (
        "local-limit",
        "the machine that runs Mailbell has no open file or local port left",
    ),
    ("tls", "no TLS with the mail server; the sentence says why"),
    (
        "plaintext-not-allowed",
        "the account asks for plain text and the operator does not allow it",
    ),
    (
        "login-disabled",
        "the mail server takes no password on this connection",
    ),
    (
        "bad-credentials",
        "the mail server refuses user name or password",
    ),
    ("throttled", "the mail server asks to come back later"),
    (
        HOST_UNAVAILABLE,
        "the mail server fails for many accounts: it is probed, and this account waits for that",
    ),
    (
        QUARANTINED,
        "the account's session ended by itself again and again: it begins anew after a delay",
    ),
    (
        "no-such-folder",
        "a watched folder does not exist or cannot be opened",
    ),
    (
        "protocol",
        "the mail server does something else than the protocol says",
    ),
    (
        "limit-exceeded",
        "the mail server sends more than an honest one would",
    ),
    ("timeout", "the mail server does not answer in time"),
    ("disconnected", "the mail server closed the connection"),
    (
        "invalid-input",
        "user name, password or folder cannot be sent to a mail server",
    ),
    (CREDENTIAL_MISSING, "no password is stored for the account"),
    (
        SEALING_KEY_MISSING,
        "the key that opens the stored password is not in the watchers' key ring",
    ),
    (
        CREDENTIAL_MISMATCH,
        "the stored password was sealed for other settings",
    ),
    (
        CREDENTIAL_NEWER,
        "the stored password is of a newer release",
    ),
    (
        CREDENTIAL_UNAVAILABLE,
        "the stored password could not be read from NATS",
    ),
    (
        CHECKPOINT_UNREADABLE,
        "what was stored of the mailbox cannot be read: the account is not watched",
    ),
    (
        CHECKPOINT_NEWER,
        "what was stored of the mailbox is of a newer release: the account is not watched",
    ),
    (STORAGE_FULL, "NATS has no room for new events"),
    (
        LOG_UNAVAILABLE,
        "the log is not there, or has no leader at the moment",
    ),
    (LOG_DENIED, "the watcher's NATS user may not append"),
    (LOG_REFUSES, "the log refuses an event"),
    (
        CHECKPOINT_NOT_STORED,
        "what is known of the mailbox cannot be stored",
    ),
    (BUSY, "too much is asked of the owner at once: try again"),
    (
        NOT_CONNECTED,
        "the account's connection is not there at the moment: try again",
    ),
    (NOT_OWNER, "another watcher owns the account now: try again"),
    (NO_SUCH_ACCOUNT, "the account does not exist"),
    (
        GENERATION_CHANGED,
        "the folder was made anew under a listing: begin with the first page",
    ),
    (
        BAD_REQUEST,
        "a request that this release does not understand",
    ),
];

pub(crate) const HOST_UNAVAILABLE: &str = "host-unavailable";
pub(crate) const QUARANTINED: &str = "quarantined";
pub(crate) const CREDENTIAL_MISSING: &str = "credential-missing";
pub(crate) const SEALING_KEY_MISSING: &str = "sealing-key-missing";
pub(crate) const CREDENTIAL_MISMATCH: &str = "credential-mismatch";
pub(crate) const CREDENTIAL_NEWER: &str = "credential-newer";
pub(crate) const CREDENTIAL_UNAVAILABLE: &str = "credential-unavailable";
pub(crate) const CHECKPOINT_UNREADABLE: &str = "checkpoint-unreadable";
pub(crate) const CHECKPOINT_NEWER: &str = "checkpoint-newer";
pub(crate) const STORAGE_FULL: &str = "storage-full";
pub(crate) const LOG_UNAVAILABLE: &str = "log-unavailable";
pub(crate) const LOG_DENIED: &str = "log-denied";
pub(crate) const LOG_REFUSES: &str = "log-refuses";
pub(crate) const CHECKPOINT_NOT_STORED: &str = "checkpoint-not-stored";
pub(crate) const BUSY: &str = "busy";
pub(crate) const NOT_CONNECTED: &str = "not-connected";
pub(crate) const NOT_OWNER: &str = "not-owner";
pub(crate) const NO_SUCH_ACCOUNT: &str = "no-such-account";
pub(crate) const GENERATION_CHANGED: &str = "generation-changed";
pub(crate) const BAD_REQUEST: &str = "bad-request";

/// What an error of the mail connection means; `folder` is the one that was asked for.
pub(crate) fn of_mail(error: &imap::Error, folder: &str) -> Failure {
    let class = error.class();
    Failure {
        code: class.as_str(),
        sentence: match class {
            imap::Class::NoSuchFolder => {
                let folder = mailbell_core::event::cut(folder, 200);
                format!(
                    "The folder \"{folder}\" does not exist or can't be opened: check its name."
                )
            }
            _ => error.user_sentence().to_owned(),
        },
        severity: match class {
            imap::Class::NoSuchFolder => Severity::NoSuchFolder,
            _ if error.is_permanent() => Severity::Permanent,
            _ => Severity::Transient,
        },
    }
}

/// What a connection that failed says of its host. Whatever is about one account is an answer of a host that works.
pub(crate) fn outcome_of(error: &imap::Error) -> Outcome {
    use imap::Class;
    match error.class() {
        Class::Dns | Class::Refused | Class::ConnectTimeout | Class::Tls => Outcome::Unreachable,
        Class::Timeout | Class::Disconnected | Class::Protocol => Outcome::Failing,
        Class::Throttled => Outcome::Throttled,
        Class::BadCredentials | Class::LoginDisabled => Outcome::Answered,
        // This machine's limit, the account's settings, or a server that talks too much to one of many.
        _ => Outcome::Unknown,
    }
}

/// The account waits, since its host fails for many.
pub(crate) fn host_unavailable() -> Failure {
    Failure {
        code: HOST_UNAVAILABLE,
        sentence: "The mail server does not work for many accounts at the moment: nothing to do, it is tried again.".to_owned(),
        severity: Severity::Transient,
    }
}

/// Nobody is to connect now.
pub(crate) fn paused(pause: Pause) -> Failure {
    Failure {
        code: pause.code(),
        sentence: advice_of(pause).to_owned(),
        severity: Severity::Transient,
    }
}

/// For whoever asks for something that takes a connection.
fn advice_of(pause: Pause) -> &'static str {
    match pause {
        Pause::Owner => "The account is paused: resume it first.",
        Pause::Tenant => {
            "Whoever runs Mailbell lets nobody connect for this tenant now: try again later."
        }
        Pause::Provider => {
            "Whoever runs Mailbell lets nobody connect to this mail provider now: try again later."
        }
    }
}

/// The account's session crashes again and again.
pub(crate) fn quarantined() -> Failure {
    Failure {
        code: QUARANTINED,
        sentence: "Watching this mailbox failed because of an error in Mailbell: it is tried again with growing delay; if this stays, see the watcher's log and report it.".to_owned(),
        severity: Severity::Transient,
    }
}

/// What a credential that cannot be opened means.
pub(crate) fn of_seal(error: &SealError) -> Failure {
    let code = match error {
        SealError::MissingKey(_) => SEALING_KEY_MISSING,
        SealError::Schema(_) => CREDENTIAL_NEWER,
        _ => CREDENTIAL_MISMATCH,
    };
    Failure {
        code,
        sentence: sentence(&error.to_string()),
        severity: Severity::Permanent,
    }
}

/// There is no credential.
pub(crate) fn no_credential() -> Failure {
    Failure {
        code: CREDENTIAL_MISSING,
        sentence: "No password is stored for this account: set it with `mailbell account update`."
            .to_owned(),
        severity: Severity::Permanent,
    }
}

/// The credential could not be read.
pub(crate) fn credential_unavailable() -> Failure {
    Failure {
        code: CREDENTIAL_UNAVAILABLE,
        sentence:
            "The stored password could not be read from NATS: nothing to do, it is tried again."
                .to_owned(),
        severity: Severity::Transient,
    }
}

/// What a checkpoint means that cannot be read; `None` if it is only not to be had now.
pub(crate) fn of_checkpoint(error: &BusError) -> Option<Failure> {
    let (code, sentence) = match error {
        BusError::NewerRecord(_) => (
            CHECKPOINT_NEWER,
            "What is known of this mailbox was stored by a newer release: upgrade the watchers.",
        ),
        error if error.code() == Code::Data => (
            CHECKPOINT_UNREADABLE,
            "What is known of this mailbox cannot be read: remove the account and add it again.",
        ),
        _ => return None,
    };
    Some(Failure {
        code,
        sentence: sentence.to_owned(),
        severity: Severity::Permanent,
    })
}

/// The connection that an effect needs is not there. Never seen unless session and driver disagree, and mended by a new one.
pub(crate) fn no_connection() -> Failure {
    of_mail(&imap::Error::Disconnected { bye: false }, "")
}

/// Code and sentence of an append that the log refused.
pub(crate) fn of_refusal(class: Refusal) -> (&'static str, String) {
    let (code, sentence) = match class {
        Refusal::StorageFull => (
            STORAGE_FULL,
            "NATS has no room for new events: give it more storage or lower the logs' limits.",
        ),
        Refusal::NoStream => (
            LOG_UNAVAILABLE,
            "The log is not there or has no leader at the moment: it is tried again.",
        ),
        Refusal::Denied => (
            LOG_DENIED,
            "The watcher's NATS user may not append to the log: check its permissions.",
        ),
        Refusal::TooLarge | Refusal::Other => (
            LOG_REFUSES,
            "The log refuses an event: see the watcher's log; it is tried again.",
        ),
    };
    (code, sentence.to_owned())
}

/// Code and sentence of a checkpoint that could not be stored.
pub(crate) fn of_store(error: &BusError) -> (&'static str, String) {
    if error.code() == Code::Full {
        return of_refusal(Refusal::StorageFull);
    }
    let sentence = match error.code() {
        Code::Denied => {
            "The watcher's NATS user may not store what is known of the mailbox: check its permissions."
        }
        _ => "What is known of the mailbox cannot be stored in NATS: it is tried again.",
    };
    (CHECKPOINT_NOT_STORED, sentence.to_owned())
}

/// As the answer to a request. What passes may be asked again.
pub(crate) fn refuse(failure: &Failure) -> OwnerError {
    OwnerError {
        code: failure.code.to_owned(),
        sentence: failure.sentence.clone(),
        retry: failure.severity == Severity::Transient,
    }
}

/// A request that cannot be answered now, or never.
pub(crate) fn refused(code: &'static str) -> OwnerError {
    let pause = Pause::ALL.into_iter().find(|pause| pause.code() == code);
    let of_pause = pause.map(|pause| (advice_of(pause), false));
    let (sentence, retry) = of_pause.unwrap_or(match code {
        BUSY => ("Too much is asked at once: try again.", true),
        NOT_CONNECTED => (
            "The account's connection to its mail server is not there at the moment: try again.",
            true,
        ),
        NOT_OWNER => ("The account changes hands: try again.", true),
        GENERATION_CHANGED => (
            "The folder was made anew on the mail server: begin with the first page.",
            false,
        ),
        NO_SUCH_ACCOUNT => ("There is no such account.", false),
        "no-such-folder" => ("The account has no such folder.", false),
        _ => ("This request is not understood by this release.", false),
    });
    OwnerError {
        code: code.to_owned(),
        sentence: sentence.to_owned(),
        retry,
    }
}

/// An error's text as a sentence: with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_and_once() {
        let mut codes: Vec<_> = CODES.iter().map(|(code, _)| *code).collect();
        codes.sort_unstable();
        let all = codes.len();
        codes.dedup();
        assert_eq!(codes.len(), all);
        let io = std::io::ErrorKind::ConnectionRefused;
        for error in [
            imap::Error::Dns,
            imap::Error::Refused(io),
            imap::Error::ConnectTimeout,
            imap::Error::LocalLimit,
            imap::Error::Tls(imap::TlsFault::WrongName),
            imap::Error::PlaintextNotAllowed,
            imap::Error::LoginDisabled,
            imap::Error::BadCredentials(imap::LoginFault::Refused),
            imap::Error::Throttled,
            imap::Error::NoSuchFolder,
            imap::Error::Protocol("x"),
            imap::Error::LimitExceeded(imap::GuardError::Answer),
            imap::Error::Timeout("x"),
            imap::Error::Disconnected { bye: false },
            imap::Error::InvalidInput("x"),
        ] {
            let failure = of_mail(&error, "Archive");
            assert!(codes.contains(&failure.code), "{}", failure.code);
        }
    }

    #[test]
    fn one_account_is_told_apart_from_its_host() {
        let io = std::io::ErrorKind::ConnectionRefused;
        for (error, outcome) in [
            (imap::Error::Dns, Outcome::Unreachable),
            (imap::Error::Refused(io), Outcome::Unreachable),
            (imap::Error::ConnectTimeout, Outcome::Unreachable),
            (
                imap::Error::Tls(imap::TlsFault::Expired),
                Outcome::Unreachable,
            ),
            (imap::Error::Timeout("login"), Outcome::Failing),
            (imap::Error::Throttled, Outcome::Throttled),
            (
                imap::Error::BadCredentials(imap::LoginFault::Refused),
                Outcome::Answered,
            ),
            (imap::Error::LocalLimit, Outcome::Unknown),
            (imap::Error::PlaintextNotAllowed, Outcome::Unknown),
        ] {
            assert_eq!(outcome_of(&error), outcome, "{error}");
        }
    }

    #[test]
    fn passing_and_lasting_failures_are_told_apart() {
        let severity = |error: &imap::Error| of_mail(error, "").severity;
        assert_eq!(severity(&imap::Error::Throttled), Severity::Transient);
        assert_eq!(severity(&imap::Error::Dns), Severity::Transient);
        assert_eq!(severity(&imap::Error::NoSuchFolder), Severity::NoSuchFolder);
        let refused = imap::Error::BadCredentials(imap::LoginFault::Refused);
        assert_eq!(severity(&refused), Severity::Permanent);
        let missing = of_seal(&SealError::MissingKey("ab".to_owned()));
        assert_eq!(missing.code, "sealing-key-missing");
        assert!(
            missing.sentence.starts_with("The key ab"),
            "{}",
            missing.sentence
        );
        assert_eq!(
            of_seal(&SealError::NotTheseSettings).code,
            "credential-mismatch"
        );
        assert!(refuse(&credential_unavailable()).retry);
        assert!(!refuse(&missing).retry);
    }
}
