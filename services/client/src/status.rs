//! What a client does about a status: the table of docs/protocol.md.

use std::{error::Error as _, time::Duration};

use tonic::{Code, Status};

use crate::{
    error::Error,
    event::{DisconnectReason, UnlistableReason},
    session::ListFailure,
};

/// After a status that says that there is no room, at least so long.
const OVERLOADED: Duration = Duration::from_secs(1);

/// Of a server's words so many characters are passed on.
const MOST_CAUSE: usize = 200;

/// The metadata by which a server says when to try again, in milliseconds (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// A server that wants us to wait longer is not believed.
pub(crate) const MOST_WAIT: Duration = Duration::from_secs(300);

fn pushback(status: &Status) -> Duration {
    let wait = status.metadata().get(PUSHBACK);
    let wait = wait.and_then(|wait| wait.to_str().ok()?.parse().ok());
    wait.map_or(Duration::ZERO, Duration::from_millis)
        .min(MOST_WAIT)
}

/// What follows the end of a stream.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Reconnect with back-off, but not sooner than this.
    Reconnect(DisconnectReason, Duration),
    /// Get a new token first.
    Renew(String),
    /// A person or a programmer must act.
    Fatal(Error),
}

/// Judges the status of a stream.
pub(crate) fn of_stream(status: &Status) -> Verdict {
    match by_code(status) {
        Verdict::Reconnect(reason, floor) => {
            Verdict::Reconnect(reason, floor.max(pushback(status)))
        }
        verdict => verdict,
    }
}

fn by_code(status: &Status) -> Verdict {
    let message = status.message().to_owned();
    match status.code() {
        Code::Ok => Verdict::Reconnect(DisconnectReason::Ended, Duration::ZERO),
        Code::ResourceExhausted | Code::Aborted => {
            Verdict::Reconnect(DisconnectReason::Overloaded, OVERLOADED)
        }
        Code::Unauthenticated => Verdict::Renew(message),
        Code::PermissionDenied => Verdict::Fatal(Error::PermissionDenied(message)),
        Code::NotFound => Verdict::Fatal(Error::NotFound(message)),
        Code::InvalidArgument => Verdict::Fatal(Error::InvalidArgument(message)),
        Code::Unimplemented => Verdict::Fatal(Error::Unimplemented(message)),
        Code::DeadlineExceeded => Verdict::Reconnect(DisconnectReason::Silent, Duration::ZERO),
        // Broken connections show as any of these.
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled => {
            Verdict::Reconnect(DisconnectReason::Unreachable(cause(status)), Duration::ZERO)
        }
        Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange | Code::DataLoss => {
            Verdict::Reconnect(DisconnectReason::Protocol, OVERLOADED)
        }
    }
}

/// What is at the bottom of it: the errors above the last one only say that there is one.
fn cause(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut below = status.source();
    while let Some(error) = below {
        words = error.to_string();
        below = error.source();
    }
    // A server may say anything.
    let mut words: String = words
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MOST_CAUSE)
        .collect();
    if words.trim().is_empty() {
        words = status.code().description().to_owned();
    }
    words
}

/// Judges the status of a listing. ABORTED and UNAUTHENTICATED are answered where the listing is made; what gets here is tried
/// again later.
pub(crate) fn of_listing(status: &Status) -> ListFailure {
    match status.code() {
        Code::NotFound => ListFailure::Never(UnlistableReason::NotFound),
        Code::PermissionDenied => ListFailure::Never(UnlistableReason::PermissionDenied),
        Code::InvalidArgument | Code::Unimplemented => {
            ListFailure::Never(UnlistableReason::Refused)
        }
        _ => match pushback(status) {
            Duration::ZERO => ListFailure::Retry,
            wait => ListFailure::RetryAfter(wait),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for code in [Code::Ok, Code::Unavailable, Code::Unknown, Code::Internal] {
            let verdict = of_stream(&Status::new(code, ""));
            assert!(
                matches!(verdict, Verdict::Reconnect(_, Duration::ZERO)),
                "{code:?}"
            );
        }
        for code in [Code::ResourceExhausted, Code::Aborted] {
            let verdict = of_stream(&Status::new(code, ""));
            assert!(
                matches!(verdict, Verdict::Reconnect(_, floor) if floor >= Duration::from_secs(1))
            );
        }
        assert!(matches!(
            of_stream(&Status::unauthenticated("")),
            Verdict::Renew(_)
        ));
        for code in [
            Code::PermissionDenied,
            Code::NotFound,
            Code::InvalidArgument,
            Code::Unimplemented,
        ] {
            assert!(
                matches!(of_stream(&Status::new(code, "")), Verdict::Fatal(_)),
                "{code:?}"
            );
            assert!(matches!(
                of_listing(&Status::new(code, "")),
                ListFailure::Never(_)
            ));
        }
        let told = |message: &str| match of_stream(&Status::unavailable(message)) {
            Verdict::Reconnect(DisconnectReason::Unreachable(cause), _) => cause,
            other => panic!("{other:?}"),
        };
        assert_eq!(told("NATS is\naway"), "NATS is away");
        assert_eq!(told(&"x".repeat(1000)).len(), MOST_CAUSE);
        assert!(!told(" ").trim().is_empty());
        assert_eq!(of_listing(&Status::unavailable("")), ListFailure::Retry);
        let mut busy = Status::unavailable("");
        busy.metadata_mut().insert(PUSHBACK, 2000.into());
        let wait = Duration::from_secs(2);
        assert_eq!(of_listing(&busy), ListFailure::RetryAfter(wait));
        assert!(matches!(of_stream(&busy), Verdict::Reconnect(_, floor) if floor == wait));
    }
}
