//! What a session is told from outside, and what it shows of itself.
//!
//! Not a channel: an empty one costs kilobytes, and what is told here may be merged (only the newest record counts, a stop goes
//! before everything). The queue of requests is bounded; who finds it full is told to try again.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use mailbell_core::{
    ids::{AccountId, OwnerEpoch},
    ownership::Flush,
    session::Stop,
};
use mailbell_proto::{
    bus::v1::{AccountRecord, ListPage, OwnerError, PageResult},
    push::v1::Health,
};
use tokio::sync::{Notify, oneshot};

use crate::failure;

/// Somebody waits for a page of a folder.
#[derive(Debug)]
pub(crate) struct ListRequest {
    pub(crate) page: ListPage,
    pub(crate) reply: oneshot::Sender<Result<PageResult, OwnerError>>,
}

impl ListRequest {
    pub(crate) fn refuse(self, code: &'static str) {
        // Who asked may be gone.
        let _ = self.reply.send(Err(failure::refused(code)));
    }
}

/// What a session's task takes out when it is notified.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) stop: Option<Stop>,
    pub(crate) record: Option<Arc<AccountRecord>>,
    pub(crate) epoch: Option<OwnerEpoch>,
    pub(crate) requested: bool,
    /// Log in now, whatever it waits for.
    pub(crate) hurry: bool,
    /// The policy is another one.
    pub(crate) policy: bool,
}

/// How many sessions there are, and how they are: counted as that changes, since nobody can look at each of them every second.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) all: AtomicUsize,
    pub(crate) watching: AtomicUsize,
    /// Those that have just begun. One that waits for its turn with its mail host is counted there.
    pub(crate) starting: AtomicUsize,
}

/// What a session counts as.
#[derive(Debug, Clone, Copy)]
struct Counted {
    health: Health,
    /// It waits for its turn with its mail host.
    queued: bool,
}

impl Counts {
    fn of(&self, counted: Counted) -> impl Iterator<Item = &AtomicUsize> {
        let among = match counted {
            Counted {
                health: Health::Watching,
                ..
            } => Some(&self.watching),
            Counted {
                health: Health::Starting,
                queued: false,
            } => Some(&self.starting),
            _ => None,
        };
        among.into_iter().chain([&self.all])
    }

    fn enter(&self, counted: Counted) {
        for count in self.of(counted) {
            count.fetch_add(1, Relaxed);
        }
    }

    fn leave(&self, counted: Counted) {
        for count in self.of(counted) {
            count.fetch_sub(1, Relaxed);
        }
    }
}

#[derive(Debug)]
struct State {
    stop: Option<Stop>,
    record: Option<Arc<AccountRecord>>,
    epoch: Option<OwnerEpoch>,
    requests: VecDeque<ListRequest>,
    hurry: bool,
    policy: bool,
    flush: Flush,
    counted: Counted,
    /// Where it counts, for as long as it is the account's session.
    counts: Option<Arc<Counts>>,
    closed: bool,
}

/// A session's wait for its turn with its mail host.
#[derive(Debug)]
pub(crate) struct Queued(Arc<Slot>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.recount(|counted| counted.queued = false);
    }
}

/// Of one running session.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) account: AccountId,
    notify: Notify,
    state: Mutex<State>,
}

impl Slot {
    /// `flush`: what bounds the claim until the session says otherwise.
    pub(crate) fn new(account: AccountId, flush: Flush) -> Self {
        Self {
            account,
            notify: Notify::new(),
            state: Mutex::new(State {
                stop: None,
                record: None,
                epoch: None,
                requests: VecDeque::new(),
                hurry: false,
                policy: false,
                flush,
                counted: Counted {
                    health: Health::Starting,
                    queued: false,
                },
                counts: None,
                closed: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session. Losing the account overrides everything. A hand-over overrides a removal: whoever comes next finds
    /// the tombstone.
    pub(crate) fn stop(&self, stop: Stop) {
        const fn strength(stop: Stop) -> u8 {
            match stop {
                Stop::Removed => 1,
                Stop::HandOver => 2,
                Stop::Lost => 3,
            }
        }
        let mut state = self.state();
        if strength(stop) > state.stop.map_or(0, strength) {
            state.stop = Some(stop);
            drop(state);
            self.notify.notify_one();
        }
    }

    /// The account's record changed.
    pub(crate) fn change(&self, record: Arc<AccountRecord>) {
        self.state().record = Some(record);
        self.notify.notify_one();
    }

    /// The partition is ours by another claim.
    pub(crate) fn renew(&self, epoch: OwnerEpoch) {
        self.state().epoch = Some(epoch);
        self.notify.notify_one();
    }

    /// The policy is another one.
    pub(crate) fn policy_changed(&self) {
        self.state().policy = true;
        self.notify.notify_one();
    }

    /// Ends the wait of a login that failed.
    pub(crate) fn hurry(&self) {
        self.state().hurry = true;
        self.notify.notify_one();
    }

    /// Asks for a page; hands the request back if `most` wait already or the session is over.
    pub(crate) fn request(&self, request: ListRequest, most: usize) -> Result<(), ListRequest> {
        let mut state = self.state();
        if state.closed || state.requests.len() >= most {
            return Err(request);
        }
        state.requests.push_back(request);
        drop(state);
        self.notify.notify_one();
        Ok(())
    }

    /// Waits until something was told. Cancel-safe: what is told stays until it is taken.
    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }

    /// Whether the session is to end.
    pub(crate) fn stopping(&self) -> Option<Stop> {
        self.state().stop
    }

    /// What was told since the last call. A stop is told again each time: it never passes.
    pub(crate) fn take(&self) -> Told {
        let mut state = self.state();
        Told {
            stop: state.stop,
            record: state.record.take(),
            epoch: state.epoch.take(),
            requested: !state.requests.is_empty(),
            hurry: std::mem::take(&mut state.hurry),
            policy: std::mem::take(&mut state.policy),
        }
    }

    /// Whoever still waits for a page.
    pub(crate) fn take_requests(&self) -> Vec<ListRequest> {
        self.state()
            .requests
            .drain(..)
            .filter(|request| !request.reply.is_closed())
            .collect()
    }

    pub(crate) fn refuse_requests(&self, code: &'static str) {
        for request in self.take_requests() {
            request.refuse(code);
        }
    }

    pub(crate) fn set_flush(&self, flush: Flush) {
        self.state().flush = flush;
    }

    pub(crate) fn flush(&self) -> Flush {
        self.state().flush
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.recount(|counted| counted.health = health);
    }

    /// It waits for its turn with its mail host for as long as this lives.
    pub(crate) fn queue(self: &Arc<Self>) -> Queued {
        self.recount(|counted| counted.queued = true);
        Queued(Arc::clone(self))
    }

    fn recount(&self, change: impl FnOnce(&mut Counted)) {
        let mut state = self.state();
        let before = state.counted;
        change(&mut state.counted);
        if let Some(counts) = &state.counts {
            counts.leave(before);
            counts.enter(state.counted);
        }
    }

    /// Counts here from now on, and no longer where it counted; nowhere, if there is nothing.
    pub(crate) fn count_in(&self, counts: Option<Arc<Counts>>) {
        let mut state = self.state();
        if let Some(counts) = &counts {
            counts.enter(state.counted);
        }
        if let Some(before) = std::mem::replace(&mut state.counts, counts) {
            before.leave(state.counted);
        }
    }

    pub(crate) fn health(&self) -> Health {
        self.state().counted.health
    }

    /// The session is over: nobody may wait for it.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.refuse_requests(failure::NOT_CONNECTED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Slot {
        let account = "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        Slot::new(account, Flush::default())
    }

    fn request() -> (
        ListRequest,
        oneshot::Receiver<Result<PageResult, OwnerError>>,
    ) {
        let (reply, answer) = oneshot::channel();
        let page = ListPage::default();
        (ListRequest { page, reply }, answer)
    }

    #[tokio::test]
    async fn requests_are_bounded_and_refused_at_the_end() {
        let slot = slot();
        let (first, answer) = request();
        let (second, _answer) = request();
        assert!(slot.request(first, 1).is_ok());
        assert!(slot.request(second, 1).is_err());
        slot.close();
        let error = answer.await.unwrap().unwrap_err();
        assert_eq!((error.code.as_str(), error.retry), ("not-connected", true));
        let (third, _answer) = request();
        assert!(slot.request(third, 1).is_err());
    }

    #[test]
    fn who_gave_up_is_not_served() {
        let slot = slot();
        let (first, answer) = request();
        assert!(slot.request(first, 8).is_ok());
        drop(answer);
        assert!(slot.take_requests().is_empty());
    }

    #[tokio::test]
    async fn the_strongest_stop_stays() {
        let slot = slot();
        slot.stop(Stop::Removed);
        slot.stop(Stop::HandOver);
        assert_eq!(slot.take().stop, Some(Stop::HandOver));
        slot.stop(Stop::Lost);
        slot.stop(Stop::HandOver);
        slot.notified().await;
        assert_eq!(slot.take().stop, Some(Stop::Lost));
        assert_eq!(slot.take().stop, Some(Stop::Lost));
    }
}
