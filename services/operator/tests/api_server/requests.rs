//! What an operator asks of the API server: counted, cut off after so many, held back for a while, or answered by somebody else.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Request, Response, StatusCode};
use kube::{Client, client::Body};
use tokio::sync::{Notify, Semaphore};
use tower::service_fn;

use crate::world::World;

/// How many requests there were, and how many there may be.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    made: AtomicUsize,
    /// Of these, statuses of MailAccounts that were written.
    statuses: AtomicUsize,
    /// And tokens of the operator that were read.
    tokens: AtomicUsize,
    /// Of those that have this in them, the one after so many is never sent, nor any after it.
    limit: Option<(&'static str, usize)>,
    counted: AtomicUsize,
    /// The first one that is meant and was made by none before is never sent, nor any after it.
    only: Option<(IsMeant, BTreeSet<String>)>,
    unsent: Mutex<Option<String>>,
    reached: Notify,
    /// Those that have all of these in them wait until there are permits.
    held: Option<(&'static [&'static str], Semaphore)>,
    /// How those that have all of these in them are answered in place of the API server, from the last one to the first.
    script: Mutex<(&'static [&'static str], Vec<Answer>)>,
}

/// Of method and path.
pub(crate) type IsMeant = fn(&str) -> bool;

/// Status and body.
pub(crate) type Answer = (u16, &'static str);

impl Requests {
    /// Of those that have this in method, path and query, the one after so many is never sent, nor any after it.
    pub(crate) fn limited(part: &'static str, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit: Some((part, limit)),
            ..Self::default()
        })
    }

    /// The first one that is meant, and is none of these, is never sent, nor any after it.
    pub(crate) fn only(is_meant: IsMeant, known: BTreeSet<String>) -> Arc<Self> {
        Arc::new(Self {
            only: Some((is_meant, known)),
            ..Self::default()
        })
    }

    /// Method and path of that one.
    pub(crate) fn unsent(&self) -> Option<String> {
        self.unsent.lock().unwrap().clone()
    }

    /// Those that have all of these in method, path and query are sent once they are let go.
    pub(crate) fn holding(parts: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self {
            held: Some((parts, Semaphore::new(0))),
            ..Self::default()
        })
    }

    /// The next ones that have all of these in method, path and query are answered so, and the API server hears nothing of them.
    pub(crate) fn answered(parts: &'static [&'static str], mut answers: Vec<Answer>) -> Arc<Self> {
        answers.reverse();
        Arc::new(Self {
            script: Mutex::new((parts, answers)),
            ..Self::default()
        })
    }

    /// How many answers have not been given.
    pub(crate) fn unanswered(&self) -> usize {
        self.script.lock().unwrap().1.len()
    }

    fn answer(&self, request: &str) -> Option<Response<Body>> {
        let mut script = self.script.lock().unwrap();
        if !script.0.iter().all(|part| request.contains(part)) {
            return None;
        }
        let (status, body) = script.1.pop()?;
        let mut response = Response::new(Body::from(body.as_bytes().to_vec()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        Some(response)
    }

    pub(crate) fn let_go(&self) {
        let (_, permits) = self.held.as_ref().unwrap();
        permits.close();
    }

    /// How many there were, with those that are held.
    pub(crate) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// How often the status of a MailAccount was written.
    pub(crate) fn statuses(&self) -> usize {
        self.statuses.load(Ordering::Relaxed)
    }

    /// How often the token was read by which an admin API knows the operator: anew for each call after one that nobody answered.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens.load(Ordering::Relaxed)
    }

    /// Waits for the first one that is not sent, or held.
    pub(crate) async fn are_over(&self) {
        self.reached.notified().await;
    }

    fn is_over(&self, request: &str) -> bool {
        let Some((is_meant, known)) = &self.only else {
            return false;
        };
        let mut unsent = self.unsent.lock().unwrap();
        let (name, _) = request.split_once('?').unwrap_or((request, ""));
        if unsent.is_none() && is_meant(name) && !known.contains(name) {
            *unsent = Some(name.to_owned());
        }
        unsent.is_some()
    }

    async fn pass(&self, request: &str) {
        if let Some((parts, permits)) = &self.held
            && parts.iter().all(|part| request.contains(part))
        {
            self.reached.notify_one();
            // Closed, it lets all go.
            assert!(permits.acquire().await.is_err());
        }
        self.made.fetch_add(1, Ordering::Relaxed);
        if self.is_over(request) {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
        let Some((part, limit)) = self.limit else {
            return;
        };
        // Who has reached it stays there.
        let counts = request.contains(part) || self.counted.load(Ordering::Relaxed) > limit;
        if counts && self.counted.fetch_add(1, Ordering::Relaxed) >= limit {
            self.reached.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

/// A client of the user who may everything, all of whose requests are counted.
pub(crate) async fn client(world: &World, requests: Arc<Requests>) -> Client {
    let client = world.server.client().await.unwrap();
    let service = service_fn(move |request: Request<Body>| {
        let (client, requests) = (client.clone(), Arc::clone(&requests));
        async move {
            let path = request.uri().path();
            if path.contains("/mailaccounts/") && path.ends_with("/status") {
                requests.statuses.fetch_add(1, Ordering::Relaxed);
            }
            if path.ends_with("-operator-token") {
                requests.tokens.fetch_add(1, Ordering::Relaxed);
            }
            let said = format!("{} {}", request.method(), request.uri());
            requests.pass(&said).await;
            match requests.answer(&said) {
                Some(answer) => Ok(answer),
                None => client.send(request).await,
            }
        }
    });
    Client::new(service, &world.namespace)
}
