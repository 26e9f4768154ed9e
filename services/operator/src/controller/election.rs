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
    /// It was written, or may have been, since it was seen to be somebody else's.
    may_have: bool,
    /// The version of somebody else's lease, and since when it is that.
    seen: Option<(Option<String>, Instant)>,
}

impl Election {
    pub(super) fn new(client: Client, namespace: &str, identity: &str) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            held: None,
            may_have: false,
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
        if !self.may_have {
            return;
        }
        let given = async {
            loop {
                let lease = match self.held.take() {
                    Some(lease) => Some(lease),
                    // It was being renewed: whether that was done is not known.
                    None => self.leases.get_opt(LEASE).await?.filter(|it| self.has(it)),
                };
                let Some(mut lease) = lease else {
                    return Ok(());
                };
                let spec = lease.spec.get_or_insert_default();
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                match self.write(lease).await {
                    // That has been done meanwhile.
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    written => return written.map(drop),
                }
            }
        };
        if !matches!(timeout(ANSWER, given).await, Ok(Ok(()))) {
            tracing::warn!("the lease could not be given away; it ages");
        }
    }

    fn has(&self, lease: &Lease) -> bool {
        let spec = lease.spec.as_ref();
        spec.and_then(|spec| spec.holder_identity.as_deref()) == Some(self.identity.as_str())
    }

    /// Whether this replica has it now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let lease = match self.held.take() {
            Some(lease) => lease,
            None => match self.leases.get_opt(LEASE).await? {
                Some(lease) if self.may_take(&lease) => lease,
                Some(_) => {
                    self.may_have = false;
                    return Ok(false);
                }
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
        self.may_have = true;
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

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use http::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    /// Has one lease, which is written by its version.
    #[derive(Default)]
    struct Server {
        lease: Option<Value>,
        version: u64,
        asked: u64,
        /// The next write is done, and its answer never comes.
        loses: bool,
        /// A write that was sent before is done after the next read.
        late: Option<Value>,
    }

    impl Server {
        fn answer(&mut self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
            self.asked += 1;
            if *method == Method::GET {
                let found = self.lease.clone();
                if let Some(late) = self.late.take() {
                    self.write(late);
                }
                return match found {
                    Some(lease) => (StatusCode::OK, lease),
                    None => (StatusCode::NOT_FOUND, failure(404)),
                };
            }
            let new: Value = serde_json::from_slice(body).unwrap();
            let there = self.lease.as_ref();
            let is_last = there.is_none_or(|there| {
                there["metadata"]["resourceVersion"] == new["metadata"]["resourceVersion"]
            });
            if is_last {
                (StatusCode::OK, self.write(new))
            } else {
                (StatusCode::CONFLICT, failure(409))
            }
        }

        fn write(&mut self, mut lease: Value) -> Value {
            self.version += 1;
            lease["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.lease = Some(lease.clone());
            lease
        }

        fn holder(&self) -> Option<String> {
            let holder = &self.lease.as_ref()?["spec"]["holderIdentity"];
            holder.as_str().map(str::to_owned)
        }
    }

    fn failure(code: u16) -> Value {
        let reason = if code == 404 { "NotFound" } else { "Conflict" };
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code, "reason": reason, "message": "" })
    }

    fn election(server: &Arc<Mutex<Server>>, identity: &str) -> Election {
        let server = Arc::clone(server);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await.unwrap();
                let (is_lost, (code, said)) = {
                    let mut server = server.lock().unwrap();
                    let is_lost = method != Method::GET && std::mem::take(&mut server.loses);
                    (is_lost, server.answer(&method, &body))
                };
                if is_lost {
                    std::future::pending::<()>().await;
                }
                let mut response = Response::new(Body::from(said.to_string().into_bytes()));
                *response.status_mut() = code;
                Ok::<_, Infallible>(response)
            }
        });
        Election::new(Client::new(service, "mail"), "mail", identity)
    }

    /// A renewal of the lease is sent, and nobody waits for its answer.
    async fn renewed_and_stopped(server: &Arc<Mutex<Server>>) -> Election {
        let mut election = election(server, "one");
        assert!(election.attempt().await.unwrap());
        server.lock().unwrap().loses = true;
        let answer = timeout(EVERY / 2, election.attempt()).await;
        assert!(answer.is_err());
        election
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_given_away_by_who_does_not_know_whether_it_was_renewed() {
        let server = Arc::<Mutex<Server>>::default();
        let election = renewed_and_stopped(&server).await;
        assert_eq!(server.lock().unwrap().holder().as_deref(), Some("one"));
        election.give_away().await;
        assert_eq!(server.lock().unwrap().holder(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_given_away_where_the_renewal_comes_between() {
        let server = Arc::<Mutex<Server>>::default();
        let election = renewed_and_stopped(&server).await;
        {
            let mut server = server.lock().unwrap();
            server.late = server.lease.clone();
        }
        election.give_away().await;
        let server = server.lock().unwrap();
        assert_eq!(server.holder(), None);
        assert!(server.late.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn that_of_somebody_else_is_left_alone() {
        let server = Arc::<Mutex<Server>>::default();
        let mut other = election(&server, "other");
        assert!(other.attempt().await.unwrap());
        let asked = server.lock().unwrap().asked;
        election(&server, "one").give_away().await;
        // Who never had it does not even ask.
        assert_eq!(server.lock().unwrap().asked, asked);
        let mut lost = renewed_and_stopped(&Arc::default()).await;
        lost.leases = other.leases;
        lost.give_away().await;
        assert_eq!(server.lock().unwrap().holder().as_deref(), Some("other"));
    }
}
