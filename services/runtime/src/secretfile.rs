//! Files that hold secrets: written atomically with mode 0600, read only if nobody else can read them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::Error;

/// No key, token or password of ours comes near it; a wrong path (a disk image, `/dev/zero`) does.
const MAX_BYTES: u64 = 1024 * 1024;

/// Writes the file so that a reader, or a power cut, finds the old content or the new one, never a part.
///
/// # Errors
/// [`Error::Write`].
pub fn write(path: &Path, secret: &[u8]) -> Result<(), Error> {
    place(path, secret, Temp::rename).map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}

/// As [`write()`], but only if there is no such file; `false`: there is one, and it stays as it is. Of several processes that try at
/// once, one makes it.
///
/// # Errors
/// [`Error::Write`].
pub fn create(path: &Path, secret: &[u8]) -> Result<bool, Error> {
    match place(path, secret, Temp::link) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(Error::Write {
            path: path.to_owned(),
            source,
        }),
    }
}

fn place(
    path: &Path,
    secret: &[u8],
    name: impl FnOnce(Temp, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let temp = Temp::create(dir, path)?;
    temp.fill(secret)?;
    name(temp, path)?;
    // The new name is durable only once the directory is.
    File::open(dir)?.sync_all()
}

/// Reads a secret; the memory is wiped when the value is dropped.
///
/// # Errors
/// [`Error::SecretExposed`] when others can read the file, [`Error::TooLarge`] or [`Error::Read`].
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    // Asked of the open file: its rights are those of what is read, whatever the path becomes meanwhile.
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )));
    }
    let mode = meta.mode() & 0o7777;
    if exposed(mode, meta.uid(), rustix::process::geteuid().as_raw()) {
        return Err(Error::SecretExposed {
            path: path.to_owned(),
            mode,
        });
    }
    let too_large = || Error::TooLarge {
        path: path.to_owned(),
        limit: MAX_BYTES,
    };
    if meta.len() > MAX_BYTES {
        return Err(too_large());
    }
    // Room for all of it from the start: a vector that grows leaves unwiped copies behind.
    let room = usize::try_from(meta.len()).unwrap_or(0).saturating_add(1);
    let mut secret = Zeroizing::new(Vec::with_capacity(room));
    (&file)
        .take(meta.len())
        .read_to_end(&mut secret)
        .map_err(failed)?;
    Ok(secret)
}

/// Reads a secret that is text, without the line end that an editor leaves behind.
///
/// # Errors
/// As [`read`]; also when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<Zeroizing<String>, Error> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::Read {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"),
    })?;
    Ok(Zeroizing::new(
        text.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

/// Whether somebody else can read it, or put another one in its place.
///
/// One exception: Kubernetes mounts a Secret for a non-root container as owned by root and readable by the pod's group
/// (`fsGroup`). There the group is the pod's own, and root can read everything anyway.
fn exposed(mode: u32, owner: u32, me: u32) -> bool {
    let mounted = owner == 0 && me != 0 && mode & 0o037 == 0;
    mode & 0o077 != 0 && !mounted
}

/// A file beside the final one, removed unless it was renamed.
struct Temp {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Temp {
    fn create(dir: &Path, target: &Path) -> io::Result<Self> {
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
        let path = dir.join(format!(
            ".{}.{:016x}.tmp",
            name.display(),
            rand::random::<u64>()
        ));
        // `create_new` follows no link that somebody has put there; the mode holds from the first instant, the umask can only lessen it.
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self {
            path,
            file,
            renamed: false,
        })
    }

    fn fill(&self, secret: &[u8]) -> io::Result<()> {
        (&self.file).write_all(secret)?;
        self.file.sync_all()
    }

    fn rename(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.renamed = true;
        Ok(())
    }

    /// Unlike a rename, a link replaces nothing. The temporary name goes with the value.
    fn link(self, target: &Path) -> io::Result<()> {
        fs::hard_link(&self.path, target)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing to do about a failure: the caller already has the error that led here.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::ExitCode;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn written_with_mode_0600_and_read_back() {
        let dir = dir();
        let path = dir.path().join("key");
        write(&path, b"first").unwrap();
        write(&path, b"second\n").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().as_slice(), b"second\n");
        assert_eq!(read_text(&path).unwrap().as_str(), "second");
        let names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names, ["key"], "no temporary file is left");
    }

    #[test]
    fn created_once() {
        let dir = dir();
        let path = dir.path().join("key");
        assert!(create(&path, b"first").unwrap());
        assert!(!create(&path, b"second").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().as_slice(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let nowhere = dir.path().join("none").join("key");
        assert!(matches!(create(&nowhere, b"x"), Err(Error::Write { .. })));
    }

    #[test]
    fn a_world_readable_secret_is_refused_with_what_to_do() {
        let dir = dir();
        let path = dir.path().join("key");
        write(&path, b"secret").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Permission);
        let text = error.to_string();
        assert!(
            text.contains("0644") && text.contains("chmod 600"),
            "{text}"
        );
        assert!(!text.contains("secret\""));
    }

    #[test]
    fn who_may_read_it() {
        let (root, me) = (0, 1000);
        assert!(!exposed(0o600, me, me));
        assert!(!exposed(0o400, me, me));
        assert!(exposed(0o640, me, me));
        assert!(exposed(0o604, me, me));
        assert!(exposed(0o620, me, me));
        // As Kubernetes mounts a Secret.
        assert!(!exposed(0o440, root, me));
        assert!(!exposed(0o640, root, me));
        assert!(exposed(0o644, root, me));
        assert!(exposed(0o660, root, me));
        assert!(exposed(0o640, root, root));
    }

    #[test]
    fn what_is_no_secret_file_is_refused() {
        let dir = dir();
        let missing = read(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.exit_code(), ExitCode::NoInput);
        assert!(matches!(read(dir.path()), Err(Error::Read { .. })));
        let large = dir.path().join("large");
        write(&large, b"").unwrap();
        OpenOptions::new()
            .write(true)
            .open(&large)
            .unwrap()
            .set_len(MAX_BYTES + 1)
            .unwrap();
        assert!(matches!(read(&large), Err(Error::TooLarge { .. })));
        let binary = dir.path().join("binary");
        write(&binary, &[0xff]).unwrap();
        assert!(matches!(read_text(&binary), Err(Error::Read { .. })));
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_rest() {
        let dir = dir();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), b"x").unwrap();
        let error = write(&path, b"secret").unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::CannotCreate);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(path.join("inside").exists());
    }
}
