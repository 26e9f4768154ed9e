//! The Secrets with the passwords of mailboxes.
//!
//! The operator may `get` those that the chart names, and neither list nor watch any: a right to watch by name would be one more for every
//! Secret, and its watches one more connection. So they are looked at again and again, at a bounded pace. Of a password nothing is kept
//! but, in memory, a hash with a key of this process: by it the change of another password in the same Secret is told from a change of
//! this one. The status has the version of the Secret, which says nothing of what is in it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, ResourceExt as _};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::plan::Trouble;

/// No answer is waited for longer.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// All Secrets together are looked at so often: a thousand of them each about every ten minutes.
const LOOKS_A_SECOND: u32 = 2;
const MOST_LOOKS: usize = 60;
/// Looks under way.
const AT_ONCE: usize = 4;
/// For so long what was read is used again: many accounts are registered one after the other, from one Secret.
const FRESH: Duration = Duration::from_secs(10);

/// Namespace and name of a Secret.
pub(super) type Place = (String, String);

/// One key of a Secret, as it was when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    /// For the status: what differs whenever the Secret does.
    pub(super) text: String,
    /// Of the password.
    pub(super) digest: u64,
}

/// A password, read for use.
pub(super) struct Password {
    pub(super) text: Zeroizing<String>,
    pub(super) version: Version,
}

/// All of them that are used.
pub(super) struct Secrets {
    client: Client,
    hasher: RandomState,
    /// Between two looks at one of them.
    look_every: Duration,
    known: Mutex<HashMap<Place, Known>>,
}

struct Known {
    looked: Instant,
    found: Result<Found, Problem>,
    /// Its content, for a moment.
    content: Option<(Instant, Content)>,
}

#[derive(Clone)]
struct Found {
    version: String,
    /// `None`: it is no text.
    digests: HashMap<String, Option<u64>>,
}

type Content = BTreeMap<String, Zeroizing<Vec<u8>>>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Problem {
    Forbidden,
    Missing,
    Away,
}

impl Secrets {
    pub(super) fn new(client: Client, look_every: Duration) -> Self {
        Self {
            client,
            hasher: RandomState::new(),
            look_every,
            known: Mutex::default(),
        }
    }

    /// As it was when it was last looked at, or now if it never was.
    pub(super) async fn version(&self, place: &Place, key: &str) -> Result<Version, Trouble> {
        let known = |secrets: &Self| {
            let all = secrets.known();
            all.get(place).map(|known| known.found.clone())
        };
        let found = match known(self) {
            Some(found) => found,
            None => {
                self.look(place, true).await;
                known(self).unwrap_or(Err(Problem::Away))
            }
        };
        let found = found.map_err(|problem| trouble(&problem, place))?;
        version(&found, place, key)
    }

    /// The password, for use at once.
    pub(super) async fn password(&self, place: &Place, key: &str) -> Result<Password, Trouble> {
        if let Some(password) = self.fresh(place, key) {
            return password;
        }
        self.look(place, true).await;
        let away = || Err(trouble(&Problem::Away, place));
        self.fresh(place, key).unwrap_or_else(away)
    }

    fn fresh(&self, place: &Place, key: &str) -> Option<Result<Password, Trouble>> {
        let all = self.known();
        let known = all.get(place)?;
        let found = match &known.found {
            Ok(found) => found,
            // It was looked at a moment ago, for this.
            Err(problem) if known.looked.elapsed() < FRESH => {
                return Some(Err(trouble(problem, place)));
            }
            Err(_) => return None,
        };
        let (read, content) = known.content.as_ref()?;
        if read.elapsed() >= FRESH {
            return None;
        }
        Some(version(found, place, key).and_then(|version| {
            let bytes = content.get(key).ok_or_else(|| no_key(place, key))?;
            let text = std::str::from_utf8(bytes).map_err(|_| no_text(place, key))?;
            Ok(Password {
                // As an editor, or a file, leaves it.
                text: Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()),
                version,
            })
        }))
    }

    /// Looks at those of `used` whose turn it is, `since` the last time that it did so, and forgets all others.
    pub(super) async fn look_again(&self, used: &BTreeSet<Place>, since: Duration) {
        let mut due: Vec<(Instant, Place)> = Vec::new();
        {
            let mut all = self.known();
            all.retain(|place, _| used.contains(place));
            for (place, known) in all.iter_mut() {
                // Nobody uses it any more.
                known.content = None;
                if known.looked.elapsed() >= self.look_every {
                    due.push((known.looked, place.clone()));
                }
            }
        }
        due.sort();
        let seconds = usize::try_from(since.as_secs()).unwrap_or(MOST_LOOKS);
        let looks = usize::try_from(LOOKS_A_SECOND).unwrap_or(1);
        let most = seconds.saturating_mul(looks).clamp(1, MOST_LOOKS);
        let due = due.into_iter().take(most);
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, |(_, place)| async move {
                self.look(&place, false).await;
            })
            .await;
    }

    /// Keeps its content, if somebody is about to use it.
    async fn look(&self, place: &Place, keep: bool) {
        let (namespace, name) = place;
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let read = match timeout(READ_LIMIT, api.get_opt(name)).await {
            Ok(Ok(Some(secret))) => Ok(secret),
            Ok(Ok(None)) => Err(Problem::Missing),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(Problem::Forbidden),
            Ok(Err(_)) | Err(_) => Err(Problem::Away),
        };
        let looked = Instant::now();
        let read = read.map(|secret| self.take(secret));
        let mut all = self.known();
        let known = match read {
            Ok((found, content)) => Known {
                looked,
                found: Ok(found),
                content: keep.then_some((looked, content)),
            },
            // What was known before still holds: it is asked again.
            Err(Problem::Away) if all.get(place).is_some_and(|known| known.found.is_ok()) => {
                all.entry(place.clone())
                    .and_modify(|known| known.looked = looked);
                return;
            }
            Err(problem) => Known {
                looked,
                found: Err(problem),
                content: None,
            },
        };
        all.insert(place.clone(), known);
    }

    fn take(&self, secret: Secret) -> (Found, Content) {
        let version = format!(
            "{}/{}",
            secret.uid().unwrap_or_default(),
            secret.resource_version().unwrap_or_default()
        );
        let data = secret.data.unwrap_or_default().into_iter();
        let content: Content = data
            .map(|(key, ByteString(bytes))| (key, Zeroizing::new(bytes)))
            .collect();
        let digests = content.iter();
        let digests = digests
            .map(|(key, bytes)| {
                let text = std::str::from_utf8(bytes).ok();
                (key.clone(), text.map(|text| self.hasher.hash_one(text)))
            })
            .collect();
        (Found { version, digests }, content)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Place, Known>> {
        // Nothing that holds the lock can leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(found: &Found, place: &Place, key: &str) -> Result<Version, Trouble> {
    let digest = found.digests.get(key).ok_or_else(|| no_key(place, key))?;
    let digest = digest.ok_or_else(|| no_text(place, key))?;
    Ok(Version {
        text: format!("{}/{key}", found.version),
        digest,
    })
}

fn trouble(problem: &Problem, (_, name): &Place) -> Trouble {
    match problem {
        Problem::Forbidden => Trouble::new(
            "SecretForbidden",
            format!(
                "the operator may not read the Secret {name}: name it in mailAccounts.passwordSecrets of the chart mailbell"
            ),
        ),
        Problem::Missing => Trouble::new(
            "NoSecret",
            format!(
                "there is no Secret {name} in this namespace: make it, with the password in it"
            ),
        ),
        Problem::Away => Trouble::unknown(
            "SecretUnknown",
            format!("the API server does not answer for the Secret {name}; it is asked again"),
        ),
    }
}

fn no_key((_, name): &Place, key: &str) -> Trouble {
    Trouble::new(
        "NoPassword",
        format!("the Secret {name} has no key {key}: add it, with the password"),
    )
}

fn no_text((_, name): &Place, key: &str) -> Trouble {
    Trouble::new(
        "NoPassword",
        format!("{key} of the Secret {name} is no text"),
    )
}
