//! The mailboxes: how they are, and whether a login works now.

use futures_util::{StreamExt as _, stream};
use mailbell_proto::{
    admin::v1::{Account, CheckAccountRequest, ListAccountsRequest},
    push::v1::Health,
};

use super::Report;
use crate::{
    admin_client::{AdminArgs, AdminClient},
    failure::Failure,
};

/// More are not tried: mail servers take many logins at once for an attack.
const MOST: u32 = 50;
const AT_ONCE: usize = 4;

pub(super) async fn examine(report: &mut Report, args: &AdminArgs, log_in: bool) {
    let listed = async {
        let mut client = AdminClient::connect(args).await?;
        let request = ListAccountsRequest {
            page_size: MOST,
            ..ListAccountsRequest::default()
        };
        let page = client.accounts.list_accounts(request).await?.into_inner();
        Ok::<_, Failure>((client, page))
    };
    let (client, page) = match listed.await {
        Ok(listed) => listed,
        Err(failure) => {
            report.fail(
                "admin API",
                failure.message,
                "see whether the process runs, and whether the admin token is its own",
            );
            return;
        }
    };
    report.ok("admin API", "answers");
    if page.accounts.is_empty() {
        report.warn(
            "mailboxes",
            "there is none yet",
            "mailbell account add imaps://you@example.org@imap.example.org",
        );
        return;
    }
    if !page.next_page_token.is_empty() {
        report.ok("mailboxes", format!("only the first {MOST} are looked at"));
    }
    let mut findings = stream::iter(page.accounts)
        .map(|account| {
            let client = client.clone();
            async move { (look(client, &account, log_in).await, account) }
        })
        .buffered(AT_ONCE);
    while let Some((finding, account)) = findings.next().await {
        let name = "mailbox";
        match finding {
            Look::Good(said) => report.ok(name, format!("{}: {said}", account.id)),
            Look::Doubt(said, advice) => {
                report.warn(name, format!("{}: {said}", account.id), advice)
            }
            Look::Bad(said, advice) => report.fail(name, format!("{}: {said}", account.id), advice),
        }
    }
}

enum Look {
    Good(String),
    Doubt(String, String),
    Bad(String, String),
}

async fn look(mut client: AdminClient, account: &Account, log_in: bool) -> Look {
    let id = &account.id;
    let state = account.state.clone().unwrap_or_default();
    if account.paused {
        return Look::Good("paused".to_owned());
    }
    if log_in {
        let request = CheckAccountRequest { id: id.clone() };
        match client.accounts.check_account(request).await {
            Ok(result) => {
                let result = result.into_inner();
                if !result.ok {
                    return Look::Bad(
                        result.sentence,
                        format!(
                            "mailbell account update {id} --help says how settings are changed"
                        ),
                    );
                }
            }
            Err(status) => {
                return Look::Bad(
                    Failure::from(status).message,
                    format!("mailbell account check {id}"),
                );
            }
        }
    }
    match state.health() {
        Health::Watching => Look::Good(format!("watched by {}", state.mode)),
        Health::ActionNeeded => Look::Bad(state.sentence, format!("mailbell account show {id}")),
        _ => Look::Doubt(state.sentence, "wait a little, and look again".to_owned()),
    }
}
