//! How much of mail an installation lets out of mailboxes.

use mailbell_proto::push::v1::ContentLevel;

use crate::token::Content;

/// The content policy of an installation.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct ContentArgs {
    /// The most of messages that is read from mailboxes and shown to devices, whatever accounts and tokens allow
    ///
    /// A watcher does not fetch, store or answer more than this; a gateway shows no more, also of what was stored before. Set it alike
    /// for all watchers and gateways: where they differ, a device sees the lower of its gateway's and the watcher's, and what is stored
    /// is the watcher's. With `key` devices hear that there is a message, and nothing of it; what that costs is in docs/protocol.md,
    /// "Content levels".
    #[arg(
        long,
        env = "MAILBELL_MOST_CONTENT",
        value_enum,
        value_name = "LEVEL",
        default_value_t = Content::Preview
    )]
    pub most_content: Content,
}

impl ContentArgs {
    /// As watchers and gateways have it.
    #[must_use]
    pub fn level(self) -> ContentLevel {
        self.most_content.into()
    }
}
