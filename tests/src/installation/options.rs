//! What an installation is made of.

use std::{fmt, net::IpAddr};

use anyhow::Context as _;

use crate::process::Release;

/// A process of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// All roles in one process, which starts a NATS server unless it is given one.
    Standalone,
    /// One of those that hold the mailboxes, counted from 0.
    Watcher(u16),
    /// The role that holds the devices.
    Gateway,
    /// The role that holds the accounts.
    Admin,
}

impl Part {
    /// The command that starts it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Watcher(_) => "watcher",
            Self::Gateway => "gateway",
            Self::Admin => "admin",
        }
    }
}

/// A watcher's is also the name by which it owns accounts.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Watcher(n) => write!(f, "watcher-{n}"),
            part => f.write_str(part.name()),
        }
    }
}

/// What processes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// One process.
    #[default]
    Standalone,
    /// One process a role, and as many watchers as are wanted, on a NATS server of the test.
    Roles,
}

/// What one of several watchers has for itself.
#[derive(Debug, Clone, Default)]
pub struct WatcherOptions {
    /// How it reaches NATS, for example through a proxy; unset: as all do.
    pub nats_url: Option<String>,
    /// Names of hosts and where they are for it alone, so that one mail server is reached by a way that can be cut.
    pub hosts: Vec<(String, IpAddr)>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Further environment.
    pub env: Vec<(String, String)>,
}

impl WatcherOptions {
    /// What it sees as `/etc/hosts`.
    pub(super) fn hosts_file(&self) -> String {
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for (name, address) in &self.hosts {
            text.push_str(&format!("{address} {name}\n"));
        }
        text
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which processes.
    pub layout: Layout,
    /// The watchers, for [`Layout::Roles`].
    pub watchers: Vec<WatcherOptions>,
    /// Whether mailboxes without TLS may be added, as those of the test server are.
    pub plaintext_imap: bool,
    /// A NATS server to use in place of an own one; needed for [`Layout::Roles`].
    pub nats_url: Option<String>,
    /// Of which release the setup is, and whatever is launched from now on.
    pub release: Release,
    /// Replicas of each stream, for [`Layout::Roles`].
    pub replicas: u8,
    /// Further arguments of every process.
    pub args: Vec<String>,
    /// Further environment of every process, for example a failpoint.
    pub env: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::Standalone,
            watchers: vec![WatcherOptions::default()],
            plaintext_imap: true,
            nats_url: None,
            release: Release::This,
            replicas: 1,
            args: Vec::new(),
            env: Vec::new(),
        }
    }
}

impl Options {
    /// With a further variable of the environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The processes, in the order in which they are started.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        match self.layout {
            Layout::Standalone => vec![Part::Standalone],
            Layout::Roles => {
                let watchers = (0..).zip(&self.watchers).map(|(n, _)| Part::Watcher(n));
                watchers.chain([Part::Admin, Part::Gateway]).collect()
            }
        }
    }

    pub(super) fn watcher(&self, n: u16) -> anyhow::Result<&WatcherOptions> {
        let options = self.watchers.get(usize::from(n));
        options.with_context(|| format!("there is no {}", Part::Watcher(n)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_from_the_layout() {
        let mut options = Options::default();
        assert_eq!(options.parts(), [Part::Standalone]);
        options.layout = Layout::Roles;
        options.watchers.push(WatcherOptions::default());
        let names: Vec<String> = options.parts().iter().map(Part::to_string).collect();
        assert_eq!(names, ["watcher-0", "watcher-1", "admin", "gateway"]);
    }

    #[test]
    fn a_watcher_has_hosts_of_its_own() {
        let options = WatcherOptions {
            hosts: vec![("imap.test".to_owned(), [127, 0, 1, 1].into())],
            ..WatcherOptions::default()
        };
        assert_eq!(
            options.hosts_file(),
            "127.0.0.1 localhost\n127.0.1.1 imap.test\n"
        );
    }
}
