//! A message as the mail server tells it, as devices see it.

use mailbell_core::event::{content_digest, fit_message};
use mailbell_imap::{self as imap, Content};
use mailbell_proto::push::v1::{Address, ContentLevel, Message};

/// What of messages is read, so that they can be told at this level.
pub(crate) fn content_of(level: ContentLevel) -> Content {
    match level {
        ContentLevel::Key => Content::Key,
        ContentLevel::Headers => Content::Headers,
        ContentLevel::Preview | ContentLevel::Unspecified => Content::Preview,
    }
}

/// How much of messages is told of which so much was read.
pub(crate) fn level_of(content: Content) -> ContentLevel {
    match content {
        Content::Key => ContentLevel::Key,
        Content::Headers => ContentLevel::Headers,
        Content::Preview => ContentLevel::Preview,
    }
}

/// `now_ms` stands in for an INTERNALDATE that the server does not tell. Whatever a server says unasked, there is no more in it than
/// `content`; with [`Content::Key`] what decides about an alert, none of which is told.
pub(crate) fn convert(mut message: imap::Message, now_ms: i64, content: Content) -> Message {
    match content {
        Content::Key => {
            // A size alone makes no two messages copies.
            let named = message.message_id.is_some();
            message = imap::Message {
                uid: message.uid,
                flags: message.flags,
                internal_date: message.internal_date,
                size: message.size.filter(|_| named),
                message_id: message.message_id,
                content_id: message.content_id,
                ..imap::Message::default()
            };
        }
        Content::Headers => message.preview.clear(),
        Content::Preview => {}
    }
    let address = |address: imap::Address| Address {
        name: address.name,
        address: address.address,
    };
    let mut out = fit_message(Message {
        uid: message.uid,
        from: message.from.into_iter().map(address).collect(),
        to: message.to.into_iter().map(address).collect(),
        subject: message.subject,
        message_id: message.message_id.unwrap_or_default(),
        date_ms: message.date.unwrap_or_default(),
        internal_date_ms: message.internal_date.unwrap_or(now_ms),
        size: message.size.unwrap_or_default().into(),
        flags: message.flags,
        has_attachments: message.has_attachments,
        thread: message.thread.unwrap_or_default(),
        preview: message.preview,
        content_id: message.content_id.unwrap_or_default(),
    });
    if out.content_id.is_empty()
        && let Some(digest) = content_digest(&out)
    {
        // So that a client knows copies of one message, and those it listed, whatever the server tells.
        out.content_id = format!("{digest:016x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_have_one_content_id_with_and_without_the_servers() {
        let message = imap::Message {
            uid: 7,
            subject: "Hello".to_owned(),
            message_id: Some("a@b".to_owned()),
            size: Some(12),
            ..imap::Message::default()
        };
        let convert = |message, now_ms| convert(message, now_ms, Content::Preview);
        let first = convert(message.clone(), 5);
        assert_eq!((first.uid, first.internal_date_ms, first.size), (7, 5, 12));
        let copy = convert(
            imap::Message {
                uid: 9,
                ..message.clone()
            },
            6,
        );
        assert_eq!(copy.content_id, first.content_id);
        assert_eq!(first.content_id.len(), 16);
        let unread = imap::Message {
            uid: 7,
            ..imap::Message::default()
        };
        assert_eq!(convert(unread, 5).content_id, "");
        let known = convert(
            imap::Message {
                content_id: Some("M1".to_owned()),
                ..message
            },
            5,
        );
        assert_eq!(known.content_id, "M1");
    }

    #[test]
    fn a_key_alone_says_nothing_and_knows_copies() {
        let message = imap::Message {
            uid: 7,
            flags: vec!["\\Seen".to_owned()],
            internal_date: Some(4),
            subject: "Hello".to_owned(),
            from: vec![imap::Address::default()],
            thread: Some("c@d".to_owned()),
            date: Some(3),
            message_id: Some("a@b".to_owned()),
            size: Some(12),
            preview: "Dear".to_owned(),
            ..imap::Message::default()
        };
        let key = convert(message.clone(), 5, Content::Key);
        assert_eq!((key.uid, key.internal_date_ms, key.flags.len()), (7, 4, 1));
        assert!(key.subject.is_empty() && key.preview.is_empty() && key.from.is_empty());
        assert!(key.thread.is_empty() && key.date_ms == 0);
        let digest =
            |message: &imap::Message| content_digest(&convert(message.clone(), 5, Content::Key));
        let copy = imap::Message {
            uid: 9,
            flags: Vec::new(),
            ..message.clone()
        };
        assert_eq!(digest(&message), digest(&copy));
        let other = imap::Message {
            message_id: Some("c@b".to_owned()),
            ..message.clone()
        };
        assert_ne!(digest(&message), digest(&other));
        // Two of one size, and nothing to tell them apart by: nobody says that they are copies.
        let nameless = imap::Message {
            message_id: None,
            ..message.clone()
        };
        assert_eq!(digest(&nameless), None);
        let headers = convert(message, 5, Content::Headers);
        assert_eq!(
            (headers.subject.as_str(), headers.preview.as_str()),
            ("Hello", "")
        );
    }
}
