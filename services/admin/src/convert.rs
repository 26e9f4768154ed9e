//! Between what is stored and what is answered.

use std::time::{SystemTime, UNIX_EPOCH};

use mailbell_core::ids::AccountId;
use mailbell_proto::{
    admin::v1 as api,
    bus::v1::{AccountRecord, CheckResult, StatusRecord, TokenRecord},
    push::v1::{AccountState, Health},
};

use crate::validate::Server;

/// The schema of account and token records that this release writes.
pub(crate) const SCHEMA: u32 = 1;

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The settings in which two accounts may differ.
pub(crate) fn same_settings(a: &AccountRecord, b: &AccountRecord) -> bool {
    same_server(a, b) && a.folders == b.folders
}

/// What a credential is bound to.
pub(crate) fn same_server(a: &AccountRecord, b: &AccountRecord) -> bool {
    (&a.host, a.port, a.tls, &a.user) == (&b.host, b.port, b.tls, &b.user)
}

pub(crate) fn put_server(record: &mut AccountRecord, server: Server) {
    record.host = server.host;
    record.port = server.port;
    record.tls = server.tls.into();
    record.user = server.user;
}

pub(crate) fn account(
    id: &AccountId,
    record: AccountRecord,
    revision: u64,
    status: Option<StatusRecord>,
) -> api::Account {
    let last_arrival_ms = status.as_ref().map_or(0, |status| status.last_arrival_ms);
    let state = status
        .and_then(|status| status.state)
        .unwrap_or_else(|| unknown_state(id, &record));
    api::Account {
        id: id.to_string(),
        external_id: record.external_id,
        server: Some(api::ImapServer {
            host: record.host,
            port: record.port,
            tls: record.tls,
            user: record.user,
        }),
        folders: record.folders,
        paused: record.paused,
        created_at_ms: record.created_at_ms,
        updated_at_ms: record.updated_at_ms,
        state: Some(state),
        last_arrival_ms,
        revision,
    }
}

/// Before its owner has said anything.
fn unknown_state(id: &AccountId, record: &AccountRecord) -> AccountState {
    let (health, code, sentence) = if record.paused {
        (Health::Paused, "paused", "The account is paused.")
    } else {
        (
            Health::Starting,
            "starting",
            "The account was added and is not watched yet.",
        )
    };
    AccountState {
        account: id.to_string(),
        health: health.into(),
        code: code.to_owned(),
        sentence: sentence.to_owned(),
        since_ms: record.updated_at_ms,
        ..AccountState::default()
    }
}

pub(crate) fn check(result: CheckResult) -> api::CheckAccountResponse {
    api::CheckAccountResponse {
        ok: result.ok,
        code: result.code,
        sentence: result.sentence,
        folders: result
            .folders
            .into_iter()
            .map(|folder| api::FolderCheck {
                name: folder.name,
                exists: folder.exists,
                messages: folder.messages,
                generation: folder.generation,
                uid_next: folder.uid_next,
            })
            .collect(),
        handshake_ms: result.handshake_ms,
        capabilities: result.capabilities,
    }
}

/// Its id is known to callers with the tenant in it, so that it names one record.
pub(crate) fn token(record: TokenRecord, revoked: bool) -> api::Token {
    api::Token {
        id: format!("{}.{}", record.tenant, record.id),
        tenant: record.tenant,
        accounts: record.accounts,
        whole_tenant: record.whole_tenant,
        content: record.content,
        issued_at_ms: record.issued_at_ms,
        expires_at_ms: record.expires_at_ms,
        label: record.label,
        revoked,
    }
}
