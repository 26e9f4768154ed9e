//! What a mail provider's hosts take, as the operator of an installation says it: limits, quirks, whom to trust there, and whether
//! its accounts rest.
//!
//! A list of providers comes from a file (`mailbell watcher --providers-file`), in the form that [`Providers`] has as JSON. It is
//! good as a whole or not at all: [`Providers::check`]. Hosts are looked up in a [`Hosts`].

use std::{
    collections::{HashMap, HashSet},
    ops::RangeInclusive,
};

use serde::{Deserialize, Serialize};

/// Providers of a list at most.
pub const MAX_PROVIDERS: usize = 1000;
/// Hosts of a provider at most.
pub const MAX_HOSTS: usize = 100;
/// The longest name of a provider or a host: what DNS takes.
const MAX_NAME: usize = 253;
/// As `--connects-per-host` and `--logins-per-host` of a watcher.
const RATE: RangeInclusive<u32> = 1..=100_000;
const CONNECTIONS: RangeInclusive<u32> = 1..=10_000;
/// RFC 2177 names 29 minutes as the most.
const IDLE_MINUTES: RangeInclusive<u32> = 1..=29;
/// RFC 3501 lets a server log out who says nothing for 30 minutes.
const POLL_SECONDS: RangeInclusive<u32> = 10..=1740;
/// What a host begins with that stands for all hosts below a name.
const ANY: &str = "*.";

/// The whole list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Providers {
    /// In any order.
    pub providers: Vec<Provider>,
}

/// One mail provider, or one server of one's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Tells it from the others.
    pub name: String,
    /// Its hosts as accounts name them, in any case. `*.example.org` stands for all hosts below `example.org`, not for that itself.
    pub hosts: Vec<String>,
    /// How much may be asked of each host.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: HostLimits,
    /// What its servers do otherwise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quirks: Quirks,
    /// A file of root certificates (PEM) that its hosts may have, beside the usual ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<String>,
    /// The same certificates in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// Nobody connects to its hosts while true.
    #[serde(default, skip_serializing_if = "is_default")]
    pub paused: bool,
}

/// How much may be asked of one host. Unset: what holds for every host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostLimits {
    /// How many connections all watchers behind one address together begin a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connects_per_second: Option<u32>,
    /// How many logins all watchers behind one address together try a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logins_per_second: Option<u32>,
    /// How many connections of one watcher are between TCP and the end of the login at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u32>,
}

/// What servers do otherwise than others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Quirks {
    /// IDLE is ended and begun anew after so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_minutes: Option<u32>,
    /// IDLE is announced and does not work: mailboxes are polled.
    #[serde(default, skip_serializing_if = "is_default")]
    pub no_idle: bool,
    /// A mailbox is never polled more often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_seconds: Option<u32>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What is wrong with a list of providers, in words for whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// More than anybody has.
    #[error("{0} providers: at most {MAX_PROVIDERS} are taken")]
    TooMany(usize),
    /// A provider without a usable name, by its place.
    #[error("provider number {0}: give it a name of 1 to {MAX_NAME} characters")]
    Name(usize),
    /// Two providers cannot be told apart.
    #[error("two providers have the name {0:?}: give each a name of its own")]
    SameName(String),
    /// No hosts, or too many.
    #[error("provider {0:?}: hosts: name 1 to {MAX_HOSTS} of them, not {1}")]
    HostCount(String, usize),
    /// Not the name of a host.
    #[error(
        "provider {provider:?}: hosts: {host:?} is neither a host, as imap.example.org, nor all below a name, as *.example.org"
    )]
    Host {
        /// Whose.
        provider: String,
        /// Which.
        host: String,
    },
    /// Nobody could say which of them counts.
    #[error(
        "providers {first:?} and {second:?} both have the host {host:?}: a host belongs to one provider"
    )]
    SameHost {
        /// The one that stands first.
        first: String,
        /// The other.
        second: String,
        /// Which.
        host: String,
    },
    /// Said twice.
    #[error("provider {provider:?}: hosts: {host:?} stands there twice")]
    HostTwice {
        /// Whose.
        provider: String,
        /// Which.
        host: String,
    },
    /// A number that is out of bounds.
    #[error("provider {provider:?}: {field}: {value} is not between {least} and {most}")]
    Number {
        /// Whose.
        provider: String,
        /// Which.
        field: &'static str,
        /// What it is.
        value: u32,
        /// What it may be.
        least: u32,
        /// What it may be.
        most: u32,
    },
    /// Two places for the same certificates.
    #[error("provider {0:?}: caFile and ca: give one of them")]
    TwoAuthorities(String),
}

impl Providers {
    /// Which provider a host belongs to, by its place in the list.
    ///
    /// # Errors
    /// The first thing that is wrong with the list.
    pub fn check(&self) -> Result<Hosts<usize>, ProviderError> {
        let providers = &self.providers;
        if providers.len() > MAX_PROVIDERS {
            return Err(ProviderError::TooMany(providers.len()));
        }
        let mut names = HashSet::new();
        let mut hosts = Hosts::default();
        for (place, provider) in providers.iter().enumerate() {
            if !(1..=MAX_NAME).contains(&provider.name.len()) {
                return Err(ProviderError::Name(place + 1));
            }
            if !names.insert(provider.name.as_str()) {
                return Err(ProviderError::SameName(provider.name.clone()));
            }
            provider.check()?;
            for host in &provider.hosts {
                let Some(before) = hosts.insert(host, place) else {
                    continue;
                };
                let (second, host) = (provider.name.clone(), host.clone());
                return Err(match providers.get(before) {
                    Some(first) if before != place => ProviderError::SameHost {
                        first: first.name.clone(),
                        second,
                        host,
                    },
                    _ => ProviderError::HostTwice {
                        provider: second,
                        host,
                    },
                });
            }
        }
        Ok(hosts)
    }
}

impl Provider {
    /// What can be said of it without the others.
    fn check(&self) -> Result<(), ProviderError> {
        let name = || self.name.clone();
        if !(1..=MAX_HOSTS).contains(&self.hosts.len()) {
            return Err(ProviderError::HostCount(name(), self.hosts.len()));
        }
        if let Some(host) = self.hosts.iter().find(|host| !is_host(host)) {
            return Err(ProviderError::Host {
                provider: name(),
                host: host.chars().take(MAX_NAME).collect(),
            });
        }
        if self.ca.is_some() && self.ca_file.is_some() {
            return Err(ProviderError::TwoAuthorities(name()));
        }
        let (limits, quirks) = (&self.limits, &self.quirks);
        for (field, value, bounds) in [
            ("limits.connectsPerSecond", limits.connects_per_second, RATE),
            ("limits.loginsPerSecond", limits.logins_per_second, RATE),
            ("limits.connections", limits.connections, CONNECTIONS),
            ("quirks.idleMinutes", quirks.idle_minutes, IDLE_MINUTES),
            ("quirks.pollSeconds", quirks.poll_seconds, POLL_SECONDS),
        ] {
            if let Some(value) = value
                && !bounds.contains(&value)
            {
                return Err(ProviderError::Number {
                    provider: name(),
                    field,
                    value,
                    least: *bounds.start(),
                    most: *bounds.end(),
                });
            }
        }
        Ok(())
    }
}

/// A name, an address, or all below a name.
fn is_host(host: &str) -> bool {
    let name = host.strip_prefix(ANY).unwrap_or(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
}

/// Something by host. Of all that stand for a host the longest counts: the host itself, or else the nearest name above it.
#[derive(Debug, Clone)]
pub struct Hosts<T> {
    exact: HashMap<Box<str>, T>,
    /// By the name above.
    below: HashMap<Box<str>, T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            below: HashMap::new(),
        }
    }
}

impl<T> Hosts<T> {
    /// What stood for the same hosts before, if anything did.
    pub fn insert(&mut self, host: &str, value: T) -> Option<T> {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix(ANY) {
            Some(above) => self.below.insert(above.into(), value),
            None => self.exact.insert(host.into(), value),
        }
    }

    /// What there is for this host, in any case and with or without a dot at its end.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<&T> {
        if self.exact.is_empty() && self.below.is_empty() {
            return None;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if let Some(found) = self.exact.get(host.as_str()) {
            return Some(found);
        }
        let mut above = host.as_str();
        while let Some((_, rest)) = above.split_once('.') {
            if let Some(found) = self.below.get(rest) {
                return Some(found);
            }
            above = rest;
        }
        None
    }

    /// The same hosts with something else.
    #[must_use]
    pub fn map<U>(&self, change: impl Fn(&T) -> U) -> Hosts<U> {
        let each = |hosts: &HashMap<Box<str>, T>| {
            hosts
                .iter()
                .map(|(host, value)| (host.clone(), change(value)))
                .collect()
        };
        Hosts {
            exact: each(&self.exact),
            below: each(&self.below),
        }
    }
}

#[cfg(test)]
mod tests;
