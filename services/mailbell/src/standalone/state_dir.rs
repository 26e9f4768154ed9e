//! The directory in which a standalone installation lives: its secrets, its NATS data, and the lock that keeps a second one out.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use mailbell_runtime::{ExitCode, secretfile};
use zeroize::Zeroizing;

/// Why the directory cannot be used. Each text is one line for the person who started it.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another process has it.
    #[error(
        "{path} is in use by process {pid}: stop that one first, or give this one a directory of its own with --state-dir",
        path = path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who holds the lock, as that process wrote it; `?` if it did not come to that.
        pid: String,
    },
    /// It cannot be made, or not be used.
    #[error("cannot use the state directory {path}: {source}", path = path.display())]
    Io {
        /// The directory or the file in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A secret in it cannot be read or written.
    #[error(transparent)]
    Secret(#[from] mailbell_runtime::Error),
}

impl StateDirError {
    /// What the process ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::InUse { .. } => ExitCode::Unavailable,
            Self::Io { .. } => ExitCode::CannotCreate,
            Self::Secret(error) => error.exit_code(),
        }
    }
}

/// A locked state directory. The lock goes with the value, and with the process however it ends.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Where a user's installation lives: `$XDG_STATE_HOME/mailbell`, else `~/.local/state/mailbell`.
    #[must_use]
    pub fn default_path() -> Option<PathBuf> {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|base| base.join("mailbell"))
    }

    /// Makes the directory if it isn't there (mode 0700) and locks it.
    ///
    /// # Errors
    /// [`StateDirError::InUse`] if another process has it; else what the system said.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateDirError::Io { path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io(path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io(path))?;
        let path = path.canonicalize().map_err(io(path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = (&lock).take(20).read_to_string(&mut pid);
                let pid = pid.trim();
                let pid = if pid.is_empty() { "?" } else { pid }.to_owned();
                return Err(StateDirError::InUse { path, pid });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StateDirError::Io {
                    path: lock_path,
                    source,
                });
            }
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(io(&lock_path))?;
        Ok(Self { path, _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    #[must_use]
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The secret of this name; made by `make` and stored with mode 0600 if it isn't there yet.
    ///
    /// # Errors
    /// If others can read it, or it cannot be read or written.
    pub fn secret(
        &self,
        name: &str,
        make: impl FnOnce() -> Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, StateDirError> {
        let path = self.join(name);
        if path.try_exists().unwrap_or(true) {
            return Ok(secretfile::read(&path)?);
        }
        let secret = make();
        secretfile::write(&path, &secret)?;
        Ok(secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_and_told_by_whom() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        assert_eq!(error.exit_code(), ExitCode::Unavailable);
        drop(first);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn secrets_are_made_once_and_for_the_owner_only() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("state")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(state.path()), 0o700);
        let made = state
            .secret("key", || Zeroizing::new(b"one".to_vec()))
            .unwrap();
        let read = state
            .secret("key", || Zeroizing::new(b"two".to_vec()))
            .unwrap();
        assert_eq!(
            (made.as_slice(), read.as_slice()),
            (&b"one"[..], &b"one"[..])
        );
        assert_eq!(mode(&state.join("key")), 0o600);
        fs::set_permissions(state.join("key"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(state.secret("key", || Zeroizing::new(Vec::new())).is_err());
    }
}
