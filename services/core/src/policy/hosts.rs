//! Hosts, as accounts and providers name them.

use std::{collections::HashMap, net::Ipv6Addr};

use super::MAX_NAME;

/// What a host begins with that stands for all hosts below a name.
pub(super) const ANY: &str = "*.";

/// A name, an address, or all below a name. What an account's host never has, as a port or brackets, would match nothing without a word.
pub(super) fn is_host(host: &str) -> bool {
    if host.parse::<Ipv6Addr>().is_ok() {
        return true;
    }
    let name = host.strip_prefix(ANY).unwrap_or(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
}

/// In one spelling, by which hosts are looked up: in lower case, and of the many that an IPv6 address has the shortest.
#[must_use]
pub fn canonical(host: &str) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(address) => address.to_string(),
        Err(_) => host.to_ascii_lowercase(),
    }
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
        let host = canonical(host);
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
        let host = canonical(host.strip_suffix('.').unwrap_or(host));
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
