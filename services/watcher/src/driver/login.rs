//! From a place in the queue of a host to a connection that is logged in.

use std::{future::pending, sync::Arc, time::Duration};

use mailbell_bus::Link;
use mailbell_core::{
    ids::AccountId,
    pace::{Cause, Outcome, Urgency},
    seal::{Binding, open as open_secret},
    session::{Failure, Pause},
};
use mailbell_imap::{self as imap, Connection, Endpoint, Login, SpecialUse, TlsMode};
use mailbell_proto::{
    admin::v1::TlsMode as WireTls,
    bus::v1::{AccountRecord, SealedCredential},
};
use tokio::time::timeout;

use super::{context::Context, mail::Done};
use crate::{
    failure,
    gate::{Heard, Turn},
    ledger::Boxed,
    slot::Slot,
};

/// A credential that could not be read is asked for again this often before it counts as a failure.
const CREDENTIAL_TRIES: u32 = 3;
/// How long somebody who asks for a check waits for a probe of a host that fails for many. A check is the first to probe.
const CHECK_HELD: Duration = Duration::from_secs(5);

/// Logs in when its turn comes, and finds out which of the watched folders people don't read.
pub(super) fn open(
    context: Arc<Context>,
    slot: Arc<Slot>,
    record: Arc<AccountRecord>,
    urgency: Urgency,
) -> Boxed<Done> {
    Box::pin(async move {
        let ready = async {
            let account = &slot.account;
            let sealed = credential(&context, account).await?;
            let endpoint = endpoint(&record).map_err(|error| failure::of_mail(&error, ""))?;
            let waiting = context.gate.enter(&endpoint.host, account, urgency);
            Ok((sealed, endpoint, waiting))
        };
        let (sealed, endpoint, waiting) = match ready.await {
            Ok(ready) => ready,
            Err(failure) => return not_opened(failure),
        };
        let queued = slot.queue();
        let opening = Opening {
            context,
            slot,
            record,
            sealed,
            endpoint,
        };
        match waiting.heard().await {
            Heard::Turn(turn) => {
                drop(queued);
                opening.open(turn).await
            }
            Heard::Held(waiting) => Done::Held {
                rest: Box::pin(async move {
                    let turn = waiting.turn().await;
                    drop(queued);
                    opening.open(turn).await
                }),
            },
        }
    })
}

/// All that a login needs but its turn.
struct Opening {
    context: Arc<Context>,
    slot: Arc<Slot>,
    record: Arc<AccountRecord>,
    sealed: SealedCredential,
    endpoint: Endpoint,
}

impl Opening {
    async fn open(self, turn: Turn) -> Done {
        let opened = async {
            let Self {
                context,
                slot,
                record,
                sealed,
                endpoint,
            } = &self;
            let account = &slot.account;
            let mut connection = log_in(context, account, record, sealed, endpoint, turn).await?;
            let quiet_folders = quiet_folders(&mut connection, record)
                .await
                .map_err(|error| failure::of_mail(&error, ""))?;
            Ok((connection, quiet_folders))
        };
        match opened.await {
            Ok((connection, quiet_folders)) => Done::Opened {
                connection: Box::new(connection),
                quiet_folders,
            },
            Err(failure) => not_opened(failure),
        }
    }
}

fn not_opened(failure: Failure) -> Done {
    Done::Failed {
        connection: None,
        failure,
    }
}

/// Reads the credential anew for each login: what is not needed now lies in no memory.
async fn credential(context: &Context, account: &AccountId) -> Result<SealedCredential, Failure> {
    for _ in 0..CREDENTIAL_TRIES {
        // While NATS is away a login would be of no use; it is no failure of the account either.
        if context.ledger.link().wait_for(Link::is_up).await.is_err() {
            break;
        }
        match context.ledger.credential(account.clone()).await {
            Ok(Some(sealed)) => return Ok(sealed),
            Ok(None) => return Err(failure::no_credential()),
            Err(error) => {
                tracing::debug!(%account, %error, "a credential could not be read");
                if !error.is_retryable() {
                    break;
                }
            }
        }
    }
    Err(failure::credential_unavailable())
}

/// Connects and logs in as the record says for a person who waits for it, when its turn comes.
pub(crate) async fn connect(
    context: &Context,
    account: &AccountId,
    record: &AccountRecord,
    sealed: &SealedCredential,
) -> Result<Connection, Failure> {
    let endpoint = endpoint(record).map_err(|error| failure::of_mail(&error, ""))?;
    let turn = tokio::select! {
        // First: nobody whose turn comes at the same time connects. Either holds nothing but its place, which it gives up.
        biased;
        pause = paused(context, account, &endpoint.host) => return Err(failure::paused(pause)),
        turn = turn_of_check(context, account, &endpoint.host) => turn?,
    };
    log_in(context, account, record, sealed, &endpoint, turn).await
}

/// Waits until the operator wants nobody to connect for this account.
async fn paused(context: &Context, account: &AccountId, host: &str) -> Pause {
    let mut policy = context.policy.clone();
    loop {
        let pause = policy.borrow_and_update().of(account, host).pause();
        if let Some(pause) = pause {
            return pause;
        }
        if policy.changed().await.is_err() {
            // Nobody says anything any more.
            pending::<()>().await;
        }
    }
}

async fn turn_of_check(
    context: &Context,
    account: &AccountId,
    host: &str,
) -> Result<Turn, Failure> {
    let urgency = Urgency::new(Cause::Asked, 0);
    let waiting = context.gate.enter(host, account, urgency);
    match waiting.heard().await {
        Heard::Turn(turn) => Ok(turn),
        Heard::Held(waiting) => timeout(CHECK_HELD, waiting.turn())
            .await
            .map_err(|_| failure::host_unavailable()),
    }
}

/// Connects and logs in. The secret is wiped with `login`.
async fn log_in(
    context: &Context,
    account: &AccountId,
    record: &AccountRecord,
    sealed: &SealedCredential,
    endpoint: &Endpoint,
    mut turn: Turn,
) -> Result<Connection, Failure> {
    let secret = open_secret(&context.ring, &Binding::of(account, record), sealed)
        .map_err(|error| failure::of_seal(&error));
    let connected = match secret {
        Ok(secret) => {
            let login = Login {
                user: record.user.clone(),
                secret,
            };
            let mut settings = context.imap.clone();
            if let Some(provider) = context.said(account, &endpoint.host).provider {
                settings.idle = !provider.quirks.no_idle;
                if let Some(tls) = &provider.tls {
                    settings.tls = tls.clone();
                }
            }
            turn.begin();
            let connected = context.connect.connect(endpoint, &login, &settings).await;
            turn.end(match &connected {
                Ok(_) => Outcome::Answered,
                Err(error) => failure::outcome_of(error),
            });
            connected.map_err(|error| failure::of_mail(&error, ""))
        }
        // The turn is left to others.
        Err(failure) => Err(failure),
    };
    context.metrics.login(match &connected {
        Ok(_) => "ok",
        Err(failure) => failure.code,
    });
    connected
}

fn endpoint(record: &AccountRecord) -> Result<Endpoint, imap::Error> {
    let port = u16::try_from(record.port)
        .ok()
        .filter(|port| *port > 0)
        .ok_or(imap::Error::InvalidInput("port"))?;
    let tls = match WireTls::try_from(record.tls) {
        Ok(WireTls::Starttls) => TlsMode::StartTls,
        Ok(WireTls::Plaintext) => TlsMode::Plain,
        Ok(WireTls::Implicit | WireTls::Unspecified) => TlsMode::Implicit,
        // A mode of a newer release: anything but a guess at less protection.
        Err(_) => return Err(imap::Error::InvalidInput("TLS mode")),
    };
    Ok(Endpoint {
        host: record.host.clone(),
        port,
        tls,
    })
}

/// Asks only if something else than INBOX is watched.
async fn quiet_folders(
    connection: &mut Connection,
    record: &AccountRecord,
) -> Result<Vec<String>, imap::Error> {
    let others = |name: &String| !name.eq_ignore_ascii_case("INBOX");
    if !record.folders.iter().any(others) {
        return Ok(Vec::new());
    }
    let folders = connection.folders().await?;
    let unread = |special: &SpecialUse| *special != SpecialUse::Archive;
    Ok(folders
        .into_iter()
        .filter(|folder| others(&folder.name) && folder.special_use.iter().any(unread))
        .map(|folder| folder.name)
        .filter(|name| record.folders.contains(name))
        .collect())
}
