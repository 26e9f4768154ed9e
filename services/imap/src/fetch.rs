//! Messages, a page at a time. What is fetched of each has a bound, so a message of 50 MB costs as much as one of 5 KB.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use imap_proto::{AttributeValue, MessageSection, Response, SectionPath};
use tokio::time::{Instant, timeout};

use crate::command::{Command, uid_set};
use crate::connection::Connection;
use crate::error::Error;
use crate::guard::{LINE_LIMIT, Limits};
use crate::items::{Depth, FIRST_PART, HEADER_BYTES};
use crate::login::refused;
use crate::message::structure::{self, TextPart};
use crate::message::{Content, FLAGS_LIMIT, Message, cut, headers, preview};

/// Most messages of a page.
pub const PAGE_LIMIT: usize = 64;
/// Most bytes of one answer that are read and thrown away since there is more about some message than was asked for, or
/// its structure has thousands of parts. The whole of an ordinary message, so that one costs at most itself.
const DISCARD_LIMIT: usize = 16 << 20;
/// How long what was read along with a look is as good as fetched anew: flags may change meanwhile.
const AHEAD_AGE: Duration = Duration::from_secs(1);
/// As many were cut, or nearly: line ends at the end aren't counted.
const CUT_BYTES: usize = HEADER_BYTES - 4;
/// Those of them that aren't lists without end, for messages whose first bytes of all are full of one.
const SHORT_FIELDS: &str = "FROM SENDER SUBJECT DATE MESSAGE-ID IN-REPLY-TO";
/// First bytes of the references, of which the first one counts.
const REFERENCES_BYTES: usize = 2 << 10;

/// Which messages to list. Pages have 64 messages at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListQuery {
    /// The newest so many.
    Newest(usize),
    /// The oldest so many with a higher UID.
    After(u32, usize),
    /// The newest so many with a lower UID.
    Before(u32, usize),
}

/// A part of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The folder's generation.
    pub uid_validity: u32,
    /// The UID that the next message will have at least.
    pub uid_next: u32,
    /// How many messages the folder has.
    pub exists: u32,
    /// The messages, ascending by UID.
    pub messages: Vec<Message>,
    /// Whether there are more in the direction of the query (older ones for `Newest` and `Before`).
    pub more: bool,
}

/// How a server answered about messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// Those that are missing are known to be gone.
    Whole,
    /// It told of all, and something could not be read.
    Unread,
    Refused,
    /// In the words of a server that is in trouble.
    Later,
}

/// A message while its page is put together.
#[derive(Default)]
struct Draft {
    message: Message,
    /// Its header fields, where they were cut.
    cut_header: Option<Vec<u8>>,
    text: Option<TextPart>,
    /// What to ask for if that turns out to say nothing.
    html: Option<TextPart>,
    /// The begin of its first part was given.
    begun: bool,
    /// More than a change of flags was told.
    read: bool,
    /// The server has it, whether it can be read or not.
    named: bool,
}

type Drafts = BTreeMap<u32, Draft>;

/// Messages that a look has read along, for the fetch that follows at once.
pub(crate) struct Ahead {
    read_at: Instant,
    drafts: Drafts,
}

/// Says nothing of the mail.
impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ahead").finish_non_exhaustive()
    }
}

impl Connection {
    /// Reads messages of the open folder (see [`Connection::look`]), 64 at most; those that are gone are left out,
    /// and of those that the server can't read there is what it has in its index. Ascending by UID.
    ///
    /// # Errors
    /// When the connection ends, the server refuses or it takes longer than [`crate::Timeouts::request`].
    /// [`Error::Throttled`] also if the server can read none of them: it may be in trouble.
    pub async fn fetch(&mut self, uids: &[u32]) -> Result<Vec<Message>, Error> {
        let limit = self.session.timeouts.request;
        timeout(limit, self.fetch_all(uids))
            .await
            .map_err(|_| Error::Timeout("fetch"))?
    }

    async fn fetch_all(&mut self, uids: &[u32]) -> Result<Vec<Message>, Error> {
        let uids = uids.get(..PAGE_LIMIT).unwrap_or(uids);
        if uids.is_empty() {
            return Ok(Vec::new());
        }
        let mut drafts = match self.take_ahead(uids) {
            Some(drafts) => drafts,
            None => self.fetch_drafts(uids).await?,
        };
        drafts.retain(|_, draft| draft.read || draft.named);
        // A server may give more than it was asked for. Nobody asks for the rest of it.
        if self.session.content != Content::Key {
            self.fetch_short_fields(&mut drafts).await?;
        }
        if self.session.content == Content::Preview {
            self.fetch_texts(&mut drafts).await?;
        }
        Ok(drafts.into_values().map(|draft| draft.message).collect())
    }

    /// What the look before has read of these, if it has read all of them just now: flags may change any moment.
    fn take_ahead(&mut self, uids: &[u32]) -> Option<Drafts> {
        let Ahead {
            read_at,
            mut drafts,
        } = self.ahead.take()?;
        drafts.retain(|uid, _| uids.contains(uid));
        (read_at.elapsed() <= AHEAD_AGE && drafts.len() == uids.len()).then_some(drafts)
    }

    async fn fetch_drafts(&mut self, uids: &[u32]) -> Result<Drafts, Error> {
        let mut drafts = uids
            .iter()
            .map(|uid| (*uid, Draft::default()))
            .collect::<Drafts>();
        let answer = self.fetch_items(uids, Depth::Full, &mut drafts).await?;
        if answer == Answer::Whole {
            return Ok(drafts);
        }
        // Of one message that they can't read, servers say what they say when they are in trouble: SERVERBUG,
        // UNAVAILABLE, "internal error". Who is in trouble doesn't even name the messages, or names them from its index
        // and reads none: only one that can be read proves that the others are damaged.
        let mut away = answer == Answer::Later && !drafts.values().any(|draft| draft.read);
        let mut named = false;
        if matches!(answer, Answer::Refused | Answer::Later) {
            named = self.fetch_items(uids, Depth::Named, &mut drafts).await? == Answer::Whole;
            // The text that wasn't given is what can't be read. Dovecot 2.3 ends the connection of who asks again.
            for draft in drafts.values_mut().filter(|draft| !draft.begun) {
                (draft.text, draft.html) = (None, None);
            }
        }
        // The answer about some message can't be read, is too long, or makes the server refuse all: those one by one.
        let missing = missing(&drafts, named);
        away &= !missing.is_empty();
        for uid in missing {
            for depth in [Depth::NoStructure, Depth::Minimal] {
                let answer = self.fetch_items(&[uid], depth, &mut drafts).await?;
                // Date and size may come from the index.
                away &= depth == Depth::Minimal || answer == Answer::Later;
                if answer == Answer::Whole || drafts.get(&uid).is_some_and(|draft| draft.read) {
                    break;
                }
            }
        }
        if away {
            return Err(Error::Throttled);
        }
        Ok(drafts)
    }

    /// Asks for some messages.
    async fn fetch_items(
        &mut self,
        uids: &[u32],
        depth: Depth,
        drafts: &mut Drafts,
    ) -> Result<Answer, Error> {
        let most_chars = self.session.preview_chars;
        let items = self.items(depth);
        let command = Command::new(&format!("UID FETCH {} ({items})", uid_set(uids)));
        let limits = items_limits(uids.len());
        let ending = self
            .run(command, limits, &mut |response| {
                if let Response::Fetch(_, items) = response {
                    take_items(items, drafts, most_chars);
                    if depth == Depth::Named
                        && let Some(draft) = uid_of(items).and_then(|uid| drafts.get_mut(&uid))
                    {
                        draft.named = true;
                    }
                }
            })
            .await?;
        if ending.ok {
            return Ok(if self.skipped() == 0 {
                Answer::Whole
            } else {
                Answer::Unread
            });
        }
        let later = refused(&ending);
        if depth == Depth::Named {
            if let Some(later) = later {
                return Err(later);
            }
            if ending.bad {
                return Err(Error::Protocol("FETCH not understood"));
            }
        }
        Ok(if later.is_some() {
            Answer::Later
        } else {
            Answer::Refused
        })
    }

    /// Reads messages by their sequence numbers, for [`Connection::fetch`] to find; their UIDs, ascending, or none if
    /// some could not be read, or the server refuses.
    pub(crate) async fn read_ahead(&mut self, first: u32, last: u32) -> Result<Vec<u32>, Error> {
        let most_chars = self.session.preview_chars;
        let count = usize::try_from(last.saturating_sub(first)).map_or(usize::MAX, |n| n + 1);
        let command = Command::new(&format!(
            "FETCH {} ({})",
            if first == last {
                first.to_string()
            } else {
                format!("{first}:{last}")
            },
            self.items(Depth::Full)
        ));
        let mut drafts = Drafts::new();
        let ending = self
            .run(command, items_limits(count), &mut |response| {
                if let Response::Fetch(sequence, items) = response
                    && (first..=last).contains(sequence)
                    && let Some(uid) = uid_of(items)
                    && (drafts.len() < count || drafts.contains_key(&uid))
                {
                    drafts.entry(uid).or_default();
                    take_items(items, &mut drafts, most_chars);
                }
            })
            .await?;
        if ending.bad {
            // As in `uids_at`: we count messages that the server doesn't have.
            self.session.selected = None;
        }
        if !ending.ok || self.skipped() > 0 || drafts.values().any(|draft| !draft.read) {
            return Ok(Vec::new());
        }
        let uids = drafts.keys().copied().collect();
        self.ahead = Some(Ahead {
            read_at: Instant::now(),
            drafts,
        });
        Ok(uids)
    }

    /// Fetches the fields that a list of a thousand recipients before them has kept out.
    async fn fetch_short_fields(&mut self, drafts: &mut Drafts) -> Result<(), Error> {
        let cut = drafts
            .iter()
            .filter(|(_, draft)| draft.cut_header.is_some())
            .map(|(uid, _)| *uid)
            .collect::<Vec<_>>();
        if cut.is_empty() {
            return Ok(());
        }
        let command = Command::new(&format!(
            "UID FETCH {} (UID BODY.PEEK[HEADER.FIELDS ({SHORT_FIELDS})]<0.{HEADER_BYTES}> \
             BODY.PEEK[HEADER.FIELDS (REFERENCES)]<0.{REFERENCES_BYTES}>)",
            uid_set(&cut)
        ));
        // A NO costs what was cut off.
        self.run(command, items_limits(cut.len()), &mut |response| {
            if let Response::Fetch(_, items) = response
                && let Some(header) = header_of(items)
                && let Some(draft) = uid_of(items).and_then(|uid| drafts.get_mut(&uid))
                && let Some(cut) = &mut draft.cut_header
            {
                // Of two fields of one name the last counts.
                cut.extend_from_slice(&header);
            }
        })
        .await?;
        for draft in drafts.values_mut() {
            if let Some(header) = draft.cut_header.take() {
                headers::read(&header, &mut draft.message);
            }
        }
        Ok(())
    }

    /// Fetches the begin of each text that is not in the first part and makes the previews; then that of the HTML where
    /// a text said nothing.
    async fn fetch_texts(&mut self, drafts: &mut Drafts) -> Result<(), Error> {
        while drafts.values().any(|draft| draft.text.is_some()) {
            self.fetch_texts_once(drafts).await?;
            for draft in drafts.values_mut() {
                draft.text = draft
                    .html
                    .take()
                    .filter(|_| draft.message.preview.is_empty());
            }
        }
        Ok(())
    }

    /// One command for all messages whose text is at the same place.
    async fn fetch_texts_once(&mut self, drafts: &mut Drafts) -> Result<(), Error> {
        let mut places: BTreeMap<(String, usize), Vec<u32>> = BTreeMap::new();
        for (uid, draft) in drafts.iter() {
            if let Some(text) = &draft.text {
                let bytes = if text.html {
                    preview::HTML_BYTES
                } else {
                    preview::PLAIN_BYTES
                };
                places
                    .entry((text.section.clone(), bytes))
                    .or_default()
                    .push(*uid);
            }
        }
        let most_chars = self.session.preview_chars;
        for ((section, bytes), uids) in places {
            let command = Command::new(&format!(
                "UID FETCH {} (UID BODY.PEEK[{section}]<0.{bytes}>)",
                uid_set(&uids)
            ));
            let limits = Limits {
                literals: bytes,
                answer: uids.len() * (bytes + 1024) + (64 << 10),
                discard: DISCARD_LIMIT,
            };
            // A NO, and a text that is longer than was asked for, cost the preview only.
            self.run(command, limits, &mut |response| {
                if let Response::Fetch(_, items) = response {
                    take_text(items, drafts, most_chars);
                }
            })
            .await?;
        }
        Ok(())
    }

    /// One page of a folder as it is now, newest or beside a UID; opens the folder if it isn't open.
    ///
    /// # Errors
    /// [`Error::NoSuchFolder`] leaves the connection usable. [`Error::Timeout`] if the whole takes longer than
    /// [`crate::Timeouts::request`].
    pub async fn list(&mut self, folder: &str, query: ListQuery) -> Result<Page, Error> {
        let limit = self.session.timeouts.request;
        timeout(limit, self.list_all(folder, query))
            .await
            .map_err(|_| Error::Timeout("list"))?
    }

    async fn list_all(&mut self, folder: &str, query: ListQuery) -> Result<Page, Error> {
        if self.has_open(folder) {
            // What came or went since the server last told of it is in a listing too (RFC 9051, 6.1.2).
            self.noop().await?;
        }
        let opened = self.examine(folder, false).await?;
        let exists = opened.exists;
        let size = |count: usize| u32::try_from(count.clamp(1, PAGE_LIMIT)).unwrap_or(1);
        let (first, last, more) = match query {
            ListQuery::Newest(count) => {
                let first = exists.saturating_sub(size(count)) + 1;
                (first, exists, first > 1)
            }
            ListQuery::Before(uid, count) => {
                let last = self.first_at_or_above(uid, exists).await? - 1;
                let first = last.saturating_sub(size(count)) + 1;
                (first, last, first > 1)
            }
            ListQuery::After(uid, count) => {
                let first = match uid.checked_add(1) {
                    Some(uid) => self.first_at_or_above(uid, exists).await?,
                    None => exists.saturating_add(1),
                };
                let last = first.saturating_add(size(count) - 1).min(exists);
                (first, last, last < exists)
            }
        };
        let mut uids = self.uids_at(first, last).await?;
        // Sequence numbers may have moved between the steps.
        uids.retain(|uid| match query {
            ListQuery::Newest(_) => true,
            ListQuery::After(bound, _) => *uid > bound,
            ListQuery::Before(bound, _) => *uid < bound,
        });
        let messages = match self.session.content {
            Content::Key => uids.iter().copied().map(Message::named).collect(),
            Content::Headers | Content::Preview => self.fetch_all(&uids).await?,
        };
        let uid_next = opened
            .uid_next
            .max(uids.last().map_or(0, |uid| uid.saturating_add(1)));
        Ok(Page {
            uid_validity: opened.uid_validity,
            uid_next,
            exists,
            messages,
            more,
        })
    }
}

/// Bounds of an answer about so many messages.
fn items_limits(count: usize) -> Limits {
    // Names in a BODYSTRUCTURE may be literals too.
    let one = HEADER_BYTES + preview::PLAIN_BYTES + LINE_LIMIT;
    Limits {
        literals: one,
        answer: count * (one + LINE_LIMIT) + (64 << 10),
        discard: DISCARD_LIMIT,
    }
}

/// Those that were not read; if the server has `named` all that it has, of those.
fn missing(drafts: &Drafts, named: bool) -> Vec<u32> {
    drafts
        .iter()
        .filter(|(_, draft)| !draft.read && (draft.named || !named))
        .map(|(uid, _)| *uid)
        .collect()
}

pub(crate) fn uid_of(items: &[AttributeValue<'_>]) -> Option<u32> {
    items.iter().find_map(|item| match item {
        AttributeValue::Uid(uid) => Some(*uid),
        _ => None,
    })
}

/// The header fields in one FETCH response, whatever questions gave them.
fn header_of(items: &[AttributeValue<'_>]) -> Option<Vec<u8>> {
    let mut header: Option<Vec<u8>> = None;
    for item in items {
        if let AttributeValue::BodySection {
            section: Some(SectionPath::Full(MessageSection::Header)),
            data: Some(data),
            ..
        } = item
        {
            let header = header.get_or_insert_default();
            // Without the empty line, which would end them all.
            header.extend_from_slice(data.trim_ascii_end());
            header.extend_from_slice(b"\r\n");
        }
    }
    header
}

/// Takes what one FETCH response says about a message that was asked for.
fn take_items(items: &[AttributeValue<'_>], drafts: &mut Drafts, most_chars: usize) {
    let Some(uid) = uid_of(items) else { return };
    let Some(draft) = drafts.get_mut(&uid) else {
        return;
    };
    let message = &mut draft.message;
    message.uid = uid;
    let mut first_part = None;
    for item in items {
        match item {
            AttributeValue::Flags(flags) => message.flags = take_flags(flags),
            AttributeValue::InternalDate(date) => {
                message.internal_date = headers::internal_date(date);
                draft.read = true;
            }
            AttributeValue::Rfc822Size(size) => {
                message.size = Some(*size);
                draft.read = true;
            }
            AttributeValue::ModSeq(modseq) => message.modseq = Some(*modseq),
            AttributeValue::EmailId(id) => message.content_id = headers::id(id),
            AttributeValue::ThreadId(id) => message.thread = id.as_deref().and_then(headers::id),
            AttributeValue::GmailMsgId(id) => message.content_id = Some(id.to_string()),
            AttributeValue::GmailThrId(id) => message.thread = Some(id.to_string()),
            AttributeValue::BodySection {
                section: Some(SectionPath::Part(..)),
                data: Some(data),
                ..
            } => first_part = Some(data),
            AttributeValue::BodyStructure(body) => {
                let summary = structure::summarize(body);
                message.has_attachments = summary.has_attachments;
                (draft.text, draft.html) = (summary.text, summary.html);
            }
            _ => {}
        }
    }
    // Last, since a thread id of the server goes before what the headers say.
    if let Some(header) = header_of(items) {
        draft.read = true;
        // What is read of a part of the fields might be taken for all: no reply, so the begin of a thread.
        if header.len() >= CUT_BYTES {
            draft.cut_header = Some(header);
        } else {
            headers::read(&header, message);
        }
    }
    draft.begun |= first_part.is_some();
    // HTML says little in its first bytes: it is enough only if it is all.
    if let Some(data) = first_part
        && let Some(text) = draft.text.take_if(|text| {
            text.section == FIRST_PART && (!text.html || data.len() < preview::PLAIN_BYTES)
        })
    {
        message.preview = preview::make(&text, data, most_chars);
        if message.preview.is_empty() {
            draft.text = draft.html.take();
        }
    }
}

/// System flags first, so that none of them is cut off by a user who invents many.
fn take_flags(flags: &[std::borrow::Cow<'_, str>]) -> Vec<String> {
    let (most, bytes) = FLAGS_LIMIT;
    let (system, own): (Vec<_>, Vec<_>) = flags.iter().partition(|flag| flag.starts_with('\\'));
    system
        .into_iter()
        .chain(own)
        .take(most)
        .map(|flag| cut(flag, bytes).to_owned())
        .collect()
}

/// Makes a preview of the text in one FETCH response.
fn take_text(items: &[AttributeValue<'_>], drafts: &mut Drafts, most_chars: usize) {
    let Some(draft) = uid_of(items).and_then(|uid| drafts.get_mut(&uid)) else {
        return;
    };
    let Some(part) = &draft.text else { return };
    for item in items {
        if let AttributeValue::BodySection {
            section: Some(SectionPath::Part(..)),
            data: Some(data),
            ..
        } = item
        {
            draft.message.preview = preview::make(part, data, most_chars);
        }
    }
}
