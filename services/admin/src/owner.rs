//! Asking the watcher that owns an account to try its login.

use std::time::Duration;

use mailbell_bus::{AskError, Bus};
use mailbell_core::ids::AccountId;
use mailbell_proto::bus::v1::{
    AccountRecord, CheckLogin, CheckResult, LoginNow, OwnerRequest, OwnerResponse,
    SealedCredential, owner_request, owner_response,
};
use mailbell_runtime::trace::TraceContext;
use tokio::{sync::Semaphore, time::Instant};

use crate::{Error, metrics::Metrics};

/// Logins that are tried at the same time: each holds a connection to a mail server on some watcher.
const AT_ONCE: usize = 64;
/// How long an owner may take to be told to log in.
const HURRY: Duration = Duration::from_secs(2);
/// A partition that has no owner is about to get one (a start, a hand-over), or no watcher runs: it is asked again after this.
const NO_OWNER_PAUSE: Duration = Duration::from_millis(250);

/// Asks owners.
#[derive(Debug)]
pub(crate) struct Owners {
    bus: Bus,
    /// Longer than what a watcher's own limits (connect, TLS, login, folders) add up to on a server that is slow but works.
    timeout: Duration,
    /// How long an owner is waited for where there is none.
    patience: Duration,
    slots: Semaphore,
    metrics: Metrics,
}

impl Owners {
    pub(crate) fn new(bus: Bus, timeout: Duration, patience: Duration, metrics: Metrics) -> Self {
        Self {
            bus,
            timeout,
            patience,
            slots: Semaphore::new(AT_ONCE),
            metrics,
        }
    }

    /// Tries the login of `account`: with these settings and this credential, each as stored if `None`. A login that fails is an
    /// `Ok` with `ok` false in it.
    pub(crate) async fn check(
        &self,
        account: &AccountId,
        record: Option<&AccountRecord>,
        credential: Option<&SealedCredential>,
    ) -> Result<CheckResult, Error> {
        let result = self.ask(account, record, credential).await;
        self.metrics.check(match &result {
            Ok(result) if result.ok => "good",
            Ok(_) => "failed",
            Err(_) => "unanswered",
        });
        result
    }

    /// Asks the owner to log in to an account at once if it waits after a failure. As well as it can: the account does it by
    /// itself in the end.
    pub(crate) async fn login_now(&self, account: &AccountId) {
        if !self.bus.write_version().has_login_now() {
            return;
        }
        let request = OwnerRequest {
            traceparent: TraceContext::root().to_string(),
            request: Some(owner_request::Request::Login(LoginNow {})),
            ..OwnerRequest::default()
        };
        match self.bus.ask(account, request, HURRY).await {
            Ok(OwnerResponse {
                response: Some(owner_response::Response::Login(_)),
            }) => {}
            Ok(_) => tracing::debug!(%account, "the owner does not log in at once"),
            Err(error) => tracing::debug!(%account, %error, "the owner was not asked to log in"),
        }
    }

    async fn ask(
        &self,
        account: &AccountId,
        record: Option<&AccountRecord>,
        credential: Option<&SealedCredential>,
    ) -> Result<CheckResult, Error> {
        let Ok(_slot) = self.slots.try_acquire() else {
            return Err(Error::Unavailable(
                "too many logins are being tried at the moment; try again".to_owned(),
            ));
        };
        let request = OwnerRequest {
            traceparent: TraceContext::root().to_string(),
            request: Some(owner_request::Request::Check(CheckLogin {
                account: record.cloned(),
                credential: credential.cloned(),
            })),
            ..OwnerRequest::default()
        };
        let begin = Instant::now();
        // Since when there is no owner: one may have died while it worked on this.
        let mut alone = None;
        loop {
            let left = self.timeout.saturating_sub(begin.elapsed());
            match self.bus.ask(account, request.clone(), left).await {
                Err(AskError::NoOwner)
                    if NO_OWNER_PAUSE < left
                        && alone.get_or_insert_with(Instant::now).elapsed() + NO_OWNER_PAUSE
                            < self.patience =>
                {
                    tokio::time::sleep(NO_OWNER_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
                Ok(response) => return read(response.response),
            }
        }
    }
}

fn read(response: Option<owner_response::Response>) -> Result<CheckResult, Error> {
    match response {
        Some(owner_response::Response::Check(result)) => Ok(result),
        Some(owner_response::Response::Error(error)) if error.retry => {
            Err(Error::Unavailable(error.sentence))
        }
        Some(owner_response::Response::Error(error)) => Err(Error::CheckFailed {
            code: error.code,
            sentence: error.sentence,
        }),
        Some(owner_response::Response::Page(_) | owner_response::Response::Login(_)) | None => Err(
            Error::internal("an owner answered a check with something else"),
        ),
    }
}

/// A login that must be good, with every folder there.
pub(crate) fn passed(result: CheckResult) -> Result<CheckResult, Error> {
    if !result.ok {
        return Err(Error::CheckFailed {
            code: result.code,
            sentence: result.sentence,
        });
    }
    if let Some(folder) = result.folders.iter().find(|folder| !folder.exists) {
        return Err(Error::CheckFailed {
            code: "no-such-folder".to_owned(),
            sentence: format!(
                "The mailbox has no folder {:?}; name one that it has.",
                folder.name
            ),
        });
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use mailbell_bus::{BusOptions, Role};
    use mailbell_runtime::metrics;
    use mailbell_test_servers::{NatsOptions, NatsServer};
    use tokio::{
        task::{JoinSet, yield_now},
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn more_checks_than_may_be_under_way_are_refused_at_once() {
        const LIMIT: Duration = Duration::from_secs(60);
        let nats = NatsServer::start(NatsOptions::default()).await.unwrap();
        let connect = async |role| {
            let options = BusOptions::new(vec![nats.url()], "test".parse().unwrap(), role);
            Bus::connect(options).await.unwrap()
        };
        connect(Role::Setup).await.setup().await.unwrap();
        let bus = connect(Role::Admin).await;
        let metrics = Metrics::register(metrics::Metrics::new("test").registry());
        // There is no owner, and each check waits for one.
        let owners = Owners::new(bus, 10 * LIMIT, 10 * LIMIT, metrics);
        let owners = std::sync::Arc::new(owners);
        let account: AccountId = "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        let mut checks = JoinSet::new();
        for _ in 0..AT_ONCE {
            let (owners, account) = (owners.clone(), account.clone());
            checks.spawn(async move { owners.check(&account, None, None).await });
        }
        let all_wait = async {
            while owners.slots.available_permits() > 0 {
                yield_now().await;
            }
        };
        timeout(LIMIT, all_wait).await.unwrap();
        let beyond = timeout(LIMIT, owners.check(&account, None, None)).await;
        let Ok(Err(Error::Unavailable(sentence))) = beyond else {
            panic!("{beyond:?}");
        };
        assert!(sentence.starts_with("too many logins"), "{sentence}");
        assert!(checks.try_join_next().is_none(), "those go on");
        // Who gives up leaves its place to another.
        checks.shutdown().await;
        assert_eq!(owners.slots.available_permits(), AT_ONCE);
    }
}
