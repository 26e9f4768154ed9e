//! One look at one MailAccount: it is registered as it is wanted, and what became of it is said.

use std::sync::Arc;

use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use mailbell_proto::admin::v1::Account;
use serde_json::json;
use tokio::time::{Duration, Instant};
use tonic::Code;

use super::{
    Context, Held, again,
    plan::{self, Registered, Trouble, manager},
    rounds::is_up,
    secrets::{Place, Version},
    seen::Known,
};
use crate::{
    api::{MailAccount, MailAccountStatus, Mailbell},
    controller::{
        Error,
        admin::{Admin, AdminError},
        cluster::{self, Key, now},
    },
    desired::MANAGER,
};

/// A status that says nothing new but when the last message came is written so often at most.
const ARRIVAL_EVERY: Duration = Duration::from_secs(300);

/// Looks at one that is not being deleted.
pub(super) async fn look(account: &MailAccount, context: &Context) -> Result<Action, Error> {
    let latest = context.latest(account);
    let done = register(&latest, context).await;
    let found = match &done {
        Ok(None) => return Ok(Action::await_change()),
        Ok(Some((there, version))) => Ok(Registered {
            account: there,
            password_version: version.clone().map(|version| version.text),
        }),
        Err(trouble) => Err(trouble.clone()),
    };
    tell(account, context, &plan::status(&latest, &found, now())).await?;
    // The next round looks again.
    Ok(Action::await_change())
}

/// The account, and the version of its password, if that can be read.
type Done = (Arc<Account>, Result<Version, Trouble>);

/// `None`: there is nothing new to be said.
async fn register(wanted: &MailAccount, context: &Context) -> Result<Option<Done>, Trouble> {
    let (namespace, name) = seat(wanted);
    // It is not known what of it holds; and nothing has happened to it.
    if context.unreadable.mailbells.has(&namespace, &name) {
        return Ok(None);
    }
    let mailbell = installation(wanted, context)?;
    let (place, key) = (secret(wanted), plan::password_key(wanted));
    let version = context.secrets.version(&place, &key).await;
    let known = known(wanted, context);
    if needs_password(wanted, &known)
        && let Err(trouble) = version
    {
        return Err(trouble);
    }
    let Some(there) = known? else {
        return Ok(None);
    };
    let is_lost = there.as_deref().is_some_and(plan::has_lost_password);
    let gives = is_lost && version.is_ok() && may_give(wanted, context);
    let is_set = is_set(wanted, context, &version) && !gives;
    if let Some(there) = &there
        && is_set
        && plan::is_right(wanted, there)
    {
        if let Ok(version) = &version {
            context.remember(wanted, |memory| memory.digest = Some(version.digest));
        }
        is_done(wanted, context);
        return Ok(Some((Arc::clone(there), version)));
    }
    if is_held(wanted, context, &version) {
        return Ok(None);
    }
    let made = match there.as_deref() {
        Some(there) if plan::has_server(wanted, there) => {
            change(wanted, context, &mailbell, there, &version, gives).await
        }
        there => make(wanted, context, &mailbell, there, gives).await,
    };
    match made {
        Ok((account, read)) => {
            let account = Arc::new(account);
            if there.as_ref() != Some(&account) {
                context.seen.is(&seat(wanted), Arc::clone(&account));
            }
            let is_kept = plan::has_content(wanted, &account);
            if let Ok(version) = &read {
                context.remember(wanted, |memory| {
                    memory.digest = Some(version.digest);
                    if gives {
                        memory.gifts.given(Instant::now(), context.pace.gift);
                    }
                });
            }
            match is_kept && read.is_ok() {
                true => is_done(wanted, context),
                false => hold(wanted, context, &version),
            }
            match is_kept {
                true => Ok(Some((account, read))),
                false => Err(plan::too_old(&account)),
            }
        }
        Err(trouble) => {
            // What is not there is made, which takes a password.
            if version.is_ok() {
                context.seen.is_not(&seat(wanted), &manager(wanted));
            }
            hold(wanted, context, &version);
            Err(trouble)
        }
    }
}

/// Whether nothing can be done for it without its password: it is to be made, or moved to another server or user.
fn needs_password(
    wanted: &MailAccount,
    known: &Result<Option<Option<Arc<Account>>>, Trouble>,
) -> bool {
    match known {
        Ok(Some(Some(there))) => !plan::has_server(wanted, there),
        Ok(Some(None)) => true,
        // What a person has to mend before it can be made is said also while the admin API is away.
        Ok(None) | Err(_) => {
            let said = wanted.status.as_ref();
            said.is_none_or(|status| status.account.is_none())
        }
    }
}

fn is_done(wanted: &MailAccount, context: &Context) {
    context.remember(wanted, |memory| {
        memory.held = None;
        memory.refusals = 0;
    });
}

/// Nothing is asked for it again for a while.
fn hold(wanted: &MailAccount, context: &Context, version: &Result<Version, Trouble>) {
    context.remember(wanted, |memory| {
        memory.held = Some(Held {
            until: Instant::now() + again(&mut memory.refusals),
            generation: wanted.metadata.generation,
            password: text(version),
        });
    });
}

/// The installation, if it is there to be asked.
pub(super) fn installation(
    wanted: &MailAccount,
    context: &Context,
) -> Result<Arc<Mailbell>, Trouble> {
    let name = &wanted.spec.mailbell;
    let Some(mailbell) = context.mailbell(wanted) else {
        let text = format!("there is no Mailbell {name} in this namespace");
        return Err(Trouble::new("NoInstallation", text));
    };
    if is_up(&mailbell) {
        return Ok(mailbell);
    }
    let (reason, what) = match mailbell.spec.paused {
        true => ("InstallationPaused", "is paused"),
        false => ("InstallationDeleted", "is being deleted"),
    };
    Err(Trouble::new(reason, format!("the Mailbell {name} {what}")))
}

/// Its account as it was last seen; `None`: nobody knows, and nothing is to be said of that yet.
fn known(wanted: &MailAccount, context: &Context) -> Result<Option<Option<Arc<Account>>>, Trouble> {
    let was_said = wanted.status.as_ref().is_some_and(|status| {
        status.account.is_some() && status.observed_generation == wanted.metadata.generation
    });
    match context.seen.of(&seat(wanted), &manager(wanted)) {
        Known::Account(account) => Ok(Some(account)),
        Known::Nothing => {
            context.sooner.notify_one();
            Ok(None)
        }
        Known::Silent(silence) => {
            // Devices are served and mailboxes are watched without it, and it may be back in a moment.
            if was_said && silence.since.elapsed() < context.pace.silence {
                return Ok(None);
            }
            Err(Trouble::unknown("AdminAway", silence.why))
        }
    }
}

/// Where its installation is.
pub(super) fn seat(wanted: &MailAccount) -> super::seen::Place {
    let namespace = wanted.namespace().unwrap_or_default();
    (namespace, wanted.spec.mailbell.clone())
}

fn secret(wanted: &MailAccount) -> Place {
    let namespace = wanted.namespace().unwrap_or_default();
    (namespace, wanted.spec.password.secret_name.clone())
}

fn text(version: &Result<Version, Trouble>) -> Option<String> {
    version.as_ref().ok().map(|version| version.text.clone())
}

/// Whether there is no other password to be set; one that cannot be read is none.
fn is_set(wanted: &MailAccount, context: &Context, version: &Result<Version, Trouble>) -> bool {
    let version = version.as_ref();
    version.map_or(true, |version| has_password(wanted, context, version))
}

/// Whether the password of this version is in force: by what the status says, or because only others in the Secret have changed since.
fn has_password(wanted: &MailAccount, context: &Context, version: &Version) -> bool {
    let said = wanted.status.as_ref();
    let said = said.and_then(|status| status.password_version.as_ref());
    let mut is_same = said == Some(&version.text);
    context.remember(wanted, |memory| {
        is_same = is_same || memory.digest == Some(version.digest);
    });
    is_same
}

/// Whether a password that was lost may be given again: what was given a moment ago was not tried yet.
fn may_give(wanted: &MailAccount, context: &Context) -> bool {
    let mut may = false;
    context.remember(wanted, |memory| {
        may = memory.gifts.may_give(Instant::now());
    });
    may
}

fn is_held(wanted: &MailAccount, context: &Context, version: &Result<Version, Trouble>) -> bool {
    let mut is_held = false;
    context.remember(wanted, |memory| {
        is_held = memory.held.as_ref().is_some_and(|held| {
            held.until > Instant::now()
                && held.generation == wanted.metadata.generation
                && held.password == text(version)
        });
    });
    is_held
}

/// Has it changed where its server and user stay: all but another password also while none can be read. `gives`: with its password,
/// also if that is the same.
async fn change(
    wanted: &MailAccount,
    context: &Context,
    mailbell: &Mailbell,
    there: &Account,
    version: &Result<Version, Trouble>,
    gives: bool,
) -> Result<(Account, Result<Version, Trouble>), Trouble> {
    let (mut password, mut read) = (None, version.clone());
    if gives || !is_set(wanted, context, version) {
        let (place, key) = (secret(wanted), plan::password_key(wanted));
        let found = context.secrets.password(&place, &key).await;
        read = found.map(|found| {
            let is_other = !has_password(wanted, context, &found.version);
            password = (gives || is_other).then(|| found.text.to_string());
            found.version
        });
    }
    if password.is_none() && plan::is_right(wanted, there) {
        return Ok((there.clone(), read));
    }
    let call = async {
        let admin = context.admins.of(mailbell).await?;
        admin.update(plan::change(wanted, there, password)).await
    };
    match call.await {
        Ok(account) => Ok((account, read)),
        Err(error) => Err(failed(wanted, context, mailbell, &error)),
    }
}

/// Has the account made, or moved to another server or user; `gives`: with its password, also if that is the same.
async fn make(
    wanted: &MailAccount,
    context: &Context,
    mailbell: &Mailbell,
    there: Option<&Account>,
    gives: bool,
) -> Result<(Account, Result<Version, Trouble>), Trouble> {
    let password = context
        .secrets
        .password(&secret(wanted), &plan::password_key(wanted))
        .await?;
    let is_same = has_password(wanted, context, &password.version) && !gives;
    let call = async {
        let admin = context.admins.of(mailbell).await?;
        let found;
        let there = match there {
            Some(there) => there,
            None => match create(&admin, wanted, &password.text).await? {
                (account, true) => {
                    tracing::info!(account = account.id, "a MailAccount was registered");
                    return Ok(account);
                }
                (account, false) => {
                    found = account;
                    &found
                }
            },
        };
        // The stored one is bound to the server and the user.
        let needs_password = !is_same || !plan::has_server(wanted, there);
        if !needs_password && plan::is_right(wanted, there) {
            return Ok(there.clone());
        }
        let text = needs_password.then(|| password.text.to_string());
        admin.update(plan::change(wanted, there, text)).await
    };
    match call.await {
        Ok(account) => Ok((account, Ok(password.version))),
        Err(error) => Err(failed(wanted, context, mailbell, &error)),
    }
}

fn failed(
    wanted: &MailAccount,
    context: &Context,
    mailbell: &Mailbell,
    error: &AdminError,
) -> Trouble {
    context.admins.note(mailbell, error);
    if let AdminError::Away(_) = error {
        // The others need not find out one by one.
        context.seen.is_silent(&seat(wanted), error.to_string());
    }
    trouble(error)
}

/// The account, and whether it is new.
async fn create(
    admin: &Admin,
    wanted: &MailAccount,
    password: &str,
) -> Result<(Account, bool), AdminError> {
    let request = plan::creation(wanted, password.to_owned());
    let taken = match admin.create(request).await {
        Ok(answer) => return Ok((answer.account.unwrap_or_default(), answer.created)),
        // With other settings.
        Err(error) if error.code() == Some(Code::AlreadyExists) => error,
        Err(error) => return Err(error),
    };
    let there = admin.account(&wanted.spec.tenant, &manager(wanted)).await?;
    there.map(|account| (account, false)).ok_or(taken)
}

fn trouble(error: &AdminError) -> Trouble {
    let text = error.to_string();
    match error {
        AdminError::Away(_) | AdminError::Setup(_) | AdminError::Cluster(_) => {
            Trouble::unknown("AdminAway", text)
        }
        AdminError::Refused { code, .. } => match code {
            // It is looked at anew, and again.
            Code::NotFound | Code::Aborted | Code::Unavailable => Trouble::unknown("Trying", text),
            Code::InvalidArgument => Trouble::new("Invalid", text),
            _ => Trouble::new("Refused", text),
        },
    }
}

/// Writes the status if it says something else than before; an event tells of a change of what a person cares about.
pub(super) async fn tell(
    account: &MailAccount,
    context: &Context,
    status: &MailAccountStatus,
) -> Result<(), Error> {
    let read = account.status.clone().unwrap_or_default();
    let before = context.latest(account).status.unwrap_or_default();
    if *status == before && *status == read {
        return Ok(());
    }
    let mut is_recent = false;
    context.remember(account, |memory| {
        let told = memory.told.map(|told| told.elapsed());
        is_recent = told.is_some_and(|told| told < ARRIVAL_EVERY);
    });
    if is_recent && plan::differs_in_arrival_only(status, &before) {
        return Ok(());
    }
    let (namespace, name) = (account.namespace().unwrap_or_default(), account.name_any());
    let api: Api<MailAccount> = Api::namespaced(context.client.clone(), &namespace);
    let patch = json!({ "apiVersion": MailAccount::api_version(&()), "kind": MailAccount::kind(&()), "status": status });
    let params = PatchParams::apply(MANAGER).force();
    match api
        .patch_status(&name, &params, &Patch::Apply(&patch))
        .await
    {
        Ok(_) => {}
        // It is gone, and with it whoever would read that.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(source) => return Err(of(&name, source)),
    }
    context.remember(account, |memory| {
        memory.said = Some((account.metadata.uid.clone(), status.clone()));
        if status.last_arrival != before.last_arrival {
            memory.told = Some(Instant::now());
        }
    });
    if plan::said(status) != plan::said(&before)
        && let Some(condition) = status.conditions.first()
    {
        let is_good = condition.status == "True" || plan::goes_on_by_itself(&condition.reason);
        publish(
            account,
            context,
            is_good,
            &condition.reason,
            &condition.message,
        )
        .await;
    }
    Ok(())
}

pub(super) async fn publish(
    account: &MailAccount,
    context: &Context,
    is_good: bool,
    reason: &str,
    note: &str,
) {
    let place = account.object_ref(&());
    cluster::publish(&context.events, &place, is_good, reason, note).await;
}

pub(super) fn of(name: &str, source: kube::Error) -> Error {
    let key = Key {
        api: MailAccount::api_version(&()).into_owned(),
        kind: MailAccount::kind(&()).into_owned(),
        name: name.to_owned(),
    };
    Error::of(&key, source)
}
