//! MailAccounts: each is registered through the admin API of its installation, and says how its mailbox is.
//!
//! In rounds each installation is asked for its accounts, in pages, and what was found is kept here ([`Seen`]); then every MailAccount is
//! looked at, which asks nobody anything unless something differs. So a thousand of them cost a few calls a round, and a status is written
//! when it says something else. A change of a MailAccount is looked at when it comes.

mod gifts;
mod look;
mod plan;
mod removal;
mod rounds;
mod secrets;
mod seen;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        Controller,
        controller::Action,
        events::Recorder,
        finalizer,
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};

pub use self::plan::goes_on_by_itself;
use self::{gifts::Gifts, secrets::Secrets, seen::Seen};
use super::{Error, LONGEST_WAIT, LOOK_LIMIT, admin::Admins, left::Left, metrics::Unreadable};
use crate::api::{MailAccount, MailAccountStatus, Mailbell};

/// It is on each MailAccount whose account may exist, until that is deleted.
const FINALIZER: &str = "mailbell.dev/account";
/// MailAccounts that are looked at at the same time.
const AT_ONCE: u16 = 16;

/// The pace of what is done for MailAccounts.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two rounds. Default 30 s: a page of accounts is read from the store one by one.
    pub round: Duration,
    /// The same while accounts were changed within the last minute, whose states change then. Default 5 s.
    pub busy: Duration,
    /// Between two looks at one Secret with passwords, if they are few: all together are looked at twice a second at most. Default 30 s.
    pub secrets: Duration,
    /// For so long a status stays as it was while the admin API does not answer: it may only be replaced. Default 3 minutes.
    pub silence: Duration,
    /// A MailAccount that was deleted goes after this time also if its account could not be. Default 10 minutes.
    pub removal: Duration,
    /// A password that was given again, as the stored one could not be opened, is not given once more before; later it waits longer, up to
    /// an hour. Longer than a watcher needs to try it. Default 1 minute.
    pub gift: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            round: Duration::from_secs(30),
            busy: Duration::from_secs(5),
            secrets: Duration::from_secs(30),
            silence: Duration::from_secs(180),
            removal: Duration::from_secs(600),
            gift: Duration::from_secs(60),
        }
    }
}

/// Why a look at a MailAccount has to be repeated.
#[derive(Debug, thiserror::Error)]
enum Missed {
    #[error(transparent)]
    Cluster(#[from] Error),
    /// Its status says why.
    #[error("its account could not be deleted yet")]
    StillThere,
}

/// What is there, and of which nothing is known.
pub(super) struct Unreadables {
    pub(super) mailbells: Arc<Unreadable>,
    pub(super) accounts: Arc<Unreadable>,
}

/// What every look needs.
struct Context {
    client: Client,
    events: Recorder,
    admins: Arc<Admins>,
    mailbells: Store<Mailbell>,
    unreadable: Unreadables,
    left: Arc<Left>,
    secrets: Secrets,
    seen: Seen,
    pace: Pace,
    memory: Mutex<HashMap<ObjectRef<MailAccount>, Memory>>,
    /// Has the next round begin.
    sooner: Notify,
}

/// What is known of one MailAccount beside what its status says. Losing it costs a login, or a status too many.
#[derive(Debug, Default)]
struct Memory {
    /// The status that was last written, and of which object: another one may have come under its name.
    said: Option<(Option<String>, MailAccountStatus)>,
    /// Of the password in force.
    digest: Option<u64>,
    /// When a status with another time of the last arrival was written.
    told: Option<Instant>,
    /// What the admin API refused is not tried again before.
    held: Option<Held>,
    /// When the password was given again, as it was lost.
    gifts: Gifts,
    /// How often in a row it was refused.
    refusals: u32,
    /// How often in a row a look came to nothing.
    failures: u32,
}

/// A wait, which a change of what it is about ends.
#[derive(Debug, Clone, PartialEq)]
struct Held {
    until: Instant,
    generation: Option<i64>,
    /// Its version; `None`: it could not be read.
    password: Option<String>,
}

impl Context {
    fn memory(&self) -> MutexGuard<'_, HashMap<ObjectRef<MailAccount>, Memory>> {
        // Nothing that holds the lock can leave it half changed.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, account: &MailAccount, change: impl FnOnce(&mut Memory)) {
        let mut memory = self.memory();
        change(memory.entry(ObjectRef::from_obj(account)).or_default());
    }

    /// With the status that was last written: what was read may be older than that, and each change is told once.
    fn latest(&self, account: &MailAccount) -> MailAccount {
        let mut latest = account.clone();
        self.remember(account, |memory| {
            if let Some((of, said)) = &memory.said
                && *of == account.metadata.uid
            {
                latest.status = Some(said.clone());
            }
        });
        latest
    }

    /// The installation that it names.
    fn mailbell(&self, account: &MailAccount) -> Option<Arc<Mailbell>> {
        let namespace = account.namespace().unwrap_or_default();
        let name = ObjectRef::new(&account.spec.mailbell).within(&namespace);
        self.mailbells.get(&name)
    }
}

/// What is looked after, and by whose means.
pub(super) struct Setup {
    pub(super) client: Client,
    pub(super) events: Recorder,
    pub(super) admins: Arc<Admins>,
    pub(super) mailbells: Store<Mailbell>,
    pub(super) unreadable: Unreadables,
    pub(super) left: Arc<Left>,
    pub(super) pace: Pace,
}

/// Until it is dropped.
pub(super) async fn run<S>((store, accounts): (Store<MailAccount>, S), setup: Setup)
where
    S: Stream<Item = Result<MailAccount, watcher::Error>> + Send + 'static,
{
    let Setup {
        client,
        events,
        admins,
        mailbells,
        unreadable,
        left,
        pace,
    } = setup;
    let installations = mailbells.clone();
    let context = Arc::new(Context {
        secrets: Secrets::new(client.clone(), pace.secrets),
        client,
        events,
        admins,
        mailbells,
        unreadable,
        left,
        pace,
        seen: Seen::default(),
        memory: Mutex::default(),
        sooner: Notify::new(),
    });
    let controller = Controller::for_stream(accounts, store.clone())
        .with_config(kube::runtime::controller::Config::default().concurrency(AT_ONCE));
    // One that waits is enough: it means all of them.
    let (look, mut looks) = mpsc::channel(1);
    let looks = stream::poll_fn(move |task| looks.poll_recv(task));
    let looking = controller
        .reconcile_all_on(looks)
        .run(reconcile, on_error, Arc::clone(&context))
        .for_each(|result| async move {
            // Of a look it is told where it ends, of its watches here.
            if let Err(error @ kube::runtime::controller::Error::QueueError(_)) = result {
                tracing::warn!(%error, "the API server cannot be watched; it is tried again");
            }
        });
    let looking = async {
        // An installation that is not known yet is none that is not there. It fails only where nobody lists them any more.
        if installations.wait_until_ready().await.is_ok() {
            looking.await;
        }
    };
    // Whichever ends: neither does.
    tokio::join!(looking, rounds::run(&context, &store, look));
}

async fn reconcile(account: Arc<MailAccount>, context: Arc<Context>) -> Result<Action, Missed> {
    let namespace = account.namespace().unwrap_or_default();
    let api: Api<MailAccount> = Api::namespaced(context.client.clone(), &namespace);
    let place = ObjectRef::from_obj(&*account);
    let is_going = account.metadata.deletion_timestamp.is_some();
    let done = finalizer(&api, FINALIZER, account, |event| async {
        match event {
            finalizer::Event::Apply(account) => Ok(look::look(&account, &context).await?),
            finalizer::Event::Cleanup(account) => removal::look(&account, &context).await,
        }
    });
    match timeout(LOOK_LIMIT, done).await {
        Ok(Ok(action)) => {
            let mut memory = context.memory();
            match is_going {
                true => drop(memory.remove(&place)),
                false => memory.entry(place).or_default().failures = 0,
            }
            Ok(action)
        }
        Ok(Err(finalizer::Error::ApplyFailed(error) | finalizer::Error::CleanupFailed(error))) => {
            Err(error)
        }
        Ok(Err(
            finalizer::Error::AddFinalizer(error) | finalizer::Error::RemoveFinalizer(error),
        )) => Err(look::of(&place.name, error).into()),
        // Neither can be: each object has a name, and the finalizer's is good.
        Ok(Err(finalizer::Error::UnnamedObject | finalizer::Error::InvalidFinalizer)) => {
            Ok(Action::await_change())
        }
        Err(_elapsed) => Err(Error::TooLong.into()),
    }
}

fn on_error(account: Arc<MailAccount>, error: &Missed, context: Arc<Context>) -> Action {
    let mut wait = Duration::ZERO;
    context.remember(&account, |memory| wait = again(&mut memory.failures));
    let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
    match error {
        // It is said where people look.
        Missed::StillThere => {}
        Missed::Cluster(error) => {
            tracing::warn!(namespace, name, %error, "a MailAccount could not be looked after; it is tried again");
        }
    }
    Action::requeue(wait)
}

/// Longer with each failure in a row.
fn again(failures: &mut u32) -> Duration {
    *failures = failures.saturating_add(1);
    Duration::from_secs(1 << (*failures).min(6)).min(LONGEST_WAIT)
}
