//! The file with the keys that open stored passwords, and whether it is the one of this installation.
//!
//! A ring that is made in the wrong place (another directory, another machine) opens nothing that is stored, and new passwords
//! would be sealed to it: the watchers that have the right one could not open those. So none is made, and none is used, beside
//! keys that are offered already and of which it has none.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use mailbell_bus::{Bus, state::Change};
use mailbell_core::seal::KeyRing;
use mailbell_runtime::{ExitCode, secretfile};

use crate::failure::Failure;

/// What to do about a ring that opens nothing.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct RingArgs {
    /// Go on with a key ring that opens none of the stored passwords: they must all be set anew then
    #[arg(long, env = "MAILBELL_REPLACE_KEY_RING")]
    pub replace_key_ring: bool,
}

/// A key ring that was read, or would be made.
#[derive(Debug)]
pub struct RingFile {
    path: PathBuf,
    ring: KeyRing,
    /// It is in memory only.
    is_new: bool,
}

impl RingFile {
    /// Reads it; if there is no file, makes one with one key, and writes nothing yet.
    ///
    /// # Errors
    /// When others can read the file, or it is damaged.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let is_new = !path.try_exists().unwrap_or(true);
        let ring = if is_new {
            let mut ring = KeyRing::default();
            ring.add(jiff::Timestamp::now().as_millisecond(), &mut rand::rng())
                .ok_or_else(|| Failure::internal("no key could be made"))?;
            ring
        } else {
            stored(path)?
        };
        Ok(Self {
            path: path.to_owned(),
            ring,
            is_new,
        })
    }

    /// Compares it with the keys that are offered, and keeps it if it is new.
    ///
    /// # Errors
    /// When keys are offered and none of them is in it, unless that is meant; when it cannot be written.
    pub async fn settle(self, bus: &Bus, args: RingArgs) -> Result<KeyRing, Failure> {
        let offered = offered(bus).await?;
        self.keep(&offered, args)
    }

    fn keep(self, offered: &BTreeSet<String>, args: RingArgs) -> Result<KeyRing, Failure> {
        let Self {
            path,
            mut ring,
            mut is_new,
        } = self;
        // Watchers of a new installation that start at once find no file, and one of them makes it: before it offers its key, so
        // whoever sees that key here finds the file.
        if is_new && path.try_exists().unwrap_or(false) {
            (ring, is_new) = (stored(&path)?, false);
        }
        let known = |id: &String| ring.public_keys().any(|key| key.id() == id);
        if !offered.is_empty() && !offered.iter().any(known) {
            let file = path.display();
            if !args.replace_key_ring {
                let what = if is_new {
                    format!("there is no key ring {file}")
                } else {
                    format!("the key ring {file} has none of these keys")
                };
                return Err(Failure::new(
                    ExitCode::Data,
                    format!(
                        "stored passwords are sealed to keys that are offered already, and {what}: name or restore the one \
                         that was used until now; if it is lost, start once with --replace-key-ring and set all passwords anew"
                    ),
                ));
            }
            tracing::warn!(%file, "this key ring opens no stored password: they must be set anew");
        }
        if is_new && !secretfile::create(&path, ring.to_text().as_bytes())? {
            // Another one was faster. Nothing was offered when it looked either, so there is nothing more to compare.
            return stored(&path);
        }
        Ok(ring)
    }
}

/// The ring in this file.
fn stored(path: &Path) -> Result<KeyRing, Failure> {
    let damaged = |why: String| Failure::new(ExitCode::Data, format!("{}: {why}", path.display()));
    let ring = KeyRing::from_text(&secretfile::read_text(path)?)
        .map_err(|error| damaged(error.to_string()))?;
    if ring.newest().is_none() {
        return Err(damaged("it holds no key".to_owned()));
    }
    Ok(ring)
}

/// The ids of the keys that are offered to seal passwords to. Waits until they can be read.
///
/// # Errors
/// When the bus was closed.
pub async fn offered(bus: &Bus) -> Result<BTreeSet<String>, Failure> {
    let mut watch = bus.sealing_keys().watch();
    let mut offered = BTreeSet::new();
    while let Some(change) = watch.next().await {
        match change {
            Change::Put { key, .. } => {
                offered.insert(key);
            }
            Change::Removed { key } => {
                offered.remove(&key);
            }
            Change::Restarted { .. } => offered.clear(),
            Change::Loaded { .. } => return Ok(offered),
        }
    }
    Err(Failure::unavailable("the connection to NATS was closed"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MEANT: RingArgs = RingArgs {
        replace_key_ring: true,
    };

    fn ids(ring: &KeyRing) -> BTreeSet<String> {
        ring.public_keys().map(|key| key.id().to_owned()).collect()
    }

    fn none() -> BTreeSet<String> {
        BTreeSet::new()
    }

    #[test]
    fn a_ring_is_made_once_and_only_where_no_other_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.ring");
        let read = || RingFile::read(&file).unwrap();
        let other = BTreeSet::from(["other".to_owned()]);
        let refused = read().keep(&other, RingArgs::default()).unwrap_err();
        assert!(refused.message.contains("there is no key ring"));
        assert!(!file.exists());
        let made = ids(&read().keep(&none(), RingArgs::default()).unwrap());
        assert_eq!(ids(&read().keep(&made, RingArgs::default()).unwrap()), made);
        // After the bucket was lost, or with an older key offered beside ours.
        assert!(read().keep(&none(), RingArgs::default()).is_ok());
        let mut both = made.clone();
        both.extend(other.clone());
        assert!(read().keep(&both, RingArgs::default()).is_ok());
        let refused = read().keep(&other, RingArgs::default()).unwrap_err();
        assert!(refused.message.contains("--replace-key-ring"));
        assert_eq!(refused.code, ExitCode::Data);
        assert_eq!(ids(&read().keep(&other, MEANT).unwrap()), made);
        fs::remove_file(&file).unwrap();
        let replaced = ids(&read().keep(&made, MEANT).unwrap());
        assert_ne!(replaced, made);
        assert_eq!(ids(&read().keep(&none(), MEANT).unwrap()), replaced);
    }

    #[test]
    fn of_watchers_that_start_at_once_one_makes_the_ring_and_all_use_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.ring");
        // None of them finds a file.
        let [first, second, third] = [(); 3].map(|()| RingFile::read(&file).unwrap());
        let made = ids(&first.keep(&none(), RingArgs::default()).unwrap());
        assert_eq!(
            ids(&second.keep(&none(), RingArgs::default()).unwrap()),
            made
        );
        // By now the first one has offered its key.
        assert_eq!(ids(&third.keep(&made, RingArgs::default()).unwrap()), made);
    }

    #[test]
    fn a_damaged_ring_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.ring");
        secretfile::write(&file, b"nonsense").unwrap();
        assert_eq!(RingFile::read(&file).unwrap_err().code, ExitCode::Data);
    }
}
