//! What NATS and the mail server say of accounts, and waiting for it.

use std::time::Duration;

use mailbell_bus::{Filter, Followed, Logs};
use mailbell_core::{
    event::{Event, Fact},
    ids::{AccountId, Position},
};
use mailbell_proto::{
    bus::v1::StatusRecord,
    push::v1::{Health, Message},
};
use prost::Message as _;
use tokio::time::{Instant, sleep, timeout};

use super::{LIMIT, World};

impl World {
    /// Also soon after NATS was restarted, when this connection may not be back yet.
    async fn logs(&self) -> Logs {
        loop {
            match self.gateway.logs_that_answer().await {
                Ok(logs) => return logs,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The account's log as it is now.
    pub(crate) async fn events(&self, account: &AccountId) -> Vec<(Position, Event)> {
        let logs = self.logs().await;
        let group = account.group();
        let tail = logs.tail(group).await.unwrap();
        let filter = Filter::Account(account.clone());
        let entries = logs.read(group, filter, 0, tail.last).all().await.unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.position, entry.event.unwrap()))
            .collect()
    }

    /// Reads the account's log from its beginning, and on as it grows, until it is as `wanted` says.
    pub(crate) async fn until_events(
        &self,
        account: &AccountId,
        mut wanted: impl FnMut(&[Event]) -> bool,
    ) -> Vec<Event> {
        let logs = self.logs().await;
        let mut follower = logs.follow(account.group(), 1);
        let mut events = Vec::new();
        let found = timeout(LIMIT, async {
            while !wanted(&events) {
                if let Followed::Entry(entry) = follower.next().await.unwrap()
                    && entry.account == *account
                {
                    events.extend(entry.event);
                }
            }
        });
        if found.await.is_err() {
            panic!("not within {LIMIT:?}: {events:?}\n{}", self.metrics());
        }
        events
    }

    /// Waits until so many messages arrived; the subjects in the order of the log.
    pub(crate) async fn until_arrived(&self, account: &AccountId, count: usize) -> Vec<String> {
        let events = self
            .until_events(account, |events| arrivals(events).len() >= count)
            .await;
        arrivals(&events)
            .into_iter()
            .map(|message| message.subject)
            .collect()
    }

    /// Waits until the account's status is as `wanted` says.
    pub(crate) async fn until_status(
        &self,
        account: &AccountId,
        wanted: impl Fn(&StatusRecord, Health) -> bool,
    ) -> StatusRecord {
        let begun = Instant::now();
        loop {
            let found = self.admin.statuses().get(account).await.unwrap();
            if let Some(found) = &found
                && let Some(state) = &found.value.state
                && wanted(&found.value, state.health())
            {
                return found.value.clone();
            }
            assert!(begun.elapsed() < LIMIT, "{found:?}\n{}", self.metrics());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until nothing is stored of a removed account: of what it has, status and checkpoint go last.
    pub(crate) async fn until_forgotten(&self, account: &AccountId) {
        let begun = Instant::now();
        let (statuses, checkpoints) = (self.admin.statuses(), self.admin.checkpoints());
        while !matches!(statuses.get(account).await, Ok(None))
            || !matches!(checkpoints.load(account).await, Ok(None))
        {
            assert!(begun.elapsed() < LIMIT, "{}", self.metrics());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the mail server has seen so many logouts.
    pub(crate) async fn until_logouts(&self, count: usize) {
        let begun = Instant::now();
        while self.dovecot.log().matches("Logged out").count() < count {
            assert!(begun.elapsed() < LIMIT, "{}", self.dovecot.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn until_watching(&self, account: &AccountId) {
        self.until_status(account, |_, health| health == Health::Watching)
            .await;
    }
}

/// The messages that arrived, in the order of the log.
pub(crate) fn arrivals(events: &[Event]) -> Vec<Message> {
    events
        .iter()
        .filter(|event| matches!(event.fact, Fact::Arrived { .. }))
        .map(|event| Message::decode(event.content.clone()).unwrap())
        .collect()
}

/// `n0`, `n1` and so on were told, as [`assert_told`] says.
pub(crate) fn assert_numbered(events: &[Event], count: usize) {
    assert_told(events, (0..count).map(|number| format!("n{number}")));
}

/// Messages of these subjects were told, each once, in the order of the mailbox. (Dovecot may give two deliveries that follow each
/// other closely their UIDs the other way round.)
pub(crate) fn assert_told(events: &[Event], subjects: impl IntoIterator<Item = String>) {
    let told = arrivals(events);
    let uids: Vec<u32> = told.iter().map(|message| message.uid).collect();
    assert!(uids.is_sorted_by(|a, b| a < b), "{uids:?}");
    let mut told: Vec<_> = told.into_iter().map(|message| message.subject).collect();
    told.sort();
    let mut expected: Vec<_> = subjects.into_iter().collect();
    expected.sort();
    assert_eq!(told, expected);
}

/// No fact was told twice, by its key.
pub(crate) fn assert_no_repeats(events: &[(Position, Event)]) {
    let mut keys: Vec<String> = events.iter().map(|(_, event)| event.message_id()).collect();
    keys.sort();
    let all = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), all);
}
