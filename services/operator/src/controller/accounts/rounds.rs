//! Asking every admin API for its accounts, again and again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use kube::{
    ResourceExt as _,
    runtime::reflector::{ObjectRef, Store},
};
use mailbell_proto::admin::v1::Account;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};

use super::{
    Context,
    plan::{manager, managers_of},
    seen::Place,
};
use crate::{
    api::{MailAccount, Mailbell},
    controller::admin::AdminError,
};

/// Pages of one tenant that are read in a round: 100,000 accounts. Where there are more, MailAccounts should have a tenant of their own.
const MOST_PAGES: usize = 200;
/// Installations that are asked at once.
const AT_ONCE: usize = 64;
/// So long a round waits for answers. Whoever needs longer is asked again in the first round after his answer, and all others meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a change its account's state changes too, mostly within this time.
const BUSY: Duration = Duration::from_secs(60);
/// A round that is asked for begins so soon at most.
const SOONEST: Duration = Duration::from_secs(1);

/// Until it is dropped. After each answer `look` hears that every MailAccount is to be looked at.
pub(super) async fn run(context: &Context, accounts: &Store<MailAccount>, look: mpsc::Sender<()>) {
    // Else none of them would be thought to be used.
    let ready = async {
        accounts.wait_until_ready().await?;
        context.mailbells.wait_until_ready().await
    };
    if ready.await.is_err() {
        return;
    }
    let limit = Semaphore::new(AT_ONCE);
    let mut answers = FuturesUnordered::new();
    let mut unanswered = BTreeSet::new();
    let mut last = Instant::now();
    loop {
        let begin = Instant::now();
        let mut now = BTreeSet::new();
        for (place, asked) in questions(context, accounts, begin - last).await {
            if unanswered.insert(place.clone()) {
                now.insert(place.clone());
                answers.push(answer(context, accounts, &limit, place, asked));
            }
        }
        last = begin;
        let mut hear = async || {
            let place = answers.next().await?;
            unanswered.remove(&place);
            // Full: they are looked at anyway.
            let _ = look.try_send(());
            Some(place)
        };
        let round = async {
            while !now.is_empty()
                && let Some(place) = hear().await
            {
                now.remove(&place);
            }
        };
        let _ = timeout(PATIENCE, round).await;
        let wait = match context.seen.changed_within(BUSY) {
            true => context.pace.busy,
            false => context.pace.round,
        };
        let rest = async {
            sleep(SOONEST.min(wait)).await;
            tokio::select! {
                // Either may be first.
                biased;
                () = context.sooner.notified() => {}
                () = sleep(wait.saturating_sub(SOONEST)) => {}
            }
        };
        let late = async {
            while hear().await.is_some() {}
            pending().await
        };
        tokio::select! {
            () = rest => {}
            () = late => {}
        }
    }
}

/// What MailAccounts of one installation want to know.
#[derive(Default)]
struct Asked {
    tenants: BTreeSet<String>,
    /// Where accounts of MailAccounts that are gone may be.
    others: BTreeSet<String>,
    external_ids: HashSet<String>,
}

/// Whom to ask for what. With that everything is forgotten that nobody wants to know any more.
async fn questions(
    context: &Context,
    store: &Store<MailAccount>,
    since: Duration,
) -> BTreeMap<Place, Asked> {
    let accounts = store.state();
    let mut asked: BTreeMap<Place, Asked> = BTreeMap::new();
    let mut secrets = BTreeSet::new();
    for account in &accounts {
        let namespace = account.namespace().unwrap_or_default();
        let place = (namespace.clone(), account.spec.mailbell.clone());
        let one = asked.entry(place).or_default();
        one.tenants.insert(account.spec.tenant.clone());
        one.external_ids.insert(manager(account));
        secrets.insert((namespace, account.spec.password.secret_name.clone()));
    }
    let mailbells = context.mailbells.state();
    for mailbell in &mailbells {
        let tenants = context.left.tenants(mailbell);
        if !tenants.is_empty() {
            let place = (
                mailbell.namespace().unwrap_or_default(),
                mailbell.name_any(),
            );
            asked.entry(place).or_default().others = tenants;
        }
    }
    context.seen.retain(|place| asked.contains_key(place));
    let there = |(namespace, name): &Place| {
        let place = ObjectRef::new(name).within(namespace);
        context.mailbells.get(&place).is_some()
    };
    context.left.retain(there);
    let known: HashSet<_> = accounts
        .iter()
        .map(|account| ObjectRef::from_obj(&**account))
        .collect();
    context
        .memory()
        .retain(|account, _| known.contains(account));
    context.secrets.look_again(&secrets, since).await;
    asked
}

/// Asks one installation, and says which.
async fn answer(
    context: &Context,
    store: &Store<MailAccount>,
    limit: &Semaphore,
    place: Place,
    asked: Asked,
) -> Place {
    // It is never closed.
    let _permit = limit.acquire().await;
    let name = ObjectRef::new(&place.1).within(&place.0);
    match context.mailbells.get(&name) {
        Some(mailbell) if is_up(&mailbell) => {
            ask(context, store, &mailbell, &place, &asked).await;
        }
        // There is nobody to ask, and a MailAccount says so without.
        _ => context.seen.forget(&place),
    }
    place
}

/// Whether its admin API is meant to run.
pub(super) fn is_up(mailbell: &Mailbell) -> bool {
    !mailbell.spec.paused && mailbell.metadata.deletion_timestamp.is_none()
}

async fn ask(
    context: &Context,
    store: &Store<MailAccount>,
    mailbell: &Mailbell,
    place: &Place,
    asked: &Asked,
) {
    let begun = Instant::now();
    match read(context, mailbell, asked).await {
        Ok(Found { accounts, strays }) => {
            context.seen.are(place, accounts, begun);
            let declared: HashSet<String> = match strays.is_empty() {
                true => HashSet::new(),
                // With those that came meanwhile.
                false => {
                    let all = store.state();
                    let ours = all.iter().filter(|it| it.spec.mailbell == place.1);
                    ours.map(|it| manager(it)).collect()
                }
            };
            let strays = strays.into_iter();
            // One that cannot be read declares it all the same.
            let namespace = &place.0;
            let is_there = |manager: &str| {
                let name = manager.strip_prefix(&managers_of(namespace));
                name.is_some_and(|name| context.unreadable.accounts.has(namespace, name))
            };
            let left =
                strays.filter(|(manager, _)| !declared.contains(manager) && !is_there(manager));
            let left = left.map(|(_, id)| id).collect();
            context.left.are(mailbell, asked.tenants.clone(), &left);
        }
        Err(error) => {
            context.admins.note(mailbell, &error);
            context.seen.is_silent(place, error.to_string());
        }
    }
}

/// What an admin API has.
#[derive(Default)]
struct Found {
    /// By their external ids, those that MailAccounts want to know of.
    accounts: HashMap<String, Arc<Account>>,
    /// Those that a MailAccount of this namespace declares, which was not there when it was asked: who that is, and the account's id.
    strays: Vec<(String, String)>,
}

async fn read(context: &Context, mailbell: &Mailbell, asked: &Asked) -> Result<Found, AdminError> {
    let admin = context.admins.of(mailbell).await?;
    let mut found = Found::default();
    let kin = managers_of(&mailbell.namespace().unwrap_or_default());
    for tenant in asked.tenants.union(&asked.others) {
        let mut after = String::new();
        for _ in 0..MOST_PAGES {
            let page = admin.accounts(tenant, after).await?;
            for account in page.accounts {
                if asked.external_ids.contains(&account.external_id) {
                    let id = account.external_id.clone();
                    found.accounts.insert(id, Arc::new(account));
                } else if account.managed_by.starts_with(&kin) {
                    found.strays.push((account.managed_by, account.id));
                }
                // Others of the tenant are nothing to us.
            }
            after = page.next_page_token;
            if after.is_empty() {
                break;
            }
        }
        if !after.is_empty() {
            tracing::warn!(
                namespace = mailbell.namespace(),
                installation = mailbell.name_any(),
                tenant,
                "the tenant has too many accounts for all to be read: give MailAccounts a tenant of their own"
            );
        }
    }
    Ok(found)
}
