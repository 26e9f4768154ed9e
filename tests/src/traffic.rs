//! What goes on beside a test: mail that arrives all the time, and a client that lists folders all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use mailbell_proto::push::v1::{
    ListMessagesRequest, ListMessagesResponse, list_messages_request::Range,
};
use mailbell_test_servers::{SyntheticImap, synthetic::Stored};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::{
    device::{bare, with_token},
    load,
    world::Account,
};

/// The last so many messages of a folder are listed.
const NEWEST: u32 = 50;
/// Between two listings. Nobody waits for anything by it: it is how often a client asks.
const PAUSE: Duration = Duration::from_millis(20);
/// One listing may take so long. Far more than the gateway gives it.
const LISTING_LIMIT: Duration = Duration::from_secs(60);
/// After a refusal that says "try again", an account is tried again so often before its listing counts as failed for good.
const LAST_TRIES: u32 = 100;

/// Mail that arrives all the time.
#[derive(Debug)]
pub struct Traffic {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<u64>>,
}

impl Traffic {
    pub(crate) fn start(
        server: Arc<SyntheticImap>,
        next: Arc<AtomicU64>,
        seed: u64,
        a_second: u32,
    ) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut pace = interval(Duration::from_secs(1) / a_second.max(1));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut count = 0;
            while stopped.run_until_cancelled(pace.tick()).await.is_some() {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let user = rng.random_range(0..server.users());
                server.deliver(user, load::message(number))?;
                count += 1;
            }
            Ok(count)
        });
        Self { stop, task }
    }

    /// Ends it; how many messages there were.
    ///
    /// # Errors
    /// When it had ended before, of an error.
    pub async fn stop(self) -> anyhow::Result<u64> {
        self.stop.cancel();
        self.task.await?
    }
}

/// How the listings went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Answers, all of them right.
    pub answers: usize,
    /// Refusals that say "try again".
    pub refusals: usize,
}

/// A client that lists folders all the time.
#[derive(Debug)]
pub struct Listings {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<Listed>>,
}

struct Lister {
    server: Arc<SyntheticImap>,
    url: String,
    token: String,
    accounts: Vec<Account>,
}

impl Listings {
    pub(crate) fn start(
        server: Arc<SyntheticImap>,
        url: String,
        token: String,
        accounts: Vec<Account>,
    ) -> anyhow::Result<Self> {
        ensure!(!accounts.is_empty(), "there is nothing to list");
        let lister = Lister {
            server,
            url,
            token,
            accounts,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(lister.run(stop.clone()));
        Ok(Self { stop, task })
    }

    /// Ends it, once each account has answered a last time.
    ///
    /// # Errors
    /// When an answer was wrong, a refusal was not one to be tried again, or an account no longer answers.
    pub async fn stop(self) -> anyhow::Result<Listed> {
        self.stop.cancel();
        self.task.await?
    }
}

impl Lister {
    async fn run(self, stop: CancellationToken) -> anyhow::Result<Listed> {
        let mut listed = Listed::default();
        let mut user = 0;
        while stop
            .run_until_cancelled(tokio::time::sleep(PAUSE))
            .await
            .is_some()
        {
            self.list(user, &mut listed).await?;
            user = (user + 1) % self.accounts.len();
        }
        for user in 0..self.accounts.len() {
            let mut tries = 0;
            while !self.list(user, &mut listed).await? {
                tries += 1;
                ensure!(tries < LAST_TRIES, "u{user} answers no listing any more");
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        Ok(listed)
    }

    /// Lists one folder; whether that was answered.
    async fn list(&self, user: usize, listed: &mut Listed) -> anyhow::Result<bool> {
        let before = self.server.messages(user)?;
        let asked = timeout(LISTING_LIMIT, self.ask(user));
        match asked.await.context("a listing without an end")?? {
            Ok(answer) => {
                let after = self.server.messages(user)?;
                judge(self.server.generation(), &before, &after, &answer)
                    .with_context(|| format!("the listing of u{user}"))?;
                listed.answers += 1;
                Ok(true)
            }
            Err(status) => {
                let again = [
                    Code::Unavailable,
                    Code::ResourceExhausted,
                    Code::DeadlineExceeded,
                ];
                if !again.contains(&status.code()) {
                    return Err(status).with_context(|| format!("listing u{user}"));
                }
                listed.refusals += 1;
                Ok(false)
            }
        }
    }

    async fn ask(&self, user: usize) -> anyhow::Result<Result<ListMessagesResponse, Status>> {
        let account = self.accounts.get(user).context("there is no such user")?;
        // Anew each time, so that nothing of one listing is another's.
        let mut client = bare(self.url.clone()).await?;
        let request = ListMessagesRequest {
            account: account.id.clone(),
            range: Some(Range::Newest(NEWEST)),
            ..ListMessagesRequest::default()
        };
        let answer = client.list_messages(with_token(request, &self.token)?);
        Ok(answer.await.map(tonic::Response::into_inner))
    }
}

/// An answer is right if it was true of the folder at some moment between the question and the answer.
fn judge(
    generation: u32,
    before: &[Stored],
    after: &[Stored],
    answer: &ListMessagesResponse,
) -> anyhow::Result<()> {
    ensure!(
        answer.generation == generation,
        "generation {}",
        answer.generation
    );
    let told: Vec<(u32, Option<u64>)> = answer
        .messages
        .iter()
        .map(|message| (message.uid, load::number_in(&message.subject)))
        .collect();
    for count in before.len()..=after.len() {
        let there = after.get(..count).unwrap_or_default();
        let newest = there.len().saturating_sub(NEWEST as usize);
        let true_then: Vec<(u32, Option<u64>)> = there
            .iter()
            .skip(newest)
            .map(|stored| {
                let number = load::number_in(&String::from_utf8_lossy(&stored.bytes));
                (stored.uid, number)
            })
            .collect();
        if true_then == told {
            return Ok(());
        }
    }
    bail!(
        "{told:?} was never true: {} messages before, {} after",
        before.len(),
        after.len()
    )
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use mailbell_proto::push::v1::Message;

    use super::*;

    fn stored(uid: u32) -> Stored {
        Stored {
            uid,
            received: SystemTime::UNIX_EPOCH,
            bytes: load::message(u64::from(uid)).into(),
        }
    }

    fn answer(uids: &[u32]) -> ListMessagesResponse {
        let message = |uid: &u32| Message {
            uid: *uid,
            subject: format!("hello #{uid}#"),
            ..Message::default()
        };
        ListMessagesResponse {
            generation: 7,
            messages: uids.iter().map(message).collect(),
            ..ListMessagesResponse::default()
        }
    }

    #[test]
    fn an_answer_was_true_at_some_moment_or_is_wrong() {
        let after: Vec<Stored> = (1..=3).map(stored).collect();
        let before = &after[..2];
        let right = |uids: &[u32]| judge(7, before, &after, &answer(uids)).is_ok();
        assert!(right(&[1, 2]) && right(&[1, 2, 3]));
        assert!(!right(&[1]) && !right(&[2, 3]) && !right(&[1, 3]) && !right(&[1, 2, 3, 4]));
        let mut foreign = answer(&[1, 2]);
        foreign.messages[1].subject = "hello #9#".to_owned();
        assert!(judge(7, before, &after, &foreign).is_err());
        assert!(judge(8, before, &after, &answer(&[1, 2])).is_err());
    }
}
