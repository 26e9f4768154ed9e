//! From a request to an attached device.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use mailbell_core::{
    cursor::{Cursor, Subject, digest},
    ids::{AccountId, PerGroup},
};
use mailbell_proto::push::v1::{AccountState, Health, Hello, ResyncReason, SubscribeRequest};
use mailbell_runtime::failpoint;
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::{
    authority::Credential,
    clock::millis,
    device::{Device, Line, Registration},
    dispatcher::{AttachRequest, Attached, Command, From},
    frame,
    narrow::{Narrowed, narrow},
    queue::{Item, Queue},
    shared::{Shared, draining, unavailable, unjoined},
};

/// The states of so many accounts are asked for at once.
const STATES_AT_ONCE: usize = 8;
/// How long the states of all accounts of a stream may take together: they are a courtesy, and left out rather than waited for.
const STATE_LIMIT: Duration = Duration::from_secs(3);
/// How often the window may move on while the leaders are asked. Each round asks only for what the one before did not.
const ROUNDS: usize = 4;

/// Attaches a device, or says why not.
pub(crate) async fn attach(
    shared: &Shared,
    credential: Credential,
    request: &SubscribeRequest,
    line: Line,
) -> Result<(Arc<Device>, Registration), Status> {
    shared.check_serving()?;
    let narrowed = narrow(request, &credential.grant)?;
    let states = states(shared, &narrowed).await?;
    let digest = digest(&narrowed.subscription.subject, narrowed.subscription.kinds);
    let from = from(request, &digest);
    let token_expires_at_ms = credential.grant.expires.saturating_mul(1000);
    let Narrowed {
        subscription,
        level,
        ..
    } = narrowed;
    let queue = Queue::new(shared.options.queue, shared.metrics.depth.clone());
    let device = Arc::new(Device::new(queue, level, subscription, line, credential));
    let hello = frame::hello(Hello {
        session: device.session.to_string(),
        heartbeat_ms: millis(shared.options.timing.heartbeat),
        digest,
        accounts: states,
        queue_events: u32::try_from(shared.options.queue.frames).unwrap_or(u32::MAX),
        queue_bytes: shared.options.queue.bytes as u64,
        token_expires_at_ms,
        content: level.into(),
    });
    device.queue.force(Item::control(hello), Instant::now());
    let registration = register(shared, &device, &from).await?;
    failpoint!("during-attach");
    tracing::debug!(session = %device.session, client = ?request.client, "a device is attached");
    Ok((device, registration))
}

/// From where the device goes on.
fn from(request: &SubscribeRequest, digest: &[u8]) -> From {
    if request.cursor.is_empty() {
        return From::Now;
    }
    // A cursor proves nothing about what its stream was not about.
    if request.digest != digest {
        return From::Resync(ResyncReason::SubscriptionChanged);
    }
    match Cursor::decode(&request.cursor) {
        Ok(cursor) => From::Cursor(Box::new(cursor)),
        Err(_) => From::Resync(ResyncReason::BadCursor),
    }
}

async fn register(
    shared: &Shared,
    device: &Arc<Device>,
    from: &From,
) -> Result<Registration, Status> {
    let mut logs = PerGroup::default();
    for _ in 0..ROUNDS {
        let attached = shared.command(|reply| {
            Command::Attach(Box::new(AttachRequest {
                device: Arc::clone(device),
                from: from.clone(),
                logs: Box::new(logs.clone()),
                reply,
            }))
        });
        match attached.await? {
            Attached::Yes(registration) => return Ok(registration),
            Attached::Unproven(groups) => shared.ask_leaders(&groups, &mut logs).await?,
            Attached::Unjoined => return Err(unjoined()),
            Attached::Changing => break,
            Attached::Refused(refusal) => return Err(shared.refuse(refusal)),
            Attached::TooMany => {
                return Err(Status::resource_exhausted("too many streams here"));
            }
            Attached::Draining => return Err(draining()),
        }
    }
    Err(unavailable(
        "the log is changing: try again",
        Duration::from_millis(500),
    ))
}

/// The states of the accounts that the request names, as far as they are known.
async fn states(shared: &Shared, narrowed: &Narrowed) -> Result<Vec<AccountState>, Status> {
    let Subject::Accounts(accounts) = &narrowed.subscription.subject else {
        return Ok(Vec::new());
    };
    // Nobody would answer, and the device is better off with its stream than without.
    if !shared.link.borrow().is_up() {
        return Ok(Vec::new());
    }
    let mut states = Vec::new();
    // Owned: a borrowed one would make this future good for one lifetime only.
    let asked = stream::iter(accounts.clone())
        .map(async |account| state(shared, &account).await)
        .buffer_unordered(STATES_AT_ONCE)
        .for_each(|known| {
            states.extend(known);
            std::future::ready(())
        });
    // What is known by then is told.
    let _ = timeout(STATE_LIMIT, asked).await;
    let removed = |state: &AccountState| state.health() == Health::Removed;
    if narrowed.named && states.iter().any(removed) {
        return Err(Status::not_found("one of these accounts does not exist"));
    }
    Ok(states)
}

/// `None`: not known now.
pub(crate) async fn state(shared: &Shared, account: &AccountId) -> Option<AccountState> {
    let removed = AccountState {
        account: account.to_string(),
        health: Health::Removed.into(),
        ..AccountState::default()
    };
    let status = shared.source.status(account).await.ok()?;
    if let Some(state) = status.and_then(|record| record.state) {
        return Some(AccountState {
            account: account.to_string(),
            key: None,
            ..state
        });
    }
    // No owner has said anything yet: it was added just now, or is not there.
    match shared.source.account(account).await.ok()? {
        Some(record) if record.removed_at_ms == 0 => Some(AccountState {
            health: Health::Starting.into(),
            ..removed
        }),
        _ => Some(removed),
    }
}

#[cfg(test)]
mod tests {
    use mailbell_core::{delivery::Subscription, token::MAX_ACCOUNTS};
    use mailbell_proto::bus::v1::AccountRecord;

    use super::*;
    use crate::{
        Metrics, Options, authority::Authority, source::Source as _, source::memory::MemorySource,
        tails::Tails,
    };

    #[tokio::test(start_paused = true)]
    async fn the_states_of_all_accounts_have_one_limit() {
        let source = MemorySource::new();
        let bus: Arc<dyn crate::source::Source> = Arc::new(source.clone());
        let link = source.link();
        let shared = Shared::new(
            Arc::new(Options::default()),
            Metrics::default(),
            Arc::clone(&bus),
            Arc::new(Tails::new(bus)),
            Arc::new(Authority::new("main".to_owned(), link)),
            tokio::sync::mpsc::channel(1).0,
        );
        let account =
            |n: usize| -> AccountId { format!("t.01ARZ3NDEKTSV4RRFFQ6{n:06}").parse().unwrap() };
        for n in 0..MAX_ACCOUNTS {
            source.put_account(&account(n), AccountRecord::default());
            if n >= 2 {
                source.hold_account(&account(n));
            }
        }
        let narrowed = Narrowed {
            subscription: Subscription {
                subject: Subject::accounts((0..MAX_ACCOUNTS).map(account)),
                kinds: mailbell_core::delivery::ALL_KINDS,
            },
            level: mailbell_proto::push::v1::ContentLevel::Preview,
            named: false,
        };
        let before = Instant::now();
        let known = states(&shared, &narrowed).await.unwrap();
        assert_eq!(before.elapsed(), STATE_LIMIT);
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn where_a_device_goes_on() {
        let request = |cursor: &[u8], digest: &'static [u8]| SubscribeRequest {
            cursor: cursor.to_vec().into(),
            digest: digest.into(),
            ..SubscribeRequest::default()
        };
        let good = Cursor::default().encode();
        assert!(matches!(from(&request(b"", b"d"), b"d"), From::Now));
        assert!(matches!(from(&request(&good, b"d"), b"d"), From::Cursor(_)));
        let changed = From::Resync(ResyncReason::SubscriptionChanged);
        for digest in [&b""[..], b"e"] {
            let from = from(&request(&good, digest), b"d");
            assert_eq!(format!("{from:?}"), format!("{changed:?}"));
        }
        let from = from(&request(b"nonsense", b"d"), b"d");
        assert!(matches!(from, From::Resync(ResyncReason::BadCursor)));
    }
}
