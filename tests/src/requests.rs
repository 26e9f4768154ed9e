//! Clients that ask the owners of accounts all the time, whatever happens to these: one lists folders, others have logins checked.
//!
//! Whatever they are answered is right, or says "try again", and comes in time.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use mailbell_proto::{
    admin::v1::{CheckAccountRequest, CheckAccountResponse, accounts_client::AccountsClient},
    push::v1::{ListMessagesRequest, ListMessagesResponse, list_messages_request::Range},
};
use mailbell_test_servers::{SyntheticImap, synthetic::Stored};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, transport::Channel};

use crate::{
    device::{bare, with_token},
    load,
    world::Account,
};

/// The last so many messages of a folder are listed.
const NEWEST: u32 = 50;
/// Between two requests of a client. Nobody waits for anything by it: it is how often a client asks.
const PAUSE: Duration = Duration::from_millis(20);
/// One listing may take so long. The gateway gives it 20 s, and the rest is for two busy cores.
const LISTING_LIMIT: Duration = Duration::from_secs(40);
/// The deadline of a check, as its client sets it, and nobody is to come to it: of an owner that is killed or stopped while it checks,
/// the next one is asked instead.
const CHECK_DEADLINE: Duration = Duration::from_secs(30);
/// A deadline is answered in so much time on two busy cores.
const LATE: Duration = Duration::from_secs(10);
/// So many clients have logins checked. One alone would see little: where an account has no owner it waits for one.
const CHECKERS: usize = 2;
/// After a refusal that says "try again", an account is tried again so often before its request counts as failed for good.
const LAST_TRIES: u32 = 100;

/// How the requests of one kind went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Answers, all of them right.
    pub answers: usize,
    /// Refusals that say "try again".
    pub refusals: usize,
    /// The longest that one took.
    pub longest: Duration,
}

/// How all requests went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Listings of folders.
    pub listings: Counts,
    /// Checks of logins.
    pub checks: Counts,
}

/// Clients that ask all the time.
#[derive(Debug)]
pub struct Requests {
    stop: CancellationToken,
    listings: JoinHandle<anyhow::Result<Counts>>,
    checks: Vec<JoinHandle<anyhow::Result<Counts>>>,
}

/// Whom clients ask, and about what.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) server: Arc<SyntheticImap>,
    /// The gateway, and a token of the whole tenant.
    pub(crate) push: (String, String),
    /// The admin API, and its token.
    pub(crate) admin: (String, String),
    pub(crate) accounts: Vec<Account>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Listing,
    Check,
}

impl Requests {
    /// Returns when each client has been answered once.
    pub(crate) async fn start(asker: &Asker) -> anyhow::Result<Self> {
        ensure!(
            asker.accounts.len() >= CHECKERS,
            "there is nobody to ask for"
        );
        let stop = CancellationToken::new();
        let (first_answer, mut first_answers) = mpsc::channel(CHECKERS + 1);
        let client = |kind, first, step| {
            let users = (first..asker.accounts.len()).step_by(step).collect();
            let first_answer = first_answer.clone();
            tokio::spawn(asker.clone().run(kind, users, stop.clone(), first_answer))
        };
        let requests = Self {
            listings: client(Kind::Listing, 0, 1),
            checks: (0..CHECKERS)
                .map(|first| client(Kind::Check, first, CHECKERS))
                .collect(),
            stop,
        };
        drop(first_answer);
        for _ in 0..=CHECKERS {
            // One that has ended says in the end why.
            first_answers.recv().await;
        }
        Ok(requests)
    }

    /// Ends it, once each account's owner has answered a last time.
    ///
    /// # Errors
    /// When an answer was wrong, a refusal was not one to be tried again, a request took too long, or an account's owner no longer
    /// answers.
    pub async fn stop(self) -> anyhow::Result<Asked> {
        self.stop.cancel();
        let mut checks = Counts::default();
        for client in self.checks {
            checks.add(client.await??);
        }
        Ok(Asked {
            listings: self.listings.await??,
            checks,
        })
    }
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.refusals += other.refusals;
        self.longest = self.longest.max(other.longest);
    }
}

impl Asker {
    /// Lists the folder of every account at once.
    pub(crate) async fn list_all(&self) -> anyhow::Result<Counts> {
        let listings = (0..self.accounts.len()).map(async |user| {
            let mut counts = Counts::default();
            self.ask(Kind::Listing, user, &mut counts).await?;
            anyhow::Ok(counts)
        });
        let mut all = Counts::default();
        for counts in try_join_all(listings).await? {
            all.add(counts);
        }
        Ok(all)
    }

    async fn run(
        self,
        kind: Kind,
        users: Vec<usize>,
        stop: CancellationToken,
        first_answer: mpsc::Sender<()>,
    ) -> anyhow::Result<Counts> {
        let mut counts = Counts::default();
        let mut first_answer = Some(first_answer);
        for user in users.iter().cycle() {
            let pause = tokio::time::sleep(PAUSE);
            if stop.run_until_cancelled(pause).await.is_none() {
                break;
            }
            let answered = self.ask(kind, *user, &mut counts).await?;
            if answered && let Some(first_answer) = first_answer.take() {
                // Who waited for it may have given up.
                let _ = first_answer.send(()).await;
            }
        }
        for user in users {
            let mut tries = 0;
            while !self.ask(kind, user, &mut counts).await? {
                tries += 1;
                ensure!(
                    tries < LAST_TRIES,
                    "{kind:?} of u{user} is answered no more"
                );
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
        Ok(counts)
    }

    /// Asks once; whether that was answered.
    async fn ask(&self, kind: Kind, user: usize, counts: &mut Counts) -> anyhow::Result<bool> {
        let begin = Instant::now();
        let asked = match kind {
            Kind::Listing => timeout(LISTING_LIMIT, self.list(user)).await,
            Kind::Check => timeout(CHECK_DEADLINE + LATE, self.check(user)).await,
        };
        let what = || format!("{kind:?} of u{user}");
        let refused = asked
            .with_context(|| format!("{} has no end", what()))?
            .with_context(what)?;
        counts.longest = counts.longest.max(begin.elapsed());
        let Some(status) = refused else {
            counts.answers += 1;
            return Ok(true);
        };
        counts.refusals += 1;
        if status.code() != Code::Unavailable {
            return Err(status).with_context(what);
        }
        Ok(false)
    }

    /// Lists a folder and judges the answer; the refusal if there is none.
    async fn list(&self, user: usize) -> anyhow::Result<Option<Status>> {
        let (url, token) = &self.push;
        let before = self.server.messages(user)?;
        // Anew each time, so that nothing of one request is another's.
        let mut client = bare(url.clone()).await?;
        let request = ListMessagesRequest {
            account: self.account(user)?.id.clone(),
            range: Some(Range::Newest(NEWEST)),
            ..ListMessagesRequest::default()
        };
        let answer = client.list_messages(with_token(request, token)?).await;
        let answer = match answer.map(Response::into_inner) {
            Ok(answer) => answer,
            Err(status) => return Ok(Some(status)),
        };
        let after = self.server.messages(user)?;
        judge(self.server.generation(), &before, &after, &answer)?;
        Ok(None)
    }

    /// Has a login checked and judges the answer; the refusal if there is none.
    async fn check(&self, user: usize) -> anyhow::Result<Option<Status>> {
        let (url, token) = &self.admin;
        let before = self.server.messages(user)?;
        let mut client = AccountsClient::new(Channel::from_shared(url.clone())?.connect().await?);
        let id = self.account(user)?.id.clone();
        let mut request = with_token(CheckAccountRequest { id }, token)?;
        request.set_timeout(CHECK_DEADLINE);
        let answer = match client.check_account(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Ok(Some(status)),
        };
        let after = self.server.messages(user)?;
        let counts = before.len()..=after.len();
        ensure!(
            is_right(self.server.generation(), counts, &answer),
            "{answer:?}"
        );
        Ok(None)
    }

    fn account(&self, user: usize) -> anyhow::Result<&Account> {
        self.accounts.get(user).context("there is no such user")
    }
}

/// A check is right if the login was good and the folder is there, with as many messages as it had at some moment between the question
/// and the answer. Who has as many is mostly that user alone.
fn is_right(
    generation: u32,
    messages: std::ops::RangeInclusive<usize>,
    answer: &CheckAccountResponse,
) -> bool {
    let [folder] = answer.folders.as_slice() else {
        return false;
    };
    let there = usize::try_from(folder.messages).is_ok_and(|count| messages.contains(&count));
    answer.ok
        && answer.code == "ok"
        && folder.name == "INBOX"
        && folder.exists
        && folder.generation == generation
        && there
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

    use mailbell_proto::{admin::v1::FolderCheck, push::v1::Message};

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

    #[test]
    fn a_check_is_right_with_a_good_login_and_the_folder_as_it_was() {
        let folder = |messages| FolderCheck {
            name: "INBOX".to_owned(),
            exists: true,
            messages,
            generation: 7,
            ..FolderCheck::default()
        };
        let answer = |messages| CheckAccountResponse {
            ok: true,
            code: "ok".to_owned(),
            folders: vec![folder(messages)],
            ..CheckAccountResponse::default()
        };
        let right = |answer: &CheckAccountResponse| is_right(7, 2..=3, answer);
        assert!(right(&answer(2)) && right(&answer(3)));
        assert!(!right(&answer(1)) && !right(&answer(4)));
        let wrong: [fn(&mut CheckAccountResponse); 4] = [
            |answer| answer.ok = false,
            |answer| answer.folders[0].exists = false,
            |answer| answer.folders[0].generation = 8,
            |answer| answer.folders.clear(),
        ];
        for wrong in wrong {
            let mut answer = answer(2);
            wrong(&mut answer);
            assert!(!right(&answer), "{answer:?}");
        }
    }
}
