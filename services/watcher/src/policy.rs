//! What the operator says of tenants and mail providers (`mailbell_core::policy`), as it is in force, and the file that says it.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mailbell_core::{
    ids::{AccountId, Tenant},
    pace::Rates,
    policy::{self, HostLimits, Hosts, Quirks},
    session::{Limits, Pause},
};
use mailbell_imap::TlsSettings;
use mailbell_runtime::{
    drain::DrainHandle,
    reload::{self, read_bounded},
};
use tokio::sync::watch;

use crate::{Error, Metrics};

/// The file at most.
const MAX_BYTES: u64 = policy::MAX_BYTES as u64;
/// All files of root certificates that it names together.
const MAX_ROOTS_BYTES: u64 = 16 * 1024 * 1024;
/// What is told of an error at most: it may quote the file.
const MAX_REASON: usize = 500;

/// All that is said.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    pub(crate) paused_tenants: HashSet<Tenant>,
    /// By host.
    pub(crate) providers: Hosts<Arc<Provider>>,
}

impl Policy {
    /// What concerns an account whose mailbox is at this host.
    pub(crate) fn of(&self, account: &AccountId, host: &str) -> Said {
        Said {
            tenant_paused: self.paused_tenants.contains(account.tenant()),
            provider: self.providers.find(host).cloned(),
        }
    }
}

/// What is said of one account.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    pub(crate) tenant_paused: bool,
    pub(crate) provider: Option<Arc<Provider>>,
}

impl Said {
    /// Why nobody is to connect for it now.
    pub(crate) fn pause(&self) -> Option<Pause> {
        if self.tenant_paused {
            return Some(Pause::Tenant);
        }
        let provider = self.provider.as_ref();
        provider
            .is_some_and(|provider| provider.paused)
            .then_some(Pause::Provider)
    }

    /// Nothing is.
    pub(crate) fn is_nothing(&self) -> bool {
        !self.tenant_paused && self.provider.is_none()
    }
}

/// What is said of a provider.
#[derive(Debug, Default)]
pub(crate) struct Provider {
    pub(crate) limits: HostLimits,
    pub(crate) quirks: Quirks,
    pub(crate) paused: bool,
    /// Whom to trust there, if it is not as everywhere.
    pub(crate) tls: Option<TlsSettings>,
}

impl Provider {
    /// The bounds of a session whose mailbox is there.
    pub(crate) fn session_limits(&self, mut limits: Limits) -> Limits {
        if let Some(minutes) = self.quirks.idle_minutes {
            limits.idle = Duration::from_secs(60 * u64::from(minutes));
        }
        if let Some(seconds) = self.quirks.poll_seconds {
            let least = Duration::from_secs(seconds.into());
            for period in [
                &mut limits.poll_least,
                &mut limits.poll_most,
                &mut limits.sweep,
            ] {
                *period = least.max(*period);
            }
        }
        limits
    }

    /// How many log in there a second, of all watchers behind one address; none, while it is paused.
    pub(crate) fn logins(&self, rates: &Rates) -> Option<u32> {
        let HostLimits {
            connects_per_second,
            logins_per_second,
            ..
        } = self.limits;
        let connects = connects_per_second.unwrap_or(rates.host_connects);
        let logins = logins_per_second.unwrap_or(rates.host_logins);
        (!self.paused).then_some(logins.min(connects))
    }
}

/// The file that says it. It is read again while the watcher runs.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    /// Whom to trust everywhere.
    tls: TlsSettings,
    hasher: RandomState,
    /// A digest of what was last found good; held during a look, so that two do not overtake each other.
    seen: Mutex<u64>,
    current: watch::Sender<Arc<Policy>>,
}

impl PolicyFile {
    /// Reads it for the first time. `tls`: whom to trust where it says nothing.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Policy`].
    pub fn load(path: impl Into<PathBuf>, tls: TlsSettings) -> Result<Arc<Self>, Error> {
        let file = Self {
            path: path.into(),
            tls,
            hasher: RandomState::new(),
            seen: Mutex::default(),
            current: watch::Sender::default(),
        };
        file.reload()?;
        Ok(Arc::new(file))
    }

    /// Looks at it now: `Ok(true)` when something else is in force than before.
    ///
    /// # Errors
    /// As [`PolicyFile::load`]; what was in force stays so.
    pub fn reload(&self) -> Result<bool, Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let text = read_bounded(&self.path, MAX_BYTES)?;
        let list: policy::Policy =
            serde_json::from_slice(&text).map_err(|error| self.bad(&error.to_string()))?;
        let places = list.check().map_err(|error| self.bad(&error.to_string()))?;
        let roots = self.roots(&list)?;
        let digest = self.hasher.hash_one((&text, &roots));
        if *seen == digest {
            return Ok(false);
        }
        let mut known = HashMap::new();
        let mut providers = Vec::with_capacity(list.providers.len());
        for (provider, roots) in list.providers.iter().zip(&roots) {
            let tls = match roots {
                None => None,
                Some(roots) => Some(match known.get(roots) {
                    Some(tls) => TlsSettings::clone(tls),
                    None => {
                        let tls = self.tls.with(roots).map_err(|error| {
                            self.bad(&format!("provider {:?}: {error}", provider.name))
                        })?;
                        known.insert(roots, tls.clone());
                        tls
                    }
                }),
            };
            providers.push(Arc::new(Provider {
                limits: provider.limits,
                quirks: provider.quirks,
                paused: provider.paused,
                tls,
            }));
        }
        // Only what is good counts as seen: what is bad is looked at again, and its error told again.
        *seen = digest;
        let policy = Policy {
            // They are good: the list was checked.
            paused_tenants: (list.paused_tenants.iter())
                .filter_map(|tenant| tenant.parse().ok())
                .collect(),
            providers: places.map(|place| providers.get(*place).cloned().unwrap_or_default()),
        };
        self.current.send_replace(Arc::new(policy));
        Ok(true)
    }

    /// Looks at it every `period` and on SIGHUP, until the drain begins.
    pub async fn watch(self: Arc<Self>, period: Duration, metrics: Metrics, drain: DrainHandle) {
        let look = move || {
            let looked = self.reload();
            metrics.policy_refused(looked.is_err());
            looked
        };
        reload::watch("policy", period, drain, look).await;
    }

    /// What is in force, and later changes of it.
    pub(crate) fn current(&self) -> watch::Receiver<Arc<Policy>> {
        self.current.subscribe()
    }

    /// The root certificates of each provider, in the order of the list.
    fn roots(&self, list: &policy::Policy) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let beside = self.path.parent().unwrap_or(Path::new(""));
        let mut left = MAX_ROOTS_BYTES;
        let roots = list.providers.iter().map(|provider| {
            Ok(match (&provider.ca, &provider.ca_file) {
                (Some(text), _) => Some(text.clone().into_bytes()),
                (None, Some(file)) => {
                    let roots = read_bounded(&beside.join(file), left)?;
                    left = left.saturating_sub(u64::try_from(roots.len()).unwrap_or(u64::MAX));
                    Some(roots)
                }
                (None, None) => None,
            })
        });
        roots.collect()
    }

    fn bad(&self, reason: &str) -> Error {
        Error::Policy {
            path: self.path.clone(),
            reason: reason.chars().take(MAX_REASON).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
