//! What is to be done for one MailAccount, and what is said of it. Pure.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt as _;
use mailbell_core::{
    content::{policy, word},
    session::Pause,
};
use mailbell_proto::{
    admin::v1::{Account, CreateAccountRequest, ImapServer, TlsMode, UpdateAccountRequest},
    push::v1::{ContentLevel, Health},
};

use crate::api::{self, AccountMode, MailAccount, MailAccountStatus};

/// The condition that says how the mailbox is.
const READY: &str = "Ready";

/// The external id of its account, and who manages that: no two MailAccounts of a cluster have the same.
pub(super) fn manager(wanted: &MailAccount) -> String {
    let namespace = wanted.namespace().unwrap_or_default();
    format!("{}{}", managers_of(&namespace), wanted.name_any())
}

/// With what those of a namespace begin.
pub(super) fn managers_of(namespace: &str) -> String {
    format!("mailaccount/{namespace}/")
}

/// The key of its password: unless it says another one its own name, so that one Secret can have the passwords of all.
pub(super) fn password_key(wanted: &MailAccount) -> String {
    let key = wanted.spec.password.key.clone();
    key.unwrap_or_else(|| wanted.name_any())
}

/// Whether the account is as it is wanted, but for its password.
pub(super) fn is_right(wanted: &MailAccount, there: &Account) -> bool {
    has_server(wanted, there)
        && there.folders == folders(wanted)
        && there.paused == wanted.spec.paused
        && has_content(wanted, there)
        && there.managed_by == manager(wanted)
}

/// Whether the account has the content policy that is wanted. An admin API of an older release passes over that, and does all else.
pub(super) fn has_content(wanted: &MailAccount, there: &Account) -> bool {
    policy(there.content) == wanted.spec.content.into()
}

/// Why one is not as it is wanted though the admin API said that it made it so.
pub(super) fn too_old(there: &Account) -> Trouble {
    let has = word(policy(there.content));
    let text = format!(
        "the admin API did all of it but the content policy, which is `{has}`: it is of an older release, and has to be upgraded"
    );
    Trouble::unknown("AdminTooOld", text)
}

/// Whether the stored password is of this server and user: it is bound to them.
pub(super) fn has_server(wanted: &MailAccount, there: &Account) -> bool {
    let server = server(wanted);
    there.server.as_ref() == Some(&server)
}

/// Whether its state says that the stored password cannot be opened, so that only giving it again helps: the watchers' key ring was lost,
/// or what was stored. (Words of the watcher.) Not one of a newer release, nor one that only cannot be read now.
pub(super) fn has_lost_password(there: &Account) -> bool {
    const CODES: [&str; 3] = [
        "sealing-key-missing",
        "credential-missing",
        "credential-mismatch",
    ];
    let state = there.state.as_ref();
    state.is_some_and(|state| CODES.contains(&state.code.as_str()))
}

/// It is added without a login: wrong settings show as its state, where a person looks anyway, and mailboxes by the thousand are logged in
/// to at the pace that their servers allow.
pub(super) fn creation(wanted: &MailAccount, password: String) -> CreateAccountRequest {
    CreateAccountRequest {
        tenant: wanted.spec.tenant.clone(),
        external_id: manager(wanted),
        server: Some(server(wanted)),
        password,
        folders: folders(wanted),
        no_check: true,
        paused: wanted.spec.paused,
        managed_by: manager(wanted),
        content: level(wanted),
    }
}

/// All of it, so that whatever it was before it is as wanted then; with a password only if there is another one.
pub(super) fn change(
    wanted: &MailAccount,
    there: &Account,
    password: Option<String>,
) -> UpdateAccountRequest {
    UpdateAccountRequest {
        id: there.id.clone(),
        server: Some(server(wanted)),
        password,
        folders: folders(wanted),
        paused: Some(wanted.spec.paused),
        no_check: true,
        revision: there.revision,
        managed_by: manager(wanted),
        content: level(wanted),
    }
}

fn level(wanted: &MailAccount) -> i32 {
    ContentLevel::from(wanted.spec.content).into()
}

/// As the admin API answers it: complete, and in its spelling.
fn server(wanted: &MailAccount) -> ImapServer {
    let given = &wanted.spec.server;
    let (tls, port) = match given.tls {
        api::TlsMode::Implicit => (TlsMode::Implicit, 993),
        api::TlsMode::StartTls => (TlsMode::Starttls, 143),
        api::TlsMode::Plaintext => (TlsMode::Plaintext, 143),
    };
    let host = given.host.to_ascii_lowercase();
    ImapServer {
        host: host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned(),
        port: given
            .port
            .and_then(|port| u32::try_from(port).ok())
            .unwrap_or(port),
        tls: tls.into(),
        user: given.user.clone(),
    }
}

fn folders(wanted: &MailAccount) -> Vec<String> {
    let spelled = |name: &String| match name.eq_ignore_ascii_case("INBOX") {
        true => "INBOX".to_owned(),
        false => name.clone(),
    };
    wanted.spec.folders.iter().map(spelled).collect()
}

/// Why a MailAccount is not as it should be, where the admin API does not say it by the account's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// A word for programs.
    pub(super) reason: &'static str,
    /// A sentence for a person.
    pub(super) message: String,
    /// Whether that says that it is not watched; else nobody knows.
    pub(super) is_certain: bool,
}

impl Trouble {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            is_certain: true,
        }
    }

    pub(super) fn unknown(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            is_certain: false,
            ..Self::new(reason, message)
        }
    }
}

/// An account as it is, and the version of the Secret that its password is of, or why that is not known now.
#[derive(Debug, Clone)]
pub(super) struct Registered<'a> {
    pub(super) account: &'a Account,
    pub(super) password_version: Result<String, Trouble>,
}

/// What the status is to say.
pub(super) fn status(
    wanted: &MailAccount,
    found: &Result<Registered<'_>, Trouble>,
    now: Timestamp,
) -> MailAccountStatus {
    let before = wanted.status.clone().unwrap_or_default();
    let generation = wanted.metadata.generation;
    let (status, reason, message) = match found {
        Ok(registered) => {
            let (status, reason, message) = of_account(registered.account);
            let trouble = registered.password_version.as_ref().err();
            (status, reason, with_trouble(message, trouble))
        }
        Err(trouble) if trouble.is_certain => {
            ("False", trouble.reason.to_owned(), trouble.message.clone())
        }
        Err(trouble) => (
            "Unknown",
            trouble.reason.to_owned(),
            trouble.message.clone(),
        ),
    };
    let same = before
        .conditions
        .iter()
        .find(|it| it.type_ == READY && it.status == status);
    let condition = Condition {
        type_: READY.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        observed_generation: generation,
        last_transition_time: same.map_or(Time(now), |same| same.last_transition_time.clone()),
    };
    let status = MailAccountStatus {
        observed_generation: generation,
        conditions: vec![condition],
        ..before
    };
    let Ok(Registered {
        account,
        password_version,
    }) = found
    else {
        // What is known of the account stays known, but not whether it is connected.
        return MailAccountStatus {
            mode: None,
            ..status
        };
    };
    MailAccountStatus {
        account: Some(account.id.clone()),
        mode: mode(account),
        last_arrival: arrival(account),
        // The one that was given stays in force.
        password_version: password_version
            .clone()
            .ok()
            .or_else(|| status.password_version.clone()),
        ..status
    }
}

/// The reason stays that of the account: nothing has happened to it, and whoever makes a Secret anew has no event for each.
fn with_trouble(message: String, of_secret: Option<&Trouble>) -> String {
    match of_secret {
        Some(trouble) => format!(
            "{message} Its password cannot be read ({}).",
            trouble.message
        ),
        None => message,
    }
}

fn mode(account: &Account) -> Option<AccountMode> {
    match account.state.as_ref()?.mode.as_str() {
        "idle" => Some(AccountMode::Idle),
        "poll" => Some(AccountMode::Poll),
        _ => None,
    }
}

/// To the second, as Kubernetes writes it: else what is read back differs from what was written.
fn arrival(account: &Account) -> Option<Time> {
    let seconds = account.last_arrival_ms / 1000;
    let at = (seconds > 0).then(|| Timestamp::from_second(seconds).ok());
    at.flatten().map(Time)
}

fn of_account(account: &Account) -> (&'static str, String, String) {
    let state = account.state.clone().unwrap_or_default();
    let is_watched = state.health() == Health::Watching;
    let status = if is_watched { "True" } else { "False" };
    let reason = match (is_watched, camel(&state.code)) {
        (true, _) => "Watching".to_owned(),
        (false, reason) if reason.is_empty() => "NotWatched".to_owned(),
        (false, reason) => reason,
    };
    let message = match (is_watched, state.sentence) {
        (true, sentence) if sentence.is_empty() => "It is watched.".to_owned(),
        (_, sentence) => sentence,
    };
    (status, reason, message)
}

/// `bad-credentials` as Kubernetes writes reasons: `BadCredentials`.
fn camel(code: &str) -> String {
    let words = code.split(|it: char| !it.is_ascii_alphanumeric());
    let capital = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|it| it.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    let all: String = words.map(capital).collect();
    // A reason begins with a letter.
    let all = all.trim_start_matches(|it: char| it.is_ascii_digit());
    all.chars().take(100).collect()
}

/// What a status says that a person should hear of once: its status and its reason.
pub(super) fn said(status: &MailAccountStatus) -> Option<(&str, &str)> {
    let mut conditions = status.conditions.iter();
    let ready = conditions.find(|it| it.type_ == READY)?;
    Some((&ready.status, &ready.reason))
}

/// Whether nobody has to do anything about a MailAccount whose condition Ready has this reason, though it is not watched.
#[must_use]
pub fn goes_on_by_itself(reason: &str) -> bool {
    ["Starting", "InstallationPaused", "Trying"].contains(&reason)
        || Pause::ALL.iter().any(|pause| camel(pause.code()) == reason)
}

/// Whether nothing but the time of the last arrival differs.
pub(super) fn differs_in_arrival_only(a: &MailAccountStatus, b: &MailAccountStatus) -> bool {
    let without = |status: &MailAccountStatus| MailAccountStatus {
        last_arrival: None,
        ..status.clone()
    };
    without(a) == without(b)
}

#[cfg(test)]
mod tests;
