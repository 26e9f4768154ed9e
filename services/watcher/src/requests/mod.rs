//! Requests of other processes to the owner of an account.

pub(crate) mod check;
pub(crate) mod list;

use std::sync::Arc;

use mailbell_core::{ids::AccountId, schema::known_request};
use mailbell_proto::bus::v1::{
    CheckLogin, ListPage, LoginBegun, LoginNow, OwnerError, OwnerRequest, OwnerResponse,
    PageResult, owner_request::Request, owner_response::Response,
};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::{driver::Context, failure, registry::Registry, slot::ListRequest};

/// Answers requests; cheap to clone.
#[derive(Clone)]
pub(crate) struct Answers {
    pub(crate) context: Arc<Context>,
    pub(crate) registry: Arc<Registry>,
    /// Checks that may run at once; none waits.
    pub(crate) checks: Arc<Semaphore>,
    /// Accounts that are to log in at once.
    pub(crate) hurries: mpsc::Sender<AccountId>,
}

impl Answers {
    /// The answer to one request. Dropped when the asker has given up.
    pub(crate) async fn answer(self, account: AccountId, request: OwnerRequest) -> OwnerResponse {
        let (kind, answer) = match known_request(request.request) {
            Some(Request::Check(check)) => {
                let answer = self.check(&account, check).await;
                ("check", answer)
            }
            Some(Request::List(page)) => {
                let answer = self.list(&account, page).await.map(Response::Page);
                ("list", answer)
            }
            Some(Request::Login(LoginNow {})) => {
                let answer = self.login_now(account).map(Response::Login);
                ("login", answer)
            }
            None => ("unknown", Err(failure::refused(failure::BAD_REQUEST))),
        };
        let outcome = if answer.is_ok() { "ok" } else { "refused" };
        self.context.metrics.request(kind, outcome);
        OwnerResponse {
            response: Some(answer.unwrap_or_else(Response::Error)),
        }
    }

    async fn check(
        &self,
        account: &AccountId,
        request: CheckLogin,
    ) -> Result<Response, OwnerError> {
        if self.registry.is_draining() {
            return Err(failure::refused(failure::NOT_OWNER));
        }
        let Ok(_permit) = self.checks.try_acquire() else {
            return Err(failure::refused(failure::BUSY));
        };
        Box::pin(check::check(&self.context, account, request))
            .await
            .map(Response::Check)
    }

    fn login_now(&self, account: AccountId) -> Result<LoginBegun, OwnerError> {
        if self.registry.is_draining() || !self.registry.serves(account.partition()) {
            return Err(failure::refused(failure::NOT_OWNER));
        }
        self.hurries
            .try_send(account)
            .map(|()| LoginBegun {})
            .map_err(|_full| failure::refused(failure::BUSY))
    }

    async fn list(&self, account: &AccountId, page: ListPage) -> Result<PageResult, OwnerError> {
        if self.registry.is_draining() || !self.registry.serves(account.partition()) {
            return Err(failure::refused(failure::NOT_OWNER));
        }
        let Some(slot) = self.registry.session(account) else {
            return Err(failure::refused(failure::NO_SUCH_ACCOUNT));
        };
        let (reply, answer) = oneshot::channel();
        let request = ListRequest { page, reply };
        if slot.request(request, self.context.requests).is_err() {
            return Err(failure::refused(failure::BUSY));
        }
        // Dropped unanswered: the session ended in between.
        answer
            .await
            .unwrap_or_else(|_| Err(failure::refused(failure::NOT_CONNECTED)))
    }
}

#[cfg(test)]
mod tests;
