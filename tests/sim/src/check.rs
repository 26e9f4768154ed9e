//! What must be true once everything is healed and at rest.

use crate::{breach::Breach, scenario::PARTITIONS, world::World};
use mailbell_core::{checkpoint::Checkpoint, cursor::Subject, ids::Uid};

impl World {
    /// What is missing for all to be at rest and complete.
    pub(crate) fn unrest(&mut self) -> Option<(Breach, String)> {
        let busy = self
            .partitions_unrest()
            .or_else(|| (0..self.devices.len()).find_map(|device| self.is_busy(device)));
        busy.map(|busy| (Breach::Restless, busy)).or_else(|| {
            let lacks = (0..self.devices.len()).find_map(|device| self.lacks(device));
            lacks.map(|lacks| (Breach::MessageLacks, lacks))
        })
    }

    fn partitions_unrest(&self) -> Option<String> {
        for partition in 0..PARTITIONS {
            let owner = match self.sharing_unrest(partition) {
                Ok(Some(owner)) => owner,
                Ok(None) => return Some(format!("partition {partition} has no room")),
                Err(lacks) => return Some(lacks),
            };
            let Some(record) = &self.live.claims[partition] else {
                return Some(format!("partition {partition} has no claim"));
            };
            let claim = &record.claim;
            let log = crate::scenario::LOG_OF[partition];
            let identity = &self.identities[log];
            if !self.is_proven(log) {
                return Some(format!("nobody saw that log {log} is another"));
            }
            if claim.log_id != identity.log_id.0.as_slice() || claim.flushed != self.logs[log].last
            {
                return Some(format!(
                    "the claim of partition {partition} does not move on"
                ));
            }
            for account in 0..self.places.len() {
                if self.places[account].partition != partition || self.removed[account] {
                    continue;
                }
                let Some(run) = self.owners[owner].runs.get(&account) else {
                    return Some(format!("account {account} has no session"));
                };
                let run = &self.runs[*run];
                if !run.alive || run.append.is_some() {
                    return Some(format!("the session of account {account} is busy"));
                }
                if let Some(uid) = self.untold(account, run.session.checkpoint()) {
                    return Some(format!("account {account} still tries to read uid {uid}"));
                }
                if run.session.flush_bound().is_some() {
                    return Some(format!("the checkpoint of account {account} is old"));
                }
            }
        }
        None
    }

    /// A message that nobody can read, of which devices may know by a listing, and which is yet to be told.
    fn untold(&self, account: usize, knows: &Checkpoint) -> Option<Uid> {
        let folders = self.mailboxes[account].folders.iter();
        folders
            .filter_map(|folder| {
                let known = knows.folders.iter().find(|of| of.name == folder.name)?;
                let mut bad = folder
                    .messages
                    .iter()
                    .filter(|(_, message)| message.unreadable);
                bad.find(|(uid, _)| !known.told(**uid)).map(|(uid, _)| *uid)
            })
            .next()
    }

    /// A message that a device should have and has not.
    fn lacks(&self, device: usize) -> Option<String> {
        let state = &self.devices[device];
        let since = state.app.since?;
        for (account, place) in self.places.iter().enumerate() {
            if !state.subject.covers(&place.account) || self.removed[account] {
                continue;
            }
            let id = place.account.to_string();
            // No call names the accounts of a tenant: one that a device never heard of it cannot list.
            if matches!(state.subject, Subject::Tenant(_)) && !state.app.heard_of(&id) {
                continue;
            }
            for folder in &self.mailboxes[account].folders {
                let missing = folder
                    .messages
                    .iter()
                    .filter(|(_, message)| message.arrived >= since)
                    .find(|(uid, _)| !state.app.holds(&id, folder.name, folder.generation, **uid));
                if let Some((uid, message)) = missing {
                    return Some(format!(
                        "device {device} lacks uid {uid} of {} of account {account}, arrived at {:?}",
                        folder.name, message.arrived
                    ));
                }
            }
        }
        None
    }
}
