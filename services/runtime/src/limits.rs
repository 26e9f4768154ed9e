//! The limits that the system sets.

use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Error;

/// A limit of the system; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// In force now.
    pub soft: Option<u64>,
    /// How far this process may raise it.
    pub hard: Option<u64>,
}

/// How many files and sockets this process may have open.
///
/// # Errors
/// When `/proc/self/limits` cannot be read or is not understood.
pub fn open_files() -> Result<Limit, Error> {
    read_open_files("self")
}

/// How many files and sockets another process may have open.
///
/// # Errors
/// When its limits in `/proc` cannot be read (it is gone, or another user's) or are not understood.
pub fn open_files_of(pid: u32) -> Result<Limit, Error> {
    read_open_files(&pid.to_string())
}

fn read_open_files(process: &str) -> Result<Limit, Error> {
    let text = fs::read_to_string(format!("/proc/{process}/limits")).map_err(Error::Limits)?;
    parse_open_files(&text).ok_or_else(|| {
        Error::Limits(io::Error::new(
            io::ErrorKind::InvalidData,
            "no line of open files in the limits of /proc",
        ))
    })
}

/// Raises the limit of open files to what the system lets us have: one mailbox and one device cost a descriptor each,
/// and the usual soft limit of 1024 is kept low only for programs that use `select(2)`.
///
/// # Errors
/// When the system refuses it.
pub fn raise_open_files() -> Result<Limit, Error> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        setrlimit(Resource::Nofile, raised).map_err(|errno| Error::Limits(errno.into()))?;
    }
    open_files()
}

fn parse_open_files(text: &str) -> Option<Limit> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_ascii_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(Limit {
        soft: next()?,
        hard: next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             1                    2                    processes \n\
                    Max open files            1024                 unlimited            files     \n";
        assert_eq!(
            parse_open_files(text),
            Some(Limit {
                soft: Some(1024),
                hard: None
            })
        );
        assert_eq!(parse_open_files("Max open files  some many files"), None);
        assert_eq!(parse_open_files(""), None);
    }

    #[test]
    fn raising_makes_the_soft_limit_the_hard_one() {
        let limit = raise_open_files().unwrap();
        assert_eq!(limit.soft, limit.hard);
        assert_eq!(open_files().unwrap(), limit);
        assert_eq!(open_files_of(std::process::id()).unwrap(), limit);
    }
}
