//! What a client keeps between two runs, written and read as a whole.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{directory::Directory, facts::StoredFacts, pending::StoredPending};

/// The version that this release writes, and the only one that it reads.
const VERSION: u32 = 1;

/// A client's state: where to resume, what the app has taken, and what is still to be listed. Only together are they true.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredState {
    version: u32,
    #[serde(with = "hex")]
    pub(super) cursor: Bytes,
    #[serde(with = "hex")]
    pub(super) digest: Bytes,
    /// Until when the stream was whole, in milliseconds since the epoch.
    pub(super) as_of_ms: i64,
    pub(super) facts: StoredFacts,
    pub(super) directory: Directory,
    pub(super) pending: Vec<StoredPending>,
}

/// These bytes are no state of this release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a state of this release of the client")]
pub struct DecodeError;

impl StoredState {
    pub(super) fn new() -> Self {
        Self {
            version: VERSION,
            ..Self::default()
        }
    }

    /// The state of a client that has lost its own: it lists everything, so that nothing is missing, and only messages newer
    /// than `as_of_ms` (milliseconds since the epoch) alert.
    #[must_use]
    pub fn lost(as_of_ms: i64) -> Self {
        Self {
            as_of_ms,
            ..Self::new()
        }
    }

    /// The resume point; empty before the first one.
    #[must_use]
    pub fn cursor(&self) -> &Bytes {
        &self.cursor
    }

    /// How many listings are still to be made.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// As bytes (JSON), for a store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From bytes.
    ///
    /// # Errors
    /// Whatever is not what [`StoredState::encode`] of this release writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let state: Self = serde_json::from_slice(bytes).map_err(|_| DecodeError)?;
        (state.version == VERSION)
            .then_some(state)
            .ok_or(DecodeError)
    }
}

impl fmt::Debug for StoredState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredState")
            .field("cursor_bytes", &self.cursor.len())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

mod hex {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        let digits: Option<Vec<u8>> = text
            .chars()
            .map(|digit| {
                digit
                    .to_digit(16)
                    .and_then(|value| u8::try_from(value).ok())
            })
            .collect();
        let digits = digits.ok_or_else(|| D::Error::custom("not hexadecimal"))?;
        if digits.len() % 2 != 0 {
            return Err(D::Error::custom("half a byte"));
        }
        Ok(digits
            .chunks_exact(2)
            .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_is_refused() {
        let state = StoredState {
            cursor: Bytes::from_static(&[0, 1, 0xfe, 0xff]),
            ..StoredState::lost(5)
        };
        assert_eq!(StoredState::decode(&state.encode()), Ok(state.clone()));
        for wrong in [&b""[..], b"{}", b"[1]", b"\xff\xfe"] {
            assert_eq!(StoredState::decode(wrong), Err(DecodeError));
        }
        let text = String::from_utf8(state.encode()).unwrap();
        for (from, to) in [
            ("0001fe", "0001f"),
            ("0001fe", "0001zz"),
            ("\"version\":1", "\"version\":2"),
        ] {
            assert_eq!(
                StoredState::decode(text.replace(from, to).as_bytes()),
                Err(DecodeError)
            );
        }
    }
}
