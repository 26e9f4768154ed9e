//! What a watcher can be told.

use std::time::Duration;

use mailbell_core::{pace::Rates, session::Limits};
use mailbell_proto::push::v1::ContentLevel;

/// How a watcher works. Everything has a default but who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Who it is: a pod, or a locked state directory. A new incarnation of the same member may take its claims at once.
    pub member: String,
    /// Random a start.
    pub incarnation: String,
    /// Bounds and periods of a session.
    pub limits: Limits,
    /// How long a mail server may say nothing at all while it idles before the link is tried (8 min: servers that send
    /// keep-alive lines do so every two or three minutes, and a middle box that forgets a connection does so after ten or more).
    pub quiet: Duration,
    /// How many connections are begun a second (1000: fifty thousand mailboxes within a minute).
    pub connects_per_second: u32,
    /// How many all watchers behind one address begin a second to one host (100: a server of one's own takes it, and no big provider
    /// minds it from one address). This watcher uses its share of it.
    pub connects_per_host: u32,
    /// How many logins all watchers behind one address try a second at one host (50: a login costs the server a password hash, some
    /// 20 to 100 ms of a core, so that is what a machine of four to eight cores does beside its other work). This watcher uses
    /// its share of it.
    pub logins_per_host: u32,
    /// How many connections may be between TCP and the end of the login at once (256: what a handshake holds in memory and CPU
    /// is many times what a parked connection holds). A quarter of them with one host, so that a slow one does not hold all.
    pub handshakes: usize,
    /// How many logins are checked at once for the admin API (16).
    pub checks: usize,
    /// How many requests may wait for one account's connection (8).
    pub requests: usize,
    /// The longest that one page of a listing may keep the connection from idling (30 s).
    pub page_time: Duration,
    /// Its share of the partitions, relative to the others' (100).
    pub weight: u32,
    /// The most accounts that it takes, to within a tenth (none: no limit). Others get what it has no room for.
    pub most_accounts: Option<u32>,
    /// Watchers with the same name here share one address towards mail servers, and so a provider's budget.
    pub egress: String,
    /// The release, as others see it.
    pub release: String,
    /// The most of messages that is read, stored and answered, whatever accounts and tokens allow (all up to the preview). Never
    /// [`ContentLevel::Unspecified`].
    pub most_content: ContentLevel,
    /// How long a session of a partition that is given away may take to end (10 s).
    pub finish: Duration,
}

impl Options {
    /// The defaults for this member.
    #[must_use]
    pub fn new(member: impl Into<String>, incarnation: impl Into<String>) -> Self {
        Self {
            member: member.into(),
            incarnation: incarnation.into(),
            limits: Limits::default(),
            quiet: Duration::from_secs(8 * 60),
            connects_per_second: 1000,
            connects_per_host: 100,
            logins_per_host: 50,
            handshakes: 256,
            checks: 16,
            requests: 8,
            page_time: Duration::from_secs(30),
            weight: 100,
            most_accounts: None,
            egress: String::new(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            most_content: ContentLevel::Preview,
            finish: Duration::from_secs(10),
        }
    }

    pub(crate) fn rates(&self) -> Rates {
        Rates {
            connects: self.connects_per_second,
            host_connects: self.connects_per_host,
            host_logins: self.logins_per_host,
            handshakes: self.handshakes,
        }
    }
}
