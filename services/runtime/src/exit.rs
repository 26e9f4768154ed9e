//! Exit codes, in the terms of `sysexits.h`, so that a script or a supervisor can tell what to do.

use std::fmt;

/// Why a command ended. The numbers are a promise to scripts and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// What was asked for was done.
    Ok = 0,
    /// 64: a wrong flag, variable or configuration. Trying again unchanged cannot work.
    Usage = 64,
    /// 65: what was given to work on is damaged or not understood (a broken file, a bad certificate), or the mail server does not
    /// have it (a folder).
    Data = 65,
    /// 66: what was named does not exist (an account, a watcher, a file), or the file cannot be read.
    NoInput = 66,
    /// 69: a service that is needed is not there, or the address to listen on is taken.
    Unavailable = 69,
    /// 70: a bug in Mailbell. Please report it.
    Internal = 70,
    /// 73: something could not be created: a state directory, a file, a stream.
    CannotCreate = 73,
    /// 75: it failed for now; the same command may succeed later.
    TempFail = 75,
    /// 77: not allowed: a refused credential, or the rights of a file.
    Permission = 77,
}

impl ExitCode {
    /// All codes, for the reference of the command line.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::Usage,
        Self::Data,
        Self::NoInput,
        Self::Unavailable,
        Self::Internal,
        Self::CannotCreate,
        Self::TempFail,
        Self::Permission,
    ];

    /// The number that the process ends with.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// One line that says what the code means.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::Usage => "wrong flag, variable or configuration",
            Self::Data => "damaged or misunderstood input, or no such folder",
            Self::NoInput => {
                "what was named does not exist (an account, a watcher, a file), or the file is unreadable"
            }
            Self::Unavailable => "a needed service is not there, or an address is taken",
            Self::Internal => "a bug in Mailbell",
            Self::CannotCreate => "something could not be created",
            Self::TempFail => "failed for now, may succeed later",
            Self::Permission => "not allowed",
        }
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.code(), self.meaning())
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

impl From<ExitCode> for i32 {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_sysexits() {
        let numbers: Vec<u8> = ExitCode::ALL.iter().map(|c| c.code()).collect();
        assert_eq!(numbers, [0, 64, 65, 66, 69, 70, 73, 75, 77]);
        assert_eq!(
            ExitCode::Usage.to_string(),
            "64 (wrong flag, variable or configuration)"
        );
    }
}
