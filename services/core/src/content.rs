//! How much of a message may be seen: the lowest of what the installation, the account and the token allow.

use bytes::Bytes;
use mailbell_proto::push::v1::{ContentLevel, Message};
use prost::Message as _;

use crate::event::{Event, Fact};

/// The word for a level, in tokens and settings.
#[must_use]
pub fn word(level: ContentLevel) -> &'static str {
    match level {
        ContentLevel::Key => "key",
        ContentLevel::Headers => "headers",
        ContentLevel::Preview | ContentLevel::Unspecified => "preview",
    }
}

/// The level of a word; `None` if it is none.
#[must_use]
pub fn level(word: &str) -> Option<ContentLevel> {
    match word {
        "key" => Some(ContentLevel::Key),
        "headers" => Some(ContentLevel::Headers),
        "preview" => Some(ContentLevel::Preview),
        _ => None,
    }
}

/// The policy that an account's record has: unset means no other than the installation's. What only a newer release knows is less than
/// anything that this one could take it for.
#[must_use]
pub fn policy(stored: i32) -> ContentLevel {
    match ContentLevel::try_from(stored) {
        Ok(ContentLevel::Unspecified | ContentLevel::Preview) => ContentLevel::Preview,
        Ok(ContentLevel::Headers) => ContentLevel::Headers,
        Ok(ContentLevel::Key) | Err(_) => ContentLevel::Key,
    }
}

/// A message with no more than this level shows.
#[must_use]
pub fn strip(mut message: Message, level: ContentLevel) -> Message {
    match level {
        ContentLevel::Key => Message {
            uid: message.uid,
            ..Message::default()
        },
        ContentLevel::Headers => {
            message.preview.clear();
            message
        }
        ContentLevel::Preview | ContentLevel::Unspecified => message,
    }
}

/// What an arrival's event says of its message, encoded: with KEY nothing, since the event's key says all.
#[must_use]
pub fn stored(message: Message, most: ContentLevel) -> Bytes {
    match most {
        ContentLevel::Key => Bytes::new(),
        most => strip(message, most).encode_to_vec().into(),
    }
}

/// Lets an arrival that was stored under another policy say no more than this one allows.
pub fn limit(event: &mut Event, most: ContentLevel) {
    let says_more = most < ContentLevel::Preview && !event.content.is_empty();
    if says_more && matches!(event.fact, Fact::Arrived { .. }) {
        let message = Message::decode(event.content.clone());
        event.content = message.map_or_else(|_| Bytes::new(), |message| stored(message, most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_not_known_shows_least() {
        let stored = |level: ContentLevel| policy(level.into());
        assert_eq!(stored(ContentLevel::Unspecified), ContentLevel::Preview);
        assert_eq!(stored(ContentLevel::Preview), ContentLevel::Preview);
        assert_eq!(stored(ContentLevel::Headers), ContentLevel::Headers);
        assert_eq!(stored(ContentLevel::Key), ContentLevel::Key);
        for newer in [-1, 4, i32::MAX] {
            assert_eq!(policy(newer), ContentLevel::Key);
        }
    }

    #[test]
    fn each_level_has_a_word() {
        for known in [
            ContentLevel::Key,
            ContentLevel::Headers,
            ContentLevel::Preview,
        ] {
            assert_eq!(level(word(known)), Some(known));
        }
        for unknown in ["", "Key", "all"] {
            assert_eq!(level(unknown), None);
        }
    }

    #[test]
    fn what_is_stored_is_no_more_than_the_level_shows() {
        let message = Message {
            uid: 7,
            subject: "Hello".to_owned(),
            preview: "Dear".to_owned(),
            content_id: "M1".to_owned(),
            ..Message::default()
        };
        let whole = stored(message.clone(), ContentLevel::Preview);
        assert_eq!(Message::decode(whole).unwrap(), message);
        let headers = Message::decode(stored(message.clone(), ContentLevel::Headers)).unwrap();
        assert_eq!(
            (headers.subject.as_str(), headers.preview.as_str()),
            ("Hello", "")
        );
        assert!(stored(message.clone(), ContentLevel::Key).is_empty());
        let uid = strip(message, ContentLevel::Key);
        assert_eq!(
            uid.encoded_len(),
            Message {
                uid: 7,
                ..Message::default()
            }
            .encoded_len()
        );
    }
}
