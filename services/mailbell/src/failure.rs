//! How a command fails: one line for a person, a number for a script.

use std::{fmt, io::Write as _, process};

use mailbell_runtime::ExitCode;
use tonic::Code;

use crate::terminal::clean_line;

/// Why a command did not do what was asked for.
#[derive(Debug)]
pub struct Failure {
    /// What the process ends with.
    pub code: ExitCode,
    /// One line.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// With this exit code.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// 64: what was typed makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// 69: something that is needed is not there.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Unavailable, message)
    }

    /// 70: a bug.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ExitCode::Internal, message)
    }

    /// Says it on standard error.
    #[must_use]
    pub fn report(&self) -> process::ExitCode {
        // Nobody is left to tell if this fails.
        let _ = writeln!(std::io::stderr(), "mailbell: {}", clean_line(&self.message));
        self.code.into()
    }
}

impl From<mailbell_runtime::Error> for Failure {
    fn from(error: mailbell_runtime::Error) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl From<mailbell_bus::BusError> for Failure {
    fn from(error: mailbell_bus::BusError) -> Self {
        use mailbell_bus::Code;
        let code = match error.code() {
            Code::Options => ExitCode::Usage,
            Code::Unavailable | Code::Unknown | Code::Closed => ExitCode::Unavailable,
            Code::Denied => ExitCode::Permission,
            Code::Full | Code::TooLarge | Code::Refused => ExitCode::CannotCreate,
            Code::Data | Code::Installation => ExitCode::Data,
        };
        Self::new(code, error.to_string())
    }
}

impl From<mailbell_admin::Error> for Failure {
    fn from(error: mailbell_admin::Error) -> Self {
        match error {
            mailbell_admin::Error::Bus(error) => error.into(),
            error => Self::new(ExitCode::Data, error.to_string()),
        }
    }
}

impl From<mailbell_core::seal::SealError> for Failure {
    fn from(error: mailbell_core::seal::SealError) -> Self {
        Self::new(ExitCode::Data, error.to_string())
    }
}

/// What the admin API said.
impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => ExitCode::Usage,
            Code::NotFound => ExitCode::NoInput,
            Code::AlreadyExists => ExitCode::CannotCreate,
            Code::FailedPrecondition => check_failed(&status),
            Code::Unauthenticated | Code::PermissionDenied => ExitCode::Permission,
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::ResourceExhausted => ExitCode::TempFail,
            _ => ExitCode::Internal,
        };
        let message = match status.message() {
            "" => format!("the admin API answers {:?}", status.code()),
            message => message.to_owned(),
        };
        Self::new(code, message)
    }
}

/// A login was tried and failed: whether it was refused, or the server could not be reached.
fn check_failed(status: &tonic::Status) -> ExitCode {
    let word = status
        .metadata()
        .get(mailbell_admin::CHECK_CODE)
        .and_then(|word| word.to_str().ok());
    match word {
        Some("bad-credentials" | "login-disabled") => ExitCode::Permission,
        Some(
            "dns" | "refused" | "connect-timeout" | "local-limit" | "tls" | "timeout" | "throttled"
            | "disconnected",
        ) => ExitCode::Unavailable,
        _ => ExitCode::Data,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    #[test]
    fn a_script_can_tell_what_to_do() {
        let code = |status: Status| Failure::from(status).code;
        assert_eq!(code(Status::unavailable("x")), ExitCode::TempFail);
        assert_eq!(code(Status::not_found("x")), ExitCode::NoInput);
        assert_eq!(code(Status::unauthenticated("x")), ExitCode::Permission);
        assert_eq!(code(Status::invalid_argument("x")), ExitCode::Usage);
        let failed = |word: &str| {
            let mut status = Status::failed_precondition("x");
            status
                .metadata_mut()
                .insert(mailbell_admin::CHECK_CODE, word.parse().unwrap());
            code(status)
        };
        assert_eq!(failed("bad-credentials"), ExitCode::Permission);
        assert_eq!(failed("dns"), ExitCode::Unavailable);
        assert_eq!(failed("no-such-folder"), ExitCode::Data);
    }
}
