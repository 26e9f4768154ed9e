//! What watchers are told of tenants and mail providers: of all MailProviders of an installation one file, and what each of them is told
//! of that. Pure.
//!
//! Watchers take the file as a whole or not at all. So whatever of one MailProvider could not be taken is left out here, and said in its
//! status: it must not keep the others from being in force.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt as _};
use mailbell_core::policy::{
    HostLimits, MAX_BYTES, MAX_PROVIDERS, Policy, Provider, Quirks, canonical,
};
use mailbell_runtime::tls::check_roots;
use serde::Deserialize as _;
use serde_json::Value;

use crate::api::{MailProvider, MailProviderSpec, MailProviderStatus};

/// The key of a ConfigMap with root certificates.
pub const ROOTS: &str = "ca.crt";
/// Hosts that a sentence names at most.
const NAMED: usize = 3;

/// What a MailProvider is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// All of it is in force.
    pub is_good: bool,
    /// A word for programs.
    pub reason: &'static str,
    /// For a person.
    pub message: String,
}

/// The file, and what each MailProvider is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// Of [`MAX_BYTES`] at most, and such that watchers take it.
    pub text: String,
    /// In the order in which they were added.
    pub verdicts: Vec<(MailProvider, Verdict)>,
    /// Of those whose objects cannot be read the names, and whether watchers are told of them.
    pub unreadable: Vec<(String, bool)>,
}

impl Made {
    /// What a person is to know of those whose objects cannot be read: they cannot be told themselves.
    #[must_use]
    pub fn unread(&self) -> Option<String> {
        let told = self.unreadable.iter().take(NAMED).map(|(name, is_told)| {
            let rest = match is_told {
                true => "what watchers were told of it stays",
                false => "if it is for this installation, watchers are told nothing of it",
            };
            format!("the MailProvider {name} cannot be read: {rest}")
        });
        let told: Vec<String> = told.collect();
        let more = self.unreadable.len().saturating_sub(NAMED);
        match (told.is_empty(), more) {
            (true, _) => None,
            (false, 0) => Some(told.join("; ")),
            (false, _) => Some(format!("{}; and {more} more", told.join("; "))),
        }
    }
}

/// The oldest first, then by name: those that come first count first.
pub fn sort<K: Resource>(providers: &mut [K]) {
    providers.sort_by_cached_key(|provider| {
        let created = provider.meta().creation_timestamp.clone();
        (created.map(|time| time.0), provider.name_any())
    });
}

/// What a file says of each provider, by its name. Not of one that only another release can read: watchers of this one cannot either.
#[must_use]
pub fn entries(file: &str) -> HashMap<String, Provider> {
    let file: Value = serde_json::from_str(file).unwrap_or_default();
    let all = file.get("providers").and_then(Value::as_array);
    let read = all.into_iter().flatten().map(Provider::deserialize);
    let read = read.filter_map(Result::ok);
    read.map(|it| (it.name.clone(), it)).collect()
}

/// Makes the file, of one MailProvider after the other.
#[derive(Debug)]
pub struct Maker {
    policy: Policy,
    /// Of the text, in bytes.
    size: usize,
    /// Of the hosts that are taken, by [`canonical`].
    owners: HashMap<String, String>,
    /// By ConfigMap, what is known of its root certificates for all that name it: those that stand in the file, or why they cannot.
    roots: HashMap<String, Result<String, String>>,
    verdicts: Vec<(MailProvider, Verdict)>,
    unreadable: Vec<(String, bool)>,
}

impl Maker {
    /// Whoever these are: there is always room for them.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which is a bug.
    pub fn new(paused_tenants: &[String]) -> Result<Self, serde_json::Error> {
        let policy = Policy {
            paused_tenants: paused_tenants.iter().cloned().collect(),
            providers: Vec::new(),
        };
        Ok(Self {
            size: serde_json::to_string(&policy)?.len(),
            policy,
            owners: HashMap::new(),
            roots: HashMap::new(),
            verdicts: Vec::new(),
            unreadable: Vec::new(),
        })
    }

    /// Whether [`Maker::add`] goes by what it has learnt of this ConfigMap, whatever is there.
    #[must_use]
    pub fn knows(&self, config: &str) -> bool {
        self.roots.contains_key(config)
    }

    /// The next one. `roots`: what the ConfigMap that it names has as [`ROOTS`], if there is such.
    ///
    /// # Errors
    /// As [`Maker::new`].
    pub fn add(
        &mut self,
        provider: MailProvider,
        roots: Option<String>,
    ) -> Result<(), serde_json::Error> {
        let wanted = provider_of(&provider.name_any(), &provider.spec);
        let verdict = match entry(wanted, &self.owners) {
            Ok(entry) => self.admit(entry, provider.spec.ca_config_map.as_deref(), roots)?,
            Err(verdict) => verdict,
        };
        self.verdicts.push((provider, verdict));
        Ok(())
    }

    /// The next one, whose object cannot be read. `before`: what watchers were told of it ([`entries`]). That stays, since they must not
    /// forget a limit or a pause.
    ///
    /// # Errors
    /// As [`Maker::new`].
    pub fn keep(
        &mut self,
        name: String,
        before: Option<Provider>,
    ) -> Result<(), serde_json::Error> {
        let known = self.policy.providers.len();
        if let Some(mut before) = before {
            // Somebody may have changed the file: what watchers would refuse must not keep the others from being in force.
            before.ca_file = None;
            let roots = before.ca.take();
            // No ConfigMap has a name with a space in it.
            let origin = roots.as_ref().map(|_| format!("of {name}"));
            if let Ok(entry) = entry(before, &self.owners) {
                self.admit(entry, origin.as_deref(), roots)?;
            }
        }
        let is_told = self.policy.providers.len() > known;
        self.unreadable.push((name, is_told));
        Ok(())
    }

    /// Takes it into the file if there is room, in need without its root certificates. Which of both, and why, is the answer.
    fn admit(
        &mut self,
        InForce {
            mut provider,
            taken,
        }: InForce,
        config: Option<&str>,
        read: Option<String>,
    ) -> Result<Verdict, serde_json::Error> {
        let mut missing = None;
        let mut size = self.size_with(&provider)?;
        if size > MAX_BYTES || self.policy.providers.len() >= MAX_PROVIDERS {
            return Ok(no_room());
        }
        if let Some(name) = config {
            match self.roots_of(name, read) {
                Ok(pem) => provider.ca = Some(pem),
                Err(why) => missing = Some(why),
            }
            let with_roots = self.size_with(&provider)?;
            if with_roots > MAX_BYTES {
                provider.ca = None;
                missing = Some(no_room_for_roots());
            } else {
                size = with_roots;
            }
            if let Some(pem) = &provider.ca {
                self.roots.insert(name.to_owned(), Ok(pem.clone()));
            }
        }
        let verdict = verdict(&provider, &taken, missing);
        let owned = provider.hosts.iter().map(|host| canonical(host));
        let owned = owned.map(|host| (host, provider.name.clone()));
        self.owners.extend(owned);
        self.size = size;
        self.policy.providers.push(provider);
        Ok(verdict)
    }

    /// Of the file, if this one comes into it: with the comma before it.
    fn size_with(&self, provider: &Provider) -> Result<usize, serde_json::Error> {
        Ok(self.size + serde_json::to_string(provider)?.len() + 1)
    }

    /// Looks at those of one ConfigMap once. What is kept of them is in the file, or short, so that all together are bounded.
    fn roots_of(&mut self, name: &str, read: Option<String>) -> Result<String, String> {
        let roots = match (self.roots.get(name), read) {
            (Some(known), _) => known.clone(),
            (None, None) => Err(format!(
                "there is no ConfigMap {name} with a {ROOTS} in this namespace"
            )),
            (None, Some(pem)) => {
                let name = format!("{ROOTS} of the ConfigMap {name}");
                // As watchers do.
                let checked = check_roots(&name, pem.as_bytes());
                checked.map(|_| pem).map_err(|error| error.to_string())
            }
        };
        // The file only grows: what has no room now has none later.
        let roots = roots.and_then(|pem| match self.size + pem.len() > MAX_BYTES {
            true => Err(no_room_for_roots()),
            false => Ok(pem),
        });
        if let Err(why) = &roots {
            self.roots.insert(name.to_owned(), Err(why.clone()));
        }
        roots
    }

    /// The file, and what each is told.
    ///
    /// # Errors
    /// As [`Maker::new`].
    pub fn finish(self) -> Result<Made, serde_json::Error> {
        Ok(Made {
            text: serde_json::to_string(&self.policy)?,
            verdicts: self.verdicts,
            unreadable: self.unreadable,
        })
    }
}

/// What of a MailProvider comes into the file.
struct InForce {
    /// Without its root certificates.
    provider: Provider,
    /// Hosts of it that are others', and whose.
    taken: Vec<(String, String)>,
}

/// `owners`: of the hosts that are taken, by [`canonical`]. `Err`: nothing of it comes into the file.
fn entry(mut provider: Provider, owners: &HashMap<String, String>) -> Result<InForce, Verdict> {
    let mut taken = Vec::new();
    let mut own = HashSet::new();
    // One that older objects have is theirs; in another spelling of this one it is the same.
    provider
        .hosts
        .retain(|host| match owners.get(&canonical(host)) {
            Some(owner) => {
                taken.push((host.clone(), owner.clone()));
                false
            }
            None => own.insert(canonical(host)),
        });
    if provider.hosts.is_empty() && !taken.is_empty() {
        return Err(host_taken(&taken, "it has no other host"));
    }
    // As the API server checks them; those of a definition of another release may be otherwise.
    if let Err(error) = provider.check() {
        return Err(bad("Invalid", format!("Not in force: {error}.")));
    }
    Ok(InForce { provider, taken })
}

/// Of one that is in the file. Nobody has asked watchers, so nothing is said of what they do now.
fn verdict(provider: &Provider, taken: &[(String, String)], missing: Option<String>) -> Verdict {
    let hosts = count(provider.hosts.len());
    match (missing, taken.is_empty()) {
        (Some(why), true) => bad(
            "NoCertificates",
            format!("All but its root certificates is in force: {why}."),
        ),
        (Some(why), false) => {
            let Verdict { message, .. } = host_taken(taken, "its other hosts are in force");
            let message = format!("{message} Its root certificates are not: {why}.");
            bad("NoCertificates", message)
        }
        (None, false) => host_taken(taken, "its other hosts are in force"),
        (None, true) if provider.paused => good(
            "Paused",
            format!("Watchers are told within some minutes: nobody connects to {hosts}."),
        ),
        (None, true) => good(
            "InForce",
            format!("Watchers are told within some minutes: in force for {hosts}."),
        ),
    }
}

/// As watchers have it. A number below zero is refused as one that is too large is.
fn provider_of(name: &str, spec: &MailProviderSpec) -> Provider {
    let number =
        |number: Option<i32>| number.map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    Provider {
        name: name.to_owned(),
        hosts: spec.hosts.clone(),
        limits: HostLimits {
            connects_per_second: number(spec.limits.connects_per_second),
            logins_per_second: number(spec.limits.logins_per_second),
            connections: number(spec.limits.connections),
        },
        quirks: Quirks {
            idle_minutes: number(spec.quirks.idle_minutes),
            no_idle: spec.quirks.no_idle,
            poll_seconds: number(spec.quirks.poll_seconds),
        },
        ca_file: None,
        ca: None,
        paused: spec.paused,
    }
}

fn count(hosts: usize) -> String {
    match hosts {
        1 => "its host".to_owned(),
        many => format!("its {many} hosts"),
    }
}

fn good(reason: &'static str, message: String) -> Verdict {
    Verdict {
        is_good: true,
        reason,
        message,
    }
}

fn bad(reason: &'static str, message: String) -> Verdict {
    Verdict {
        is_good: false,
        reason,
        message,
    }
}

fn host_taken(taken: &[(String, String)], rest: &str) -> Verdict {
    let mut message = String::new();
    for (host, owner) in taken.iter().take(NAMED) {
        let _ = write!(
            message,
            "{host} belongs to the older MailProvider {owner}, "
        );
    }
    let more = taken.len().saturating_sub(NAMED);
    if more > 0 {
        let _ = write!(message, "{more} more to others, ");
    }
    let _ = write!(message, "and {rest}.");
    bad("HostTaken", message)
}

fn no_room() -> Verdict {
    let text = format!(
        "Not in force: watchers are told of {MAX_PROVIDERS} MailProviders in {} KiB at most, and those that are older fill that.",
        MAX_BYTES / 1024
    );
    bad("NoRoom", text)
}

fn no_room_for_roots() -> String {
    format!(
        "there is no room for them in the {} KiB that watchers are told",
        MAX_BYTES / 1024
    )
}

/// Of all, where the API server refuses the file. `before`: there is one, and what it says holds.
#[must_use]
pub fn refused(why: &str, before: bool) -> Verdict {
    let what = match before {
        true => "Changes are not in force",
        false => "Not in force",
    };
    bad("Refused", format!("{what}: {why}."))
}

/// Of one whose installation is not there.
#[must_use]
pub fn no_installation(name: &str) -> Verdict {
    let text = format!("Not in force: there is no Mailbell {name} in this namespace.");
    bad("NoInstallation", text)
}

/// The status by which a MailProvider is told.
#[must_use]
pub fn status(provider: &MailProvider, verdict: &Verdict, now: Timestamp) -> MailProviderStatus {
    let status = if verdict.is_good { "True" } else { "False" };
    let generation = provider.metadata.generation;
    let before = ready(provider.status.as_ref());
    let since = before.filter(|before| before.status == status);
    MailProviderStatus {
        observed_generation: generation,
        conditions: vec![Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: verdict.reason.to_owned(),
            message: verdict.message.clone(),
            last_transition_time: since
                .map_or(Time(now), |before| before.last_transition_time.clone()),
            observed_generation: generation,
        }],
    }
}

/// The condition that says how it is, if it was said.
#[must_use]
pub fn ready(status: Option<&MailProviderStatus>) -> Option<&Condition> {
    let mut conditions = status?.conditions.iter();
    conditions.find(|condition| condition.type_ == "Ready")
}

#[cfg(test)]
mod tests;
