//! What is read of a message, and its bounds.

mod charset;
pub(crate) mod headers;
mod html;
pub(crate) mod preview;
pub(crate) mod structure;

/// Most senders that are kept.
const FROM_LIMIT: usize = 2;
/// Most recipients that are kept.
const TO_LIMIT: usize = 4;
/// Most bytes of a display name.
const NAME_LIMIT: usize = 120;
/// Most bytes of an address (RFC 5321).
const ADDRESS_LIMIT: usize = 254;
/// Most bytes of a subject: a line as RFC 5322 allows it.
const SUBJECT_LIMIT: usize = 998;
/// Most bytes of a message id, thread reference or content id.
const ID_LIMIT: usize = 250;
/// Most flags, and bytes of one.
pub(crate) const FLAGS_LIMIT: (usize, usize) = (16, 32);

/// Characters of a preview by default, 4 bytes each at most.
pub(crate) const PREVIEW_CHARS: usize = 256;

/// All bounds together leave room for keys and times in an event of 8 KiB.
const _: () = assert!(
    (FROM_LIMIT + TO_LIMIT) * (NAME_LIMIT + ADDRESS_LIMIT)
        + SUBJECT_LIMIT
        + 3 * ID_LIMIT
        + FLAGS_LIMIT.0 * FLAGS_LIMIT.1
        + 4 * PREVIEW_CHARS
        <= 6 << 10
);

/// How much of messages is read, and so asked of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// What is needed to tell of a message, and by which copies are known: flags, time, and an id of the server, or size and
    /// Message-ID. A listing asks for UIDs alone.
    Key,
    /// Also the header fields, and whether there are attachments: nothing of the text.
    Headers,
    /// Also the begin of the text.
    #[default]
    Preview,
}

/// A sender or recipient.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// The display name, at most 120 bytes; empty without.
    pub name: String,
    /// The address, at most 254 bytes; empty without.
    pub address: String,
}

/// What is told of a message: 6 KiB at most, since every field is cut to a bound.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Its UID in the folder.
    pub uid: u32,
    /// Its flags as the server writes them, 16 at most, `\Seen` and the other system flags first.
    pub flags: Vec<String>,
    /// When the server got it, in milliseconds of Unix time.
    pub internal_date: Option<i64>,
    /// Its size in bytes.
    pub size: Option<u32>,
    /// Its modification sequence, when the server keeps one.
    pub modseq: Option<u64>,
    /// Who wrote it, 2 at most.
    pub from: Vec<Address>,
    /// To whom, 4 at most.
    pub to: Vec<Address>,
    /// The subject, at most 998 bytes.
    pub subject: String,
    /// The Message-ID without brackets, at most 250 bytes.
    pub message_id: Option<String>,
    /// What messages of one conversation have in common: the server's thread id, else the first Message-ID of the
    /// conversation as the headers tell it. At most 250 bytes.
    pub thread: Option<String>,
    /// The Date header in milliseconds of Unix time.
    pub date: Option<i64>,
    /// Whether a part of it is meant to be kept as a file.
    pub has_attachments: bool,
    /// An id of the server that is the same for copies in other folders (EMAILID, X-GM-MSGID).
    pub content_id: Option<String>,
    /// The begin of the text, white space folded.
    pub preview: String,
}

impl Message {
    /// One of which no more is known than that it is there.
    pub(crate) fn named(uid: u32) -> Self {
        Self {
            uid,
            ..Self::default()
        }
    }

    /// Whether the message has this flag.
    #[must_use]
    pub fn has_flag(&self, flag: &str) -> bool {
        self.flags
            .iter()
            .any(|known| known.eq_ignore_ascii_case(flag))
    }

    /// Whether somebody has read it.
    #[must_use]
    pub fn is_seen(&self) -> bool {
        self.has_flag("\\Seen")
    }
}

/// Names the message by its UID only: the rest is mail.
impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("uid", &self.uid)
            .finish_non_exhaustive()
    }
}

/// The begin of a text, at most so many bytes, cut between characters.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

/// A line as it may be shown: white space and control characters folded to single spaces, none at the ends.
pub(crate) fn fold(text: &str, most_bytes: usize) -> String {
    let mut line = String::with_capacity(text.len().min(most_bytes));
    for word in text.split(|c: char| c.is_whitespace() || c.is_control() || is_invisible(c)) {
        if word.is_empty() {
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() >= most_bytes {
            break;
        }
    }
    cut(&line, most_bytes).trim_end().to_owned()
}

/// Characters that senders of newsletters fill the preview with, and those that turn the direction of a line.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{2064}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}
