//! A session's task on a paused clock, between a mail server and a log that do what the test says.

mod idle;
mod listing;
pub(crate) mod log;
mod policy;
pub(crate) mod server;
mod turns;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mailbell_core::{
    checkpoint::Checkpoint,
    ids::AccountId,
    ownership::Flush,
    pace::{Cause, Counts, Outcome, Rates, Urgency},
    seal::{Binding, KeyRing, seal},
    session::{Known, Limits, Stop},
    timing::Timing,
};
use mailbell_imap::{Settings, TlsSettings};
use mailbell_proto::{
    admin::v1::TlsMode,
    bus::v1::{AccountRecord, ListPage, PageResult},
    push::v1::{ContentLevel, Health},
};
use mailbell_test_servers::Certificate;
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::{
    log::{Fate, LOG, Logs, MemoryLog, State},
    server::{Mailbox, Server},
};
use super::{Context, Driver, End};
use crate::{
    gate::Gate,
    metrics::Metrics,
    policy::Policy,
    reload::reload,
    slot::{self, ListRequest, Slot},
};

/// None that a test of one session would notice.
const RATES: Rates = Rates {
    connects: 1000,
    host_connects: 1000,
    host_logins: 1000,
    handshakes: 16,
};

struct Bench {
    server: Server,
    log: MemoryLog,
    context: Arc<Context>,
    slot: Arc<Slot>,
    record: Arc<AccountRecord>,
    task: JoinHandle<End>,
}

fn account() -> AccountId {
    "default.01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap()
}

pub(crate) fn record() -> AccountRecord {
    AccountRecord {
        host: "mail.test".to_owned(),
        port: 143,
        tls: TlsMode::Plaintext.into(),
        user: "alice".to_owned(),
        folders: vec!["inbox".to_owned()],
        ..AccountRecord::default()
    }
}

/// For sessions of [`record`] under each account of `logs`, which gets a credential.
pub(crate) fn context(server: &Server, logs: Logs) -> Arc<Context> {
    let mut ring = KeyRing::default();
    let public = ring.add(0, &mut rand::rng()).unwrap();
    for (account, log) in &logs.0 {
        let record = record();
        let binding = Binding::of(account, &record);
        let sealed = seal(&public, &binding, b"secret", &mut rand::rng()).unwrap();
        log.with(|state| state.credential = Some(sealed));
    }
    let authority = Certificate::localhost().authority_pem;
    let mut imap = Settings::new(TlsSettings::only([authority.as_bytes()]).unwrap());
    imap.allow_plaintext = true;
    Arc::new(Context {
        ledger: Box::new(logs),
        connect: Box::new(server.clone()),
        imap,
        ring,
        gate: Gate::new(RATES, Metrics::default()),
        clock: Arc::default(),
        limits: Limits::default(),
        policy: watch::Sender::default().subscribe(),
        timing: Timing::default(),
        quiet: Duration::from_secs(480),
        most_content: ContentLevel::Preview,
        page_time: Duration::from_secs(30),
        requests: 2,
        metrics: Metrics::default(),
        started: Instant::now(),
        panics: std::sync::atomic::AtomicU32::new(0),
    })
}

pub(crate) fn watching(uid_next: u32) -> Checkpoint {
    let mut checkpoint = Checkpoint::first([("INBOX".to_owned(), 9, uid_next)], 0);
    checkpoint.health = Health::Watching;
    checkpoint
}

impl Bench {
    /// A session of a mailbox whose messages up to `uids` are known.
    fn new(uids: &[u32]) -> Self {
        let log = MemoryLog::new();
        let next = uids.last().map_or(1, |uid| uid + 1);
        log.with(|state| state.checkpoint = Some((watching(next), 1)));
        Self::start(Server::new(uids), log)
    }

    fn start(server: Server, log: MemoryLog) -> Self {
        Self::start_with(server, log, watch::Sender::default().subscribe())
    }

    /// By what the operator says there.
    fn start_with(server: Server, log: MemoryLog, policy: watch::Receiver<Arc<Policy>>) -> Self {
        let account = account();
        let record = Arc::new(record());
        let logs = Logs([(account.clone(), log.clone())].into());
        let mut context = Arc::into_inner(context(&server, logs)).unwrap();
        context.policy = policy;
        let context = Arc::new(context);
        let slot = Arc::new(Slot::new(account, Flush::default()));
        let task = tokio::spawn(run(
            Arc::clone(&context),
            Arc::clone(&slot),
            Arc::clone(&record),
        ));
        Self {
            server,
            log,
            context,
            slot,
            record,
            task,
        }
    }

    async fn idling(&self) {
        self.server.until(|mailbox| mailbox.idling == 1).await;
    }

    fn list(
        &self,
        page: ListPage,
    ) -> oneshot::Receiver<Result<PageResult, mailbell_proto::bus::v1::OwnerError>> {
        let (reply, answer) = oneshot::channel();
        let request = ListRequest { page, reply };
        self.slot.request(request, 2).unwrap();
        answer
    }

    async fn end(self) -> End {
        timeout(Duration::from_secs(600), self.task)
            .await
            .unwrap()
            .unwrap()
    }
}

fn newest(limit: u32) -> ListPage {
    ListPage {
        folder: 1,
        limit,
        newest: true,
        ..ListPage::default()
    }
}

async fn run(context: Arc<Context>, slot: Arc<Slot>, record: Arc<AccountRecord>) -> End {
    let known: Known = reload(&context, &slot).await.unwrap();
    Box::new(Driver::new(context, slot, record, 1, known))
        .run()
        .await
}

#[tokio::test(start_paused = true)]
async fn an_arrival_is_told_while_it_idles() {
    let bench = Bench::new(&[1, 2]);
    bench.idling().await;
    bench.server.deliver(3);
    bench.log.until_arrived(&[3]).await;
    let event = bench
        .log
        .with(|state| state.events.last().cloned())
        .unwrap();
    assert!(event.alert && event.detected_us > 0 && event.detected_us <= event.fetched_us);
    assert!(!event.traceparent.is_empty());
    let message: mailbell_proto::push::v1::Message = prost::Message::decode(event.content).unwrap();
    assert_eq!(
        (message.subject.as_str(), message.preview.as_str()),
        ("message 3", "text")
    );
    assert_eq!(bench.context.metrics.milestones("detected"), 1);
    assert_eq!(bench.context.metrics.milestones("appended"), 1);
    // It idles again, and the checkpoint follows.
    bench.idling().await;
    bench
        .log
        .until(|state| {
            state
                .checkpoint
                .as_ref()
                .is_some_and(|(checkpoint, _)| checkpoint.position == 1)
        })
        .await;
    bench.slot.stop(Stop::HandOver);
    let server = bench.server.clone();
    assert_eq!(bench.end().await, End::HandedOver);
    assert_eq!(server.look(|mailbox| mailbox.logouts), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_answering_is_found_out() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    let start = Instant::now();
    bench.server.change(|mailbox| {
        mailbox.mute = true;
        mailbox.uids.push(2);
    });
    bench
        .log
        .until(|state| {
            state.statuses.iter().any(|(_, status)| {
                let state = status.state.as_ref().unwrap();
                state.health() == Health::Retrying && state.code == "timeout"
            })
        })
        .await;
    let found_out = start.elapsed();
    // Silence for 8 minutes, then 15 s for the end of IDLE.
    assert!(
        found_out <= Duration::from_secs(8 * 60 + 20),
        "{found_out:?}"
    );
    bench.server.change(|mailbox| mailbox.mute = false);
    bench.log.until_arrived(&[2]).await;
}

#[tokio::test(start_paused = true)]
async fn silence_alone_is_no_reason_to_look_or_log_in() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    tokio::time::sleep(Duration::from_secs(20 * 60)).await;
    let commands = bench.server.look(|mailbox| mailbox.commands.clone());
    let count = |word: &str| {
        commands
            .iter()
            .filter(|line| line.starts_with(word))
            .count()
    };
    assert_eq!(
        (count("AUTHENTICATE"), count("EXAMINE")),
        (1, 1),
        "{commands:?}"
    );
    // The link was tried after 8 and 16 minutes.
    assert_eq!(count("IDLE"), 3, "{commands:?}");
    bench.idling().await;
    bench.server.deliver(2);
    bench.log.until_arrived(&[2]).await;
}

#[tokio::test(start_paused = true)]
async fn lost_answers_of_the_log_cost_nothing_and_repeat_nothing() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench.log.with(|state| {
        state
            .append_fates
            .extend([Fate::StoredUnanswered, Fate::Broken, Fate::Broken]);
    });
    bench.server.deliver(2);
    bench.server.deliver(3);
    bench.log.until_arrived(&[2, 3]).await;
    assert!(bench.context.metrics.milestones("retried") >= 1);
}

#[tokio::test(start_paused = true)]
async fn arrivals_while_nats_is_away_come_when_it_is_back() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench.log.set_up(false);
    for uid in 2..40 {
        bench.server.deliver(uid);
    }
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert!(bench.log.arrived().is_empty());
    assert_eq!(
        bench.server.look(|mailbox| mailbox.logins),
        1,
        "the session stays"
    );
    bench.log.set_up(true);
    let all: Vec<u32> = (2..40).collect();
    bench.log.until_arrived(&all).await;
}

#[tokio::test(start_paused = true)]
async fn a_status_that_waits_for_nats_keeps_nobody_busy() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench.server.deliver(2);
    bench.log.until_arrived(&[2]).await;
    // That mail arrived is written lazily: not yet, when NATS goes away.
    bench.log.set_up(false);
    // This clock moves only while no task is busy: with one that spins this never ends.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let written = |state: &State| {
        let mut statuses = state.statuses.iter();
        statuses.any(|(_, status)| status.last_arrival_ms > 0)
    };
    assert!(!bench.log.with(|state| written(state)));
    bench.log.set_up(true);
    bench.log.until(written).await;
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_was_stored_unheard_is_our_own() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench
        .log
        .with(|state| state.store_fates.push_back(Fate::StoredUnanswered));
    bench.server.deliver(2);
    bench.log.until_arrived(&[2]).await;
    bench.log.until(|state| state.store_fates.is_empty()).await;
    // Something else is known before the next try, so that the stored one is not what is to be stored.
    bench.server.deliver(3);
    bench
        .log
        .until(|state| {
            state
                .checkpoint
                .as_ref()
                .is_some_and(|(checkpoint, _)| checkpoint.position == 2)
        })
        .await;
    assert_eq!(bench.slot.flush().log_id, LOG);
    bench.slot.stop(Stop::HandOver);
    assert_eq!(bench.end().await, End::HandedOver);
}

#[tokio::test(start_paused = true)]
async fn none_of_the_checkpoints_that_may_have_been_stored_is_a_strangers() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    // The first is stored and nobody says so; of the next ones nobody hears anything either.
    bench.log.with(|state| {
        state
            .store_fates
            .extend([Fate::StoredUnanswered, Fate::Broken, Fate::Broken]);
    });
    for uid in 2..6 {
        // Each knows more than the one before.
        bench.server.deliver(uid);
        let told: Vec<u32> = (2..=uid).collect();
        bench.log.until_arrived(&told).await;
        let left = usize::try_from(4_u32.saturating_sub(uid)).unwrap();
        bench
            .log
            .until(|state| state.store_fates.len() <= left)
            .await;
    }
    bench
        .log
        .until(|state| {
            state
                .checkpoint
                .as_ref()
                .is_some_and(|(checkpoint, _)| checkpoint.position == 4)
        })
        .await;
    bench.slot.stop(Stop::HandOver);
    assert_eq!(bench.end().await, End::HandedOver);
}

#[tokio::test(start_paused = true)]
async fn another_owners_checkpoint_ends_the_session() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench
        .log
        .with(|state| state.checkpoint = Some((watching(100), 7)));
    bench.server.deliver(2);
    assert_eq!(bench.end().await, End::Conflict);
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_bound_until_the_checkpoint_is_stored() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench
        .log
        .with(|state| state.store_fates.extend([Fate::Broken; 3]));
    bench.server.deliver(2);
    bench.log.until_arrived(&[2]).await;
    bench.log.until(|state| state.store_fates.len() == 1).await;
    assert_eq!(bench.slot.flush().within(LOG), Some(0));
    bench
        .log
        .until(|state| {
            state
                .checkpoint
                .as_ref()
                .is_some_and(|(_, revision)| *revision == 2)
        })
        .await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(bench.slot.flush().bound, None);
}

#[tokio::test(start_paused = true)]
async fn without_idle_it_polls() {
    let server = Server::new(&[1]);
    server.change(|mailbox| mailbox.idle = false);
    let log = MemoryLog::new();
    log.with(|state| state.checkpoint = Some((watching(2), 1)));
    let bench = Bench::start(server, log);
    bench.server.until(|mailbox| mailbox.logins == 1).await;
    bench.server.deliver(2);
    bench.log.until_arrived(&[2]).await;
    let polled = |commands: &[String]| commands.iter().any(|line| line == "NOOP");
    assert!(bench.server.look(|mailbox| polled(&mailbox.commands)));
}

#[tokio::test(start_paused = true)]
async fn a_late_uid_is_told_too() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench.server.deliver(4);
    bench.log.until_arrived(&[4]).await;
    bench.server.change(|mailbox| mailbox.uids.insert(1, 3));
    bench.log.until_arrived(&[4, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_account_ends_at_once_even_if_the_server_is_mute() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench.server.change(|mailbox| mailbox.mute = true);
    let since = Instant::now();
    bench.slot.stop(Stop::Lost);
    assert_eq!(bench.end().await, End::Lost);
    assert_eq!(since.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_removed_account_says_so_and_ends() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    bench.slot.stop(Stop::Removed);
    let log = bench.log.clone();
    assert_eq!(bench.end().await, End::Removed);
    let last = log.with(|state| state.events.last().cloned()).unwrap();
    let removed = matches!(
        last.fact,
        mailbell_core::event::Fact::AccountState {
            health: Health::Removed,
            ..
        }
    );
    assert!(removed, "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_status_is_written_at_most_once_a_second() {
    let bench = Bench::new(&[1]);
    bench.idling().await;
    for round in 0..20 {
        bench.server.deliver(2 + round);
        bench.server.break_connections();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let told: Vec<u32> = (2..22).collect();
    bench.log.until_arrived(&told).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let statuses = bench.log.with(|state| state.statuses.clone());
    let gaps: Vec<_> = statuses
        .windows(2)
        .map(|pair| pair[1].0.duration_since(pair[0].0))
        .collect();
    assert!(
        gaps.iter().all(|gap| *gap >= Duration::from_secs(1)),
        "{gaps:?}"
    );
    let last = statuses.last().unwrap().1.clone();
    assert_eq!(last.state.unwrap().health(), Health::Watching);
    assert!(last.last_arrival_ms > 0);
}

#[test]
fn what_a_parked_account_costs_is_small() {
    let parked = size_of::<Driver>();
    assert!(parked < 2048, "{parked}");
}

#[tokio::test]
async fn the_task_of_a_parked_account_is_small() {
    let bench = Bench::new(&[1]);
    let (context, slot) = (Arc::clone(&bench.context), Arc::clone(&bench.slot));
    let driver = Driver::new(
        context,
        slot,
        Arc::clone(&bench.record),
        1,
        Known::default(),
    );
    let parked = size_of_val(&driver);
    let task = Box::new(driver).run();
    let size = parked + size_of_val(&task);
    assert!(size < 4096, "{size}");
    bench.task.abort();
}
