//! Which replica works: the one that has the lease (`coordination.k8s.io/v1`), as the controllers of Kubernetes itself do it.
//!
//! Whoever has it renews it; who does not hear of a renewal for as long as it lasts takes it. Times are measured by each replica's own
//! clock from when it saw something, so that clocks need not agree. One that cannot renew stops before another may begin.
//!
//! Written here because no library for this version of kube does the last two: they compare the clocks of machines, or go on.

use std::{future::Future, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{Instant, sleep, timeout};

use super::Error;

/// Its name.
pub(super) const LEASE: &str = "mailbell-operator";
/// Who was not seen to renew it for so long has lost it to whoever asks.
const LASTS: Duration = Duration::from_secs(15);
/// How often it is renewed, and looked at by the others.
const EVERY: Duration = Duration::from_secs(3);
/// How long an answer is waited for.
const ANSWER: Duration = Duration::from_secs(4);

/// One replica's part in it.
pub(super) struct Election {
    leases: Api<Lease>,
    identity: String,
    /// As it was last written by this replica.
    held: Option<Lease>,
    /// The version of somebody else's lease, and since when it is that.
    seen: Option<(Option<String>, Instant)>,
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            held: None,
            seen: None,
        }
    }

    /// Waits until this replica has it.
    ///
    /// # Errors
    /// When it may not: trying again is of no use.
    pub(super) async fn won(&mut self) -> Result<(), Error> {
        loop {
            match timeout(ANSWER, self.attempt()).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error @ kube::Error::Api(_))) if is_denied(&error) => {
                    return Err(Error::of_start(error));
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the lease could not be read; it is tried again");
                }
            }
            sleep(EVERY).await;
        }
    }

    /// Renews it, and waits until it is lost.
    pub(super) async fn lost(&mut self) {
        let mut renewed = Instant::now();
        loop {
            sleep(EVERY).await;
            let begun = Instant::now();
            match timeout(ANSWER, self.attempt()).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the lease could not be renewed"),
                Err(_elapsed) => tracing::warn!("the lease could not be renewed in time"),
            }
            // The next attempt might end when somebody else has it already.
            if renewed.elapsed() + EVERY + ANSWER > LASTS {
                return;
            }
        }
    }

    /// Gives it away, so that the next one need not wait.
    pub(super) async fn give_away(mut self) {
        let Some(mut lease) = self.held.take() else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        let given = self.write(lease);
        if !matches!(timeout(ANSWER, given).await, Ok(Ok(_))) {
            tracing::warn!("the lease could not be given away; it ages");
        }
    }

    /// Whether this replica has it now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let lease = match self.held.take() {
            Some(lease) => lease,
            None => match self.leases.get_opt(LEASE).await? {
                Some(lease) if self.may_take(&lease) => lease,
                Some(_) => return Ok(false),
                None => Lease {
                    metadata: ObjectMeta {
                        name: Some(LEASE.to_owned()),
                        ..ObjectMeta::default()
                    },
                    spec: None,
                },
            },
        };
        let renewed = self.renewed(lease);
        let written = self.write(renewed).await;
        match written {
            Ok(lease) => {
                self.held = Some(lease);
                self.seen = None;
                Ok(true)
            }
            // Somebody else was faster; or it was not known whether the last one was written.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// With the version that was read: of several who write at once, one does.
    fn write(&self, lease: Lease) -> impl Future<Output = Result<Lease, kube::Error>> {
        let leases = self.leases.clone();
        async move {
            let params = PostParams::default();
            match lease.metadata.resource_version {
                Some(_) => leases.replace(LEASE, &params, &lease).await,
                None => leases.create(&params, &lease).await,
            }
        }
    }

    /// One that nobody has, that is ours from before, or that was not renewed for as long as it lasts.
    fn may_take(&mut self, lease: &Lease) -> bool {
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        let is_free = holder.is_none_or(|holder| holder.is_empty() || holder == self.identity);
        if is_free {
            return true;
        }
        let version = &lease.metadata.resource_version;
        match &self.seen {
            Some((seen, since)) if seen == version => since.elapsed() >= LASTS,
            _ => {
                self.seen = Some((version.clone(), Instant::now()));
                false
            }
        }
    }

    fn renewed(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = lease.spec.take().unwrap_or_default();
        let is_ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let transitions = before.lease_transitions.unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: before
                .acquire_time
                .filter(|_| is_ours)
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions.saturating_add(i32::from(!is_ours))),
            ..before
        });
        lease
    }
}

fn is_denied(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [401, 403].contains(&status.code))
}
