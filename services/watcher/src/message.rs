//! A message as the mail server tells it, as devices see it.

use mailbell_core::event::{content_digest, fit_message};
use mailbell_imap as imap;
use mailbell_proto::push::v1::{Address, Message};

/// `now_ms` stands in for an INTERNALDATE that the server does not tell.
pub(crate) fn convert(message: imap::Message, now_ms: i64) -> Message {
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
}
