//! What the operator of an installation says while it runs: whose accounts rest, and what mail providers' hosts take, that is limits,
//! quirks, and whom to trust there.
//!
//! It comes from a file (`mailbell watcher --policy-file`), in the form that [`Policy`] has as JSON. It is good as a whole or not at all:
//! [`Policy::check`]. Hosts are looked up in a [`Hosts`].

mod hosts;

use std::{
    collections::{BTreeSet, HashSet},
    ops::RangeInclusive,
};

use serde::{Deserialize, Serialize};

pub use self::hosts::{Hosts, canonical};
use crate::ids::Tenant;

/// The file at most, in bytes: a ConfigMap of Kubernetes holds no more.
pub const MAX_BYTES: usize = 1024 * 1024;
/// Paused tenants at most.
pub const MAX_PAUSED_TENANTS: usize = 1000;
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

/// All that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Nobody connects for the accounts of these tenants.
    #[serde(default)]
    pub paused_tenants: BTreeSet<String>,
    /// In any order.
    #[serde(default)]
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

/// What is wrong with a policy, in words for whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// More than anybody has.
    #[error("pausedTenants: {0} of them: at most {MAX_PAUSED_TENANTS} are taken")]
    TooManyTenants(usize),
    /// Not the name of a tenant.
    #[error("pausedTenants: {0:?} is no tenant: those have 1 to 63 characters of a-z, 0-9 and '-'")]
    Tenant(String),
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
        "provider {provider:?}: hosts: {host:?} is neither a host, as imap.example.org or 2001:db8::1, nor all below a name, as \
         *.example.org; ports and brackets do not belong to it"
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

impl Policy {
    /// Which provider a host belongs to, by its place in the list.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<Hosts<usize>, PolicyError> {
        let tenants = &self.paused_tenants;
        if tenants.len() > MAX_PAUSED_TENANTS {
            return Err(PolicyError::TooManyTenants(tenants.len()));
        }
        let bad = tenants
            .iter()
            .find(|tenant| tenant.parse::<Tenant>().is_err());
        if let Some(tenant) = bad {
            return Err(PolicyError::Tenant(tenant.chars().take(MAX_NAME).collect()));
        }
        let providers = &self.providers;
        if providers.len() > MAX_PROVIDERS {
            return Err(PolicyError::TooMany(providers.len()));
        }
        let mut names = HashSet::new();
        let mut hosts = Hosts::default();
        for (place, provider) in providers.iter().enumerate() {
            if !(1..=MAX_NAME).contains(&provider.name.len()) {
                return Err(PolicyError::Name(place + 1));
            }
            if !names.insert(provider.name.as_str()) {
                return Err(PolicyError::SameName(provider.name.clone()));
            }
            provider.check()?;
            for host in &provider.hosts {
                let Some(before) = hosts.insert(host, place) else {
                    continue;
                };
                let (second, host) = (provider.name.clone(), host.clone());
                return Err(match providers.get(before) {
                    Some(first) if before != place => PolicyError::SameHost {
                        first: first.name.clone(),
                        second,
                        host,
                    },
                    _ => PolicyError::HostTwice {
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
    /// Whether it is good by itself, whatever the others are.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn check(&self) -> Result<(), PolicyError> {
        let name = || self.name.clone();
        if !(1..=MAX_HOSTS).contains(&self.hosts.len()) {
            return Err(PolicyError::HostCount(name(), self.hosts.len()));
        }
        if let Some(host) = self.hosts.iter().find(|host| !hosts::is_host(host)) {
            return Err(PolicyError::Host {
                provider: name(),
                host: host.chars().take(MAX_NAME).collect(),
            });
        }
        if self.ca.is_some() && self.ca_file.is_some() {
            return Err(PolicyError::TwoAuthorities(name()));
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
                return Err(PolicyError::Number {
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

#[cfg(test)]
mod tests;
