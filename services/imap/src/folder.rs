//! Folders: which there are, how far they are, and what is new in one.

use std::collections::BTreeSet;

use imap_proto::{MailboxDatum, NameAttribute, Response, ResponseCode};
use tokio::time::timeout;

use crate::capability::Capability;
use crate::channel::Ending;
use crate::command::Command;
use crate::connection::{Connection, Selected};
use crate::error::Error;
use crate::fetch::uid_of;
use crate::guard::Limits;
use crate::login::refused;
use crate::mutf7;

/// Most UIDs of one look.
const LOOK_LIMIT: u32 = 2000;
/// Most messages that a look reads along.
const AHEAD_LIMIT: u32 = 8;
/// Most folders of a listing; nobody watches the ones behind.
const FOLDER_LIMIT: usize = 2000;

/// What is in a folder from a UID on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The folder's generation.
    pub uid_validity: u32,
    /// The UID that the next message will have at least. Above every UID in this look.
    pub uid_next: u32,
    /// Whether the server said so; else it follows from the last message, and may go back when that is deleted.
    pub uid_next_exact: bool,
    /// How many messages the folder has.
    pub exists: u32,
    /// The folder's modification sequence, when the server keeps one and the folder was opened for this look.
    pub highest_modseq: Option<u64>,
    /// How many messages there are from the UID on.
    pub total_new: u32,
    /// The newest of them, at most as many as asked for, ascending.
    pub uids: Vec<u32>,
    /// Whether the server gave every message that it had announced. If not, some can't be fetched yet: look again.
    pub complete: bool,
}

/// What a folder is for, as its attributes say (RFC 6154, RFC 8457).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the RFCs")]
#[non_exhaustive]
pub enum SpecialUse {
    All,
    Archive,
    Drafts,
    Flagged,
    Important,
    Junk,
    Sent,
    Trash,
}

/// A folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Its name, decoded. Pass it back as it is.
    pub name: String,
    /// What stands between the levels of the name.
    pub delimiter: Option<char>,
    /// Whether it can be opened.
    pub selectable: bool,
    /// What it is for.
    pub special_use: Vec<SpecialUse>,
}

impl Connection {
    /// Opens a folder if it isn't open (or again, when `force`) and finds the messages with a UID of `from_uid` or
    /// more, without ever asking for an answer whose size depends on how many there are.
    ///
    /// Begin of a look: all that was announced before is taken into account and forgotten; what is announced while it
    /// runs makes the connection dirty again, so that [`Connection::park`] returns at once.
    ///
    /// # Errors
    /// [`Error::NoSuchFolder`] leaves the connection usable. [`Error::Timeout`] if the whole takes longer than
    /// [`crate::Timeouts::request`].
    pub async fn look(
        &mut self,
        folder: &str,
        from_uid: u32,
        cap: u32,
        force: bool,
    ) -> Result<Look, Error> {
        let limit = self.session.timeouts.request;
        timeout(limit, self.look_all(folder, from_uid, cap, force))
            .await
            .map_err(|_| Error::Timeout("look"))?
    }

    async fn look_all(
        &mut self,
        folder: &str,
        from_uid: u32,
        cap: u32,
        force: bool,
    ) -> Result<Look, Error> {
        let cap = cap.clamp(1, LOOK_LIMIT);
        // First, so that what is announced from here on is not forgotten.
        self.session.looked();
        self.ahead = None;
        if !force && let Some(look) = self.look_at_newcomers(folder, from_uid, cap).await? {
            return Ok(look);
        }
        let opened = self.examine(folder, force).await?;
        let exists = opened.exists;
        self.session.begin_count(exists);
        let wanted = exists.min(cap + 1);
        let mut uids = self.uids_at(exists - wanted + 1, exists).await?;
        let complete = uids.len() >= usize::try_from(wanted).unwrap_or(usize::MAX);
        let oldest_is_new = uids.first().is_some_and(|uid| *uid >= from_uid);
        let last = uids.last().copied().unwrap_or(0);
        uids.retain(|uid| *uid >= from_uid);
        let found = u32::try_from(uids.len()).unwrap_or(u32::MAX);
        let total_new = if oldest_is_new && wanted < exists {
            let first = self.first_at_or_above(from_uid, exists - wanted).await?;
            found + (exists - wanted + 1 - first)
        } else {
            found
        };
        let excess = uids
            .len()
            .saturating_sub(usize::try_from(cap).unwrap_or(usize::MAX));
        let uids = uids.into_iter().skip(excess).collect();
        let uid_next = opened.uid_next.max(last.saturating_add(1));
        self.session.end_count(uid_next, complete);
        Ok(Look {
            uid_validity: opened.uid_validity,
            uid_next,
            uid_next_exact: opened.uid_next_exact,
            exists,
            highest_modseq: opened.highest_modseq,
            total_new,
            uids,
            complete,
        })
    }

    /// The short way of a look, for the few messages that were announced since the last one: they are read along with
    /// the look itself, so that a fetch right behind it asks no more. `None` leaves it to the long way: whenever UIDs
    /// or sequence numbers leave a doubt about which messages are new.
    async fn look_at_newcomers(
        &mut self,
        folder: &str,
        from_uid: u32,
        cap: u32,
    ) -> Result<Option<Look>, Error> {
        let Some((opened, counted)) = self
            .session
            .selected
            .as_ref()
            .and_then(|selected| Some((selected.clone(), selected.counted?)))
        else {
            return Ok(None);
        };
        let many = opened.exists.saturating_sub(counted.exists);
        if *opened.folder != *folder
            || counted.uid_next != from_uid
            || !(1..=cap.min(AHEAD_LIMIT)).contains(&many)
        {
            return Ok(None);
        }
        self.session.begin_count(opened.exists);
        let uids = self
            .read_ahead(counted.exists.saturating_add(1), opened.exists)
            .await?;
        // A gap may be a message that was deleted, or one that this server didn't tell us to be elsewhere by now.
        let sure = (from_uid..).take(uids.len()).eq(uids.iter().copied())
            && u32::try_from(uids.len()) == Ok(many);
        if !sure {
            return Ok(None);
        }
        let uid_next = from_uid.saturating_add(many);
        self.session.end_count(uid_next, true);
        Ok(Some(Look {
            uid_validity: opened.uid_validity,
            uid_next: opened.uid_next.max(uid_next),
            uid_next_exact: opened.uid_next_exact,
            exists: opened.exists,
            highest_modseq: None,
            total_new: many,
            uids,
            complete: true,
        }))
    }

    /// Whether this folder is the open one.
    pub(crate) fn has_open(&self, folder: &str) -> bool {
        let selected = self.session.selected.as_ref();
        selected.is_some_and(|selected| *selected.folder == *folder)
    }

    /// Opens a folder read-only, if it isn't open, and returns how it stood when the server last told of it.
    pub(crate) async fn examine(&mut self, folder: &str, force: bool) -> Result<Selected, Error> {
        if let Some(selected) = &self.session.selected
            && !force
            && self.has_open(folder)
        {
            // How far the modification sequence has come meanwhile, nobody has said.
            return Ok(Selected {
                highest_modseq: None,
                ..selected.clone()
            });
        }
        let command = Command::new("EXAMINE")
            .string(mutf7::encode(folder).as_bytes(), self.session.capabilities)?;
        // Servers may keep modification sequences only for those who ask.
        let condstore = self.session.capabilities.has(Capability::CondStore);
        let command = command.text(if condstore { " (CONDSTORE)" } else { "" });
        let mut found = Selected {
            folder: folder.into(),
            uid_validity: 0,
            uid_next: 0,
            uid_next_exact: false,
            exists: 0,
            highest_modseq: None,
            counted: None,
        };
        let ending = self
            .run_select(command, &mut |response| match response {
                Response::MailboxData(MailboxDatum::Exists(exists)) => found.exists = *exists,
                // Some servers expunge while they open.
                Response::Expunge(_) => found.exists = found.exists.saturating_sub(1),
                Response::Data { outcome, .. } | Response::Done { outcome, .. } => {
                    match &outcome.code {
                        Some(ResponseCode::UidValidity(number)) => found.uid_validity = *number,
                        Some(ResponseCode::UidNext(number)) => found.uid_next = *number,
                        Some(ResponseCode::HighestModSeq(number)) => {
                            found.highest_modseq = Some(*number)
                        }
                        _ => {}
                    }
                }
                _ => {}
            })
            .await?;
        if !ending.ok {
            return Err(match refused(&ending) {
                Some(later) => later,
                None if ending.bad => Error::Protocol("EXAMINE not understood"),
                None => Error::NoSuchFolder,
            });
        }
        if found.uid_validity == 0 {
            return Err(Error::Protocol("no UIDVALIDITY"));
        }
        found.uid_next_exact = found.uid_next > 0;
        self.session.looked();
        self.session.selected = Some(found.clone());
        if found.uid_next == 0 {
            // Old servers don't say it. The UIDs of a folder only grow, so the last message tells.
            let last = self.uids_at(found.exists, found.exists).await?;
            found.uid_next = last.last().copied().unwrap_or(0).saturating_add(1);
            if let Some(selected) = &mut self.session.selected {
                selected.uid_next = found.uid_next;
            }
        }
        Ok(found)
    }

    /// UIDs of a range of sequence numbers, ascending.
    pub(crate) async fn uids_at(&mut self, first: u32, last: u32) -> Result<Vec<u32>, Error> {
        if first == 0 || first > last {
            return Ok(Vec::new());
        }
        let command = Command::new(&if first == last {
            format!("FETCH {first} (UID)")
        } else {
            format!("FETCH {first}:{last} (UID)")
        });
        let count = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        let (uids, ending) = self
            .uids_of(command, count, |sequence, _| {
                (first..=last).contains(&sequence)
            })
            .await?;
        if ending.bad {
            // We count messages that the server doesn't have: the next look opens the folder anew.
            self.session.selected = None;
        }
        // A NO here means that messages are gone that we still count: their removal comes with the next command.
        Ok(uids)
    }

    /// The UIDs in the answer to a FETCH, ascending and each once, `count` at most; of the sequence numbers and UIDs
    /// in it those that were `asked` for, since servers tell of flags in between.
    async fn uids_of(
        &mut self,
        command: Command,
        count: usize,
        asked: impl Fn(u32, u32) -> bool + Send + Sync,
    ) -> Result<(Vec<u32>, Ending), Error> {
        let limits = Limits {
            literals: 0,
            answer: count.saturating_mul(256).saturating_add(64 << 10),
            discard: 0,
        };
        let mut uids = BTreeSet::new();
        let ending = self
            .run(command, limits, &mut |response| {
                if let Response::Fetch(sequence, items) = response
                    && let Some(uid) = uid_of(items)
                    && asked(*sequence, uid)
                    && uids.len() < count
                {
                    uids.insert(uid);
                }
            })
            .await?;
        if !ending.ok
            && let Some(later) = refused(&ending)
        {
            return Err(later);
        }
        Ok((uids.into_iter().collect(), ending))
    }

    /// The first sequence number among `1..=below` whose UID is at least `uid`, or `below + 1`. One short command per
    /// step, so 20 for a million messages.
    pub(crate) async fn first_at_or_above(&mut self, uid: u32, below: u32) -> Result<u32, Error> {
        // UIDs grow by at least one per message: a message at sequence n has a UID of n or more.
        let (mut low, mut high) = (1, below.min(uid.saturating_sub(1)).saturating_add(1));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.uids_at(middle, middle).await?.first() {
                Some(found) if *found < uid => low = middle + 1,
                // A message that has gone meanwhile counts as new: too many is told, never too few.
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Which UIDs of these ranges (first and last) the open folder has, ascending. At most 64 ranges are looked at, and
    /// of each its first 1024 UIDs.
    ///
    /// # Errors
    /// When the connection ends or the server asks to come back later.
    pub async fn existing(&mut self, ranges: &[(u32, u32)]) -> Result<Vec<u32>, Error> {
        const RANGES: usize = 64;
        const WIDTH: u32 = 1024;
        let ranges = ranges
            .iter()
            .take(RANGES)
            .filter(|(first, last)| *first > 0 && first <= last)
            .map(|(first, last)| (*first, (*last).min(first.saturating_add(WIDTH - 1))))
            .collect::<Vec<_>>();
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let set = ranges
            .iter()
            .map(|(first, last)| format!("{first}:{last}"))
            .collect::<Vec<_>>()
            .join(",");
        let count = ranges
            .iter()
            .map(|(first, last)| usize::try_from(last - first).unwrap_or(usize::MAX) + 1)
            .sum::<usize>();
        let command = Command::new(&format!("UID FETCH {set} (UID)"));
        let (uids, _) = self
            .uids_of(command, count, |_, uid| {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&uid))
            })
            .await?;
        Ok(uids)
    }

    /// All folders with what they are for; at most 2000.
    ///
    /// # Errors
    /// When the connection ends or the server refuses.
    pub async fn folders(&mut self) -> Result<Vec<Folder>, Error> {
        let capabilities = self.session.capabilities;
        // Plain LIST gives special uses on most servers; those that are strict want to be asked.
        let ask =
            capabilities.has(Capability::SpecialUse) && capabilities.has(Capability::ListExtended);
        let command =
            Command::new("LIST \"\" \"*\"").text(if ask { " RETURN (SPECIAL-USE)" } else { "" });
        let mut folders = Vec::new();
        let limits = Limits {
            literals: 4 << 10,
            answer: 4 << 20,
            discard: 0,
        };
        let ending = self
            .run(command, limits, &mut |response| {
                if let Response::MailboxData(MailboxDatum::List(data)) = response
                    && folders.len() < FOLDER_LIMIT
                {
                    folders.push(folder(data));
                }
            })
            .await?;
        if !ending.ok {
            return Err(refused(&ending).unwrap_or(Error::Protocol("LIST refused")));
        }
        Ok(folders)
    }
}

fn folder(data: &imap_proto::MailboxListData<'_>) -> Folder {
    let mut selectable = true;
    let mut special_use = Vec::new();
    for attribute in &data.name_attributes {
        special_use.push(match attribute {
            NameAttribute::All => SpecialUse::All,
            NameAttribute::Archive => SpecialUse::Archive,
            NameAttribute::Drafts => SpecialUse::Drafts,
            NameAttribute::Flagged => SpecialUse::Flagged,
            NameAttribute::Junk => SpecialUse::Junk,
            NameAttribute::Sent => SpecialUse::Sent,
            NameAttribute::Trash => SpecialUse::Trash,
            NameAttribute::Extension(name) if name.eq_ignore_ascii_case("\\Important") => {
                SpecialUse::Important
            }
            NameAttribute::NoSelect => {
                selectable = false;
                continue;
            }
            NameAttribute::Extension(name) if name.eq_ignore_ascii_case("\\NonExistent") => {
                selectable = false;
                continue;
            }
            _ => continue,
        });
    }
    let name = mutf7::decode(data.name.as_bytes()).filter(|name| mutf7::encode(name) == *data.name);
    // A name that doesn't come back the same could never be opened.
    selectable &= name.is_some();
    Folder {
        name: name.unwrap_or_else(|| data.name.clone().into_owned()),
        delimiter: data
            .delimiter
            .as_deref()
            .and_then(|text| text.chars().last()),
        selectable,
        special_use,
    }
}
