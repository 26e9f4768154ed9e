//! What is asked of messages: no more than is to be told of them.

use crate::capability::Capability;
use crate::connection::Connection;
use crate::message::{Content, preview};

/// First bytes of the header fields that are fetched.
pub(crate) const HEADER_BYTES: usize = 16 << 10;
/// What nearly every message has: its text, or the first part of its text.
pub(crate) const FIRST_PART: &str = "1";
const HEADER_FIELDS: &str = "FROM SENDER TO SUBJECT DATE MESSAGE-ID IN-REPLY-TO REFERENCES";
/// First bytes of a Message-ID, if that is all that is asked for.
const MESSAGE_ID_BYTES: usize = 1 << 10;

/// How much is asked of messages; less when a server's answer could not be read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    Full,
    NoStructure,
    Minimal,
    /// What a server has in its index, without a look into any message.
    Named,
}

impl Connection {
    /// How much of messages is read from now on; [`Content::Preview`] before.
    pub fn set_content(&mut self, content: Content) {
        if self.session.content != content {
            self.session.content = content;
            self.ahead = None;
        }
    }

    /// How much of messages is read.
    #[must_use]
    pub fn content(&self) -> Content {
        self.session.content
    }

    /// What is asked of a message.
    pub(super) fn items(&self, depth: Depth) -> String {
        let capabilities = self.session.capabilities;
        let mut items = String::from("UID FLAGS");
        if depth != Depth::Named {
            items.push_str(" INTERNALDATE RFC822.SIZE");
        }
        if self.session.content == Content::Key {
            if matches!(depth, Depth::Full | Depth::NoStructure) {
                // By what copies are known.
                items.push_str(&if capabilities.has(Capability::ObjectId) {
                    " EMAILID".to_owned()
                } else if capabilities.has(Capability::Gmail) {
                    " X-GM-MSGID".to_owned()
                } else {
                    format!(" BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)]<0.{MESSAGE_ID_BYTES}>")
                });
            }
            return items;
        }
        if matches!(depth, Depth::Full | Depth::NoStructure) {
            for (capability, more) in [
                (Capability::CondStore, " MODSEQ"),
                (Capability::ObjectId, " EMAILID THREADID"),
                (Capability::Gmail, " X-GM-MSGID X-GM-THRID"),
            ] {
                if capabilities.has(capability) {
                    items.push_str(more);
                }
            }
            items.push_str(&format!(
                " BODY.PEEK[HEADER.FIELDS ({HEADER_FIELDS})]<0.{HEADER_BYTES}>"
            ));
        }
        if depth == Depth::Full {
            items.push_str(" BODYSTRUCTURE");
        }
        if depth == Depth::Full && self.session.content == Content::Preview {
            // The text of most messages is, or begins in, the first part: no further question is needed for those.
            items.push_str(&format!(
                " BODY.PEEK[{FIRST_PART}]<0.{}>",
                preview::PLAIN_BYTES
            ));
        }
        items
    }
}
