//! The mailboxes: how they are, and whether a login works now.

use futures_util::{StreamExt as _, stream};
use mailbell_core::session::Pause;
use mailbell_proto::{
    admin::v1::{Account, CheckAccountRequest, CheckAccountResponse, ListAccountsRequest},
    push::v1::{AccountState, Health},
};
use tonic::Status;

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

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Good(String),
    Doubt(String, String),
    Bad(String, String),
}

async fn look(mut client: AdminClient, account: &Account, log_in: bool) -> Look {
    let id = &account.id;
    if account.paused {
        return Look::Good("paused".to_owned());
    }
    if log_in {
        let request = CheckAccountRequest { id: id.clone() };
        let checked = client.accounts.check_account(request).await;
        if let Some(bad) = login(id, checked.map(tonic::Response::into_inner)) {
            return bad;
        }
    }
    health(id, account.state.clone().unwrap_or_default())
}

/// Pauses of the operator.
const OF_OPERATOR: [&str; 2] = [Pause::Tenant.code(), Pause::Provider.code()];

/// What is wrong with a login that was tried, if anything is.
fn login(id: &str, checked: Result<CheckAccountResponse, Status>) -> Option<Look> {
    match checked {
        Ok(result) if result.ok => None,
        // No fault of the account, and its health says so.
        Ok(result) if OF_OPERATOR.contains(&result.code.as_str()) => None,
        Ok(result) => Some(Look::Bad(
            result.sentence,
            format!("mailbell account update {id} --help says how settings are changed"),
        )),
        Err(status) => Some(Look::Bad(
            Failure::from(status).message,
            format!("mailbell account check {id}"),
        )),
    }
}

fn health(id: &str, state: AccountState) -> Look {
    match state.health() {
        Health::Watching => Look::Good(format!("watched by {}", state.mode)),
        Health::Paused => Look::Doubt(
            state.sentence,
            "it goes on when the policy no longer pauses its tenant or its host: --policy-file, or on Kubernetes the Mailbell's \
             watchers.pausedTenants and the MailProviders"
                .to_owned(),
        ),
        Health::ActionNeeded => Look::Bad(state.sentence, format!("mailbell account show {id}")),
        _ => Look::Doubt(state.sentence, "wait a little, and look again".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(health: Health) -> Look {
        let state = AccountState {
            health: health.into(),
            sentence: "why".to_owned(),
            mode: "idle".to_owned(),
            ..AccountState::default()
        };
        super::health("a.1", state)
    }

    #[test]
    fn a_login_that_fails_is_told_with_what_to_do() {
        let answer = |ok| CheckAccountResponse {
            ok,
            sentence: "The password is wrong.".to_owned(),
            ..CheckAccountResponse::default()
        };
        for code in ["tenant-paused", "provider-paused"] {
            let paused = CheckAccountResponse {
                code: code.to_owned(),
                ..answer(false)
            };
            assert_eq!(login("a.1", Ok(paused)), None);
        }
        assert_eq!(login("a.1", Ok(answer(true))), None);
        let Some(Look::Bad(said, advice)) = login("a.1", Ok(answer(false))) else {
            panic!("it is bad");
        };
        assert_eq!(said, "The password is wrong.");
        assert!(advice.contains("account update a.1"), "{advice}");
        let Some(Look::Bad(said, advice)) = login("a.1", Err(Status::unavailable("no watcher")))
        else {
            panic!("it is bad");
        };
        assert_eq!(said, "no watcher");
        assert_eq!(advice, "mailbell account check a.1");
    }

    #[test]
    fn an_account_that_needs_a_person_is_bad_and_one_that_waits_in_doubt() {
        assert_eq!(
            of(Health::Watching),
            Look::Good("watched by idle".to_owned())
        );
        let Look::Bad(said, advice) = of(Health::ActionNeeded) else {
            panic!("it is bad");
        };
        assert_eq!(said, "why");
        assert_eq!(advice, "mailbell account show a.1");
        assert!(
            matches!(of(Health::Paused), Look::Doubt(_, advice) if advice.contains("--policy-file"))
        );
        for waits in [Health::Starting, Health::Retrying, Health::Unspecified] {
            assert!(matches!(of(waits), Look::Doubt(said, _) if said == "why"));
        }
    }
}
