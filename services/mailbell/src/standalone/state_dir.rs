//! The directory in which a standalone installation lives: its secrets, its NATS data, and the lock that keeps a second one out.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use mailbell_runtime::{ExitCode, secretfile};
use zeroize::Zeroizing;

use super::identity::IDENTITY;

/// The file that whoever uses the directory holds locked.
const LOCK: &str = "lock";

/// How often the lock is tried while only others who look are in the way.
const TRIES: u32 = 1000;

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
    /// It was there before, and is no place for secrets.
    #[error(
        "{path} {why}: name a directory of your own with --state-dir, or say that it is only yours: chmod 700 {path}",
        path = path.display()
    )]
    Open {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
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
            Self::Open { .. } => ExitCode::CannotCreate,
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
    /// [`StateDirError::InUse`] if another process has it, [`StateDirError::Open`] if it is no place for secrets; else what the
    /// system said.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateDirError::Io { path, source }
        };
        make(path).map_err(io(path))?;
        let path = path.canonicalize().map_err(io(path))?;
        if let Some(why) = unfit(&path).map_err(io(&path))? {
            return Err(StateDirError::Open { path, why });
        }
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        match take(&lock) {
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

    /// Whether a process has the directory now. Its files alone do not say so: who is killed leaves them behind.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub fn is_in_use(path: &Path) -> io::Result<bool> {
        let lock = match File::open(path.join(LOCK)) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
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

/// Makes the directory, for its owner alone. One that is there with nothing in it is as good as just made; no other is changed:
/// it may be everybody's, such as `/tmp`.
fn make(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    let is_ours = fs::metadata(path)?.uid() == own_uid();
    if is_ours && fs::read_dir(path)?.next().is_none() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Why no secret belongs in it.
fn unfit(path: &Path) -> io::Result<Option<&'static str>> {
    let meta = fs::metadata(path)?;
    if meta.uid() != own_uid() {
        return Ok(Some("belongs to another user"));
    }
    // An installation that lives here already goes on: its secrets are for their owner alone by themselves, and `doctor` says
    // what is wrong. But what others may write to may hold anything.
    let lives_here = fs::metadata(path.join(IDENTITY)).is_ok_and(|meta| meta.uid() == own_uid());
    let open = if lives_here { 0o022 } else { 0o077 };
    Ok((meta.mode() & open != 0).then_some("is open to other users"))
}

/// Takes the lock. A command holds it shared for the moment in which it looks whether a process has the directory: that is no
/// reason to be refused.
fn take(lock: &File) -> Result<(), TryLockError> {
    for _ in 0..TRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock)
                if lock.try_lock_shared().is_ok() && lock.unlock().is_ok() =>
            {
                std::thread::yield_now();
            }
            taken => return taken,
        }
    }
    Err(TryLockError::WouldBlock)
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_and_told_by_whom() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        assert!(!StateDir::is_in_use(&path).unwrap());
        let first = StateDir::open(&path).unwrap();
        assert!(StateDir::is_in_use(&path).unwrap());
        let error = StateDir::open(&path).unwrap_err();
        assert!(
            error.to_string().contains(&std::process::id().to_string()),
            "{error}"
        );
        assert_eq!(error.exit_code(), ExitCode::Unavailable);
        drop(first);
        assert!(!StateDir::is_in_use(&path).unwrap());
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn what_others_look_into_is_neither_used_nor_changed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("shared");
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let is = || fs::metadata(&path).unwrap().mode() & 0o7777;
        fs::create_dir(&path).unwrap();
        fs::write(path.join("of somebody"), "x").unwrap();
        for open in [0o1777, 0o755, 0o750] {
            mode(open);
            let error = StateDir::open(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 700"), "{error}");
            assert_eq!(error.exit_code(), ExitCode::CannotCreate);
            assert_eq!(is(), open);
            assert!(!path.join(LOCK).exists());
        }
        // An installation that lives there goes on, unless others may change it.
        fs::write(path.join(IDENTITY), "{}").unwrap();
        mode(0o755);
        drop(StateDir::open(&path).unwrap());
        assert_eq!(is(), 0o755);
        mode(0o770);
        assert!(matches!(
            StateDir::open(&path),
            Err(StateDirError::Open { .. })
        ));
        // Empty, it is as good as just made.
        let empty = temp.path().join("empty");
        fs::create_dir(&empty).unwrap();
        StateDir::open(&empty).unwrap();
        assert_eq!(fs::metadata(&empty).unwrap().mode() & 0o777, 0o700);
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
