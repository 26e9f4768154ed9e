//! How much of mail is let out of mailboxes.

use mailbell_proto::push::v1::ContentLevel;
use serde::{Deserialize, Serialize};

/// A content level, in the word that tokens have for it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// That there is a message.
    Key,
    /// Also addresses, subject, dates, size and flags.
    Headers,
    /// Also the beginning of the text.
    #[default]
    Preview,
}

impl From<Content> for ContentLevel {
    fn from(content: Content) -> Self {
        match content {
            Content::Key => Self::Key,
            Content::Headers => Self::Headers,
            Content::Preview => Self::Preview,
        }
    }
}
