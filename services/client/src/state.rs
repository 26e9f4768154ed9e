//! Where a client keeps its state between two runs.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use crate::session::StoredState;

/// Why a state cannot be read or kept.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Another client uses it: two would tell each other's facts to nobody.
    #[error("{0} is in use by another client; give each client a file of its own")]
    InUse(PathBuf),
    /// The file system refuses.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// An app's own store refuses.
    #[error("the state store: {0}")]
    Other(String),
}

/// A place for a [`StoredState`]. Called from a thread that may block, one call at a time.
pub trait StateStore: Send + Sync + 'static {
    /// What was stored last; `None`: nothing was ever stored here.
    ///
    /// # Errors
    /// The client's stream ends with it.
    fn load(&self) -> Result<Option<StoredState>, StateError>;

    /// Replaces what is stored. Either the new state is kept as a whole, or the old one stays.
    ///
    /// # Errors
    /// It is tried again later; until then a crash means that more is told again.
    fn store(&self, state: &StoredState) -> Result<(), StateError>;
}

/// Keeps the state as long as the process lives: whoever starts anew hears of what comes from then on. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryState(Arc<Mutex<Option<StoredState>>>);

impl StateStore for MemoryState {
    fn load(&self) -> Result<Option<StoredState>, StateError> {
        Ok(self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    fn store(&self, state: &StoredState) -> Result<(), StateError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state.clone());
        Ok(())
    }
}

/// Keeps the state in a file that only its owner can read. A second client on the same file is refused, by a lock on a file
/// beside it that stays as long as this value lives.
#[derive(Debug)]
pub struct FileState {
    path: PathBuf,
    _lock: File,
}

impl FileState {
    /// Takes a file, which need not exist yet; its directory must.
    ///
    /// # Errors
    /// [`StateError::InUse`], or what the file system says.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        let beside = with_suffix(&path, "lock");
        let lock = private(&beside, false).map_err(|source| failed(&beside, source))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StateError::InUse(path)),
            Err(TryLockError::Error(source)) => Err(failed(&beside, source)),
        }
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let new = with_suffix(&self.path, "new");
        let mut file = private(&new, true)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        // The name is kept by the directory.
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    }
}

impl StateStore for FileState {
    fn load(&self) -> Result<Option<StoredState>, StateError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&self.path, source)),
        };
        if let Ok(state) = StoredState::decode(&bytes) {
            return Ok(Some(state));
        }
        // Nothing is lost by it: everything is listed anew. A copy stays for whoever wants to know what became of it.
        let aside = with_suffix(&self.path, "damaged");
        tracing::warn!(copied_to = %aside.display(), "the state file is damaged or of another release; everything is listed anew");
        let written = fs::metadata(&self.path).and_then(|of| of.modified());
        let as_of_ms = written
            .ok()
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .unwrap_or_default();
        let lost = StoredState::lost(as_of_ms);
        // Who finds no file begins now, so there must be one at each moment, also if this process dies before its first `Hello`.
        fs::copy(&self.path, &aside).map_err(|source| failed(&aside, source))?;
        self.store(&lost)?;
        Ok(Some(lost))
    }

    fn store(&self, state: &StoredState) -> Result<(), StateError> {
        self.replace(&state.encode())
            .map_err(|source| failed(&self.path, source))
    }
}

fn failed(path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// Opens for writing, readable by the owner only.
fn private(path: &Path, empty: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(empty);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_only_the_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let file = FileState::open(&path).unwrap();
        assert!(file.load().unwrap().is_none());
        file.store(&StoredState::lost(1)).unwrap();
        file.store(&StoredState::lost(2)).unwrap();
        assert_eq!(file.load().unwrap(), Some(StoredState::lost(2)));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(!with_suffix(&path, "new").exists());
    }

    #[test]
    fn a_second_client_is_refused_until_the_first_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let first = FileState::open(&path).unwrap();
        let second = FileState::open(&path);
        assert!(matches!(second, Err(StateError::InUse(of)) if of == path));
        drop(first);
        FileState::open(&path).unwrap();
    }

    #[test]
    fn a_damaged_file_means_listing_everything() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        fs::write(&path, "{\"version\":").unwrap();
        let file = FileState::open(&path).unwrap();
        let state = file.load().unwrap().unwrap();
        assert!(state.cursor().is_empty());
        let aside = fs::read(with_suffix(&path, "damaged")).unwrap();
        assert_eq!(aside, b"{\"version\":");
        // It is still so for whoever dies before it has stored anything.
        drop(file);
        let file = FileState::open(&path).unwrap();
        assert_eq!(file.load().unwrap(), Some(state));
    }

    #[test]
    fn memory_is_shared_by_clones() {
        let memory = MemoryState::default();
        memory.clone().store(&StoredState::lost(3)).unwrap();
        assert_eq!(memory.load().unwrap(), Some(StoredState::lost(3)));
    }
}
