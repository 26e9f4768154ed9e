//! What this process keeps in memory of the store: the ids of all accounts in order, the keys to seal to, the revoked tokens.
//!
//! Some 80 bytes an account: a million accounts are 80 MB. Records themselves are read from the leader when they are asked for.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use mailbell_bus::{
    Bus,
    state::{Change, Watch},
};
use mailbell_core::{
    ids::{AccountId, GROUPS, Group, PARTITIONS, Tenant},
    seal::PublicKey,
};
use mailbell_proto::bus::v1::AccountRecord;
use mailbell_runtime::{drain::DrainHandle, health::Health};
use prometheus_client::metrics::gauge::Gauge;

/// The name of the readiness check.
pub(crate) const CHECK: &str = "admin-mirror";

#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    state: Arc<RwLock<State>>,
    accounts: Gauge,
    health: Health,
}

#[derive(Debug, Default)]
struct State {
    /// When it was removed; 0: it is there.
    accounts: BTreeMap<AccountId, i64>,
    /// How many of them are there.
    live: i64,
    /// How many of them are there, by partition.
    per_partition: Vec<u32>,
    keys: HashMap<String, (PublicKey, u64)>,
    revoked: HashSet<(Tenant, String)>,
    groups_loaded: HashSet<Group>,
    keys_loaded: bool,
    revoked_loaded: bool,
}

impl State {
    fn count(&mut self, account: &AccountId, before: Option<i64>, after: Option<i64>) {
        let change = i32::from(after == Some(0)) - i32::from(before == Some(0));
        self.live += i64::from(change);
        self.per_partition.resize(usize::from(PARTITIONS), 0);
        let partition = usize::from(account.partition().number());
        if let Some(count) = self.per_partition.get_mut(partition) {
            *count = count.saturating_add_signed(change);
        }
    }
}

impl Mirror {
    pub(crate) fn new(accounts: Gauge, health: Health) -> Self {
        let mirror = Self {
            state: Arc::default(),
            accounts,
            health,
        };
        mirror.tell_health();
        mirror
    }

    /// Follows the store until the drain begins or the bus is closed.
    pub(crate) async fn run(&self, bus: &Bus, mut drain: DrainHandle) {
        let follow = async {
            tokio::join!(
                each(bus.accounts().watch(Group::all()), |change| self
                    .on_account(change)),
                each(bus.sealing_keys().watch(), |change| self.on_key(change)),
                each(bus.revocations().watch(), |change| self.on_revoked(change)),
            );
        };
        tokio::select! {
            biased;
            // First: nothing that is followed matters any more.
            _ = drain.signaled() => {}
            () = follow => {}
        }
    }

    fn on_account(&self, change: Change<AccountId, AccountRecord>) {
        match change {
            Change::Put { key, value, .. } => self.note_account(&key, value.removed_at_ms),
            Change::Removed { key } => self.forget_account(&key),
            Change::Loaded { group } => {
                self.write().groups_loaded.insert(group);
                self.tell_health();
            }
            Change::Restarted { group } => {
                let mut state = self.write();
                state.accounts.retain(|account, _| account.group() != group);
                let live = state.accounts.values().filter(|removed| **removed == 0);
                state.live = i64::try_from(live.count()).unwrap_or(i64::MAX);
                for partition in group.partitions() {
                    let index = usize::from(partition.number());
                    if let Some(count) = state.per_partition.get_mut(index) {
                        *count = 0;
                    }
                }
                state.groups_loaded.remove(&group);
                drop(state);
                self.tell_health();
            }
        }
    }

    /// Also called by who has just written it, so that a caller finds in a list what it was told exists.
    pub(crate) fn note_account(&self, account: &AccountId, removed_at_ms: i64) {
        let mut state = self.write();
        let before = state.accounts.insert(account.clone(), removed_at_ms);
        state.count(account, before, Some(removed_at_ms));
        self.accounts.set(state.live);
    }

    pub(crate) fn forget_account(&self, account: &AccountId) {
        let mut state = self.write();
        let before = state.accounts.remove(account);
        state.count(account, before, None);
        self.accounts.set(state.live);
    }

    fn on_key(&self, change: Change<String, mailbell_proto::bus::v1::SealingKey>) {
        let mut state = self.write();
        match change {
            Change::Put {
                key,
                value,
                revision,
            } => match PublicKey::from_record(&value) {
                Ok(public) => {
                    state.keys.insert(key, (public, revision));
                }
                Err(error) => tracing::error!(%error, "a sealing key is not usable"),
            },
            Change::Removed { key } => {
                state.keys.remove(&key);
            }
            Change::Loaded { .. } => state.keys_loaded = true,
            Change::Restarted { .. } => {
                state.keys.clear();
                state.keys_loaded = false;
            }
        }
        drop(state);
        self.tell_health();
    }

    fn on_revoked(&self, change: Change<(Tenant, String), mailbell_bus::state::Revoked>) {
        let mut state = self.write();
        match change {
            Change::Put { key, .. } => {
                state.revoked.insert(key);
            }
            Change::Removed { key } => {
                state.revoked.remove(&key);
            }
            Change::Loaded { .. } => state.revoked_loaded = true,
            Change::Restarted { .. } => {
                state.revoked.clear();
                state.revoked_loaded = false;
            }
        }
        drop(state);
        self.tell_health();
    }

    fn tell_health(&self) {
        let state = self.read();
        let loaded = state.groups_loaded.len() == usize::from(GROUPS)
            && state.keys_loaded
            && state.revoked_loaded;
        let value = if !loaded {
            Err("the records of accounts, keys and revocations are being read")
        } else if state.keys.is_empty() {
            Err("no watcher has offered a key to seal passwords to")
        } else {
            Ok(())
        };
        drop(state);
        self.health.set(CHECK, value);
    }

    /// What passwords are sealed to: the key that was offered last.
    pub(crate) fn sealing_key(&self) -> Option<PublicKey> {
        self.read()
            .keys
            .values()
            .max_by_key(|(_, revision)| *revision)
            .map(|(key, _)| key.clone())
    }

    /// At most `limit` ids of accounts that are there, after `after`, and whether there are more.
    pub(crate) fn page(
        &self,
        tenant: Option<&Tenant>,
        after: Option<&AccountId>,
        limit: usize,
    ) -> (Vec<AccountId>, bool) {
        let state = self.read();
        let from = match (after, tenant) {
            (Some(after), _) => Bound::Excluded(after.clone()),
            (None, Some(tenant)) => {
                Bound::Included(AccountId::new(tenant.clone(), ulid::Ulid::nil()))
            }
            (None, None) => Bound::Unbounded,
        };
        let mut ids: Vec<AccountId> = state
            .accounts
            .range((from, Bound::Unbounded))
            .take_while(|(account, _)| tenant.is_none_or(|tenant| account.tenant() == tenant))
            .filter(|(_, removed)| **removed == 0)
            .map(|(account, _)| account.clone())
            .take(limit.saturating_add(1))
            .collect();
        let more = ids.len() > limit;
        ids.truncate(limit);
        (ids, more)
    }

    /// How many accounts are there in each partition, in order. Empty: there are none.
    pub(crate) fn per_partition(&self) -> Vec<u32> {
        self.read().per_partition.clone()
    }

    /// Accounts that were removed, and when.
    pub(crate) fn removed(&self) -> Vec<(AccountId, i64)> {
        self.read()
            .accounts
            .iter()
            .filter(|(_, removed)| **removed != 0)
            .map(|(account, removed)| (account.clone(), *removed))
            .collect()
    }

    pub(crate) fn is_revoked(&self, tenant: &Tenant, id: &str) -> bool {
        self.read()
            .revoked
            .contains(&(tenant.clone(), id.to_owned()))
    }

    pub(crate) fn note_revoked(&self, tenant: &Tenant, id: &str) {
        self.write().revoked.insert((tenant.clone(), id.to_owned()));
    }

    pub(crate) fn is_loaded(&self) -> bool {
        let state = self.read();
        state.groups_loaded.len() == usize::from(GROUPS)
    }

    pub(crate) fn knows_revocations(&self) -> bool {
        self.read().revoked_loaded
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // No change under the guard can be left half made by a panic that matters.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn each<K, V>(mut watch: Watch<K, V>, mut on: impl FnMut(Change<K, V>)) {
    while let Some(change) = watch.next().await {
        on(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(tenant: &str, n: u128) -> AccountId {
        AccountId::new(tenant.parse().unwrap(), ulid::Ulid(n))
    }

    fn put(mirror: &Mirror, account: &AccountId, removed_at_ms: i64) {
        mirror.on_account(Change::Put {
            key: account.clone(),
            value: AccountRecord {
                removed_at_ms,
                ..AccountRecord::default()
            },
            revision: 1,
        });
    }

    #[test]
    fn pages_are_in_order_and_leave_nothing_out() {
        let mirror = Mirror::new(Gauge::default(), Health::new());
        let mut all = Vec::new();
        for tenant in ["b", "a", "a-b"] {
            for n in [3, 1, 2] {
                put(&mirror, &id(tenant, n), 0);
                all.push(id(tenant, n));
            }
        }
        put(&mirror, &id("a", 9), 5);
        all.sort();
        for limit in 1..5 {
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let (page, more) = mirror.page(None, after.as_ref(), limit);
                seen.extend(page);
                after = seen.last().cloned();
                if !more {
                    break;
                }
            }
            assert_eq!(seen, all);
        }
        let tenant = "a".parse().unwrap();
        let (page, more) = mirror.page(Some(&tenant), None, 2);
        assert_eq!((page, more), (vec![id("a", 1), id("a", 2)], true));
        let (page, more) = mirror.page(Some(&tenant), Some(&id("a", 2)), 2);
        assert_eq!((page, more), (vec![id("a", 3)], false));
        assert_eq!(mirror.removed(), [(id("a", 9), 5)]);
        assert_eq!(mirror.accounts.get(), 9);
        put(&mirror, &id("a", 1), 7);
        put(&mirror, &id("a", 1), 7);
        mirror.forget_account(&id("a", 1));
        assert_eq!(mirror.accounts.get(), 8);
        assert_eq!(mirror.per_partition().iter().sum::<u32>(), 8);
        let partition = usize::from(id("a", 2).partition().number());
        assert!(mirror.per_partition()[partition] > 0);
    }

    #[test]
    fn a_group_that_is_told_anew_is_forgotten_first() {
        let mirror = Mirror::new(Gauge::default(), Health::new());
        let accounts: Vec<_> = (0..200).map(|n| id("a", n)).collect();
        for account in &accounts {
            put(&mirror, account, 0);
        }
        let group = accounts[0].group();
        mirror.on_account(Change::Restarted { group });
        let (left, _) = mirror.page(None, None, 1000);
        assert!(left.iter().all(|account| account.group() != group) && !left.is_empty());
        let counted = mirror.per_partition().iter().sum::<u32>();
        assert_eq!(counted as usize, left.len());
    }

    #[test]
    fn ready_once_everything_is_read_and_a_key_is_offered() {
        let health = Health::new();
        let mirror = Mirror::new(Gauge::default(), health.clone());
        for group in Group::all() {
            mirror.on_account(Change::Loaded { group });
        }
        let group = Group::new(0).unwrap();
        assert!(!mirror.knows_revocations());
        mirror.on_revoked(Change::Loaded { group });
        assert!(mirror.knows_revocations());
        mirror.on_key(Change::Loaded { group });
        assert!(!health.readiness().ok);
        let mut ring = mailbell_core::seal::KeyRing::default();
        let mut rng = rand::rng();
        let (old, new) = (
            ring.add(1, &mut rng).unwrap(),
            ring.add(2, &mut rng).unwrap(),
        );
        for (key, revision) in [(&new, 8), (&old, 7)] {
            mirror.on_key(Change::Put {
                key: key.id().to_owned(),
                value: key.to_record(),
                revision,
            });
        }
        assert!(health.readiness().ok);
        assert_eq!(mirror.sealing_key(), Some(new));
    }
}
