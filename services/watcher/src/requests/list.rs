//! One page of a folder, read from the mailbox.

use mailbell_core::content::strip;
use mailbell_imap::{self as imap, Connection, Content, ListQuery, PAGE_LIMIT};
use mailbell_proto::bus::v1::{ListPage, PageResult};
use prost::Message as _;

use crate::{
    failure,
    message::{convert, level_of},
};

/// Messages of a page at most.
const MOST: usize = 100;
/// Bytes of a page at most, so that the answer is well below what NATS takes in one message (1 MiB).
const MOST_BYTES: usize = 512 * 1024;

/// Why there is no page.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The connection is well.
    Refused(&'static str),
    /// What the mail server's side said.
    Mail(imap::Error),
}

impl From<imap::Error> for Problem {
    fn from(error: imap::Error) -> Self {
        Self::Mail(error)
    }
}

/// Reads the page, with as much of messages as the connection reads. The future must not be dropped half-way, unless the connection is too.
pub(crate) async fn page(
    connection: &mut Connection,
    folder: &str,
    request: &ListPage,
) -> Result<PageResult, Problem> {
    let limit = match usize::try_from(request.limit) {
        Ok(limit) if limit > 0 => limit.min(MOST),
        _ => MOST,
    };
    let (first, last) = (request.first_uid, upper(request.last_uid));
    let mut messages: Vec<imap::Message> = Vec::new();
    let mut next = Some(begin(request, limit));
    let mut result = PageResult {
        folder_name: match connection.content() {
            Content::Key => String::new(),
            Content::Headers | Content::Preview => folder.to_owned(),
        },
        ..PageResult::default()
    };
    // The adapter reads at most PAGE_LIMIT messages at once, so two rounds; a bound all the same.
    for _ in 0..MOST.div_ceil(PAGE_LIMIT) {
        let Some(query) = next.take() else { break };
        let found = connection.list(folder, query).await?;
        if request.generation > 0 && request.generation != found.uid_validity {
            return Err(Problem::Refused(failure::GENERATION_CHANGED));
        }
        if result.generation > 0 && result.generation != found.uid_validity {
            return Err(Problem::Refused(failure::GENERATION_CHANGED));
        }
        result.generation = found.uid_validity;
        result.uid_next = result.uid_next.max(found.uid_next);
        result.exists = found.exists;
        let edge = if request.newest {
            found.messages.first()
        } else {
            found.messages.last()
        };
        let edge = edge.map(|message| message.uid);
        let mut more = found.more;
        if let Some(edge) = edge {
            // What lies beyond the range is no more to come.
            more &= if request.newest {
                edge > first.max(1)
            } else {
                edge < last
            };
        }
        let inside = found
            .messages
            .into_iter()
            .filter(|message| (first..=last).contains(&message.uid));
        if request.newest {
            messages.splice(0..0, inside);
        } else {
            messages.extend(inside);
        }
        result.more = more;
        let left = limit.saturating_sub(messages.len());
        if more && left > 0 {
            let Some(edge) = edge else {
                // All of a page went away while it was read: there is nothing to go on from.
                return Err(Problem::Refused(failure::BUSY));
            };
            next = Some(if request.newest {
                ListQuery::Before(edge, left)
            } else {
                ListQuery::After(edge, left)
            });
        }
    }
    fill(&mut result, messages, request.newest, connection.content());
    Ok(result)
}

fn upper(last: u32) -> u32 {
    if last == 0 { u32::MAX } else { last }
}

fn begin(request: &ListPage, limit: usize) -> ListQuery {
    match (request.newest, request.last_uid) {
        (true, 0 | u32::MAX) => ListQuery::Newest(limit),
        (true, last) => ListQuery::Before(last + 1, limit),
        (false, _) => ListQuery::After(request.first_uid.saturating_sub(1), limit),
    }
}

/// Takes messages as long as there is room, from the end that the page begins at.
fn fill(result: &mut PageResult, messages: Vec<imap::Message>, newest: bool, content: Content) {
    let mut converted: Vec<_> = messages
        .into_iter()
        .map(|message| strip(convert(message, 0, content), level_of(content)))
        .collect();
    if newest {
        converted.reverse();
    }
    let mut bytes = 0;
    let fits = converted
        .iter()
        .take_while(|message| {
            bytes += message.encoded_len() + 8;
            bytes <= MOST_BYTES
        })
        .count();
    result.more |= fits < converted.len();
    converted.truncate(fits);
    if newest {
        converted.reverse();
    }
    result.messages = converted;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(uid: u32) -> imap::Message {
        imap::Message {
            uid,
            preview: "x".repeat(1024),
            subject: "s".repeat(500),
            flags: vec!["f".repeat(64); 64],
            ..imap::Message::default()
        }
    }

    #[test]
    fn a_page_that_is_too_large_keeps_the_end_that_was_asked_for() {
        let messages: Vec<_> = (1..=100).map(large).collect();
        for newest in [true, false] {
            let mut result = PageResult::default();
            fill(&mut result, messages.clone(), newest, Content::Preview);
            assert!(result.encoded_len() <= MOST_BYTES + 64);
            assert!(result.more && result.messages.len() < 100);
            assert!(result.messages.is_sorted_by_key(|message| message.uid));
            let kept = if newest {
                result.messages.last()
            } else {
                result.messages.first()
            };
            assert_eq!(kept.unwrap().uid, if newest { 100 } else { 1 });
        }
    }

    #[test]
    fn ranges_become_queries() {
        let request = |newest, first_uid, last_uid| ListPage {
            newest,
            first_uid,
            last_uid,
            ..ListPage::default()
        };
        assert_eq!(begin(&request(true, 0, 0), 5), ListQuery::Newest(5));
        assert_eq!(begin(&request(true, 3, 9), 5), ListQuery::Before(10, 5));
        assert_eq!(begin(&request(true, 3, u32::MAX), 5), ListQuery::Newest(5));
        assert_eq!(begin(&request(false, 4, 0), 5), ListQuery::After(3, 5));
        assert_eq!(begin(&request(false, 0, 7), 5), ListQuery::After(0, 5));
    }
}
