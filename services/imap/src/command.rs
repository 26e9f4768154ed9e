//! Commands as they go over the wire.

use zeroize::Zeroizing;

use crate::capability::{Capabilities, Capability};
use crate::error::Error;

/// Longest user name, secret or folder name. LITERAL- allows 4096 without asking.
const STRING_LIMIT: usize = 4096;

/// A command without its tag. Wiped from memory when dropped, since it may hold a secret.
#[derive(Default)]
pub(crate) struct Command {
    /// What is sent before each wait for a continuation, and at last.
    parts: Vec<Zeroizing<Vec<u8>>>,
    current: Zeroizing<Vec<u8>>,
}

impl Command {
    /// A command that begins with this text.
    pub(crate) fn new(text: &str) -> Self {
        Self {
            parts: Vec::new(),
            current: Zeroizing::new(text.as_bytes().to_vec()),
        }
    }

    /// Adds text as it is. Never anything that came from outside.
    pub(crate) fn text(mut self, text: &str) -> Self {
        self.add(text.as_bytes());
        self
    }

    /// Adds bytes. What has to grow is copied and wiped by hand: `Vec` would leave a secret behind in freed memory.
    fn add(&mut self, bytes: &[u8]) {
        let size = self.current.len() + bytes.len();
        if size > self.current.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * size));
            larger.extend_from_slice(&self.current);
            self.current = larger;
        }
        self.current.extend_from_slice(bytes);
    }

    /// Adds a space and a string from outside: quoted if that is possible, else a literal.
    pub(crate) fn string(
        mut self,
        string: &[u8],
        capabilities: Capabilities,
    ) -> Result<Self, Error> {
        check(string)?;
        self.add(b" ");
        if string.iter().all(|byte| matches!(byte, 0x20..0x7f)) {
            self.add(b"\"");
            for byte in string {
                if matches!(byte, b'"' | b'\\') {
                    self.add(b"\\");
                }
                self.add(&[*byte]);
            }
            self.add(b"\"");
            return Ok(self);
        }
        let at_once =
            capabilities.has(Capability::LiteralPlus) || capabilities.has(Capability::LiteralMinus);
        let plus = if at_once { "+" } else { "" };
        self.add(format!("{{{}{plus}}}\r\n", string.len()).as_bytes());
        if !at_once {
            let part = std::mem::take(&mut self.current);
            self.parts.push(part);
        }
        self.add(string);
        Ok(self)
    }

    /// Sends what follows only after the server's continuation.
    pub(crate) fn then(mut self, part: Zeroizing<Vec<u8>>) -> Self {
        self.add(b"\r\n");
        let first = std::mem::replace(&mut self.current, part);
        self.parts.push(first);
        self
    }

    /// What is sent before each continuation, and the end.
    pub(crate) fn into_parts(mut self) -> Vec<Zeroizing<Vec<u8>>> {
        self.add(b"\r\n");
        self.parts.push(self.current);
        self.parts
    }
}

/// Refuses what no command can carry.
pub(crate) fn check(string: &[u8]) -> Result<(), Error> {
    if string.len() > STRING_LIMIT {
        return Err(Error::InvalidInput("longer than 4096 bytes"));
    }
    if string.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
        return Err(Error::InvalidInput("NUL or line break"));
    }
    Ok(())
}

/// A set of UIDs as commands name it, in ascending order with ranges.
pub(crate) fn uid_set(uids: &[u32]) -> String {
    use std::fmt::Write as _;
    let mut sorted = uids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut set = String::new();
    let mut rest = sorted.as_slice();
    while let Some((first, _)) = rest.split_first() {
        let run = rest
            .iter()
            .zip(0_u32..)
            .take_while(|(uid, step)| **uid - first == *step)
            .count();
        let last = rest.get(run - 1).unwrap_or(first);
        if !set.is_empty() {
            set.push(',');
        }
        let _ = if last == first {
            write!(set, "{first}")
        } else {
            write!(set, "{first}:{last}")
        };
        rest = rest.get(run..).unwrap_or_default();
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(command: Command) -> Vec<String> {
        command
            .into_parts()
            .iter()
            .map(|part| String::from_utf8_lossy(part).into_owned())
            .collect()
    }

    #[test]
    fn strings_are_quoted_or_literals() {
        let none = Capabilities::default();
        let plus = Capabilities::from_response(&[imap_proto::Capability::Atom("LITERAL+".into())]);
        assert_eq!(
            sent(Command::new("X").string(br#"a"b\c"#, none).unwrap()),
            ["X \"a\\\"b\\\\c\"\r\n"]
        );
        assert_eq!(
            sent(Command::new("X").string("ä".as_bytes(), none).unwrap()),
            ["X {2}\r\n", "ä\r\n"]
        );
        assert_eq!(
            sent(Command::new("X").string("ä".as_bytes(), plus).unwrap()),
            ["X {2+}\r\nä\r\n"]
        );
        for bad in [&b"a\rb"[..], b"a\nb", b"a\0b", &[b'x'; 5000]] {
            assert!(matches!(
                Command::new("X").string(bad, plus),
                Err(Error::InvalidInput(_))
            ));
        }
    }

    #[test]
    fn a_command_grows_without_losing_a_byte() {
        let secret = "s".repeat(1000);
        let long = Command::new("LOGIN")
            .string(b"u", Capabilities::default())
            .and_then(|command| command.string(secret.as_bytes(), Capabilities::default()))
            .unwrap();
        assert_eq!(sent(long), [format!("LOGIN \"u\" \"{secret}\"\r\n")]);
        let later = Command::new("X").then(Zeroizing::new(secret.clone().into_bytes()));
        assert_eq!(sent(later), ["X\r\n".to_owned(), secret + "\r\n"]);
    }

    #[test]
    fn uid_sets_have_ranges() {
        assert_eq!(
            uid_set(&[7, 3, 4, 5, 9, 9, u32::MAX, u32::MAX - 1]),
            "3:5,7,9,4294967294:4294967295"
        );
        assert_eq!(uid_set(&[1]), "1");
    }
}
