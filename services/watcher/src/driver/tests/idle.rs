//! What a session costs for which nothing happens.

use std::{
    future::{Future as _, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use mailbell_core::ownership::Flush;
use mailbell_proto::push::v1::Health;

use super::{
    account, context,
    log::{Logs, MemoryLog},
    record, run,
    server::Server,
    watching,
};
use crate::slot::Slot;

#[tokio::test(start_paused = true)]
async fn a_session_that_idles_is_not_woken_before_its_server_has_said_nothing_for_long() {
    let (server, log) = (Server::new(&[1]), MemoryLog::new());
    log.with(|state| state.checkpoint = Some((watching(2), 1)));
    let context = context(&server, Logs([(account(), log.clone())].into()));
    let slot = Arc::new(Slot::new(account(), Flush::default()));
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let mut session = Box::pin(run(context, slot, Arc::new(record())));
    let _task = tokio::spawn(poll_fn(move |cx| {
        counted.fetch_add(1, SeqCst);
        session.as_mut().poll(cx)
    }));
    server.until(|mailbox| mailbox.idling == 1).await;
    log.until_shown(Health::Watching, "watching").await;
    // What it begins with is over: its status is written.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let before = polls.load(SeqCst);
    assert!(before > 0);
    tokio::time::sleep(Duration::from_secs(6 * 60)).await;
    assert_eq!(polls.load(SeqCst), before);
    // After eight minutes it is tried whether the link works.
    tokio::time::sleep(Duration::from_secs(2 * 60)).await;
    assert!(polls.load(SeqCst) > before);
}
