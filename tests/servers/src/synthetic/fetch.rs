//! FETCH: what is asked of which messages, and the answer. No I/O.

use std::time::SystemTime;

use jiff::{Timestamp, tz::TimeZone};

use super::mailbox::Stored;

/// A set of numbers as commands name it: first and last of each range, `u32::MAX` for `*`.
pub(super) fn parse_set(text: &str) -> Option<Vec<(u32, u32)>> {
    let number = |text: &str| match text {
        "*" => Some(u32::MAX),
        digits => digits.parse().ok(),
    };
    text.split(',')
        .map(|range| match range.split_once(':') {
            Some((first, last)) => Some((number(first)?, number(last)?)),
            None => number(range).map(|number| (number, number)),
        })
        .collect()
}

/// One thing that is asked of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Uid,
    Flags,
    InternalDate,
    Size,
    Structure,
    Section {
        /// As the answer names it, with its brackets.
        name: String,
        part: Part,
        /// First byte and most bytes.
        partial: Option<(usize, usize)>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    All,
    Header,
    /// These fields, in lower case.
    Fields(Vec<String>),
    Text,
}

/// The items of a FETCH, with or without their parentheses; `None` for what this server doesn't know.
pub(super) fn parse_items(text: &str) -> Option<Vec<Item>> {
    let mut rest = text.trim();
    if let Some(inner) = rest
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
    {
        rest = inner;
    }
    let mut items = Vec::new();
    while !rest.is_empty() {
        let (item, behind) = match rest.find(['[', ' ']) {
            Some(at) if rest.get(at..)?.starts_with('[') => section(rest.get(at + 1..)?)?,
            at => {
                let (word, behind) = rest.split_at(at.unwrap_or(rest.len()));
                (plain(word)?, behind)
            }
        };
        items.push(item);
        rest = behind.trim_start();
    }
    Some(items)
}

fn plain(word: &str) -> Option<Item> {
    Some(match word.to_ascii_uppercase().as_str() {
        "UID" => Item::Uid,
        "FLAGS" => Item::Flags,
        "INTERNALDATE" => Item::InternalDate,
        "RFC822.SIZE" => Item::Size,
        "BODYSTRUCTURE" => Item::Structure,
        _ => return None,
    })
}

/// What stands behind the opening bracket, and the rest behind it.
fn section(text: &str) -> Option<(Item, &str)> {
    let (inside, behind) = text.split_once(']')?;
    let upper = inside.to_ascii_uppercase();
    let part = match upper.as_str() {
        "" => Part::All,
        "HEADER" => Part::Header,
        "TEXT" | "1" => Part::Text,
        _ => {
            let fields = upper.strip_prefix("HEADER.FIELDS (")?.strip_suffix(')')?;
            Part::Fields(
                fields
                    .split_ascii_whitespace()
                    .map(str::to_ascii_lowercase)
                    .collect(),
            )
        }
    };
    let (partial, behind) = match behind.strip_prefix('<') {
        None => (None, behind),
        Some(range) => {
            let (range, behind) = range.split_once('>')?;
            let (first, count) = range.split_once('.')?;
            (Some((first.parse().ok()?, count.parse().ok()?)), behind)
        }
    };
    let item = Item::Section {
        name: format!("BODY[{upper}]"),
        part,
        partial,
    };
    Some((item, behind))
}

/// The answer about one message.
pub(super) fn answer(message: &Stored, items: &[Item], by_uid: bool, out: &mut Vec<u8>) {
    let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
    put(&format!("* {} FETCH (", message.sequence()));
    // UID FETCH tells it unasked.
    let implied = by_uid && !items.contains(&Item::Uid);
    let first = implied.then_some(Item::Uid);
    for (n, item) in first.iter().chain(items).enumerate() {
        if n > 0 {
            out.push(b' ');
        }
        let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
        match item {
            Item::Uid => put(&format!("UID {}", message.uid)),
            Item::Flags => put("FLAGS ()"),
            Item::InternalDate => put(&format!("INTERNALDATE \"{}\"", date(message.received))),
            Item::Size => put(&format!("RFC822.SIZE {}", message.bytes.len())),
            Item::Structure => {
                let (_, text) = split(&message.bytes);
                let lines = text.split(|byte| *byte == b'\n').count() - 1;
                put(&format!(
                    "BODYSTRUCTURE (\"TEXT\" \"PLAIN\" (\"CHARSET\" \"utf-8\") NIL NIL \"7BIT\" {} {lines} NIL NIL NIL NIL)",
                    text.len()
                ));
            }
            Item::Section {
                name,
                part,
                partial,
            } => {
                let bytes = bytes_of(&message.bytes, part);
                let (origin, bytes) = match partial {
                    None => (String::new(), bytes.as_slice()),
                    Some((first, count)) => {
                        let start = (*first).min(bytes.len());
                        let end = start.saturating_add(*count).min(bytes.len());
                        let cut = bytes.get(start..end).unwrap_or_default();
                        (format!("<{first}>"), cut)
                    }
                };
                put(&format!("{name}{origin} {{{}}}\r\n", bytes.len()));
                out.extend_from_slice(bytes);
            }
        }
    }
    out.extend_from_slice(b")\r\n");
}

fn bytes_of(message: &[u8], part: &Part) -> Vec<u8> {
    let (header, text) = split(message);
    match part {
        Part::All => message.to_vec(),
        Part::Header => header.to_vec(),
        Part::Text => text.to_vec(),
        Part::Fields(names) => {
            let mut found = Vec::new();
            let mut wanted = false;
            for line in header.split_inclusive(|byte| *byte == b'\n') {
                if line.trim_ascii().is_empty() {
                    break;
                }
                // A line that begins with white space belongs to the field above.
                if !line.starts_with(b" ") && !line.starts_with(b"\t") {
                    let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
                    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
                    wanted = names.contains(&name);
                }
                if wanted {
                    found.extend_from_slice(line);
                }
            }
            found.extend_from_slice(b"\r\n");
            found
        }
    }
}

/// Header, with the empty line that ends it, and text.
fn split(message: &[u8]) -> (&[u8], &[u8]) {
    let end = message
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map_or(message.len(), |at| at + 4);
    message.split_at_checked(end).unwrap_or((message, &[]))
}

fn date(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    time.to_zoned(TimeZone::UTC)
        .strftime("%d-%b-%Y %H:%M:%S +0000")
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MAIL: &[u8] =
        b"From: a@b\r\nSubject: one\r\n two\r\nX-Other: x\r\n\r\nhello\r\nworld\r\n";

    fn told(items: &str, by_uid: bool) -> String {
        let message = Stored {
            uid: 107,
            received: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            bytes: MAIL.into(),
        };
        let mut out = Vec::new();
        answer(&message, &parse_items(items).unwrap(), by_uid, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sets_are_read() {
        assert_eq!(parse_set("1,3:5"), Some(vec![(1, 1), (3, 5)]));
        assert_eq!(parse_set("7:*"), Some(vec![(7, u32::MAX)]));
        assert_eq!(parse_set("1:"), None);
    }

    #[test]
    fn what_is_asked_is_answered() {
        assert_eq!(told("(UID)", false), "* 7 FETCH (UID 107)\r\n");
        assert_eq!(told("FLAGS", true), "* 7 FETCH (UID 107 FLAGS ())\r\n");
        assert_eq!(
            told("(UID INTERNALDATE RFC822.SIZE)", true),
            "* 7 FETCH (UID 107 INTERNALDATE \"09-Sep-2001 01:46:40 +0000\" RFC822.SIZE 59)\r\n"
        );
        assert_eq!(
            told(
                "(BODY.PEEK[HEADER.FIELDS (SUBJECT DATE)]<0.4096> BODY.PEEK[1]<0.5>)",
                false
            ),
            "* 7 FETCH (BODY[HEADER.FIELDS (SUBJECT DATE)]<0> {22}\r\nSubject: one\r\n two\r\n\r\n BODY[1]<0> {5}\r\nhello)\r\n"
        );
        assert!(told("(BODYSTRUCTURE)", false).contains("\"7BIT\" 14 2"));
        assert!(told("BODY[]", false).contains("{59}"));
    }

    #[test]
    fn what_it_does_not_know_it_refuses() {
        for items in ["(MODSEQ)", "BODY[2]", "BODY[", "BODY[1]<0", "ENVELOPE"] {
            assert_eq!(parse_items(items), None, "{items}");
        }
    }
}
