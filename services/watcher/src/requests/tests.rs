//! Requests beyond what may be under way.

use std::{future::pending, pin::Pin, time::Duration};

use mailbell_imap::{Connection, Endpoint, Error, Login, Settings};
use tokio::{
    task::{JoinSet, yield_now},
    time::timeout,
};

use super::*;
use crate::{
    Options,
    driver::{
        Connect,
        tests::{
            context,
            log::{Logs, MemoryLog},
            record,
            server::Server,
        },
    },
    running::HURRIES,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A network that lets nobody through.
struct Nowhere;

impl Connect for Nowhere {
    fn connect<'a>(
        &'a self,
        _: &'a Endpoint,
        _: &'a Login,
        _: &'a Settings,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>> {
        Box::pin(pending())
    }
}

/// What answers for one account, and where those go that are to log in at once.
fn answers() -> (Answers, AccountId, mpsc::Receiver<AccountId>) {
    let account: AccountId = "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
    let logs = Logs([(account.clone(), MemoryLog::new())].into());
    let mut context = Arc::into_inner(context(&Server::new(&[]), logs)).unwrap();
    context.connect = Box::new(Nowhere);
    let registry = Arc::new(Registry::default());
    registry.serve([(account.partition(), 1)]);
    let (hurries, hurried) = mpsc::channel(HURRIES);
    let checks = Options::new("pod-0", "start-1").checks;
    let answers = Answers {
        context: Arc::new(context),
        registry,
        checks: Arc::new(Semaphore::new(checks)),
        hurries,
    };
    (answers, account, hurried)
}

fn refused(response: &OwnerResponse) -> Option<&str> {
    match &response.response {
        Some(Response::Error(error)) if error.retry => Some(error.code.as_str()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn more_checks_than_may_be_under_way_are_refused_at_once() {
    let (answers, account, _hurried) = answers();
    let sealed = answers.context.ledger.credential(account.clone()).await;
    let check = OwnerRequest {
        request: Some(Request::Check(CheckLogin {
            account: Some(record()),
            credential: sealed.unwrap(),
        })),
        ..OwnerRequest::default()
    };
    let answer = || answers.clone().answer(account.clone(), check.clone());
    let all = answers.checks.available_permits();
    assert_eq!(all, 16);
    let mut checks = JoinSet::new();
    for _ in 0..all {
        checks.spawn(answer());
    }
    while answers.checks.available_permits() > 0 {
        yield_now().await;
    }
    let beyond = timeout(LIMIT, answer()).await.unwrap();
    assert_eq!(refused(&beyond), Some(failure::BUSY), "{beyond:?}");
    assert!(checks.try_join_next().is_none(), "those go on");
    // Whose asker gives up leaves its place to another.
    checks.shutdown().await;
    assert_eq!(answers.checks.available_permits(), all);
}

#[tokio::test(start_paused = true)]
async fn more_hurries_than_may_wait_are_refused_at_once() {
    let (answers, account, mut hurried) = answers();
    let hurry = OwnerRequest {
        request: Some(Request::Login(LoginNow {})),
        ..OwnerRequest::default()
    };
    let answer = || {
        timeout(
            LIMIT,
            answers.clone().answer(account.clone(), hurry.clone()),
        )
    };
    for number in 0..64 {
        let response = answer().await.unwrap().response;
        assert!(
            matches!(response, Some(Response::Login(_))),
            "{number}: {response:?}"
        );
    }
    let beyond = answer().await.unwrap();
    assert_eq!(refused(&beyond), Some(failure::BUSY), "{beyond:?}");
    // Once one was taken there is a place again.
    assert_eq!(hurried.recv().await, Some(account.clone()));
    let response = answer().await.unwrap().response;
    assert!(matches!(response, Some(Response::Login(_))), "{response:?}");
}
