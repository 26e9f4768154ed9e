//! What a watcher says of itself, each second, and what it does by what the others say.

use std::{sync::Arc, time::Duration};

use mailbell_core::ids::Partition;
use mailbell_proto::bus::v1::MemberLoad;
use tokio::time::Instant;

use super::Running;
use crate::{
    policy::Provider,
    room::{Sample, room},
};

/// A load that takes longer waits for NATS.
const BUSY: Duration = Duration::from_secs(30);
/// How often accounts are counted by host.
const HOSTS: Duration = Duration::from_secs(60);
impl Running {
    /// How many accounts the partitions have that are being loaded, as their last owners counted: whoever would give us more should wait
    /// for these. Not of those that take long: they wait for their streams, and nothing else has to wait for that.
    fn about_to_start(&self) -> u32 {
        let claims = self.shards.sharding().claims();
        let loading = self.accounts.loading(BUSY);
        let accounts = loading.filter_map(|partition| claims.claim(partition));
        accounts.fold(0, |sum, claim| sum.saturating_add(claim.accounts))
    }

    /// Looks at checkpoints once somebody falls silent: until it counts as dead, and what it had can be taken, there is time for that.
    fn look_ahead(&mut self) {
        let long = self.context.timing.member_dead / 2;
        let observer = self.shards.sharding().observer();
        if observer.somebody_is_silent(long) && self.looking.is_finished() {
            let looking = Arc::clone(&self.proofs).see_all(self.ledger.clone());
            self.looking = tokio::spawn(looking);
        }
    }

    /// Says what this watcher has to do, for others to see.
    pub(super) fn tell(&mut self) {
        let counts = self.context.gate.counts();
        let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
        let load = self.accounts.load();
        self.shards.report(MemberLoad {
            starting: load.starting.saturating_add(self.about_to_start()),
            waiting_pace: count(counts.pace + counts.handshake),
            waiting_circuit: count(counts.circuit),
            ..load
        });
        for partition in self.registry.partitions() {
            let accounts = self.accounts.accounts_in(partition);
            self.shards.count_accounts(partition, accounts);
        }
        let part = self.shards.sharding().part_of_budget(&self.options.egress);
        self.context.gate.share(part);
        self.set_logins();
        self.look_ahead();
        if let Some(most) = self.options.most_accounts {
            self.limit(most);
        }
        if self.settle.is_some() {
            self.see_whether_ready();
        }
    }

    /// No more accounts are given away than can log in again: at the host that has the most of them, the others' turn comes as soon.
    fn set_logins(&mut self) {
        let sessions = self.registry.sessions();
        let (counted, at) = self.hosts_counted;
        // To count them takes time, and what they are at changes slowly.
        let more = sessions > counted.saturating_mul(2);
        if sessions == 0 || (at.elapsed() < HOSTS && !more) {
            return;
        }
        self.hosts_counted = (sessions, Instant::now());
        let (rates, anywhere) = (self.options.rates(), Provider::default());
        let policy = Arc::clone(&self.context.policy.borrow());
        let (accounts, seconds) = self.accounts.busiest_host(&policy.paused_tenants, |host| {
            let provider = policy.providers.find(host);
            provider.map_or(&anywhere, |found| found).logins(&rates)
        });
        if seconds > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
            self.shards.set_logins(accounts as f64 / seconds);
        }
    }

    /// Tells the others how many partitions this watcher has room for, when that has changed.
    fn limit(&mut self, most: u32) {
        let mut own = Sample::default();
        // Not those of partitions on their way to others.
        for partition in self.registry.partitions() {
            own.add(self.accounts.accounts_in(partition));
        }
        let sharding = self.shards.sharding();
        let claims = sharding.claims();
        let mut known = own;
        let mut ours_before = 0;
        for partition in Partition::all().filter(|one| claims.epoch(*one).is_none()) {
            let accounts = claims.accounts(partition);
            let claim = claims.claim(partition).filter(|claim| !claim.released);
            if claim.is_some_and(|claim| claim.member == self.options.member) {
                // A process before this one died with it, and others take it soon.
                ours_before += 1;
                own.add(accounts);
                known.add(accounts);
            } else if accounts > 0 {
                // A claim that was just taken does not say it yet.
                known.add(accounts);
            }
        }
        if ours_before == 0 && (!self.taken.is_empty() || !self.loads.is_empty()) {
            // Of some it will be known soon.
            return;
        }
        let wanted = ours_before > 0 || sharding.assignment().unassigned().next().is_some();
        if let Some(room) = room(most, own, known, self.room, wanted) {
            tracing::info!(
                partitions = room,
                accounts = own.accounts,
                "the room for partitions has changed"
            );
            self.room = room;
            self.shards.limit(room);
        }
    }
}
