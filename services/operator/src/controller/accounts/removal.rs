//! The end of a MailAccount: its account is deleted, within a bounded time.

use std::time::Duration;

use kube::{Api, ResourceExt as _, runtime::controller::Action};

use super::{
    Context, Missed,
    look::{installation, publish, seat, tell},
    plan::{self, Trouble, manager},
    seen::Known,
};
use crate::{
    api::{MailAccount, Mailbell},
    controller::{admin::AdminError, cluster::now},
};

/// Looks at one that is being deleted. When this answers, it goes.
pub(super) async fn look(account: &MailAccount, context: &Context) -> Result<Action, Missed> {
    let mailbell = match installation(account, context) {
        Ok(mailbell) => mailbell,
        // What it has stored goes with it, or is for whoever makes it anew to delete; a namespace that is deleted must not wait.
        Err(Trouble {
            reason, message, ..
        }) if reason != "InstallationPaused" => {
            // What is known may be older than the installation.
            let namespace = account.namespace().unwrap_or_default();
            let api: Api<Mailbell> = Api::namespaced(context.client.clone(), &namespace);
            let there = api.get_opt(&account.spec.mailbell).await;
            let is_up = |mailbell: &Mailbell| mailbell.metadata.deletion_timestamp.is_none();
            match there {
                Ok(there) if !there.as_ref().is_some_and(is_up) => {
                    left(account, context, &message).await;
                    return Ok(Action::await_change());
                }
                Ok(_) => return not_yet(account, context, "its installation is new").await,
                Err(error) => return not_yet(account, context, &error.to_string()).await,
            }
        }
        Err(trouble) => return not_yet(account, context, &trouble.message).await,
    };
    match delete(account, context, &mailbell).await {
        Ok(()) => {
            context.seen.is_not(&seat(account), &manager(account));
            Ok(Action::await_change())
        }
        Err(error) => {
            context.admins.note(&mailbell, &error);
            not_yet(account, context, &error.to_string()).await
        }
    }
}

async fn delete(
    account: &MailAccount,
    context: &Context,
    mailbell: &Mailbell,
) -> Result<(), AdminError> {
    let manager = manager(account);
    // Whoever does not answer to a round is not asked by each of a thousand.
    if let Known::Silent(silence) = context.seen.of(&seat(account), &manager) {
        return Err(AdminError::Away(silence.why));
    }
    let admin = context.admins.of(mailbell).await?;
    match admin.account(&account.spec.tenant, &manager).await? {
        Some(there) if there.managed_by == manager => admin.delete(&there.id).await,
        // It was never there, is gone, or is somebody else's.
        _ => Ok(()),
    }
}

/// It is tried again, until it has been tried for long enough.
async fn not_yet(account: &MailAccount, context: &Context, why: &str) -> Result<Action, Missed> {
    let now = now();
    let begun = account.metadata.deletion_timestamp.as_ref();
    let taken = begun.map(|begun| now.duration_since(begun.0));
    let taken = taken.and_then(|taken| Duration::try_from(taken).ok());
    if taken.unwrap_or_default() >= context.pace.removal {
        left(account, context, why).await;
        return Ok(Action::await_change());
    }
    let minutes = context.pace.removal.as_secs() / 60;
    let text = format!(
        "its account could not be deleted yet ({why}); it is tried again, and after {minutes} minutes this object goes all the same"
    );
    let removing = Err(Trouble::new("Removing", text));
    let status = plan::status(&context.latest(account), &removing, now);
    tell(account, context, &status).await?;
    Err(Missed::StillThere)
}

/// Says what is left behind, since nobody will look at the status any more.
async fn left(account: &MailAccount, context: &Context, why: &str) {
    let status = context.latest(account).status;
    let Some(id) = status.and_then(|status| status.account) else {
        return;
    };
    let text = format!(
        "the account {id} was not deleted ({why}): if it is there still, make a MailAccount of this name again and delete that once \
         the admin API answers"
    );
    publish(account, context, false, "AccountLeft", &text).await;
}
