//! Accounts as people and programs read them.

use std::io::{self, Write};

use mailbell_core::content::{policy, word};
use mailbell_proto::{
    admin::v1::{Account, CheckAccountResponse, TlsMode},
    push::v1::Health,
};
use serde_json::{Value, json};

use crate::terminal::{Paint, Style, clean_line, shorten, table};

/// A sentence in a table is cut here; `account show` has the whole.
const MAX_CELL: usize = 60;

pub(crate) fn health_word(health: i32) -> &'static str {
    match Health::try_from(health).unwrap_or_default() {
        Health::Unspecified => "unknown",
        Health::Starting => "starting",
        Health::Watching => "watching",
        Health::Retrying => "retrying",
        Health::ActionNeeded => "action-needed",
        Health::Paused => "paused",
        Health::Removed => "removed",
    }
}

fn tls_word(tls: i32) -> &'static str {
    match TlsMode::try_from(tls).unwrap_or_default() {
        TlsMode::Unspecified => "unknown",
        TlsMode::Implicit => "implicit",
        TlsMode::Starttls => "starttls",
        TlsMode::Plaintext => "plaintext",
    }
}

/// In local time; empty for "never".
pub(crate) fn time(ms: i64) -> String {
    if ms == 0 {
        return String::new();
    }
    jiff::Timestamp::from_millisecond(ms)
        .map(|at| {
            at.to_zoned(jiff::tz::TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        })
        .unwrap_or_default()
}

pub(super) fn account_json(account: &Account, created: Option<bool>) -> Value {
    let server = account.server.clone().unwrap_or_default();
    let state = account.state.clone().unwrap_or_default();
    let mut value = json!({
        "id": account.id,
        "external_id": account.external_id,
        "managed_by": account.managed_by,
        "host": server.host,
        "port": server.port,
        "tls": tls_word(server.tls),
        "user": server.user,
        "folders": account.folders,
        "paused": account.paused,
        "content": word(policy(account.content)),
        "created_at_ms": account.created_at_ms,
        "updated_at_ms": account.updated_at_ms,
        "last_arrival_ms": account.last_arrival_ms,
        "revision": account.revision,
        "state": {
            "health": health_word(state.health),
            "code": state.code,
            "sentence": state.sentence,
            "since_ms": state.since_ms,
            "mode": state.mode,
        },
    });
    if let (Some(created), Some(object)) = (created, value.as_object_mut()) {
        object.insert("created".to_owned(), created.into());
    }
    value
}

pub(super) fn account_table(out: &mut impl Write, accounts: &[Account]) -> io::Result<()> {
    if accounts.is_empty() {
        return writeln!(
            out,
            "no accounts yet: add one with `mailbell account add imaps://user@host`"
        );
    }
    let mut heading = vec!["ID", "USER", "HOST", "STATE", "LAST MAIL"];
    // Where nobody declares accounts elsewhere, nobody has to ask what the column is.
    let managed = accounts
        .iter()
        .any(|account| !account.managed_by.is_empty());
    if managed {
        heading.push("MANAGED BY");
    }
    heading.push("DETAIL");
    let mut rows = vec![heading.into_iter().map(str::to_owned).collect()];
    for account in accounts {
        let server = account.server.clone().unwrap_or_default();
        let state = account.state.clone().unwrap_or_default();
        let health = health_word(state.health);
        let detail = if state.health() == Health::Watching {
            state.mode
        } else {
            shorten(&state.sentence, MAX_CELL)
        };
        let mut row = vec![
            account.id.clone(),
            server.user,
            server.host,
            health.to_owned(),
            time(account.last_arrival_ms),
        ];
        if managed {
            row.push(account.managed_by.clone());
        }
        row.push(detail);
        rows.push(row);
    }
    table(out, Paint::stdout(), &rows)
}

pub(super) fn account_page(out: &mut impl Write, account: &Account) -> io::Result<()> {
    let server = account.server.clone().unwrap_or_default();
    let state = account.state.clone().unwrap_or_default();
    let paint = Paint::stdout();
    let health = health_word(state.health);
    let style = match state.health() {
        Health::Watching => Style::Green,
        Health::ActionNeeded | Health::Removed => Style::Red,
        _ => Style::Yellow,
    };
    let address = format!(
        "{}:{} (TLS {})",
        server.host,
        server.port,
        tls_word(server.tls)
    );
    let fields = [
        ("account", account.id.clone()),
        ("external id", account.external_id.clone()),
        ("managed by", account.managed_by.clone()),
        ("server", address),
        ("user", server.user),
        ("folders", account.folders.join(", ")),
        ("content", word(policy(account.content)).to_owned()),
        ("noticed by", state.mode),
        ("since", time(state.since_ms)),
        ("last mail", time(account.last_arrival_ms)),
        ("added", time(account.created_at_ms)),
        ("changed", time(account.updated_at_ms)),
    ];
    writeln!(
        out,
        "{}  {}",
        paint.paint(style, health),
        clean_line(&state.sentence)
    )?;
    for (name, value) in fields {
        if !value.is_empty() {
            writeln!(out, "  {name:<12}{}", clean_line(&value))?;
        }
    }
    Ok(())
}

pub(super) fn check_json(result: &CheckAccountResponse) -> Value {
    let folders: Vec<Value> = result
        .folders
        .iter()
        .map(|folder| {
            json!({
                "name": folder.name,
                "exists": folder.exists,
                "messages": folder.messages,
                "generation": folder.generation,
                "uid_next": folder.uid_next,
            })
        })
        .collect();
    json!({
        "ok": result.ok,
        "code": result.code,
        "sentence": result.sentence,
        "handshake_ms": result.handshake_ms,
        "capabilities": result.capabilities,
        "folders": folders,
    })
}

pub(super) fn check_page(out: &mut impl Write, result: &CheckAccountResponse) -> io::Result<()> {
    let paint = Paint::stdout();
    let mark = if result.ok {
        paint.paint(Style::Green, "ok")
    } else {
        paint.paint(Style::Red, "failed")
    };
    writeln!(out, "{mark}  {}", clean_line(&result.sentence))?;
    if result.handshake_ms > 0 {
        writeln!(out, "  login took  {} ms", result.handshake_ms)?;
    }
    for folder in &result.folders {
        let said = if folder.exists {
            format!("{} messages", folder.messages)
        } else {
            "does not exist".to_owned()
        };
        writeln!(out, "  {:<12}{said}", clean_line(&folder.name))?;
    }
    if !result.capabilities.is_empty() {
        writeln!(
            out,
            "  it offers   {}",
            clean_line(&result.capabilities.join(" "))
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mailbell_proto::{admin::v1::ImapServer, push::v1::AccountState};

    use super::*;

    #[test]
    fn nothing_stored_commands_the_terminal() {
        let account = Account {
            id: "default.x".to_owned(),
            external_id: "\u{1b}[2J".to_owned(),
            server: Some(ImapServer {
                user: "\u{1b}]0;x\u{7}".to_owned(),
                ..ImapServer::default()
            }),
            folders: vec!["a\nb".to_owned()],
            state: Some(AccountState {
                sentence: "\u{9b}2J".to_owned(),
                ..AccountState::default()
            }),
            ..Account::default()
        };
        let mut out = Vec::new();
        account_table(&mut out, std::slice::from_ref(&account)).unwrap();
        account_page(&mut out, &account).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains(['\u{1b}', '\u{9b}', '\u{7}']), "{text:?}");
        assert_eq!(account_json(&account, Some(true))["created"], true);
    }

    #[test]
    fn who_manages_an_account_is_shown_where_somebody_does() {
        let own = Account {
            id: "default.own".to_owned(),
            ..Account::default()
        };
        let manager = "mailaccount/mail/alice";
        let declared = Account {
            id: "default.declared".to_owned(),
            managed_by: manager.to_owned(),
            ..Account::default()
        };
        let shown = |accounts: &[Account]| {
            let mut out = Vec::new();
            account_table(&mut out, accounts).unwrap();
            String::from_utf8(out).unwrap()
        };
        let text = shown(&[own.clone(), declared.clone()]);
        assert!(
            text.contains("MANAGED BY") && text.contains(manager),
            "{text}"
        );
        assert!(!shown(&[own]).contains("MANAGED BY"));
        let mut out = Vec::new();
        account_page(&mut out, &declared).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains(manager), "{text}");
        assert_eq!(account_json(&declared, None)["managed_by"], manager);
    }

    #[test]
    fn a_policy_that_is_not_known_is_shown_as_it_is_kept() {
        for (content, shown) in [(0, "preview"), (2, "headers"), (77, "key")] {
            let account = Account {
                content,
                ..Account::default()
            };
            assert_eq!(account_json(&account, None)["content"], shown);
            let mut out = Vec::new();
            account_page(&mut out, &account).unwrap();
            let text = String::from_utf8(out).unwrap();
            let line = format!("content     {shown}");
            assert!(text.contains(&line), "{text}");
        }
    }

    #[test]
    fn times_are_shown_only_if_there_are_any() {
        assert_eq!(time(0), "");
        assert_eq!(time(1_700_000_000_000).len(), "2023-11-14 22:13:20".len());
    }
}
